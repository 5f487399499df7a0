"""What the stages that learn from their own answers share: what they are told, how they ask and score, and
how models read what was said."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from bloomery.data.loader import batch_indices
from bloomery.data.sources import OnBadRow, read_prompts
from bloomery.errors import DataError, UsageError
from bloomery.models import hub
from bloomery.models.llama import Llama, ScalarModel
from bloomery.models.lora import Bare
from bloomery.objectives.token import counted_logprobs, predicting, scatter
from bloomery.recipe import InputPath, Section
from bloomery.rewards.parts import Part
from bloomery.rewards.sources import Source, Tools, combined, reward_model
from bloomery.rollout.batch import RolloutBatch, in_pieces
from bloomery.rollout.sample import ask
from bloomery.seeds import derive, stream
from bloomery.stages.common import Compute, Context, Lora, Optimiser, Training, read_all, short_enough
from bloomery.text.chat import Chat
from bloomery.types import Prompt, Reward, Rollout
from bloomery.world import Oracle, read_questions, read_world

LARGEST = 1e18
"""Of a score: losses add up squares, and that of 1.9e19 is no float32 any more."""
CHECKED_ROWS = 8
"""Answers of a step whose log-probs are computed again, to see that sampler and trainer agree."""


class Asking(Section):
    """What every stage is told that asks a policy and has its answers scored."""

    policy: InputPath
    """Whom to ask, and where learning starts: the SFT model, or the last round's policy."""
    reward: InputPath | None = None
    """The frozen reward model."""
    rewards: tuple[Source, ...] = ()
    """Further parts of the reward, or others instead of the reward model; each is logged."""
    watch: tuple[Source, ...] = ()
    """What else is asked of each step's answers and logged as `watch/<name>/mean`, never trained on: a reward
    model that was held out, an ensemble and its disagreement."""
    prompts: tuple[InputPath, ...]
    world: InputPath | None = None
    """A world stage's directory: its oracle's grade of each step's answers is logged, never trained on."""
    on_bad_row: OnBadRow = "error"
    """Stop at a row that cannot be read, or skip and count it."""
    seed: int = 0
    prompts_per_step: int = Field(32, ge=1)
    max_tokens: int = Field(32, ge=1)
    temperature: float = Field(1.0, gt=0)
    missing_eos_penalty: float = Field(1.0, ge=0)
    """Taken from the score of an answer that did not end."""
    score_clip: float | None = Field(None, gt=0)
    """Scores are clipped to plus or minus this."""
    graphs: bool = False
    """On a GPU, draw answers by recorded CUDA graphs: less time a token, the same to rounding."""

    @model_validator(mode="after")
    def _rewarded(self) -> Asking:
        if self.reward is None and not self.rewards:
            raise UsageError("there is no reward", do="give `reward`, or list `rewards`")
        for one in self.watch:
            if one.weight != 1 or one.clip is not None:
                raise UsageError(f"'{one.logged}' is only watched: `weight` and `clip` would change nothing")
        return self


class Online(Asking):
    """What every stage that learns from its own answers is told."""

    lora: Lora | None = None
    """The policy learns by adapters. Read without them it is the reference, if that is where it started: no
    second copy in memory."""
    steps: int = Field(40, ge=1)
    epochs: int = Field(1, ge=1)
    """Passes over each step's answers."""
    minibatches: int = Field(2, ge=1)
    """Optimizer steps of a pass."""
    one_step_off: bool = False
    """Draw the answers of the next step while this one is learned from: by the policy as it was before."""
    rollout_device: str | None = None
    """With `one_step_off`: where answers are drawn, such as cuda:1; where it learns if not given."""
    optimiser: Optimiser = Optimiser(learning_rate=5e-5, schedule="constant", warmup=5, weight_decay=0.0)
    compute: Training = Training()

    @model_validator(mode="after")
    def _elsewhere(self) -> Online:
        if self.rollout_device is not None and not self.one_step_off:
            raise UsageError("rollout_device changes nothing by itself", do="set one_step_off=true")
        if self.graphs and self.one_step_off:
            # Both would launch on one GPU while a graph is recorded, which nobody has tried.
            raise UsageError("graphs do not go with one_step_off", do="set one of the two to false")
        return self


class Sampler:
    """Asks the policy as it stands, and scores what it says."""

    def __init__(
        self,
        recipe: Asking,
        actor: Llama,
        chat: Chat,
        say: Callable[[str], None],
        prompts: list[Prompt] | None = None,
        compute: Compute | None = None,
    ) -> None:
        """`prompts` are those of the recipe, if not given; `compute` says how answers are drawn."""
        tools = Tools(chat, next(actor.parameters()).device, actor)
        parts = []
        if recipe.reward is not None:
            parts.append(Part("reward_model", reward_model(recipe.reward, tools)))
        self.judge = combined(recipe.rewards, tools, parts)
        self.watch = watching(recipe.watch, tools)
        if prompts is None:
            prompts = read_all(read_prompts, recipe.prompts, recipe.on_bad_row, say)
        self.prompts = fitting(prompts, chat, actor.config.max_position_embeddings, recipe.max_tokens, say)
        self.gold = gold_grades(recipe.world)
        stop, pad = chat.tokenizer.end_id, chat.tokenizer.pad_id
        how = compute or Compute()
        self.engine = how.engine(actor, stop_id=stop, pad_id=pad, graphs=recipe.graphs)
        self.recipe, self.chat = recipe, chat

    def ask(self, step: int, samples: int = 1) -> list[Rollout]:
        """`samples` answers to each of a step's prompts, next to each other."""
        recipe = self.recipe
        chosen = batch_indices(len(self.prompts), recipe.prompts_per_step, seed=recipe.seed, step=step)
        return self.answers([self.prompts[i] for i in chosen], samples, step)

    def answers(self, prompts: Sequence[Prompt], samples: int, step: int) -> list[Rollout]:
        """`samples` answers to each of some prompts, next to each other, drawn by the stream of a step."""
        return ask(
            self.engine,
            self.chat,
            [prompt for prompt in prompts for _ in range(samples)],
            max_tokens=self.recipe.max_tokens,
            temperature=self.recipe.temperature,
            seed=derive(self.recipe.seed, "rollout", step),
        )

    def score(self, rollouts: Sequence[Rollout]) -> tuple[list[float], dict[str, float]]:
        """What each answer is worth, and what is logged of the answers and of each part of the reward."""
        scores = score(self.judge, rollouts, self.recipe)
        seen = self.watch(rollouts) | self.gold(rollouts)
        return scores, self.judge.metrics | of_answers(rollouts) | seen


class Laps:
    """Seconds that the parts of a step took, from when this was made."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def end(self, part: str) -> None:
        """A part is done; the next begins."""
        now = time.perf_counter()
        self.seconds |= {f"timing/{part}": now - self.last, "timing/step_total": now - self.start}
        self.last = now

    def rates(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """The seconds, with answers a second of the step and tokens a second of its `generation`."""
        tokens = sum(len(r.completion.tokens) for r in rollouts)
        return self.seconds | {
            "eps": len(rollouts) / self.seconds["timing/step_total"],
            "rollout/tok_per_sec": tokens / self.seconds["timing/generation"],
        }


def fitting(
    prompts: list[Prompt], chat: Chat, context: int, max_tokens: int, say: Callable[[str], None]
) -> list[Prompt]:
    """The prompts that leave room for an answer of `max_tokens`; says how many do not."""
    limit = context - max_tokens
    if limit < 1:
        raise UsageError(
            "max_tokens leaves no room for a prompt",
            got=f"max_tokens {max_tokens}",
            expected=f"less than the model's context, {context} tokens",
        )
    do = f"give shorter prompts, or lower max_tokens: the context holds {context}"
    return short_enough(prompts, lambda p: len(chat.prompt(p.messages)), limit, "prompts", say, do)


def watching(listed: Sequence[Source], tools: Tools) -> Callable[[Sequence[Rollout]], dict[str, float]]:
    """What the listed sources say of a step's answers, for a stop rule and for people to see."""
    if not listed:
        return lambda rollouts: {}
    asked = combined(listed, tools)

    def seen(rollouts: Sequence[Rollout]) -> dict[str, float]:
        asked(rollouts)
        return {f"watch/{name.removeprefix('rewards/')}": value for name, value in asked.metrics.items()}

    return seen


def gold_grades(world: Path | None) -> Callable[[Sequence[Rollout]], dict[str, float]]:
    """What a world's oracle says of a step's answers: for people to see; no stage learns of it."""
    if world is None:
        return lambda rollouts: {}
    oracle, asked = Oracle(read_world(world)), {q.id: q for q in read_questions(world)}

    def grades(rollouts: Sequence[Rollout]) -> dict[str, float]:
        found = [oracle.judge(asked[r.prompt.id], r.text) for r in rollouts if r.prompt.id in asked]
        return {"gold/graded_reward": float(np.mean([verdict.reward for verdict in found]))} if found else {}

    return grades


def score(judge: Reward, rollouts: Sequence[Rollout], recipe: Asking) -> list[float]:
    """What the reward says, clipped, less the penalty of an answer that was cut off.

    Raises `DataError` for a score that is too large to learn from.
    """
    found = judge(rollouts)
    limit = recipe.score_clip or float("inf")
    scores = [
        min(max(s, -limit), limit) - recipe.missing_eos_penalty * (r.completion.finish_reason == "length")
        for s, r in zip(found, rollouts, strict=True)
    ]
    for value, rollout in zip(scores, rollouts, strict=True):
        if abs(value) > LARGEST:
            raise DataError(
                "a score is too large to learn from",
                got=f"{value:g} for an answer to prompt '{rollout.prompt.id}'",
                expected=f"at most {LARGEST:g} in size, so that its square is a number of 32 bits",
                do="cut it off: score_clip, or the `clip` of a source in rewards",
            )
    return scores


def of_answers(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """How long the answers are, and how many were cut off."""
    lengths = [len(r.completion.tokens) for r in rollouts]
    cut_off = sum(r.completion.finish_reason == "length" for r in rollouts)
    return {
        "num_tokens": float(sum(lengths)),
        "completions/mean_length": sum(lengths) / len(lengths),
        "completions/min_length": float(min(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": cut_off / len(lengths),
    }


def frozen(origin: Path, recipe: Online, actor: Llama) -> Llama | Bare:
    """The reference read from `origin`. A policy that learns by adapters and started there is its own without
    them: no second copy in memory."""
    if recipe.lora is not None and origin.resolve() == recipe.policy.resolve():
        return Bare(actor)
    return hub.load(origin).to(next(actor.parameters()).device).requires_grad_(False)


def reader(
    model: Llama | Bare, temperature: float, *, entropy: bool = True
) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    """Log-probs and entropies `[B, T]` of the counted tokens under a model; entropies 0.0 if not wanted."""
    return lambda tokens, mask: counted_logprobs(
        model(tokens, at=predicting(mask)), model.logits, tokens, mask, temperature, entropy=entropy
    )


def valuer(critic: ScalarModel) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    """Values `[B, T]` of the states in which the counted tokens are chosen, 0.0 elsewhere."""
    return lambda tokens, mask: (scatter(critic(tokens, at=predicting(mask)).float(), mask),)


@torch.no_grad()
def checked(
    batch: RolloutBatch, actor: Llama, temperature: float, context: Context, tolerance: float
) -> tuple[RolloutBatch, dict[str, float]]:
    """The batch with log-probs that the trainer can be held against: the sampler's where both agree within
    `tolerance` on some rows, else the trainer's own."""
    read = reader(actor, temperature, entropy=False)
    rows = torch.arange(0, len(batch.tokens), -(-len(batch.tokens) // CHECKED_ROWS))
    mask = batch.mask[rows]
    with context():
        (found, _) = in_pieces(read, batch.tokens[rows], mask)
        gap = (found - batch.old_logprobs[rows])[mask].abs()
        agree = bool(gap.max() <= tolerance)
        if not agree:
            batch = replace(batch, old_logprobs=in_pieces(read, batch.tokens, batch.mask)[0])
    return batch, {
        "sampling/sampling_logp_difference/mean": float(gap.mean()),
        "sampling/sampling_logp_difference/max": float(gap.max()),
        "sampling/recomputed": float(not agree),
    }


def minibatches(recipe: Online, step: int, num: int) -> Iterator[tuple[int, Tensor]]:
    """A step's passes over `num` rows, each in an order of its own, cut into optimizer steps: the number of
    the optimizer step in the run, and its rows. Without rows there is no step."""
    for epoch in range(recipe.epochs if num else 0):
        order = torch.from_numpy(stream(recipe.seed, "minibatches", step, epoch).permutation(num))
        for part, rows in enumerate(order.chunk(recipe.minibatches)):
            yield (step * recipe.epochs + epoch) * recipe.minibatches + part, rows


def average(seen: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric over the minibatches that logged it."""
    names = dict.fromkeys(name for metrics in seen for name in metrics)
    return {name: float(np.mean([m[name] for m in seen if name in m])) for name in names}
