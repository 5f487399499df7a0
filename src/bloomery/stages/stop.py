"""Ending a run before it over-optimises: the rule of `evals.overoptimisation` while the run goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from pydantic import Field
from torch import nn

from bloomery.errors import UsageError, nearest
from bloomery.evals.overoptimisation import Verdict, budget_rule, stop_rule
from bloomery.recipe import Section
from bloomery.rewards.sources import Source

MEMORY = "stop_rule"
PROXY, KL = "objective/scores", "objective/kl"


class Pace(Section):
    """When a witness no longer keeps pace with the score that is trained on."""

    window: int = Field(6, ge=1)
    """Steps whose mean is looked at."""
    share: float = Field(0.5, ge=0)
    """The witness keeps pace while it gains this share of what the score gains; with 0, while it rises."""
    patience: int = Field(8, ge=1)
    """Steps in which it did not."""

    def verdict(
        self,
        score: Sequence[float],
        kl: Sequence[float],
        witness: Sequence[float] | None,
        budget: float | None,
    ) -> Verdict:
        """What the rule says of a run, a number for each of its steps: by a witness, a budget, or both."""
        if witness is None:
            none = Verdict(len(kl) - 1, None)
            return none if budget is None else budget_rule(kl, window=self.window, budget=budget)
        return stop_rule(
            score,
            witness,
            kl,
            window=self.window,
            patience=self.patience,
            share=self.share,
            budget=budget,
        )


class StopRule(Pace):
    """End a run before it over-optimises: at the first step at which a watched source (the witness) has not
    kept pace for a while with the score that is trained on, when a KL budget is spent, or by both."""

    watch: str | None = None
    """The witness, by the name it is logged under: one of the sources in `watch`."""
    budget: float | None = Field(None, ge=0)
    """The KL in nats that the reward model's report card allows (`verdict.kl` in its evaluation.json). Alone,
    the run ends when it is spent; with a witness, that decides between half of it and twice of it."""

    def check(self, watched: Sequence[Source]) -> None:
        """Raises `UsageError` when nothing of that name is watched, there is neither witness nor budget, the
        budget is none, or what is said of a witness is said of none."""
        names = [source.logged for source in watched]
        if self.watch is None and self.budget is None:
            raise UsageError("the stop rule has nothing to go by", do="give watch, budget, or both")
        if self.budget == 0:
            what = "a budget of 0 ends a run before it begins: the report card says not to optimise"
            raise UsageError(what, do="mend the reward model, or leave out stop_rule.budget")
        for name in ("share", "patience") if self.watch is None else ():
            if getattr(self, name) != Pace.model_fields[name].default:
                raise UsageError(f"stop_rule.{name} changes nothing without a witness", do="give watch")
        if self.watch is not None and self.watch not in names:
            raise UsageError(
                f"the stop rule's '{self.watch}' is not watched{nearest(self.watch, names)}",
                expected=", ".join(names) or "a source in `watch`",
            )

    @property
    def witness(self) -> str | None:
        """The logged column of the witness."""
        return None if self.watch is None else f"watch/{self.watch}/mean"

    def why(self, best: int) -> str:
        """What was so until the best step."""
        if self.budget is None:
            return f"watch/{self.watch} kept pace with the score until step {best}"
        if self.watch is None:
            return f"the mean KL of its window was within {self.budget:g} nats until step {best}"
        band = f"{self.budget / 2:g} and {2 * self.budget:g} nats"
        return f"between {band} watch/{self.watch} did best beside the score at step {best}"

    @property
    def columns(self) -> tuple[str, ...]:
        """What is read of each logged line."""
        return (PROXY, KL) if self.witness is None else (PROXY, KL, self.witness)

    def of(self, rows: Sequence[Mapping[str, Any]]) -> Verdict:
        """What the rule says of the logged lines of a run, in the order of its steps."""
        score, kl, *witness = ([row[name] for row in rows] for name in self.columns)
        return self.verdict(score, kl, witness[0] if witness else None, self.budget)


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
            f"ended by the stop rule at step {said.stop}: {self.rule.why(said.best)}, whose weights are saved"
        )
