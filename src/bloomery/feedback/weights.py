"""What several annotators said of the same answers, made one: whom to believe how much, and how far apart the
answers are.

Reliability is learned from agreement alone, in the manner of Dawid and Skene (1979) with one number for each
annotator: every pair of answers has a true order that nobody sees, and annotator a states it with
probability p_a, whatever the pair. Both are found by expectation-maximisation. A tie says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bloomery.feedback.bradley_terry import fit
from bloomery.feedback.verdicts import Floats, units
from bloomery.types import Ranking

# Everybody starts, and is held back with the force of PRIOR comparisons, at PRIOR_ACCURACY: above one half,
# which is also what tells the truth from its mirror image.
PRIOR_ACCURACY, PRIOR = 0.7, 10.0
# Records of people nobody knows share this name (data.formats); they are no one annotator.
UNKNOWN = "unknown"
ROUNDS, SETTLED = 200, 1e-9


@dataclass(frozen=True, slots=True)
class Reliability:
    """`accuracy` is p_a; `weight` what a ranking of this annotator counts, 1 on average over all rankings;
    `num_pairs` the ordered pairs that somebody else ordered too, on which both rest."""

    annotator: str
    accuracy: float | None
    weight: float
    num_pairs: int


def reliabilities(rankings: Iterable[Ranking]) -> dict[str, Reliability]:
    """Of every annotator with a submitted ranking, by id.

    The weight is the log-odds `log(p / (1 - p))`, with which a vote of independent annotators is right most
    often (Nitzan and Paroush 1982), and 0 for p below one half: a reversed scale is not believed, and not
    turned round either. Weights are scaled to a mean of 1 over the rankings. Who shares no ordered pair with
    anybody, and the annotator called "unknown", has no accuracy and the mean weight 1. If nobody is to be
    believed, everybody weighs 1.
    """
    counts, verdicts = _verdicts(rankings)
    names = sorted({name for told in verdicts for name in told})
    accuracy = dict(zip(names, _settle(names, verdicts), strict=True))
    pairs = {name: sum(told.get(name, 0) != 0 for told in verdicts) for name in names}
    odds = {name: max(0.0, math.log(p / (1 - p))) for name, p in accuracy.items()}
    known = sum(counts[name] for name in names)
    mean = sum(odds[name] * counts[name] for name in names) / known if known else 0.0
    return {
        name: Reliability(
            name,
            accuracy.get(name),
            odds[name] / mean if name in odds and mean > 0 else 1.0,
            pairs.get(name, 0),
        )
        for name in sorted(counts)
    }


def strengths(ranks: Sequence[Sequence[int]], prior: float = 1.0) -> tuple[float, ...]:
    """Bradley-Terry strengths of one slate's K answers from the rankings of all its annotators.

    `ranks[a][k]` is annotator a's rank of answer k, 1 best, 0 where a did not rank it; ties are half a win
    for each side. `prior` drawn games against an average answer keep a unanimous slate finite, so that one
    annotator's word makes the odds of a pair 4.5 to 1 and not infinite. Answers nobody compared are 0.
    """
    rows = np.array(ranks)
    one, two = rows[:, :, None], rows[:, None, :]
    both = (one > 0) & (two > 0)
    wins: Floats = (both * (0.5 + 0.5 * np.sign(two - one))).sum(axis=0)
    np.fill_diagonal(wins, 0.0)
    return tuple(float(s) for s in fit(wins, prior))


def ranks_of(strength: Sequence[float]) -> tuple[int, ...]:
    """The ranking that strengths amount to; equal ones (to 9 digits) tie, as in 1, 2, 2, 4."""
    rounded = [round(s, 9) for s in strength]
    return tuple(1 + sum(other > own for other in rounded) for own in rounded)


def _verdicts(rankings: Iterable[Ranking]) -> tuple[dict[str, int], list[dict[str, int]]]:
    """The number of rankings of each annotator, and for each pair of answers that at least two known
    annotators put in order, what each of them said: 1 the first, -1 the second."""
    counts: dict[str, int] = {}
    kept = list(rankings)
    for ranking in kept:
        if ranking.status == "submitted" and ranking.ranking is not None:
            counts[ranking.annotator.id] = counts.get(ranking.annotator.id, 0) + 1
    verdicts = []
    for unit in units(kept)[0]:
        for column in unit.verdicts.T:
            told = {
                name: int(verdict)
                for name, verdict in zip(unit.annotators, column, strict=True)
                if verdict and name != UNKNOWN
            }
            if len(told) > 1:
                verdicts.append(told)
    return counts, verdicts


def _settle(names: Sequence[str], verdicts: Sequence[Mapping[str, int]]) -> list[float]:
    """Accuracies at the fixed point of expectation (how likely is the first answer the better one, given
    what was said) and maximisation (how often was each annotator right, given how likely that is)."""
    place = {name: i for i, name in enumerate(names)}
    said: Floats = np.zeros((len(verdicts), len(names)))
    for row, told in enumerate(verdicts):
        for name, verdict in told.items():
            said[row, place[name]] = verdict
    spoke = np.abs(said)
    accuracy: Floats = np.full(len(names), PRIOR_ACCURACY)
    for _ in range(ROUNDS):
        first = 1 / (1 + np.exp(-said @ np.log(accuracy / (1 - accuracy))))
        right = (spoke * (0.5 + said * (first - 0.5)[:, None])).sum(axis=0)
        new = (right + PRIOR * PRIOR_ACCURACY) / (spoke.sum(axis=0) + PRIOR)
        change = np.abs(new - accuracy).max(initial=0.0)
        accuracy = new
        if change < SETTLED:
            break
    return [float(p) for p in accuracy]
