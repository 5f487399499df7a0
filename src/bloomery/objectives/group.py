"""Advantages without a critic: an answer against the other answers to its prompt, or against the batch.

Rewards come token by token, as `advantage.leashed_rewards` lays them out, `[P, n, T]` for n answers to each
of P prompts; the return of an answer is the sum of its row. Every estimator gives `[P, n, T]`, 0.0 where the
mask is False; its keyword-only arguments are what a recipe may set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bloomery.errors import UsageError
from bloomery.objectives.advantage import whiten
from bloomery.registry import Registry

advantage_estimators: Registry[Callable[[Tensor, Tensor], Tensor]] = Registry("advantage")


def returns_of(rewards: Tensor, mask: Tensor) -> Tensor:
    """The return of each answer, `[P, n]`. Raises `UsageError` where an answer has nothing beside it."""
    if rewards.shape[1] < 2:
        raise UsageError(
            "this advantage compares answers to one prompt",
            got=f"{rewards.shape[1]} answer to each",
            expected="at least 2",
        )
    return torch.where(mask, rewards, torch.zeros_like(rewards)).sum(-1)


def constant_groups(returns: Tensor) -> Tensor:
    """`[P]` bool: True where all answers to a prompt have the same return and there is nothing to learn."""
    return (returns == returns[:, :1]).all(1)


def centred(returns: Tensor) -> Tensor:
    """Each return less the mean of its group, `[P, n]`; exactly 0.0 where all are the same."""
    less = returns - returns.mean(1, keepdim=True)
    return torch.where(constant_groups(returns)[:, None], torch.zeros_like(less), less)


def on_tokens(advantages: Tensor, mask: Tensor) -> Tensor:
    """`[P, n]` put on every counted token, `[P, n, T]`."""
    return torch.where(mask, advantages[..., None], torch.zeros((), device=mask.device))


@advantage_estimators.register("grpo")
def grpo(rewards: Tensor, mask: Tensor, *, eps: Annotated[float, Field(ge=0)] = 1e-4) -> Tensor:
    """`(R - mean) / (std + eps)` within the group (Shao et al. 2024, 2402.03300, section 4.1.2).

    The standard deviation is the sample's (divided by n - 1). It makes a group that nearly agrees count as
    much as one that does not.
    """
    returns = returns_of(rewards, mask)
    return on_tokens(centred(returns) / (returns.std(1, keepdim=True) + eps), mask)


@advantage_estimators.register("dr_grpo")
def dr_grpo(rewards: Tensor, mask: Tensor) -> Tensor:
    """`R - mean` of the group, divided by nothing (Dr. GRPO, Liu et al. 2025, 2503.20783, section 3.2)."""
    return on_tokens(centred(returns_of(rewards, mask)), mask)


@advantage_estimators.register("rloo")
def rloo(rewards: Tensor, mask: Tensor) -> Tensor:
    """`R_i - mean of the others' R`: the baseline is independent of the answer, so the gradient is unbiased.

    Kool et al. 2019; Ahmadian et al. 2024 (2402.14740). Equal to `n / (n - 1) (R_i - mean)`.
    """
    returns = returns_of(rewards, mask)
    n = returns.shape[1]
    return on_tokens(centred(returns) * (n / (n - 1)), mask)


@advantage_estimators.register("reinforce++")
def reinforce_plus_plus(rewards: Tensor, mask: Tensor) -> Tensor:
    """The reward still to come at each token, whitened over all tokens of the batch.

    REINFORCE++ (Hu et al. 2025, 2501.03262): `sum over i >= t of r_i`, so a token pays only for the KL of
    itself and what follows; then mean 0 and variance 1 over the whole batch. No groups: n may be 1.
    """
    rewards = torch.where(mask, rewards, torch.zeros_like(rewards))
    to_go = rewards.flip(-1).cumsum(-1).flip(-1)
    counted = to_go[mask]
    if counted.numel() == 0 or bool((counted == counted[0]).all()):
        return torch.zeros_like(to_go)
    return whiten(to_go, mask)


@advantage_estimators.register("reinforce++_baseline")
def reinforce_plus_plus_baseline(
    rewards: Tensor, mask: Tensor, *, eps: Annotated[float, Field(ge=0)] = 1e-4
) -> Tensor:
    """`R - mean` of the group, over the standard deviation of that in the whole batch (its mean is 0).

    The variant of REINFORCE++ for several answers to a prompt (Hu et al. 2025, 2501.03262). Unlike `grpo` it
    scales all groups alike, so that a group that nearly agrees counts little.
    """
    less = centred(returns_of(rewards, mask))
    return on_tokens(less / (less.square().mean().sqrt() + eps), mask)
