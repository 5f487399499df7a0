"""Direct preference optimisation: people's rankings train the policy itself, without a reward model.

What a pair is worth is a loss of `objectives/preference.py`. Here a prompt is forwarded once for all answers
that people compared, each answer once however many pairs it is in, and the frozen reference once in a run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from bloomery.data.loader import ahead, batch_indices
from bloomery.data.sources import OnBadRow, read_rankings
from bloomery.errors import DataError, UsageError
from bloomery.feedback.pairs import Pair, rankings_to_pairs
from bloomery.models import hub
from bloomery.models.llama import Llama
from bloomery.models.lora import Bare
from bloomery.models.slates import Batch, Example, Group, answer_groups, answer_logprobs, batch_logprobs
from bloomery.objectives import preference
from bloomery.objectives.preference import Loss, Pairs
from bloomery.objectives.token import aggregate
from bloomery.recipe import InputPath, Section
from bloomery.stages.common import Context, Lora, Optimiser, Training, read_all, tune
from bloomery.stages.people import authors, count_people
from bloomery.stages.slates import prompt_id, split
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.train import step as update
from bloomery.train.run import Run
from bloomery.types import Message, Ranking

Reference = Callable[[Sequence["Slate"]], Tensor]


class Prefer(Section):
    """Train a policy on rankings directly: DPO and its family."""

    model: InputPath
    """The SFT model it starts from."""
    rankings: tuple[InputPath, ...]
    """Canonical rankings or preference pairs; all pairs of each ranking count, ties do not."""
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


@dataclass(frozen=True, slots=True)
class Slate:
    """One prompt with the answers that were compared, as tokens and masks of prompt + answer.

    `pairs` are (chosen, rejected, weight): the places of two answers, and the pair's share of its ranking, so
    that a ranking weighs the same whatever its K. `stray` is the place of the answer that shows the KL.
    """

    id: str
    answers: tuple[Example, ...]
    pairs: tuple[tuple[int, int, float], ...]
    stray: int | None = None

    @property
    def compared(self) -> tuple[Example, ...]:
        """The answers up to the last that is in a pair: what only shows the KL stands after them."""
        return self.answers[: 1 + max(max(chosen, rejected) for chosen, rejected, _ in self.pairs)]

    @property
    def longest(self) -> int:
        """Tokens of the longest answer with its prompt."""
        return max(len(tokens) for tokens, _ in self.answers)


def run(recipe: Prefer, out: Path) -> None:
    autocast, device = recipe.compute.setup()
    loss = preference.losses.bind(recipe.loss, recipe.loss_settings)
    with Run(out, stage="prefer", recipe=recipe, checkpoint_every=recipe.compute.checkpoint_every) as run:
        chat = Chat(Tokenizer.load(recipe.model))
        model = hub.load(recipe.model).to(device)
        recipe.compute.prepare(model)
        rankings = read_all(read_rankings, recipe.rankings, recipe.on_bad_row, run.line)
        slates = make_slates(rankings, chat, recipe.use_corrections, run.line)
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
            objective, metrics = backward(model, chosen, groups, known, loss, autocast)
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
                    _, seen = backward(model, held_out, groups, known, loss, autocast)
                metrics |= {f"eval_{name}": value for name, value in seen.items()}
            run.log(step, metrics)
        hub.save(model, out, tokenizer_dir=recipe.model)
        run.finish(
            data=[{"source": str(path)} for path in recipe.rankings],
            people=count_people(rankings),
            teachers=authors(c for r in rankings for c in r.completions),
        )


def laid_out(slates: Sequence[Slate], context: int, pad_id: int, batch_tokens: int = 8192) -> list[Group]:
    """A step's slates in groups of at most `batch_tokens` positions."""
    answers = [s.compared for s in slates]
    return answer_groups(answers, context=context, pad_id=pad_id, batch_tokens=batch_tokens)


def backward(
    model: Llama,
    slates: Sequence[Slate],
    groups: Sequence[Group],
    reference: Tensor,
    loss: Loss,
    autocast: Context,
) -> tuple[Tensor, dict[str, float]]:
    """Leave the gradient of a step's objective, the mean loss of its rankings, in `.grad`; under
    `torch.no_grad` only find the objective.

    Group after group, so that no more than one group's graph exists at a time. The mean, and the KL where the
    loss reads one, are the whole step's, so the gradient is that of one backward pass over all groups.

    Args:
        reference: `[N]`, the reference's log-prob of every answer of the slates.
    Returns:
        the objective, and what is logged of it.
    """
    total = sum(weight for s in slates for *_, weight in s.pairs)
    known = reference.split([len(s.answers) for s in slates])
    kl = reference.new_zeros(())
    objective, metrics = reference.new_zeros(()), dict[str, float]()
    with autocast():
        if "kl" in preference.reads(loss):
            kl = moved(model, slates, known)
    for group in groups:
        with autocast():
            chosen, before = zip(*((slates[i], known[i]) for i in group.slates), strict=True)
            pairs, weights = compare(model, chosen, group.batches, before, kl)
        part, seen = loss_of(loss, pairs, weights, total)
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


def loss_of(loss: Loss, pairs: Pairs, weights: Tensor, total: float) -> tuple[Tensor, dict[str, float]]:
    """What some pairs add to the mean loss of a step whose pairs weigh `total`, and to what is logged."""

    def mean(x: Tensor) -> Tensor:
        return aggregate(weights * x, weights > 0, total)

    objective = mean(preference.values(loss, pairs))
    chosen, rejected = preference.implicit_rewards(loss, pairs)
    margin = (chosen - rejected).detach()
    metrics = {
        "loss": objective,
        "rewards/chosen": mean(chosen),
        "rewards/rejected": mean(rejected),
        "rewards/margins": mean(margin),
        "rewards/accuracies": mean(0.5 + 0.5 * margin.sign()),
        "logps/chosen": mean(pairs.chosen_logps),
        "logps/rejected": mean(pairs.rejected_logps),
    }
    return objective, {name: float(value.detach()) for name, value in metrics.items()}


def compare(
    model: Llama, slates: Sequence[Slate], batches: Sequence[Batch], reference: Sequence[Tensor], kl: Tensor
) -> tuple[Pairs, Tensor]:
    """Every pair of some slates with what a loss may read of it, and the weight of each pair, `[P]`.

    Args:
        batches: the compared answers of the slates, laid out.
        reference: for each slate the reference's log-prob of its answers.
        kl: what the loss reads under this name.
    """
    answers, rows, start = list[Example](), list[tuple[int, int, float]](), 0
    for s in slates:
        rows += [(start + chosen, start + rejected, weight) for chosen, rejected, weight in s.pairs]
        answers += s.compared
        start = len(answers)
    logps, lengths = batch_logprobs(model, batches, answers)
    ratio = logps - torch.cat([known[: len(s.compared)] for s, known in zip(slates, reference, strict=True)])
    chosen, rejected = (torch.tensor([row[side] for row in rows], device=logps.device) for side in (0, 1))
    pairs = Pairs(
        chosen_logps=logps[chosen],
        rejected_logps=logps[rejected],
        chosen_ratio=ratio[chosen],
        rejected_ratio=ratio[rejected],
        chosen_length=lengths[chosen],
        rejected_length=lengths[rejected],
        kl=kl,
    )
    return pairs, torch.tensor([row[2] for row in rows], device=logps.device)


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


def make_slates(
    rankings: Iterable[Ranking], chat: Chat, corrections: bool, say: Callable[[str], None]
) -> list[Slate]:
    """The rankings of each prompt together, in the order first met; says what teaches nothing."""
    groups: dict[tuple[Message, ...], list[tuple[Pair, ...]]] = {}
    left_out: Counter[str] = Counter()
    for r in rankings:
        made = rankings_to_pairs([r if corrections else r.model_copy(update={"correction": None})])
        left_out.update({f"rankings ({why})": n for why, n in made.dropped_rankings.items()})
        left_out.update({f"pairs ({why})": n for why, n in made.dropped_pairs.items()})
        if made.pairs:
            groups.setdefault(r.prompt, []).append(made.pairs)
    if left_out:
        say("left out " + ", ".join(f"{n} {what}" for what, n in sorted(left_out.items())))
    return [make_slate(prompt, several, chat) for prompt, several in groups.items()]


def make_slate(prompt: tuple[Message, ...], rankings: Sequence[Sequence[Pair]], chat: Chat) -> Slate:
    """The pairs of several rankings of one prompt; what two of them ranked is one answer."""
    answers: dict[tuple[Message, ...], int] = {}
    pairs = [
        (
            answers.setdefault(pair.chosen, len(answers)),
            answers.setdefault(pair.rejected, len(answers)),
            1 / len(several),
        )
        for several in rankings
        for pair in several
    ]
    return Slate(prompt_id(prompt), tuple(example(prompt, a, chat) for a in answers), tuple(pairs))


def example(prompt: tuple[Message, ...], answer: tuple[Message, ...], chat: Chat) -> Example:
    """Tokens of prompt + answer; what the assistant says in the answer counts, its end tokens included."""
    rendered = chat.render((*prompt, *answer))
    begin = rendered.spans[len(prompt)].start
    mask = [counts and t >= begin for t, counts in enumerate(rendered.mask)]
    if not any(mask):
        raise DataError(
            "there is nothing to learn in this answer",
            where=f"prompt {prompt_id(prompt)}",
            got=f"messages by {', '.join(m.role for m in answer)}",
            expected="an assistant's message whose weight is not 0",
        )
    return rendered.tokens, mask


def with_strays(slates: Sequence[Slate], limit: int) -> list[Slate]:
    """Each slate with an answer of the next slates after its own prompt: the first that fits; in no pair."""
    made = []
    for i, s in enumerate(slates):
        others = (slates[(i + k) % len(slates)].answers for k in range(1, len(slates)))
        moved = (transplant(s.answers[0], answers[i % len(answers)]) for answers in others)
        stray = next((one for one in moved if len(one[0]) <= limit), None)
        if stray is None:
            raise UsageError(
                "this loss compares with answers to other prompts, and none fits",
                got=f"{len(slates)} prompts",
                do="give more rankings, or choose another loss",
            )
        made.append(replace(s, answers=(*s.answers, stray), stray=len(s.answers)))
    return made


def transplant(own: Example, other: Example) -> Example:
    """The prompt of one example with the answer of another."""
    begin, start = own[1].index(True), other[1].index(True)
    return [*own[0][:begin], *other[0][start:]], [*own[1][:begin], *other[1][start:]]
