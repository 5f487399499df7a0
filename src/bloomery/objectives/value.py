"""The critic's objective."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Half the larger of the squared errors with and without clipping the change of the value.

    Schulman et al.'s PPO implementation; `max` makes it pessimistic, as the policy's clip is.

    Args:
        values, old_values, returns: `[B, T]`.
        clip: the largest change of a value, from `old_values`, that still earns gradient.
    Returns:
        per-token loss `[B, T]`, and `[B, T]` bool: True where the clipped error is the larger.
    """
    near = old_values + (values - old_values).clamp(-clip, clip)
    free, clipped = (values - returns).square(), (near - returns).square()
    return 0.5 * torch.maximum(free, clipped), clipped > free


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """`1 - Var(returns - values) / Var(returns)` over counted tokens: 1 perfect, 0 like a constant."""
    wanted, error = returns[mask], (returns - values)[mask]
    spread = wanted.var(unbiased=False)
    return float(1 - error.var(unbiased=False) / spread) if spread > 0 else 0.0
