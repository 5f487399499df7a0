"""The stages: each a straight line from a recipe to a directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bloomery.recipe import Section
from bloomery.registry import Registry
from bloomery.stages import (
    clean,
    encode,
    evaluate,
    grpo,
    label,
    ppo,
    prefer,
    prefer_online,
    pretrain,
    reward,
    sft,
    tokenizer,
    world,
)


@dataclass(frozen=True, slots=True)
class Stage:
    """A named step of the journey: what it needs to know, and what it does."""

    name: str
    recipe: type[Section]
    run: Callable[[Any, Path], None]

    @property
    def summary(self) -> str:
        """The first line of the recipe's docstring."""
        return (self.recipe.__doc__ or "").strip().split("\n")[0]


STAGES: Registry[Stage] = Registry("stage")
for _name, _recipe, _run in (
    ("world", world.WorldRecipe, world.run),
    ("clean", clean.Clean, clean.run),
    ("tokenizer", tokenizer.TokenizerRecipe, tokenizer.run),
    ("encode", encode.Encode, encode.run),
    ("pretrain", pretrain.Pretrain, pretrain.run),
    ("sft", sft.Sft, sft.run),
    ("label", label.Label, label.run),
    ("reward", reward.RewardRecipe, reward.run),
    ("ppo", ppo.Ppo, ppo.run),
    ("grpo", grpo.Grpo, grpo.run),
    ("prefer", prefer.Prefer, prefer.run),
    ("prefer_online", prefer_online.PreferOnline, prefer_online.run),
    ("evaluate", evaluate.Evaluate, evaluate.run),
):
    STAGES.register(_name)(Stage(_name, _recipe, _run))
