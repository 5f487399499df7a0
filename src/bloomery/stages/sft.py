"""Supervised fine-tuning: imitate demonstrations, on the assistant's tokens only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from pydantic import Field
from torch import nn

from bloomery.data.batches import TokenBatch, pack
from bloomery.data.loader import ahead, batch_indices
from bloomery.data.shards import Corpus
from bloomery.data.sources import OnBadRow, read_conversations
from bloomery.models import hub
from bloomery.models.llama import Llama
from bloomery.objectives.language import nll
from bloomery.objectives.token import aggregate, counted_logprobs, predicting
from bloomery.recipe import InputPath, Section
from bloomery.stages.common import (
    Context,
    Lora,
    Optimiser,
    Replay,
    Training,
    is_held_out,
    read_all,
    short_enough,
    tune,
)
from bloomery.stages.people import writers
from bloomery.text.chat import Chat, Rendered, require_trained
from bloomery.text.tokenizer import Tokenizer
from bloomery.train import step as update
from bloomery.train.run import Run
from bloomery.train.together import together
from bloomery.types import Conversation


class ChatLora(Lora):
    """Adapters for a model that is to learn a chat."""

    new_tokens: bool = True
    """Rows of the embedding learn too: of the chat's own tokens, and with `corpus` of those that it does not
    hold, as a base that learned from it has never read them."""


class Sft(Section):
    """Fine-tune a model on demonstrations; only what the assistant says is trained on."""

    model: InputPath
    demonstrations: tuple[InputPath, ...]
    on_bad_row: OnBadRow = "error"
    """Stop at a row that cannot be read, or skip and count it."""
    seed: int = 0
    lora: ChatLora | None = None
    """Learn by adapters beside the frozen model; the result is a directory of adapters."""
    train: tuple[str, ...] = ()
    """Names of the parameters to train, `*` for anything; all when not given."""
    corpus: InputPath | None = None
    """Pretraining text to go on reading, so that learning to answer does not unlearn the facts."""
    replay: Replay = Replay()
    epochs: float = Field(4.0, gt=0)
    batch: int = Field(16, ge=1)
    """Conversations of a step, over all its micro-batches."""
    micro_batches: int = Field(1, ge=1)
    """The step is computed in this many parts: same loss, less memory."""
    batch_tokens: int = Field(8192, ge=1)
    """Padded positions that are computed at a time: a part with more is cut further, so memory is bounded
    whatever the lengths."""
    held_out: float = Field(0.05, ge=0, lt=1)
    """Share of the conversations kept for `eval_loss`."""
    evaluate_every: int = Field(50, ge=1)
    optimiser: Optimiser = Optimiser(learning_rate=1e-3, weight_decay=0.0)
    compute: Training = Training(precision="bf16")


def run(recipe: Sft, out: Path) -> None:
    autocast, device = recipe.compute.setup()
    with Run(out, stage="sft", recipe=recipe, checkpoint_every=recipe.compute.checkpoint_every) as run:
        chat = Chat(Tokenizer.load(recipe.model))
        model = hub.load(recipe.model).to(device)
        recipe.compute.prepare(model)
        shown = [
            (path, read_all(read_conversations, [path], recipe.on_bad_row, run.line))
            for path in recipe.demonstrations
        ]
        conversations = [c for _, several in shown for c in several]
        fit = rendered(conversations, chat, model.config.max_position_embeddings, run.line)
        held_out = [e for name, e in fit if is_held_out(name, recipe.held_out)]
        training = [(name, e) for name, e in fit if not is_held_out(name, recipe.held_out)]
        corpus = recipe.replay.open(recipe.corpus, chat.tokenizer, run.line)
        learning = part_of(model, recipe, chat, [e for _, e in training])
        optimizer = recipe.optimiser.over(model)
        run.track(model=learning, optimizer=optimizer)
        total = max(1, round(recipe.epochs * len(training) / recipe.batch))

        def make(step: int) -> tuple[list[str], list[TokenBatch], TokenBatch | None]:
            rows = batch_indices(len(training), recipe.batch, seed=recipe.seed, step=step)
            names, chosen = zip(*(training[i] for i in rows), strict=True)
            size = -(-len(chosen) // recipe.micro_batches)
            parts = (chosen[start : start + size] for start in range(0, len(chosen), size))
            text = recipe.replay.text(model, corpus, recipe.seed, step) if corpus else None
            packed = (pack(part, chat.tokenizer.pad_id) for part in parts)
            return list(names), [cut for part in packed for cut in part.within(recipe.batch_tokens)], text

        batches = ahead(make, total)
        for step in run.steps(total):
            lr = recipe.optimiser.schedule_step(optimizer, step, total)
            names, parts, text = batches(step)
            imitate = partial(backward, model, [part.to(device) for part in parts], autocast)
            replay: Callable[[], dict[str, float]] = dict
            if text is not None:
                replay = partial(recipe.replay.backward, model, text, autocast)
            # Two gradients add up to the same bits in either order; those of several parts do not.
            beside = text is not None and len(parts) == 1
            metrics, replayed = together(imitate, replay, device) if beside else (imitate(), replay())
            metrics |= replayed
            objective = metrics["loss"] + recipe.replay.coef * replayed.get("loss/replay", 0.0)
            metrics["grad_norm"] = update.apply(
                optimizer,
                recipe.optimiser.max_norm,
                guard=run.guard,
                loss=objective,
                batch=names,
            )
            metrics |= {"learning_rate": lr, "epoch": (step + 1) * recipe.batch / len(training)}
            metrics |= recipe.compute.timing()
            if held_out and ((step + 1) % recipe.evaluate_every == 0 or step + 1 == total):
                metrics["eval_loss"] = held_out_loss(
                    model, held_out, recipe.batch, chat.tokenizer.pad_id, device
                )
            run.log(step, metrics)
        hub.save(model, out, tokenizer_dir=recipe.model)
        run.finish(
            data=[{"source": str(path), "conversations": len(several)} for path, several in shown],
            people=writers(shown),
        )


def rendered(
    conversations: Sequence[Conversation], chat: Chat, limit: int, say: Callable[[str], None]
) -> list[tuple[str, Rendered]]:
    """Conversations as tokens with what is trained on, by id, without those longer than `limit` tokens."""
    found = [(c.id, require_trained(chat.render(c.messages), c.id)) for c in conversations]
    return short_enough(found, lambda one: len(one[1].tokens), limit, "conversations", say)


def part_of(model: Llama, recipe: Sft, chat: Chat, examples: Sequence[Rendered]) -> nn.Module:
    """What of the model learns from some examples."""
    lora, seed, tokens = recipe.lora, recipe.seed, list[int]()
    if lora is not None and lora.new_tokens:
        told = {token for e in examples for token in e.tokens}
        new = told & chat.tokenizer.control_ids
        if recipe.corpus is not None:
            read = Corpus.open(recipe.corpus, chat.tokenizer).counts()
            new |= {token for token in told if not read[token]}
        tokens = sorted(new)
    return tune(model, base=recipe.model, lora=lora, train=recipe.train, tokens=tokens, seed=seed)


def backward(model: Llama, parts: Sequence[TokenBatch], autocast: Context) -> dict[str, float]:
    """Leave the gradient of the mean loss per counted token of all the parts in `.grad`; its metrics."""
    counted = sum(int(part.mask.sum()) for part in parts)
    metrics = dict.fromkeys(("loss", "entropy", "mean_token_accuracy"), 0.0)
    for part in parts:
        with autocast():
            logprobs, entropy = answer_logprobs(model, part)
            loss = aggregate(nll(logprobs), part.mask, counted)
        loss.backward()
        metrics["loss"] += loss.item()
        metrics["entropy"] += float(aggregate(entropy, part.mask, counted))
        metrics["mean_token_accuracy"] += float(aggregate(logprobs.detach().exp(), part.mask, counted))
    return metrics | {"num_tokens": counted}


def answer_logprobs(model: Llama, batch: TokenBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies of the counted tokens of packed conversations, both `[B, T]`."""
    states = model(batch.tokens, segments=batch.segments, at=predicting(batch.mask))
    return counted_logprobs(states, model.logits, batch.tokens, batch.mask)


@torch.no_grad()
def held_out_loss(
    model: Llama, examples: Sequence[Rendered], batch: int, pad_id: int, device: torch.device
) -> float:
    nats, counted = 0.0, 0
    for start in range(0, len(examples), batch):
        part = pack(examples[start : start + batch], pad_id).to(device)
        nats -= float(answer_logprobs(model, part)[0].sum())
        counted += int(part.mask.sum())
    return nats / max(counted, 1)
