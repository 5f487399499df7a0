"""The learned reward: a frozen reward model's score at the last token of prompt + answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from bloomery.models.llama import ScalarModel
from bloomery.types import Rollout

Tokens = Sequence[int]


@dataclass(frozen=True, slots=True)
class Row:
    """Sequences that share their first `prefix` tokens, laid out behind one copy of them."""

    prefix: int
    sequences: tuple[Tokens, ...]
    places: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.prefix + sum(len(s) - self.prefix for s in self.sequences)


def score_slates(
    model: ScalarModel, slates: Sequence[Sequence[Tokens]], pad_id: int, batch_tokens: int = 8192
) -> Tensor:
    """The score of each token sequence at its last token, `[N]` in the order given, slate after slate.

    What the sequences of a slate have in common at their start (the prompt) is forwarded once. Rows are
    forwarded sorted by length, in batches of at most `batch_tokens` padded positions.
    """
    context = model.config.max_position_embeddings
    rows, start = list[Row](), 0
    for slate in slates:
        rows += _rows(slate, start, context)
        start += len(slate)
    rows.sort(key=lambda row: row.length)
    found, places = list[Tensor](), list[int]()
    for batch in _batches(rows, batch_tokens):
        found.append(_forward(model, batch, pad_id))
        places += [place for row in batch for place in row.places]
    scores = torch.cat(found)
    back = torch.empty(start, dtype=torch.long, device=scores.device)
    back[torch.tensor(places, device=scores.device)] = torch.arange(start, device=scores.device)
    return scores[back]


def score_sequences(
    model: ScalarModel, sequences: Sequence[Tokens], pad_id: int, batch_tokens: int = 8192
) -> Tensor:
    """`score_slates` for sequences that have nothing in common."""
    return score_slates(model, [[s] for s in sequences], pad_id, batch_tokens)


def _rows(slate: Sequence[Tokens], start: int, context: int) -> Iterator[Row]:
    """A slate as one row, or as several where one would be longer than the context."""
    columns = takewhile(lambda ids: len(set(ids)) == 1, zip(*slate, strict=False))
    shared = min(sum(1 for _ in columns), min(map(len, slate)) - 1)
    taken, places, length = list[Tokens](), list[int](), shared
    for place, sequence in enumerate(slate, start):
        if taken and length + len(sequence) - shared > context:
            yield Row(shared, tuple(taken), tuple(places))
            taken, places, length = [], [], shared
        taken.append(sequence)
        places.append(place)
        length += len(sequence) - shared
    yield Row(shared, tuple(taken), tuple(places))


def _batches(rows: Sequence[Row], batch_tokens: int) -> Iterator[Sequence[Row]]:
    start = 0
    while start < len(rows):
        end = start + 1
        while end < len(rows) and (end + 1 - start) * rows[end].length <= batch_tokens:
            end += 1
        yield rows[start:end]
        start = end


def _forward(model: ScalarModel, rows: Sequence[Row], pad_id: int) -> Tensor:
    width = max(row.length for row in rows)
    tokens = torch.full((len(rows), width), pad_id, dtype=torch.long)
    segments = torch.zeros(len(rows), width, dtype=torch.int32)
    at: list[tuple[int, int]] = []
    for i, row in enumerate(rows):
        end = row.prefix
        tokens[i, :end], segments[i, :end] = torch.tensor(row.sequences[0][:end], dtype=torch.long), 1
        for number, sequence in enumerate(row.sequences, 2):
            own = torch.tensor(sequence[row.prefix :], dtype=torch.long)
            tokens[i, end : end + len(own)], segments[i, end : end + len(own)] = own, number
            end += len(own)
            at.append((i, end - 1))
    device = next(model.parameters()).device
    prefix = torch.tensor([row.prefix for row in rows], device=device)
    scores: Tensor = model(tokens.to(device), segments=segments.to(device), prefix=prefix).float()
    where = torch.tensor(at, device=device)
    return scores[where[:, 0], where[:, 1]]


class RewardModel:
    """`Reward` by a trained, frozen `ScalarModel`."""

    def __init__(self, model: ScalarModel, pad_id: int) -> None:
        self.model, self.pad_id = model.train(False).requires_grad_(False), pad_id

    @torch.no_grad()
    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        scores: list[float] = score_sequences(self.model, [r.tokens for r in rollouts], self.pad_id).tolist()
        return scores
