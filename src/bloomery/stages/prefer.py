"""Direct preference optimisation: people's rankings train the policy itself, without a reward model.

What a pair is worth, or an answer that was judged alone, is a loss of `objectives/preference.py`. Here a
prompt is forwarded once for all its answers, each answer once however many pairs it is in, and the frozen
reference once in a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from bloomery.data.loader import ahead, batch_indices
from bloomery.data.sources import OnBadRow, read_judgements, read_rankings
from bloomery.errors import UsageError
from bloomery.models import hub
from bloomery.models.llama import Llama
from bloomery.models.lora import Bare
from bloomery.models.slates import Batch, Example, Group, answer_groups, answer_logprobs, batch_logprobs
from bloomery.objectives import preference
from bloomery.objectives.preference import Loss, Pairs, Singles
from bloomery.objectives.token import aggregate
from bloomery.recipe import InputPath, Section
from bloomery.stages.common import Context, Lora, Optimiser, Training, read_all, tune
from bloomery.stages.people import authors, count_people
from bloomery.stages.preferences import Slate, make_slates, say_kinds, with_strays
from bloomery.stages.slates import split
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.train import step as update
from bloomery.train.run import Run

Reference = Callable[[Sequence["Slate"]], Tensor]


class Prefer(Section):
    """Train a policy on rankings directly: DPO and its family."""

    model: InputPath
    """The SFT model it starts from."""
    rankings: tuple[InputPath, ...] = ()
    """Canonical rankings or preference pairs; all pairs of each ranking count, ties do not."""
    judged: tuple[InputPath, ...] = ()
    """Answers that were called desirable or undesirable, each by itself; only kto learns from them."""
    reference: InputPath | None = None
    """The frozen model that the policy is compared with; the one it starts from when not given."""
    loss: str = "dpo"
    """dpo, robust, ipo, hinge, kto, orpo or simpo."""
    loss_settings: dict[str, Any] = Field({})
    """Keyword arguments of the loss, such as beta; its own defaults where not given."""
    use_corrections: bool = True
    """Let a written correction stand above every ranked answer."""
    precompute: bool = True
    """Read the reference once, before the first step; else in every step: the same numbers, more work, and
    two models in memory."""
    train: tuple[str, ...] = ()
    """Names of the parameters to train, `*` for anything; all when not given."""
    lora: Lora | None = None
    """Learn by adapters; without them the policy is the reference, unless another one is given."""
    on_bad_row: OnBadRow = "error"
    """Stop at a row that cannot be read, or skip and count it."""
    seed: int = 0
    epochs: float = Field(1.0, gt=0)
    batch: int = Field(16, ge=1)
    """Prompts of a step, each with all its pairs."""
    batch_tokens: int = Field(8192, ge=1)
    """Padded positions that are learnt from at a time: a step is computed in as many parts as that takes, the
    loss is the same, and only one part's activations are in memory."""
    held_out: float = Field(0.1, ge=0, lt=1)
    """Share of the prompts that is never trained on."""
    evaluate_every: int = Field(50, ge=1)
    optimiser: Optimiser = Optimiser(learning_rate=1e-4, warmup=10, weight_decay=0.0)
    compute: Training = Training()

    @model_validator(mode="after")
    def _usable(self) -> Prefer:
        """What the loss can learn from is checked before anything is loaded."""
        if not (self.rankings or self.judged):
            raise UsageError("there is nothing to learn from", do="give `rankings`, or `judged` and loss=kto")
        if self.judged and preference.single(self.loss, self.loss_settings) is None:
            raise UsageError(
                f"'{self.loss}' compares two answers, and those in `judged` stand alone",
                do="choose loss=kto, or give `rankings` in place of `judged`",
            )
        return self


def run(recipe: Prefer, out: Path) -> None:
    autocast, device = recipe.compute.setup()
    loss = preference.losses.bind(recipe.loss, recipe.loss_settings)
    alone = preference.single(recipe.loss, recipe.loss_settings)
    with Run(out, stage="prefer", recipe=recipe, checkpoint_every=recipe.compute.checkpoint_every) as run:
        chat = Chat(Tokenizer.load(recipe.model))
        model = hub.load(recipe.model).to(device)
        recipe.compute.prepare(model)
        rankings = read_all(read_rankings, recipe.rankings, recipe.on_bad_row, run.line)
        judged = read_all(read_judgements, recipe.judged, recipe.on_bad_row, run.line)
        if judged:
            say_kinds(judged, bool(rankings), run.line)
        slates = make_slates(rankings, chat, recipe.use_corrections, run.line, judged)
        limit = model.config.max_position_embeddings
        training, held_out = split(slates, limit, recipe.held_out, run.line)
        if "kl" in preference.reads(loss):
            slates = with_strays([*training, *held_out], limit)  # read without gradient: nothing leaks
            training, held_out = slates[: len(training)], slates[len(training) :]
        learning = tune(model, base=recipe.model, lora=recipe.lora, train=recipe.train, seed=recipe.seed)
        optimizer = recipe.optimiser.over(model)
        run.track(model=learning, optimizer=optimizer)
        reference = read_reference(recipe, loss, model, (*training, *held_out), run, chat.tokenizer.pad_id)
        total = max(1, round(recipe.epochs * len(training) / recipe.batch))
        pad_id = chat.tokenizer.pad_id

        def make(step: int) -> tuple[list[Slate], list[Group]]:
            rows = batch_indices(len(training), recipe.batch, seed=recipe.seed, step=step)
            chosen = [training[i] for i in rows]
            return chosen, laid_out(chosen, limit, pad_id, recipe.batch_tokens)

        batches = ahead(make, total)
        for step in run.steps(total):
            lr = recipe.optimiser.schedule_step(optimizer, step, total)
            chosen, groups = batches(step)
            known = reference(chosen)
            objective, metrics = backward(model, chosen, groups, known, loss, autocast, alone)
            metrics["grad_norm"] = update.apply(
                optimizer,
                recipe.optimiser.max_norm,
                guard=run.guard,
                loss=objective,
                batch=[s.id for s in chosen],
            )
            metrics |= {"learning_rate": lr, "epoch": (step + 1) * recipe.batch / len(training)}
            metrics |= recipe.compute.timing()
            if held_out and ((step + 1) % recipe.evaluate_every == 0 or step + 1 == total):
                groups, known = laid_out(held_out, limit, pad_id, recipe.batch_tokens), reference(held_out)
                with torch.no_grad():
                    _, seen = backward(model, held_out, groups, known, loss, autocast, alone)
                metrics |= {f"eval_{name}": value for name, value in seen.items()}
            run.log(step, metrics)
        hub.save(model, out, tokenizer_dir=recipe.model)
        run.finish(
            data=[{"source": str(path)} for path in (*recipe.rankings, *recipe.judged)],
            people=count_people(rankings),
            teachers=authors(c for r in rankings for c in r.completions),
        )


def laid_out(slates: Sequence[Slate], context: int, pad_id: int, batch_tokens: int = 8192) -> list[Group]:
    """A step's slates in groups of at most `batch_tokens` positions."""
    answers = [s.learnt for s in slates]
    return answer_groups(answers, context=context, pad_id=pad_id, batch_tokens=batch_tokens)


def backward(
    model: Llama,
    slates: Sequence[Slate],
    groups: Sequence[Group],
    reference: Tensor,
    loss: Loss,
    autocast: Context,
    alone: Loss | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Leave the gradient of a step's objective, the mean loss of its rankings, in `.grad`; under
    `torch.no_grad` only find the objective. An answer that was judged alone counts as half a ranking, so it
    is all the same whether two answers came as a pair or each by itself.

    Group after group, so that no more than one group's graph exists at a time. The mean, and the KL where the
    loss reads one, are the whole step's, so the gradient is that of one backward pass over all groups.

    Args:
        reference: `[N]`, the reference's log-prob of every answer of the slates.
        alone: the loss of answers that were judged alone; without it the slates hold none.
    Returns:
        the objective, and what is logged of it.
    """
    totals = totals_of(slates)
    known = reference.split([len(s.answers) for s in slates])
    kl = reference.new_zeros(())
    objective, metrics = reference.new_zeros(()), dict[str, float]()
    with autocast():
        if "kl" in preference.reads(loss):
            kl = moved(model, slates, known)
    for group in groups:
        with autocast():
            chosen, before = zip(*((slates[i], known[i]) for i in group.slates), strict=True)
            said = compare(model, chosen, group.batches, before, kl)
        part, seen = loss_of(loss, alone, said, totals)
        if torch.is_grad_enabled():
            part.backward()
        objective += part.detach()
        metrics = {name: metrics.get(name, 0.0) + value for name, value in seen.items()}
    return objective, metrics | ({"kl": float(kl)} if "kl" in preference.reads(loss) else {})


@torch.no_grad()
def moved(model: Llama, slates: Sequence[Slate], reference: Sequence[Tensor]) -> Tensor:
    """KTO's zero: how far the policy has moved on answers that nobody gave to these prompts, one number.

    Args:
        reference: for each slate the reference's log-prob of its answers.
    """
    shown = [
        (s.answers[s.stray], known[s.stray])
        for s, known in zip(slates, reference, strict=True)
        if s.stray is not None
    ]
    logps, _ = answer_logprobs(model, [[answer] for answer, _ in shown], pad_id=0)
    return (logps - torch.stack([known for _, known in shown])).mean().clamp(min=0)


class Said(NamedTuple):
    """What a loss may read of some slates: their pairs with the weight of each, `[P]`, and single answers."""

    pairs: Pairs
    weights: Tensor
    singles: Singles


class Totals(NamedTuple):
    """What the pairs of a step weigh; its chosen and its rejected answers, in these pairs and alone."""

    pairs: float
    chosen: float
    rejected: float


def totals_of(slates: Sequence[Slate]) -> Totals:
    pairs = sum(weight for s in slates for *_, weight in s.pairs)
    labels = [good for s in slates for _, good in s.judged]
    return Totals(pairs, pairs + labels.count(True), pairs + labels.count(False))


def loss_of(loss: Loss, alone: Loss | None, said: Said, totals: Totals) -> tuple[Tensor, dict[str, float]]:
    """What some pairs and single answers add to the mean loss of a step with these totals, and to what is
    logged. A kind of answer that the step does not have is not logged."""
    pairs, weights, singles = said
    whole = (totals.chosen + totals.rejected) / 2
    objective = aggregate(weights * preference.values(loss, pairs), weights > 0, whole)
    if alone is not None:
        worth = preference.values(alone, singles) / 2
        objective = objective + aggregate(worth, torch.ones_like(singles.good), whole)
    metrics = {"loss": objective}
    chosen, rejected = preference.implicit_rewards(loss, pairs)
    reward = preference.implicit_reward(loss, singles.logps, singles.ratio, singles.length)
    for side, these, total, rewards, logps in (
        ("chosen", singles.good, totals.chosen, chosen, pairs.chosen_logps),
        ("rejected", ~singles.good, totals.rejected, rejected, pairs.rejected_logps),
    ):
        share = torch.cat([weights, these.to(weights.dtype)])
        for name, values in (("rewards", (rewards, reward)), ("logps", (logps, singles.logps))):
            if total:
                metrics[f"{name}/{side}"] = aggregate(share * torch.cat(values), share > 0, total)
    if totals.chosen and totals.rejected:
        metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
    if totals.pairs:
        won = 0.5 + 0.5 * (chosen - rejected).sign()
        metrics["rewards/accuracies"] = aggregate(weights * won, weights > 0, totals.pairs)
    return objective, {name: float(value.detach()) for name, value in metrics.items()}


def compare(
    model: Llama, slates: Sequence[Slate], batches: Sequence[Batch], reference: Sequence[Tensor], kl: Tensor
) -> Said:
    """Every pair and every single answer of some slates with what a loss may read of it.

    Args:
        batches: the answers of the slates that are learnt from, laid out.
        reference: for each slate the reference's log-prob of its answers.
        kl: what the loss reads under this name.
    """
    answers, rows, alone = list[Example](), list[tuple[int, int, float]](), list[tuple[int, bool]]()
    for s in slates:
        start = len(answers)
        rows += [(start + chosen, start + rejected, weight) for chosen, rejected, weight in s.pairs]
        alone += [(start + place, good) for place, good in s.judged]
        answers += s.learnt
    logps, length = batch_logprobs(model, batches, answers)
    ratio = logps - torch.cat([known[: len(s.learnt)] for s, known in zip(slates, reference, strict=True)])

    def places(of: Iterable[int]) -> Tensor:
        return torch.tensor(list(of), dtype=torch.long, device=logps.device)

    chosen, rejected = places(row[0] for row in rows), places(row[1] for row in rows)
    single = places(place for place, _ in alone)
    pairs = Pairs(
        logps[chosen], logps[rejected], ratio[chosen], ratio[rejected], length[chosen], length[rejected], kl
    )
    good = torch.tensor([label for _, label in alone], dtype=torch.bool, device=logps.device)
    weights = torch.tensor([row[2] for row in rows], device=logps.device)
    return Said(pairs, weights, Singles(logps[single], ratio[single], length[single], good, kl))


def read_reference(
    recipe: Prefer, loss: Loss, model: Llama, slates: Sequence[Slate], run: Run, pad_id: int
) -> Reference:
    """The reference's log-prob of every answer of some slates, `[N]`; zeros where the loss reads none.

    With `precompute` all are read now, or taken from the checkpoint that is gone on from.
    """
    autocast, device = recipe.compute.setup()
    if not preference.needs_reference(loss):
        if recipe.reference is not None:
            run.line(f"'{recipe.loss}' does not read a reference: {recipe.reference} has no effect")
        return lambda some: torch.zeros(sum(len(s.answers) for s in some), device=device)
    if "reference" not in run.state:
        frozen: Llama | Bare = Bare(model)
        if recipe.lora is None or recipe.reference is not None:
            frozen = hub.load(recipe.reference or recipe.model).to(device).requires_grad_(False)

        @torch.no_grad()
        def read(some: Sequence[Slate]) -> Tensor:
            with autocast():
                return answer_logprobs(frozen, [s.answers for s in some], pad_id)[0]

        if not recipe.precompute:
            return read
        parts = read(slates).split([len(s.answers) for s in slates])
        run.state["reference"] = {s.id: part.tolist() for s, part in zip(slates, parts, strict=True)}
    known: dict[str, list[float]] = run.state["reference"]
    return lambda some: torch.tensor([x for s in some for x in known[s.id]], device=device)
