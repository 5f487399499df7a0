"""Token batches: packed documents for pretraining, packed examples for fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bloomery.data.pack import Plan, Weights, best_fit, freeze_weights, num_rows, plan
from bloomery.data.shards import Corpus
from bloomery.errors import DataError
from bloomery.text.chat import Rendered

Example = Rendered | tuple[Sequence[int], Sequence[bool]]
"""A token sequence and which of it counts."""


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Every tensor is aligned with `tokens`.

    tokens: [B, T] int64. mask: [B, T] bool, True where the token counts. segments: [B, T] int32, 0 at
    padding, documents numbered from 1 in each row. num_bytes: UTF-8 bytes of the counted tokens.
    """

    tokens: Tensor
    mask: Tensor
    segments: Tensor
    num_bytes: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that count: the denominator of a mean loss."""
        return int(self.mask.sum())

    def to(self, device: torch.device | str) -> TokenBatch:
        return TokenBatch(
            self.tokens.to(device), self.mask.to(device), self.segments.to(device), self.num_bytes
        )

    def split(self, parts: int) -> list[TokenBatch]:
        """The rows in `parts` nearly equal micro-batches; `num_bytes` stays with the whole."""
        pieces = zip(*(t.chunk(parts) for t in (self.tokens, self.mask, self.segments)), strict=True)
        return [TokenBatch(*piece) for piece in pieces]

    def within(self, positions: int) -> list[TokenBatch]:
        """The rows in micro-batches of at most so many positions, or of one row; `num_bytes` stays with the
        whole."""
        rows = max(1, positions // self.tokens.shape[1])
        return self.split(-(-len(self.tokens) // rows))


def pack_documents(
    corpus: Corpus,
    split: str,
    *,
    batch_size: int,
    length: int,
    seed: int,
    step: int,
    weights: Mapping[str, float] | None = None,
) -> TokenBatch:
    """The pretraining batch of `step`: [batch_size, length], a pure function of its arguments.

    Each document starts with <|doc|>, is a segment of its own and, unless it is longer than a row, is whole.
    The first token of a segment follows nothing, so it does not count; see `bloomery.data.pack` for `weights`
    (source to number of epochs, 1 unless named).
    """
    frozen = freeze_weights(corpus, weights)
    row, epoch = step * batch_size, 0
    while row >= (rows := num_rows(corpus, split, length, seed, epoch, frozen)):
        row, epoch = row - rows, epoch + 1
    picked: list[tuple[Plan, int]] = []
    while len(picked) < batch_size:
        here = plan(corpus, split, length, seed, epoch, frozen)
        upto = min(here.num_rows, row + batch_size - len(picked))
        picked += [(here, r) for r in range(row, upto)]
        row, epoch = 0, epoch + 1
    return _assemble(corpus, split, picked, length)


def one_pass(
    corpus: Corpus, split: str, *, batch_size: int, length: int, source: str | None = None
) -> Iterator[TokenBatch]:
    """Every document of a split (or of one source) once, for evaluation; the last batch may be smaller."""
    weights: Weights = ()
    if source is not None:
        weights = freeze_weights(corpus, {name: float(name == source) for name in {*corpus.sources, source}})
    here = plan(corpus, split, length, 0, 0, weights)
    for first in range(0, here.num_rows, batch_size):
        upto = min(first + batch_size, here.num_rows)
        yield _assemble(corpus, split, [(here, r) for r in range(first, upto)], length)


def pack(examples: Sequence[Example], pad_id: int, num_bytes: int = 0) -> TokenBatch:
    """Examples as segments of few rows, each as long as the longest example: next to nothing is padded.

    Rows are filled by best fit, examples stand in them in the order given. The first position of an example
    follows nothing, so it never counts; padding has mask False and segment 0.
    Raises `DataError` for no examples, an empty one, or a mask that is not as long as its tokens.
    """
    pairs = [(e.tokens, e.mask) if isinstance(e, Rendered) else e for e in examples]
    sizes = np.array([len(tokens) for tokens, _ in pairs], dtype=np.int64)
    if not sizes.all() or not len(sizes):
        raise DataError("cannot pack", got="an example without tokens" if pairs else "no examples")
    width = int(sizes.max())
    row_of = best_fit(sizes, width)
    shape = (int(row_of.max()) + 1, width)
    tokens = torch.full(shape, pad_id, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.bool)
    segments = torch.zeros(shape, dtype=torch.int32)
    used, number = [0] * shape[0], [0] * shape[0]
    for (ids, counts), row in zip(pairs, row_of.tolist(), strict=True):
        if len(ids) != len(counts):
            raise DataError(
                "an example's mask is not as long as its tokens", got=f"{len(ids)}, {len(counts)}"
            )
        here = slice(used[row], used[row] + len(ids))
        used[row], number[row] = here.stop, number[row] + 1
        tokens[row, here] = torch.tensor(ids, dtype=torch.int64)
        mask[row, here] = torch.tensor(counts, dtype=torch.bool)
        mask[row, here.start] = False
        segments[row, here] = number[row]
    return TokenBatch(tokens, mask, segments, num_bytes)


def _assemble(corpus: Corpus, split: str, picked: Sequence[tuple[Plan, int]], length: int) -> TokenBatch:
    shards = corpus.split(split)
    tokens = np.full((len(picked), length), corpus.pad_id, dtype=np.int64)
    mask = np.zeros(tokens.shape, dtype=np.bool_)
    segments = np.zeros(tokens.shape, dtype=np.int32)
    for b, (here, row) in enumerate(picked):
        at = 0
        for number, p in enumerate(range(here.rows[row], here.rows[row + 1]), start=1):
            start, size = int(here.start[p]), int(here.length[p])
            tokens[b, at : at + size] = shards[int(here.shard[p])].tokens[start : start + size]
            mask[b, at + 1 : at + size] = True
            segments[b, at : at + size] = number
            at += size
    num_bytes = int(corpus.token_bytes[tokens[mask]].sum(dtype=np.int64))
    return TokenBatch(torch.from_numpy(tokens), torch.from_numpy(mask), torch.from_numpy(segments), num_bytes)
