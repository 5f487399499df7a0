"""Preference losses against arithmetic done by hand, TRL's own code and finite differences, and what must
hold of every one of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bloomery.errors import UsageError
from bloomery.objectives import preference
from bloomery.objectives.preference import Loss, Pairs, Singles, losses, singles
from bloomery.registry import settings_of

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent.parent / "golden" / "preference.json").read_text())
NAMES = list(losses)
REFERENCED = [name for name in NAMES if preference.needs_reference(losses[name])]
NOISY = {"label_smoothing": 0.2}


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def value(name: str, *numbers: float, **settings: Any) -> float:
    made = losses.bind(name, settings)(*(torch.tensor([x], dtype=torch.float64) for x in numbers))
    assert made.shape == (1,)
    return float(made)


def pairs_of(chosen: list[tuple[float, ...]], rejected: list[tuple[float, ...]], kl: float = 0.0) -> Pairs:
    """From (policy, reference, length) of each answer."""
    a, b = torch.tensor(chosen, dtype=torch.float64), torch.tensor(rejected, dtype=torch.float64)
    return Pairs(
        chosen_logps=a[:, 0],
        rejected_logps=b[:, 0],
        chosen_ratio=a[:, 0] - a[:, 1],
        rejected_ratio=b[:, 0] - b[:, 1],
        chosen_length=a[:, 2],
        rejected_length=b[:, 2],
        kl=torch.tensor(kl, dtype=torch.float64),
    )


PAIRS = pairs_of(
    [(-12.5, -14.0, 9), (-3.0, -2.5, 4), (-41.0, -38.0, 30), (-0.75, -6.0, 1)],
    [(-20.25, -17.5, 11), (-2.0, -2.25, 2), (-25.5, -33.0, 17), (-9.5, -7.0, 6)],
    kl=0.4,
)


def alone(
    name: str, settings: dict[str, float], ratio: list[float] | Tensor, good: list[bool], kl: float
) -> Tensor:
    """The loss of single answers, of which nothing but the log-ratio and the label is known."""
    loss, ratios = preference.single(name, settings), torch.as_tensor(ratio, dtype=torch.float64)
    assert loss is not None
    nothing = torch.full_like(ratios, float("nan"))
    moved = torch.tensor(kl, dtype=torch.float64)
    return preference.values(loss, Singles(nothing, ratios, nothing, torch.tensor(good), moved))


def replaced(pairs: Pairs, **changed: Tensor) -> Pairs:
    return Pairs(**{n: changed.get(n, getattr(pairs, n)) for n in Pairs.__dataclass_fields__})


# ------------------------------------------------------------------------------ by hand


def test_dpo_by_hand() -> None:
    # The policy moved +2 on the chosen answer and -1 on the rejected one: h = 0.5 * 3.
    assert value("dpo", 2.0, -1.0, beta=0.5) == pytest.approx(softplus(-1.5))
    assert value("dpo", -1.0, 2.0, beta=0.5) == pytest.approx(softplus(1.5))
    want = 0.9 * softplus(-1.5) + 0.1 * softplus(1.5)
    assert value("dpo", 2.0, -1.0, beta=0.5, label_smoothing=0.1) == pytest.approx(want)


def test_robust_by_hand() -> None:
    want = (0.9 * softplus(-1.5) - 0.1 * softplus(1.5)) / 0.8
    assert value("robust", 2.0, -1.0, beta=0.5, label_smoothing=0.1) == pytest.approx(want)


def test_ipo_by_hand() -> None:
    # 2 over 4 tokens, -1 over 2: the averages are 0.5 and -0.5, apart by 1; the margin asked for is 1 / 0.4.
    assert value("ipo", 2.0, -1.0, 4.0, 2.0, beta=0.2) == pytest.approx((1 - 2.5) ** 2)
    assert value("ipo", 2.0, -1.0, 4.0, 2.0, beta=0.2, average=False) == pytest.approx((3 - 2.5) ** 2)


def test_hinge_by_hand() -> None:
    assert value("hinge", 2.0, -1.0, beta=0.25) == pytest.approx(0.25)
    assert value("hinge", 2.0, -3.0, beta=0.25) == 0.0
    assert value("hinge", -1.0, 1.0, beta=0.25) == pytest.approx(1.5)


def test_kto_by_hand() -> None:
    # The KL is 0.5: the chosen answer is 1.5 above it, the rejected one 1.5 below.
    want = (2 * (1 - sigmoid(0.3 * 1.5)) + 3 * (1 - sigmoid(0.3 * 1.5))) / 2
    got = value("kto", 2.0, -1.0, 0.5, beta=0.3, desirable=2.0, undesirable=3.0)
    assert got == pytest.approx(want)
    only_good = value("kto", 2.0, -1.0, 0.5, beta=0.3, undesirable=0.0)
    assert only_good == pytest.approx((1 - sigmoid(0.45)) / 2)


def test_kto_of_single_answers_by_hand() -> None:
    # The KL is 0.5: a good answer 1.5 above it, a bad one 1.5 below and one 1.5 above, a good one below.
    settings = {"beta": 0.3, "desirable": 2.0, "undesirable": 3.0}
    ratio, good = [2.0, -1.0, 2.0, -1.0], [True, False, False, True]
    near, far = 1 - sigmoid(0.45), 1 - sigmoid(-0.45)
    want = [2 * near, 3 * near, 3 * far, 2 * far]
    assert alone("kto", settings, ratio, good, 0.5).tolist() == pytest.approx(want)


def test_orpo_by_hand() -> None:
    # Geometric means 0.5 and 0.2: odds 1 and 0.25, so the log odds are apart by log 4.
    chosen, rejected = 3 * math.log(0.5), 2 * math.log(0.2)
    want = math.log(2) + 0.3 * softplus(-math.log(4))
    assert value("orpo", chosen, rejected, 3.0, 2.0, beta=0.3) == pytest.approx(want)
    assert value("orpo", chosen, rejected, 3.0, 2.0, beta=0.0) == pytest.approx(math.log(2))


def test_simpo_by_hand() -> None:
    # Means -0.5 and -2, apart by 1.5.
    assert value("simpo", -2.0, -4.0, 4.0, 2.0, beta=2.0, gamma=0.5) == pytest.approx(softplus(0.5 - 3))


# ------------------------------------------------------------------------------ TRL


@pytest.mark.parametrize(
    ("case", "name", "settings"),
    [
        ("dpo", "dpo", {"beta": 0.3}),
        ("dpo smoothed", "dpo", {"beta": 0.3, **NOISY}),
        ("robust", "robust", {"beta": 0.3, **NOISY}),
        ("ipo", "ipo", {"beta": 0.4}),
        ("hinge", "hinge", {"beta": 0.2}),
        ("simpo", "simpo", {"beta": 2.5, "gamma": 0.5}),
        ("orpo odds", "orpo", {"beta": 0.7}),
    ],
)
def test_pairs_are_worth_what_trl_says(case: str, name: str, settings: dict[str, float]) -> None:
    loss = losses.bind(name, settings)
    for (chosen, rejected), (want, by_chosen, by_rejected) in zip(GOLDEN["pairs"], GOLDEN[case], strict=True):
        pair = pairs_of([chosen], [rejected])
        per_token = case in ("simpo", "orpo odds")  # TRL's derivatives are by the mean log-prob of a token
        scale = (chosen[2], rejected[2]) if per_token else (1.0, 1.0)
        got, first, second = derivatives(loss, pair)
        if case == "orpo odds":  # TRL adds the loss of fine-tuning elsewhere
            got, first = got + chosen[0] / chosen[2], first + 1 / chosen[2]
        assert got == pytest.approx(want, abs=1e-5)
        assert (first * scale[0], second * scale[1]) == pytest.approx((by_chosen, by_rejected), abs=1e-5)


def derivatives(loss: Loss, pair: Pairs) -> tuple[float, float, float]:
    """The loss of a pair, and its derivatives by the two log-probs of the policy."""
    step = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    moved = replaced(
        pair,
        **{
            f"{side}_{what}": getattr(pair, f"{side}_{what}") + step[n]
            for n, side in enumerate(("chosen", "rejected"))
            for what in ("logps", "ratio")
        },
    )
    made = preference.values(loss, moved).sum()
    (grad,) = torch.autograd.grad(made, step)
    return made.item(), grad[0].item(), grad[1].item()


def test_kto_is_what_trl_says() -> None:
    chosen, rejected = ([pair[side] for pair in GOLDEN["pairs"]] for side in (0, 1))
    moved = GOLDEN["moved"]
    pairs = pairs_of(chosen, rejected, kl=max(0.0, sum(moved) / len(moved)))
    ratios = [pairs.chosen_ratio.requires_grad_(), pairs.rejected_ratio.requires_grad_()]
    loss = preference.values(losses.bind("kto", {"beta": 0.25, "undesirable": 1.5}), pairs).mean()
    grads = torch.autograd.grad(loss, ratios)
    assert [loss.item(), *torch.cat(grads).tolist()] == pytest.approx(GOLDEN["kto"], abs=1e-6)


def test_kto_of_single_answers_is_what_trl_says() -> None:
    answers = [pair[side] for side in (0, 1) for pair in GOLDEN["pairs"]]
    ratio = torch.tensor([a[0] - a[1] for a in answers], dtype=torch.float64, requires_grad=True)
    settings = {"beta": 0.25, "desirable": 2.0, "undesirable": 1.5}
    kl = max(0.0, sum(GOLDEN["moved"]) / len(GOLDEN["moved"]))
    loss = alone("kto", settings, ratio, GOLDEN["good"], kl).mean()
    (grads,) = torch.autograd.grad(loss, ratio)
    assert [loss.item(), *grads.tolist()] == pytest.approx(GOLDEN["kto judged"], abs=1e-6)


# ------------------------------------------------------------------------------ of every loss


def arguments(name: str, rows: int = 4) -> list[Tensor]:
    fields = [getattr(PAIRS, field) for field in preference.reads(losses[name])]
    return [f[:rows].clone() if f.dim() else f.clone() for f in fields]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_by_finite_differences(name: str) -> None:
    inputs = arguments(name)
    for field, tensor in zip(preference.reads(losses[name]), inputs, strict=True):
        tensor.requires_grad_(not field.endswith("length"))
    assert torch.autograd.gradcheck(losses[name], inputs)


@pytest.mark.parametrize("name", NAMES)
def test_a_pair_is_worth_the_same_in_any_company(name: str) -> None:
    together = losses[name](*arguments(name))
    assert together.shape == (4,)
    for row in range(4):
        alone = losses[name](*(a[row : row + 1] if a.dim() else a for a in arguments(name)))
        torch.testing.assert_close(alone[0], together[row])


@pytest.mark.parametrize("name", NAMES)
def test_the_chosen_answer_is_pushed_up_and_the_rejected_one_down(name: str) -> None:
    """Where the policy does not tell them apart and no reference helps."""
    answer = (-6.0, -6.0, 5)
    _, by_chosen, by_rejected = derivatives(losses[name], pairs_of([answer], [answer]))
    assert by_chosen < 0 < by_rejected


@pytest.mark.parametrize("name", NAMES)
def test_a_better_margin_never_costs_more_up_to_where_the_loss_wants_it(name: str) -> None:
    start = (-6.0, -6.0, 5)
    worth = [
        float(preference.values(losses[name], pairs_of([(-6.0 + d, -6.0, 5)], [start])))
        for d in (-2.0, -1.0, 0.0, 1.0)
    ]
    assert worth == sorted(worth, reverse=True)
    assert worth[0] > worth[-1]


@pytest.mark.parametrize("name", NAMES)
def test_only_the_losses_that_name_a_ratio_read_the_reference(name: str) -> None:
    unknown = torch.full((4,), float("nan"), dtype=torch.float64)
    made = preference.values(losses[name], replaced(PAIRS, chosen_ratio=unknown, rejected_ratio=unknown))
    assert made.isnan().all() if name in REFERENCED else made.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1e4, 1e-6])
def test_extreme_log_probs_give_finite_values_and_gradients(name: str, size: float) -> None:
    inputs = [a.float() for a in arguments(name)]
    for field, tensor in zip(preference.reads(losses[name]), inputs, strict=True):
        if not field.endswith("length") and tensor.dim():
            tensor.mul_(size)
            tensor.requires_grad_()
    made = losses[name](*inputs)
    made.sum().backward()
    assert made.isfinite().all()
    assert all(t.grad.isfinite().all() for t in inputs if t.grad is not None)


# ------------------------------------------------------------------------------ identities


def test_at_the_reference_each_loss_is_a_constant() -> None:
    same = pairs_of([(-9.0, -9.0, 7)], [(-4.0, -4.0, 2)])

    def at(name: str, **settings: float) -> float:
        return float(preference.values(losses.bind(name, settings), same))

    for beta in (0.01, 0.1, 2.0):
        assert at("dpo", beta=beta) == pytest.approx(math.log(2))
        assert at("dpo", beta=beta, **NOISY) == pytest.approx(math.log(2))
        assert at("robust", beta=beta, **NOISY) == pytest.approx(math.log(2))
        assert at("hinge", beta=beta) == 1.0
        assert at("ipo", beta=beta) == pytest.approx(1 / (4 * beta**2))
        assert at("kto", beta=beta) == pytest.approx(0.5)


def test_conservative_dpo_is_least_where_it_believes_the_label_as_often_as_it_holds() -> None:
    at = math.log(0.8 / 0.2) / 0.5  # sigmoid(beta * margin) = 0.8
    _, slope, _ = derivatives(losses.bind("dpo", {"beta": 0.5, **NOISY}), pairs_of([(at, 0, 1)], [(0, 0, 1)]))
    assert slope == pytest.approx(0.0, abs=1e-9)


def test_robust_dpo_under_flipped_labels_is_dpo_under_true_ones() -> None:
    true, flipped = (
        PAIRS,
        replaced(PAIRS, chosen_ratio=PAIRS.rejected_ratio, rejected_ratio=PAIRS.chosen_ratio),
    )
    loss = losses.bind("robust", NOISY)
    mean = 0.8 * preference.values(loss, true) + 0.2 * preference.values(loss, flipped)
    torch.testing.assert_close(mean, preference.values(losses["dpo"], true))


def test_without_noise_robust_and_conservative_are_dpo() -> None:
    plain = preference.values(losses["dpo"], PAIRS)
    torch.testing.assert_close(
        preference.values(losses.bind("robust", {"label_smoothing": 0.0}), PAIRS), plain
    )


@pytest.mark.parametrize("name", ["dpo", "robust", "hinge"])
def test_only_the_difference_of_the_ratios_matters(name: str) -> None:
    shifted = replaced(
        PAIRS, chosen_ratio=PAIRS.chosen_ratio + 3.0, rejected_ratio=PAIRS.rejected_ratio + 3.0
    )
    torch.testing.assert_close(
        preference.values(losses[name], shifted), preference.values(losses[name], PAIRS)
    )


@pytest.mark.parametrize("name", ["simpo", "orpo"])
def test_twice_the_same_answer_is_worth_as_much(name: str) -> None:
    doubled = replaced(
        PAIRS,
        **{
            f"{side}_{what}": 2 * getattr(PAIRS, f"{side}_{what}")
            for side in ("chosen", "rejected")
            for what in ("logps", "length")
        },
    )
    torch.testing.assert_close(
        preference.values(losses[name], doubled), preference.values(losses[name], PAIRS)
    )


@pytest.mark.parametrize("name", list(singles))
def test_a_pair_is_worth_the_mean_of_its_two_answers(name: str) -> None:
    settings = {key: 0.3 + n for n, key in enumerate(settings_of(losses[name]).model_fields)}
    good, bad = (
        alone(name, settings, ratio, [side] * 4, 0.4)
        for ratio, side in ((PAIRS.chosen_ratio, True), (PAIRS.rejected_ratio, False))
    )
    paired = preference.values(losses.bind(name, settings), PAIRS)
    torch.testing.assert_close((good + bad) / 2, paired, rtol=0, atol=0)


def test_only_a_loss_that_can_be_taken_apart_has_one_of_single_answers() -> None:
    assert [name for name in NAMES if preference.single(name, {}) is not None] == ["kto"]
    with pytest.raises(UsageError, match="undesirable"):
        preference.single("kto", {"undesirable": -1.0})


def test_log1mexp_near_zero_and_far_from_it() -> None:
    x = torch.tensor([-1e-9, -1e-3, -math.log(2), -30.0], dtype=torch.float64)
    want = [math.log(1e-9), math.log(-math.expm1(-1e-3)), math.log(0.5), -math.exp(-30.0)]
    assert preference.log1mexp(x).tolist() == pytest.approx(want, rel=1e-9)
    sure = torch.zeros(1, requires_grad=True)
    preference.log1mexp(sure).sum().backward()
    assert sure.grad is not None
    assert sure.grad.isfinite().all()


def test_the_reward_a_policy_stands_for() -> None:
    chosen, rejected = preference.implicit_rewards(losses["dpo"], PAIRS)
    assert chosen.tolist() == pytest.approx([0.15, -0.05, -0.3, 0.525])
    assert rejected.tolist() == pytest.approx([-0.275, 0.025, 0.75, -0.25])
    chosen, rejected = preference.implicit_rewards(losses.bind("simpo", {"beta": 3.0}), PAIRS)
    assert chosen[1].item() == pytest.approx(3 * -3.0 / 4)
    assert rejected[1].item() == pytest.approx(3 * -2.0 / 2)


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_has_a_beta(name: str) -> None:
    settings = {"beta": 0.7}
    once, twice = (
        preference.implicit_rewards(losses.bind(name, {"beta": beta}), PAIRS)[0] for beta in (0.7, 1.4)
    )
    torch.testing.assert_close(2 * once, twice)
    assert not torch.equal(
        preference.values(losses.bind(name, settings), PAIRS), preference.values(losses[name], PAIRS)
    )


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("dpo", {"beta": 0.0}, "beta"),
        ("dpo", {"beta": -0.1}, "beta"),
        ("dpo", {"label_smoothing": 0.5}, "label_smoothing"),
        ("dpo", {"gamma": 1.0}, "gamma"),
        ("kto", {"undesirable": -1.0}, "undesirable"),
        ("dop", {}, "did you mean 'dpo'"),
    ],
)
def test_settings_that_would_turn_a_loss_round_are_refused(
    name: str, settings: dict[str, float], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        losses.bind(name, settings)
