"""The reward model's report card: how often it orders answers as people do, and whether that is enough."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from bloomery.data.rows import parse_row, read_lines, text_of
from bloomery.errors import DataError, clip
from bloomery.evals import budget
from bloomery.evals.comparisons import (
    Comparison,
    Scored,
    by_length,
    by_margin,
    by_prompt,
    by_rated,
    comparisons,
    given_sources,
    grouped,
    lead,
    rate,
    right,
    rivals,
    votes,
)

Gold = Mapping[str, Mapping[str, Any]]
"""Prompt id -> {"kind": str, "grades": {answer text: {"grade", "reward"}}}, from the oracle."""
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def read_gold(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """The oracle's grades by prompt; the same prompt in several rounds has its answers put together.

    Raises `DataError` naming file:line for a line that holds none.
    """
    gold: dict[str, dict[str, Any]] = {}
    for path in paths:
        for line in read_lines(path):
            where = f"{path}:{line.number}"
            if not (text := text_of(line, path)).strip():
                continue
            row = parse_row(text, where)
            prompt, kind, grades = row.get("prompt"), row.get("kind"), row.get("grades")
            if (
                not isinstance(prompt, str)
                or not isinstance(kind, str)
                or not isinstance(grades, dict)
                or not all(
                    isinstance(one, dict) and {"grade", "reward"} <= one.keys() for one in grades.values()
                )
            ):
                raise DataError(
                    "this line holds no verdict of the oracle",
                    where=where,
                    got=clip(text, 80),
                    expected='{"prompt": id, "kind": str, "grades": {answer: {"grade": str, "reward": 1.0}}}',
                    do="give the gold.jsonl of `bloomery label simulate`",
                )
            known = gold.setdefault(prompt, {"kind": kind, "grades": {}})
            known["grades"] |= grades
    return gold


def report_card(
    held_out: Sequence[Scored],
    training: Sequence[Scored] = (),
    gold: Gold | None = None,
    kinds: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What held-out comparisons say of a judge; every accuracy with an interval that draws prompts.

    Args:
        held_out: slates that were not trained on.
        training: slates that were, with any scores: what the baselines learn from. Without, the baselines are
            cross-fitted on the held-out slates.
        gold: the oracle's grades; adds a table by kind of comparison, and each prompt's category.
        kinds: prompt id -> category, beside and before those of `gold`.

    Raises `DataError` for a score that is not finite.
    """
    for slate in held_out:
        if not all(map(math.isfinite, slate.scores)):
            raise DataError("a score is not a number", got=f"{list(slate.scores)} for prompt {slate.id}")
    found = list(comparisons(held_out))
    own = by_prompt(found)
    categories = {name: str(entry["kind"]) for name, entry in (gold or {}).items()} | dict(kinds or {})
    trust = calibration(held_out)
    ceiling = rate(_by_prompt(held_out, peer_agreement))
    baselines = {}
    for name, slates in rivals(held_out, training).items():
        theirs = by_prompt(comparisons(slates))
        baselines[name] = rate(theirs) | {"lead": lead(own, theirs)}
    card: dict[str, Any] = {
        **rate(own),
        "agreed": rate(_by_prompt(held_out, lambda s: verdicts(s, unanimous=True))),
        "agreement": ceiling["accuracy"],
        "ceiling": ceiling,
        "length_baseline": baselines["length"]["accuracy"],
        "baselines": baselines,
        "given_sources": given_sources(found),
        "eval_ece": trust["ece"],
        "calibration": trust,
        "by_kind": by_kind(held_out, gold) if gold else {},
        "groups": groups(found, categories),
        "distribution": distribution(held_out),
        "choosing": budget.choosing(held_out),
        "num_slates": len(held_out),
    }
    return card | {"verdict": budget.verdict(card)}


def groups(found: Sequence[Comparison], categories: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Accuracy in groups: rows of a name, the accuracy with its interval, and the number of pairs. A pair of
    two sources counts for both. A grouping nothing is known for is empty."""

    def sides(one: Comparison) -> list[str]:
        if "unknown" in one.sources:
            return []
        return ["of one source" if one.sources[0] == one.sources[1] else "of two sources"]

    known = any(name != "unknown" for one in found for name in one.sources)
    return {
        "margin": by_margin(found),
        "rated": by_rated(found),
        "length": by_length(found),
        "annotator": grouped(found, lambda one: [one.annotator]),
        "category": grouped(found, lambda one: [categories[one.prompt]] if one.prompt in categories else []),
        "source": grouped(found, lambda one: sorted(set(one.sources))) if known else [],
        "sources": grouped(found, sides),
    }


def verdicts(slate: Scored, unanimous: bool = False) -> Iterator[float]:
    """1 for each untied pair the scores order rightly, 0 wrongly, 0.5 when they are equal.

    Every annotator's pairs count; with `unanimous`, each pair counts once, and only when at least two
    annotators ranked it and all of them agree.
    """
    for (i, j), sides in votes(slate).items():
        if unanimous:
            sides = [sides[0]] if len(sides) > 1 and len(set(sides)) == 1 else []
        for side in sides:
            if side:
                yield right(side * (slate.scores[i] - slate.scores[j]))


def peer_agreement(slate: Scored) -> Iterator[float]:
    """For each pair of answers and each two annotators who both ordered it: do they agree? The ceiling."""
    for sides in votes(slate).values():
        for a, b in combinations([s for s in sides if s], 2):
            yield float(a == b)


def calibration(held_out: Sequence[Scored], bins: int = 10) -> dict[str, Any]:
    """Reliability of `sigmoid(score gap)`: expected calibration error, and each bin's mean and outcome.

    Each pair is looked at from the side the model favours, so probabilities run from 0.5 to 1. `surer` is by
    how much it is surer than right on average; below 0 it is too modest.
    """
    found: list[list[tuple[float, Comparison]]] = [[] for _ in range(bins)]
    for one in comparisons(held_out):
        p = 1 / (1 + math.exp(-min(abs(one.gap), 50.0)))
        found[min(int((p - 0.5) * 2 * bins), bins - 1)].append((p, one))
    rows = []
    for inside in filter(None, found):
        outcome = rate(by_prompt(one for _, one in inside))
        confidence = sum(p for p, _ in inside) / len(inside)
        rows.append({"confidence": confidence, "n": outcome.pop("num_pairs")} | outcome)
    total = sum(row["n"] for row in rows)
    gaps = [(row["confidence"] - row["accuracy"], row["n"]) for row in rows]
    return {
        "ece": sum(abs(gap) * n for gap, n in gaps) / total if total else 0.0,
        "surer": sum(gap * n for gap, n in gaps) / total if total else 0.0,
        "bins": rows,
    }


def distribution(held_out: Sequence[Scored], bins: int = 24) -> dict[str, Any] | None:
    """Where the scores of all answers lie: moments, quantiles and a histogram (`edges` has one more entry
    than `counts`); `within`, the mean spread (standard deviation) of one prompt's answers; and `ties`, the
    share of pairs of different answers to a prompt that score exactly the same. None without an answer."""
    scores = np.array([score for s in held_out for score in s.scores], dtype=np.float64)
    if not len(scores):
        return None
    std = float(scores.std())
    counts, edges = np.histogram(scores, bins=bins)
    pairs = [
        a == b
        for s in held_out
        for (x, a), (y, b) in combinations(zip(s.texts, s.scores, strict=True), 2)
        if x != y
    ]
    return {
        "num": len(scores),
        "mean": float(scores.mean()),
        "std": std,
        "skew": float(((scores - scores.mean()) ** 3).mean() / std**3) if std else 0.0,
        "within": float(np.mean([np.std(s.scores) for s in held_out])),
        "min": float(scores.min()),
        "max": float(scores.max()),
        "quantiles": dict(zip(map(str, QUANTILES), np.quantile(scores, QUANTILES).tolist(), strict=True)),
        "ties": sum(pairs) / len(pairs) if pairs else 0.0,
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


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
            found[name].append(right(slate.scores[i] - slate.scores[j]))
    return {
        name: {"accuracy": sum(values) / len(values), "n": float(len(values))}
        for name, values in sorted(found.items())
    }


def _by_prompt(
    held_out: Sequence[Scored], count: Callable[[Scored], Iterable[float]]
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for slate in held_out:
        found[slate.id] += count(slate)
    return found
