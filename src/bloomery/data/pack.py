"""Which documents share a row: best-fit packing, so that few documents are cut and little is padded.

Best-fit decreasing after Ding et al. 2024, "Fewer Truncations Improve Language Modeling" (section 3):
only documents longer than a row are cut.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from bloomery.data.shards import Corpus
from bloomery.errors import UsageError, nearest
from bloomery.seeds import stream

Weights = tuple[tuple[str, float], ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """One epoch in rows. Row `r` holds pieces rows[r]:rows[r + 1]; piece `p` is `length[p]` tokens of shard
    number `shard[p]` from `start[p]` on. `num_cut` counts documents that fill more than one piece."""

    shard: NDArray[np.int64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]
    rows: NDArray[np.int64]
    num_cut: int

    @property
    def num_rows(self) -> int:
        return len(self.rows) - 1

    @property
    def num_tokens(self) -> int:
        return int(self.length.sum())


def freeze_weights(corpus: Corpus, weights: Mapping[str, float] | None) -> Weights:
    """Weights as a hashable value. Raises `UsageError` for an unknown source or a negative weight."""
    for source, weight in (weights or {}).items():
        if source not in corpus.sources:
            raise UsageError(
                f"the corpus has no source '{source}'{nearest(source, corpus.sources)}",
                expected=", ".join(corpus.sources),
            )
        if not 0 <= weight < float("inf"):
            raise UsageError(f"the weight of source '{source}' is a number of epochs", got=weight)
    return tuple(sorted((weights or {}).items()))


@lru_cache(maxsize=8)
def plan(corpus: Corpus, split: str, length: int, seed: int, epoch: int, weights: Weights = ()) -> Plan:
    """Pack epoch number `epoch` of a split into rows of `length` tokens; a pure function, remembered.

    A source of weight 2.5 gives each of its documents twice, and half of them (another half in the next
    epoch) a third time; sources that are not named have weight 1.
    """
    if length < 2:
        raise UsageError("a row has at least 2 tokens", got=length)
    shard, start, size = _documents(corpus, split, seed, epoch, weights)
    order = stream(seed, "shuffle", split, epoch).permutation(len(size))
    shard, start, size, num_cut = _cut(shard[order], start[order], size[order], length)
    row = best_fit(size, length)
    num_rows = int(row.max()) + 1
    row = stream(seed, "rows", split, epoch).permutation(num_rows)[row]
    by_row = np.argsort(row, kind="stable")
    rows = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=num_rows))])
    return Plan(shard[by_row], start[by_row], size[by_row], rows, num_cut)


def best_fit(sizes: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """The row of each piece: longest first, each into the fullest row that still has room for it."""
    result = np.empty(len(sizes), dtype=np.int64)
    rows_with: list[list[int]] = [[] for _ in range(capacity + 1)]  # by room left
    rooms: list[int] = []  # sorted: the room sizes that some row has
    num_rows = 0
    ordered = np.argsort(-sizes, kind="stable")
    for piece, size in zip(ordered.tolist(), sizes[ordered].tolist(), strict=True):
        at = bisect_left(rooms, size)
        if at == len(rooms):
            row, room = num_rows, capacity
            num_rows += 1
        else:
            room = rooms[at]
            row = rows_with[room].pop()
            if not rows_with[room]:
                del rooms[at]
        result[piece] = row
        left = room - size
        if left:
            if not rows_with[left]:
                insort(rooms, left)
            rows_with[left].append(row)
    return result


@lru_cache(maxsize=4096)
def num_rows(corpus: Corpus, split: str, length: int, seed: int, epoch: int, weights: Weights = ()) -> int:
    """Rows of an epoch; the same in all epochs unless a weight has a fraction."""
    if epoch > 0 and all(float(weight).is_integer() for _, weight in weights):
        return num_rows(corpus, split, length, seed, 0, weights)
    return plan(corpus, split, length, seed, epoch, weights).num_rows


def _documents(
    corpus: Corpus, split: str, seed: int, epoch: int, weights: Weights
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Shard number, first token and length of each document of the epoch, repeats included."""
    parts: list[tuple[NDArray[np.int64], ...]] = []
    for number, shard in enumerate(corpus.split(split)):
        weight = dict(weights).get(shard.source, 1.0)
        count = shard.num_documents
        extra = round((weight % 1) * count)
        order = stream(seed, "mix", split, shard.source).permutation(count)
        window = np.arange(epoch * extra, (epoch + 1) * extra) % count
        chosen = np.concatenate([np.tile(np.arange(count), int(weight)), order[window]])
        size = np.diff(shard.starts)[chosen]
        parts.append((np.full(len(chosen), number, dtype=np.int64), shard.starts[chosen], size))
    shards, starts, sizes = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not len(sizes):
        raise UsageError(f"the source weights leave no document in '{split}'", got=dict(weights))
    return shards, starts, sizes


def _cut(
    shard: NDArray[np.int64], start: NDArray[np.int64], size: NDArray[np.int64], length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int]:
    """Documents longer than a row become several pieces."""
    pieces = -(-size // length)
    document = np.repeat(np.arange(len(size)), pieces)
    within = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    sizes = np.minimum(size[document] - within * length, length)
    return shard[document], start[document] + within * length, sizes, int((pieces > 1).sum())
