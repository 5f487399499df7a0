"""Policy-gradient objectives and the estimators of the KL that leashes them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bloomery.registry import Registry

kl_estimators: Registry[Callable[[Tensor], Tensor]] = Registry("KL estimator")


@kl_estimators.register("k1")
def k1(log_ratio: Tensor) -> Tensor:
    """`d = log pi - log pi_ref` under samples from pi: unbiased, may be negative (Schulman 2020)."""
    return log_ratio


@kl_estimators.register("k2")
def k2(log_ratio: Tensor) -> Tensor:
    """`d^2 / 2`: biased, low variance, never negative."""
    return log_ratio.square() / 2


@kl_estimators.register("k3")
def k3(log_ratio: Tensor) -> Tensor:
    """`exp(-d) - 1 + d`: unbiased and never negative."""
    return torch.expm1(-log_ratio) + log_ratio


def log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """`log pi - log pi_old` where `mask` counts and 0.0 elsewhere: masked before any `exp`. `[B, T]`."""
    return torch.where(mask, logprobs - old_logprobs, torch.zeros_like(logprobs))


def ppo_clip(ratio_log: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """The clipped surrogate of PPO (Schulman et al. 2017, equation 7), as a loss.

    Args:
        ratio_log: `[B, T]`, from `log_ratio`.
        advantages: `[B, T]`.
        clip: epsilon; the ratio gains nothing outside `[1 - clip, 1 + clip]`.
    Returns:
        per-token loss `[B, T]`, and `[B, T]` bool: True where the clip is what decides.
    """
    ratio = ratio_log.exp()
    free = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(free, clipped), clipped > free
