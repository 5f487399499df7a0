"""Online DPO: the policy answers, a reward says which of its answers are better, the policy learns from that.

The same losses and the same comparison as in `prefer.py`; only the pairs are new in every step, from the
policy as it stands (Guo et al. 2024, arXiv 2402.04792: the reward takes the place of their AI annotator).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from bloomery.data.loader import batch_indices
from bloomery.data.sources import OnBadRow, read_prompts
from bloomery.errors import UsageError
from bloomery.infer.engine import Engine
from bloomery.models import hub
from bloomery.models.llama import Llama
from bloomery.models.slates import Example, answer_logprobs
from bloomery.objectives import preference
from bloomery.objectives.preference import Loss
from bloomery.recipe import InputPath, Section
from bloomery.rewards.model import RewardModel
from bloomery.rewards.parts import Part
from bloomery.rewards.sources import Source, Tools, combined
from bloomery.rollout.sample import ask
from bloomery.seeds import derive, stream
from bloomery.stages.common import Compute, Optimiser, read_all
from bloomery.stages.online import average, fitting, gold_grades, score
from bloomery.stages.prefer import Slate, compare, loss_of
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.train import step as update
from bloomery.train.run import Run
from bloomery.types import Rollout, ranked_pairs


class PreferOnline(Section):
    """Train a policy on its own answers, ranked by a reward: online DPO and its family."""

    policy: InputPath
    """Where to start: the SFT model, or the last round's policy."""
    reference: InputPath | None = None
    """The frozen model that the policy is compared with; the one it starts from when not given."""
    reward: InputPath | None = None
    """The frozen reward model."""
    rewards: tuple[Source, ...] = ()
    """Further parts of the reward, or others instead of the reward model."""
    prompts: tuple[InputPath, ...]
    world: InputPath | None = None
    """A world stage's directory: its oracle's grade of each step's answers is logged, never trained on."""
    on_bad_row: OnBadRow = "error"
    """Stop at a row that cannot be read, or skip and count it."""
    seed: int = 0
    steps: int = Field(40, ge=1)
    prompts_per_step: int = Field(32, ge=1)
    samples: int = Field(2, ge=2)
    """Answers to each prompt; all their pairs count but those that score the same."""
    max_tokens: int = Field(32, ge=1)
    temperature: float = Field(1.0, gt=0)
    loss: str = "dpo"
    """dpo, robust, ipo, hinge, kto, orpo or simpo."""
    loss_settings: dict[str, Any] = Field({})
    """Keyword arguments of the loss, such as beta; its own defaults where not given."""
    epochs: int = Field(1, ge=1)
    """Passes over each step's answers."""
    minibatches: int = Field(2, ge=1)
    """Optimizer steps of a pass."""
    missing_eos_penalty: float = Field(1.0, ge=0)
    """Taken from the score of an answer that did not end."""
    score_clip: float | None = Field(None, gt=0)
    """Scores are clipped to plus or minus this."""
    optimiser: Optimiser = Optimiser(learning_rate=5e-5, schedule="constant", warmup=5, weight_decay=0.0)
    compute: Compute = Compute()

    @model_validator(mode="after")
    def _usable(self) -> PreferOnline:
        """The loss and its settings are tried before anything is loaded."""
        preference.losses.bind(self.loss, self.loss_settings)
        if self.reward is None and not self.rewards:
            raise UsageError("there is no reward", do="give `reward`, or list `rewards`")
        return self


@dataclass(frozen=True, slots=True)
class Learner:
    """The policy with its optimizer, the frozen reference if the loss reads one, and how forwards are run."""

    actor: Llama
    frozen: Llama | None
    loss: Loss
    optimizer: torch.optim.Optimizer
    guard: update.Guard
    context: Callable[[], AbstractContextManager[object]]
    pad_id: int


def run(recipe: PreferOnline, out: Path) -> None:
    context, device = recipe.compute.setup()
    loss = preference.losses.bind(recipe.loss, recipe.loss_settings)
    every = recipe.compute.checkpoint_every
    with Run(out, stage="prefer_online", recipe=recipe, checkpoint_every=every) as run:
        chat = Chat(Tokenizer.load(recipe.policy))
        pad_id = chat.tokenizer.pad_id
        actor = hub.load(recipe.policy).to(device)
        frozen = None
        if preference.needs_reference(loss):
            frozen = hub.load(recipe.reference or recipe.policy).to(device).requires_grad_(False)
        elif recipe.reference is not None:
            run.line(f"'{recipe.loss}' does not read a reference: {recipe.reference} has no effect")
        parts = list[Part]()
        if recipe.reward is not None:
            judge = RewardModel(hub.load(recipe.reward, "scalar").to(device), pad_id)
            parts.append(Part("reward_model", judge))
        reward = combined(recipe.rewards, Tools(chat, device), parts)
        prompts = read_all(read_prompts, recipe.prompts, recipe.on_bad_row, run.line)
        prompts = fitting(prompts, chat, actor.config.max_position_embeddings - recipe.max_tokens, run.line)
        optimizer = recipe.optimiser.adamw(actor)
        run.track(actor=actor, optimizer=optimizer)
        learner = Learner(actor, frozen, loss, optimizer, run.guard, context, pad_id)
        gold = gold_grades(recipe.world)
        engine = Engine(actor, stop_id=chat.tokenizer.end_id, pad_id=pad_id)
        for step in run.steps(recipe.steps):
            clock = time.perf_counter()
            chosen = batch_indices(len(prompts), recipe.prompts_per_step, seed=recipe.seed, step=step)
            rollouts = ask(
                engine,
                chat,
                [prompts[i] for i in chosen for _ in range(recipe.samples)],
                max_tokens=recipe.max_tokens,
                temperature=recipe.temperature,
                seed=derive(recipe.seed, "rollout", step),
            )
            sampled = time.perf_counter()
            slates, metrics = to_slates(rollouts, score(reward, rollouts, recipe), recipe.samples)
            metrics |= reward.metrics | gold(rollouts)
            scored = time.perf_counter()
            metrics["learning_rate"] = recipe.optimiser.schedule_step(optimizer, step, recipe.steps)
            metrics |= improve(recipe, step, slates, learner)
            done = time.perf_counter()
            metrics |= {
                "episode": float((step + 1) * len(rollouts)),
                "timing/generation": sampled - clock,
                "timing/scoring": scored - sampled,
                "timing/training": done - scored,
                "timing/step_total": done - clock,
            }
            run.log(step, metrics)
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
    lengths, found = [len(r.completion.tokens) for r in rollouts], torch.tensor(scores)
    return slates, {
        "reward": float(found.mean()),
        "reward_std": float(found.std(unbiased=False)),
        "frac_reward_zero_std": 1 - len(slates) * samples / len(rollouts),
        "completions/mean_length": sum(lengths) / len(lengths),
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
    for epoch in range(recipe.epochs):
        order = torch.from_numpy(stream(recipe.seed, "minibatches", step, epoch).permutation(len(slates)))
        for part in order.chunk(recipe.minibatches):
            with learner.context():
                pairs, weights = compare(
                    learner.actor,
                    [slates[i] for i in part],
                    lambda some: torch.cat([known[s.id] for s in some]),
                    learner.pad_id,
                )
            objective, metrics = loss_of(learner.loss, pairs, weights)
            objective.backward()
            metrics["grad_norm"] = update.apply(
                learner.optimizer,
                (),
                recipe.optimiser.max_norm,
                guard=learner.guard,
                loss=objective,
                batch=f"step {step}, pass {epoch}",
            )
            seen.append(metrics)
    return average(seen)


@torch.no_grad()
def read_reference(slates: Sequence[Slate], learner: Learner) -> dict[str, Tensor]:
    """The reference's log-probs of each slate's answers, read once for all passes; zeros without one."""
    sizes = [len(s.answers) for s in slates]
    logps = torch.zeros(sum(sizes), device=next(learner.actor.parameters()).device)
    if learner.frozen is not None:
        with learner.context():
            logps = answer_logprobs(learner.frozen, [s.answers for s in slates], learner.pad_id)[0]
    return {s.id: part for s, part in zip(slates, logps.split(sizes), strict=True)}
