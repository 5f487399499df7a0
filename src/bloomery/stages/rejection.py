"""Rejection-sampling fine-tuning: the policy answers, a reward says which answers are kept, the policy learns
them as demonstrations (Touvron et al. 2023, Llama 2, section 3.2.3). In several steps it is expert iteration:
each asks the policy that the one before has made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator

from bloomery.data.batches import pack
from bloomery.data.shards import Corpus
from bloomery.errors import UsageError
from bloomery.models import hub
from bloomery.models.llama import Llama
from bloomery.models.lora import Bare
from bloomery.models.slates import Example
from bloomery.objectives.group import constant_groups
from bloomery.objectives.policy import k3, log_ratio
from bloomery.objectives.search import keepers
from bloomery.objectives.token import masked_mean
from bloomery.recipe import InputPath
from bloomery.rollout.batch import RolloutBatch, in_pieces
from bloomery.stages.ahead import Ahead
from bloomery.stages.best_of_n import usable
from bloomery.stages.common import Context, Optimiser, Replay, Training, tune
from bloomery.stages.online import Online, average, frozen, minibatches, reader
from bloomery.stages.prefer_online import example
from bloomery.stages.sft import backward
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.train import step as update
from bloomery.train.run import Run
from bloomery.types import Rollout

ROWS = 64
"""Answers that are packed and read at a time; gradients add up, so it changes memory and not the result."""


class Rejection(Online):
    """Fine-tune a policy on the best of its own answers; in several steps this is expert iteration."""

    reference: InputPath | None = None
    """What divergence is measured from; the policy that it starts from when not given."""
    steps: int = Field(4, ge=1)
    """Rounds of asking, keeping and fine-tuning."""
    prompts_per_step: int = Field(256, ge=1)
    samples: int = Field(8, ge=1)
    """Answers to each prompt."""
    keep: str = "best"
    """Which answers are learned: best, above or top."""
    keep_settings: dict[str, float] = Field({})
    """Keyword arguments of `keep`: the count of best, the threshold of above, the share of top."""
    skip_constant: bool = True
    """Leave out prompts whose answers all score the same: nothing says which of them is better."""
    earlier: int = Field(0, ge=0)
    """Steps back whose kept answers are learned again beside the newest."""
    corpus: InputPath | None = None
    """Pretraining text to go on reading, so that facts are not unlearned."""
    replay: Replay = Replay()
    epochs: int = Field(2, ge=1)
    """Passes over each step's kept answers."""
    minibatches: int = Field(8, ge=1)
    """Optimizer steps of a pass."""
    optimiser: Optimiser = Optimiser(learning_rate=1e-4, schedule="constant", warmup=5, weight_decay=0.0)
    compute: Training = Training(checkpoint_every=1)

    @model_validator(mode="after")
    def _usable(self) -> Rejection:
        """What is kept is tried before anything is loaded."""
        keepers.bind(self.keep, self.keep_settings)
        if self.keep == "best" and self.samples <= self.keep_settings.get("count", 1):
            raise UsageError(
                "nothing would be rejected",
                got=f"the best {self.keep_settings.get('count', 1):g} of samples={self.samples}",
                do="ask for more samples, or keep by above or top",
            )
        return self


@dataclass(frozen=True, slots=True)
class Learner:
    """The policy with its optimizer, the text it goes on reading, and how forwards are run."""

    actor: Llama
    corpus: Corpus | None
    optimizer: torch.optim.Optimizer
    guard: update.Guard
    context: Context
    pad_id: int


def run(recipe: Rejection, out: Path) -> None:
    context, device = recipe.compute.setup()
    every = recipe.compute.checkpoint_every
    with Run(out, stage="rejection", recipe=recipe, checkpoint_every=every) as run:
        chat = Chat(Tokenizer.load(recipe.policy))
        actor = hub.load(recipe.policy).to(device)
        learning = tune(actor, base=recipe.policy, lora=recipe.lora, seed=recipe.seed)
        recipe.compute.prepare(actor)
        sampler = Ahead(recipe, actor, chat, run, recipe.samples)
        reference = frozen(recipe.reference or recipe.policy, recipe, actor)
        corpus = recipe.replay.open(recipe.corpus, chat.tokenizer, run.line)
        optimizer = recipe.optimiser.over(actor)
        run.track(actor=learning, optimizer=optimizer, **sampler.kept)
        learner = Learner(actor, corpus, optimizer, run.guard, context, chat.tokenizer.pad_id)
        for step in run.steps(recipe.steps):
            rollouts, _, laps = sampler.newest(step)
            scores, metrics = sampler.score(rollouts)
            kept, found = choose(recipe, rollouts, scores)
            metrics |= found | moved(recipe, rollouts, reference, learner)
            winners = [r for r, chosen in zip(rollouts, kept, strict=True) if chosen]
            metrics |= {f"kept/{name.removeprefix('gold/')}": x for name, x in sampler.gold(winners).items()}
            laps.end("scoring")
            shown = remember(run.state, [example(r) for r in winners], recipe.earlier)
            if not shown:
                run.line(f"step {step}: no answer is kept, so nothing is learned")
            metrics |= sampler.beside(step, partial(improve, recipe, step, shown, learner))
            laps.end("training")
            metrics["episode"] = float((step + 1) * len(rollouts))
            run.log(step, metrics | laps.rates(rollouts) | recipe.compute.timing())
        hub.save(actor, out, tokenizer_dir=recipe.policy)
        run.finish(data=[{"source": str(path)} for path in recipe.prompts])


def choose(
    recipe: Rejection, rollouts: Sequence[Rollout], scores: Sequence[float]
) -> tuple[list[bool], dict[str, float]]:
    """Which answers are learned, and what is logged of the choice.

    An answer that is empty or was cut off is never learned: who learned it would learn to say nothing, or to
    end in the middle. Groups of one answer are never constant.
    """
    given = torch.tensor(scores, dtype=torch.float64).view(-1, recipe.samples)
    constant = constant_groups(given) & (recipe.samples > 1)
    fit = torch.tensor([usable(r.text, r.completion.finish_reason == "stop") for r in rollouts])
    may = fit.view_as(given) & ~(constant & recipe.skip_constant)[:, None]
    kept = keepers.bind(recipe.keep, recipe.keep_settings)(given.masked_fill(~may, -math.inf))
    metrics = {
        "reward": float(given.mean()),
        "reward_std": float(given.std(unbiased=False)),
        "frac_reward_zero_std": float(constant.double().mean()),
        "completions/unusable_ratio": 1 - float(fit.double().mean()),
        "kept/num": float(kept.sum()),
        "kept/num_prompts": float(kept.any(1).sum()),
    }
    if kept.any():
        metrics["kept/reward"] = float(given[kept].mean())
    return kept.flatten().tolist(), metrics


@torch.no_grad()
def moved(
    recipe: Rejection, rollouts: Sequence[Rollout], reference: Llama | Bare, learner: Learner
) -> dict[str, float]:
    """The policy's divergence from the reference, on the first answer to each prompt: one says as much on
    average as all of them, at a fraction of the cost."""
    device = next(learner.actor.parameters()).device
    batch = RolloutBatch.of(rollouts[:: recipe.samples], learner.pad_id, device)
    read = reader(reference, recipe.temperature, entropy=False)
    away = log_ratio(batch.old_logprobs, in_pieces(read, batch.tokens, batch.mask)[0], batch.mask)
    return {"kl": float(masked_mean(k3(away), batch.mask)), "objective/kl": float(away.sum(1).mean())}


def remember(state: dict[str, Any], kept: Sequence[Example], earlier: int) -> list[Example]:
    """What is learned in this step: what it kept, and what the `earlier` steps before it did. The state, part
    of every checkpoint, holds what the next step needs."""
    window = [*state.get("kept", []), [[list(tokens), list(mask)] for tokens, mask in kept]]
    state["kept"] = window[-earlier:] if earlier else []
    return [(tokens, mask) for one in window for tokens, mask in one]


def improve(recipe: Rejection, step: int, shown: Sequence[Example], learner: Learner) -> dict[str, float]:
    """The step's passes over what is learned: one optimizer step a minibatch. Returns mean metrics."""
    seen: list[dict[str, float]] = []
    total = recipe.steps * recipe.epochs * recipe.minibatches
    for number, rows in minibatches(recipe, step, len(shown)):
        lr = recipe.optimiser.schedule_step(learner.optimizer, number, total)
        metrics, objective = imitate(recipe, number, [shown[i] for i in rows], learner)
        metrics["grad_norm"] = update.apply(
            learner.optimizer,
            recipe.optimiser.max_norm,
            guard=learner.guard,
            loss=objective,
            batch=f"step {step}, minibatch {number}",
        )
        seen.append(metrics | {"learning_rate": lr})
    return average(seen)


def imitate(
    recipe: Rejection, number: int, shown: Sequence[Example], learner: Learner
) -> tuple[dict[str, float], float]:
    """Leave the gradient of the fine-tuning loss of some answers, and of replayed text, in `.grad`.

    Returns its metrics, and the value of what is minimised."""
    device = next(learner.actor.parameters()).device
    parts = [pack(shown[i : i + ROWS], learner.pad_id).to(device) for i in range(0, len(shown), ROWS)]
    metrics = backward(learner.actor, parts, learner.context)
    metrics["kept/num_tokens"] = metrics.pop("num_tokens")
    objective = metrics["loss"]
    if learner.corpus is not None:
        text = recipe.replay.text(learner.actor, learner.corpus, recipe.seed, number)
        metrics |= recipe.replay.backward(learner.actor, text, learner.context)
        objective += recipe.replay.coef * metrics["loss/replay"]
    return metrics, objective
