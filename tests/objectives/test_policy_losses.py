"""Policy losses against numbers by hand, against each other where they must be the same, against finite
differences, and against the numbers of TRL's own loss code (tests/golden/export_policy.py)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bloomery.objectives.policy import (
    Averaging,
    adapted_kl_coef,
    denominators,
    k1,
    k2,
    k3,
    kl_estimators,
    log_ratio,
    policy_losses,
)
from bloomery.objectives.token import aggregate

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "policy.json").read_text())
NAMES = list(policy_losses)
# Losses that stop a gradient: their derivative is that of the loss with the weight `pi / pi_old` held fast.
HELD = {"cispo"}

MASK = torch.tensor([[False, True, True, True, False], [False, False, True, True, True]])
NEW = torch.tensor([[0.0, -0.5, -1.2, -2.0, 0.0], [0.0, 0.0, -0.3, -3.0, -0.9]], dtype=torch.float64)
MOVED = torch.tensor([[0.0, 0.5, -0.4, 0.1, 0.0], [0.0, 0.0, 0.05, -0.6, 2.0]], dtype=torch.float64)
ADVANTAGES = torch.tensor([[0.7] * 5, [-1.3] * 5], dtype=torch.float64)


def test_there_are_those_of_the_recipe() -> None:
    assert set(NAMES) == {"ppo", "dapo", "cispo", "gspo", "reinforce"}


@pytest.mark.parametrize(
    ("name", "settings", "ratio", "advantage", "loss", "clipped"),
    [
        ("ppo", {"clip": 0.2}, 1.25, 1.0, -1.2, True),
        ("ppo", {"clip": 0.3}, 1.25, 1.0, -1.25, False),
        ("ppo", {"clip": 0.2}, 0.7, -1.0, 0.8, True),
        ("dapo", {}, 1.25, 1.0, -1.25, False),  # the upper bound is 1.28
        ("dapo", {}, 1.3, 1.0, -1.28, True),
        ("dapo", {}, 0.75, -1.0, 0.8, True),  # the lower bound is 0.8
        ("dapo", {"clip": 0.3}, 0.75, -1.0, 0.75, False),
        ("dapo", {"clip_higher": 0.1}, 1.3, 1.0, -1.1, True),
        ("gspo", {"clip": 0.2, "clip_higher": 0.3}, 1.25, 1.0, -1.25, False),
        ("gspo", {"clip": 0.2, "clip_higher": 0.3}, 0.75, -1.0, 0.8, True),
        ("gspo", {}, 1.0005, 1.0, -1.0004, True),
        ("gspo", {}, 1.00035, 1.0, -1.00035, False),
        ("gspo", {}, 0.9996, -1.0, 0.9997, True),
        # The rest look at the log-prob itself, which is log(0.3) here.
        ("cispo", {"clip_higher": 1.5}, 3.0, 2.0, -2.5 * 2.0 * math.log(0.3), True),
        ("cispo", {}, 3.0, 2.0, -3.0 * 2.0 * math.log(0.3), False),
        ("cispo", {"clip_higher": 1.5}, 0.1, -1.0, 0.1 * math.log(0.3), False),  # no lower bound
        ("reinforce", {}, 7.0, 2.0, -2.0 * math.log(0.3), False),
    ],
)
def test_one_token_by_hand(
    name: str, settings: dict[str, float], ratio: float, advantage: float, loss: float, clipped: bool
) -> None:
    logprob = torch.tensor([[0.0, math.log(0.3)]], dtype=torch.float64)
    old, mask = logprob - math.log(ratio), torch.tensor([[False, True]])
    given = torch.tensor([[9.0, advantage]], dtype=torch.float64)
    got, was = policy_losses.bind(name, settings)(logprob, old, given, mask)
    assert got[0, 1].item() == pytest.approx(loss, rel=1e-9)
    assert was[0].tolist() == [False, clipped]


def test_gspo_takes_the_geometric_mean_of_a_row_s_ratios() -> None:
    losses, clipped = policy_losses.bind("gspo", {"clip": 0.5, "clip_higher": 0.55})(
        NEW, NEW - MOVED, ADVANTAGES, MASK
    )
    first, second = math.exp((0.5 - 0.4 + 0.1) / 3), math.exp((0.05 - 0.6 + 2.0) / 3)
    assert losses[0][MASK[0]].tolist() == pytest.approx([-0.7 * first] * 3)
    assert losses[1][MASK[1]].tolist() == pytest.approx([1.3 * second] * 3)  # a bad answer: not held back
    assert not clipped.any()
    worse, clipped = policy_losses.bind("gspo", {"clip": 0.5, "clip_higher": 0.55})(
        NEW, NEW - MOVED, -ADVANTAGES, MASK
    )
    assert worse[1][MASK[1]].tolist() == pytest.approx([-1.3 * 1.55] * 3)
    assert clipped.tolist() == [[False] * 5, MASK[1].tolist()]


def test_cispo_goes_on_teaching_where_ppo_has_stopped() -> None:
    new = NEW.clone().requires_grad_()
    for name, settings, slope in (("ppo", {}, 0.0), ("cispo", {"clip_higher": 0.2}, -0.7 * 1.2)):
        losses, _ = policy_losses.bind(name, settings)(new, NEW - MOVED, ADVANTAGES, MASK)
        (gradient,) = torch.autograd.grad(losses[0, 1], new)  # ratio e^0.5 with a good advantage
        assert gradient[0, 1].item() == pytest.approx(slope)


# ------------------------------------------------------------------------------ over the registry


@pytest.mark.parametrize("name", NAMES)
def test_gradients_by_finite_differences(name: str) -> None:
    loss, new = policy_losses[name], NEW.clone().requires_grad_()
    old = NEW - MOVED

    def summed(x: Tensor) -> Tensor:
        before = x.detach() - MOVED if name in HELD else old
        return aggregate(loss(x, before, ADVANTAGES, MASK)[0], MASK, 1.0)

    assert torch.autograd.gradcheck(summed, (new,), eps=1e-7, atol=1e-5)
    assert torch.autograd.grad(summed(new), new)[0].abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("averaging", ["token", "sequence", "constant"])
def test_on_policy_every_loss_has_the_gradient_of_reinforce(name: str, averaging: Averaging) -> None:
    new = NEW.clone().requires_grad_()
    below = denominators(MASK, averaging, 4)[:, None]
    losses, clipped = policy_losses[name](new, NEW, ADVANTAGES, MASK)
    (gradient,) = torch.autograd.grad(aggregate(losses / below, MASK, 1.0), new)
    torch.testing.assert_close(gradient, torch.where(MASK, -ADVANTAGES / below, 0.0))
    assert not clipped.any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_garbage_under_the_mask_reaches_neither_value_nor_gradient(name: str, garbage: float) -> None:
    results = []
    for dirt in (0.0, garbage):
        dirty = [torch.where(MASK, x, dirt) for x in (NEW, NEW - MOVED, ADVANTAGES)]
        dirty[0].requires_grad_()
        losses, clipped = policy_losses[name](*dirty, MASK)
        value = aggregate(losses, MASK, 6.0)
        (gradient,) = torch.autograd.grad(value, dirty[0])
        results.append((value.detach(), gradient, clipped & MASK))
    for clean, got in zip(*results, strict=True):
        torch.testing.assert_close(got, clean)
    assert (results[1][1][~MASK] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_neither_padding_nor_company_changes_a_row(name: str) -> None:
    loss = policy_losses[name]
    together, _ = loss(NEW, NEW - MOVED, ADVANTAGES, MASK)
    for row in range(2):
        pad = torch.zeros(1, 3, dtype=torch.float64)
        alone = [torch.cat([x[row : row + 1], pad], dim=1) for x in (NEW, NEW - MOVED, ADVANTAGES)]
        mask = torch.cat([MASK[row : row + 1], torch.zeros(1, 3, dtype=torch.bool)], dim=1)
        got, _ = loss(*alone, mask)
        torch.testing.assert_close(got[mask], together[row][MASK[row]])


# ------------------------------------------------------------------------------ averages


def test_denominators_by_hand() -> None:
    mask = torch.tensor([[False, True, True, True], [False, True, False, False]])
    assert denominators(mask, "token", 9).tolist() == [4, 4]
    assert denominators(mask, "sequence", 9).tolist() == [6, 2]
    assert denominators(mask, "constant", 9).tolist() == [18, 18]
    losses = torch.tensor([[9.0, 1.0, 2.0, 3.0], [9.0, 8.0, 9.0, 9.0]])
    means = {"token": 14 / 4, "sequence": (2 + 8) / 2, "constant": 14 / 18}
    averaging: Averaging
    for averaging in ("token", "sequence", "constant"):
        below = denominators(mask, averaging, 9)[:, None]
        assert aggregate(losses / below, mask, 1.0).item() == pytest.approx(means[averaging])


def test_a_row_that_counts_nothing_divides_by_nothing() -> None:
    mask = torch.zeros(2, 3, dtype=torch.bool)
    averaging: Averaging
    for averaging in ("token", "sequence", "constant"):
        below = denominators(mask, averaging, 3)[:, None]
        assert aggregate(torch.ones(2, 3) / below, mask, 1.0).item() == 0.0


# ------------------------------------------------------------------------------ TRL


def given(name: str) -> Tensor:
    return torch.tensor(GOLDEN[name])


@pytest.mark.parametrize("case", list(GOLDEN["losses"]))
def test_trl_s_losses_and_gradients(case: str) -> None:
    name, averaging, *kl = case.split("/")
    _, _, low, high, beta = GOLDEN["losses"][case]["settings"]
    settings: dict[str, float] = {"clip": low}
    if name in ("dapo", "gspo"):
        settings["clip_higher"] = high
    if name == "cispo":
        settings = {"clip_higher": high - 1}  # TRL's bound is on the ratio itself
    new, old, reference = given("new").requires_grad_(), given("old"), given("reference")
    mask = given("mask")
    advantages = given("advantages")[:, None].expand_as(new)
    losses, clipped = policy_losses.bind(name, settings)(new, old, advantages, mask)
    metrics: dict[str, Any] = GOLDEN["losses"][case]["metrics"]
    if kl:
        divergence = kl_estimators[kl[0]](log_ratio(new, reference, mask))
        losses = losses + beta * divergence
        mean = aggregate(divergence, mask, mask.sum())
        assert mean.item() == pytest.approx(metrics["kl"], rel=1e-5)
    below = denominators(mask, averaging, GOLDEN["longest"])[:, None]  # type: ignore[arg-type]
    value = aggregate(losses / below, mask, 1.0)
    (gradient,) = torch.autograd.grad(value, new)
    assert value.item() == pytest.approx(GOLDEN["losses"][case]["loss"], rel=1e-5, abs=1e-7)
    torch.testing.assert_close(gradient, torch.tensor(GOLDEN["losses"][case]["gradient"]))
    if "clip_ratio/region_mean" in metrics and name != "gspo":  # TRL counts a sequence's clip once
        share = aggregate(clipped.float(), mask, mask.sum())
        assert 0 < share.item() < 1
        assert share.item() == pytest.approx(metrics["clip_ratio/region_mean"])


# ------------------------------------------------------------------------------ the leash


def test_what_each_estimator_s_gradient_averages_to() -> None:
    """Exactly, over all outcomes of a small distribution: k1 teaches nothing, k2 KL(pi || ref), k3 the other
    direction."""
    logits = torch.tensor([0.3, -0.8, 1.1, 0.2], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-0.4, 0.5, 0.1, 0.9], dtype=torch.float64).log_softmax(0)
    log_pi = logits.log_softmax(0)
    pi = log_pi.exp()
    wanted = {
        "k1": torch.zeros(4, dtype=torch.float64),
        "k2": torch.autograd.grad((pi * (log_pi - reference)).sum(), logits, retain_graph=True)[0],
        "k3": torch.autograd.grad((reference.exp() * (reference - log_pi)).sum(), logits, retain_graph=True)[
            0
        ],
    }
    for name, want in wanted.items():
        average = (pi.detach() * kl_estimators[name](log_pi - reference)).sum()
        (gradient,) = torch.autograd.grad(average, logits, retain_graph=True)
        torch.testing.assert_close(gradient, want)
    assert (wanted["k2"] - wanted["k3"]).abs().max() > 0.05


def test_estimators_are_the_functions_of_their_names() -> None:
    assert {name: kl_estimators[name] for name in kl_estimators} == {"k1": k1, "k2": k2, "k3": k3}


@pytest.mark.parametrize(
    ("kl", "coef"), [(6.0, 0.1), (6.6, 0.101), (60.0, 0.102), (5.4, 0.099), (0.0, 0.098), (-3.0, 0.098)]
)
def test_the_controller_moves_towards_its_target_by_bounded_steps(kl: float, coef: float) -> None:
    assert adapted_kl_coef(0.1, kl, 6.0) == pytest.approx(coef)


def test_the_controller_s_rate() -> None:
    assert adapted_kl_coef(0.1, 9.0, 6.0, rate=0.5) == pytest.approx(0.11)
