"""The reward model's report card: how often it orders answers as people do, and whether that is enough."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from bloomery.evals.bootstrap import DRAWS, LEVEL
from bloomery.seeds import stream
from bloomery.types import ranked_pairs


@dataclass(frozen=True, slots=True)
class Scored:
    """A held-out slate with the reward model's scores.

    `ranks[a][k]` is annotator `a`'s rank of answer `k`, 0 where that annotator did not rank it.
    """

    id: str
    texts: tuple[str, ...]
    ranks: tuple[tuple[int, ...], ...]
    scores: tuple[float, ...]


Gold = Mapping[str, Mapping[str, Any]]
"""Prompt id -> {"kind": str, "grades": {answer text: grade}}, from the oracle."""


def read_gold(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """The oracle's grades by prompt; the same prompt in several rounds has its answers put together."""
    gold: dict[str, dict[str, Any]] = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line:
                entry = json.loads(line)
                known = gold.setdefault(entry["prompt"], {"kind": entry["kind"], "grades": {}})
                known["grades"] |= entry["grades"]
    return gold


def report_card(held_out: Sequence[Scored], length_sign: int, gold: Gold | None = None) -> dict[str, Any]:
    """Accuracy with interval beside the annotators' own agreement and a baseline that reads only length.

    Intervals are bootstrapped over slates, because the pairs of one slate are not independent.

    Args:
        held_out: slates that were not trained on.
        length_sign: +1 if longer answers won more often in training, else -1; see `length_preference`.
        gold: the oracle's grades; adds a table by kind of comparison.
    """
    per_slate = [list(verdicts(s)) for s in held_out]
    agreed = [list(verdicts(s, unanimous=True)) for s in held_out]
    ceiling = [list(peer_agreement(s)) for s in held_out]
    length = [list(length_verdicts(s, length_sign)) for s in held_out]
    trust = calibration(held_out)
    return {
        **_rate("accuracy", per_slate),
        "agreed": _rate("accuracy", agreed),
        "agreement": _share(ceiling),
        "length_baseline": _share(length),
        "eval_ece": trust["ece"],
        "calibration": trust,
        "by_kind": by_kind(held_out, gold) if gold else {},
        "num_slates": len(held_out),
    }


def verdicts(slate: Scored, unanimous: bool = False) -> Iterator[float]:
    """1 for each untied pair the scores order rightly, 0 wrongly, 0.5 when they are equal.

    Every annotator's pairs count; with `unanimous`, each pair counts once, and only when at least two
    annotators ranked it and all of them agree.
    """
    votes = _votes(slate)
    for (i, j), sides in votes.items():
        if unanimous:
            sides = [sides[0]] if len(sides) > 1 and len(set(sides)) == 1 else []
        for side in sides:
            if side:
                yield _right(side * (slate.scores[i] - slate.scores[j]))


def peer_agreement(slate: Scored) -> Iterator[float]:
    """For each pair of answers and each two annotators who both ordered it: do they agree? The ceiling."""
    for sides in _votes(slate).values():
        for a, b in combinations([s for s in sides if s], 2):
            yield float(a == b)


def length_verdicts(slate: Scored, sign: int) -> Iterator[float]:
    for (i, j), sides in _votes(slate).items():
        for side in sides:
            if side:
                yield _right(side * sign * (len(slate.texts[i]) - len(slate.texts[j])))


def length_preference(texts: Sequence[Sequence[str]], ranks: Sequence[Sequence[Sequence[int]]]) -> int:
    """+1 if the longer answer won more of the training pairs, else -1."""
    won = 0
    for answers, rows in zip(texts, ranks, strict=True):
        for row in rows:
            seen = [k for k, rank in enumerate(row) if rank > 0]
            for winner, loser, tie in ranked_pairs([row[k] for k in seen]):
                gap = len(answers[seen[winner]]) - len(answers[seen[loser]])
                won += 0 if tie else (gap > 0) - (gap < 0)
    return 1 if won >= 0 else -1


def calibration(held_out: Sequence[Scored], bins: int = 10) -> dict[str, Any]:
    """Reliability of `sigmoid(score gap)`: expected calibration error, and each bin's mean and outcome.

    Each pair is looked at from the side the model favours, so probabilities run from 0.5 to 1.
    """
    found: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for slate in held_out:
        for (i, j), sides in _votes(slate).items():
            gap = slate.scores[i] - slate.scores[j]
            p = 1 / (1 + math.exp(-min(abs(gap), 50.0)))
            for side in sides:
                if side:
                    found[min(int((p - 0.5) * 2 * bins), bins - 1)].append((p, _right(side * gap)))
    total = sum(len(b) for b in found)
    rows = [
        {
            "confidence": sum(p for p, _ in b) / len(b),
            "accuracy": sum(r for _, r in b) / len(b),
            "n": len(b),
        }
        for b in found
        if b
    ]
    error = sum(abs(row["confidence"] - row["accuracy"]) * row["n"] for row in rows) / total if total else 0.0
    return {"ece": error, "bins": rows}


def by_kind(held_out: Sequence[Scored], gold: Gold) -> dict[str, dict[str, float]]:
    """Does the reward model prefer what the oracle prefers? By kind of question and of comparison."""
    found: dict[str, list[float]] = defaultdict(list)
    for slate in held_out:
        known = gold.get(slate.id)
        if known is None:
            continue
        for (i, a), (j, b) in combinations(enumerate(slate.texts), 2):
            first, second = known["grades"].get(a), known["grades"].get(b)
            if first is None or second is None or first["reward"] == second["reward"]:
                continue
            if first["reward"] < second["reward"]:
                i, j, first, second = j, i, second, first
            name = f"{known['kind']}: {first['grade']} over {second['grade']}"
            found[name].append(_right(slate.scores[i] - slate.scores[j]))
    return {
        name: {"accuracy": sum(values) / len(values), "n": float(len(values))}
        for name, values in sorted(found.items())
    }


def _votes(slate: Scored) -> dict[tuple[int, int], list[int]]:
    """For each pair of answers, what each annotator who ranked both said: 1 first, -1 second, 0 tie."""
    votes: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row in slate.ranks:
        seen = [k for k, rank in enumerate(row) if rank > 0]
        for i, j in combinations(seen, 2):
            votes[i, j].append((row[i] < row[j]) - (row[i] > row[j]))
    return votes


def _right(gap: float) -> float:
    return 0.5 if gap == 0 else float(gap > 0)


def _share(groups: Sequence[Sequence[float]]) -> float | None:
    values = [v for group in groups for v in group]
    return sum(values) / len(values) if values else None


def _rate(name: str, groups: Sequence[Sequence[float]]) -> dict[str, Any]:
    share, num_pairs = _share(groups), sum(len(g) for g in groups)
    if share is None:
        return {name: None, "low": None, "high": None, "num_pairs": 0}
    low, high = _interval([g for g in groups if g])
    return {name: share, "low": low, "high": high, "num_pairs": num_pairs}


def _interval(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Percentile bootstrap of the share over all values, drawing whole groups."""
    sums, counts = np.array([sum(g) for g in groups]), np.array([len(g) for g in groups])
    drawn = stream(0, "bootstrap").multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=DRAWS)
    low, high = np.quantile(drawn @ sums / (drawn @ counts), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
