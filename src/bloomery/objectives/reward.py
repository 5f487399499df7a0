"""The reward model's objectives. Each ranking loss takes the K scores of a ranking in one batch element, so
that an answer is scored once however many pairs it is in.

Shapes: G rankings, K answers (right padded), H heads. One value per ranking; the caller weighs and averages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import huber_loss, logsigmoid

from bloomery.registry import Registry

Loss = Callable[..., Tensor]
ranking_losses: Registry[Loss] = Registry("ranking loss")
rating_losses: Registry[Loss] = Registry("rating loss")


class Wanted(NamedTuple):
    """What was said of K answers, G times.

    ranks: `[G, K]` integers, 1 best, equal = tie; compared, never subtracted.
    mask: `[G, K]`, True where an answer was ranked (rankings may have different K).
    strengths: `[G, K]` log-odds; if given, the wanted probability that `i` beats `j` is
        `sigmoid(strengths_i - strengths_j)` instead of 1, 0 or one half.
    worth: `[G, K]`, how good each answer was rated, NaN where it was not: what margins are made of.
    """

    ranks: Tensor
    mask: Tensor
    strengths: Tensor | None = None
    worth: Tensor | None = None


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


@ranking_losses.register("pairs")
def pairwise(
    scores: Tensor,
    wanted: Wanted,
    *,
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0,
    margin: Annotated[float, Field(ge=0)] = 0.0,
) -> Tensor:
    """Mean over a ranking's C(K, 2) pairs of `-log sigmoid(s_w - s_l - m)`.

    InstructGPT (Ouyang et al. 2022), equation 1: each completion is scored once however many pairs it is
    in, and a ranking weighs the same whatever its K. A tie contributes the symmetric half-and-half target.

    label_smoothing: the share of labels believed to be flipped; the target 1 becomes `1 - share`
        (Wang et al. 2024, "Secrets of RLHF II"; a tie stays a tie).
    margin: the winner is to lead by this for each point that it is rated higher, Llama 2 (Touvron et al.
        2023), equation 2. No margin where either answer is unrated, the pair is a tie, or the ratings
        contradict the ranking.

    Args:
        scores: `[G, K]`.
    Returns:
        `[G]`, one value per ranking; 0.0 for a ranking with fewer than two completions.
    """
    pairs, target = ranking_pairs(wanted.ranks, wanted.mask)
    scores = _known(scores, wanted.mask)
    if wanted.strengths is not None:
        target = _gaps(_known(wanted.strengths, wanted.mask)).sigmoid()
    gap = _gaps(scores)
    if margin and wanted.worth is not None:
        side = (target - 0.5).sign()
        gap = gap - margin * side * (side * _gaps(wanted.worth)).nan_to_num(0.0).clamp(min=0)
    target = target + label_smoothing * (1 - 2 * target)
    loss = -(target * logsigmoid(gap) + (1 - target) * logsigmoid(-gap))
    count = pairs.sum((1, 2)).clamp(min=1)
    return _known(loss, pairs).sum((1, 2)) / count


@ranking_losses.register("plackett-luce")
def plackett_luce(scores: Tensor, wanted: Wanted) -> Tensor:
    """Mean surprise of the choices that make a ranking: the best of all, then the best of the rest, ...

    Plackett (1975), Luce (1959); as a loss, ListMLE (Xia et al. 2008): answer `i` is chosen from those not
    yet chosen, `-log P = log sum_{j: rank_j >= rank_i} exp(s_j) - s_i`. The last choice is none and does
    not count, so `plackett-luce` equals `pairs` for K = 2. Tied answers are each chosen from a set that
    holds the others (Breslow's ties), which for two of them is the half-and-half target.

    Args:
        scores: `[G, K]`.
    Returns:
        `[G]`; 0.0 for a ranking with fewer than two completions.
    """
    scores, itself = _known(scores, wanted.mask), torch.eye(scores.shape[1], device=scores.device).bool()
    left = wanted.mask[:, None, :] & (wanted.ranks[:, None, :] >= wanted.ranks[:, :, None]) | itself
    surprise = scores[:, None, :].masked_fill(~left, float("-inf")).logsumexp(2) - scores
    choices = wanted.mask & (left.sum(2) > 1)
    return _known(surprise, choices).sum(1) / choices.sum(1).clamp(min=1)


def kwise_loss(scores: Tensor, ranks: Tensor, mask: Tensor) -> Tensor:
    """`pairwise` as published: `[G]` from scores, ranks and mask, each `[G, K]`."""
    return pairwise(scores, Wanted(ranks, mask))


@rating_losses.register("squared")
def squared(predicted: Tensor, ratings: Tensor, mask: Tensor) -> Tensor:
    """Mean over a ranking's rated answers, and over heads, of `(predicted - rating)^2`.

    Args:
        predicted, ratings: `[G, K, H]`; mask: `[G, K]`, True where an answer was rated.
    Returns:
        `[G]`; 0.0 where nothing was rated.
    """
    error = _known(predicted - ratings, mask[..., None])
    return error.square().mean(2).sum(1) / mask.sum(1).clamp(min=1)


@rating_losses.register("huber")
def huber(
    predicted: Tensor, ratings: Tensor, mask: Tensor, *, delta: Annotated[float, Field(gt=0)] = 1.0
) -> Tensor:
    """`squared`, but linear beyond `delta`: half the square of an error within it, `delta (|e| - delta / 2)`
    beyond (Huber 1964), so that a careless rating pulls no harder than any other. Shapes as `squared`."""
    error = _known(predicted - ratings, mask[..., None])
    loss = huber_loss(error, torch.zeros_like(error), reduction="none", delta=delta)
    return loss.mean(2).sum(1) / mask.sum(1).clamp(min=1)


def by_head(loss: Loss, scores: Tensor, ratings: Tensor, mask: Tensor) -> Tensor:
    """A ranking loss on every head, each with the ranks that its ratings put the answers in.

    What matters is only which answer was rated higher, so an annotator's leniency is no error; and, for a
    loss with a margin, by how much on this head.

    Args:
        scores, ratings: `[G, K, H]`; mask: `[G, K]`, True where an answer was rated.
    Returns:
        `[G]`, the mean over heads.
    """
    ranks = -_known(ratings, mask[..., None])
    heads = [
        loss(scores[..., h], Wanted(ranks[..., h], mask, worth=ratings[..., h]))
        for h in range(scores.shape[2])
    ]
    return torch.stack(heads).mean(0)


def squared_sums(scores: Tensor, mask: Tensor) -> Tensor:
    """Centring that leaves gaps alone: the mean over a ranking's pairs of `(s_i + s_j)^2`.

    Eisenstein et al. 2023, "Helping or Herding?"; TRL's `center_rewards_coefficient`. Against the plain
    square of each score it costs nothing to pull two scores apart around zero. `[G, K]` -> `[G]`.
    """
    pairs, _ = ranking_pairs(mask.long(), mask)
    scores = _known(scores, mask)
    sums = (scores[:, :, None] + scores[:, None, :]).square()
    return _known(sums, pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)


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


def pair_margin(scores: Tensor, ranks: Tensor, mask: Tensor) -> Tensor:
    """Sum over a ranking's untied pairs of `s_w - s_l`, `[G]`; `pair_accuracy` has their number."""
    pairs, target = ranking_pairs(ranks, mask)
    return _known(_gaps(scores) * (2 * target - 1), pairs).sum((1, 2))


def _gaps(x: Tensor) -> Tensor:
    """`x_i - x_j`, `[G, K] -> [G, K, K]`."""
    return x[:, :, None] - x[:, None, :]


def _known(x: Tensor, mask: Tensor) -> Tensor:
    """`where`, not `*`: garbage under the mask, NaN included, reaches neither value nor gradient."""
    return torch.where(mask, x, torch.zeros_like(x))
