"""The report card of a process reward model: are steps told right from wrong, is the first wrong found?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bloomery.evals.bootstrap import estimate, interval

Answers = Sequence[Sequence[bool]]
"""For each answer, one entry a step: True is right."""


def step_card(said: Answers, labels: Answers, taught: Answers) -> dict[str, Any]:
    """What held-out answers say of a judge of steps; every interval draws whole answers.

    `step_accuracy` is the share of steps it judges as they are labelled; `baseline` that of calling every
    step what most steps at its place in an answer are in `taught`, the labels of training; `lead` the
    difference; `right_steps` the share of steps that are right.
    Of the answers with a wrong step, `first_wrong` is the share in which it names the first one; of the
    others, `none_wrong` is the share in which it finds nothing wrong (the two accuracies of Zheng et al.
    2024, "ProcessBench").
    """
    agreed = agreement(said, labels)
    most = usual(taught, max(map(len, labels), default=0))
    blind = agreement([most[: len(one)] for one in labels], labels)
    lead = [
        [float(a) - float(b) for a, b in zip(*pair, strict=True)] for pair in zip(agreed, blind, strict=True)
    ]
    pairs = [(first_wrong(a), first_wrong(b)) for a, b in zip(said, labels, strict=True)]
    return {
        "num_answers": len(labels),
        "num_steps": sum(map(len, labels)),
        "step_accuracy": share(agreed),
        "right_steps": share(labels),
        "baseline": share(blind),
        "lead": share(lead),
        "first_wrong": estimate([float(a == b) for a, b in pairs if b is not None]).to_json(),
        "none_wrong": estimate([float(a is None) for a, b in pairs if b is None]).to_json(),
    }


def usual(taught: Answers, places: int) -> list[bool]:
    """For each place in an answer whether most steps there are right; where there was none, whether most of
    all are. Later steps are wrong more often, so a place alone says something."""
    every = [right for one in taught for right in one]
    there = [[one[place] for one in taught if place < len(one)] or every for place in range(places)]
    return [2 * sum(steps) >= len(steps) for steps in there]


def agreement(said: Answers, labels: Answers) -> list[list[bool]]:
    """For each step of each answer, whether it is judged as it is labelled."""
    return [[a == b for a, b in zip(*pair, strict=True)] for pair in zip(said, labels, strict=True)]


def first_wrong(steps: Sequence[bool]) -> int | None:
    """The number, from 0, of the first step that is not right; None where all are."""
    return next((i for i, right in enumerate(steps) if not right), None)


def share(answers: Sequence[Sequence[float]]) -> dict[str, float | int | None]:
    """The mean over all steps, with an interval that draws answers; without a step only `n`."""
    groups = [(float(sum(one)), float(len(one))) for one in answers]
    n = sum(map(len, answers))
    if not n:
        return {"mean": None, "low": None, "high": None, "n": 0}
    low, high = interval(groups)
    return {"mean": sum(total for total, _ in groups) / n, "low": low, "high": high, "n": n}
