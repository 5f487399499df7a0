"""Rewards of steps: a score read at the end of every step of an answer says whether the step is right."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from bloomery.objectives.token import last_counted
from bloomery.registry import Registry

step_rewards: Registry[Callable[[Tensor, Tensor], Tensor]] = Registry("step reward")


def step_loss(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """`-log sigmoid(s)` at the end of a right step, `-log sigmoid(-s)` at that of a wrong one.

    Process supervision (Uesato et al. 2022; Lightman et al. 2023, "Let's Verify Step by Step") as token
    classification in two classes; `s` is the difference of the two classes' logits.

    Args:
        scores: `[B, T]`, a logit at every token.
        labels: `[B, T]` bool, True where the step that ends here is right.
        mask: `[B, T]`, True at the last token of each labelled step and nowhere else.
    Returns:
        `[B, T]`, 0.0 where the mask is False; `aggregate` with the number of steps reduces it.
    """
    scores = torch.where(mask, scores, torch.zeros_like(scores))
    return torch.where(mask, -logsigmoid(torch.where(labels, scores, -scores)), torch.zeros_like(scores))


@step_rewards.register("product")
def product(scores: Tensor, mask: Tensor) -> Tensor:
    """The probability that every step is right: the product over steps of `sigmoid(s)` (Lightman et al.
    2023). `[B, T]`, steps as in `step_loss`, to `[B]`; 1.0 for a row without steps."""
    return torch.where(mask, logsigmoid(scores), torch.zeros_like(scores)).sum(1).exp()


@step_rewards.register("minimum")
def minimum(scores: Tensor, mask: Tensor) -> Tensor:
    """The probability of the weakest step: a chain is as good as that. `[B]`; 1.0 without steps."""
    return torch.where(mask, scores.sigmoid(), torch.ones_like(scores)).amin(1)


@step_rewards.register("last")
def last(scores: Tensor, mask: Tensor) -> Tensor:
    """The probability of the last step, which has seen all before it. `[B]`; 1.0 without steps."""
    found = torch.where(last_counted(mask), scores.sigmoid(), torch.zeros_like(scores)).sum(1)
    return torch.where(mask.any(1), found, torch.ones_like(found))
