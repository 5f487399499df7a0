"""Search: of several answers to a prompt, those that a reward likes best. What that is worth, how far it goes
from the policy that was asked, and which answers are kept to learn from.

Scores come as `[P, N]`: N answers to each of P prompts, in the order in which they were drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from bloomery.errors import UsageError
from bloomery.registry import Registry

keepers: Registry[Callable[..., Tensor]] = Registry("way to keep answers")


def best_of_n_kl(n: int) -> float:
    """How far the best of n answers is from the policy that gave them: `log n - (n - 1) / n`, in nats.

    Stiennon et al. 2020 (2009.01325); derived in Hilton and Gao 2022, "Measuring Goodhart's law". Exact where
    no answer is drawn twice and no two score the same; where they do, the true divergence is smaller (Beirami
    et al. 2024, 2401.01879). Raises `UsageError` for n below 1.
    """
    if n < 1:
        raise UsageError("the best of no answer", got=f"n = {n}", expected="n of at least 1")
    return math.log(n) - (n - 1) / n


def chances(scores: Tensor, n: int) -> Tensor:
    """The chance of each answer to be the best of n that are drawn from its prompt's N without replacement.

    The i-th lowest score of N is the highest in `C(i - 1, n - 1)` of all `C(N, n)` subsets. N values weighed
    by these chances are the mean over all subsets: an unbiased estimate, from N answers, of what the best of
    n fresh ones is worth (Nakano et al. 2021, 2112.09332, appendix I; Hilton and Gao 2022). Where several
    of a subset tie for the best, each is taken equally often; to take the first drawn is the same on average,
    because the answers of a policy come in no order.

    Args:
        scores: `[P, N]`.
        n: 1 to N.
    Returns:
        `[P, N]` in float64; every row sums to 1.
    Raises:
        UsageError: n is not in 1..N, or a score is not a number.
    """
    num = scores.shape[1]
    if not 1 <= n <= num:
        raise UsageError("the best of more answers than there are", got=f"n = {n}", expected=f"1 to {num}")
    if bool(scores.isnan().any()):
        raise UsageError("scores that are no numbers have no order", got=f"{int(scores.isnan().sum())} NaN")
    scores = scores.double().contiguous()
    ordered = scores.sort(dim=1).values
    lower = torch.searchsorted(ordered, scores)
    upto = torch.searchsorted(ordered, scores, right=True)
    # C(i, n) subsets lie within the i lowest: the sum of C(j - 1, n - 1) over j up to i.
    within = [math.comb(i, n) / math.comb(num, n) for i in range(num + 1)]
    share = torch.tensor(within, dtype=torch.float64, device=scores.device)
    return (share[upto] - share[lower]) / (upto - lower)


def expected_best(scores: Tensor, values: Tensor, n: int) -> Tensor:
    """What the answer with the best score of n is worth on average, by `values`: `[P]`, float64.

    With `values` the scores themselves this is the proxy's own opinion of best-of-n; with the numbers of
    another judge, how the choice looks to gold. Ties and errors as in `chances`.

    Args:
        scores: `[P, N]`, what is chosen by.
        values: `[P, N]`, what is reported; finite.
    """
    return (chances(scores, n) * values.double()).sum(dim=1)


@keepers.register("best")
def best(scores: Tensor, *, count: Annotated[int, Field(ge=1)] = 1) -> Tensor:
    """The `count` best answers to each prompt; of equals the first drawn.

    With a count of 1: RAFT (Dong et al. 2023, 2304.06767) and Llama 2 (2307.09288, section 3.2.3).

    Args:
        scores: `[P, n]`; here and below, an answer of score -inf is never kept.
    Returns:
        `[P, n]` bool.
    """
    first = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, first, True) & (scores > -math.inf)


@keepers.register("above")
def above(scores: Tensor, *, threshold: float) -> Tensor:
    """Every answer that scores more than `threshold` (ReST, Gulcehre et al. 2023, 2308.08998, section 3)."""
    return scores > threshold


@keepers.register("top")
def top(scores: Tensor, *, share: Annotated[float, Field(gt=0, le=1)]) -> Tensor:
    """The best `share` of all prompts' answers together, at least one; what ties with the last is kept too.

    Answers to different prompts are compared, so prompts on which all answers score high give the most.
    """
    may = scores[scores > -math.inf]
    if not len(may):
        return torch.zeros_like(scores, dtype=torch.bool)
    number = max(1, round(share * len(may)))
    return scores >= may.topk(number).values[-1]
