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


def cuda_graph(device: torch.device) -> Record:
    """`Record` by CUDA graphs on a device. The work is done once before, as libraries prepare themselves when
    first asked, on a stream of its own (the page "CUDA semantics" of torch's documentation). All recordings
    share one pool of memory, so only one may be replayed at a time."""
    aside, pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def record(work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        now = torch.cuda.current_stream(device)
        aside.wait_stream(now)
        with torch.cuda.stream(aside):
            work()
        now.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # What other threads do meanwhile on the GPU is none of the recording's business.
        with torch.cuda.graph(graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
            result = work()
        return result, graph.replay

    return record


class Steps:
    """One token for the first rows of a cache, recorded once for each number of rows. For a cache that has
    moved all is recorded anew; until then the recordings keep the memory where it was."""

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
    """So many rows are recorded for `rows`: few recordings, as each does the step once more.

    >>> [rounded(rows) for rows in (1, 2, 3, 5, 33, 64, 65, 130)]
    [1, 2, 4, 8, 64, 64, 128, 192]
    """
    return 1 << (rows - 1).bit_length() if rows <= 64 else -(-rows // 64) * 64
