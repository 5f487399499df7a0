"""Ending a run before it over-optimises: the rule of `evals.overoptimisation` while the run goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from pydantic import Field
from torch import nn

from bloomery.errors import UsageError, nearest
from bloomery.evals.overoptimisation import Verdict, stop_rule
from bloomery.recipe import Section
from bloomery.rewards.sources import Source

MEMORY = "stop_rule"
PROXY = "objective/scores"


class Pace(Section):
    """When a witness no longer keeps pace with the score that is trained on."""

    window: int = Field(6, ge=1)
    """Steps whose mean is looked at."""
    share: float = Field(0.5, ge=0)
    """The witness keeps pace while it gains this share of what the score gains; with 0, while it rises."""
    patience: int = Field(8, ge=1)
    """Steps in which it did not."""

    def verdict(self, score: Sequence[float], witness: Sequence[float]) -> Verdict:
        """What the rule says of a run, a number for each of its steps."""
        return stop_rule(score, witness, window=self.window, patience=self.patience, share=self.share)


class StopRule(Pace):
    """End a run at the first step at which a watched source (the witness) has not kept pace for a while with
    the score that is trained on."""

    watch: str
    """The witness, by the name it is logged under: one of the sources in `watch`."""

    def check(self, watched: Sequence[Source]) -> None:
        """Raises `UsageError` when nothing of that name is watched."""
        names = [source.logged for source in watched]
        if self.watch not in names:
            raise UsageError(
                f"the stop rule's '{self.watch}' is not watched{nearest(self.watch, names)}",
                expected=", ".join(names) or "a source in `watch`",
            )

    @property
    def columns(self) -> tuple[str, str]:
        """What is read of each logged line: the score that is trained on, and the witness."""
        return PROXY, f"watch/{self.watch}/mean"

    def of(self, rows: Sequence[Mapping[str, Any]]) -> Verdict:
        """What the rule says of the logged lines of a run, in the order of its steps."""
        return self.verdict(*([row[name] for row in rows] for name in self.columns))


class Best:
    """The weights of the step that the rule finds best so far: a copy of what learns, part of checkpoints.

    They are taken from `asked`, which holds those that gave the newest answers."""

    def __init__(self, rule: StopRule, learning: nn.Module, asked: nn.Module) -> None:
        self.rule, self.learning, self.asked = rule, learning, asked
        self.kept = deepcopy(learning).requires_grad_(False)

    def look(self, step: int, metrics: Mapping[str, float], memory: dict[str, Any]) -> bool:
        """Whether the run ends with this step, of whose answers `metrics` tells. To be asked before the step
        changes the weights that gave those answers."""
        rows = memory.setdefault(MEMORY, [])
        rows.append({name: metrics[name] for name in self.rule.columns})
        said = self.rule.of(rows)
        if said.best == step:
            self.kept.load_state_dict(self.asked.state_dict())
        return said.stop is not None

    def settle(self, memory: Mapping[str, Any]) -> str:
        """Go back to the best step's weights if the rule ended the run; says what was done and why."""
        said = self.rule.of(memory[MEMORY])
        if said.stop is None:
            return "the stop rule did not end this run: the last weights are saved"
        self.learning.load_state_dict(self.kept.state_dict())
        return (
            f"ended by the stop rule at step {said.stop}: watch/{self.rule.watch} kept pace with the score "
            f"until step {said.best}, whose weights are saved"
        )
