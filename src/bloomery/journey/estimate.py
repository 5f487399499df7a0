"""What a step will cost: parameters, memory, time and disk, before anything runs.

These are estimates: floating-point operations counted from shapes and tokens, divided by the speed of this
machine's matrix products and by how far the real loops stay below it (`SHARE`, measured on two CPU cores;
small models waste most of a processor on small products). Expect them to be right within a factor of two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bloomery.data.rows import read_lines
from bloomery.journey.steps import Plan
from bloomery.models.config import LlamaConfig
from bloomery.recipe import input_paths

SHARE = {"train": 0.40, "generate": 0.12, "score": 0.50}
"""Part of the speed of a large matrix product that each kind of loop reaches."""
BYTES_PER_TOKEN = 3.5
TOKENS_PER_CONVERSATION = 32
TOKENS_PER_ANSWER = 12
PER_PERSON = {"bytes": 55_000, "demonstrations": 25, "questions": 10}
"""What the embedded world makes for each documented person: text, and held-out questions."""
PROCESS = 600e6
"""Bytes of Python with torch, before any model."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """`parameters` of the model the step makes (0 for none); bytes; seconds."""

    parameters: int
    memory: float
    seconds: float
    disk: float


@dataclass(slots=True)
class Known:
    """What earlier steps of a plan tell about later ones: `model` is what the next one starts from, `models`
    are those of all steps, `conversations` is (number, tokens of each), `share` how many slates are kept."""

    speed: float
    people: int = 0
    text_bytes: float = 0.0
    vocab: int = 2048
    model: LlamaConfig | None = None
    models: dict[str, LlamaConfig] = field(default_factory=dict)
    conversations: tuple[int, float] = (0, TOKENS_PER_CONVERSATION)
    slates: int = 0
    share: float = 1.0

    @property
    def config(self) -> LlamaConfig:
        return self.model or LlamaConfig.shape(16, 1, 1, self.vocab)

    @property
    def parameters(self) -> int:
        return self.config.num_parameters()

    def seconds(self, kind: str, tokens: float, length: float, passes: int = 1) -> float:
        """Time for `tokens` tokens in rows of `length`; `passes` is 1 for forward, 3 with backward.

        2 N operations per token and pass for the products with weights (Kaplan et al. 2020), plus the
        causal half of attention's 4 * depth * length * width.
        """
        attention = 2 * self.config.num_hidden_layers * length * self.config.hidden_size
        return tokens * passes * (2 * self.parameters + attention) / (self.speed * SHARE[kind])

    def training(self, tokens: float, seconds: float, models: int = 1) -> Estimate:
        """Weights, gradients, two Adam moments, and what backward keeps of the `tokens` tokens of a step."""
        kept = 4 * tokens * (16 * self.config.num_hidden_layers * self.config.hidden_size + 3 * self.vocab)
        memory = PROCESS + models * 16 * self.parameters + kept
        return Estimate(self.parameters, memory, seconds, 4 * self.parameters + models * 24 * self.parameters)


def matmul_speed(dtype: torch.dtype = torch.float32, size: int = 512, seconds: float = 0.5) -> float:
    """Floating-point operations a second of a square matrix product as stages run it: the best of several."""
    torch.set_float32_matmul_precision("medium")
    a, b = torch.rand(size, size).to(dtype), torch.rand(size, size).to(dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def estimate(plan: Plan, speed: float) -> list[Estimate]:
    """One estimate for each step; `speed` in operations a second, as `matmul_speed` measures it."""
    known, found = Known(speed), list[Estimate]()
    for step in plan.steps:
        started = [known.models[p.name] for _, p in input_paths(step.recipe) if p.name in known.models]
        known.model = next(iter(started), known.model)
        found.append(ESTIMATORS[step.stage](step.recipe, known))
        if found[-1].parameters and known.model is not None:
            known.models[step.name] = known.model
    return found


def _world(recipe: Any, known: Known) -> Estimate:
    known.people, known.text_bytes = recipe.size, PER_PERSON["bytes"] * recipe.size
    known.conversations = (PER_PERSON["demonstrations"] * recipe.size, TOKENS_PER_CONVERSATION)
    return Estimate(0, PROCESS, 1 + recipe.size / 50, 1.6 * known.text_bytes)


def _clean(recipe: Any, known: Known) -> Estimate:
    _, num_bytes = _size(recipe.documents)
    known.text_bytes = num_bytes or known.text_bytes
    return _pass_over(known, bytes_per_second=1e6, disk=known.text_bytes)


def _tokenizer(recipe: Any, known: Known) -> Estimate:
    known.vocab = recipe.vocab_size
    return _pass_over(known, bytes_per_second=3e6, disk=50 * recipe.vocab_size)


def _encode(recipe: Any, known: Known) -> Estimate:
    return _pass_over(known, bytes_per_second=5e6, disk=2 * known.text_bytes / BYTES_PER_TOKEN)


def _pass_over(known: Known, bytes_per_second: float, disk: float) -> Estimate:
    return Estimate(0, PROCESS + 4 * known.text_bytes, 1 + known.text_bytes / bytes_per_second, disk)


def _pretrain(recipe: Any, known: Known) -> Estimate:
    shape = recipe.model
    known.model = LlamaConfig.shape(
        shape.width,
        shape.depth,
        shape.heads,
        known.vocab,
        kv_heads=shape.kv_heads,
        context=shape.context,
        tied=shape.tied,
    )
    step = recipe.batch * shape.context / recipe.micro_batches
    return known.training(step, known.seconds("train", recipe.tokens, shape.context, passes=3))


def _sft(recipe: Any, known: Known) -> Estimate:
    rows, num_bytes = _size(recipe.demonstrations)
    if rows:
        known.conversations = (rows, num_bytes / rows / BYTES_PER_TOKEN)
    number, length = known.conversations
    seconds = known.seconds("train", recipe.epochs * number * length, length, passes=3)
    seconds += _replayed(recipe, known, recipe.epochs * number / recipe.batch)
    return known.training(recipe.batch * length, seconds)


def _replayed(recipe: Any, known: Known, steps: float) -> float:
    """Seconds for the pretraining text that a stage goes on reading."""
    if recipe.corpus is None or recipe.replay.coef == 0:
        return 0.0
    length = recipe.replay.length or known.config.max_position_embeddings
    return known.seconds("train", steps * recipe.replay.batch * length, length, passes=3)


def _label(recipe: Any, known: Known) -> Estimate:
    answers = recipe.prompts * sum(arm.samples for arm in recipe.arms)
    known.slates += recipe.prompts
    seconds = known.seconds("generate", answers * TOKENS_PER_ANSWER, TOKENS_PER_CONVERSATION)
    judged = recipe.prompts * recipe.overlap / 500
    disk = recipe.prompts * recipe.overlap * 4000
    return Estimate(0, PROCESS + 4 * known.parameters + 2e8, seconds + judged, disk)


def _spoil(recipe: Any, known: Known) -> Estimate:
    known.share = recipe.share
    return Estimate(0, PROCESS, 1 + known.slates / 1000, 4000 * known.share * known.slates)


def _reward(recipe: Any, known: Known) -> Estimate:
    rows, num_bytes = _size(recipe.rankings)
    slates, answers, length = (known.slates, 6.0, known.conversations[1])
    if rows:
        slates, answers, length = rows, 2.0, num_bytes / rows / 2 / BYTES_PER_TOKEN
    slates = round(slates * known.share)
    tokens = recipe.epochs * slates * answers * length
    seconds = known.seconds("train", tokens, length, passes=3)
    seconds += _replayed(recipe, known, recipe.epochs * slates / recipe.batch)
    return known.training(recipe.batch * answers * length, seconds)


def _ppo(recipe: Any, known: Known) -> Estimate:
    episodes, length = recipe.steps * recipe.prompts_per_step, known.conversations[1]
    drawn = known.seconds("generate", episodes * min(recipe.max_tokens, TOKENS_PER_ANSWER), length)
    scored = known.seconds("score", 3 * episodes * length, length)
    learned = known.seconds("train", 2 * recipe.epochs * episodes * length, length, passes=3)
    if recipe.ptx_coef > 0:
        length = recipe.ptx_length or known.config.max_position_embeddings
        tokens = recipe.steps * recipe.epochs * recipe.minibatches * recipe.ptx_batch * length
        learned += known.seconds("train", tokens, length, passes=3)
    return known.training(recipe.prompts_per_step * length, drawn + scored + learned, models=2)


def _grpo(recipe: Any, known: Known) -> Estimate:
    per_step, length = recipe.prompts_per_step * recipe.samples, known.conversations[1]
    episodes = recipe.steps * per_step
    drawn = known.seconds("generate", episodes * min(recipe.max_tokens, TOKENS_PER_ANSWER), length)
    scored = known.seconds("score", (1 + (recipe.kl_coef > 0)) * episodes * length, length)
    learned = known.seconds("train", recipe.epochs * episodes * length, length, passes=3)
    return known.training(per_step * length / recipe.minibatches, drawn + scored + learned)


def _best_of_n(recipe: Any, known: Known) -> Estimate:
    asked = PER_PERSON["questions"] * known.people if recipe.world else 0
    answers = min(asked, recipe.limit or asked) * recipe.samples
    drawn = known.seconds("generate", answers * TOKENS_PER_ANSWER, TOKENS_PER_CONVERSATION)
    scored = known.seconds("score", answers * TOKENS_PER_CONVERSATION, TOKENS_PER_CONVERSATION)
    return Estimate(0, PROCESS + 12 * known.parameters, drawn + scored, 100 * answers)


def _evaluate(recipe: Any, known: Known) -> Estimate:
    asked = (
        PER_PERSON["questions"] * known.people
        if recipe.world
        else _size([recipe.questions] if recipe.questions else [])[0]
    )
    asked = min(asked, recipe.limit or asked)
    answered = known.seconds("generate", 2 * asked * TOKENS_PER_ANSWER, TOKENS_PER_CONVERSATION)
    scored = known.seconds("score", 4 * asked * TOKENS_PER_CONVERSATION, TOKENS_PER_CONVERSATION)
    return Estimate(0, PROCESS + 12 * known.parameters + 3e8, 5 + answered + scored, 1000 * asked)


ESTIMATORS: dict[str, Callable[[Any, Known], Estimate]] = {
    "world": _world,
    "clean": _clean,
    "tokenizer": _tokenizer,
    "encode": _encode,
    "pretrain": _pretrain,
    "sft": _sft,
    "label": _label,
    "spoil": _spoil,
    "reward": _reward,
    "ppo": _ppo,
    "grpo": _grpo,
    "best_of_n": _best_of_n,
    "evaluate": _evaluate,
}


def _size(paths: Iterable[Path]) -> tuple[int, int]:
    """Rows and bytes of the files that are there already (decompressed)."""
    rows = num_bytes = 0
    for path in paths:
        if path.is_file():
            for line in read_lines(path):
                rows, num_bytes = rows + 1, num_bytes + len(line.data)
    return rows, num_bytes
