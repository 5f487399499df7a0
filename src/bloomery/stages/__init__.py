"""The stages: each a straight line from a recipe to a directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from bloomery.recipe import Section
from bloomery.registry import Registry


@dataclass(frozen=True, slots=True)
class Stage:
    """A named step of the journey: what it needs to know, and what it does.

    Its module, which has the same name, is imported when one of the two is asked for: who trains a tokenizer
    does not wait for what PPO needs.
    """

    name: str
    schema: str
    """The name of its recipe's class."""

    @property
    def recipe(self) -> type[Section]:
        return cast(type[Section], getattr(self._module, self.schema))

    @property
    def run(self) -> Callable[[Any, Path], None]:
        return cast(Callable[[Any, Path], None], self._module.run)

    @property
    def summary(self) -> str:
        """The first line of the recipe's docstring."""
        return (self.recipe.__doc__ or "").strip().split("\n")[0]

    @property
    def _module(self) -> ModuleType:
        return import_module(f"{__name__}.{self.name}")


STAGES: Registry[Stage] = Registry("stage")
for _name, _schema in (
    ("world", "WorldRecipe"),
    ("clean", "Clean"),
    ("tokenizer", "TokenizerRecipe"),
    ("encode", "Encode"),
    ("pretrain", "Pretrain"),
    ("sft", "Sft"),
    ("label", "Label"),
    ("spoil", "Spoil"),
    ("reward", "RewardRecipe"),
    ("process", "ProcessRecipe"),
    ("ppo", "Ppo"),
    ("grpo", "Grpo"),
    ("prefer", "Prefer"),
    ("prefer_online", "PreferOnline"),
    ("best_of_n", "BestOfN"),
    ("rejection", "Rejection"),
    ("evaluate", "Evaluate"),
    ("evaluate_reward", "EvaluateReward"),
):
    STAGES.register(_name)(Stage(_name, _schema))
