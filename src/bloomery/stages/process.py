"""The process reward model: started from the SFT model, trained on steps that were labelled right or wrong.

Its score at the last token of a step is the logit that the step is right. The reward source `process` turns
the scores of an answer's steps into one number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from bloomery.data.loader import ahead, batch_indices
from bloomery.data.sources import OnBadRow, read_solutions
from bloomery.errors import DataError, UsageError
from bloomery.evals.process import agreement, step_card
from bloomery.lineage import write_json
from bloomery.models import hub
from bloomery.models.llama import ScalarModel
from bloomery.models.slates import Group, in_groups
from bloomery.objectives.process import step_loss
from bloomery.objectives.token import aggregate
from bloomery.recipe import InputPath, Section
from bloomery.rewards.process import Stepped, read_steps, step_ends, step_scores
from bloomery.stages.common import (
    Context,
    Lora,
    Optimiser,
    Training,
    is_held_out,
    read_all,
    short_enough,
    tune,
)
from bloomery.stages.slates import prompt_id
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.train import step as update
from bloomery.train.run import Run
from bloomery.types import Message, Solution


class ProcessRecipe(Section):
    """Train a process reward model: the score at the end of a step says whether the step is right."""

    model: InputPath
    """The SFT model it starts from."""
    solutions: tuple[InputPath, ...]
    """Answers in steps, each step labelled right or wrong (format `stepwise`)."""
    on_bad_row: OnBadRow = "error"
    """Stop at a row that cannot be read, or skip and count it."""
    separator: str = Field("\n", min_length=1)
    """What stands between two steps of an answer, and in none."""
    lora: Lora | None = None
    """Learn by adapters beside the frozen trunk, and a head; the result is a directory of adapters."""
    seed: int = 0
    epochs: float = Field(3.0, gt=0)
    batch: int = Field(16, ge=1)
    """Answers of a step."""
    batch_tokens: int = Field(8192, ge=1)
    """Padded positions that are learnt from at a time: a step is computed in as many parts as that takes, the
    loss is the same, and only one part's activations are in memory."""
    held_out: float = Field(0.1, gt=0, lt=1)
    """Share of the prompts that is never trained on."""
    evaluate_every: int = Field(100, ge=1)
    optimiser: Optimiser = Optimiser(kind="muon", learning_rate=1e-3, weight_decay=0.01)
    compute: Training = Training(precision="bf16")


@dataclass(frozen=True, slots=True)
class Labelled(Stepped):
    """An answer in steps, whether each is right, its own id and its prompt's."""

    labels: tuple[bool, ...]
    id: str
    asked: str


def run(recipe: ProcessRecipe, out: Path) -> None:
    autocast, device = recipe.compute.setup()
    with Run(out, stage="process", recipe=recipe, checkpoint_every=recipe.compute.checkpoint_every) as run:
        chat = Chat(Tokenizer.load(recipe.model))
        pad_id = chat.tokenizer.pad_id
        model = ScalarModel.from_causal(hub.load(recipe.model), seed=recipe.seed).to(device)
        context = model.config.max_position_embeddings
        solutions = read_all(read_solutions, recipe.solutions, recipe.on_bad_row, run.line)
        answers = [labelled(one, chat, recipe.separator) for one in solutions]
        training, held_out = split(answers, context, recipe.held_out, run.line)
        learning = tune(model, base=recipe.model, lora=recipe.lora, seed=recipe.seed)
        recipe.compute.prepare(model)
        optimizer = recipe.optimiser.over(model)
        run.track(model=learning, optimizer=optimizer)
        total = max(1, round(recipe.epochs * len(training) / recipe.batch))

        def make(step: int) -> tuple[list[Labelled], list[Group]]:
            rows = batch_indices(len(training), recipe.batch, seed=recipe.seed, step=step)
            chosen = [training[i] for i in rows]
            return chosen, laid_out(chosen, context, pad_id, recipe.batch_tokens)

        batches = ahead(make, total)
        for step in run.steps(total):
            lr = recipe.optimiser.schedule_step(optimizer, step, total)
            chosen, groups = batches(step)
            metrics = backward(model, chosen, groups, autocast)
            metrics["grad_norm"] = update.apply(
                optimizer,
                recipe.optimiser.max_norm,
                guard=run.guard,
                loss=metrics["loss"],
                batch=[a.id for a in chosen],
            )
            metrics |= {"learning_rate": lr, "epoch": (step + 1) * recipe.batch / len(training)}
            metrics |= recipe.compute.timing()
            if held_out and ((step + 1) % recipe.evaluate_every == 0 or step + 1 == total):
                agreed = agreement(judged(model, held_out, pad_id), [a.labels for a in held_out])
                metrics["eval_accuracy"] = sum(map(sum, agreed)) / sum(map(len, agreed))
            run.log(step, metrics)
        said, taught = judged(model, held_out, pad_id), [a.labels for a in training]
        write_json(out / "evaluation.json", step_card(said, [a.labels for a in held_out], taught))
        hub.save(model, out, tokenizer_dir=recipe.model)
        run.finish(data=[{"source": str(path)} for path in recipe.solutions])


def labelled(solution: Solution, chat: Chat, separator: str) -> Labelled:
    """A solution as tokens: the prompt, and an answer that is its steps with the separator between them.

    Raises `DataError` where a step holds the separator, and where two steps end in one token.
    """
    text, where = separator.join(solution.completions), f"answer '{solution.id}'"
    if text.split(separator) != list(solution.completions):
        raise DataError(
            "the separator is in a step of this answer",
            where=where,
            got=repr(next(s for s in (*solution.completions, text) if separator in s)),
            do="set `separator` to something no step holds",
        )
    rendered = chat.render((*solution.prompt, Message(role="assistant", content=text)))
    _, start, stop = rendered.spans[-1]
    tokens = tuple(rendered.tokens[: stop + 1])
    ends = tuple(start + end for end in step_ends(tokens[start:], chat.tokenizer, separator))
    if len(set(ends)) < len(solution.labels):
        raise DataError(
            "two steps of this answer end in one token, so they cannot be told apart",
            where=where,
            got=f"{len(solution.labels)} steps, {len(set(ends))} ends",
            do="set `separator` to one that is a token of its own, such as a line break",
        )
    return Labelled(tokens, start, ends, solution.labels, solution.id, prompt_id(solution.prompt))


def split(
    answers: Sequence[Labelled], context: int, share: float, say: Callable[[str], None]
) -> tuple[list[Labelled], list[Labelled]]:
    """What is trained on and what is held out, by the prompt; without answers beyond the context.
    Raises `UsageError` where nothing is left to train on."""
    fit = short_enough(answers, lambda answer: len(answer.tokens), context, "answers in steps", say)
    training = [a for a in fit if not is_held_out(a.asked, share)]
    if not training:
        raise UsageError(
            "there is no step to train on",
            got=f"{len(fit)} answers, of which a share of {share} is held out",
            do="give more answers, or a smaller held_out",
        )
    return training, [a for a in fit if is_held_out(a.asked, share)]


def laid_out(answers: Sequence[Labelled], context: int, pad_id: int, batch_tokens: int) -> list[Group]:
    """A step's answers in groups of at most `batch_tokens` positions."""
    tokens, prompts = [[a.tokens] for a in answers], [a.prompt for a in answers]
    return in_groups(tokens, prompts, context=context, pad_id=pad_id, batch_tokens=batch_tokens)


def backward(
    model: ScalarModel, answers: Sequence[Labelled], groups: Sequence[Group], autocast: Context
) -> dict[str, float]:
    """Leave the gradient of the mean loss per step, over all steps of all answers, in `.grad`; its metrics.

    Group after group, so that no more than one group's graph exists at a time; the denominator is the whole
    batch's, so the gradient is that of one backward pass.
    """
    num_steps = sum(len(a.labels) for a in answers)
    metrics = dict.fromkeys(("loss", "accuracy", "right_steps"), 0.0)
    for group in groups:
        chosen = [answers[i] for i in group.slates]
        with autocast():
            scores, mask = step_scores(model, group.batches, chosen)
        labels = in_rows(chosen, mask)
        loss = aggregate(step_loss(scores, labels, mask), mask, num_steps)
        loss.backward()
        metrics["loss"] += loss.item()
        metrics["accuracy"] += float((((scores > 0) == labels) & mask).sum()) / num_steps
        metrics["right_steps"] += float(labels.sum()) / num_steps
    return metrics | {"num_steps": num_steps}


def in_rows(answers: Sequence[Labelled], mask: Tensor) -> Tensor:
    """The labels of answers where their steps are in `mask` `[N, S]`, False elsewhere."""
    flat = torch.tensor([right for a in answers for right in a.labels], device=mask.device)
    return torch.zeros_like(mask).masked_scatter(mask, flat)


@torch.no_grad()
def judged(model: ScalarModel, answers: Sequence[Labelled], pad_id: int) -> list[list[bool]]:
    """Of each answer's steps, whether the model says that they are right: that a score is above 0."""
    if not answers:
        return []
    scores, mask = read_steps(model, [[a] for a in answers], pad_id)
    return [(row[own] > 0).tolist() for row, own in zip(scores, mask, strict=True)]
