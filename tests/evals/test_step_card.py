"""The report card of steps by hand, its interval, and what it says of judges that know all or nothing."""

from __future__ import annotations

import pytest

from bloomery.evals.bootstrap import interval
from bloomery.evals.process import agreement, first_wrong, step_card

LABELS = [[True, True, False], [True, True], [False], [True, False, False], [True, False]]
SAID = [[True, True, False], [True, False], [True], [True, False, True], [False, False]]


def test_the_card_by_hand() -> None:
    card = step_card(SAID, LABELS, usual=True)
    assert (card["num_answers"], card["num_steps"]) == (5, 11)
    assert card["step_accuracy"]["mean"] == pytest.approx(7 / 11)
    assert card["right_steps"]["mean"] == card["baseline"]["mean"] == pytest.approx(6 / 11)
    assert card["lead"]["mean"] == pytest.approx(1 / 11)
    # Found at its place in the first and the fourth answer, not at all in the third, too soon in the last.
    assert (card["first_wrong"]["mean"], card["first_wrong"]["n"]) == (0.5, 4)
    assert (card["none_wrong"]["mean"], card["none_wrong"]["n"]) == (0.0, 1)
    assert step_card(SAID, LABELS, usual=False)["baseline"]["mean"] == pytest.approx(5 / 11)


def test_intervals_draw_whole_answers() -> None:
    found = step_card(SAID, LABELS, usual=True)["step_accuracy"]
    assert (found["low"], found["high"]) == interval([(3, 3), (1, 2), (0, 1), (2, 3), (1, 2)])


def test_a_perfect_judge_and_one_that_knows_nothing() -> None:
    perfect = step_card(LABELS, LABELS, usual=True)
    assert [perfect[k]["mean"] for k in ("step_accuracy", "first_wrong", "none_wrong")] == [1.0, 1.0, 1.0]
    blind = step_card([[True] * len(one) for one in LABELS], LABELS, usual=True)
    assert [blind["lead"][k] for k in ("mean", "low", "high")] == [0.0, 0.0, 0.0]
    assert (blind["first_wrong"]["mean"], blind["none_wrong"]["mean"]) == (0.0, 1.0)


def test_no_answer_is_no_number() -> None:
    card = step_card([], [], usual=True)
    nothing = {"mean": None, "low": None, "high": None, "n": 0}
    assert card["step_accuracy"] == card["lead"] == card["first_wrong"] == nothing
    assert (card["num_answers"], card["num_steps"]) == (0, 0)


def test_the_first_wrong_step_and_agreement() -> None:
    assert [first_wrong(one) for one in LABELS] == [2, None, 0, 1, 1]
    assert agreement([[True, False]], [[True, True]]) == [[True, False]]
    with pytest.raises(ValueError, match="zip"):
        agreement([[True]], [[True, True]])
