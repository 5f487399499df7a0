"""Settings that several stages share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from bloomery.data.batches import TokenBatch, pack_documents
from bloomery.data.shards import Corpus
from bloomery.data.sources import OnBadRow
from bloomery.errors import DataError, UsageError
from bloomery.infer.capture import cuda_graph
from bloomery.infer.engine import Engine
from bloomery.models import lora as adapters
from bloomery.models.llama import Llama, ScalarModel
from bloomery.models.partial import train_only
from bloomery.objectives.language import nll
from bloomery.objectives.token import aggregate, counted_logprobs
from bloomery.recipe import Section
from bloomery.seeds import derive
from bloomery.text.tokenizer import Tokenizer
from bloomery.train import optim, precision, schedule

T = TypeVar("T")
Context = Callable[[], AbstractContextManager[object]]
"""How forward passes are run: in fp32, or under autocast."""


class Optimiser(Section):
    """What updates the weights, and its learning rate over time."""

    kind: Literal["adamw", "muon"] = "adamw"
    """`muon`: the matrices inside the layers follow their orthogonalised momentum; the others AdamW."""
    learning_rate: float = Field(1e-3, gt=0)
    """The highest learning rate of the run."""
    schedule: Literal["cosine", "wsd", "linear", "constant"] = "cosine"
    """How it changes after the warm-up; `wsd` is warmup, stable, decay."""
    warmup: int = Field(20, ge=0)
    """Steps of linear warm-up."""
    floor: float = Field(0.1, ge=0, le=1)
    """The last learning rate, as a fraction of the highest."""
    weight_decay: float = Field(0.1, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    max_norm: float = Field(1.0, gt=0)
    """Gradients with a larger global norm are scaled down to it."""

    def over(self, model: nn.Module) -> torch.optim.Optimizer:
        """An optimizer over the model's trainable parameters."""
        make = optim.muon if self.kind == "muon" else optim.adamw
        return make(
            model, lr=self.learning_rate, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay
        )

    def schedule_step(self, optimizer: torch.optim.Optimizer, step: int, total: int) -> float:
        """Set and return the learning rate of a step."""
        lr = schedule.learning_rate(
            step,
            total=total,
            peak=self.learning_rate,
            warmup=min(self.warmup, total // 2),
            kind=self.schedule,
            floor=self.floor,
        )
        optim.set_lr(optimizer, lr)
        return lr


class Compute(Section):
    """Where and how precisely a stage computes."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Of matrix products; the weights and the optimizer are fp32 in both."""
    threads: int | None = Field(None, ge=1)
    """CPU threads; all cores when not given."""
    checkpoint_every: int = Field(200, ge=0)
    """Steps between checkpoints; 0 writes one only when asked to stop."""

    def setup(self) -> tuple[Context, torch.device]:
        """Prepare this process; returns the context for forward passes, and the device."""
        return precision.setup(self.precision, self.threads), precision.device()

    def engine(self, model: Llama, *, stop_id: int, pad_id: int, graphs: bool = False) -> Engine:
        """What draws a model's answers: in the precision of the stage's own products. With `graphs`, where
        the stage computes on a GPU, decoding is recorded."""
        products = torch.bfloat16 if self.precision == "bf16" else None
        device = precision.device()
        record = cuda_graph(device) if graphs and device.type == "cuda" else None
        return Engine(model, stop_id=stop_id, pad_id=pad_id, products=products, record=record)


class Training(Compute):
    """Where and how precisely a stage trains."""

    recompute: bool = False
    """Keep only what enters each layer and compute the rest again in the backward pass: less memory, more
    time, the same gradients."""
    compile: bool = False
    """Compile the layers in the first steps (tens of seconds on a CPU, a few where the same was compiled
    before; logged as `timing/compile`): faster steps, the same results to rounding. Bits are the same only
    between runs that compile."""

    def prepare(self, model: Llama | ScalarModel) -> None:
        """Make the model's layers compute as these settings say."""
        model.model.recompute = self.recompute
        if self.compile:
            precision.compile_blocks(model.model.layers)

    def timing(self) -> dict[str, float]:
        """What a step logs of the time that went into compiling, so far."""
        return {"timing/compile": precision.compile_seconds()} if self.compile else {}


class Lora(Section):
    """Low-rank adapters: thin matrices beside the layers learn, the model itself stays as it is."""

    rank: int = Field(8, ge=1)
    """How thin: the columns of one matrix and the rows of the other."""
    alpha: float = Field(16.0, gt=0)
    """Their product counts alpha / rank."""
    rslora: bool = False
    """It counts alpha / sqrt(rank) instead, which keeps its size as the rank grows."""
    targets: tuple[str, ...] = adapters.LAYERS
    """Layers with adapters, by the end of their names."""


class Replay(Section):
    """Pretraining text that a later stage goes on reading, so that it does not unlearn what is in it."""

    coef: float = Field(1.0, ge=0)
    """Weight of the mean loss per pretraining token; 0, or no corpus, leaves it out."""
    batch: int = Field(2, ge=1)
    """Rows of text in a step."""
    length: int | None = Field(None, ge=2)
    """Tokens of a row; the model's context when not given."""

    def open(self, corpus: Path | None, tokenizer: Tokenizer, say: Callable[[str], None]) -> Corpus | None:
        """The text, if there is some and it weighs anything; says so where it weighs nothing."""
        if corpus is not None and self.coef == 0:
            say("corpus changes nothing: replay.coef is 0")
        return Corpus.open(corpus, tokenizer) if corpus is not None and self.coef > 0 else None

    def text(self, model: Llama, corpus: Corpus, seed: int, step: int) -> TokenBatch:
        """A step's text."""
        return text_batch(model, corpus, rows=self.batch, length=self.length, seed=seed, step=step)

    def backward(self, model: Llama, text: TokenBatch, context: Context) -> dict[str, float]:
        """Add the gradient of the weighted loss to what is in `.grad`; logs the loss, not yet weighted."""
        with context():
            loss = mean_loss(model, text)
        (self.coef * loss).backward()
        return {"loss/replay": loss.item()}


def read_all(
    read: Callable[..., Iterator[T]], paths: Sequence[Path], on_bad_row: OnBadRow, say: Callable[[str], None]
) -> list[T]:
    """Every record of some files, by one of the readers of `data.sources`; says how many rows it skipped."""
    skipped: list[DataError] = []
    records = [r for path in paths for r in read(path, on_bad_row=on_bad_row, skipped=skipped)]
    if skipped:
        say(f"skipped {len(skipped)} bad rows of {len(skipped) + len(records)}; the first: {skipped[0]}")
    return records


def short_enough(
    items: Sequence[T],
    tokens: Callable[[T], int],
    limit: int,
    what: str,
    say: Callable[[str], None],
    do: str = "give more, shorter ones, or a model with a longer context",
) -> list[T]:
    """The items of at most `limit` tokens; says how many are longer. Raises `UsageError` where all are."""
    fit = [one for one in items if tokens(one) <= limit]
    if not fit:
        shortest = f", the shortest of {min(map(tokens, items))} tokens" if items else ""
        raise UsageError(
            f"there are no {what} of at most {limit} tokens", got=f"{len(items)} {what}{shortest}", do=do
        )
    if len(fit) < len(items):
        say(f"left out {len(items) - len(fit)} of {len(items)} {what} longer than {limit} tokens")
    return fit


def tune(
    model: Llama | ScalarModel,
    *,
    base: Path,
    lora: Lora | None,
    train: Sequence[str] = (),
    tokens: Sequence[int] = (),
    seed: int,
) -> nn.Module:
    """Decide what of a model that was read from `base` learns: all of it, adapters (and beside them the
    vectors of some tokens), or the parameters whose names the patterns in `train` fit. Returns what a
    checkpoint must hold: the part that learns.

    Raises `UsageError` for adapters and patterns at once, and for names that there are not.
    """
    if lora is None:
        train_only(model, train)
    elif train:
        raise UsageError("lora and train are two ways to train a part of a model", do="give one of them")
    else:
        chosen = adapters.Adapter(lora.rank, lora.alpha, lora.targets, lora.rslora, base, tuple(tokens))
        adapters.attach(model, chosen, seed=seed)
    return adapters.learning(model)


def is_held_out(name: str, share: float) -> bool:
    """Decided by the name alone, so what is held out stays so when data is added or reordered."""
    return derive(0, "held out", name) % 10_000 < share * 10_000


def text_losses(model: Llama, batch: TokenBatch) -> Tensor:
    """Negative log-likelihood of every counted token of a packed batch, `[B, T]`."""
    hidden = model(batch.tokens, segments=batch.segments)
    return nll(counted_logprobs(hidden, model.logits, batch.tokens, batch.mask, entropy=False)[0])


def text_batch(
    model: Llama, corpus: Corpus, *, rows: int, length: int | None, seed: int, step: int
) -> TokenBatch:
    """Rows of pretraining text, as long as the model's context when no length is given; on the CPU."""
    length = length or model.config.max_position_embeddings
    return pack_documents(corpus, "train", batch_size=rows, length=length, seed=seed, step=step)


def mean_loss(model: Llama, batch: TokenBatch) -> Tensor:
    """Mean next-token loss of a packed batch, which is brought to where the model is."""
    batch = batch.to(next(model.parameters()).device)
    return aggregate(text_losses(model, batch), batch.mask, batch.num_tokens)


def text_loss(model: Llama, corpus: Corpus, *, rows: int, length: int | None, seed: int, step: int) -> Tensor:
    """Mean next-token loss on a batch of pretraining text, to be added to another objective."""
    return mean_loss(model, text_batch(model, corpus, rows=rows, length=length, seed=seed, step=step))
