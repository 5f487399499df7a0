"""Proximal policy optimisation against a frozen reward model, with a KL leash to the SFT model and,
if wanted, the pretraining objective in the same backward pass (PPO-ptx, Ouyang et al. 2022, equation 2)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from bloomery.data.loader import batch_indices
from bloomery.data.shards import Corpus
from bloomery.data.sources import OnBadRow, read_prompts
from bloomery.infer.engine import Engine
from bloomery.models import hub
from bloomery.models.llama import Llama, ScalarModel
from bloomery.models.lora import Bare
from bloomery.objectives import advantage, policy, value
from bloomery.objectives.token import aggregate, before, masked_mean
from bloomery.recipe import InputPath, Section
from bloomery.rewards.model import RewardModel
from bloomery.rewards.parts import Combined, Part
from bloomery.rewards.sources import Source, Tools, combined
from bloomery.rollout.batch import RolloutBatch, in_pieces
from bloomery.rollout.sample import ask
from bloomery.seeds import derive, stream
from bloomery.stages.common import Compute, Lora, Optimiser, read_all, text_loss, tune
from bloomery.stages.online import average, fitting, gold_grades, reader, score
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.train import step as update
from bloomery.train.run import Run
from bloomery.types import Reward, Rollout


class Ppo(Section):
    """Improve a policy against a reward model: PPO with a KL leash, and PPO-ptx when `ptx_coef` > 0."""

    policy: InputPath
    """Where to start: the SFT model, or the last round's policy."""
    reference: InputPath
    """The frozen model the leash is tied to: the SFT model."""
    reward: InputPath
    """The frozen reward model; the critic starts from it too."""
    rewards: tuple[Source, ...] = ()
    """More parts of the reward, added to the reward model's score; each is logged."""
    prompts: tuple[InputPath, ...]
    corpus: InputPath | None = None
    """Pretraining text for the ptx term."""
    world: InputPath | None = None
    """A world stage's directory: its oracle's grade of each step's answers is logged, never trained on."""
    on_bad_row: OnBadRow = "error"
    """Stop at a row that cannot be read, or skip and count it."""
    lora: Lora | None = None
    """The policy learns by adapters. Read without them it is the reference, if that is where it started: no
    second copy in memory."""
    seed: int = 0
    steps: int = Field(40, ge=1)
    prompts_per_step: int = Field(128, ge=1)
    max_tokens: int = Field(32, ge=1)
    temperature: float = Field(1.0, gt=0)
    kl_coef: float = Field(0.2, ge=0)
    """beta: what a nat of divergence from the reference costs."""
    gamma: float = Field(1.0, ge=0, le=1)
    lam: float = Field(0.95, ge=0, le=1)
    clip: float = Field(0.2, gt=0)
    value_clip: float = Field(0.2, gt=0)
    epochs: int = Field(2, ge=1)
    """Passes over each step's rollouts."""
    minibatches: int = Field(2, ge=1)
    """Optimizer steps of a pass."""
    target_kl: float | None = Field(0.05, gt=0)
    """Stop a step's passes when the policy has moved this far (nats a token) from where it sampled."""
    missing_eos_penalty: float = Field(1.0, ge=0)
    """Taken from the score of an answer that did not end."""
    score_clip: float | None = Field(None, gt=0)
    """Scores are clipped to plus or minus this."""
    ptx_coef: float = Field(0.0, ge=0)
    """gamma of PPO-ptx, for the mean loss per pretraining token."""
    ptx_batch: int = Field(16, ge=1)
    ptx_length: int | None = Field(None, ge=2)
    """Tokens of a row; the model's context when not given."""
    optimiser: Optimiser = Optimiser(learning_rate=5e-5, schedule="constant", warmup=5, weight_decay=0.0)
    critic: Optimiser = Optimiser(learning_rate=1e-4, schedule="constant", warmup=5, weight_decay=0.0)
    compute: Compute = Compute()


@dataclass(frozen=True, slots=True)
class Experience:
    """A step's rollouts with everything the update needs. All `[B, T]`, aligned with `batch.tokens`."""

    batch: RolloutBatch
    reference_logprobs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor


def run(recipe: Ppo, out: Path) -> None:
    _, device = recipe.compute.setup()
    with Run(out, stage="ppo", recipe=recipe, checkpoint_every=recipe.compute.checkpoint_every) as run:
        chat = Chat(Tokenizer.load(recipe.policy))
        actor = hub.load(recipe.policy).to(device)
        learning = tune(actor, base=recipe.policy, lora=recipe.lora, seed=recipe.seed)
        if recipe.lora is not None and recipe.policy.resolve() == recipe.reference.resolve():
            reference: Llama | Bare = Bare(actor)
        else:
            reference = hub.load(recipe.reference).to(device).requires_grad_(False)
        critic = hub.load(recipe.reward, "scalar").to(device)
        judge: Reward = RewardModel(hub.load(recipe.reward, "scalar").to(device), chat.tokenizer.pad_id)
        if recipe.rewards:
            judge = combined(recipe.rewards, Tools(chat, device), [Part("reward_model", judge)])
        corpus = Corpus.open(recipe.corpus) if recipe.corpus and recipe.ptx_coef > 0 else None
        prompts = read_all(read_prompts, recipe.prompts, recipe.on_bad_row, run.line)
        prompts = fitting(prompts, chat, actor.config.max_position_embeddings - recipe.max_tokens, run.line)
        rates = recipe.optimiser
        optimizer, critic_optimizer = rates.adamw(actor), recipe.critic.adamw(critic)
        run.track(actor=learning, critic=critic, optimizer=optimizer, critic_optimizer=critic_optimizer)
        learner = Learner(actor, critic, optimizer, critic_optimizer, run.guard)
        gold = gold_grades(recipe.world)
        engine = Engine(actor, stop_id=chat.tokenizer.end_id, pad_id=chat.tokenizer.pad_id)
        for step in run.steps(recipe.steps):
            clock = time.perf_counter()
            chosen = batch_indices(len(prompts), recipe.prompts_per_step, seed=recipe.seed, step=step)
            rollouts = ask(
                engine,
                chat,
                [prompts[i] for i in chosen],
                max_tokens=recipe.max_tokens,
                temperature=recipe.temperature,
                seed=derive(recipe.seed, "rollout", step),
            )
            sampled = time.perf_counter()
            scores = torch.tensor(score(judge, rollouts, recipe), device=device)
            experience, metrics = look_back(recipe, rollouts, scores, critic, reference, chat)
            metrics |= gold(rollouts) | (judge.metrics if isinstance(judge, Combined) else {})
            scored = time.perf_counter()
            lr = rates.schedule_step(optimizer, step, recipe.steps)
            recipe.critic.schedule_step(critic_optimizer, step, recipe.steps)
            metrics |= improve(recipe, step, experience, learner, corpus)
            done = time.perf_counter()
            metrics |= {
                "episode": (step + 1) * recipe.prompts_per_step,
                "lr": lr,
                "timing/generation": sampled - clock,
                "timing/scoring": scored - sampled,
                "timing/training": done - scored,
                "timing/step_total": done - clock,
                "rollout/tok_per_sec": float(experience.batch.mask.sum()) / (sampled - clock),
            }
            run.log(step, metrics)
        hub.save(actor, out, tokenizer_dir=recipe.policy)
        run.finish(data=[{"source": str(path)} for path in recipe.prompts])


@torch.no_grad()
def look_back(
    recipe: Ppo,
    rollouts: list[Rollout],
    scores: Tensor,
    critic: ScalarModel,
    reference: Llama | Bare,
    chat: Chat,
) -> tuple[Experience, dict[str, float]]:
    """Log-probs, values, rewards and advantages of rollouts under the weights that sampled them."""
    batch = RolloutBatch.of(rollouts, chat.tokenizer.pad_id, scores.device)
    tokens, mask = batch.tokens, batch.mask
    ref = in_pieces(reader(reference, recipe.temperature), tokens, mask)[0]
    log_ratio = policy.log_ratio(batch.old_logprobs, ref, mask)
    rewards = advantage.leashed_rewards(scores, log_ratio, mask, recipe.kl_coef)
    (values,) = in_pieces(valuer(critic), tokens, mask)
    advantages, returns = advantage.gae(rewards, values, mask, recipe.gamma, recipe.lam)
    advantages = advantage.whiten(advantages, mask)
    leash = -recipe.kl_coef * log_ratio.sum(1)
    ended = sum(r.completion.finish_reason == "stop" for r in rollouts)
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
        "val/num_eos_tokens": float(ended),
        "completions/mean_length": float(mask.sum(1).float().mean()),
        "completions/clipped_ratio": 1 - ended / len(rollouts),
    }
    return Experience(batch, ref, values, advantages, returns), metrics


@dataclass(frozen=True, slots=True)
class Learner:
    """What learns: the policy and its critic, each with its optimizer."""

    actor: Llama
    critic: ScalarModel
    optimizer: torch.optim.Optimizer
    critic_optimizer: torch.optim.Optimizer
    guard: update.Guard


def improve(
    recipe: Ppo, step: int, experience: Experience, learner: Learner, corpus: Corpus | None
) -> dict[str, float]:
    """The step's passes over its rollouts: one optimizer step a minibatch. Returns mean metrics."""
    rows, seen = len(experience.batch.tokens), list[dict[str, float]]()
    for epoch in range(recipe.epochs):
        order = torch.from_numpy(stream(recipe.seed, "minibatches", step, epoch).permutation(rows))
        for part, index in enumerate(order.chunk(recipe.minibatches)):
            actor_loss, critic_loss, metrics = ppo_loss(recipe, experience, index, learner)
            if not seen:  # the weights are still those that sampled: any difference is the sampler's
                metrics["sampling/sampling_logp_difference/mean"] = metrics["drift/mean"]
                metrics["sampling/sampling_logp_difference/max"] = metrics["drift/max"]
            elif recipe.target_kl is not None and metrics["policy/approxkl_avg"] > recipe.target_kl:
                return average(seen) | {"policy/stopped_early": 1.0}
            if corpus is not None:
                draw = (step * recipe.epochs + epoch) * recipe.minibatches + part
                ptx = text_loss(
                    learner.actor,
                    corpus,
                    rows=recipe.ptx_batch,
                    length=recipe.ptx_length,
                    seed=recipe.seed,
                    step=draw,
                )
                metrics["loss/ptx_avg"] = ptx.item()
                if not seen:
                    metrics["grad_norm/ptx"] = norm_of(recipe.ptx_coef * ptx, learner.actor)
                    metrics["grad_norm/ppo"] = norm_of(actor_loss, learner.actor)
                actor_loss = actor_loss + recipe.ptx_coef * ptx
            (actor_loss + critic_loss).backward()
            total = actor_loss.item() + critic_loss.item()
            what = f"step {step}, pass {epoch}, minibatch {part}"
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
    logprobs, entropy = in_pieces(reader(learner.actor, recipe.temperature), tokens, mask)
    moved = policy.log_ratio(logprobs, experience.batch.old_logprobs[rows], mask)
    losses, clipped = policy.ppo_clip(moved, experience.advantages[rows], recipe.clip)
    (values,) = in_pieces(valuer(learner.critic), tokens, mask)
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
        "drift/mean": float(moved.detach()[mask].abs().mean()),
        "drift/max": float(moved.detach()[mask].abs().max()),
    }
    return actor_loss, critic_loss, metrics


def valuer(critic: ScalarModel) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    """Values `[B, T]` of the states in which the counted tokens are chosen, 0.0 elsewhere."""
    return lambda tokens, mask: (torch.where(mask, before(critic(tokens)), 0.0),)


def norm_of(loss: Tensor, model: torch.nn.Module) -> float:
    """The gradient norm one term of a loss would have by itself; leaves the graph and `.grad` as they are."""
    learning = [p for p in model.parameters() if p.requires_grad]
    parts = torch.autograd.grad(loss, learning, retain_graph=True, allow_unused=True)
    return float(torch.sqrt(sum((g.square().sum() for g in parts if g is not None), torch.zeros(()))))
