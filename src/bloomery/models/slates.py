"""Several answers to one prompt, read with one copy of the prompt.

A *slate* is a list of token sequences that begin alike. It becomes a row: what they share, then each one's
own tokens as a segment (see `llama.fork`). Rows are sorted by length and read in batches, so little padding
is computed; what is found comes back in the order in which the sequences were given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from operator import attrgetter
from typing import TypeVar

import torch
from torch import Tensor

from bloomery.models.llama import Llama
from bloomery.models.lora import Bare
from bloomery.objectives.token import counted_logprobs, predicting

T = TypeVar("T")
Tokens = Sequence[int]
Example = tuple[Tokens, Sequence[bool]]

SPARE = 256
"""Padded positions that are worth a batch less; about what another pass costs beside its products."""


@dataclass(frozen=True, slots=True)
class Row:
    """Sequences laid out behind one copy of their first `prefix` tokens; `places` numbers them in the order
    given."""

    prefix: int
    sequences: tuple[Tokens, ...]
    places: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.prefix + sum(len(s) - self.prefix for s in self.sequences)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows as tensors: `tokens` and `segments` [B, T], `prefix` [B]. `places[n]` is the place of the batch's
    n-th sequence in the order given, and `at[n]` the (row, first, end) of its own tokens.

    For the sequences `7 8 9` and `7 8 5 6` in one row:

        tokens    7  8  9  5  6
        segments  1  1  2  3  3        prefix 2, at [(0, 2, 3), (0, 3, 5)]
    """

    tokens: Tensor
    segments: Tensor
    prefix: Tensor
    places: tuple[int, ...]
    at: tuple[tuple[int, int, int], ...]

    def to(self, device: torch.device) -> Batch:
        tokens, segments, prefix = (t.to(device) for t in (self.tokens, self.segments, self.prefix))
        return Batch(tokens, segments, prefix, self.places, self.at)


@dataclass(frozen=True, slots=True)
class Group:
    """Some slates of a step that are read, and learnt from, at a time: `slates` numbers them among the
    step's, `batches` hold their rows. A batch's places count the sequences of the group."""

    slates: tuple[int, ...]
    batches: tuple[Batch, ...]


def batched(
    slates: Sequence[Sequence[Tokens]],
    limits: Sequence[int],
    *,
    context: int,
    pad_id: int,
    batch_tokens: int,
) -> Iterator[Batch]:
    """Slates as batches of rows of like length.

    A slate shares at most its `limits` tokens. A row longer than `context` is split; a batch holds at most
    `batch_tokens` padded positions, or one row.
    """
    rows, start = list[Row](), 0
    for slate, limit in zip(slates, limits, strict=True):
        rows += rows_of(slate, start, limit, context)
        start += len(slate)
    rows.sort(key=lambda row: row.length)
    return (lay_out(part, pad_id) for part in in_batches(rows, batch_tokens))


def read_batches(read: Callable[[Batch], Tensor], batches: Iterable[Batch], device: torch.device) -> Tensor:
    """`read`, which returns a value (or a row of values) for each sequence of a batch, over batches that hold
    sequences 0 .. N-1 between them: `[N]` or `[N, ...]` in this order; `[0]` where there is none."""
    found, places = list[Tensor](), list[int]()
    for batch in batches:
        found.append(read(batch.to(device)))
        places += batch.places
    back = torch.empty(len(places), dtype=torch.long, device=device)
    back[torch.tensor(places, dtype=torch.long, device=device)] = torch.arange(len(places), device=device)
    return torch.cat(found)[back] if found else torch.zeros(0, device=device)


def in_groups(
    slates: Sequence[Sequence[Tokens]],
    limits: Sequence[int],
    *,
    context: int,
    pad_id: int,
    batch_tokens: int,
) -> list[Group]:
    """Slates laid out so that one group after the other can be learnt from: what `batched` would make a batch
    is a group, and so is a slate of several rows, because a slate's loss needs all its sequences."""
    lengths, long = dict[int, int](), list[tuple[int]]()
    for i, (slate, limit) in enumerate(zip(slates, limits, strict=True)):
        first, *others = rows_of(slate, 0, limit, context)
        if others:
            long.append((i,))
        else:
            lengths[i] = first.length
    short = in_batches(sorted(lengths, key=lengths.__getitem__), batch_tokens, lengths.__getitem__)
    groups = list[Group]()
    for chosen in (*short, *long):
        some, shared = [slates[i] for i in chosen], [limits[i] for i in chosen]
        batches = batched(some, shared, context=context, pad_id=pad_id, batch_tokens=batch_tokens)
        groups.append(Group(tuple(chosen), tuple(batches)))
    return groups


def answer_groups(
    slates: Sequence[Sequence[Example]], *, context: int, pad_id: int, batch_tokens: int
) -> list[Group]:
    """`in_groups` for `answer_logprobs`."""
    tokens = [[ids for ids, _ in slate] for slate in slates]
    return in_groups(tokens, _prompts(slates), context=context, pad_id=pad_id, batch_tokens=batch_tokens)


def _prompts(slates: Sequence[Sequence[Example]]) -> list[int]:
    """How many tokens each slate's answers may share: no more than come before the first that counts."""
    return [min(mask.index(True) for _, mask in slate) for slate in slates]


def answer_logprobs(
    model: Llama | Bare,
    slates: Sequence[Sequence[Example]],
    pad_id: int,
    batch_tokens: int = 8192,
) -> tuple[Tensor, Tensor]:
    """The log-prob of each answer given its prompt, summed over the tokens that count, and their number.

    Args:
        slates: each a prompt's answers as (tokens, mask) of prompt + answer; position 0 does not count.
    Returns:
        two `[N]`, slate after slate.
    """
    batches = batched(
        [[tokens for tokens, _ in slate] for slate in slates],
        _prompts(slates),
        context=model.config.max_position_embeddings,
        pad_id=pad_id,
        batch_tokens=batch_tokens,
    )
    return batch_logprobs(model, batches, [example for slate in slates for example in slate])


def batch_logprobs(
    model: Llama | Bare, batches: Iterable[Batch], answers: Sequence[Example]
) -> tuple[Tensor, Tensor]:
    """`answer_logprobs` of answers that were laid out before."""

    def read(batch: Batch) -> Tensor:
        examples = [answers[place] for place in batch.places]
        logprobs, _, mask = read_answers(model, batch, examples, entropy=False)
        return torch.stack([logprobs.sum(1), mask.sum(1).to(logprobs.dtype)], dim=1)

    both = read_batches(read, batches, next(model.parameters()).device)
    return both[:, 0], both[:, 1]


def shared_length(sequences: Sequence[Tokens], limit: int) -> int:
    """How many tokens all sequences begin with, at most `limit`."""
    columns = takewhile(lambda ids: len(set(ids)) == 1, zip(*sequences, strict=False))
    return min(sum(1 for _ in columns), limit)


def rows_of(slate: Sequence[Tokens], start: int, limit: int, context: int) -> Iterator[Row]:
    """A slate as one row, or as several where one would be longer than the context."""
    shared = shared_length(slate, limit)
    taken, places, length = list[Tokens](), list[int](), shared
    for place, sequence in enumerate(slate, start):
        if taken and length + len(sequence) - shared > context:
            yield Row(shared, tuple(taken), tuple(places))
            taken, places, length = [], [], shared
        taken.append(sequence)
        places.append(place)
        length += len(sequence) - shared
    yield Row(shared, tuple(taken), tuple(places))


def in_batches(
    rows: Sequence[T], batch_tokens: int, length: Callable[[T], int] = attrgetter("length")
) -> Iterator[Sequence[T]]:
    """Rows sorted by length in batches of at most `batch_tokens` positions, of which no more than `SPARE` are
    padding."""
    batch, used = list[T](), 0
    for row in rows:
        padded, used = (len(batch) + 1) * length(row), used + length(row)
        if batch and (padded > batch_tokens or padded - used > SPARE):
            yield batch
            batch, used = [], length(row)
        batch.append(row)
    if batch:
        yield batch


def lay_out(rows: Sequence[Row], pad_id: int, device: torch.device | str = "cpu") -> Batch:
    width = max(row.length for row in rows)
    tokens = torch.full((len(rows), width), pad_id, dtype=torch.long)
    segments = torch.zeros(len(rows), width, dtype=torch.int32)
    at: list[tuple[int, int, int]] = []
    for i, row in enumerate(rows):
        end = row.prefix
        tokens[i, :end], segments[i, :end] = torch.tensor(row.sequences[0][:end], dtype=torch.long), 1
        for number, sequence in enumerate(row.sequences, 2):
            own = torch.tensor(sequence[row.prefix :], dtype=torch.long)
            tokens[i, end : end + len(own)], segments[i, end : end + len(own)] = own, number
            at.append((i, end, end + len(own)))
            end += len(own)
    prefix = torch.tensor([row.prefix for row in rows], device=device)
    places = tuple(place for row in rows for place in row.places)
    return Batch(tokens.to(device), segments.to(device), prefix, places, tuple(at))


def read_answers(
    model: Llama | Bare,
    batch: Batch,
    examples: Sequence[Example],
    temperature: float = 1.0,
    *,
    entropy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs, entropies and mask of a batch's answers, `[A, L + 1]` as `_answers` lays them out."""
    index, tokens, mask = _answers(batch, examples)
    at = index.flatten()[predicting(mask)]
    states = model(batch.tokens, segments=batch.segments, prefix=batch.prefix, at=at)
    logprobs, spread = counted_logprobs(states, model.logits, tokens, mask, temperature, entropy=entropy)
    return logprobs, spread, mask


def _answers(batch: Batch, examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """A batch's answers as rows of their own, each behind the last token of its prompt, which predicts its
    first token.

    Returns:
        index `[A, L + 1]` of each position among the batch's `B * T`; tokens and mask `[A, L + 1]`.
    """
    device, width = batch.tokens.device, batch.tokens.shape[1]
    longest = max(end - first for _, first, end in batch.at)
    shape = (len(batch.at), longest + 1)
    index = torch.zeros(shape, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.bool)
    prefixes = batch.prefix.tolist()
    for n, ((row, first, end), (_, counts)) in enumerate(zip(batch.at, examples, strict=True)):
        index[n, 0] = row * width + max(prefixes[row] - 1, 0)
        index[n, 1 : end - first + 1] = torch.arange(row * width + first, row * width + end)
        mask[n, 1 : end - first + 1] = torch.tensor(counts[prefixes[row] :], dtype=torch.bool)
    index, mask = index.to(device), mask.to(device)
    return index, batch.tokens.flatten()[index], mask
