"""Policy-gradient objectives and the estimators of the KL that leashes them.

A policy loss takes log-probs of the tokens under the policy that learns and under the one that sampled, the
advantages, and the mask, all `[B, T]`; its keyword-only arguments are what a recipe may set. It returns the
loss of each token `[B, T]` and, `[B, T]` bool, where clipping is what decides. `denominators` says how token
losses are averaged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from bloomery.registry import Registry

Width = Annotated[float, Field(gt=0)]
"""How far a ratio may move from 1."""
Averaging = Literal["token", "sequence", "constant"]

kl_estimators: Registry[Callable[[Tensor], Tensor]] = Registry("KL estimator")
policy_losses: Registry[Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = Registry(
    "policy loss"
)


@kl_estimators.register("k1")
def k1(log_ratio: Tensor) -> Tensor:
    """`d = log pi - log pi_ref` under samples from pi: unbiased, may be negative (Schulman 2020).

    As a term of the loss its gradient averages to zero: it belongs in the reward."""
    return log_ratio


@kl_estimators.register("k2")
def k2(log_ratio: Tensor) -> Tensor:
    """`d^2 / 2`: biased, low variance, never negative. Its gradient averages to that of KL(pi || pi_ref)."""
    return log_ratio.square() / 2


@kl_estimators.register("k3")
def k3(log_ratio: Tensor) -> Tensor:
    """`exp(-d) - 1 + d`: unbiased and never negative. Its gradient averages to that of KL(pi_ref || pi)."""
    return torch.expm1(-log_ratio) + log_ratio


def log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """`log pi - log pi_old` where `mask` counts and 0.0 elsewhere: masked before any `exp`. `[B, T]`."""
    return torch.where(mask, logprobs - old_logprobs, torch.zeros_like(logprobs))


def adapted_kl_coef(coef: float, kl: float, target: float, rate: float = 0.1) -> float:
    """The KL coefficient of the next step: a proportional controller in log space.

    `beta * (1 + rate * e)` with `e = (KL - target) / target`, clipped to 0.2 on either side (Ziegler et al.
    2019, section 2.2).

    Args:
        kl, target: divergence of an answer from the reference, in nats.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coef * (1 + rate * error)


def ppo_clip(
    ratio_log: Tensor, advantages: Tensor, clip: float, clip_higher: float | None = None
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate of PPO (Schulman et al. 2017, equation 7), as a loss.

    Args:
        ratio_log: `[B, T]`, from `log_ratio`.
        advantages: `[B, T]`.
        clip: epsilon; the ratio gains nothing outside `[1 - clip, 1 + clip]`.
        clip_higher: another bound for the upper side.
    Returns:
        per-token loss `[B, T]`, and `[B, T]` bool: True where the clip is what decides.
    """
    ratio = ratio_log.exp()
    free = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + (clip if clip_higher is None else clip_higher))
    return torch.maximum(free, clipped), clipped > free


@policy_losses.register("ppo")
def ppo(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, clip: Width = 0.2
) -> tuple[Tensor, Tensor]:
    """`-min(w A, clip(w, 1 - clip, 1 + clip) A)`, `w = pi / pi_old` of a token: `ppo_clip`.

    Schulman et al. 2017 (1707.06347), equation 7; GRPO's policy term (Shao et al. 2024, 2402.03300,
    equation 3).
    """
    return ppo_clip(log_ratio(logprobs, old_logprobs, mask), advantages, clip)


@policy_losses.register("dapo")
def dapo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: Width = 0.2,
    clip_higher: Width = 0.28,
) -> tuple[Tensor, Tensor]:
    """`ppo` with a wider upper bound, so that unlikely tokens can become likely: clip-higher.

    DAPO (Yu et al. 2025, 2503.14476), section 3.1. Its other half is averaging over all tokens of the batch
    (`denominators`, "token").
    """
    return ppo_clip(log_ratio(logprobs, old_logprobs, mask), advantages, clip, clip_higher)


@policy_losses.register("cispo")
def cispo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_higher: Width = 4.0,
) -> tuple[Tensor, Tensor]:
    """`-sg(min(w, 1 + clip_higher)) A log pi`: the weight is cut, the token goes on teaching.

    CISPO (MiniMax-M1, 2506.13585), equations 4 and 5, without a lower bound, as they ran it. `sg` stops the
    gradient, so the gradient is that of REINFORCE with a truncated importance weight.
    """
    weight = log_ratio(logprobs, old_logprobs, mask).detach().exp()
    logprobs = torch.where(mask, logprobs, torch.zeros_like(logprobs))
    return -weight.clamp(max=1 + clip_higher) * advantages * logprobs, weight > 1 + clip_higher


@policy_losses.register("gspo")
def gspo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: Width = 3e-4,
    clip_higher: Width = 4e-4,
) -> tuple[Tensor, Tensor]:
    """`ppo_clip` of the sequence's ratio `s = exp(mean over its tokens of log pi - log pi_old)`, the same at
    each of its tokens.

    GSPO (Zheng et al. 2025, 2507.18071), equations 5 and 7; the bounds are those of section 5.1. Advantages
    must be the same at all tokens of a row, and rows averaged by "sequence" for the paper's objective.
    """
    moved = log_ratio(logprobs, old_logprobs, mask)
    mean = moved.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return ppo_clip(torch.where(mask, mean, 0.0), advantages, clip, clip_higher)


@policy_losses.register("reinforce")
def reinforce(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """`-A log pi` (Williams 1992): the plain policy gradient, right for one pass over samples of
    the policy itself. Nothing is clipped, and `old_logprobs` are not looked at."""
    logprobs = torch.where(mask, logprobs, torch.zeros_like(logprobs))
    return -advantages * logprobs, torch.zeros_like(mask)


def denominators(mask: Tensor, how: Averaging, longest: int) -> Tensor:
    """What each row's summed token losses are divided by, `[B]`: the sum over rows is then the mean loss.

    - "token": all counted tokens of the batch; every token weighs the same (DAPO, section 3.3).
    - "sequence": rows times the row's own tokens; every answer weighs the same, so a token of a long answer
      weighs less (GRPO, equation 3).
    - "constant": rows times `longest`; every token weighs the same in every batch, however long the answers
      are (Dr. GRPO, Liu et al. 2025, 2503.20783, section 3.2).

    Args:
        mask: `[B, T]` of everything that one optimizer step learns from, whatever pieces it is read in.
        longest: tokens that an answer may have.
    """
    rows, counted = len(mask), mask.sum(1)
    if how == "token":
        return counted.sum().clamp(min=1).expand(rows)
    if how == "sequence":
        return rows * counted.clamp(min=1)
    return torch.full_like(counted, rows * longest)
