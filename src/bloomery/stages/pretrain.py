"""Pretraining: next-token prediction on packed documents."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from bloomery.data.batches import TokenBatch, pack_documents
from bloomery.data.loader import ahead
from bloomery.data.shards import Corpus
from bloomery.evals.language import held_out_bits
from bloomery.models import hub
from bloomery.models.config import LlamaConfig
from bloomery.models.llama import Llama, init
from bloomery.objectives.language import bits_per_byte
from bloomery.objectives.token import aggregate
from bloomery.recipe import InputPath, Section
from bloomery.stages.common import Optimiser, Training, text_losses
from bloomery.text.tokenizer import Tokenizer
from bloomery.train import step as update
from bloomery.train.run import Run


class Shape(Section):
    """The decoder's size."""

    width: int = Field(192, ge=8)
    depth: int = Field(4, ge=1)
    heads: int = Field(6, ge=1)
    kv_heads: int | None = Field(None, ge=1)
    """Key-value heads (grouped-query attention); as many as heads when not given."""
    context: int = Field(256, ge=16)
    tied: bool = True
    """Share the embedding with the output layer."""


class Pretrain(Section):
    """Train a base model from nothing on a tokenised corpus."""

    corpus: InputPath
    tokenizer: InputPath
    seed: int = 0
    model: Shape = Shape()
    tokens: int = Field(2_000_000, ge=1)
    """Tokens to train on; passes over the corpus follow from it."""
    batch: int = Field(12, ge=1)
    """Rows of a step, over all its micro-batches."""
    micro_batches: int = Field(1, ge=1)
    """The step is computed in this many parts: same loss, less memory."""
    optimiser: Optimiser = Optimiser(kind="muon", learning_rate=8e-3, warmup=20, floor=0.0, weight_decay=0.05)
    compute: Training = Training(precision="bf16")
    validate_every: int = Field(100, ge=1)
    """Steps between measurements of held-out bits per byte."""
    validation_batches: int = Field(4, ge=1)


def run(recipe: Pretrain, out: Path) -> None:
    autocast, device = recipe.compute.setup()
    with Run(out, stage="pretrain", recipe=recipe, checkpoint_every=recipe.compute.checkpoint_every) as run:
        tokenizer = Tokenizer.load(recipe.tokenizer)
        corpus = Corpus.open(recipe.corpus, tokenizer)
        shape = recipe.model
        model = Llama(
            LlamaConfig.shape(
                width=shape.width,
                depth=shape.depth,
                heads=shape.heads,
                kv_heads=shape.kv_heads,
                vocab=tokenizer.vocab_size,
                context=shape.context,
                tied=shape.tied,
            )
        )
        init(model, recipe.seed)
        model.to(device)
        recipe.compute.prepare(model)
        optimizer = recipe.optimiser.over(model)
        run.track(model=model, optimizer=optimizer)
        total = -(-recipe.tokens // (recipe.batch * shape.context))

        def make(step: int) -> TokenBatch:
            return pack_documents(
                corpus, "train", batch_size=recipe.batch, length=shape.context, seed=recipe.seed, step=step
            )

        batches = ahead(make, total)
        for step in run.steps(total):
            lr = recipe.optimiser.schedule_step(optimizer, step, total)
            batch = batches(step)
            counted, loss = int(batch.mask.sum()), 0.0
            for part in batch.to(device).split(recipe.micro_batches):
                with autocast():
                    piece = aggregate(text_losses(model, part), part.mask, counted)
                piece.backward()
                loss += piece.item()
            norm = update.apply(
                optimizer,
                recipe.optimiser.max_norm,
                guard=run.guard,
                loss=loss,
                batch=step,
            )
            metrics = {
                "train/loss": loss,
                "train/bpb": bits_per_byte(loss * counted, batch.num_bytes),
                "lr": lr,
                "grad_norm": norm,
                "num_tokens": (step + 1) * recipe.batch * shape.context,
                **recipe.compute.timing(),
            }
            if (step + 1) % recipe.validate_every == 0 or step + 1 == total:
                metrics |= validate(model, corpus, recipe)
            run.log(step, metrics)
        hub.save(model, out, tokenizer_dir=recipe.tokenizer)
        run.finish()


def validate(model: Llama, corpus: Corpus, recipe: Pretrain) -> dict[str, float]:
    """Held-out bits per byte over all sources and of each, from the first batches of every source."""
    found = held_out_bits(
        model,
        corpus,
        length=recipe.model.context,
        batch_size=recipe.batch,
        max_batches=recipe.validation_batches,
    )
    return {
        "val/bpb" if name == "all" else f"val/bpb/{name}": bits.mean
        for name, bits in found.items()
        if bits.mean is not None
    }
