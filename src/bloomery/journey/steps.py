"""The parts of a plan: steps in order, each a stage with its recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bloomery.recipe import Section


@dataclass(frozen=True, slots=True)
class Step:
    """One stage of a journey. Inputs made by earlier steps are given as `OUT/<name>/...`."""

    name: str
    stage: str
    recipe: Section


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in the order they run, and further names for some of them (`rl` for `ppo-4`)."""

    steps: tuple[Step, ...]
    aliases: Mapping[str, str]
