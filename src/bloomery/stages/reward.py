"""The reward model: started from the SFT model, trained on what annotators said of answers, then frozen.

By default on all pairs of each ranking; other losses, ratings, and ways of putting annotators together are
named in the recipe. However it was trained, it leaves as a model that gives an answer one number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from bloomery.data.batches import TokenBatch
from bloomery.data.loader import ahead, batch_indices
from bloomery.data.sources import OnBadRow, read_rankings
from bloomery.errors import UsageError
from bloomery.evals.comparisons import Scored
from bloomery.evals.reward import read_gold, report_card
from bloomery.models import hub
from bloomery.models.llama import ScalarModel
from bloomery.models.slates import Group
from bloomery.objectives.reward import (
    Wanted,
    by_head,
    pair_accuracy,
    pair_margin,
    ranking_losses,
    rating_losses,
    squared_sums,
)
from bloomery.recipe import InputPath, Section
from bloomery.rewards.heads import fold, widen
from bloomery.rewards.model import score_batches, score_groups, score_slates
from bloomery.stages.common import Context, Lora, Optimiser, Replay, Training, read_all, tune
from bloomery.stages.lessons import Combine, lessons
from bloomery.stages.people import authors, count_people
from bloomery.stages.slates import HEADS, Slate, Told, make_slates, split, told
from bloomery.stages.zero import demonstrated, shift_to_zero
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.train import step as update
from bloomery.train.run import Run

# Scores [G, K] or [G, K, H], ranks and mask [G, K], and what else was told, to a loss for each ranking [G].
Loss = Callable[[Tensor, Tensor, Tensor, Told], Tensor]


class Weights(Section):
    """How much each of the three H is worth; only the proportions matter."""

    helpful: float = Field(1.0, ge=0)
    honest: float = Field(1.0, ge=0)
    harmless: float = Field(1.0, ge=0)

    def shares(self) -> tuple[float, ...]:
        """In the order of `HEADS`, with sum 1. Raises `UsageError` when all are 0."""
        found = [float(getattr(self, h)) for h in HEADS]
        if sum(found) == 0:
            raise UsageError("all weights of the three H are 0", do="give one of them some weight")
        return tuple(w / sum(found) for w in found)


class RewardRecipe(Section):
    """Train a reward model on rankings or ratings: every pair of a ranking, each answer forwarded once."""

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
    lora: Lora | None = None
    """Learn by adapters beside the frozen trunk, and a head; the result is a directory of adapters."""
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
    batch_tokens: int = Field(8192, ge=1)
    """Padded positions that are learnt from at a time: a step is computed in as many parts as that takes, the
    loss is the same, and only one part's activations are in memory."""
    held_out: float = Field(0.1, gt=0, lt=1)
    """Share of the prompts that is never trained on."""
    use_corrections: bool = True
    """Let a written correction stand above every ranked answer."""
    loss: str = "pairs"
    """A ranking loss (`pairs`, `plackett-luce`) or a rating loss (`squared`, `huber`)."""
    loss_settings: dict[str, Any] = Field(default_factory=dict)
    """The loss's own settings, e.g. `label_smoothing` or `margin` of `pairs`."""
    head: Literal["score", "3h"] = "score"
    """`3h` learns helpful, honest and harmless apart from the ratings, and weighs them at the end."""
    weights: Weights = Weights()
    """Of the three H: in the sum of the heads, in the rating that one score predicts, and in margins."""
    combine: Combine = "raw"
    """Several annotators of one slate: each ranking for itself, all together as Bradley-Terry strengths, or
    each weighed by how well its annotator agrees with the others."""
    center: float = Field(0.0, ge=0)
    """Weight of the squared score: keeps scores from drifting."""
    center_on: Literal["answers", "pairs"] = "answers"
    """What is squared: each answer's score, or the sum of each pair's, which leaves gaps alone."""
    evaluate_every: int = Field(100, ge=1)
    optimiser: Optimiser = Optimiser(kind="muon", learning_rate=1e-3, weight_decay=0.01)
    compute: Training = Training(precision="bf16")


def run(recipe: RewardRecipe, out: Path) -> None:
    autocast, device = recipe.compute.setup()
    loss, shares = loss_named(recipe), torch.tensor(recipe.weights.shares(), device=device)
    with Run(out, stage="reward", recipe=recipe, checkpoint_every=recipe.compute.checkpoint_every) as run:
        chat = Chat(Tokenizer.load(recipe.model))
        reader = hub.load(recipe.model)
        if recipe.start is not None:
            model = hub.load(recipe.start, "scalar").to(device)
        else:
            model = ScalarModel.from_causal(reader, seed=recipe.seed).to(device)
        # The language model that replays text reads with the trunk that is being trained.
        reader.to(device).model = model.model
        corpus = recipe.replay.open(recipe.corpus, chat.tokenizer, run.line)
        rankings = read_all(read_rankings, recipe.rankings, recipe.on_bad_row, run.line)
        gold = read_gold(recipe.gold)
        slates = make_slates(rankings, chat, recipe.use_corrections)
        limit = model.config.max_position_embeddings
        training, held_out = split(slates, limit, recipe.held_out, run.line)
        shown = demonstrated(recipe.demonstrations, chat, limit, recipe.on_bad_row, run.line)
        taught, people = lessons(training, rankings, recipe.combine, num_rated(recipe), run.line)
        for line in idle(recipe, taught):
            run.line(line)
        begin_at_the_mean(recipe, model, taught, shares)
        learning = tune(model, base=recipe.start or recipe.model, lora=recipe.lora, seed=recipe.seed)
        recipe.compute.prepare(model)
        optimizer = recipe.optimiser.over(model)
        run.track(model=learning, optimizer=optimizer)
        total = max(1, round(recipe.epochs * len(taught) / recipe.batch))

        def make(step: int) -> tuple[list[Slate], list[Group], TokenBatch | None]:
            rows = batch_indices(len(taught), recipe.batch, seed=recipe.seed, step=step)
            chosen = [taught[i] for i in rows]
            text = recipe.replay.text(reader, corpus, recipe.seed, step) if corpus else None
            return chosen, laid_out(recipe, chosen, limit, chat.tokenizer.pad_id), text

        batches = ahead(make, total)
        for step in run.steps(total):
            lr = recipe.optimiser.schedule_step(optimizer, step, total)
            chosen, groups, text = batches(step)
            objective, metrics = backward(recipe, model, loss, chosen, groups, shares, autocast)
            if text is not None:
                metrics |= recipe.replay.backward(reader, text, autocast)
                objective += recipe.replay.coef * metrics["loss/replay"]
            metrics["grad_norm"] = update.apply(
                optimizer,
                recipe.optimiser.max_norm,
                guard=run.guard,
                loss=objective,
                batch=[s.id for s in chosen],
            )
            metrics |= {"learning_rate": lr, "epoch": (step + 1) * recipe.batch / len(taught)}
            metrics |= recipe.compute.timing()
            if held_out and ((step + 1) % recipe.evaluate_every == 0 or step + 1 == total):
                metrics |= held_out_accuracy(model, held_out, chat.tokenizer.pad_id, shares)
            run.log(step, metrics)
        if recipe.head == "3h":
            fold(model, shares)
        if shown:
            shift_to_zero(model, shown, chat.tokenizer.pad_id)
        found = scored(model, held_out, chat.tokenizer.pad_id)
        seen = [s.judged([0.0] * len(s.texts)) for s in training]
        card = report_card(found, seen, gold)
        if people:
            card["annotators"] = {who: asdict(one) for who, one in people.items()}
        (out / "evaluation.json").write_text(json.dumps(card, indent=1) + "\n")
        hub.save(model, out, tokenizer_dir=recipe.model)
        run.finish(
            data=[{"source": str(p)} for p in recipe.rankings],
            people=count_people(rankings),
            teachers=authors(c for r in rankings for c in r.completions),
        )


def loss_named(recipe: RewardRecipe) -> Loss:
    """The recipe's loss as a function of scores, ranks, mask and what else was told, one value a ranking.

    Raises `UsageError` for a name or a setting that there is not.
    """
    shares = torch.tensor(recipe.weights.shares())
    if recipe.loss in rating_losses:
        fitted = rating_losses.bind(recipe.loss, recipe.loss_settings)

        def of_ratings(scores: Tensor, ranks: Tensor, mask: Tensor, said: Told) -> Tensor:
            if scores.ndim == 3:
                return fitted(scores, said.ratings, said.rated)
            return fitted(scores[..., None], (said.ratings @ shares.to(scores))[..., None], said.rated)

        return of_ratings
    if recipe.loss not in ranking_losses:
        known = ", ".join([*ranking_losses, *rating_losses])
        raise UsageError(f"no reward loss is called '{recipe.loss}'", expected=known)
    ranked = ranking_losses.bind(recipe.loss, recipe.loss_settings)

    def of_rankings(scores: Tensor, ranks: Tensor, mask: Tensor, said: Told) -> Tensor:
        if scores.ndim == 3:
            return by_head(ranked, scores, said.ratings, said.rated)
        return ranked(scores, Wanted(ranks, mask, said.strengths, said.worth(shares)))

    return of_rankings


def idle(recipe: RewardRecipe, taught: Sequence[Slate]) -> Iterator[str]:
    """What is set in the recipe and changes nothing in this run."""
    rated = recipe.head == "3h" or recipe.loss in rating_losses or recipe.loss_settings.get("margin")
    if recipe.weights != Weights() and not rated:
        yield "`weights` change nothing: rankings are learnt from, without margins"
    if recipe.center_on == "pairs" and recipe.center == 0:
        yield "`center_on` changes nothing: `center` is 0"
    if recipe.loss_settings.get("margin") and not any(s.measured for s in taught):
        yield "`margin` changes nothing: no answers are rated, and no ranking says by how much"


def overall(scores: Tensor, shares: Tensor) -> Tensor:
    """One number for each answer: the score `[G, K]` itself, or the weighted sum of heads `[G, K, H]`."""
    return scores @ shares.to(scores) if scores.ndim == 3 else scores


def num_rated(recipe: RewardRecipe) -> int:
    """How many rated answers a row needs, for the loss to learn anything from it."""
    return 1 if recipe.loss in rating_losses else 2 * (recipe.head == "3h")


def begin_at_the_mean(
    recipe: RewardRecipe, model: ScalarModel, taught: Sequence[Slate], shares: Tensor
) -> None:
    """Give the model the recipe's heads; what is to predict ratings starts at their mean."""
    ratings = [r for s in taught for row in s.ratings for r in row if r[0] == r[0]]
    means = torch.tensor(ratings).mean(0) if recipe.loss in rating_losses else torch.zeros(len(HEADS))
    if recipe.head == "3h":
        widen(model, means.tolist(), recipe.seed)
    elif recipe.loss in rating_losses:
        model.shift = (shares.cpu() @ means).to(model.shift)


def laid_out(recipe: RewardRecipe, slates: Sequence[Slate], context: int, pad_id: int) -> list[Group]:
    """A step's slates in groups of at most `batch_tokens` positions."""
    sequences = [s.sequences for s in slates]
    return score_groups(sequences, context=context, pad_id=pad_id, batch_tokens=recipe.batch_tokens)


def backward(
    recipe: RewardRecipe,
    model: ScalarModel,
    loss: Loss,
    slates: Sequence[Slate],
    groups: Sequence[Group],
    shares: Tensor,
    autocast: Context,
) -> tuple[Tensor, dict[str, float]]:
    """Leave the gradient of a step's objective, the mean of its rankings' losses and centring, in `.grad`.

    Group after group, so that no more than one group's graph exists at a time. Each mean is over the whole
    step, so the gradient is that of one backward pass over all groups. Returns the objective, and what is
    logged of it.
    """
    num_rankings = sum(len(s.ranks) for s in slates)
    num_answers = sum(rank > 0 for s in slates for row in s.ranks for rank in row)
    num_drifts = num_rankings if recipe.center_on == "pairs" else num_answers
    seen = list[tuple[Tensor, ...]]()
    for group in groups:
        chosen = [slates[i] for i in group.slates]
        with autocast():
            scores, ranks, mask = in_rows(score_batches(model, group.batches), chosen)
        said = told(chosen, ranks.shape[1], scores.device)
        losses, scores = loss(scores, ranks, mask, said) * said.weights, overall(scores, shares)
        given = scores[mask]
        drifts = squared_sums(scores, mask) if recipe.center_on == "pairs" else given.square()
        (losses.sum() / num_rankings + recipe.center * drifts.sum() / num_drifts).backward()
        scores = scores.detach()
        right, pairs = pair_accuracy(scores, ranks, mask)
        lead = pair_margin(scores, ranks, mask)
        seen.append((losses.detach(), drifts.detach(), given.detach(), right, pairs, lead))
    losses, drifts, given, right, pairs, lead = (torch.cat(part) for part in zip(*seen, strict=True))
    metrics = {
        "loss": float(losses.mean()),
        **of_pairs(pairs, accuracy=right, margin=lead),
        "min_reward": float(given.min()),
        "mean_reward": float(given.mean()),
        "max_reward": float(given.max()),
    }
    return losses.mean() + recipe.center * drifts.mean(), metrics


def forward(model: ScalarModel, slates: Sequence[Slate], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Score every answer once, then lay the scores out `in_rows`."""
    return in_rows(score_slates(model, [s.sequences for s in slates], pad_id), slates)


def in_rows(scores: Tensor, slates: Sequence[Slate]) -> tuple[Tensor, Tensor, Tensor]:
    """Lay the scores of slates' answers, `[N]` or `[N, H]`, out once per annotator.

    Returns:
        scores, ranks and mask, each `[G, K]` for G rankings (a slate has as many as it has annotators);
        scores `[G, K, H]` from a model with H heads.
    """
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
def scored(model: ScalarModel, slates: Sequence[Slate], pad_id: int) -> list[Scored]:
    """Held-out slates with the model's scores, for the report card."""
    scores = score_slates(model, [s.sequences for s in slates], pad_id)
    each = scores.split([len(s.sequences) for s in slates])
    return [s.judged(x.tolist()) for s, x in zip(slates, each, strict=True)]


@torch.no_grad()
def held_out_accuracy(
    model: ScalarModel, slates: Sequence[Slate], pad_id: int, shares: Tensor
) -> dict[str, float]:
    """Share of the held-out rankings' untied pairs that the model orders as the annotator did."""
    scores, ranks, mask = forward(model, slates, pad_id)
    right, pairs = pair_accuracy(overall(scores, shares), ranks, mask)
    return of_pairs(pairs, eval_accuracy=right)


def of_pairs(pairs: Tensor, **sums: Tensor) -> dict[str, float]:
    """Means over untied pairs, from what each ranking has of them `[G]`; nothing where all are ties."""
    num = pairs.sum()
    return {name: float(found.sum() / num) for name, found in sums.items()} if num else {}
