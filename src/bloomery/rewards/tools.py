"""What reward sources are made with, and the registry they are named in."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from bloomery.registry import Registry
from bloomery.rewards.parts import Opinion
from bloomery.text.chat import Chat


class Tools(NamedTuple):
    """The policy's renderer, which made the rollouts' tokens, and where models are to compute."""

    chat: Chat
    device: torch.device


# A source is a function of tools whose keyword-only arguments are its settings in a recipe.
sources: Registry[Callable[..., Opinion]] = Registry("reward source")
