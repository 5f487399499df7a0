"""The reward model's losses against arithmetic done by hand, identities between them, finite differences over
every registered one, what must make no difference, and the numbers that TRL's own code gives."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from bloomery.errors import UsageError
from bloomery.objectives.reward import (
    Wanted,
    by_head,
    kwise_loss,
    pair_accuracy,
    pair_margin,
    pairwise,
    plackett_luce,
    ranking_losses,
    ranking_pairs,
    rating_losses,
    squared_sums,
)

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "reward.json").read_text())
RANKS = torch.tensor([[1, 2, 3, 4, 5], [2, 1, 1, 3, 0], [1, 1, 1, 1, 1], [3, 7, 7, 3, 1], [2, 1, 0, 0, 0]])
# Every setting of every ranking loss away from its default.
RANKING = [
    ("pairs", {}),
    ("pairs", {"label_smoothing": 0.2}),
    ("pairs", {"margin": 0.7}),
    ("plackett-luce", {}),
]
RATING: list[tuple[str, dict[str, float]]] = [("squared", {}), ("huber", {}), ("huber", {"delta": 0.3})]


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def one(
    scores: list[float],
    ranks: list[int],
    loss: Callable[..., Tensor] = pairwise,
    *,
    strengths: list[float] | None = None,
    worth: list[float] | None = None,
    **settings: float,
) -> float:
    wanted = Wanted(
        torch.tensor([ranks]),
        torch.ones(1, len(scores), dtype=torch.bool),
        None if strengths is None else torch.tensor([strengths]),
        None if worth is None else torch.tensor([worth]),
    )
    return loss(torch.tensor([scores]), wanted, **settings).item()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def wanted(ranks: Tensor = RANKS) -> Wanted:
    """Rankings with ratings beside them, some of which are missing."""
    worth = draw(*ranks.shape, seed=1)
    worth[0, 1] = worth[3, 0] = float("nan")
    return Wanted(ranks, ranks > 0, worth=worth)


def test_every_loss_is_tested_here() -> None:
    assert {name for name, _ in RANKING} == set(ranking_losses)
    assert {name for name, _ in RATING} == set(rating_losses)


# ------------------------------------------------------------------------------ all pairs


def test_three_answers_by_hand() -> None:
    # Scores 2, 0, 1 ranked 1st, 3rd, 2nd: gaps of the pairs (winner minus loser) are 2, 1 and 1.
    want = (softplus(-2) + softplus(-1) + softplus(-1)) / 3
    assert one([2.0, 0.0, 1.0], [1, 3, 2]) == pytest.approx(want)


def test_a_flipped_pair_costs_more_than_a_right_one() -> None:
    assert one([1.0, 0.0], [1, 2]) == pytest.approx(softplus(-1))
    assert one([1.0, 0.0], [2, 1]) == pytest.approx(softplus(1))


def test_a_tie_is_half_and_half_and_least_at_equal_scores() -> None:
    assert one([1.0, 0.0], [1, 1]) == pytest.approx((softplus(-1) + softplus(1)) / 2)
    assert one([0.3, 0.3], [2, 2]) == pytest.approx(math.log(2))


def test_as_published_is_the_loss_without_settings() -> None:
    scores = draw(*RANKS.shape)
    assert torch.equal(kwise_loss(scores, RANKS, RANKS > 0), pairwise(scores, wanted()))


def test_a_smoothed_label_by_hand() -> None:
    want = 0.9 * softplus(-1) + 0.1 * softplus(1)
    assert one([1.0, 0.0], [1, 2], label_smoothing=0.1) == pytest.approx(want)
    assert one([0.0, 1.0], [2, 1], label_smoothing=0.1) == pytest.approx(want)
    tie = (softplus(-1) + softplus(1)) / 2
    assert one([1.0, 0.0], [1, 1], label_smoothing=0.1) == pytest.approx(tie)


@pytest.mark.parametrize(
    ("ranks", "worth", "gap"),
    [
        ([1, 2], [6.0, 3.0], 1 - 0.5 * 3),  # the winner leads by 1 and ought to by 1.5
        ([2, 1], [3.0, 6.0], -1 - 0.5 * 3),
        ([1, 2], [3.0, 6.0], 1.0),  # rated against the ranking: the ranking stands, without a margin
        ([1, 2], [6.0, float("nan")], 1.0),  # unrated
    ],
)
def test_a_margin_by_hand(ranks: list[int], worth: list[float], gap: float) -> None:
    assert one([1.0, 0.0], ranks, worth=worth, margin=0.5) == pytest.approx(softplus(-gap))
    assert one([1.0, 0.0], ranks, worth=worth) == pytest.approx(one([1.0, 0.0], ranks))


def test_a_tie_has_no_margin_and_no_rating_no_margin() -> None:
    assert one([1.0, 0.0], [1, 1], worth=[6.0, 3.0], margin=0.5) == one([1.0, 0.0], [1, 1])
    assert one([1.0, 0.0], [1, 2], margin=0.5) == one([1.0, 0.0], [1, 2])


def test_strengths_are_the_odds_that_are_wanted() -> None:
    share = 1 / (1 + math.exp(-0.8))
    want = share * softplus(-0.3) + (1 - share) * softplus(0.3)
    assert one([0.3, 0.0], [2, 1], strengths=[1.0, 0.2]) == pytest.approx(want)
    scores = torch.tensor([[0.5, -0.2, 0.1]], requires_grad=True)
    seen = Wanted(torch.tensor([[1, 3, 2]]), torch.ones(1, 3).bool(), scores.detach())
    (gradient,) = torch.autograd.grad(pairwise(scores, seen).sum(), scores)
    # Cross-entropy is least where the scores are the strengths themselves.
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_pairs_of_a_ranking_of_k_are_k_choose_two() -> None:
    for k in range(2, 10):
        pairs, _ = ranking_pairs(torch.arange(1, k + 1)[None], torch.ones(1, k, dtype=torch.bool))
        assert int(pairs.sum()) == math.comb(k, 2)


# ------------------------------------------------------------------------------ listwise


def test_plackett_luce_by_hand() -> None:
    # 2 is chosen among 2, 0, 1; then 1 among 0, 1; then 0 is left over.
    first = math.log(math.exp(2) + math.exp(0) + math.exp(1)) - 2
    second = math.log(math.exp(0) + math.exp(1)) - 1
    assert one([2.0, 0.0, 1.0], [1, 3, 2], plackett_luce) == pytest.approx((first + second) / 2)


def test_plackett_luce_of_two_is_the_pair() -> None:
    for ranks in ([1, 2], [2, 1], [1, 1]):
        assert one([0.7, -0.4], ranks, plackett_luce) == pytest.approx(one([0.7, -0.4], ranks))


def test_plackett_luce_gives_all_orders_together_probability_one() -> None:
    scores = [0.3, -1.2, 0.8, 0.1]
    orders = itertools.permutations(range(1, 5))
    total = sum(math.exp(-3 * one(scores, list(ranks), plackett_luce)) for ranks in orders)
    assert total == pytest.approx(1.0)


def test_tied_answers_are_each_chosen_from_a_set_that_holds_the_others() -> None:
    everything = math.log(math.exp(2) + math.exp(0) + math.exp(1))
    # The two best are tied: both are chosen from all three, and the last is left over.
    assert one([2.0, 0.0, 1.0], [1, 2, 1], plackett_luce) == pytest.approx((2 * everything - 3) / 2)
    assert one([0.0, 0.0, 0.0], [4, 4, 4], plackett_luce) == pytest.approx(math.log(3))


# ------------------------------------------------------------------------------ ratings


def test_squared_and_huber_by_hand() -> None:
    predicted = torch.tensor([[[1.0, 2.0], [0.0, 0.0], [5.0, 5.0]]])
    ratings = torch.tensor([[[1.5, 2.0], [2.0, 0.0], [float("nan")] * 2]])
    mask = torch.tensor([[True, True, False]])
    squared, huber = rating_losses["squared"], rating_losses["huber"]
    assert squared(predicted, ratings, mask).item() == pytest.approx((0.25 + 0 + 4 + 0) / 4)
    assert huber(predicted, ratings, mask).item() == pytest.approx((0.125 + 0 + 1.5 + 0) / 4)
    assert huber(predicted, ratings, mask, delta=0.25).item() == pytest.approx(
        (0.25 * (0.5 - 0.125) + 0.25 * (2 - 0.125)) / 4
    )


def test_a_head_s_ranks_are_those_of_its_ratings() -> None:
    scores, mask = draw(1, 3, 2), torch.ones(1, 3).bool()
    ratings = torch.tensor([[[7.0, 2.0], [4.0, 2.0], [5.0, 6.0]]])
    want = [
        pairwise(scores[..., 0], Wanted(torch.tensor([[1, 3, 2]]), mask)),
        pairwise(scores[..., 1], Wanted(torch.tensor([[2, 2, 1]]), mask)),
    ]
    found = by_head(pairwise, scores, ratings, mask)
    assert found.item() == pytest.approx((want[0] + want[1]).item() / 2)
    # Leniency is no error: everything rated a point higher says the same.
    assert torch.equal(by_head(pairwise, scores, ratings + 1, mask), found)


def test_a_head_s_margin_is_the_lead_in_its_own_ratings() -> None:
    scores, mask = draw(1, 3, 2), torch.tensor([[True, True, False]])
    ratings = torch.tensor([[[7.0, 2.0], [4.0, 6.0], [float("nan")] * 2]])
    found = by_head(partial(pairwise, margin=0.5), scores, ratings, mask)
    # The first leads by 3 points on one head, the second by 4 on the other.
    gaps = [scores[0, 0, 0] - scores[0, 1, 0] - 1.5, scores[0, 1, 1] - scores[0, 0, 1] - 2.0]
    assert found.item() == pytest.approx(-sum(logsigmoid(gap).item() for gap in gaps) / 2, rel=1e-5)


def test_centring_by_sums_by_hand() -> None:
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    scores = torch.tensor([[2.0, -1.0, 0.5], [3.0, -3.0, float("nan")], [9.0, 1.0, 1.0]])
    # Pairs: 1, 2.5, -0.5; then 0, for what is the same above as below zero costs nothing; then no pair.
    assert squared_sums(scores, mask).tolist() == pytest.approx([(1 + 6.25 + 0.25) / 3, 0.0, 0.0])


# ------------------------------------------------------------------------------ every registered loss


@pytest.mark.parametrize(("name", "settings"), RANKING)
def test_gradient_of_rankings_by_finite_differences(name: str, settings: dict[str, float]) -> None:
    loss, said = ranking_losses.bind(name, settings), wanted()
    scores = draw(*RANKS.shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, said), (scores,))
    (gradient,) = torch.autograd.grad(loss(scores, said).sum(), scores)
    # Only differences of scores matter, so pushing all of a ranking's scores alike does nothing.
    torch.testing.assert_close(gradient.sum(1), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)
    assert gradient.abs().sum(1).gt(1e-3).all()


@pytest.mark.parametrize(("name", "settings"), RATING)
def test_gradient_of_ratings_by_finite_differences(name: str, settings: dict[str, float]) -> None:
    loss, ratings, mask = rating_losses.bind(name, settings), draw(3, 4, 3, seed=2), RANKS[:3, 1:] > 0
    predicted = draw(3, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: loss(p, ratings, mask), (predicted,))
    # Three heads that each miss by the same are worth as much as one.
    whole = loss(ratings + 0.5, ratings, mask)
    torch.testing.assert_close(whole, loss(ratings[..., :1] + 0.5, ratings[..., :1], mask))


@pytest.mark.parametrize(("name", "settings"), RANKING)
def test_what_makes_no_difference_to_a_ranking(name: str, settings: dict[str, float]) -> None:
    loss, said, scores = ranking_losses.bind(name, settings), wanted(), draw(*RANKS.shape)
    found = loss(scores, said)
    # Adding a constant to all scores.
    torch.testing.assert_close(loss(scores + 3.0, said), found)
    # The order in which the answers are stored.
    order = torch.tensor([3, 0, 4, 2, 1])
    moved = Wanted(*(None if x is None else x[:, order] for x in said))  # type: ignore[arg-type]
    torch.testing.assert_close(loss(scores[:, order], moved), found)
    # Which numbers the ranks are, if their order is the same.
    torch.testing.assert_close(loss(scores, said._replace(ranks=RANKS * 3 + 2)), found)
    # Wider padding, and what other rankings are in the batch.
    for row in range(len(RANKS)):
        k = int((RANKS[row] > 0).sum())
        by_itself = Wanted(*(None if x is None else x[row : row + 1, :k] for x in said))  # type: ignore[arg-type]
        torch.testing.assert_close(loss(scores[row : row + 1, :k], by_itself)[0], found[row])


@pytest.mark.parametrize(("name", "settings"), RANKING)
def test_the_right_order_is_cheaper(name: str, settings: dict[str, float]) -> None:
    ranks = torch.tensor([[1, 2, 3]])
    said = Wanted(ranks, ranks > 0, worth=torch.tensor([[6.0, 5.0, 2.0]]))
    loss = ranking_losses.bind(name, settings)
    costs = [loss(torch.tensor([s]), said).item() for s in ([1.0, 0, -1], [0.0, 0, 0], [-1.0, 0, 1])]
    assert costs[0] < costs[1] < costs[2]


@pytest.mark.parametrize(("name", "settings"), RANKING)
def test_padding_never_reaches_value_or_gradient(name: str, settings: dict[str, float]) -> None:
    loss = ranking_losses.bind(name, settings)
    worth = torch.tensor([[5.0, 3.0, float("nan"), 7.0]])
    said = Wanted(
        torch.tensor([[1, 2, 0, 9]]), torch.tensor([[True, True, False, False]]), worth, worth=worth
    )
    scores = torch.tensor([[1.0, 0.0, float("nan"), float("inf")]], requires_grad=True)
    value = loss(scores, said)
    value.sum().backward()
    clean = Wanted(said.ranks[:, :2], said.mask[:, :2], worth[:, :2], worth[:, :2])
    torch.testing.assert_close(value, loss(scores[:, :2], clean))
    assert scores.grad is not None
    assert scores.grad[0, 2:].tolist() == [0.0, 0.0]
    assert scores.grad[0, :2].isfinite().all()


@pytest.mark.parametrize(("name", "settings"), RATING)
def test_what_was_not_rated_never_reaches_value_or_gradient(name: str, settings: dict[str, float]) -> None:
    loss, nothing = rating_losses.bind(name, settings), float("nan")
    predicted = torch.tensor([[[1.0], [nothing], [3.0]]], requires_grad=True)
    ratings = torch.tensor([[[2.0], [4.0], [nothing]]])
    value = loss(predicted, ratings, torch.tensor([[True, False, False]]))
    value.sum().backward()
    assert value.item() == pytest.approx(
        loss(predicted[:, :1], ratings[:, :1], torch.ones(1, 1).bool()).item()
    )
    assert predicted.grad is not None
    assert predicted.grad[0, 1:].flatten().tolist() == [0.0, 0.0]
    assert loss(predicted, ratings, torch.zeros(1, 3).bool()).tolist() == [0.0]


@pytest.mark.parametrize("name", sorted(ranking_losses))
def test_a_ranking_weighs_the_same_whatever_its_k_and_fewer_than_two_are_worth_nothing(name: str) -> None:
    loss, ranks = ranking_losses[name], torch.tensor([[1, 2, 3, 4], [1, 2, 0, 0], [1, 0, 0, 0]])
    found = loss(torch.zeros(3, 4), Wanted(ranks, ranks > 0)).tolist()
    if name == "pairs":
        assert found == pytest.approx([math.log(2), math.log(2), 0.0])
    else:
        assert found == pytest.approx([math.log(24) / 3, math.log(2), 0.0])


@pytest.mark.parametrize("name", sorted(ranking_losses))
def test_huge_scores_give_a_finite_loss(name: str) -> None:
    scores = torch.tensor([[1e30, -1e30, 0.0]], requires_grad=True)
    ranks = torch.tensor([[2, 1, 3]])
    value = ranking_losses[name](scores, Wanted(ranks, ranks > 0))
    value.sum().backward()
    assert value.isfinite().all()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("pairs", {"label_smoothing": 0.5}, "less than 0.5"),
        ("pairs", {"margin": -1.0}, "greater than or equal to 0"),
        ("pairs", {"margins": 1.0}, "did you mean 'margin'"),
        ("plackett-luce", {"margin": 1.0}, "extra inputs"),
    ],
)
def test_settings_that_mean_nothing_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ranking_losses.bind(name, settings)


# ------------------------------------------------------------------------------ TRL's numbers


@pytest.mark.parametrize("case", GOLDEN["pairs"], ids=lambda case: case["name"])
def test_pairs_cost_what_they_cost_in_trl(case: dict[str, Any]) -> None:
    chosen, rejected = (torch.tensor(case[side]) for side in ("chosen", "rejected"))
    scores = torch.stack([chosen, rejected], dim=1).requires_grad_()
    ranks = torch.tensor([[1, 2]] * len(chosen))
    worth = None
    if case["margin"] is not None:
        worth = torch.stack([torch.tensor(case["margin"]), torch.zeros(len(chosen))], dim=1)
    loss = pairwise(scores, Wanted(ranks, ranks > 0, worth=worth), margin=1.0).mean()
    loss = loss + case["center"] * squared_sums(scores, ranks > 0).mean()
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-6)
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, torch.tensor(case["gradient"]), atol=1e-6, rtol=1e-5)
    right, pairs = pair_accuracy(scores.detach(), ranks, ranks > 0)
    assert float(right.sum() / pairs.sum()) == pytest.approx(case["accuracy"])


def test_accuracy_counts_untied_pairs_and_halves_equal_scores() -> None:
    ranks = torch.tensor([[1, 2, 2]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    right, pairs = pair_accuracy(torch.tensor([[1.0, 0.0, 1.0]]), ranks, mask)
    assert (right.item(), pairs.item()) == (1.5, 2)


def test_the_margin_is_how_far_winners_lead_and_ties_have_none() -> None:
    ranks = torch.tensor([[2, 1, 2], [1, 2, 0]])
    scores = torch.tensor([[1.0, 4.0, -1.0], [0.5, 2.0, float("nan")]])
    # The second beats both others; in the other ranking the winner trails.
    assert pair_margin(scores, ranks, ranks > 0).tolist() == [3.0 + 5.0, -1.5]
