"""Tiny models, and the plain way to compute what the stages compute: one sequence at a time, no padding, no
packing, no batch."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bloomery.data.batches import TokenBatch
from bloomery.data.shards import Corpus, write_shards
from bloomery.models.config import LlamaConfig
from bloomery.models.llama import Llama, ScalarModel
from bloomery.stages import common
from bloomery.stages.common import Training
from bloomery.text.tokenizer import Tokenizer
from bloomery.types import Annotator, Candidate, Document, Message, Policy, Ranking

TRAINING = Training(threads=1, checkpoint_every=0)
CLOCKS = ("timing/", "rollout/tok_per_sec", "eps")
"""Names of the metrics that measure time: no two runs agree on them."""
WORDS = ("red", "blue", "green", "plum", "jam", "tea", "milk", "one", "two", "three", "what", "is", "best")


def tokenizer() -> Tokenizer:
    """Spells each of `WORDS`, with a space before it, as one token."""
    return Tokenizer.train([f" {word}" for word in WORDS for _ in range(20)], 400)


def config(
    vocab: int, *, width: int = 16, depth: int = 1, context: int = 64, tied: bool = False
) -> LlamaConfig:
    return LlamaConfig.shape(width=width, depth=depth, heads=2, vocab=vocab, context=context, tied=tied)


def loud(model: Llama | ScalarModel, seed: int, std: float = 0.25) -> None:
    """Random weights that are large enough for distributions far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("norm.weight"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def language_model(vocab: int, seed: int, **shape: Any) -> Llama:
    model = Llama(config(vocab, **shape))
    loud(model, seed)
    return model


def scalar_model(vocab: int, seed: int, **shape: Any) -> ScalarModel:
    model = ScalarModel(config(vocab, **shape))
    loud(model, seed)
    return model


def corpus(tokenizer: Tokenizer, out: Path, *, num: int = 60, val_fraction: float = 0.2) -> Corpus:
    """Documents of 3 to 14 words in no order at all."""
    draw = np.random.default_rng(0)
    texts = ["".join(f" {WORDS[i]}" for i in draw.integers(0, len(WORDS), 3 + n % 12)) for n in range(num)]
    documents = [Document(id=str(n), text=text) for n, text in enumerate(texts)]
    return write_shards(documents, tokenizer, out, val_fraction=val_fraction)


def logprobs_of(model: Llama, tokens: Sequence[int], temperature: float = 1.0) -> Tensor:
    """`[T]`, aligned with the tokens: the first is 0."""
    row = torch.tensor([list(tokens)])
    logits = model.logits(model(row))[0] / temperature
    found = F.log_softmax(logits[:-1], dim=-1)[torch.arange(len(tokens) - 1), row[0, 1:]]
    return torch.cat([torch.zeros(1), found])


def scores_of(model: ScalarModel, tokens: Sequence[int]) -> Tensor:
    """`[T]`, the score read at each token."""
    scores: Tensor = model(torch.tensor([list(tokens)]))[0]
    return scores


def documents_of(batch: TokenBatch) -> list[list[int]]:
    """The documents of a packed batch, each by itself."""
    found = []
    for tokens, segments in zip(batch.tokens, batch.segments, strict=True):
        for number in range(1, int(segments.max()) + 1):
            found.append(tokens[segments == number].tolist())
    return found


def plain_text_loss(model: Llama, batch: TokenBatch) -> Tensor:
    """Mean next-token loss of a packed batch, document by document."""
    documents = documents_of(batch)
    nats = [-logprobs_of(model, document)[1:].sum() for document in documents]
    return torch.stack(nats).sum() / sum(len(document) - 1 for document in documents)


def weights(model: torch.nn.Module) -> Tensor:
    """All weights in one vector, a copy."""
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def gradient(loss: Tensor, model: torch.nn.Module) -> Tensor:
    """The gradient of one loss, in one vector; `.grad` is left alone."""
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]
    )


def held_gradient(model: torch.nn.Module) -> Tensor:
    """What `backward` left in `.grad`, in one vector."""
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()]
    )


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def ranking(
    question: str, answers: Sequence[str], ranks: Sequence[int] | None, annotator: str = "ada", **fields: Any
) -> Ranking:
    said = [
        Candidate(messages=(Message(role="assistant", content=text),), policy=Policy(id="sft"))
        for text in answers
    ]
    return Ranking.model_validate(
        {
            "id": f"{question}/{annotator}/{len(answers)}",
            "prompt": user(question),
            "completions": said,
            "ranking": ranks,
            "annotator": Annotator(id=annotator, kind="human"),
            "created_at": "2026-01-02T03:04:05.000Z",
            **fields,
        }
    )


def replayed(monkeypatch: Any) -> list[int]:
    """The number of each batch of pretraining text that a stage reads beside its own task; filled by the next
    run."""
    numbers, real = list[int](), common.pack_documents

    def pack_documents(*args: Any, step: int, **rest: Any) -> TokenBatch:
        numbers.append(step)
        return real(*args, step=step, **rest)

    monkeypatch.setattr(common, "pack_documents", pack_documents)
    return numbers


def weight_files(out: Path) -> list[bytes]:
    """What a stage saved of its model, or of its adapters."""
    return [path.read_bytes() for path in sorted(out.glob("*.safetensors"))]


def makers(monkeypatch: Any, module: Any, name: str) -> list[str]:
    """The thread of each call of a module's function; filled by the next run."""
    threads, real = list[str](), getattr(module, name)

    def made(*args: Any, **kwargs: Any) -> Any:
        threads.append(threading.current_thread().name)
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, made)
    return threads


def break_off(monkeypatch: Any, module: Any, name: str, call: int) -> None:
    """Let a function of a module fail as if memory had run out, the `call`-th time it is called."""
    real, calls = getattr(module, name), list[int]()

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise MemoryError
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, dying)


def goes_on_to_the_same_bytes(
    make: Callable[[Path], object], out: Path, module: Any, name: str, call: int, resumed: int
) -> None:
    """Make a run whole, and one in which a function breaks off the `call`-th time.

    Made again, the second goes on from the checkpoint at step `resumed` and ends with the same weights and
    metrics, but for the clocks.
    """
    make(out / "whole")
    with pytest.MonkeyPatch.context() as patch:
        break_off(patch, module, name, call)
        with pytest.raises(MemoryError):
            make(out / "broken")
    make(out / "broken")
    whole, broken = (weight_files(out / name) for name in ("whole", "broken"))
    assert whole == broken != []
    rows = [lines(out / name / "metrics.jsonl") for name in ("whole", "broken")]
    without = [[{n: v for n, v in row.items() if not n.startswith(CLOCKS)} for row in one] for one in rows]
    assert without[0] == without[1]
    assert json.loads((out / "broken" / "trainer_state.json").read_text())["resumed_at"] == [resumed]
