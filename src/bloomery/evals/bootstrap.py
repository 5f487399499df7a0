"""Percentile bootstrap intervals (Efron 1979) of a mean and of a paired difference of means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bloomery.errors import UsageError
from bloomery.seeds import stream

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its interval; `n` counts the answers behind it. All three are None when `n` is 0:
    a rate over no questions is not a number, and must not be read as zero."""

    mean: float | None
    low: float | None
    high: float | None
    n: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def estimate(values: Sequence[float], *, seed: int = 0, draws: int = DRAWS, level: float = LEVEL) -> Estimate:
    """The mean of `values` [n] and its percentile bootstrap interval.

    Drawing n of n values with replacement is drawing how often each *distinct* value occurs from a
    multinomial with the observed shares; that is exact, and cheap for rates, which have two values.
    Raises `UsageError` when a value is not finite.
    """
    x = _finite(values)
    if not len(x):
        return Estimate(None, None, None, 0)
    distinct, counts = np.unique(x, return_counts=True)
    drawn = stream(seed, "bootstrap").multinomial(len(x), counts / len(x), size=draws)
    means = drawn @ distinct / len(x)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(x.mean()), float(low), float(high), len(x))


def paired(
    after: Sequence[float],
    before: Sequence[float],
    *,
    seed: int = 0,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Estimate:
    """`mean(after - before)` over the same questions in the same order, with its interval.

    Pairing removes how hard each question is from the noise. Raises `UsageError` when the lengths differ.
    """
    if len(after) != len(before):
        raise UsageError(
            "a paired difference needs the same questions twice", got=f"{len(after)} and {len(before)} values"
        )
    return estimate((_finite(after) - _finite(before)).tolist(), seed=seed, draws=draws, level=level)


def interval(
    groups: Sequence[tuple[float, float]], *, seed: int = 0, draws: int = DRAWS, level: float = LEVEL
) -> tuple[float, float]:
    """The interval of a share whose cases come in groups that stand or fall together.

    Whole groups are drawn with replacement, as (sum of values, number of values, or their weights); a draw's
    share is the sum of its sums over the sum of its numbers. Raises `UsageError` when there is nothing to
    draw.
    """
    table = np.asarray(groups, dtype=np.float64).reshape(-1, 2)
    if not table[:, 1].sum() > 0:
        raise UsageError("an interval over no cases", got=f"{len(table)} groups")
    _finite(table[:, 0].tolist())
    # Rows of one kind stand for each other, so only how often each kind is drawn matters.
    kinds, counts = np.unique(table, axis=0, return_counts=True)
    drawn = stream(seed, "bootstrap").multinomial(len(table), counts / len(table), size=draws)
    sums, numbers = drawn @ kinds[:, 0], drawn @ kinds[:, 1]
    shares = sums[numbers > 0] / numbers[numbers > 0]
    low, high = np.quantile(shares, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _finite(values: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    x = np.asarray(values, dtype=np.float64)
    if not np.isfinite(x).all():
        raise UsageError(
            "an average over values that are not finite", got=f"{(~np.isfinite(x)).sum()} of {len(x)}"
        )
    return x
