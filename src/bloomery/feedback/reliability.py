"""One report per annotator: whom to trust, whom to talk to, and why.

Everything is measured against the other annotators (leave-one-out) or against gold items, never against the
world's oracle, so that it means the same for people. Habits are measured by one regression per annotator over
the pairs that the annotator put in order:

    P(i above j) = sigmoid(a content + b position + c length)

content: the mean verdict of the others, -1..1; position: +1 if i was shown before j, else -1; length:
log2 of the ratio of their lengths in characters. So b and c say what position and length did beyond what
others think of the content. Standard errors are clustered by ranking.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bloomery.feedback.agreement import agree
from bloomery.feedback.verdicts import Floats, Interval, Unit, bootstrap, units
from bloomery.types import AnnotatorKind, Ranking, Rating

MIN_PAIRS = 50
MIN_RANKINGS = 10
RIDGE = 0.1
USUAL = 0.9
HABIT_Z = 4.0
HABIT_SIZE = 0.1
MAX_TIES = 0.8
MAX_LENIENCY = 1.0
MIN_SPREAD = 0.25
HURRY = 1 / 3


@dataclass(frozen=True, slots=True)
class Habit:
    """`chance`: how often an otherwise even pair goes to the side shown first (position), or to a side twice
    as long (length); 0.5 is no habit. `log_odds` is b or c, `z` how many standard errors it is off 0."""

    chance: float
    log_odds: float
    z: float


@dataclass(frozen=True, slots=True)
class Report:
    """`agreement` with each other annotator of the same answers; `gold` with the gold rankings; `tie_rate`
    over all pairs; `leniency`: mean difference of the ratings to those that others gave the same answers;
    `spread`: standard deviation of the own ratings; None where there is no ground to say."""

    annotator: str
    kind: AnnotatorKind
    num_rankings: int
    agreement: Interval | None
    gold: Interval | None
    position: Habit | None
    length: Habit | None
    tie_rate: float
    leniency: float | None
    spread: float | None
    median_seconds: float | None
    flags: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def report(
    rankings: Iterable[Ranking], gold: Mapping[str, Sequence[int]] | None = None, *, seed: int = 0
) -> list[Report]:
    """A report for every annotator with a submitted ranking, by id; `gold` as from `Store.gold`."""
    found, _ = units(rankings)
    work: dict[str, list[tuple[Unit, int]]] = {}
    for unit in found:
        for row, annotator in enumerate(unit.annotators):
            work.setdefault(annotator, []).append((unit, row))
    reports = [_measure(work[annotator], gold or {}, seed) for annotator in sorted(work)]
    return [replace(one, flags=tuple(_flags(one, reports))) for one in reports]


def _measure(work: list[tuple[Unit, int]], gold: Mapping[str, Sequence[int]], seed: int) -> Report:
    mine = [unit.rankings[row] for unit, row in work]
    verdicts = np.concatenate([unit.verdicts[row] for unit, row in work])
    seconds = [ranking.seconds for ranking in mine if ranking.seconds is not None]
    ratings = [_numbers(one) for ranking in mine for one in ranking.ratings or () if one is not None]
    position, length = _habits(work)
    return Report(
        annotator=mine[0].annotator.id,
        kind=mine[0].annotator.kind,
        num_rankings=len(mine),
        agreement=_sum([agree(unit.verdicts[row], _others(unit, row)) for unit, row in work], seed),
        gold=_sum([_against_gold(unit, row, gold[unit.key]) for unit, row in work if unit.key in gold], seed),
        position=position,
        length=length,
        tie_rate=float((verdicts == 0).mean()),
        leniency=_leniency(work),
        spread=float(np.std(ratings, axis=0).mean()) if ratings else None,
        median_seconds=statistics.median(seconds) if seconds else None,
    )


def _others(unit: Unit, row: int) -> Floats:
    return np.delete(unit.verdicts, row, axis=0)


def _sum(parts: list[tuple[float, float]], seed: int) -> Interval | None:
    scores, counts = np.array(parts, dtype=np.float64).reshape(-1, 2).T
    return bootstrap(scores, counts, seed=seed)


def _against_gold(unit: Unit, row: int, ranks: Sequence[int]) -> tuple[float, float]:
    truth = np.sign([ranks[j] - ranks[i] for i, j in unit.pairs]).astype(np.float64)
    return agree(truth, unit.verdicts[row])


def _numbers(rating: Rating) -> tuple[int, int, int]:
    return rating.helpful, rating.honest, rating.harmless


def _leniency(work: list[tuple[Unit, int]]) -> float | None:
    """Mean over answers that somebody else rated too of (own mean of the three H) - (the others' mean)."""
    apart = []
    for unit, row in work:
        for k, own in enumerate(unit.rankings[row].ratings or ()):
            rest = [r.ratings[k] for n, r in enumerate(unit.rankings) if n != row and r.ratings is not None]
            others = [_numbers(rating) for rating in rest if rating is not None]
            if own is not None and others:
                apart.append(np.mean(_numbers(own)) - np.mean(others))
    return float(np.mean(apart)) if apart else None


def _habits(work: list[tuple[Unit, int]]) -> tuple[Habit | None, Habit | None]:
    rows, outcomes, clusters, ordered = [], [], [], True
    for cluster, (unit, row) in enumerate(work):
        ranking, others = unit.rankings[row], _others(unit, row)
        i, j = np.array(unit.pairs).T
        content = others.mean(axis=0) if len(others) else np.zeros(len(i))
        sizes = np.log2([1 + len(candidate.text) for candidate in ranking.completions])
        if ranking.shown_order is None:
            ordered, place = False, np.zeros(len(sizes))
        else:
            place = np.argsort(ranking.shown_order).astype(np.float64)
        directed = unit.verdicts[row] != 0
        features = np.stack([content, np.sign(place[j] - place[i]), sizes[i] - sizes[j]], axis=1)
        rows.append(features[directed])
        outcomes.append(unit.verdicts[row][directed] > 0)
        clusters.append(np.full(int(directed.sum()), cluster))
    x, y, groups = np.concatenate(rows), np.concatenate(outcomes), np.concatenate(clusters)
    if len(y) < MIN_PAIRS:
        return None, None
    weights, errors = _logistic(x, y.astype(np.float64), groups)
    habits = [
        Habit(float(1 / (1 + np.exp(-w))), float(w), float(w / e))
        for w, e in zip(weights, errors, strict=True)
    ]
    return (habits[1] if ordered else None), (habits[2] if np.ptp(x[:, 2]) > 0 else None)


def _logistic(x: Floats, y: Floats, groups: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Logistic regression without intercept, x [n, d], y in {0, 1}: weights [d] and their standard errors.

    A small ridge keeps the weights of a perfect habit finite. Errors are the sandwich clustered by group
    (Liang and Zeger 1986).
    """
    dim = x.shape[1]
    weights = np.zeros(dim)
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        gradient = x.T @ (y - p) - RIDGE * weights
        hessian = (x * (p * (1 - p))[:, None]).T @ x + RIDGE * np.eye(dim)
        step = np.linalg.solve(hessian, gradient)
        weights = weights + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-9:
            break
    scores = np.zeros((int(groups.max()) + 1, dim))
    np.add.at(scores, groups, x * (y - p)[:, None])
    bread = np.linalg.inv(hessian)
    # The ridge's own curvature keeps the error above 0 where a perfect habit leaves no residual.
    meat = scores.T @ scores + RIDGE * np.eye(dim)
    return weights, np.sqrt(np.diag(bread @ meat @ bread))


def _flags(one: Report, everybody: Sequence[Report]) -> list[str]:
    """Reasons to look at an annotator, in words. Thresholds are relative to the other annotators' median, so
    that a hard task flags nobody and a habit shared by all (longer really is better) is no habit."""
    flags = []
    peers = [report for report in everybody if report.annotator != one.annotator]
    for what, own, theirs in (
        ("the other annotators", one.agreement, [peer.agreement for peer in peers]),
        ("gold items", one.gold, [peer.gold for peer in peers]),
    ):
        flags += _disagrees(what, own, [interval.value for interval in theirs if interval is not None])
    lengths = [peer.length.log_odds for peer in peers if peer.length is not None]
    flags += _habit("the answer shown first", "the answer shown last", one.position, 0.0)
    flags += _habit("the longer answer", "the shorter answer", one.length, _median(lengths) or 0.0)
    if one.num_rankings >= MIN_RANKINGS:
        flags += _manners(one, _median([p.median_seconds for p in peers if p.median_seconds is not None]))
    return flags


def _disagrees(what: str, own: Interval | None, theirs: list[float]) -> list[str]:
    """Surely below chance, or surely a tenth less above chance than the median annotator."""
    if own is None or own.num < MIN_PAIRS:
        return []
    said = f"agrees with {what} on {own.value:.0%} of {own.num} comparisons"
    if own.high < 0.5:
        return [f"{said}, less than chance: is the scale reversed?"]
    middle = _median(theirs)
    if middle is not None and own.high < 0.5 + USUAL * (middle - 0.5):
        return [f"{said}; the median annotator on {middle:.0%}"]
    return []


def _habit(more: str, less: str, habit: Habit | None, usual: float) -> list[str]:
    if habit is None or habit.log_odds == 0:
        return []
    usual_chance = 1 / (1 + np.exp(-usual))
    z = habit.z * (habit.log_odds - usual) / habit.log_odds
    if abs(z) < HABIT_Z or abs(habit.chance - usual_chance) < HABIT_SIZE:
        return []
    chance = habit.chance if z > 0 else 1 - habit.chance
    return [f"prefers {more if z > 0 else less}: {chance:.0%} of otherwise even pairs"]


def _manners(one: Report, usual_seconds: float | None) -> list[str]:
    flags = []
    if one.tie_rate > MAX_TIES:
        flags.append(f"calls {one.tie_rate:.0%} of pairs a tie")
    if one.leniency is not None and abs(one.leniency) > MAX_LENIENCY:
        way = "above" if one.leniency > 0 else "below"
        flags.append(f"rates {abs(one.leniency):.1f} points {way} the others on the same answers")
    if one.spread is not None and one.spread < MIN_SPREAD:
        flags.append(f"rates everything alike (standard deviation {one.spread:.2f})")
    if one.median_seconds is not None and usual_seconds and one.median_seconds < HURRY * usual_seconds:
        flags.append(f"takes {one.median_seconds:.0f} s where others take {usual_seconds:.0f} s")
    return flags


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
