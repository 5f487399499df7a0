"""The loss and the rewards of steps by hand, against cross-entropy in two classes, and under finite
differences; whatever is not the end of a step makes no difference."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from bloomery.objectives.process import step_loss, step_rewards
from bloomery.objectives.token import aggregate

MASK = torch.tensor([[False, True, False, True, True], [False, False, True, False, False], [False] * 5])
LABELS = torch.tensor([[True, True, False, False, True], [True, True, False, True, True], [True] * 5])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def scores(seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_steps_by_hand() -> None:
    found = step_loss(torch.tensor([[9.0, 2.0, 9.0, -1.0, 0.5]]), LABELS[:1], MASK[:1])
    want = [0.0, -math.log(sigmoid(2)), 0.0, -math.log(sigmoid(1)), -math.log(sigmoid(0.5))]
    assert found[0].tolist() == pytest.approx(want)


def test_it_is_cross_entropy_in_two_classes() -> None:
    """As token-classification heads have it: two logits a token, -100 where no step ends."""
    logits = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(1))
    labels = torch.where(MASK, LABELS.long(), -100)
    want = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    found = aggregate(step_loss(logits[..., 1] - logits[..., 0], LABELS, MASK), MASK, MASK.sum())
    assert found.item() == pytest.approx(want.item())


def test_gradient_by_finite_differences() -> None:
    x = scores().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: step_loss(s, LABELS, MASK), (x,))
    for name in step_rewards:
        assert torch.autograd.gradcheck(lambda s, name=name: step_rewards[name](s, MASK), (x,)), name


def test_what_is_not_the_end_of_a_step_makes_no_difference() -> None:
    clean = scores().float()
    dirty = torch.where(MASK, clean, torch.tensor(float("nan"))).requires_grad_()
    loss = step_loss(dirty, LABELS, MASK)
    loss.sum().backward()
    assert torch.equal(loss, step_loss(clean, LABELS, MASK))
    assert dirty.grad is not None
    assert dirty.grad[~MASK].abs().sum() == 0
    assert torch.equal(step_loss(clean, LABELS ^ ~MASK, MASK), loss)
    for name in step_rewards:
        assert torch.equal(step_rewards[name](dirty, MASK), step_rewards[name](clean, MASK)), name


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("product", sigmoid(2) * sigmoid(-1) * sigmoid(0.5)),
        ("minimum", sigmoid(-1)),
        ("last", sigmoid(0.5)),
    ],
)
def test_the_reward_of_steps_by_hand(name: str, want: float) -> None:
    x = torch.tensor([[-9.0, 2.0, -9.0, -1.0, 0.5], [9.0, 9.0, 0.0, 9.0, 9.0], [-9.0] * 5])
    assert step_rewards[name](x, MASK).tolist() == pytest.approx([want, 0.5, 1.0])


def test_every_reward_of_steps_is_tested_here() -> None:
    assert set(step_rewards) == {"product", "minimum", "last"}
