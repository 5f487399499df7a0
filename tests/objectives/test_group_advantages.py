"""Advantages without a critic: groups by hand, what must not change them, groups that say nothing, and the
numbers of TRL's own code (tests/golden/export_policy.py)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bloomery.errors import UsageError
from bloomery.objectives.advantage import leashed_rewards
from bloomery.objectives.group import advantage_estimators, centred, constant_groups, returns_of
from bloomery.objectives.policy import log_ratio
from bloomery.registry import settings_of

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "policy.json").read_text())
NAMES = list(advantage_estimators)
GROUPED = [name for name in NAMES if name != "reinforce++"]

# Two prompts, three answers each, of 3, 1, 2 and 2, 4, 1 tokens; position 0 is the prompt's.
LENGTHS = torch.tensor([[3, 1, 2], [2, 4, 1]])
AT = torch.arange(6)
MASK = (AT >= 1) & (LENGTHS[..., None] >= AT)


def laid_out(scores: list[list[float]]) -> Tensor:
    """Scores on the last tokens: `[P, n, T]`."""
    last = LENGTHS[..., None] == AT
    return torch.where(last, torch.tensor(scores, dtype=torch.float64)[..., None], 0.0)


def per_answer(advantages: Tensor, mask: Tensor = MASK) -> list[list[float]]:
    """The one number of each answer, after a look that it is one, and that nothing else is there."""
    assert (advantages[~mask] == 0).all()
    rows = [
        [row[where] for row, where in zip(*pair, strict=True)] for pair in zip(advantages, mask, strict=True)
    ]
    assert all((row == row[0]).all() for group in rows for row in group)
    return [[row[0].item() for row in group] for group in rows]


SCORES = [[1.0, 2.0, 6.0], [-1.0, 0.0, 1.0]]  # means 3 and 0; less them -2 -1 3 and -1 0 1
DEVIATION = [math.sqrt(14 / 2), 1.0]
BATCH = math.sqrt((14 + 2) / 6)


@pytest.mark.parametrize(
    ("name", "settings", "wanted"),
    [
        ("grpo", {"eps": 0.0}, [[c / DEVIATION[0] for c in (-2, -1, 3)], [-1, 0, 1]]),
        ("grpo", {"eps": 1.0}, [[c / (DEVIATION[0] + 1) for c in (-2, -1, 3)], [-0.5, 0, 0.5]]),
        ("dr_grpo", {}, [[-2, -1, 3], [-1, 0, 1]]),
        ("rloo", {}, [[1 - 4, 2 - 3.5, 6 - 1.5], [-1 - 0.5, 0 - 0, 1 + 0.5]]),
        (
            "reinforce++_baseline",
            {"eps": 0.0},
            [[c / BATCH for c in (-2, -1, 3)], [c / BATCH for c in (-1, 0, 1)]],
        ),
    ],
)
def test_groups_by_hand(name: str, settings: dict[str, float], wanted: list[list[float]]) -> None:
    got = per_answer(advantage_estimators.bind(name, settings)(laid_out(SCORES), MASK))
    for group, want in zip(got, wanted, strict=True):
        assert group == pytest.approx(want)


def test_there_are_those_of_the_recipe() -> None:
    assert set(NAMES) == {"grpo", "dr_grpo", "rloo", "reinforce++", "reinforce++_baseline"}


def test_whitening_of_what_is_still_to_come_by_hand() -> None:
    """A token pays for the divergence of itself and of what follows, not of what came before."""
    mask = torch.tensor([[[False, True, True]], [[False, True, False]]])
    rewards = torch.tensor([[[7.0, -1.0, 4.0]], [[7.0, 6.0, 7.0]]], dtype=torch.float64)
    # To come: 3 and 4; 6. Mean 13/3, variance ((4/3)^2 + (1/3)^2 + (5/3)^2) / 3 = 14/9.
    scale = math.sqrt(14 / 9)
    got = advantage_estimators["reinforce++"](rewards, mask)
    assert got[0, 0].tolist() == [0.0, pytest.approx(-4 / 3 / scale), pytest.approx(-1 / 3 / scale)]
    assert got[1, 0].tolist() == [0.0, pytest.approx(5 / 3 / scale), 0.0]


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_that_always_scores_the_same_teaches_exactly_nothing(name: str) -> None:
    got = advantage_estimators[name](laid_out([[0.1] * 3, [0.1] * 3]).float(), MASK)
    assert (got == 0).all()


@pytest.mark.parametrize("name", GROUPED)
def test_a_group_that_always_scores_the_same_is_exactly_zero_and_counted(name: str) -> None:
    rewards = laid_out([[0.1] * 3, [0.3, 0.1, 0.7]]).float()
    got = advantage_estimators[name](rewards, MASK)
    assert (got[0] == 0).all()
    assert (got[1][MASK[1]] != 0).all()
    assert constant_groups(returns_of(rewards, MASK)).tolist() == [True, False]


def test_rounding_of_a_mean_is_no_advantage() -> None:
    """grpo would divide it by eps alone, and whitening blow it up."""
    same = torch.rand(500, 1, generator=torch.Generator().manual_seed(0)).expand(-1, 7)
    assert (same - same.mean(1, keepdim=True)).any()
    assert not centred(same).any()


@pytest.mark.parametrize("name", GROUPED)
def test_a_prompt_that_always_pays_more_is_no_better(name: str) -> None:
    raised = [[s + 10 for s in SCORES[0]], SCORES[1]]
    estimate = advantage_estimators[name]
    torch.testing.assert_close(estimate(laid_out(raised), MASK), estimate(laid_out(SCORES), MASK))


@pytest.mark.parametrize("name", NAMES)
def test_what_a_scale_does(name: str) -> None:
    settings = {"eps": 0.0} if "eps" in settings_of(advantage_estimators[name]).model_fields else {}
    estimate = advantage_estimators.bind(name, settings)
    scaled = estimate(laid_out([[5 * s for s in group] for group in SCORES]), MASK)
    factor = 5.0 if name in ("dr_grpo", "rloo") else 1.0
    torch.testing.assert_close(scaled, factor * estimate(laid_out(SCORES), MASK))


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_prompts_and_of_answers_makes_no_difference(name: str) -> None:
    estimate, rewards = advantage_estimators[name], laid_out(SCORES)
    got = estimate(rewards.flip(0, 1), MASK.flip(0, 1))
    torch.testing.assert_close(got, estimate(rewards, MASK).flip(0, 1))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_under_the_mask_makes_no_difference(name: str) -> None:
    rewards = laid_out(SCORES)
    dirty = torch.where(MASK, rewards, float("nan"))
    torch.testing.assert_close(
        advantage_estimators[name](dirty, MASK), advantage_estimators[name](rewards, MASK)
    )


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_a_reward_that_is_no_number_spoils_its_own_group_only(name: str) -> None:
    got = advantage_estimators[name](laid_out([[float("nan"), 2.0, 6.0], SCORES[1]]), MASK)
    assert got[0][MASK[0]].isnan().all()
    torch.testing.assert_close(got[1], advantage_estimators[name](laid_out(SCORES), MASK)[1])


@pytest.mark.parametrize("name", GROUPED)
def test_one_answer_is_no_group(name: str) -> None:
    with pytest.raises(UsageError, match="compares answers to one prompt"):
        advantage_estimators[name](laid_out(SCORES)[:, :1], MASK[:, :1])


def test_whitening_needs_no_groups() -> None:
    one = advantage_estimators["reinforce++"](laid_out(SCORES).view(6, 1, 6), MASK.view(6, 1, 6))
    torch.testing.assert_close(one.view(2, 3, 6), advantage_estimators["reinforce++"](laid_out(SCORES), MASK))


# ------------------------------------------------------------------------------ TRL


def trl_rewards(which: int, kl_coef: float = 0.0) -> tuple[Tensor, Tensor]:
    mask, old, reference = (torch.tensor(GOLDEN[name]) for name in ("mask", "old", "reference"))
    scores, groups = torch.tensor(GOLDEN["rewards"][which]), (-1, GOLDEN["generations"], mask.shape[1])
    rewards = leashed_rewards(scores, log_ratio(old, reference, mask), mask, kl_coef)
    return rewards.view(groups), mask.view(groups)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "rloo_with_kl"])
@pytest.mark.parametrize("which", [0, 1])
def test_trl_s_advantages(name: str, which: int) -> None:
    coef = GOLDEN["rloo_kl_coef"] if name == "rloo_with_kl" else 0.0
    rewards, mask = trl_rewards(which, coef)
    got = per_answer(advantage_estimators[name.removesuffix("_with_kl")](rewards, mask), mask)
    flat = [value for group in got for value in group]
    assert flat == pytest.approx(GOLDEN[name][which], rel=1e-5, abs=1e-6)
    if which == 0 and name != "rloo_with_kl":
        assert flat[3:] == [0.0, 0.0, 0.0]
