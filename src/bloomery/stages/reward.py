"""The reward model: started from the SFT model, trained on all pairs of each ranking, then frozen.

A *slate* is one prompt with the answers that were ranked. However many annotators ranked it and however
many pairs each answer is in, every answer is forwarded once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from bloomery.data.loader import batch_indices
from bloomery.data.shards import Corpus
from bloomery.data.sources import OnBadRow, read_conversations, read_rankings
from bloomery.errors import UsageError
from bloomery.evals.reward import Scored, length_preference, report_card
from bloomery.models import hub
from bloomery.models.llama import ScalarModel
from bloomery.objectives.reward import kwise_loss, pair_accuracy
from bloomery.recipe import InputPath, Section
from bloomery.rewards.model import score_sequences, score_slates
from bloomery.seeds import derive
from bloomery.stages.common import Compute, Optimiser, Replay, is_held_out, read_all
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.train import step as update
from bloomery.train.run import Run
from bloomery.types import Candidate, Message, Policy, Ranking


class RewardRecipe(Section):
    """Train a reward model on rankings: every pair of a ranking, each answer forwarded once."""

    model: InputPath
    """The SFT model it starts from."""
    rankings: tuple[InputPath, ...]
    """Canonical rankings or preference pairs; all rounds so far."""
    demonstrations: InputPath | None = None
    """Conversations whose mean score becomes 0."""
    corpus: InputPath | None = None
    """Pretraining text to go on reading: what the trunk knows is what lets the score tell true from false
    on facts nobody ranked (text-generation regularisation, Yang et al. 2024, arXiv 2406.10216)."""
    replay: Replay = Replay(coef=0.0)
    start: InputPath | None = None
    """Continue from this reward model (the last round's) instead of the SFT model."""
    gold: tuple[InputPath, ...] = ()
    """The oracle's verdicts, used for the report card only, never for training."""
    on_bad_row: OnBadRow = "error"
    """Stop at a row that cannot be read, or skip and count it."""
    seed: int = 0
    epochs: float = Field(3.0, gt=0)
    batch: int = Field(8, ge=1)
    """Slates of a step."""
    held_out: float = Field(0.1, gt=0, lt=1)
    """Share of the prompts that is never trained on."""
    use_corrections: bool = True
    """Let a written correction stand above every ranked answer."""
    center: float = Field(0.0, ge=0)
    """Weight of the squared score: keeps scores from drifting."""
    evaluate_every: int = Field(100, ge=1)
    optimiser: Optimiser = Optimiser(learning_rate=4e-4, weight_decay=0.01)
    compute: Compute = Compute(precision="bf16")


@dataclass(frozen=True, slots=True)
class Slate:
    """One prompt's answers as token sequences, and what each annotator said of them.

    `ranks[a][k]` is annotator `a`'s rank of answer `k`, 0 where that annotator did not see it
    (another one's correction).
    """

    id: str
    texts: tuple[str, ...]
    sequences: tuple[tuple[int, ...], ...]
    ranks: tuple[tuple[int, ...], ...]


def run(recipe: RewardRecipe, out: Path) -> None:
    autocast, device = recipe.compute.setup()
    with Run(out, stage="reward", recipe=recipe, checkpoint_every=recipe.compute.checkpoint_every) as run:
        chat = Chat(Tokenizer.load(recipe.model))
        reader = hub.load(recipe.model)
        if recipe.start is not None:
            model = hub.load(recipe.start, "scalar").to(device)
        else:
            model = ScalarModel.from_causal(reader, seed=recipe.seed).to(device)
        # The language model that replays text reads with the trunk that is being trained.
        reader.to(device).model = model.model
        corpus = Corpus.open(recipe.corpus) if recipe.corpus and recipe.replay.coef > 0 else None
        rankings = read_all(read_rankings, recipe.rankings, recipe.on_bad_row, run.line)
        slates = make_slates(rankings, chat, recipe.use_corrections)
        limit = model.config.max_position_embeddings
        training, held_out = split(slates, limit, recipe.held_out, run.line)
        optimizer = recipe.optimiser.adamw(model)
        run.track(model=model, optimizer=optimizer)
        total = max(1, round(recipe.epochs * len(training) / recipe.batch))
        for step in run.steps(total):
            lr = recipe.optimiser.schedule_step(optimizer, step, total)
            rows = batch_indices(len(training), recipe.batch, seed=recipe.seed, step=step)
            chosen = [training[i] for i in rows]
            with autocast():
                scores, ranks, mask = forward(model, chosen, chat.tokenizer.pad_id)
                replay = recipe.replay.loss(reader, corpus, recipe.seed, step) if corpus else None
            objective, metrics = loss_of(recipe, scores, ranks, mask, replay)
            objective.backward()
            metrics["grad_norm"] = update.apply(
                optimizer,
                model.parameters(),
                recipe.optimiser.max_norm,
                guard=run.guard,
                loss=objective,
                batch=[s.id for s in chosen],
            )
            metrics |= {"learning_rate": lr, "epoch": (step + 1) * recipe.batch / len(training)}
            if held_out and ((step + 1) % recipe.evaluate_every == 0 or step + 1 == total):
                metrics["eval_accuracy"] = held_out_accuracy(model, held_out, chat.tokenizer.pad_id)
            run.log(step, metrics)
        if recipe.demonstrations is not None:
            shift_to_zero(model, recipe.demonstrations, chat)
        card = report_card(
            [
                Scored(s.id, s.texts, s.ranks, tuple(score(model, s.sequences, chat.tokenizer.pad_id)))
                for s in held_out
            ],
            length_preference([s.texts for s in training], [s.ranks for s in training]),
            read_gold(recipe.gold),
        )
        (out / "evaluation.json").write_text(json.dumps(card, indent=1) + "\n")
        hub.save(model, out, tokenizer_dir=recipe.model)
        run.finish(
            data=[{"source": str(p)} for p in recipe.rankings],
            people=count_people(rankings),
            teachers=authors(c for r in rankings for c in r.completions),
        )


def loss_of(
    recipe: RewardRecipe, scores: Tensor, ranks: Tensor, mask: Tensor, replay: Tensor | None
) -> tuple[Tensor, dict[str, float]]:
    """What a step minimises (ranking loss, centring, replayed text), and what is logged of it."""
    losses, given = kwise_loss(scores, ranks, mask), scores[mask]
    loss = losses.sum() / len(losses)
    objective = loss + recipe.center * given.square().mean()
    right, pairs = pair_accuracy(scores.detach(), ranks, mask)
    metrics = {
        "loss": loss.item(),
        "accuracy": float(right.sum() / pairs.sum().clamp(min=1)),
        "min_reward": float(given.detach().min()),
        "mean_reward": float(given.detach().mean()),
        "max_reward": float(given.detach().max()),
    }
    if replay is not None:
        objective = objective + recipe.replay.coef * replay
        metrics["loss/replay"] = replay.item()
    return objective, metrics


def split(
    slates: Sequence[Slate], limit: int, held_out: float, say: Callable[[str], None]
) -> tuple[list[Slate], list[Slate]]:
    """Slates to train on and slates that are held out, without those longer than `limit` tokens."""
    fit = [s for s in slates if max(map(len, s.sequences)) <= limit]
    if len(fit) < len(slates):
        say(f"left out {len(slates) - len(fit)} of {len(slates)} slates longer than the context")
    training = [s for s in fit if not is_held_out(s.id, held_out)]
    if not training:
        raise UsageError(
            "there is no ranking to train on",
            got=f"{len(slates)} prompts with submitted rankings, {len(fit)} within {limit} tokens",
            do="give more rankings, or a smaller held_out",
        )
    return training, [s for s in fit if is_held_out(s.id, held_out)]


def make_slates(rankings: Iterable[Ranking], chat: Chat, corrections: bool) -> list[Slate]:
    """Group submitted rankings by prompt and answers, in the order first met."""
    groups: dict[tuple[object, ...], list[Ranking]] = {}
    for r in rankings:
        if r.status == "submitted" and r.ranking is not None:
            groups.setdefault((r.prompt, tuple(c.messages for c in r.completions)), []).append(r)
    return [make_slate(group, chat, corrections) for group in groups.values()]


def make_slate(group: Sequence[Ranking], chat: Chat, corrections: bool) -> Slate:
    """One prompt's rankings as a slate; each correction becomes an answer that only its author ranked."""
    first = group[0]
    answers = [c.messages for c in first.completions]
    rows: list[dict[int, int]] = []
    for r in group:
        row = {k: rank + 1 for k, rank in enumerate(r.ranking or ())}
        if corrections and r.correction:
            row[len(answers)] = 1
            answers.append((Message(role="assistant", content=r.correction),))
        rows.append(row)
    sequences = tuple(tuple(chat.render((*first.prompt, *messages)).tokens) for messages in answers)
    return Slate(
        id=prompt_id(first.prompt),
        texts=tuple(messages[-1].content for messages in answers),
        sequences=sequences,
        ranks=tuple(tuple(row.get(k, 0) for k in range(len(answers))) for row in rows),
    )


def prompt_id(prompt: Sequence[Message]) -> str:
    """The same prompt has the same id in every round, so what is held out stays held out."""
    return f"{derive(0, *(f'{m.role}:{m.content}' for m in prompt)):016x}"


def forward(model: ScalarModel, slates: Sequence[Slate], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Score every answer once, then lay the scores out once per annotator.

    Returns:
        scores, ranks and mask, each `[G, K]` for G rankings (a slate has as many as it has annotators).
    """
    scores = score_slates(model, [s.sequences for s in slates], pad_id)
    widest = max(len(s.sequences) for s in slates)
    index, ranks, start = list[list[int]](), list[list[int]](), 0
    for s in slates:
        gap = widest - len(s.sequences)
        for row in s.ranks:
            index.append([*range(start, start + len(s.sequences)), *[0] * gap])
            ranks.append([*row, *[0] * gap])
        start += len(s.sequences)
    rank = torch.tensor(ranks, device=scores.device)
    return scores[torch.tensor(index, device=scores.device)], rank, rank > 0


@torch.no_grad()
def score(model: ScalarModel, sequences: Sequence[Sequence[int]], pad_id: int) -> list[float]:
    found: list[float] = score_slates(model, [sequences], pad_id).tolist()
    return found


@torch.no_grad()
def held_out_accuracy(model: ScalarModel, slates: Sequence[Slate], pad_id: int) -> float:
    """Share of the held-out rankings' untied pairs that the model orders as the annotator did."""
    right, pairs = pair_accuracy(*forward(model, slates, pad_id))
    return float(right.sum() / pairs.sum().clamp(min=1))


def shift_to_zero(model: ScalarModel, demonstrations: Path, chat: Chat) -> None:
    """Shift the output so that demonstrations score 0 on average (Stiennon et al. 2020, section 3.4)."""
    conversations = read_all(read_conversations, [demonstrations], "skip", lambda text: None)
    sequences = [chat.render(c.messages).tokens for c in conversations]
    fit = [q for q in sequences if len(q) <= model.config.max_position_embeddings]
    with torch.no_grad():
        model.shift -= score_sequences(model, fit, chat.tokenizer.pad_id).mean()


def read_gold(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """The oracle's grades by prompt; the same prompt in several rounds has its answers put together."""
    gold: dict[str, dict[str, Any]] = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line:
                entry = json.loads(line)
                known = gold.setdefault(entry["prompt"], {"kind": entry["kind"], "grades": {}})
                known["grades"] |= entry["grades"]
    return gold


def authors(candidates: Iterable[Candidate]) -> list[Policy]:
    """Who wrote the answers, each once."""
    found = {(c.policy.id, c.policy.digest): c.policy for c in candidates}
    return [found[key] for key in sorted(found, key=str)]


def count_people(rankings: Iterable[Ranking]) -> list[dict[str, object]]:
    counts: dict[tuple[str, str], int] = {}
    for r in rankings:
        counts[r.annotator.id, r.annotator.kind] = counts.get((r.annotator.id, r.annotator.kind), 0) + 1
    return [{"id": who, "kind": kind, "rankings": n} for (who, kind), n in sorted(counts.items())]
