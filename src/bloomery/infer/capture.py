"""Decoding steps that are recorded once and replayed: on a GPU the many small kernels of one token then start
at once, not one by one from Python."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bloomery.models import KVCache, Llama

Record = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]]
"""From a computation on tensors that stay where they are: its result, and what computes it anew in place."""


def cuda_graph(work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """`Record` by a CUDA graph. The work is done twice before, as libraries prepare themselves when first
    asked, on a stream of its own (the page "CUDA semantics" of torch's documentation)."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return result, graph.replay


class Steps:
    """One token for the first rows of a cache, recorded once for each number of rows. A cache that has moved
    is recorded anew; until then what it was before stays in memory."""

    def __init__(self, model: Llama, record: Record) -> None:
        self.model, self.record = model, record
        self.place: tuple[int, ...] = ()
        self.made: dict[int, Step] = {}

    def __call__(self, newest: Tensor, cache: KVCache) -> Tensor:
        """Logits [R, V] after the newest tokens [R, 1], which the cache of these rows then holds; written
        over by the next call."""
        place = (cache.max_len, *(held.data_ptr() for held in (*cache.keys, *cache.values)))
        if place != self.place:
            self.made, self.place = {}, place
        rows, lengths = len(newest), cache.lengths  # which recording moves on
        if rows not in self.made:
            self.made[rows] = Step(self.model, newest, cache, self.record)
        return self.made[rows](newest, lengths)


class Step:
    """A recording, and the tensors it reads: the newest tokens [R, 1] and the lengths [R] before them."""

    def __init__(self, model: Llama, newest: Tensor, cache: KVCache, record: Record) -> None:
        self.newest, self.lengths = newest.clone(), cache.lengths.clone()
        self.logits, self.replay = record(partial(one_token, model, self.newest, self.lengths, cache))

    def __call__(self, newest: Tensor, lengths: Tensor) -> Tensor:
        self.newest.copy_(newest)
        self.lengths.copy_(lengths)
        self.replay()
        return self.logits


def one_token(model: Llama, newest: Tensor, lengths: Tensor, cache: KVCache) -> Tensor:
    """Logits [R, V] after one token more for each row, by operations that depend on no number in Python."""
    cache.lengths, cache.longest = lengths, 1  # every row is read from the cache, one without tokens too
    return model.logits(model(newest, cache=cache)[:, -1])


def rounded(rows: int) -> int:
    """So many rows are recorded for `rows`: few recordings, little work in vain.

    >>> [rounded(rows) for rows in (1, 2, 3, 5, 8, 9, 64, 65)]
    [1, 2, 4, 8, 8, 16, 64, 72]
    """
    return 1 << (rows - 1).bit_length() if rows <= 8 else -(-rows // 8) * 8
