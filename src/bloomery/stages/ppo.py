"""Proximal policy optimisation against a frozen reward model, with a KL leash to the SFT model and,
if wanted, the pretraining objective in the same backward pass (PPO-ptx, Ouyang et al. 2022, equation 2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bloomery.data.shards import Corpus
from bloomery.errors import UsageError
from bloomery.models import hub, lora
from bloomery.models.llama import Llama, ScalarModel
from bloomery.objectives import advantage, policy, value
from bloomery.objectives.token import aggregate, masked_mean
from bloomery.recipe import InputPath
from bloomery.rollout.batch import RolloutBatch, in_pieces
from bloomery.stages import leash
from bloomery.stages.ahead import Ahead
from bloomery.stages.common import Context, Optimiser, text_loss, tune
from bloomery.stages.leash import Leashed
from bloomery.stages.online import average, checked, frozen, minibatches, reader, valuer
from bloomery.stages.stop import Best, StopRule
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.train import optim
from bloomery.train import step as update
from bloomery.train.run import Run
from bloomery.train.together import together

MEMORY = "scores"
"""Under this name a run's state holds the moments of the scores it has seen."""


class Ppo(Leashed):
    """Improve a policy against a reward model: PPO with a KL leash, and PPO-ptx when `ptx_coef` > 0."""

    reference: InputPath
    """The frozen model the leash is tied to: the SFT model."""
    reward: InputPath
    """The frozen reward model; the critic starts from it too."""
    corpus: InputPath | None = None
    """Pretraining text for the ptx term."""
    prompts_per_step: int = Field(128, ge=1)
    normalise_scores: bool = False
    """Learn from scores less their mean, over their standard deviation, of all that the run has seen."""
    whiten_rewards: bool = False
    """Scale the rewards of a step's tokens, score and leash together, to unit variance about their mean."""
    gamma: float = Field(1.0, ge=0, le=1)
    lam: float = Field(0.95, ge=0, le=1)
    clip: float = Field(0.2, gt=0)
    value_clip: float = Field(0.2, gt=0)
    epochs: int = Field(2, ge=1)
    """Passes over each step's rollouts."""
    ptx_coef: float = Field(0.0, ge=0)
    """gamma of PPO-ptx, for the mean loss per pretraining token."""
    ptx_batch: int = Field(16, ge=1)
    ptx_length: int | None = Field(None, ge=2)
    """Tokens of a row; the model's context when not given."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Save an average of the policy's weights instead of the last: each step keeps this much of the average
    so far, which begins as the policy did. Answers are drawn from the policy itself."""
    critic: Optimiser = Optimiser(learning_rate=1e-4, schedule="constant", warmup=5, weight_decay=0.0)
    stop_rule: StopRule | None = None
    """End the run before it over-optimises, by a watched source or a KL budget, and save the best weights."""

    @model_validator(mode="after")
    def _witnessed(self) -> Ppo:
        if self.stop_rule is not None:
            self.stop_rule.check(self.watch)
            if self.ema is not None:
                raise UsageError("ema and stop_rule both say which weights are saved", do="give one of them")
        return self


@dataclass(frozen=True, slots=True)
class Experience:
    """A step's rollouts with everything the update needs. All `[B, T]`, aligned with `batch.tokens`."""

    batch: RolloutBatch
    reference_logprobs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor
    kl_coef: float


@dataclass(frozen=True, slots=True)
class Learner:
    """What learns, each with its optimizer; the frozen reference; and how forwards are run."""

    actor: Llama
    critic: ScalarModel
    reference: Llama | lora.Bare
    optimizer: torch.optim.Optimizer
    critic_optimizer: torch.optim.Optimizer
    guard: update.Guard
    context: Context


def run(recipe: Ppo, out: Path) -> None:
    context, device = recipe.compute.setup()
    with Run(out, stage="ppo", recipe=recipe, checkpoint_every=recipe.compute.checkpoint_every) as run:
        chat = Chat(Tokenizer.load(recipe.policy))
        actor = hub.load(recipe.policy).to(device)
        learning = tune(actor, base=recipe.policy, lora=recipe.lora, seed=recipe.seed)
        sampler = Ahead(recipe, actor, chat, run)
        reference = frozen(recipe.reference, recipe, actor)
        critic = hub.load_beside(recipe.reward, actor)
        for model in (actor, critic):
            recipe.compute.prepare(model)
        corpus = Corpus.open(recipe.corpus, chat.tokenizer) if recipe.corpus and recipe.ptx_coef > 0 else None
        optimizer, critic_optimizer = recipe.optimiser.over(actor), recipe.critic.over(critic)
        best = Best(recipe.stop_rule, learning, sampler.asked) if recipe.stop_rule else None
        mean = optim.averaged(learning, recipe.ema) if recipe.ema is not None else None
        kept: dict[str, nn.Module] = sampler.kept | ({"best": best.kept} if best else {})
        kept |= {"mean": mean} if mean is not None else {}
        kept |= {"actor": learning, "critic": lora.learning(critic)}
        run.track(optimizer=optimizer, critic_optimizer=critic_optimizer, **kept)
        run.state.setdefault("kl_coef", recipe.kl_coef)
        for line in without_effect(recipe):
            run.line(line)
        learner = Learner(actor, critic, reference, optimizer, critic_optimizer, run.guard, context)
        for step in run.steps(recipe.steps):
            rollouts, asked, laps = sampler.newest(step)
            scores, metrics = sampler.score(rollouts)
            batch = RolloutBatch.of(rollouts, chat.tokenizer.pad_id, device)
            batch, agreement = checked(batch, asked, recipe.temperature, context, recipe.sampler_tolerance)
            given = torch.tensor(scores, device=device)
            worth = standing(given, run.state) if recipe.normalise_scores else given
            experience, looked = look_back(recipe, batch, given, worth, learner, run.state["kl_coef"])
            laps.end("scoring")
            ends = best is not None and best.look(step, metrics | looked, run.state)
            lr = recipe.optimiser.schedule_step(optimizer, step, recipe.steps)
            recipe.critic.schedule_step(critic_optimizer, step, recipe.steps)
            learn = partial(improve, recipe, step, experience, learner, corpus)
            metrics |= agreement | looked | sampler.beside(step, learn)
            laps.end("training")
            leash.steer(recipe, run.state, metrics)
            if mean is not None:
                mean.update_parameters(learning)
            ended = float(sum(r.completion.finish_reason == "stop" for r in rollouts))
            metrics |= {"episode": float((step + 1) * len(rollouts)), "lr": lr, "val/num_eos_tokens": ended}
            run.log(step, metrics | laps.rates(rollouts) | recipe.compute.timing())
            if ends:
                break
        if best is not None:
            run.line(best.settle(run.state))
        if mean is not None:
            learning.load_state_dict(mean.module.state_dict())
        hub.save(actor, out, tokenizer_dir=recipe.policy)
        run.finish(data=[{"source": str(path)} for path in recipe.prompts])


def without_effect(recipe: Ppo) -> list[str]:
    """What is set and changes nothing in this run."""
    alone = (recipe.ptx_coef > 0) != (recipe.corpus is not None)
    said = ["ptx_coef and corpus change nothing without each other"] if alone else []
    return said + leash.without_effect(recipe)


def standing(scores: Tensor, state: dict[str, Any]) -> Tensor:
    """Scores `[B]` against all of the run so far, these included, whose moments are kept in its state."""
    seen = advantage.joined(advantage.Moments(*state.get(MEMORY, ())), scores.tolist())
    state[MEMORY] = seen
    return advantage.standardised(scores, seen)


@torch.no_grad()
def look_back(
    recipe: Ppo, batch: RolloutBatch, scores: Tensor, worth: Tensor, learner: Learner, kl_coef: float
) -> tuple[Experience, dict[str, float]]:
    """Log-probs, values, rewards and advantages of rollouts under the weights that sampled them.

    Args:
        scores: `[B]`, what is said of each answer.
        worth: `[B]`, what of that is learned from: the same, or normalised.
    """
    tokens, mask = batch.tokens, batch.mask
    read, value_of = reader(learner.reference, recipe.temperature, entropy=False), valuer(learner.critic)
    (ref, _), (values,) = together(
        partial(read_rows, learner, read, tokens, mask),
        partial(read_rows, learner, value_of, tokens, mask),
        tokens.device,
    )
    log_ratio = policy.log_ratio(batch.old_logprobs, ref, mask)
    rewards = leash.rewards_of(recipe, worth, log_ratio, mask, kl_coef)
    if recipe.whiten_rewards:
        rewards = advantage.whiten(rewards, mask, shift_mean=False)
    advantages, returns = advantage.gae(rewards, values, mask, recipe.gamma, recipe.lam)
    advantages = advantage.whiten(advantages, mask)
    cost = -kl_coef * recipe.divergence(log_ratio).sum(1)
    metrics = {
        "objective/kl": float(log_ratio.sum(1).mean()),
        "objective/kl_k1": float(masked_mean(policy.k1(log_ratio), mask)),
        "objective/kl_k3": float(masked_mean(policy.k3(log_ratio), mask)),
        "objective/kl_coef": kl_coef,
        "objective/entropy": float(-batch.old_logprobs.sum(1).mean()),
        "objective/scores": float(scores.mean()),
        "objective/non_score_reward": float(cost.mean()),
        "objective/rlhf_reward": float((worth + cost).mean()),
        "explained_variance": value.explained_variance(values, returns, mask),
    }
    return Experience(batch, ref, values, advantages, returns, kl_coef), metrics


def improve(
    recipe: Ppo, step: int, experience: Experience, learner: Learner, corpus: Corpus | None
) -> dict[str, float]:
    """The step's passes over its rollouts: one optimizer step a minibatch. Returns mean metrics."""
    rows, seen = len(experience.batch.tokens), list[dict[str, float]]()
    for number, index in minibatches(recipe, step, rows):
        (actor_loss, metrics), (critic_loss, judged) = together(
            partial(actor_loss_of, recipe, experience, index, learner),
            partial(critic_loss_of, recipe, experience, index, learner),
            experience.batch.tokens.device,
        )
        if seen and recipe.target_kl is not None and metrics["policy/approxkl_avg"] > recipe.target_kl:
            return average(seen) | {"policy/stopped_early": 1.0}
        metrics |= judged
        if corpus is not None:
            with learner.context():
                ptx = text_loss(
                    learner.actor,
                    corpus,
                    rows=recipe.ptx_batch,
                    length=recipe.ptx_length,
                    seed=recipe.seed,
                    step=number,
                )
            metrics["loss/ptx_avg"] = ptx.item()
            if not seen:
                metrics["grad_norm/ptx"] = update.norm_of(recipe.ptx_coef * ptx, learner.actor)
                metrics["grad_norm/ppo"] = update.norm_of(actor_loss, learner.actor)
            actor_loss = actor_loss + recipe.ptx_coef * ptx
        together(actor_loss.backward, critic_loss.backward, experience.batch.tokens.device)
        metrics["grad_norm"], metrics["grad_norm/critic"] = update.apply_all(
            [
                (learner.optimizer, recipe.optimiser.max_norm),
                (learner.critic_optimizer, recipe.critic.max_norm),
            ],
            guard=learner.guard,
            loss=actor_loss.item() + critic_loss.item(),
            batch=f"step {step}, minibatch {number}",
        )
        seen.append(metrics)
    return average(seen) | {"policy/stopped_early": 0.0}


def read_rows(
    learner: Learner, read: Callable[[Tensor, Tensor], tuple[Tensor, ...]], tokens: Tensor, mask: Tensor
) -> tuple[Tensor, ...]:
    """What a reader gives for some rows, in the precision of the run."""
    with learner.context():
        return in_pieces(read, tokens, mask)


def actor_loss_of(
    recipe: Ppo, experience: Experience, rows: Tensor, learner: Learner
) -> tuple[Tensor, dict[str, float]]:
    """The clipped surrogate on some rows of the experience, per counted token."""
    tokens, mask = experience.batch.tokens[rows], experience.batch.mask[rows]
    logprobs, entropy = read_rows(learner, reader(learner.actor, recipe.temperature), tokens, mask)
    moved = policy.log_ratio(logprobs, experience.batch.old_logprobs[rows], mask)
    losses, clipped = policy.ppo_clip(moved, experience.advantages[rows], recipe.clip)
    reference = experience.reference_logprobs[rows]
    losses = leash.losses_of(recipe, losses, logprobs, reference, mask, experience.kl_coef)
    loss = aggregate(losses, mask, mask.sum())
    ratio = moved.detach()[mask].exp()
    metrics = {
        "policy/approxkl_avg": float(masked_mean(policy.k3(-moved.detach()), mask)),
        "policy/clipfrac_avg": float(masked_mean(clipped.float(), mask)),
        "policy/entropy_avg": float(masked_mean(entropy, mask)),
        "loss/policy_avg": loss.item(),
        "val/ratio": float(ratio.mean()),
        "val/ratio_var": float(ratio.var(unbiased=False)),
    }
    return loss, metrics


def critic_loss_of(
    recipe: Ppo, experience: Experience, rows: Tensor, learner: Learner
) -> tuple[Tensor, dict[str, float]]:
    """The critic's clipped loss on some rows of the experience, per counted token."""
    tokens, mask = experience.batch.tokens[rows], experience.batch.mask[rows]
    (values,) = read_rows(learner, valuer(learner.critic), tokens, mask)
    losses, clipped = value.clipped_value_loss(
        values, experience.old_values[rows], experience.returns[rows], recipe.value_clip
    )
    loss = aggregate(losses, mask, mask.sum())
    return loss, {
        "loss/value_avg": loss.item(),
        "val/clipfrac_avg": float(masked_mean(clipped.float(), mask)),
    }
