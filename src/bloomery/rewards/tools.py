"""What reward sources are made with, and the registry they are named in."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from bloomery.registry import Registry
from bloomery.rewards.parts import Opinion
from bloomery.text.chat import Chat


class Tools(NamedTuple):
    """The policy's renderer, which made the rollouts' tokens; where models are to compute; and the policy, if
    there is one whose memory a reward model may use."""

    chat: Chat
    device: torch.device
    policy: nn.Module | None = None


# A source is a function of tools whose keyword-only arguments are its settings in a recipe.
sources: Registry[Callable[..., Opinion]] = Registry("reward source")
