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
from bloomery.errors import DataError
from bloomery.models.llama import Llama
from bloomery.objectives.language import nll
from bloomery.objectives.token import aggregate, counted_logprobs
from bloomery.recipe import Section
from bloomery.seeds import derive
from bloomery.train import optim, precision, schedule

T = TypeVar("T")


class Optimiser(Section):
    """AdamW and its learning rate over time."""

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

    def adamw(self, model: nn.Module) -> torch.optim.AdamW:
        """An optimizer over the model's trainable parameters."""
        return optim.adamw(
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

    def setup(self) -> tuple[Callable[[], AbstractContextManager[object]], torch.device]:
        """Prepare this process; returns the context for forward passes, and the device."""
        return precision.setup(self.precision, self.threads), precision.device()


class Replay(Section):
    """Pretraining text that a later stage goes on reading, so that it does not unlearn what is in it."""

    coef: float = Field(1.0, ge=0)
    """Weight of the mean loss per pretraining token; 0, or no corpus, leaves it out."""
    batch: int = Field(2, ge=1)
    """Rows of text in a step."""
    length: int | None = Field(None, ge=2)
    """Tokens of a row; the model's context when not given."""

    def loss(self, model: Llama, corpus: Corpus, seed: int, step: int) -> Tensor:
        """The mean loss of a step's text, not yet weighted."""
        return text_loss(model, corpus, rows=self.batch, length=self.length, seed=seed, step=step)


def read_all(
    read: Callable[..., Iterator[T]], paths: Sequence[Path], on_bad_row: OnBadRow, say: Callable[[str], None]
) -> list[T]:
    """Every record of some files, by one of the readers of `data.sources`; says how many rows it skipped."""
    skipped: list[DataError] = []
    records = [r for path in paths for r in read(path, on_bad_row=on_bad_row, skipped=skipped)]
    if skipped:
        say(f"skipped {len(skipped)} bad rows of {len(skipped) + len(records)}; the first: {skipped[0]}")
    return records


def is_held_out(name: str, share: float) -> bool:
    """Decided by the name alone, so what is held out stays so when data is added or reordered."""
    return derive(0, "held out", name) % 10_000 < share * 10_000


def text_losses(model: Llama, batch: TokenBatch) -> Tensor:
    """Negative log-likelihood of every counted token of a packed batch, `[B, T]`."""
    hidden = model(batch.tokens, segments=batch.segments)
    return nll(counted_logprobs(hidden, model.logits, batch.tokens, batch.mask)[0])


def text_loss(model: Llama, corpus: Corpus, *, rows: int, length: int | None, seed: int, step: int) -> Tensor:
    """Mean next-token loss on a batch of pretraining text, to be added to another objective."""
    length = length or model.config.max_position_embeddings
    batch = pack_documents(corpus, "train", batch_size=rows, length=length, seed=seed, step=step)
    batch = batch.to(next(model.parameters()).device)
    return aggregate(text_losses(model, batch), batch.mask, batch.num_tokens)
