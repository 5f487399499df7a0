"""PPO's pieces: corners of the clip by hand, identities of GAE, the KL estimators' averages, gradients."""

from __future__ import annotations

import math

import pytest
import torch

from bloomery.objectives.advantage import Moments, gae, joined, leashed_rewards, standardised, whiten
from bloomery.objectives.policy import k1, k2, k3, kl_estimators, log_ratio, ppo_clip
from bloomery.objectives.value import clipped_value_loss, explained_variance


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 1.0, -1.0, False),
        (1.5, 1.0, -1.2, True),  # gains nothing beyond 1 + clip
        (0.5, 1.0, -0.5, False),  # a good token made rarer: pulled back with full force
        (1.5, -1.0, 1.5, False),  # a bad token made likelier: pulled back with full force
        (0.5, -1.0, 0.8, True),  # gains nothing below 1 - clip
    ],
)
def test_the_four_corners_of_the_clip(ratio: float, advantage: float, loss: float, clipped: bool) -> None:
    got, was = ppo_clip(torch.tensor([[math.log(ratio)]]), torch.tensor([[advantage]]), 0.2)
    assert got.item() == pytest.approx(loss)
    assert was.item() is clipped


def test_where_the_clip_decides_no_gradient_flows() -> None:
    moved = torch.log(torch.tensor([[1.5, 0.5, 1.1]])).requires_grad_()
    loss, _ = ppo_clip(moved, torch.tensor([[1.0, -1.0, 1.0]]), 0.2)
    loss.sum().backward()
    assert moved.grad is not None
    assert moved.grad.tolist() == [[0.0, 0.0, pytest.approx(-1.1)]]


def test_log_ratio_is_masked_before_exp() -> None:
    mask = torch.tensor([[False, True]])
    got = log_ratio(torch.tensor([[1e9, -1.0]]), torch.tensor([[0.0, -1.5]]), mask)
    assert got.tolist() == [[0.0, 0.5]]


def test_kl_estimators_by_hand_and_on_average() -> None:
    d = torch.tensor([0.5])
    assert k1(d).item() == 0.5
    assert k2(d).item() == pytest.approx(0.125)
    assert k3(d).item() == pytest.approx(math.exp(-0.5) - 0.5)
    # Exactly, over a small distribution: k1 and k3 average to KL(pi || ref), and k3 is never negative.
    pi, ref = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    d = (pi / ref).log()
    kl = (pi * d).sum().item()
    assert (pi * k1(d)).sum().item() == pytest.approx(kl)
    assert (pi * k3(d)).sum().item() == pytest.approx(kl)
    assert (k3(d) >= 0).all()
    assert set(kl_estimators) == {"k1", "k2", "k3"}


def test_the_score_lands_on_the_last_counted_token_and_the_leash_on_each() -> None:
    mask = torch.tensor([[False, True, True, False]])
    ratio = torch.tensor([[9.0, 0.5, -1.0, 9.0]])
    got = leashed_rewards(torch.tensor([2.0]), ratio, mask, beta=0.1)
    assert got.tolist() == [[0.0, pytest.approx(-0.05), pytest.approx(2.1), 0.0]]


MASK = torch.tensor([[False, True, True, True, False], [False, False, True, False, False]])
REWARDS = torch.tensor([[0.0, 1.0, 2.0, 4.0, 0.0], [0.0, 0.0, 3.0, 0.0, 0.0]])
VALUES = torch.tensor([[9.0, 0.5, 1.0, 2.0, 9.0], [9.0, 9.0, 1.0, 9.0, 9.0]])


def test_gae_by_hand() -> None:
    # gamma 0.5, lambda 0.5. Last token: 4 - 2 = 2. Middle: 2 + 0.5 * 2 - 1 = 2, plus 0.25 * 2 = 2.5.
    # First: 1 + 0.5 * 1 - 0.5 = 1, plus 0.25 * 2.5 = 1.625. Second row: 3 - 1 = 2.
    advantages, returns = gae(REWARDS, VALUES, MASK, gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[0, 1.625, 2.5, 2, 0], [0, 0, 2, 0, 0]]
    assert returns.tolist() == [[0, 2.125, 3.5, 4, 0], [0, 0, 3, 0, 0]]


def test_gae_at_lambda_one_is_reward_to_go_less_the_value() -> None:
    advantages, returns = gae(REWARDS, VALUES, MASK, gamma=1.0, lam=1.0)
    assert returns.tolist() == [[0, 7, 6, 4, 0], [0, 0, 3, 0, 0]]
    assert advantages.tolist() == [[0, 6.5, 5, 2, 0], [0, 0, 2, 0, 0]]


def test_gae_at_lambda_zero_is_the_one_step_error() -> None:
    advantages, _ = gae(REWARDS, VALUES, MASK, gamma=1.0, lam=0.0)
    assert advantages.tolist() == [[0, 1.5, 3, 2, 0], [0, 0, 2, 0, 0]]


def test_gae_never_looks_under_the_mask() -> None:
    values = torch.where(MASK, VALUES, torch.tensor(float("inf")))
    rewards = torch.where(MASK, REWARDS, torch.tensor(1e30))
    for got, want in zip(
        gae(rewards, values, MASK, 0.9, 0.8), gae(REWARDS, VALUES, MASK, 0.9, 0.8), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_whitening_is_over_counted_tokens_only() -> None:
    x = torch.tensor([[100.0, 1.0, 3.0], [100.0, 5.0, -100.0]])
    mask = torch.tensor([[False, True, True], [False, True, False]])
    white = whiten(x, mask)
    assert white[mask].mean().item() == pytest.approx(0, abs=1e-6)
    assert white[mask].var(unbiased=False).item() == pytest.approx(1, rel=1e-5)
    assert white[~mask].tolist() == [0.0] * 3
    kept = whiten(x, mask, shift_mean=False)
    assert kept[mask].mean().item() == pytest.approx(3.0, rel=1e-6)
    # 1, 3, 5: two from the mean is two over the root of 8 / 3.
    assert kept[mask].tolist() == pytest.approx([3 - 1.2247449, 3.0, 3 + 1.2247449])
    assert whiten(torch.full((2, 3), 0.7), mask, shift_mean=False)[mask].tolist() == pytest.approx([0.7] * 3)


@pytest.mark.parametrize("num", [7, 3001])
def test_whitening_leaves_large_equal_numbers_at_zero(num: int) -> None:
    x = torch.full((1, num), 12345.678)
    assert whiten(x, torch.ones_like(x).bool()).abs().max().item() < 1e-6


def test_whitening_of_numbers_whose_squares_no_float32_holds() -> None:
    """Two of a, one of -a: mean a / 3, variance 8 / 9 a squared."""
    x = torch.tensor([[3e38, -3e38, 3e38]])
    white = whiten(x, torch.ones_like(x).bool())
    assert white.tolist()[0] == pytest.approx([0.5**0.5, -(2**0.5), 0.5**0.5])


def test_moments_of_parts_are_those_of_the_whole() -> None:
    # 1, 2, 3, 6: the mean is 3; 4 + 1 + 0 + 9.
    seen = joined(joined(Moments(), [1.0, 2.0]), [3.0, 6.0])
    assert seen == (4, pytest.approx(3.0), pytest.approx(14.0))
    assert joined(Moments(), [5.0]) == (1, 5.0, 0.0)
    far = Moments()
    for part in ([1e9 + 4], [1e9 + 7, 1e9 + 13], [1e9 + 16]):
        far = joined(far, part)
    assert far == (4, 1e9 + 10, 90.0)  # 36 + 9 + 9 + 36: plain sums of squares would lose it


def test_standardised_scores_by_hand() -> None:
    seen = Moments(4, 3.0, 14.0)
    found = standardised(torch.tensor([3.0, 3 + math.sqrt(3.5), -4.0]), seen)
    assert found.tolist() == pytest.approx([0.0, 1.0, -7 / math.sqrt(3.5)])
    assert found.dtype == torch.float32
    same = torch.full((3,), 1234.567)
    assert standardised(same, joined(Moments(), same.tolist())).tolist() == pytest.approx([0.0] * 3, abs=1e-6)


def test_value_loss_takes_the_worse_of_clipped_and_free() -> None:
    values, old = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 0.0]])
    returns = torch.tensor([[2.0, 0.5]])
    loss, clipped = clipped_value_loss(values, old, returns, clip=0.2)
    # First: free (1-2)^2 = 1, clipped (0.2-2)^2 = 3.24. Second: free (1-0.5)^2 = 0.25, clipped 0.09.
    assert loss.tolist() == [[pytest.approx(1.62), pytest.approx(0.125)]]
    assert clipped.tolist() == [[True, False]]


def test_explained_variance_at_its_landmarks() -> None:
    returns, mask = torch.tensor([[1.0, 2.0, 3.0]]), torch.ones(1, 3, dtype=torch.bool)
    assert explained_variance(returns, returns, mask) == pytest.approx(1.0)
    assert explained_variance(torch.full((1, 3), 7.0), returns, mask) == pytest.approx(0.0)


def test_gradients_by_finite_differences() -> None:
    torch.manual_seed(0)
    moved = (0.3 * torch.randn(3, 4, dtype=torch.float64)).requires_grad_()
    advantages = torch.randn(3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda m: ppo_clip(m, advantages, 0.2)[0], (moved,))
    values = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    old, returns = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: clipped_value_loss(v, old, returns, 0.2)[0], (values,))
