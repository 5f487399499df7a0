"""What several annotators said of the same answers, as a reward model is to learn it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch

from bloomery.errors import UsageError
from bloomery.feedback.weights import Reliability, ranks_of, reliabilities, strengths
from bloomery.stages.slates import UNRATED, Slate, prompt_id
from bloomery.types import Ranking

Combine = Literal["raw", "bradley-terry", "reliability"]


def lessons(
    training: Sequence[Slate],
    rankings: Sequence[Ranking],
    combine: Combine,
    need: int,
    say: Callable[[str], None],
) -> tuple[list[Slate], dict[str, Reliability]]:
    """The training slates with annotators put together as asked, and only rows with `need` rated answers; and
    the annotators' reliabilities, from what is trained on, where they were asked for."""
    slates, people = list(training), dict[str, Reliability]()
    if combine == "bradley-terry":
        slates = [put_together(s) for s in slates]
    elif combine == "reliability":
        seen = {s.id for s in training}
        people = reliabilities(r for r in rankings if prompt_id(r.prompt) in seen)
        slates = [weighed(s, people) for s in slates]
    return (with_ratings(slates, need, say) if need else slates), people


def with_ratings(slates: Sequence[Slate], need: int, say: Callable[[str], None]) -> list[Slate]:
    """The rows in which at least `need` answers are rated; says how many are not. At least one must be."""
    kept = []
    for s in slates:
        rows = [a for a, row in enumerate(s.ratings) if sum(r is not UNRATED for r in row) >= need]
        if rows:
            kept.append(s.keep(rows))
    num, left = sum(len(s.ranks) for s in slates), sum(len(s.ranks) for s in kept)
    if not kept:
        raise UsageError(
            "no ranking has ratings to learn from",
            got=f"{num} rankings",
            expected=f"at least {need} rated answers in some of them",
            do="choose a ranking loss with head: score",
        )
    if left < num:
        say(f"left out {num - left} of {num} rankings with fewer than {need} rated answers")
    return kept


def put_together(slate: Slate) -> Slate:
    """All annotators of a slate as one row: Bradley-Terry strengths, the ranking they amount to, and the mean
    ratings and leads."""
    found = strengths(slate.ranks)
    ratings = torch.tensor(slate.ratings).nanmean(0).tolist()
    return replace(
        slate,
        ranks=(ranks_of(found),),
        annotators=("all",),
        ratings=(tuple(UNRATED if r[0] != r[0] else tuple(r) for r in ratings),),
        leads=(tuple(torch.tensor(slate.leads).nanmean(0).tolist()),) if slate.leads else (),
        weights=(),
        strengths=found,
    )


def weighed(slate: Slate, people: Mapping[str, Reliability]) -> Slate:
    """The slate with each annotator's weight; who is not among `people` weighs 1."""
    weights = tuple(people[who].weight if who in people else 1.0 for who in slate.annotators)
    return replace(slate, weights=weights)
