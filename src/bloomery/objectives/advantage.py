"""From rewards to advantages, with a critic; without one: `group`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bloomery.objectives.token import last_counted


def leashed_rewards(scores: Tensor, ratio_log: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Per-token reward of RLHF: `-beta * (log pi - log pi_ref)`, plus the score on the last token.

    InstructGPT (Ouyang et al. 2022), equation 2, taken token by token.

    Args:
        scores: `[B]`, one number per completion.
        ratio_log, mask: `[B, T]`, over the completion's tokens; or another estimate of the KL of each token.
    Returns:
        `[B, T]`, 0.0 where the mask is False.
    """
    leash = torch.where(mask, -beta * ratio_log, torch.zeros_like(ratio_log))
    return leash + last_counted(mask) * scores[:, None]


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16) over each row's counted tokens.

    `delta_t = r_t + gamma * V_{t+1} - V_t` and `A_t = delta_t + gamma * lam * A_{t+1}`, where the step
    after the last counted token is the end: its value and its advantage are 0. What happens in between
    counted tokens (nobody chose them) is skipped, not discounted.

    Args:
        rewards, values, mask: `[B, T]`; `values[:, t]` is that of the state in which token `t` is chosen.
    Returns:
        advantages and returns (advantage + value), both `[B, T]`, 0.0 where the mask is False.
    """
    advantages = torch.zeros_like(values)
    next_value = values.new_zeros(len(values))
    next_advantage = values.new_zeros(len(values))
    for t in range(values.shape[1] - 1, -1, -1):
        here = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        advantages[:, t] = torch.where(here, advantage, advantages[:, t])
        next_value = torch.where(here, values[:, t], next_value)
        next_advantage = torch.where(here, advantage, next_advantage)
    returns = torch.where(mask, advantages + values, torch.zeros_like(values))
    return advantages, returns


class Moments(NamedTuple):
    """Of the numbers seen so far: how many, their mean, and the sum of their squared distances from it."""

    num: int = 0
    mean: float = 0.0
    squares: float = 0.0


def joined(seen: Moments, values: Sequence[float]) -> Moments:
    """The moments of what was seen and of more values (at least one), as if all had been seen at once.

    Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances":
    no sum of plain squares, so nothing cancels where the mean is far from 0.
    """
    num, mean = len(values), math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    total, gap = seen.num + num, mean - seen.mean
    return Moments(
        total,
        seen.mean + gap * num / total,
        seen.squares + squares + gap * gap * seen.num * num / total,
    )


def standardised(scores: Tensor, seen: Moments) -> Tensor:
    """`(score - mean) / sqrt(variance + 1e-8)`, `[B]`, by the moments of what was seen; in float64 inside,
    so that scores that never differ are 0 however large they are."""
    deviation = math.sqrt(seen.squares / seen.num + 1e-8)
    return ((scores.double() - seen.mean) / deviation).to(scores.dtype)


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale to unit variance over counted tokens; zero mean too unless `shift_mean` is False. `[B, T]`.

    With zero mean for advantages, its own for rewards, as in the code of Ziegler et al. 2019; float64 inside.
    """
    counted = x[mask].double()  # in float32 the mean of large equal numbers is not they, huge ones overflow
    if counted.numel() < 2:
        return x
    mean, scale = counted.mean(), torch.rsqrt(counted.var(unbiased=False) + 1e-8)
    white = ((x.double() - mean) * scale + (0.0 if shift_mean else mean)).to(x.dtype)
    return torch.where(mask, white, torch.zeros_like(x))
