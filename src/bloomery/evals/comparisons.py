"""Held-out comparisons one by one, so that they can be counted in any grouping, and judges that know less."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np

from bloomery.evals.bootstrap import interval
from bloomery.seeds import derive
from bloomery.types import ranked_pairs

Row = dict[str, Any]
ByPrompt = Mapping[str, Sequence[float]]
"""Prompt id -> a number for each of its pairs. Intervals draw whole prompts, because the pairs of one prompt
are not independent."""
FOLDS = 5


@dataclass(frozen=True, slots=True)
class Scored:
    """A slate (one prompt's K answers, and what A annotators said of them) with a judge's scores.

    `ranks[a][k]` is annotator `a`'s rank of answer `k`, 0 where that annotator did not rank it;
    `ratings[a][k]` is how good they rated it, NaN where they did not. `sources[k]` wrote the answer. The last
    three may be empty where nobody knows.
    """

    id: str
    texts: tuple[str, ...]
    ranks: tuple[tuple[int, ...], ...]
    scores: tuple[float, ...]
    annotators: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    ratings: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """One annotator's untied pair, seen from the answer that they preferred.

    gap: by how much that answer scores higher than the other.
    longer: by how many characters it is longer.
    rated: by how much that annotator rated it higher, NaN where either was not rated.
    sources: who wrote the preferred answer, and who the other.
    """

    prompt: str
    annotator: str
    gap: float
    longer: int
    rated: float
    sources: tuple[str, str]

    @property
    def right(self) -> float:
        """1 where the judge prefers the same answer, 0 where the other, 0.5 where the scores are equal."""
        return right(self.gap)


def right(gap: float) -> float:
    return 0.5 if gap == 0 else float(gap > 0)


def comparisons(slates: Iterable[Scored]) -> Iterator[Comparison]:
    """Every untied pair of every annotator who ranked both answers."""
    for s in slates:
        for a, row in enumerate(s.ranks):
            seen = [k for k, rank in enumerate(row) if rank > 0]
            for won, lost, tie in ranked_pairs([row[k] for k in seen]):
                if tie:
                    continue
                best, other = seen[won], seen[lost]
                yield Comparison(
                    prompt=s.id,
                    annotator=s.annotators[a] if s.annotators else "unknown",
                    gap=s.scores[best] - s.scores[other],
                    longer=len(s.texts[best]) - len(s.texts[other]),
                    rated=s.ratings[a][best] - s.ratings[a][other] if s.ratings else math.nan,
                    sources=(s.sources[best], s.sources[other]) if s.sources else ("unknown", "unknown"),
                )


def votes(slate: Scored) -> dict[tuple[int, int], list[int]]:
    """For each pair of answers, what each annotator who ranked both said: 1 first, -1 second, 0 tie."""
    found: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row in slate.ranks:
        seen = [k for k, rank in enumerate(row) if rank > 0]
        for i, j in combinations(seen, 2):
            found[i, j].append((row[i] < row[j]) - (row[i] > row[j]))
    return found


# ------------------------------------------------------------------------------------------------- counting


def by_prompt(found: Iterable[Comparison]) -> dict[str, list[float]]:
    """Right and wrong, prompt by prompt."""
    groups: dict[str, list[float]] = defaultdict(list)
    for one in found:
        groups[one.prompt].append(one.right)
    return groups


def rate(groups: ByPrompt) -> Row:
    """The share over all pairs with its 95 % interval; all None where there is no pair."""
    cases = [(sum(values), len(values)) for values in groups.values() if values]
    num = sum(n for _, n in cases)
    if not num:
        return {"accuracy": None, "low": None, "high": None, "num_pairs": 0}
    low, high = interval(cases)
    return {"accuracy": sum(s for s, _ in cases) / num, "low": low, "high": high, "num_pairs": num}


def given_sources(found: Sequence[Comparison]) -> Row:
    """How often the judge is right where knowing the two sources is no help.

    Of two sources, the comparisons that each won are weighed as if both won equally often, so that a judge
    who knows nothing but the sources is right in exactly one half; two answers of one source weigh 1.
    """
    won = Counter(one.sources for one in found)
    cases: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for one in found:
        here, there = won[one.sources], won[one.sources[::-1]]
        weight = 1.0 if one.sources[0] == one.sources[1] else there / (here + there)
        cases[one.prompt][0] += weight * one.right
        cases[one.prompt][1] += weight
    sums = [(right, weight) for right, weight in cases.values()]
    total = sum(weight for _, weight in sums)
    if not total:
        return {"accuracy": None, "low": None, "high": None, "num_pairs": 0}
    low, high = interval(sums)
    accuracy = sum(right for right, _ in sums) / total
    return {"accuracy": accuracy, "low": low, "high": high, "num_pairs": sum(won.values())}


def lead(groups: ByPrompt, other: ByPrompt) -> Row:
    """By how much one judge is right more often than another on the same pairs, with its interval."""
    found = {name: [a - b for a, b in zip(groups[name], other[name], strict=True)] for name in groups}
    got = rate(found)
    return {"mean": got["accuracy"], "low": got["low"], "high": got["high"]}


def grouped(found: Iterable[Comparison], names: Callable[[Comparison], Iterable[str]]) -> list[Row]:
    """How often the judge is right in each group, with interval and number; a comparison is in as many
    groups as it has names. In the order of the names."""
    groups: dict[str, list[Comparison]] = defaultdict(list)
    for one in found:
        for name in names(one):
            groups[name].append(one)
    return [{"name": name} | rate(by_prompt(groups[name])) for name in sorted(groups)]


def by_margin(found: Sequence[Comparison], bands: int = 5) -> list[Row]:
    """By how far apart the judge's two scores are, in bands of about as many pairs each; `mean` is the mean
    distance in a band."""
    sizes = np.array([abs(one.gap) for one in found])
    if not len(sizes):
        return []
    edges = np.unique(np.quantile(sizes, np.arange(1, bands) / bands))
    band = np.searchsorted(edges, sizes, side="right")
    rows = []
    for number in np.unique(band):
        inside = sizes[band == number]
        chosen = [one for one, b in zip(found, band, strict=True) if b == number]
        name = f"{inside.min():.2f} to {inside.max():.2f}"
        rows.append({"name": name, "mean": float(inside.mean())} | rate(by_prompt(chosen)))
    return rows


RATED = ("rated lower", "rated the same", "higher by up to 1", "by 1 to 2", "by 2 to 3", "by more than 3")


def by_rated(found: Sequence[Comparison]) -> list[Row]:
    """By how much higher the annotator rated the preferred answer; only where both were rated."""

    def name(one: Comparison) -> Iterator[str]:
        if not math.isnan(one.rated):
            # Means of three ratings: a difference of 1 must not be 1.0000001.
            gap = round(one.rated, 6)
            yield RATED[0 if gap < 0 else 1 if gap == 0 else min(1 + math.ceil(gap), 5)]

    return sorted(grouped(found, name), key=lambda row: RATED.index(row["name"]))


def by_length(found: Sequence[Comparison]) -> list[Row]:
    """By how much longer or shorter the preferred answer is. A judge that likes length is worse where the
    shorter one is preferred. The halves on each side part at the median difference."""
    apart = [abs(one.longer) for one in found if one.longer]
    middle = median(apart) if apart else 0
    order = (
        f"shorter by more than {middle:.0f}",
        f"shorter by up to {middle:.0f}",
        "of the same length",
        f"longer by up to {middle:.0f}",
        f"longer by more than {middle:.0f}",
    )

    def name(one: Comparison) -> Iterator[str]:
        yield order[2 + (one.longer > 0) - (one.longer < 0) + (one.longer > middle) - (one.longer < -middle)]

    return sorted(grouped(found, name), key=lambda row: order.index(row["name"]))


# --------------------------------------------------------------------------------- judges that know less


def length_preference(texts: Sequence[Sequence[str]], ranks: Sequence[Sequence[Sequence[int]]]) -> int:
    """+1 if the longer answer won more of the training pairs, else -1."""
    slates = [
        Scored("", tuple(t), tuple(map(tuple, r)), (0.0,) * len(t)) for t, r in zip(texts, ranks, strict=True)
    ]
    won = sum((one.longer > 0) - (one.longer < 0) for one in comparisons(slates))
    return 1 if won >= 0 else -1


def wins_of_sources(training: Iterable[Scored]) -> dict[str, float]:
    """The share of its comparisons that each source won."""
    won, played = Counter[str](), Counter[str]()
    for one in comparisons(training):
        won[one.sources[0]] += 1
        played.update(one.sources)
    return {name: won[name] / num for name, num in played.items()}


def judged_by_length(slates: Sequence[Scored], training: Sequence[Scored]) -> list[Scored]:
    """Scored by the number of characters, whichever way won more often in training."""
    sign = length_preference([s.texts for s in training], [s.ranks for s in training])
    return [replace(s, scores=tuple(float(sign * len(text)) for text in s.texts)) for s in slates]


def judged_by_source(slates: Sequence[Scored], training: Sequence[Scored]) -> list[Scored]:
    """Scored by the share of its comparisons that the answer's source won in training: the prior. A source
    that was not met there, or that nobody knows, has one half."""
    worth = wins_of_sources(training)
    return [
        replace(s, scores=tuple(worth.get(who, 0.5) for who in s.sources or ["unknown"] * len(s.texts)))
        for s in slates
    ]


def rivals(held_out: Sequence[Scored], training: Sequence[Scored]) -> dict[str, list[Scored]]:
    """The held-out slates, in the same order, as rules see them that know less than a reward model.

    Without training slates the rules are cross-fitted: each of `FOLDS` parts of the prompts is judged by what
    was learnt on the others, so that no comparison is judged by a rule that has seen it.
    """
    rules = {"length": judged_by_length, "prior": judged_by_source}
    if training:
        return {name: rule(held_out, training) for name, rule in rules.items()}
    folds = [derive(0, "fold", s.id) % FOLDS for s in held_out]
    others = [[s for s, f in zip(held_out, folds, strict=True) if f != fold] for fold in range(FOLDS)]
    return {
        name: [rule([s], others[fold])[0] for s, fold in zip(held_out, folds, strict=True)]
        for name, rule in rules.items()
    }
