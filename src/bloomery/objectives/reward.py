"""The reward model's objective: all pairs of a ranking in one batch element."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def ranking_pairs(ranks: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Which pairs of a ranking count, and what is wanted of them.

    Args:
        ranks: `[G, K]` integers, 1 best, equal = tie; anything where `mask` is False.
        mask: `[G, K]`, True where a completion exists (rankings may have different K).
    Returns:
        pairs: `[G, K, K]` bool, True at `(i, j)` with `i < j` and both completions there;
        target: `[G, K, K]` probability that `i` beats `j`: 1, 0, or 0.5 for a tie.
    """
    upper = torch.ones(ranks.shape[1], ranks.shape[1], dtype=torch.bool, device=ranks.device).triu(1)
    pairs = mask[:, :, None] & mask[:, None, :] & upper
    gap = ranks[:, None, :] - ranks[:, :, None]
    return pairs, 0.5 + 0.5 * gap.sign().float()


def kwise_loss(scores: Tensor, ranks: Tensor, mask: Tensor) -> Tensor:
    """Mean over a ranking's C(K, 2) pairs of `-log sigmoid(s_w - s_l)`.

    InstructGPT (Ouyang et al. 2022), equation 1: each completion is scored once however many pairs it is
    in, and a ranking weighs the same whatever its K. A tie contributes the symmetric half-and-half target.

    Args:
        scores, ranks, mask: `[G, K]`; see `ranking_pairs`.
    Returns:
        `[G]`, one value per ranking; 0.0 for a ranking with fewer than two completions.
    """
    pairs, target = ranking_pairs(ranks, mask)
    scores = torch.where(mask, scores, torch.zeros_like(scores))
    gap = scores[:, :, None] - scores[:, None, :]
    loss = -(target * logsigmoid(gap) + (1 - target) * logsigmoid(-gap))
    count = pairs.sum((1, 2)).clamp(min=1)
    return torch.where(pairs, loss, torch.zeros_like(loss)).sum((1, 2)) / count


def pair_accuracy(scores: Tensor, ranks: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of a ranking, ties left out, that the scores order as the ranking does.

    Returns:
        `[G]` number right (equal scores count one half) and `[G]` number of untied pairs.
    """
    pairs, target = ranking_pairs(ranks, mask)
    untied = pairs & (target != 0.5)
    agreement = 0.5 + 0.5 * (scores[:, :, None] - scores[:, None, :]).sign() * (2 * target - 1)
    right = torch.where(untied, agreement, torch.zeros_like(agreement))
    return right.sum((1, 2)), untied.sum((1, 2))
