"""Pools of an ensemble by hand, what they have in common, and the disagreement that is logged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from invented import rollout

from bloomery.errors import UsageError
from bloomery.rewards.ensemble import Ensemble, pools
from bloomery.rewards.parts import Part, combine
from bloomery.types import Rollout

SCORES = np.array([[1.0, 5.0], [3.0, 5.0], [8.0, 5.0]])
ANSWERS = [rollout("a"), rollout("b")]


def member(scores: Sequence[float]) -> Callable[[Sequence[Rollout]], list[float]]:
    return lambda rollouts: list(scores[: len(rollouts)])


MEMBERS = [member(row) for row in SCORES.tolist()]


@pytest.mark.parametrize(
    ("name", "settings", "want"),
    [
        ("mean", {}, [4.0, 5.0]),
        ("minimum", {}, [1.0, 5.0]),
        ("uncertainty", {"penalty": 0.25}, [4.0 - 0.25 * (9 + 1 + 16) / 3, 5.0]),
        ("uncertainty", {"penalty": 0.0}, [4.0, 5.0]),
        ("uncertainty", {}, [4.0 - 0.5 * 26 / 3, 5.0]),
    ],
)
def test_pools_by_hand(name: str, settings: dict[str, float], want: list[float]) -> None:
    assert Ensemble(MEMBERS, pools.bind(name, settings))(ANSWERS) == pytest.approx(want)


@pytest.mark.parametrize("name", sorted(pools))
def test_what_all_pools_have_in_common(name: str) -> None:
    rng = np.random.default_rng(0)
    scores, pool = rng.normal(size=(4, 6)), pools[name]
    # Members that agree are pooled to what they agree on; their order is no matter; a shift is a shift.
    np.testing.assert_allclose(pool(np.repeat(scores[:1], 4, axis=0)), scores[0])
    np.testing.assert_allclose(pool(scores[[2, 0, 3, 1]]), pool(scores))
    np.testing.assert_allclose(pool(scores + 2.0), pool(scores) + 2.0)
    assert (pool(scores) <= scores.mean(axis=0) + 1e-12).all()


def test_disagreement_is_logged() -> None:
    ensemble = Ensemble(MEMBERS)
    judge = combine([Part("crowd", ensemble)])
    assert judge(ANSWERS) == [4.0, 5.0]
    assert judge.metrics["rewards/crowd/disagreement"] == pytest.approx(np.sqrt(26 / 3) / 2)
    assert ensemble([]) == []


def test_one_member_is_no_ensemble_and_a_penalty_is_for_uncertainty_alone() -> None:
    with pytest.raises(UsageError, match="at least two members"):
        Ensemble(MEMBERS[:1])
    with pytest.raises(UsageError, match="penalty"):
        pools.bind("minimum", {"penalty": 1.0})
    with pytest.raises(UsageError, match="greater than or equal to 0"):
        pools.bind("uncertainty", {"penalty": -1.0})
