"""PPO's own parts against what TRL's PPO has made of the same numbers (tests/golden/export_ppo.py): the leash
in the reward, GAE, whitening, the clipped value with its gradient, the clipped surrogate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bloomery.objectives.advantage import gae, leashed_rewards, whiten
from bloomery.objectives.policy import log_ratio, ppo_clip
from bloomery.objectives.token import aggregate
from bloomery.objectives.value import clipped_value_loss

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "ppo.json").read_text())["cases"]
EACH = pytest.mark.parametrize("case", GOLDEN, ids=lambda case: str(case["name"]))


def near(got: Tensor, want: Any) -> None:
    torch.testing.assert_close(got, torch.tensor(want), rtol=1e-5, atol=1e-6)


def tensors(case: dict[str, Any], *names: str) -> list[Tensor]:
    return [torch.tensor(case[name]) for name in names]


def test_the_cases_tell_right_from_wrong() -> None:
    assert [case["name"] for case in GOLDEN] == ["whole", "whole, rewards whitened", "padded"]
    assert all(0 < case["value_clipped"] < 1 for case in GOLDEN)
    padded = torch.tensor(GOLDEN[-1]["value_mask"])
    assert padded.any(1).all()
    assert not padded.all()


def test_rewards_of_tokens() -> None:
    """Without padding: behind a shorter answer TRL puts the score a token later."""
    case = GOLDEN[0]
    logprobs, reference, scores, mask = tensors(case, "logprobs", "ref_logprobs", "scores", "mask")
    away = log_ratio(logprobs, reference, mask)
    near(leashed_rewards(scores, away, mask, case["settings"]["kl_coef"]), case["rewards"])


@EACH
def test_advantages_and_returns(case: dict[str, Any]) -> None:
    rewards, values, mask = tensors(case, "rewards", "values", "value_mask")
    advantages, returns = gae(rewards, values, mask, case["settings"]["gamma"], case["settings"]["lam"])
    near(advantages, case["advantages"])
    near(returns, case["returns"])


@EACH
def test_whitening_but_for_the_variance(case: dict[str, Any]) -> None:
    """Ours is the population's variance, TRL's the sample's: about the mean, a root of n / (n - 1) apart."""
    assert len(case["whitened"]) == 1 + (case["settings"].get("whiten_rewards", False))
    for one in case["whitened"]:
        x, mask, want = tensors(one, "from", "mask", "to")
        num, mean = int(mask.sum()), 0.0 if one["shift_mean"] else float(x[mask].mean())
        ours = whiten(x, mask, one["shift_mean"])[mask]
        near((ours - mean) * ((num - 1) / num) ** 0.5 + mean, want[mask].tolist())


@EACH
def test_the_value_loss_its_clipping_and_its_gradient(case: dict[str, Any]) -> None:
    values, old, returns, mask = tensors(case, "new_values", "values", "returns", "value_mask")
    values.requires_grad_()
    loss, clipped = clipped_value_loss(values, old, returns, case["settings"]["cliprange_value"])
    total = aggregate(loss, mask, mask.sum())
    total.backward()
    near(total.detach(), case["value_loss"])
    assert clipped[mask].double().mean().item() == pytest.approx(case["value_clipped"])
    near(values.grad if values.grad is not None else torch.zeros(()), case["value_gradient"])


@EACH
def test_the_clipped_surrogate(case: dict[str, Any]) -> None:
    new, old, mask = tensors(case, "new_logprobs", "logprobs", "mask")
    advantages = torch.tensor(case["whitened"][-1]["to"])
    loss, _ = ppo_clip(log_ratio(new, old, mask), advantages, case["settings"]["cliprange"])
    near(aggregate(loss, mask, mask.sum()), case["policy_loss"])
