"""The report card of steps by hand, its interval, and what it says of judges that know all or nothing."""

from __future__ import annotations

import pytest

from bloomery.evals.bootstrap import interval
from bloomery.evals.process import agreement, first_wrong, step_card, usual

LABELS = [[True, True, False], [True, True], [False], [True, False, False], [True, False]]
RIGHT = [[True]]
SAID = [[True, True, False], [True, False], [True], [True, False, True], [False, False]]


def test_the_card_by_hand() -> None:
    card = step_card(SAID, LABELS, taught=RIGHT)
    assert (card["num_answers"], card["num_steps"]) == (5, 11)
    assert card["step_accuracy"]["mean"] == pytest.approx(7 / 11)
    assert card["right_steps"]["mean"] == card["baseline"]["mean"] == pytest.approx(6 / 11)
    assert card["lead"]["mean"] == pytest.approx(1 / 11)
    # Found at its place in the first and the fourth answer, not at all in the third, too soon in the last.
    assert (card["first_wrong"]["mean"], card["first_wrong"]["n"]) == (0.5, 4)
    assert (card["none_wrong"]["mean"], card["none_wrong"]["n"]) == (0.0, 1)
    assert step_card(SAID, LABELS, taught=[[False]])["baseline"]["mean"] == pytest.approx(5 / 11)
    # Right, right, wrong by place: all of the first answer, and what it says of the others is 2, 0, 2 and 1.
    assert step_card(SAID, LABELS, taught=LABELS)["baseline"]["mean"] == pytest.approx(8 / 11)


def test_what_is_usual_at_a_place_by_hand() -> None:
    taught = [[True, False], [True, False, False], [False, True]]
    assert usual(taught, 3) == [True, False, False]
    assert usual(taught, 5) == [True, False, False, False, False]  # three of seven are right
    assert usual([[True, True, False]], 4)[3] is True
    assert usual([], 2) == [True, True]


def test_intervals_draw_whole_answers() -> None:
    found = step_card(SAID, LABELS, taught=RIGHT)["step_accuracy"]
    assert (found["low"], found["high"]) == interval([(3, 3), (1, 2), (0, 1), (2, 3), (1, 2)])


def test_a_perfect_judge_and_one_that_knows_nothing() -> None:
    perfect = step_card(LABELS, LABELS, taught=RIGHT)
    assert [perfect[k]["mean"] for k in ("step_accuracy", "first_wrong", "none_wrong")] == [1.0, 1.0, 1.0]
    blind = step_card([[True] * len(one) for one in LABELS], LABELS, taught=RIGHT)
    assert [blind["lead"][k] for k in ("mean", "low", "high")] == [0.0, 0.0, 0.0]
    assert (blind["first_wrong"]["mean"], blind["none_wrong"]["mean"]) == (0.0, 1.0)


def test_no_answer_is_no_number() -> None:
    card = step_card([], [], taught=RIGHT)
    nothing = {"mean": None, "low": None, "high": None, "n": 0}
    assert card["step_accuracy"] == card["lead"] == card["first_wrong"] == nothing
    assert (card["num_answers"], card["num_steps"]) == (0, 0)


def test_the_first_wrong_step_and_agreement() -> None:
    assert [first_wrong(one) for one in LABELS] == [2, None, 0, 1, 1]
    assert agreement([[True, False]], [[True, True]]) == [[True, False]]
    with pytest.raises(ValueError, match="zip"):
        agreement([[True]], [[True, True]])
