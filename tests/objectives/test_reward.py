"""The K-wise loss against arithmetic done by hand, and under finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from bloomery.objectives.reward import kwise_loss, pair_accuracy, ranking_pairs


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def one(scores: list[float], ranks: list[int]) -> float:
    k = len(scores)
    loss = kwise_loss(torch.tensor([scores]), torch.tensor([ranks]), torch.ones(1, k, dtype=torch.bool))
    return loss.item()


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


def test_only_the_order_of_ranks_matters() -> None:
    assert one([0.1, 0.7, -1.0], [1, 2, 9]) == one([0.1, 0.7, -1.0], [3, 4, 5])


def test_a_ranking_weighs_the_same_whatever_its_k() -> None:
    scores = torch.zeros(2, 4)
    ranks = torch.tensor([[1, 2, 3, 4], [1, 2, 0, 0]])
    mask = ranks > 0
    assert kwise_loss(scores, ranks, mask).tolist() == pytest.approx([math.log(2)] * 2)


def test_padding_never_reaches_value_or_gradient() -> None:
    scores = torch.tensor([[1.0, 0.0, float("nan")]], requires_grad=True)
    ranks, mask = torch.tensor([[1, 2, 0]]), torch.tensor([[True, True, False]])
    loss = kwise_loss(scores, ranks, mask).sum()
    loss.backward()
    assert loss.item() == pytest.approx(softplus(-1))
    assert scores.grad is not None
    assert scores.grad[0, 2].item() == 0.0


def test_fewer_than_two_answers_are_worth_nothing() -> None:
    mask = torch.tensor([[True, False]])
    assert kwise_loss(torch.ones(1, 2), torch.tensor([[1, 0]]), mask).tolist() == [0.0]


def test_gradient_by_finite_differences_and_it_sums_to_zero() -> None:
    torch.manual_seed(0)
    scores = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    ranks = torch.tensor([[1, 2, 3, 4, 5], [2, 1, 1, 3, 0], [1, 1, 1, 1, 1]])
    mask = ranks > 0
    assert torch.autograd.gradcheck(lambda s: kwise_loss(s, ranks, mask), (scores,))
    (grad,) = torch.autograd.grad(kwise_loss(scores, ranks, mask).sum(), scores)
    # Only differences of scores matter, so pushing all of a ranking's scores alike does nothing.
    torch.testing.assert_close(grad.sum(1), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)


def test_pairs_of_a_ranking_of_k_are_k_choose_two() -> None:
    for k in range(2, 10):
        pairs, _ = ranking_pairs(torch.arange(1, k + 1)[None], torch.ones(1, k, dtype=torch.bool))
        assert int(pairs.sum()) == math.comb(k, 2)


def test_accuracy_counts_untied_pairs_and_halves_equal_scores() -> None:
    ranks = torch.tensor([[1, 2, 2]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    right, pairs = pair_accuracy(torch.tensor([[1.0, 0.0, 1.0]]), ranks, mask)
    assert (right.item(), pairs.item()) == (1.5, 2)
