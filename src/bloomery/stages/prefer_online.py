"""Online DPO: the policy answers, a reward says which of its answers are better, the policy learns from that.

The same losses and the same comparison as in `prefer.py`; only the pairs are new in every step, from the
policy as it stands (Guo et al. 2024, arXiv 2402.04792: the reward takes the place of their AI annotator).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from bloomery.models import hub
from bloomery.models.llama import Llama
from bloomery.models.lora import Bare
from bloomery.models.slates import Example, answer_logprobs
from bloomery.objectives import preference
from bloomery.objectives.preference import Loss
from bloomery.recipe import InputPath
from bloomery.stages.ahead import Ahead
from bloomery.stages.common import Context, tune
from bloomery.stages.online import Online, average, frozen, minibatches
from bloomery.stages.prefer import backward, laid_out
from bloomery.stages.preferences import Slate
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.train import step as update
from bloomery.train.run import Run
from bloomery.types import Rollout, ranked_pairs


class PreferOnline(Online):
    """Train a policy on its own answers, ranked by a reward: online DPO and its family."""

    reference: InputPath | None = None
    """The frozen model that the policy is compared with; the one it starts from when not given."""
    samples: int = Field(2, ge=2)
    """Answers to each prompt; all their pairs count but those that score the same."""
    loss: str = "dpo"
    """dpo, robust, ipo, hinge, kto, orpo or simpo."""
    loss_settings: dict[str, Any] = Field({})
    """Keyword arguments of the loss, such as beta; its own defaults where not given."""

    @model_validator(mode="after")
    def _usable(self) -> PreferOnline:
        """The loss and its settings are tried before anything is loaded."""
        preference.losses.bind(self.loss, self.loss_settings)
        return self


@dataclass(frozen=True, slots=True)
class Learner:
    """The policy with its optimizer, the frozen reference if the loss reads one, and how forwards are run."""

    actor: Llama
    reference: Llama | Bare | None
    loss: Loss
    optimizer: torch.optim.Optimizer
    guard: update.Guard
    context: Context
    pad_id: int


def run(recipe: PreferOnline, out: Path) -> None:
    context, device = recipe.compute.setup()
    loss = preference.losses.bind(recipe.loss, recipe.loss_settings)
    every = recipe.compute.checkpoint_every
    with Run(out, stage="prefer_online", recipe=recipe, checkpoint_every=every) as run:
        chat = Chat(Tokenizer.load(recipe.policy))
        actor = hub.load(recipe.policy).to(device)
        learning = tune(actor, base=recipe.policy, lora=recipe.lora, seed=recipe.seed)
        recipe.compute.prepare(actor)
        sampler = Ahead(recipe, actor, chat, run, recipe.samples)
        reference = None
        if preference.needs_reference(loss):
            reference = frozen(recipe.reference or recipe.policy, recipe, actor)
        elif recipe.reference is not None:
            run.line(f"'{recipe.loss}' does not read a reference: {recipe.reference} has no effect")
        optimizer = recipe.optimiser.over(actor)
        run.track(actor=learning, optimizer=optimizer, **sampler.kept)
        learner = Learner(actor, reference, loss, optimizer, run.guard, context, chat.tokenizer.pad_id)
        for step in run.steps(recipe.steps):
            rollouts, _, laps = sampler.newest(step)
            scores, metrics = sampler.score(rollouts)
            slates, found = to_slates(rollouts, scores, recipe.samples)
            laps.end("scoring")
            lr = recipe.optimiser.schedule_step(optimizer, step, recipe.steps)
            metrics |= found | sampler.beside(step, partial(improve, recipe, step, slates, learner))
            laps.end("training")
            metrics |= {"episode": float((step + 1) * len(rollouts)), "learning_rate": lr}
            run.log(step, metrics | laps.rates(rollouts) | recipe.compute.timing())
        hub.save(actor, out, tokenizer_dir=recipe.policy)
        run.finish(data=[{"source": str(path)} for path in recipe.prompts])


def to_slates(
    rollouts: Sequence[Rollout], scores: Sequence[float], samples: int
) -> tuple[list[Slate], dict[str, float]]:
    """One slate for each prompt's answers, which lie next to each other; a higher score is preferred.

    Answers that score the same make no pair. Prompts without a pair are left out, and their share is logged.
    KTO's KL is measured on the first answer to each prompt: the policy drew it, so its log-ratio is unbiased.
    """
    slates = []
    for start in range(0, len(rollouts), samples):
        order = sorted(set(scores[start : start + samples]), reverse=True)
        ranks = [order.index(s) for s in scores[start : start + samples]]
        pairs = [(better, worse) for better, worse, tie in ranked_pairs(ranks) if not tie]
        if pairs:
            answers = tuple(example(r) for r in rollouts[start : start + samples])
            slates.append(Slate(str(start), answers, tuple((*p, 1 / len(pairs)) for p in pairs), stray=0))
    found = torch.tensor(scores)
    return slates, {
        "reward": float(found.mean()),
        "reward_std": float(found.std(unbiased=False)),
        "frac_reward_zero_std": 1 - len(slates) * samples / len(rollouts),
    }


def example(rollout: Rollout) -> Example:
    """The tokens that were read and sampled, as they were; the sampled ones count."""
    asked, said = len(rollout.prompt_tokens), len(rollout.completion.tokens)
    return rollout.tokens, [False] * asked + [True] * said


def improve(recipe: PreferOnline, step: int, slates: Sequence[Slate], learner: Learner) -> dict[str, float]:
    """The step's passes over its slates: one optimizer step a minibatch. Returns mean metrics."""
    if not slates:
        return {}
    known, seen = read_reference(slates, learner), list[dict[str, float]]()
    for number, rows in minibatches(recipe, step, len(slates)):
        chosen = [slates[i] for i in rows]
        groups = laid_out(chosen, learner.actor.config.max_position_embeddings, learner.pad_id)
        reference = torch.cat([known[s.id] for s in chosen])
        objective, metrics = backward(learner.actor, chosen, groups, reference, learner.loss, learner.context)
        metrics["grad_norm"] = update.apply(
            learner.optimizer,
            recipe.optimiser.max_norm,
            guard=learner.guard,
            loss=objective,
            batch=f"step {step}, minibatch {number}",
        )
        seen.append(metrics)
    return average(seen)


@torch.no_grad()
def read_reference(slates: Sequence[Slate], learner: Learner) -> dict[str, Tensor]:
    """The reference's log-probs of each slate's answers, read once for all passes; zeros without one."""
    sizes = [len(s.answers) for s in slates]
    logps = torch.zeros(sum(sizes), device=next(learner.actor.parameters()).device)
    if learner.reference is not None:
        with learner.context():
            logps = answer_logprobs(learner.reference, [s.answers for s in slates], learner.pad_id)[0]
    return {s.id: part for s, part in zip(slates, logps.split(sizes), strict=True)}
