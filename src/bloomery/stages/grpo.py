"""Policy optimisation without a critic: several answers to each prompt, each measured against the others.

GRPO (Shao et al. 2024) and its family: what an answer's advantage is, what the loss of a token is, and how
token losses are averaged are three choices by name (`objectives/group.py`, `objectives/policy.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from bloomery.models import hub
from bloomery.models.llama import Llama
from bloomery.models.lora import Bare
from bloomery.objectives.group import advantage_estimators, constant_groups
from bloomery.objectives.policy import Averaging, denominators, k3, log_ratio, policy_losses
from bloomery.objectives.token import aggregate, masked_mean
from bloomery.recipe import InputPath
from bloomery.rollout.batch import RolloutBatch
from bloomery.rollout.shared import Piece, shared_pieces
from bloomery.stages import leash
from bloomery.stages.ahead import Ahead
from bloomery.stages.common import Context, tune
from bloomery.stages.leash import Leashed
from bloomery.stages.online import average, checked, frozen, minibatches
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.train import step as update
from bloomery.train.run import Run


class Grpo(Leashed):
    """Improve a policy without a critic: each answer to a prompt is measured against others to it."""

    reference: InputPath | None = None
    """The frozen model that divergence is measured from; the starting policy when not given. Not loaded when
    `kl_coef` is 0."""
    prompts_per_step: int = Field(16, ge=1)
    samples: int = Field(8, ge=1)
    """Answers to each prompt: its group."""
    advantage: str = "grpo"
    """How rewards become advantages: grpo, dr_grpo, rloo, reinforce++ or reinforce++_baseline."""
    advantage_settings: dict[str, float] = Field({})
    """Keyword arguments of the advantage, such as eps; its own defaults where not given."""
    loss: str = "ppo"
    """The loss of a token: ppo, dapo, cispo, gspo or reinforce."""
    loss_settings: dict[str, float] = Field({})
    """Keyword arguments of the loss, such as clip; its own defaults where not given."""
    averaging: Averaging = "token"
    """Token losses are averaged over all tokens of an update, over its answers' means, or divided by a
    constant: its answers times `max_tokens`."""
    kl_coef: float = Field(0.05, ge=0)
    """beta: what a nat of divergence from the reference costs."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Whether divergence is a term of the loss or taken from the reward."""

    @model_validator(mode="after")
    def _usable(self) -> Grpo:
        """Names and settings are tried before anything is loaded; the advantage on one token an answer."""
        policy_losses.bind(self.loss, self.loss_settings)
        one = torch.ones(1, self.samples, 1)
        advantage_estimators.bind(self.advantage, self.advantage_settings)(one, one.bool())
        return self


@dataclass(frozen=True, slots=True)
class Learner:
    """The policy with its optimizer, the frozen reference if there is one, and how forwards are run."""

    actor: Llama
    reference: Llama | Bare | None
    optimizer: torch.optim.Optimizer
    guard: update.Guard
    context: Context


@dataclass(frozen=True, slots=True)
class Experience:
    """A step's rollouts with everything the update needs. All `[B, T]`, aligned with `batch.tokens`."""

    batch: RolloutBatch
    reference_logprobs: Tensor | None
    advantages: Tensor
    kl_coef: float


def run(recipe: Grpo, out: Path) -> None:
    context, device = recipe.compute.setup()
    with Run(out, stage="grpo", recipe=recipe, checkpoint_every=recipe.compute.checkpoint_every) as run:
        chat = Chat(Tokenizer.load(recipe.policy))
        actor = hub.load(recipe.policy).to(device)
        learning = tune(actor, base=recipe.policy, lora=recipe.lora, seed=recipe.seed)
        recipe.compute.prepare(actor)
        sampler = Ahead(recipe, actor, chat, run, recipe.samples)
        reference = frozen(recipe.reference or recipe.policy, recipe, actor) if recipe.kl_coef > 0 else None
        for line in without_effect(recipe):
            run.line(line)
        optimizer = recipe.optimiser.over(actor)
        run.track(actor=learning, optimizer=optimizer, **sampler.kept)
        run.state.setdefault("kl_coef", recipe.kl_coef)
        learner = Learner(actor, reference, optimizer, run.guard, context)
        for step in run.steps(recipe.steps):
            rollouts, asked, laps = sampler.newest(step)
            scores, metrics = sampler.score(rollouts)
            batch = RolloutBatch.of(rollouts, chat.tokenizer.pad_id, device)
            batch, agreement = checked(batch, asked, recipe.temperature, context, recipe.sampler_tolerance)
            given = torch.tensor(scores, device=device)
            experience, looked = look_back(recipe, batch, given, learner, run.state["kl_coef"])
            laps.end("scoring")
            lr = recipe.optimiser.schedule_step(optimizer, step, recipe.steps)
            learn = partial(improve, recipe, step, experience, learner)
            metrics |= agreement | looked | sampler.beside(step, learn)
            laps.end("training")
            leash.steer(recipe, run.state, metrics)
            metrics |= {"episode": float((step + 1) * len(rollouts)), "learning_rate": lr}
            run.log(step, metrics | laps.rates(rollouts) | recipe.compute.timing())
        hub.save(actor, out, tokenizer_dir=recipe.policy)
        run.finish(data=[{"source": str(path)} for path in recipe.prompts])


def without_effect(recipe: Grpo) -> list[str]:
    """What is set and changes nothing in this run."""
    useless = recipe.kl_coef == 0 and recipe.reference is not None
    said = ["the reference is not used: kl_coef is 0"] if useless else []
    return said + leash.without_effect(recipe)


@torch.no_grad()
def look_back(
    recipe: Grpo, batch: RolloutBatch, scores: Tensor, learner: Learner, kl_coef: float
) -> tuple[Experience, dict[str, float]]:
    """Divergence, rewards and advantages of rollouts under the weights that sampled them.

    Args:
        scores: `[B]`, the answers to one prompt next to each other.
    """
    mask, reference, moved = batch.mask, None, torch.zeros_like(batch.old_logprobs)
    if learner.reference is not None:
        reference = torch.zeros_like(batch.old_logprobs)
        with learner.context():
            for piece in by_prompt(recipe, batch, torch.arange(len(mask)), learner):
                reference[piece.rows] = piece.read(learner.reference, recipe.temperature, entropy=False)[0]
        moved = log_ratio(batch.old_logprobs, reference, mask)
    rewards = leash.rewards_of(recipe, scores, moved, mask, kl_coef)
    groups = (-1, recipe.samples, mask.shape[1])
    estimate = advantage_estimators.bind(recipe.advantage, recipe.advantage_settings)
    advantages = estimate(rewards.view(groups), mask.view(groups)).view(mask.shape)
    constant = constant_groups(scores.view(-1, recipe.samples))
    metrics = {
        "reward": float(scores.mean()),
        "reward_std": float(scores.std(unbiased=False)),
        "frac_reward_zero_std": float(constant.float().mean()),
    }
    if reference is not None:
        metrics |= {
            "kl": float(masked_mean(k3(moved), mask)),
            "objective/kl": float(moved.sum(1).mean()),
            "objective/kl_coef": kl_coef,
        }
    return Experience(batch, reference, advantages, kl_coef), metrics


def improve(recipe: Grpo, step: int, experience: Experience, learner: Learner) -> dict[str, float]:
    """The step's passes over its rollouts: one optimizer step a minibatch. Returns mean metrics."""
    num, seen = len(experience.batch.tokens), list[dict[str, float]]()
    for number, rows in minibatches(recipe, step, num):
        metrics = backward(recipe, experience, rows, learner)
        if seen and recipe.target_kl is not None and metrics["policy/approxkl_avg"] > recipe.target_kl:
            learner.optimizer.zero_grad(set_to_none=True)
            return average(seen) | {"policy/stopped_early": 1.0}
        metrics["grad_norm"] = update.apply(
            learner.optimizer,
            recipe.optimiser.max_norm,
            guard=learner.guard,
            loss=metrics["loss"],
            batch=f"step {step}, minibatch {number}",
        )
        seen.append(metrics)
    return average(seen) | {"policy/stopped_early": 0.0}


def backward(recipe: Grpo, experience: Experience, rows: Tensor, learner: Learner) -> dict[str, float]:
    """Leave the gradient of the mean loss of some rows in `.grad`, read a piece at a time; its metrics.

    Denominators are those of all the rows, so how they are cut into pieces makes no difference.
    """
    rows = rows.to(experience.batch.mask.device)
    mask = experience.batch.mask[rows]
    below, counted = denominators(mask, recipe.averaging, recipe.max_tokens), mask.sum()
    metrics: dict[str, float] = {}
    for piece in by_prompt(recipe, experience.batch, rows, learner):
        loss, found = loss_of(
            recipe, experience, piece, rows[piece.rows], learner, below[piece.rows], counted
        )
        loss.backward()
        for name, value in found.items():
            metrics[name] = metrics.get(name, 0.0) + value
    return metrics


def by_prompt(recipe: Grpo, batch: RolloutBatch, rows: Tensor, learner: Learner) -> Iterator[Piece]:
    """Some rows of a step in pieces; answers to one prompt, `samples` rows next to each other, share it."""
    prompts = (rows // recipe.samples).tolist()
    context = learner.actor.config.max_position_embeddings
    return shared_pieces(batch.tokens[rows], batch.mask[rows], prompts, context=context)


def loss_of(
    recipe: Grpo,
    experience: Experience,
    piece: Piece,
    rows: Tensor,
    learner: Learner,
    below: Tensor,
    counted: Tensor,
) -> tuple[Tensor, dict[str, float]]:
    """What a piece, which holds these rows of the step, adds to the loss and to each metric of an update.

    Args:
        below: `[rows]`, what each row's token losses are divided by.
        counted: tokens of the whole update.
    """
    batch = experience.batch
    mask, old = batch.mask[rows], batch.old_logprobs[rows]
    with learner.context():
        logprobs, entropy = piece.read(learner.actor, recipe.temperature)
    rule = policy_losses.bind(recipe.loss, recipe.loss_settings)
    losses, clipped = rule(logprobs, old, experience.advantages[rows], mask)
    if experience.reference_logprobs is not None:
        reference = experience.reference_logprobs[rows]
        losses = leash.losses_of(recipe, losses, logprobs, reference, mask, experience.kl_coef)
    loss = aggregate(losses / below[:, None], mask, 1.0)
    moved = log_ratio(logprobs.detach(), old, mask)
    parts = {
        "policy/approxkl_avg": k3(-moved),
        "clip_ratio/region_mean": clipped.float(),
        "entropy": entropy,
        "val/ratio": moved.exp(),
    }
    shares = {name: float(aggregate(x, mask, counted)) for name, x in parts.items()}
    return loss, {"loss": loss.item(), **shares}
