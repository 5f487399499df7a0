"""Rankings as a reward model reads them: one slate for each prompt with the answers that were ranked, and in
it one row for each annotator. However many rows and pairs an answer is in, it is forwarded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from bloomery.errors import UsageError
from bloomery.evals.comparisons import Scored
from bloomery.seeds import derive
from bloomery.stages.common import is_held_out, short_enough
from bloomery.text.chat import Chat
from bloomery.types import Message, Ranking, Rating

# The three H of a rating, as one row of numbers.
HEADS = ("helpful", "honest", "harmless")
Rated = tuple[float, ...]
UNKNOWN = float("nan")
UNRATED: Rated = (UNKNOWN,) * len(HEADS)


@dataclass(frozen=True, slots=True)
class Slate:
    """One prompt's answers as token sequences, and what each annotator said of them.

    `ranks[a][k]` is annotator `a`'s rank of answer `k`, 0 where that annotator did not see it
    (another one's correction); `ratings[a][k]` the three H, NaN where it was not rated; `leads[a][k]` how far
    it is before the worse of two, NaN where nobody said. `weights[a]` is what the ranking counts, 1 on
    average. With `strengths` the one row is what all annotators said together.
    `sources[k]` wrote the answer.
    """

    id: str
    texts: tuple[str, ...]
    sequences: tuple[tuple[int, ...], ...]
    ranks: tuple[tuple[int, ...], ...]
    annotators: tuple[str, ...] = ()
    ratings: tuple[tuple[Rated, ...], ...] = ()
    leads: tuple[tuple[float, ...], ...] = ()
    weights: tuple[float, ...] = ()
    strengths: tuple[float, ...] = ()
    sources: tuple[str, ...] = ()

    @property
    def longest(self) -> int:
        """Tokens of the longest answer with its prompt."""
        return max(map(len, self.sequences))

    @property
    def measured(self) -> bool:
        """Whether somebody said how much better an answer is than another, and not only that it is."""
        rows = (*self.leads, *((rated[0] for rated in row) for row in self.ratings))
        return any(one == one for row in rows for one in row)

    def keep(self, rows: Sequence[int]) -> Slate:
        """The slate with only these rows."""
        return replace(
            self,
            ranks=tuple(self.ranks[a] for a in rows),
            annotators=tuple(self.annotators[a] for a in rows),
            ratings=tuple(self.ratings[a] for a in rows),
            leads=tuple(self.leads[a] for a in rows if self.leads),
            weights=tuple(self.weights[a] for a in rows if self.weights),
        )

    def judged(self, scores: Sequence[float]) -> Scored:
        """The slate for a report card; an answer was rated the mean of its three H."""
        rated = tuple(tuple(sum(r) / len(r) for r in row) for row in self.ratings)
        return Scored(self.id, self.texts, self.ranks, tuple(scores), self.annotators, self.sources, rated)


class Compared(Protocol):
    """A prompt with answers that were compared."""

    @property
    def id(self) -> str: ...
    @property
    def longest(self) -> int: ...


S = TypeVar("S", bound=Compared)


class Told(NamedTuple):
    """What slates' rows say beside their ranks: ratings `[G, K, 3]` and leads `[G, K]`, NaN where there is
    none; weights `[G]`; strengths `[G, K]`, where rows were put together."""

    ratings: Tensor
    leads: Tensor
    weights: Tensor
    strengths: Tensor | None

    @property
    def rated(self) -> Tensor:
        """`[G, K]`, True where an answer was rated."""
        return ~self.ratings[..., 0].isnan()

    def worth(self, shares: Tensor) -> Tensor:
        """`[G, K]`, what margins are made of: leads where told, else the ratings by `shares` `[3]`."""
        return torch.where(self.leads.isnan(), self.ratings @ shares.to(self.ratings), self.leads)


def make_slates(rankings: Iterable[Ranking], chat: Chat, corrections: bool) -> list[Slate]:
    """Group submitted rankings by prompt and answers, in the order first met."""
    groups: dict[tuple[object, ...], list[Ranking]] = {}
    for r in rankings:
        if r.status == "submitted" and r.ranking is not None:
            groups.setdefault((r.prompt, tuple(c.messages for c in r.completions)), []).append(r)
    return [make_slate(group, chat, corrections) for group in groups.values()]


def make_slate(group: Sequence[Ranking], chat: Chat, corrections: bool) -> Slate:
    """One prompt's rankings as a slate; each correction becomes an answer that only its author ranked."""
    first = group[0]
    answers, written = [c.messages for c in first.completions], [c.policy.id for c in first.completions]
    rows: list[dict[int, int]] = []
    for r in group:
        row = {k: rank + 1 for k, rank in enumerate(r.ranking or ())}
        if corrections and r.correction:
            row[len(answers)] = 1
            answers.append((Message(role="assistant", content=r.correction),))
        rows.append(row)
    sequences = tuple(tuple(chat.render((*first.prompt, *messages)).tokens) for messages in answers)
    return Slate(
        id=prompt_id(first.prompt),
        texts=tuple(messages[-1].content for messages in answers),
        sequences=sequences,
        ranks=tuple(tuple(row.get(k, 0) for k in range(len(answers))) for row in rows),
        annotators=tuple(r.annotator.id for r in group),
        ratings=tuple(_rated(r.ratings, len(answers)) for r in group),
        leads=tuple(_leads(r, len(answers)) for r in group),
        sources=(*written, *["correction"] * (len(answers) - len(written))),
    )


def _rated(ratings: Sequence[Rating | None] | None, num: int) -> tuple[Rated, ...]:
    """A correction is ranked, never rated."""
    found = [UNRATED if r is None else tuple(float(getattr(r, h)) for h in HEADS) for r in ratings or ()]
    return (*found, *[UNRATED] * (num - len(found)))


def _leads(ranking: Ranking, num: int) -> tuple[float, ...]:
    """Of two answers the better one has the margin, the other 0; a correction is compared without one."""
    if ranking.margin is None or ranking.ranking is None:
        return (UNKNOWN,) * num
    best = min(ranking.ranking)
    found = [ranking.margin if rank == best else 0.0 for rank in ranking.ranking]
    return (*found, *[UNKNOWN] * (num - len(found)))


def prompt_id(prompt: Sequence[Message]) -> str:
    """The same prompt has the same id in every round, so what is held out stays held out."""
    return f"{derive(0, *(f'{m.role}:{m.content}' for m in prompt)):016x}"


def split(
    slates: Sequence[S], limit: int, held_out: float, say: Callable[[str], None]
) -> tuple[list[S], list[S]]:
    """What is trained on and what is held out, by the prompt's id; without slates whose longest answer, with
    its prompt, is beyond `limit` tokens."""
    fit = within(slates, limit, say)
    training = [s for s in fit if not is_held_out(s.id, held_out)]
    if not training:
        raise UsageError(
            "there is no comparison to train on",
            got=f"{len(fit)} prompts, of which a share of {held_out} is held out",
            do="give more rankings, or a smaller held_out",
        )
    return training, [s for s in fit if is_held_out(s.id, held_out)]


def within(slates: Sequence[S], limit: int, say: Callable[[str], None]) -> list[S]:
    """The slates whose longest answer, with its prompt, is not beyond `limit` tokens, as `short_enough`."""
    return short_enough(slates, lambda slate: slate.longest, limit, "prompts with compared answers", say)


def told(slates: Sequence[Slate], width: int, device: torch.device) -> Told:
    """The slates' rows in order, padded to `width` answers, as tensors."""

    def wide(rows: Sequence[Sequence[Any]], num: int, nothing: Any) -> list[list[Any]]:
        return [[*row, *[nothing] * (width - len(row))] for row in rows or [()] * num]

    ratings = [row for s in slates for row in wide(s.ratings, len(s.ranks), UNRATED)]
    leads = [row for s in slates for row in wide(s.leads, len(s.ranks), UNKNOWN)]
    weights = [w for s in slates for w in s.weights or [1.0] * len(s.ranks)]
    together = [[*s.strengths, *[0.0] * (width - len(s.strengths))] for s in slates if s.strengths]
    return Told(
        torch.tensor(ratings, device=device),
        torch.tensor(leads, device=device),
        torch.tensor(weights, device=device),
        torch.tensor(together, device=device) if together else None,
    )
