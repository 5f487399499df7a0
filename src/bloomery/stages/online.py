"""What the stages that learn from their own answers share: which prompts they can ask, what an answer scores,
and how a model reads rollouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from bloomery.errors import UsageError
from bloomery.models.llama import Llama
from bloomery.models.lora import Bare
from bloomery.objectives.token import counted_logprobs
from bloomery.text.chat import Chat
from bloomery.types import Prompt, Reward, Rollout
from bloomery.world import Oracle, read_questions, read_world


class Scoring(Protocol):
    """The settings of a recipe that say what becomes of a reward."""

    @property
    def score_clip(self) -> float | None: ...
    @property
    def missing_eos_penalty(self) -> float: ...


def fitting(prompts: list[Prompt], chat: Chat, limit: int, say: Callable[[str], None]) -> list[Prompt]:
    """The prompts that leave room for an answer; says how many do not."""
    fit = [p for p in prompts if len(chat.prompt(p.messages)) <= limit]
    if len(fit) < len(prompts):
        say(f"left out {len(prompts) - len(fit)} of {len(prompts)} prompts longer than {limit} tokens")
    if not fit:
        raise UsageError("no prompt leaves room for an answer", expected=f"prompts of at most {limit} tokens")
    return fit


def gold_grades(world: Path | None) -> Callable[[list[Rollout]], dict[str, float]]:
    """What a world's oracle says of a step's answers: for people to see; no stage learns of it."""
    if world is None:
        return lambda rollouts: {}
    oracle, asked = Oracle(read_world(world)), {q.id: q for q in read_questions(world)}

    def grades(rollouts: list[Rollout]) -> dict[str, float]:
        found = [oracle.judge(asked[r.prompt.id], r.text) for r in rollouts if r.prompt.id in asked]
        return {"gold/graded_reward": float(np.mean([verdict.reward for verdict in found]))} if found else {}

    return grades


def score(judge: Reward, rollouts: Sequence[Rollout], recipe: Scoring) -> list[float]:
    """What the reward says, clipped, less the penalty of an answer that was cut off."""
    found = judge(rollouts)
    limit = recipe.score_clip or float("inf")
    return [
        min(max(s, -limit), limit) - recipe.missing_eos_penalty * (r.completion.finish_reason == "length")
        for s, r in zip(found, rollouts, strict=True)
    ]


def reader(
    model: Llama | Bare, temperature: float, *, entropy: bool = True
) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    """Log-probs and entropies `[B, T]` of the counted tokens under a model; entropies 0.0 if not wanted."""
    return lambda tokens, mask: counted_logprobs(
        model(tokens), model.logits, tokens, mask, temperature, entropy=entropy
    )


def average(seen: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric over the minibatches that logged it, less what only serves the checks."""
    names = dict.fromkeys(name for metrics in seen for name in metrics if not name.startswith("drift/"))
    return {name: float(np.mean([m[name] for m in seen if name in m])) for name in names}
