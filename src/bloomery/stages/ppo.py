"""Proximal policy optimisation against a frozen reward model, with a KL leash to the SFT model and,
if wanted, the pretraining objective in the same backward pass (PPO-ptx, Ouyang et al. 2022, equation 2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field, model_validator
from torch import Tensor

from bloomery.data.shards import Corpus
from bloomery.models import hub
from bloomery.models.llama import Llama, ScalarModel
from bloomery.models.lora import Bare
from bloomery.objectives import advantage, policy, value
from bloomery.objectives.token import aggregate, masked_mean, predicting, scatter
from bloomery.recipe import InputPath
from bloomery.rollout.batch import RolloutBatch, in_pieces
from bloomery.stages.common import Context, Optimiser, text_loss, tune
from bloomery.stages.online import Laps, Online, Sampler, average, checked, frozen, minibatches, reader
from bloomery.stages.stop import Best, StopRule
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.train import step as update
from bloomery.train.run import Run


class Ppo(Online):
    """Improve a policy against a reward model: PPO with a KL leash, and PPO-ptx when `ptx_coef` > 0."""

    reference: InputPath
    """The frozen model the leash is tied to: the SFT model."""
    reward: InputPath
    """The frozen reward model; the critic starts from it too."""
    corpus: InputPath | None = None
    """Pretraining text for the ptx term."""
    prompts_per_step: int = Field(128, ge=1)
    kl_coef: float = Field(0.2, ge=0)
    """beta: what a nat of divergence from the reference costs."""
    gamma: float = Field(1.0, ge=0, le=1)
    lam: float = Field(0.95, ge=0, le=1)
    clip: float = Field(0.2, gt=0)
    value_clip: float = Field(0.2, gt=0)
    epochs: int = Field(2, ge=1)
    """Passes over each step's rollouts."""
    target_kl: float | None = Field(0.05, gt=0)
    """Stop a step's passes when the policy has moved this far (nats a token) from where it sampled."""
    sampler_tolerance: float = Field(1e-4, ge=0)
    """Where sampler and trainer differ by more than this in a token's log-prob, the trainer's are used."""
    ptx_coef: float = Field(0.0, ge=0)
    """gamma of PPO-ptx, for the mean loss per pretraining token."""
    ptx_batch: int = Field(16, ge=1)
    ptx_length: int | None = Field(None, ge=2)
    """Tokens of a row; the model's context when not given."""
    critic: Optimiser = Optimiser(learning_rate=1e-4, schedule="constant", warmup=5, weight_decay=0.0)
    stop_rule: StopRule | None = None
    """End the run where its score still rises and a watched source does not, and save the best weights."""

    @model_validator(mode="after")
    def _witnessed(self) -> Ppo:
        if self.stop_rule is not None:
            self.stop_rule.check(self.watch)
        return self


@dataclass(frozen=True, slots=True)
class Experience:
    """A step's rollouts with everything the update needs. All `[B, T]`, aligned with `batch.tokens`."""

    batch: RolloutBatch
    old_values: Tensor
    advantages: Tensor
    returns: Tensor


@dataclass(frozen=True, slots=True)
class Learner:
    """What learns, each with its optimizer: the policy and its critic; the frozen reference; how forwards are
    run."""

    actor: Llama
    critic: ScalarModel
    reference: Llama | Bare
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
        sampler = Sampler(recipe, actor, chat, run.line)
        reference = frozen(recipe.reference, recipe, actor)
        critic = hub.load(recipe.reward, "scalar").to(device)
        corpus = Corpus.open(recipe.corpus) if recipe.corpus and recipe.ptx_coef > 0 else None
        optimizer, critic_optimizer = recipe.optimiser.adamw(actor), recipe.critic.adamw(critic)
        best = Best(recipe.stop_rule, learning) if recipe.stop_rule else None
        kept = {"best": best.kept} if best else {}
        run.track(
            actor=learning, critic=critic, optimizer=optimizer, critic_optimizer=critic_optimizer, **kept
        )
        learner = Learner(actor, critic, reference, optimizer, critic_optimizer, run.guard, context)
        for step in run.steps(recipe.steps):
            laps = Laps()
            rollouts = sampler.ask(step)
            laps.end("generation")
            scores, metrics = sampler.score(rollouts)
            batch = RolloutBatch.of(rollouts, chat.tokenizer.pad_id, device)
            batch, agreement = checked(batch, actor, recipe.temperature, context, recipe.sampler_tolerance)
            experience, looked = look_back(recipe, batch, torch.tensor(scores, device=device), learner)
            laps.end("scoring")
            ends = best is not None and best.look(step, metrics | looked, run.state)
            lr = recipe.optimiser.schedule_step(optimizer, step, recipe.steps)
            recipe.critic.schedule_step(critic_optimizer, step, recipe.steps)
            metrics |= agreement | looked | improve(recipe, step, experience, learner, corpus)
            laps.end("training")
            ended = sum(r.completion.finish_reason == "stop" for r in rollouts)
            metrics |= {
                "episode": float((step + 1) * len(rollouts)),
                "lr": lr,
                "val/num_eos_tokens": float(ended),
            }
            run.log(step, metrics | laps.rates(rollouts))
            if ends:
                break
        if best is not None:
            run.line(best.settle(run.state))
        hub.save(actor, out, tokenizer_dir=recipe.policy)
        run.finish(data=[{"source": str(path)} for path in recipe.prompts])


@torch.no_grad()
def look_back(
    recipe: Ppo, batch: RolloutBatch, scores: Tensor, learner: Learner
) -> tuple[Experience, dict[str, float]]:
    """Log-probs, values, rewards and advantages of rollouts under the weights that sampled them.

    Args:
        scores: `[B]`, what each answer is worth.
    """
    tokens, mask = batch.tokens, batch.mask
    with learner.context():
        ref = in_pieces(reader(learner.reference, recipe.temperature, entropy=False), tokens, mask)[0]
        (values,) = in_pieces(valuer(learner.critic), tokens, mask)
    log_ratio = policy.log_ratio(batch.old_logprobs, ref, mask)
    rewards = advantage.leashed_rewards(scores, log_ratio, mask, recipe.kl_coef)
    advantages, returns = advantage.gae(rewards, values, mask, recipe.gamma, recipe.lam)
    advantages = advantage.whiten(advantages, mask)
    leash = -recipe.kl_coef * log_ratio.sum(1)
    metrics = {
        "objective/kl": float(log_ratio.sum(1).mean()),
        "objective/kl_k1": float(masked_mean(policy.k1(log_ratio), mask)),
        "objective/kl_k3": float(masked_mean(policy.k3(log_ratio), mask)),
        "objective/kl_coef": recipe.kl_coef,
        "objective/entropy": float(-batch.old_logprobs.sum(1).mean()),
        "objective/scores": float(scores.mean()),
        "objective/non_score_reward": float(leash.mean()),
        "objective/rlhf_reward": float((scores + leash).mean()),
        "explained_variance": value.explained_variance(values, returns, mask),
    }
    return Experience(batch, values, advantages, returns), metrics


def improve(
    recipe: Ppo, step: int, experience: Experience, learner: Learner, corpus: Corpus | None
) -> dict[str, float]:
    """The step's passes over its rollouts: one optimizer step a minibatch. Returns mean metrics."""
    rows, seen = len(experience.batch.tokens), list[dict[str, float]]()
    for number, index in minibatches(recipe, step, rows):
        actor_loss, critic_loss, metrics = ppo_loss(recipe, experience, index, learner)
        if seen and recipe.target_kl is not None and metrics["policy/approxkl_avg"] > recipe.target_kl:
            return average(seen) | {"policy/stopped_early": 1.0}
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
                metrics["grad_norm/ptx"] = norm_of(recipe.ptx_coef * ptx, learner.actor)
                metrics["grad_norm/ppo"] = norm_of(actor_loss, learner.actor)
            actor_loss = actor_loss + recipe.ptx_coef * ptx
        (actor_loss + critic_loss).backward()
        total = actor_loss.item() + critic_loss.item()
        what = f"step {step}, minibatch {number}"
        metrics["grad_norm"] = update.apply(
            learner.optimizer, (), recipe.optimiser.max_norm, guard=learner.guard, loss=total, batch=what
        )
        metrics["grad_norm/critic"] = update.apply(
            learner.critic_optimizer,
            (),
            recipe.critic.max_norm,
            guard=learner.guard,
            loss=total,
            batch=what,
        )
        seen.append(metrics)
    return average(seen) | {"policy/stopped_early": 0.0}


def ppo_loss(
    recipe: Ppo, experience: Experience, rows: Tensor, learner: Learner
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """The clipped surrogate and the critic's loss on some rows of the experience, per counted token."""
    tokens, mask = experience.batch.tokens[rows], experience.batch.mask[rows]
    with learner.context():
        logprobs, entropy = in_pieces(reader(learner.actor, recipe.temperature), tokens, mask)
        (values,) = in_pieces(valuer(learner.critic), tokens, mask)
    moved = policy.log_ratio(logprobs, experience.batch.old_logprobs[rows], mask)
    losses, clipped = policy.ppo_clip(moved, experience.advantages[rows], recipe.clip)
    value_losses, value_clipped = value.clipped_value_loss(
        values, experience.old_values[rows], experience.returns[rows], recipe.value_clip
    )
    counted = mask.sum()
    actor_loss, critic_loss = aggregate(losses, mask, counted), aggregate(value_losses, mask, counted)
    ratio = moved.detach()[mask].exp()
    metrics = {
        "policy/approxkl_avg": float(masked_mean(policy.k3(-moved.detach()), mask)),
        "policy/clipfrac_avg": float(masked_mean(clipped.float(), mask)),
        "policy/entropy_avg": float(masked_mean(entropy, mask)),
        "loss/policy_avg": actor_loss.item(),
        "loss/value_avg": critic_loss.item(),
        "val/clipfrac_avg": float(masked_mean(value_clipped.float(), mask)),
        "val/ratio": float(ratio.mean()),
        "val/ratio_var": float(ratio.var(unbiased=False)),
    }
    return actor_loss, critic_loss, metrics


def valuer(critic: ScalarModel) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    """Values `[B, T]` of the states in which the counted tokens are chosen, 0.0 elsewhere."""
    return lambda tokens, mask: (scatter(critic(tokens, at=predicting(mask)).float(), mask),)


def norm_of(loss: Tensor, model: torch.nn.Module) -> float:
    """The gradient norm one term of a loss would have by itself; leaves the graph and `.grad` as they are."""
    learning = [p for p in model.parameters() if p.requires_grad]
    parts = torch.autograd.grad(loss, learning, retain_graph=True, allow_unused=True)
    return float(torch.sqrt(sum((g.square().sum() for g in parts if g is not None), torch.zeros(()))))
