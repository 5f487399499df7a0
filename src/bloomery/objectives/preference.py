"""Losses that learn a preference directly, without a reward model: DPO and its family.

A loss is a function of numbers per pair, all `[P]`. Its positional arguments say what it reads:

    chosen_logps, rejected_logps      log pi(y | x), summed over the answer's tokens
    chosen_ratio, rejected_ratio      log pi(y | x) - log pi_ref(y | x); without them no reference is needed
    chosen_length, rejected_length    the number of those tokens
    kl                                one number, an estimate of KL(pi || pi_ref) that takes no gradient

and its keyword-only arguments are its settings. It returns a value for each pair, `[P]`.

Where a pair's loss is the mean of what its two answers are worth by themselves, answers that nobody compared
can be learnt from too. The loss of such single answers stands in `singles` under the same name; it reads
`logps`, `ratio`, `length`, all `[N]`, `kl`, and whether each answer is `good`, `[N]` bool.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from bloomery.registry import Registry

Loss = Callable[..., Tensor]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Noise = Annotated[float, Field(ge=0, lt=0.5)]

losses: Registry[Loss] = Registry("preference loss")
singles: Registry[Loss] = Registry("loss of single answers")


@losses.register("dpo")
def dpo(
    chosen_ratio: Tensor, rejected_ratio: Tensor, *, beta: Positive = 0.1, label_smoothing: Noise = 0.0
) -> Tensor:
    """`-(1 - e) log sigmoid(h) - e log sigmoid(-h)` with `h = beta * (chosen_ratio - rejected_ratio)`.

    At `e = label_smoothing = 0` Rafailov et al. 2023 (arXiv 2305.18290), equation 7; else conservative DPO
    (Mitchell 2023, "A note on DPO with noisy preferences"): a share e of the labels is taken to be wrong,
    so the loss is least at `sigmoid(h) = 1 - e` and not at infinity.
    """
    h = beta * (chosen_ratio - rejected_ratio)
    return -(1 - label_smoothing) * logsigmoid(h) - label_smoothing * logsigmoid(-h)


@losses.register("robust")
def robust(
    chosen_ratio: Tensor, rejected_ratio: Tensor, *, beta: Positive = 0.1, label_smoothing: Noise = 0.1
) -> Tensor:
    """`((1 - e) L(h) - e L(-h)) / (1 - 2e)` with `L(h) = -log sigmoid(h)`, h as in DPO.

    Chowdhury et al. 2024 (arXiv 2403.00409), section 3: under labels of which a share e is flipped, its mean
    is DPO's loss under the true labels. It may be negative.
    """
    h, e = beta * (chosen_ratio - rejected_ratio), label_smoothing
    return (-(1 - e) * logsigmoid(h) + e * logsigmoid(-h)) / (1 - 2 * e)


@losses.register("ipo")
def ipo(
    chosen_ratio: Tensor,
    rejected_ratio: Tensor,
    chosen_length: Tensor,
    rejected_length: Tensor,
    *,
    beta: Positive = 0.1,
    average: bool = True,
) -> Tensor:
    """`(d - 1 / (2 beta))^2` with d the difference of the log-ratios.

    Azar et al. 2023 (arXiv 2310.12036), equation 17, whose tau is beta. With `average` each log-ratio is
    divided by its answer's length, as the authors' experiments did; without, it is the sum that is written
    in the paper, and the margin asked for does not grow with the answers.
    """
    if average:
        chosen_ratio, rejected_ratio = chosen_ratio / chosen_length, rejected_ratio / rejected_length
    return (chosen_ratio - rejected_ratio - 1 / (2 * beta)).square()


@losses.register("hinge")
def hinge(chosen_ratio: Tensor, rejected_ratio: Tensor, *, beta: Positive = 0.1) -> Tensor:
    """`max(0, 1 - beta * (chosen_ratio - rejected_ratio))`.

    SLiC's hinge (Zhao et al. 2023, arXiv 2305.10425) on log-ratios, the hinge-norm of Liu et al. 2023 (RSO,
    arXiv 2309.06657): a pair that is apart by 1 / beta teaches nothing more.
    """
    return torch.relu(1 - beta * (chosen_ratio - rejected_ratio))


@losses.register("kto")
def kto(
    chosen_ratio: Tensor,
    rejected_ratio: Tensor,
    kl: Tensor,
    *,
    beta: Positive = 0.1,
    desirable: Weight = 1.0,
    undesirable: Weight = 1.0,
) -> Tensor:
    """Half of `desirable * (1 - sigmoid(beta (chosen_ratio - kl)))` plus
    `undesirable * (1 - sigmoid(beta (kl - rejected_ratio)))`.

    `kto_single` of both answers. The half makes a mean over pairs the mean over answers.
    """
    worth = partial(kto_single, kl=kl, beta=beta, desirable=desirable, undesirable=undesirable)
    good = torch.ones_like(chosen_ratio, dtype=torch.bool)
    return (worth(chosen_ratio, good) + worth(rejected_ratio, ~good)) / 2


@singles.register("kto")
def kto_single(
    ratio: Tensor, good: Tensor, kl: Tensor, *, beta: float, desirable: float, undesirable: float
) -> Tensor:
    """`desirable * (1 - sigmoid(beta (ratio - kl)))` of a good answer, and of a bad one
    `undesirable * (1 - sigmoid(beta (kl - ratio)))`.

    Ethayarajh et al. 2024 (arXiv 2402.01306), section 4: every answer is good or bad by itself, compared
    with how far the policy has moved in general.
    """
    above = torch.where(good, ratio - kl, kl - ratio)
    weight = torch.where(good, ratio.new_tensor(desirable), ratio.new_tensor(undesirable))
    return weight * (1 - torch.sigmoid(beta * above))


@losses.register("orpo")
def orpo(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_length: Tensor,
    rejected_length: Tensor,
    *,
    beta: Weight = 0.1,
) -> Tensor:
    """`-log p_w - beta * log sigmoid(log odds(p_w) - log odds(p_l))`, `odds(p) = p / (1 - p)`.

    Hong et al. 2024 (arXiv 2403.07691), equations 6 and 7, whose lambda is beta: p is the geometric mean
    of an answer's token probabilities, so the first term is the loss of fine-tuning on the chosen answer.
    """
    chosen, rejected = chosen_logps / chosen_length, rejected_logps / rejected_length
    odds = chosen - log1mexp(chosen) - rejected + log1mexp(rejected)
    return -chosen - beta * logsigmoid(odds)


@losses.register("simpo")
def simpo(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_length: Tensor,
    rejected_length: Tensor,
    *,
    beta: Positive = 2.0,
    gamma: Weight = 1.0,
) -> Tensor:
    """`-log sigmoid(beta * (mean log-prob of chosen - mean log-prob of rejected) - gamma)`.

    Meng et al. 2024 (arXiv 2405.14734), equation 6.
    """
    margin = chosen_logps / chosen_length - rejected_logps / rejected_length
    return -logsigmoid(beta * margin - gamma)


def log1mexp(x: Tensor) -> Tensor:
    """`log(1 - exp(x))` for x <= 0, exact near 0 and far from it (Mächler 2012, equation 7). A probability
    of exactly 1 is taken for the largest below it, so that neither value nor gradient is infinite."""
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    near = x > -0.6931471805599453
    # Each branch sees only what it is exact for: `where` would let an infinite gradient of the other through.
    close = torch.log(-torch.expm1(torch.where(near, x, torch.full_like(x, -0.5))))
    far = torch.log1p(-torch.exp(torch.where(near, torch.full_like(x, -1.0), x)))
    return torch.where(near, close, far)


@dataclass(frozen=True, slots=True)
class Pairs:
    """What a loss may read; see the top of this file. Each `[P]` except `kl`, which is one number."""

    chosen_logps: Tensor
    rejected_logps: Tensor
    chosen_ratio: Tensor
    rejected_ratio: Tensor
    chosen_length: Tensor
    rejected_length: Tensor
    kl: Tensor


@dataclass(frozen=True, slots=True)
class Singles:
    """What a loss of single answers may read. Each `[N]` except `kl`, which is one number."""

    logps: Tensor
    ratio: Tensor
    length: Tensor
    good: Tensor
    kl: Tensor


def single(name: str, settings: Mapping[str, Any]) -> Loss | None:
    """The loss of answers that were judged alone which belongs to a loss of pairs with these settings; None
    where a pair's loss cannot be taken apart. Raises what `losses.bind` raises."""
    bound = cast("partial[Tensor]", losses.bind(name, settings))
    return partial(singles[name], **bound.keywords) if name in singles else None


def reads(loss: Loss) -> tuple[str, ...]:
    """The names of a loss's positional arguments: the fields of `Pairs` or `Singles` it needs."""
    return tuple(n for n, p in signature(loss).parameters.items() if p.kind is not p.KEYWORD_ONLY)


def needs_reference(loss: Loss) -> bool:
    return "chosen_ratio" in reads(loss)


def values(loss: Loss, of: Pairs | Singles) -> Tensor:
    """The loss of each pair, `[P]`, or of each single answer, `[N]`."""
    return loss(*(getattr(of, name) for name in reads(loss)))


def implicit_rewards(loss: Loss, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """`implicit_reward` of chosen and rejected answers, both `[P]`."""
    return (
        implicit_reward(loss, pairs.chosen_logps, pairs.chosen_ratio, pairs.chosen_length),
        implicit_reward(loss, pairs.rejected_logps, pairs.rejected_ratio, pairs.rejected_length),
    )


def implicit_reward(loss: Loss, logps: Tensor, ratio: Tensor, length: Tensor) -> Tensor:
    """The reward that a policy stands for, of each answer, with the beta of a loss of pairs.

    `beta * log(pi / pi_ref)` where there is a reference (Rafailov et al. 2023, equation 5, less a constant of
    the prompt), else `beta` times the mean log-prob of a token (Meng et al. 2024, equation 4).
    """
    beta: float = signature(loss).parameters["beta"].default
    return beta * ratio if needs_reference(loss) else beta * logps / length
