"""A reward of parts against sums done by hand; what is logged of it; what is no number is an error."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from invented import rollout

from bloomery.errors import DataError, UsageError
from bloomery.rewards.parts import Combined, Opinion, Part, combine, each
from bloomery.types import Reward, Rollout

ANSWERS = [rollout("one"), rollout("two", prompt="q"), rollout("", prompt="r")]


def says(*numbers: float | None) -> Opinion:
    return lambda rollouts: list(numbers)


def test_a_weighted_sum_by_hand() -> None:
    judge = combine([Part("a", says(1.0, 2.0, 4.0)), Part("b", says(10.0, -10.0, 0.0), weight=-0.5)])
    assert judge(ANSWERS) == [1 - 5, 2 + 5, 4]
    assert judge.metrics == {
        "rewards/a/mean": pytest.approx(7 / 3),
        "rewards/a/std": pytest.approx(math.sqrt((16 + 1 + 25) / 27)),
        "rewards/a/abstained": 0.0,
        "rewards/b/mean": 0.0,
        "rewards/b/std": pytest.approx(math.sqrt(200 / 3)),
        "rewards/b/abstained": 0.0,
    }


def test_any_callable_is_a_part_and_the_sum_is_a_reward() -> None:
    def brevity(rollouts: Sequence[Rollout]) -> list[float]:
        return [-float(len(r.text)) for r in rollouts]

    judge: Reward = combine(
        [Part("brevity", brevity), Part("two", each(lambda r: float(r.text == "two")), 7.0)]
    )
    assert judge(ANSWERS) == [-3.0, 4.0, 0.0]
    assert judge([]) == []


def test_one_part_of_weight_one_changes_no_bit() -> None:
    numbers = [0.1 + 0.2, -1e-300, 1e38]
    assert combine([Part("a", says(*numbers))])(ANSWERS) == numbers


def test_no_opinion_adds_nothing_and_is_counted() -> None:
    judge = combine([Part("a", says(1.0, None, 3.0)), Part("b", says(None, None, None))])
    assert judge(ANSWERS) == [1.0, 0.0, 3.0]
    assert judge.metrics["rewards/a/mean"] == 2.0
    assert judge.metrics["rewards/a/abstained"] == pytest.approx(1 / 3)
    assert (judge.metrics["rewards/b/mean"], judge.metrics["rewards/b/abstained"]) == (0.0, 1.0)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 4e38])
def test_what_is_no_number_is_an_error_that_names_part_prompt_and_answer(number: float) -> None:
    judge = combine([Part("fine", says(0, 0, 0)), Part("odd", says(0.0, number, 0.0))])
    with pytest.raises(
        DataError, match=r"'q': reward 'odd' is not a finite number\n  got: -?(nan|inf|4e\+38) for 'two'"
    ):
        judge(ANSWERS)


def test_a_sum_beyond_float32_is_an_error_though_its_parts_are_not() -> None:
    """3e38 fits, 100 of it do not: as a tensor the reward would be infinite."""
    assert combine([Part("a", says(0.0, 3e38, 0.0)), Part("b", says(0, -3e38, 0))])(ANSWERS) == [0.0] * 3
    for parts in (
        [Part("a", says(0.0, 3e38, 0.0), weight=100.0)],
        [Part("a", says(0.0, 3e38, 0.0)), Part("b", says(0.0, 3e38, None))],
    ):
        with pytest.raises(
            DataError, match=r"'q': the weighted sum .* finite number\n  got: [36]e\+\d+ for 'two'"
        ):
            combine(parts)(ANSWERS)


def test_huge_rewards_pass_unless_they_are_clipped_and_counted() -> None:
    huge = says(1e30, -1e30, 2.0)
    assert combine([Part("a", huge)])(ANSWERS) == [1e30, -1e30, 2.0]
    judge = combine([Part("a", huge, weight=2.0, clip=5.0)])
    assert judge(ANSWERS) == [10.0, -10.0, 4.0]
    assert judge.metrics["rewards/a/clipped"] == pytest.approx(2 / 3)
    assert judge.metrics["rewards/a/mean"] == pytest.approx(2 / 3)  # before clipping


def test_a_constant_reward_shows_in_its_spread() -> None:
    judge = combine([Part("a", says(0.7, 0.7, 0.7))])
    judge(ANSWERS)
    assert judge.metrics["rewards/a/std"] == pytest.approx(0.0, abs=1e-12)


def test_a_part_says_one_thing_of_each_answer() -> None:
    with pytest.raises(DataError, match="reward 'a' must say one thing of each answer"):
        combine([Part("a", says(1.0, 2.0))])(ANSWERS)


def test_parts_have_names_of_their_own() -> None:
    with pytest.raises(UsageError, match="two parts of the reward are called 'a'"):
        Combined([Part("a", says()), Part("b", says()), Part("a", says())])
    with pytest.raises(UsageError, match="at least one part"):
        Combined([])
    judge = combine([Part("length", says())])
    assert judge.part("length").weight == 1.0
    with pytest.raises(UsageError, match=r"called 'lenght' \(did you mean 'length'\?\)"):
        judge.part("lenght")


def test_what_a_part_measures_of_itself_is_logged() -> None:
    class Watched:
        metrics: dict[str, float]

        def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
            self.metrics = {"seen": float(len(rollouts))}
            return [0.0] * len(rollouts)

    judge = combine([Part("w", Watched())])
    judge(ANSWERS)
    assert judge.metrics["rewards/w/seen"] == 3.0
    judge(ANSWERS[:1])
    assert judge.metrics["rewards/w/seen"] == 1.0
