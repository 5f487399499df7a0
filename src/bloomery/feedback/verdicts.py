"""Rankings of the same answers as arrays, and the bootstrap, for `agreement` and `reliability`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bloomery.feedback.pairs import by_content
from bloomery.seeds import stream
from bloomery.types import Ranking

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A number with its 95 % interval, and how many comparisons it rests on."""

    value: float
    low: float
    high: float
    num: int


@dataclass(frozen=True, slots=True)
class Unit:
    """One prompt with its K answers and everybody who ranked them.

    `verdicts` is [A, K(K-1)/2]: for annotator a and the pair `pairs[n] = (i, j)`, i < j, it is 1 if answer i
    was ranked above j, -1 if below, 0 for a tie.
    """

    key: str
    rankings: tuple[Ranking, ...]
    pairs: tuple[tuple[int, int], ...]
    verdicts: Floats

    @property
    def annotators(self) -> tuple[str, ...]:
        return tuple(ranking.annotator.id for ranking in self.rankings)


def units(rankings: Iterable[Ranking]) -> tuple[list[Unit], int]:
    """Submitted rankings grouped by content, and the number left out because the same annotator had ranked
    the same answers before (the first counts)."""
    found, repeated = [], 0
    for key, group in by_content(rankings).items():
        first: dict[str, Ranking] = {}
        for ranking in group:
            first.setdefault(ranking.annotator.id, ranking)
        repeated += len(group) - len(first)
        ranks = np.array([ranking.ranking for ranking in first.values()], dtype=np.float64)
        i, j = np.triu_indices(ranks.shape[1], k=1)
        pairs = tuple(zip(i.tolist(), j.tolist(), strict=True))
        found.append(Unit(key, tuple(first.values()), pairs, np.sign(ranks[:, j] - ranks[:, i])))
    return found, repeated


def bootstrap(scores: Floats, counts: Floats, *, seed: int = 0, num: int = 1000) -> Interval | None:
    """sum(scores) / sum(counts) over clusters [n], with a percentile interval from resampling clusters.

    Clusters are prompts, because comparisons within a prompt hang together. None if nothing was counted.
    """
    if counts.sum() == 0:
        return None
    used = counts > 0
    scores, counts = scores[used], counts[used]
    size = len(counts)
    weights = stream(seed, "bootstrap").multinomial(size, np.full(size, 1 / size), size=num)
    low, high = np.quantile((weights @ scores) / (weights @ counts), [0.025, 0.975])
    return Interval(float(scores.sum() / counts.sum()), float(low), float(high), round(counts.sum()))
