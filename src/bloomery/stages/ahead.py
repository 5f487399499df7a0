"""One step off: the answers of the next step are drawn while this one is learned from, by a copy of the
policy as it was before (asynchronous RLHF: Noukhovitch et al. 2024, arXiv 2410.18252)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from bloomery.errors import UsageError
from bloomery.models.llama import Llama
from bloomery.models.lora import learning
from bloomery.stages.online import Laps, Online, Sampler
from bloomery.text.chat import Chat
from bloomery.train.run import Run
from bloomery.train.together import at_once
from bloomery.types import Rollout

T = TypeVar("T")
VERSION = "answers_of"
"""Under this name a run's state holds the step before which the policy was as it is asked."""


class Ahead(Sampler):
    """Asks the policy as it stands; with `one_step_off`, as it stood before the last step.

    `policy` is whom it asks: the actor, or the copy that answers for it; `asked` is the part of it that
    changes. `kept` is what a checkpoint must hold besides: a run that broke off draws the answers that were
    under way from the same weights and seeds again.

    Where both compute on a CPU with one thread, answers are drawn after learning: the same bits, only later.
    """

    def __init__(self, recipe: Online, actor: Llama, chat: Chat, run: Run, samples: int = 1) -> None:
        """`samples` answers are drawn to each prompt."""
        super().__init__(recipe, actor, chat, run.line, compute=recipe.compute)
        self.run, self.samples, self.last = run, samples, recipe.steps - 1
        self.learning = self.asked = learning(actor)
        self.policy, self.kept = actor, dict[str, nn.Module]()
        self.ahead = recipe.one_step_off
        self.drawn: tuple[list[Rollout], float] | None = None
        if self.ahead:
            self.policy, self.asked = twin(actor)
            self.kept["asked"] = self.asked
            self.engine.model, self.there = self.policy, self.asked
            if recipe.rollout_device is not None:
                self.engine.model, self.there = twin(actor, named(recipe.rollout_device))
            self.helper = ThreadPoolExecutor(1, "sampling")

    def newest(self, step: int) -> tuple[list[Rollout], Llama, Laps]:
        """A step's answers, who gave them, and the step's clock. It says how long they took to draw, whenever
        that was; the lap of waiting for them has ended."""
        laps = Laps()
        if self.ahead and self.drawn is None:
            _, self.drawn = self._both(lambda: None, step)
        rollouts, seconds = self.drawn or self._draw(step)
        self.drawn = None
        laps.end("generation")
        laps.seconds["timing/generation"] = seconds
        return rollouts, self.policy, laps

    def beside(self, step: int, learn: Callable[[], T]) -> T:
        """What learning from a step gives; meanwhile the next step's answers are drawn."""
        if not self.ahead or step == self.last:
            return learn()
        self.asked.load_state_dict(self.learning.state_dict())
        self.run.state[VERSION] = step
        found, self.drawn = self._both(learn, step + 1)
        return found

    def score(self, rollouts: Sequence[Rollout]) -> tuple[list[float], dict[str, float]]:
        """What `Sampler.score` says; and how many steps the policy has learned beyond those who answered."""
        scores, metrics = super().score(rollouts)
        if self.ahead:
            metrics["sampling/staleness"] = float(self.run.step - self.run.state.get(VERSION, 0))
        return scores, metrics

    def _both(self, learn: Callable[[], T], step: int) -> tuple[T, tuple[list[Rollout], float]]:
        """What learning gives, and a step's answers, drawn in a thread of its own if there are two."""
        draw = partial(self._draw, step)
        devices = {next(m.parameters()).device.type for m in (self.policy, self.engine.model)}
        if devices == {"cpu"} and torch.get_num_threads() < 2:
            return learn(), draw()
        return at_once(learn, draw, self.helper)

    def _draw(self, step: int) -> tuple[list[Rollout], float]:
        """A step's answers, and the seconds it took to draw them."""
        began = time.perf_counter()
        if self.ahead and self.there is not self.asked:
            self.there.load_state_dict(self.asked.state_dict())
        return self.ask(step, self.samples), time.perf_counter() - began


def twin(model: Llama, device: torch.device | None = None) -> tuple[Llama, nn.Module]:
    """A copy to read, and the part of it that has to follow what learns in the model. What is frozen is the
    model's own, unless the copy is for a device."""
    frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
    copy = deepcopy(model, frozen) if device is None else deepcopy(model).to(device)
    part = learning(copy)
    return copy.requires_grad_(False), part


def named(device: str) -> torch.device:
    """The device of that name. Raises `UsageError` where there is none."""
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError("answers cannot be drawn there", got=f"rollout_device={device}: {error}") from None
