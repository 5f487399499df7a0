"""How far annotators agree: the ceiling for a reward model that learns from them.

Agreement is counted on directed comparisons: of the pairs that one annotator puts in order, how often does
another put them in the same order? If the other calls the pair a tie, that is half an agreement, as a coin
would do. Pairs that the first calls a tie have no order to agree with. A reward model is scored the same
way, on the ordered pairs of held-out rankings, so the two numbers may stand side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from bloomery.errors import UsageError
from bloomery.feedback.verdicts import Floats, Interval, Unit, bootstrap, units
from bloomery.types import Ranking

Metric = Literal["nominal", "ordinal", "interval"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """`between`: an annotator and a random other. `majority`: an annotator and the majority of at least two
    others, which is what a perfect model of the crowd would reach on a single annotator's labels.
    `pairs`: "a | b" to the agreement of a and b, both ways. `alpha`: Krippendorff's, of the preferences
    ("preference") and of each rating; None where it is undefined. None also where nobody overlapped."""

    between: Interval | None
    majority: Interval | None
    pairs: dict[str, Interval]
    alpha: dict[str, float | None]
    num_prompts: int
    num_overlapping: int
    num_repeated: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def agreement(rankings: Iterable[Ranking], *, seed: int = 0) -> Agreement:
    """Everything above for all submitted rankings; prompts ranked by one annotator alone say nothing."""
    found, repeated = units(rankings)
    overlapping = [unit for unit in found if len(unit.rankings) > 1]
    by_pair: dict[str, list[tuple[float, float]]] = {}
    for unit in overlapping:
        for pair, score in _both_ways(unit).items():
            by_pair.setdefault(pair, []).append(score)
    pairs = {pair: bootstrap(*np.array(by_pair[pair]).T, seed=seed) for pair in sorted(by_pair)}
    return Agreement(
        between=_overall([_with_others(unit.verdicts) for unit in overlapping], seed),
        majority=_overall([_with_majority(unit.verdicts) for unit in overlapping], seed),
        pairs={pair: interval for pair, interval in pairs.items() if interval is not None},
        alpha=_alphas(overlapping),
        num_prompts=len(found),
        num_overlapping=len(overlapping),
        num_repeated=repeated,
    )


def agree(reference: Floats, other: Floats) -> tuple[float, float]:
    """(agreements, comparisons) of verdicts in {-1, 0, 1}, broadcast: comparisons where `reference` is not a
    tie; 1 for the same sign, 1/2 where `other` is a tie or split.

    agree([1, 1, 1, 0], [1, -1, 0, 1]) = (1.5, 3): same, opposite, undecided, and one without an order.
    """
    reference, other = np.broadcast_arrays(reference, other)
    directed = reference != 0
    return float((directed * (1 + reference * np.sign(other)) / 2).sum()), float(directed.sum())


def _overall(parts: list[tuple[float, float]], seed: int) -> Interval | None:
    scores, counts = np.array(parts, dtype=np.float64).reshape(-1, 2).T
    return bootstrap(scores, counts, seed=seed)


def _with_others(verdicts: Floats) -> tuple[float, float]:
    """Every ordered pair of different annotators of one unit."""
    score, count = agree(verdicts[:, None], verdicts[None, :])
    own_score, own_count = agree(verdicts, verdicts)
    return score - own_score, count - own_count


def _with_majority(verdicts: Floats) -> tuple[float, float]:
    """Every annotator against the majority of the others, of which there must be two."""
    if len(verdicts) < 3:
        return 0.0, 0.0
    return agree(verdicts, verdicts.sum(axis=0) - verdicts)


def _both_ways(unit: Unit) -> dict[str, tuple[float, float]]:
    found = {}
    for a, one in enumerate(unit.annotators):
        for b, two in enumerate(unit.annotators):
            if one < two:
                there = agree(unit.verdicts[a], unit.verdicts[b])
                back = agree(unit.verdicts[b], unit.verdicts[a])
                found[f"{one} | {two}"] = (there[0] + back[0], there[1] + back[1])
    return found


def _alphas(overlapping: list[Unit]) -> dict[str, float | None]:
    """Alpha of the preferences (each pair in both directions, so that the order of storage is no matter) and
    of the ratings. Annotators are rows in the order met within a unit: alpha knows only units and values."""
    preferences = [dict(enumerate(side)) for u in overlapping for v in u.verdicts.T for side in (v, -v)]
    found: dict[str, float | None] = {"preference": _alpha_of(preferences)}
    for name in ("helpful", "honest", "harmless"):
        rated: list[Mapping[int, float]] = []
        for unit in overlapping:
            for k in range(len(unit.rankings[0].completions)):
                ratings = [r.ratings[k] if r.ratings is not None else None for r in unit.rankings]
                rated.append({a: getattr(one, name) for a, one in enumerate(ratings) if one is not None})
        found[name] = _alpha_of(rated)
    return found


def _alpha_of(told: Iterable[Mapping[int, float]]) -> float | None:
    cases = list(told)
    rows = 1 + max((a for case in cases for a in case), default=0)
    values = np.full((rows, len(cases)), np.nan)
    for u, case in enumerate(cases):
        values[list(case), u] = list(case.values())
    return krippendorff_alpha(values, "ordinal")


def krippendorff_alpha(values: Floats, metric: Metric = "ordinal") -> float | None:
    """Krippendorff's alpha of `values` [annotators, units], NaN where an annotator did not judge a unit.

    alpha = 1 - observed / expected disagreement, from the coincidence matrix o (Krippendorff, "Computing
    Krippendorff's Alpha-Reliability", 2011): o[c, k] = sum over units of (pairs of values c, k) / (m_u - 1),
    m_u the number of values of unit u, units with m_u < 2 left out. Squared differences: nominal, c != k;
    interval, (c - k)^2; ordinal, (sum of n_g for g from c to k, less (n_c + n_k) / 2)^2.
    1 is perfect, 0 is chance; None if there is nothing to compare or only one value was ever used.
    """
    told = ~np.isnan(values)
    values = values[:, told.sum(axis=0) >= 2]
    categories = np.unique(values[~np.isnan(values)])
    if len(categories) < 2:
        return None
    counts = np.stack([(values == category).sum(axis=0) for category in categories], axis=1).astype(float)
    share = counts / (counts.sum(axis=1, keepdims=True) - 1)
    coincidence = share.T @ counts - np.diag(share.sum(axis=0))
    marginal = coincidence.sum(axis=0)
    distance = _distance(categories, marginal, metric)
    observed = (coincidence * distance).sum()
    expected = (np.outer(marginal, marginal) * distance).sum() / (marginal.sum() - 1)
    return float(1 - observed / expected)


def _distance(categories: Floats, marginal: Floats, metric: Metric) -> Floats:
    """Squared differences [C, C] between ordered categories."""
    if metric == "nominal":
        return 1.0 - np.eye(len(categories))
    if metric == "interval":
        return np.square(categories[:, None] - categories[None, :])
    if metric == "ordinal":
        # From the middle of one category to the middle of the other, counted in values.
        middle = np.cumsum(marginal) - marginal / 2
        return np.square(middle[:, None] - middle[None, :])
    raise UsageError("no such metric", got=metric, expected="nominal, ordinal or interval")
