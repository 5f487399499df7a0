"""Held-out bits per byte, against every document run through the model alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from bloomery.data.shards import Corpus, write_shards
from bloomery.errors import UsageError
from bloomery.evals.language import held_out_bits
from bloomery.models.config import LlamaConfig
from bloomery.models.llama import Llama, init
from bloomery.text.chat import Chat
from bloomery.types import Document
from bloomery.world import Question


@pytest.fixture(scope="module")
def texts(asked: list[Question]) -> list[Document]:
    return [
        Document(id=str(i), text=q.answer, source="news" if i % 3 else "forum")
        for i, q in enumerate(asked[:120])
    ]


def test_same_as_one_document_at_a_time(texts: list[Document], chat: Chat, tmp_path: Path) -> None:
    tokenizer = chat.tokenizer
    write_shards(texts, tokenizer, tmp_path / "corpus", val_fraction=0.3)
    corpus = Corpus.open(tmp_path / "corpus")
    model = Llama(LlamaConfig.shape(width=16, depth=1, heads=2, vocab=tokenizer.vocab_size, context=96))
    init(model, 0)
    sums: dict[str, list[float]] = {}
    for shard in corpus.split("val"):
        for start, end in zip(shard.starts[:-1], shard.starts[1:], strict=True):
            ids = torch.tensor([[int(t) for t in shard.tokens[start:end]]])
            with torch.no_grad():
                rows = torch.log_softmax(model.logits(model(ids))[0, :-1], -1)
            nats = -float(rows.gather(1, ids[0, 1:, None]).sum())
            size = len(tokenizer.decode(ids[0, 1:].tolist()).encode())
            for name in ("all", shard.source):
                total = sums.setdefault(name, [0.0, 0.0])
                total[0] += nats / math.log(2)
                total[1] += size
    got = held_out_bits(model, corpus, length=96, batch_size=3)
    assert set(got) == set(sums) == {"all", "news", "forum"}
    for name, (bits, size) in sums.items():
        assert got[name].mean == pytest.approx(bits / size, rel=1e-4)
        assert got[name].n == size
        assert got[name].low <= got[name].mean <= got[name].high  # type: ignore[operator]
    part = held_out_bits(model, corpus, length=96, batch_size=1, max_batches=1)
    assert set(part) == set(sums)
    assert part["all"].n == part["news"].n + part["forum"].n < got["all"].n  # type: ignore[operator]


def test_needs_held_out_text(texts: list[Document], chat: Chat, tmp_path: Path) -> None:
    write_shards(texts[:5], chat.tokenizer, tmp_path / "corpus", val_fraction=0.0)
    model = Llama(LlamaConfig.shape(width=16, depth=1, heads=2, vocab=chat.tokenizer.vocab_size))
    with pytest.raises(UsageError, match="val"):
        held_out_bits(model, Corpus.open(tmp_path / "corpus"), length=32)
