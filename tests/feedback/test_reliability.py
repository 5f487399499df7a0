"""Annotators with known habits are found, and careful ones are left alone; the parts of a report by hand."""

from __future__ import annotations

import numpy as np
import pytest
from judgements import crowd, ranking

from bloomery.feedback.reliability import Report, _logistic, report
from bloomery.feedback.rows import content_key
from bloomery.types import Ranking, Rating

CAREFUL = {f"careful-{n}": "careful" for n in range(6)}
HABITS = ("careless", "random", "left", "flipped", "long", "hurried", "generous", "flat")


def by_name(reports: list[Report]) -> dict[str, Report]:
    return {one.annotator: one for one in reports}


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    kinds = CAREFUL | {kind: kind for kind in HABITS}
    return by_name(report(crowd(0, kinds, num_prompts=400, overlap=4)))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("careless", "agrees with the other annotators on"),
        ("random", "agrees with the other annotators on"),
        ("left", "prefers the answer shown first"),
        ("flipped", "is the scale reversed?"),
        ("long", "prefers the longer answer"),
        ("hurried", "takes 2 s where others take 20 s"),
        ("generous", "points above the others"),
        ("flat", "rates everything alike"),
    ],
)
def test_a_habit_is_found_and_named(reports: dict[str, Report], name: str, reason: str) -> None:
    assert any(reason in flag for flag in reports[name].flags), reports[name].flags


def test_careful_annotators_are_left_alone(reports: dict[str, Report]) -> None:
    assert {name: reports[name].flags for name in CAREFUL} == dict.fromkeys(CAREFUL, ())


def test_a_crowd_of_the_careful_raises_no_alarm() -> None:
    for seed in range(1, 6):
        found = report(crowd(seed, CAREFUL, num_prompts=150, overlap=4))
        assert [one.flags for one in found] == [()] * 6


def test_a_habit_that_all_share_is_no_habit() -> None:
    """If everybody likes length, length may well be quality: nobody stands out."""
    found = report(crowd(3, {f"a{n}": "long" for n in range(6)}, num_prompts=150, overlap=4))
    assert all(one.length is not None for one in found)
    assert not any("longer" in flag for one in found for flag in one.flags)


def test_two_in_five_who_click_do_not_hide_each_other() -> None:
    kinds = {**{f"careful-{n}": "careful" for n in range(6)}, **{f"click-{n}": "random" for n in range(4)}}
    found = by_name(report(crowd(5, kinds, num_prompts=250, overlap=5)))
    flagged = {name for name, one in found.items() if any("agrees" in flag for flag in one.flags)}
    assert flagged == {name for name in kinds if name.startswith("click")}


def test_numbers_by_hand() -> None:
    def rated(a: int, b: int) -> list[Rating]:
        return [Rating(helpful=g, honest=g, harmless=g) for g in (a, b)]

    ada = ranking((1, 2), ratings=rated(7, 3), seconds=4, prompt="q1")
    more = ranking((1, 1), ratings=rated(5, 5), seconds=8, prompt="q2")
    bob = ranking((2, 1), annotator="bob", ratings=rated(4, 4), prompt="q1")
    found = by_name(report([ada, more, bob]))
    one = found["ada"]
    assert (one.num_rankings, one.kind, one.median_seconds, one.tie_rate) == (2, "human", 6, 0.5)
    assert one.leniency == pytest.approx((3 - 1) / 2)  # q1 only: 7 - 4 and 3 - 4
    assert one.spread == pytest.approx(np.std([7, 3, 5, 5]))
    assert one.agreement is not None
    assert (one.agreement.value, one.agreement.num) == (0.0, 1)
    assert (one.gold, one.position, one.length) == (None, None, None)
    assert found["bob"].median_seconds is None
    assert one.flags == ()  # too little to say anything


def test_the_position_is_where_an_answer_was_shown() -> None:
    """Shown in the order 1, 2, 0 and ranked so: the answers' places are 2, 0, 1, not 1, 2, 0."""
    said = [
        ranking((3, 1, 2), texts=["aaaa", "bb", "cccccc"], prompt=f"q{q}", shown_order=(1, 2, 0))
        for q in range(20)
    ]
    (one,) = report(said)
    assert one.position is not None
    assert one.position.chance > 0.95


def test_gold_is_counted_on_its_ordered_pairs() -> None:
    said = ranking((1, 2, 2))
    gold = {content_key(said.prompt, said.completions): (1, 2, 3)}
    (one,) = report([said], gold)
    assert one.gold is not None
    assert (one.gold.value, one.gold.num) == (pytest.approx(2.5 / 3), 3)


def test_gold_finds_a_clicker_whom_nobody_overlaps() -> None:
    truth = {}
    said: list[Ranking] = []
    rng = np.random.default_rng(0)
    for q in range(60):
        for name in ("good", "fine", "click"):
            ranks = (
                (1, 2, 3) if name != "click" else tuple(1 + rng.permutation(3).tolist()[i] for i in range(3))
            )
            said.append(ranking(ranks, annotator=name, prompt=f"{name}-{q}"))
            truth[content_key(said[-1].prompt, said[-1].completions)] = (1, 2, 3)
    found = by_name(report(said, truth))
    assert "gold items" in found["click"].flags[0]
    assert found["good"].flags == found["fine"].flags == ()


def test_the_regression_recovers_its_weights_and_is_honest_about_clusters() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4000, 2))
    y = (rng.random(4000) < 1 / (1 + np.exp(-(x @ [1.0, -0.5])))).astype(float)
    weights, errors = _logistic(x, y, np.arange(4000))
    assert weights == pytest.approx([1.0, -0.5], abs=0.12)
    # Each row four times over is no more evidence when the four are one cluster.
    again, clustered = _logistic(np.repeat(x, 4, axis=0), np.repeat(y, 4), np.repeat(np.arange(4000), 4))
    assert again == pytest.approx(weights, abs=1e-3)
    assert clustered == pytest.approx(errors, rel=0.01)
    never, large = _logistic(np.ones((200, 1)), np.ones(200), np.arange(200))
    assert 3 < never[0] < 20
    assert np.isfinite(large).all()
