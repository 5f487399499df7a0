"""What a benchmark is, and the comparisons that decide whether both sides did the same.

Only the standard library: this file is imported in the environments of the peers too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, variance
from typing import Any

WORKS = ("help", "pretrain", "pretrain_fp32", "rollout", "sft", "reward", "reward_k6", "dpo", "grpo", "ppo")
# Works whose stage can compile its layers.
COMPILED = ("pretrain", "pretrain_fp32", "sft", "reward", "reward_k6", "dpo", "grpo", "ppo")
PAIRS_OF_SIX = 15


@dataclass(frozen=True)
class Shape:
    """A decoder's size; heads are 64 wide."""

    width: int
    depth: int
    context: int = 256
    vocab: int = 4096

    @property
    def heads(self) -> int:
        return max(1, self.width // 64)


# XS only tries a benchmark out. Those named by their parameters are for a GPU.
SIZES = {
    "S": Shape(256, 4),
    "M": Shape(512, 8),
    "XS": Shape(64, 2),
    "30M": Shape(384, 6, 1024, 50304),
    "124M": Shape(768, 12, 1024, 50304),
    "350M": Shape(1024, 24, 1024, 50304),
}


@dataclass
class Side:
    """What one side told: before its first round, and of each step of every round (the warm-up is first)."""

    told: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, list[Any]] = field(default_factory=dict)
    rounds: list[float] = field(default_factory=list)
    peak_mb: float = 0.0


@dataclass(frozen=True)
class Case:
    """One row of the table. `ours` and `theirs` are functions of the work's file, `(pace, settings)`.

    `python` says which environment theirs runs in ("" is this one), `checkout` which repository it reads.
    A round has `steps` steps; `equal` says what differs, or nothing.
    """

    work: str
    peer: str
    unit: str
    steps: int
    ours: str
    theirs: str
    equal: Callable[[Side, Side], str]
    precision: str = "fp32"
    python: str = ""
    checkout: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    compiled: bool = False
    """Theirs is compiled too: a row that is measured only where ours is."""


def steps_agree(name: str, tolerance: float, steps: int) -> Callable[[Side, Side], str]:
    """The first `steps` values of a fact agree one by one: same data, weights, loss and updates."""

    def equal(ours: Side, theirs: Side) -> str:
        pairs = list(zip(ours.facts.get(name, [])[:steps], theirs.facts.get(name, [])[:steps], strict=False))
        if len(pairs) < min(steps, 2):
            return f"only {len(pairs)} values of {name} to compare"
        for step, (a, b) in enumerate(pairs):
            if not abs(a - b) <= tolerance:
                return f"{name} of step {step} is {a:.5f} and {b:.5f}"
        return ""

    return equal


def means_agree(*names: str, errors: float = 5.0) -> Callable[[Side, Side], str]:
    """The means of facts that are random on both sides lie within so many standard errors."""

    def equal(ours: Side, theirs: Side) -> str:
        for name in names:
            a, b = ours.facts.get(name, []), theirs.facts.get(name, [])
            if min(len(a), len(b)) < 3:
                return f"only {min(len(a), len(b))} values of {name} to compare"
            if not abs(fmean(a) - fmean(b)) <= errors * standard_error(a, b):
                return f"mean {name} is {fmean(a):.4f} and {fmean(b):.4f}"
        return ""

    return equal


def standard_error(a: Sequence[float], b: Sequence[float]) -> float:
    """Of the difference of two means; rounding is never taken for a difference."""
    return float((variance(a) / len(a) + variance(b) / len(b)) ** 0.5) + 1e-6 * (1 + abs(fmean(a)))


def told_same(name: str) -> Callable[[Side, Side], str]:
    """What both told before the first round is the same value."""

    def equal(ours: Side, theirs: Side) -> str:
        a, b = ours.told.get(name), theirs.told.get(name)
        return "" if a is not None and a == b else f"{name} differ: {str(a)[:200]} and {str(b)[:200]}"

    return equal


def all_of(*checks: Callable[[Side, Side], str]) -> Callable[[Side, Side], str]:
    """The first complaint of several."""
    return lambda ours, theirs: next((said for check in checks if (said := check(ours, theirs))), "")
