"""A reward made of parts: a weighted sum in which every part is checked and logged by its name.

A part has an opinion of each answer, or None: a judge whose verdict cannot be read, an exact match where no
right answer is known. No opinion adds nothing, and is counted. NaN, infinity and whatever else is no finite
float32 is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from bloomery.errors import DataError, UsageError, clip, nearest
from bloomery.types import Rollout

LARGEST = float(np.finfo(np.float32).max)
Opinion = Callable[[Sequence[Rollout]], Sequence[float | None]]


@runtime_checkable
class Measured(Protocol):
    """A part that has something to log: `metrics` describes its last call."""

    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Part:
    """`weight` times the opinion goes into the sum; beyond plus or minus `clip` it is cut first."""

    name: str
    opinion: Opinion
    weight: float = 1.0
    clip: float | None = None


class Combined:
    """A `Reward`: the weighted sum of its parts.

    `metrics` holds, of the last call and for each part, `rewards/<name>/mean` and `/std` (before weight and
    clip, over the answers it had an opinion of), `/abstained` and `/clipped` (shares of the answers), and
    what the part logs of itself. Raises `UsageError` without a part, or when two have the same name.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        names = [part.name for part in parts]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"two parts of the reward are called '{twice}'", do="give one another name")
        if not parts:
            raise UsageError("a reward has at least one part")
        self.parts = tuple(parts)
        self.metrics: dict[str, float] = {}

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        """One number for each answer. Raises `DataError` naming part, prompt and answer where it is none:
        an opinion, or the weighted sum."""
        totals, self.metrics = [0.0] * len(rollouts), {}
        for part in self.parts:
            said = _checked(part, rollouts)
            cut = [None if s is None else _cut(s, part.clip) for s in said]
            totals = [t + part.weight * (c or 0.0) for t, c in zip(totals, cut, strict=True)]
            self.metrics |= _measure(part, said, cut)
        _finite("the weighted sum of the rewards", totals, rollouts)
        return totals

    def part(self, name: str) -> Part:
        """The part of that name. Raises `UsageError` when there is none."""
        names = {part.name: part for part in self.parts}
        if name not in names:
            raise UsageError(f"no part of the reward is called '{name}'{nearest(name, names)}")
        return names[name]


def combine(parts: Sequence[Part]) -> Combined:
    """Parts as one `Reward` that logs them; see `Combined`."""
    return Combined(parts)


def each(opinion: Callable[[Rollout], float | None]) -> Opinion:
    """What is thought of one answer, as an opinion of many."""
    return lambda rollouts: [opinion(rollout) for rollout in rollouts]


def _checked(part: Part, rollouts: Sequence[Rollout]) -> list[float | None]:
    said = list(part.opinion(rollouts))
    if len(said) != len(rollouts):
        raise DataError(
            f"reward '{part.name}' must say one thing of each answer", got=len(said), expected=len(rollouts)
        )
    _finite(f"reward '{part.name}'", said, rollouts)
    return said


def _finite(name: str, said: Sequence[float | None], rollouts: Sequence[Rollout]) -> None:
    for number, rollout in zip(said, rollouts, strict=True):
        if number is not None and not abs(number) <= LARGEST:
            raise DataError(
                f"{name} is not a finite number",
                where=f"prompt {rollout.prompt.id!r}",
                got=f"{number} for {clip(rollout.text, 80)!r}",
                expected="a finite float32, or None for no opinion",
            )


def _cut(number: float, limit: float | None) -> float:
    return number if limit is None else min(max(number, -limit), limit)


def _measure(part: Part, said: Sequence[float | None], cut: Sequence[float | None]) -> dict[str, float]:
    given = np.array([s for s in said if s is not None], dtype=np.float64)
    num = max(1, len(said))
    found = {
        "mean": float(given.mean()) if given.size else 0.0,
        "std": float(given.std()) if given.size else 0.0,
        "abstained": 1 - given.size / num if said else 0.0,
    }
    if part.clip is not None:
        found["clipped"] = sum(s != c for s, c in zip(said, cut, strict=True)) / num
    if isinstance(part.opinion, Measured):
        found |= part.opinion.metrics
    return {f"rewards/{part.name}/{name}": value for name, value in found.items()}
