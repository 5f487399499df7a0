"""Bits per byte of held-out text: how well a model predicts what it never read, whatever its tokenizer."""

from __future__ import annotations

import math
from itertools import islice

import numpy as np
import torch

from bloomery.data.batches import TokenBatch, one_pass
from bloomery.data.shards import Corpus
from bloomery.evals.bootstrap import Estimate, interval
from bloomery.models.llama import Llama
from bloomery.objectives.language import nll
from bloomery.objectives.token import counted_logprobs


def held_out_bits(
    model: Llama,
    corpus: Corpus,
    *,
    length: int,
    batch_size: int = 32,
    max_batches: int | None = None,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Bits per byte on the validation split, teacher-forced: in "all", and by source.

    Of each source the first `max_batches` batches are read; everything when not given.

    Every document is read once, from its start, packed into rows of `length`. Intervals draw whole rows;
    `n` is the number of bytes predicted. Raises `UsageError` when the corpus has no validation split.
    """
    rows: dict[str, list[tuple[float, int]]] = {}
    for source in sorted({shard.source for shard in corpus.split("val")}):
        batches = one_pass(corpus, "val", batch_size=batch_size, length=length, source=source)
        rows[source] = [row for batch in islice(batches, max_batches) for row in _rows(model, corpus, batch)]
    everything = [row for found in rows.values() for row in found]
    return {
        name: _bits(found, seed)
        for name, found in {"all": everything, **rows}.items()
        if any(size for _, size in found)
    }


@torch.no_grad()
def _rows(model: Llama, corpus: Corpus, batch: TokenBatch) -> list[tuple[float, int]]:
    """(bits, bytes) of each row."""
    device = next(model.parameters()).device
    here = batch.to(device)
    hidden = model(here.tokens, segments=here.segments)
    logprobs, _ = counted_logprobs(hidden, model.logits, here.tokens, here.mask, entropy=False)
    nats = nll(logprobs).double().sum(1)
    sizes = np.where(batch.mask.numpy(), corpus.token_bytes[batch.tokens.numpy()], 0).sum(1, dtype=np.int64)
    return [(bits / math.log(2), int(size)) for bits, size in zip(nats.tolist(), sizes, strict=True)]


def _bits(rows: list[tuple[float, int]], seed: int) -> Estimate:
    size = sum(n for _, n in rows)
    low, high = interval(rows, seed=seed)
    return Estimate(sum(bits for bits, _ in rows) / size, low, high, size)
