"""Reliability weights against a fixed point worked out by hand and against annotators of known accuracy;
strengths of a slate against the odds they stand for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from judgements import crowd, ranking

from bloomery.feedback.weights import PRIOR, PRIOR_ACCURACY, ranks_of, reliabilities, strengths
from bloomery.types import Ranking


def says(right: dict[str, float], num: int, seed: int = 0) -> list[Ranking]:
    """Pairs whose first answer is the better one, each ordered rightly with the annotator's probability."""
    draw = np.random.default_rng(seed)
    return [
        ranking((1, 2) if draw.random() < p else (2, 1), annotator=who, prompt=f"q{n}")
        for n in range(num)
        for who, p in right.items()
    ]


def test_accuracies_are_recovered_without_the_truth() -> None:
    right = {"ada": 0.95, "bob": 0.8, "cat": 0.65, "dan": 0.5}
    found = reliabilities(says(right, 1500))
    for who, p in right.items():
        assert found[who].accuracy == pytest.approx(p, abs=0.05), who
        assert found[who].num_pairs == 1500
    weights = [found[who].weight for who in right]
    assert weights == sorted(weights, reverse=True)
    assert weights[3] < 0.15
    # Log-odds, scaled to a mean of 1 (all gave as many rankings).
    odds = [math.log(f.accuracy / (1 - f.accuracy)) for f in found.values() if f.accuracy]
    mean = sum(max(0.0, o) for o in odds) / 4
    assert [f.weight for f in found.values()] == pytest.approx([max(0.0, o) / mean for o in odds])


def test_a_reversed_scale_counts_nothing() -> None:
    found = reliabilities(says({"ada": 0.9, "bob": 0.9, "cat": 0.9, "mad": 0.1}, 400))
    assert found["mad"].weight == 0.0
    assert found["mad"].accuracy == pytest.approx(0.1, abs=0.05)
    assert sum(found[who].weight for who in ("ada", "bob", "cat")) == pytest.approx(4.0)


def test_two_who_agree_by_hand() -> None:
    """The fixed point of n pairs on which two annotators agree: by symmetry both have the same p, the first
    answer is the better one with odds (p / (1 - p))^2, and p = (n P + 0.7 * 10) / (n + 10)."""
    found = reliabilities(says({"ada": 1.0, "bob": 1.0}, 30))
    p = found["ada"].accuracy
    assert p is not None
    odds = (p / (1 - p)) ** 2
    assert p == pytest.approx((30 * odds / (1 + odds) + PRIOR_ACCURACY * PRIOR) / (30 + PRIOR), abs=1e-6)
    assert found["bob"].accuracy == p
    assert found["ada"].weight == pytest.approx(1.0)


def test_who_cannot_be_compared_weighs_the_mean() -> None:
    said = says({"ada": 0.95, "bob": 0.95, "cat": 0.55}, 200)
    alone = [ranking((1, 2), annotator="eve", prompt=f"alone{n}") for n in range(50)]
    tied = [ranking((1, 1), annotator="tim", prompt=f"q{n}") for n in range(50)]
    nobody = [ranking((2, 1), annotator="unknown", prompt=f"q{n}") for n in range(200)]
    plain, found = reliabilities(said), reliabilities(said + alone + tied + nobody)
    for who in ("eve", "tim", "unknown"):
        assert (found[who].accuracy, found[who].weight, found[who].num_pairs) == (None, 1.0, 0)
    # What cannot be compared changes nothing for those who can.
    assert {who: found[who] for who in plain} == plain
    assert sum(found[r.annotator.id].weight for r in said) / len(said) == pytest.approx(1.0)


def test_nothing_to_compare_leaves_everybody_equal() -> None:
    assert reliabilities([]) == {}
    skipped = ranking(None, annotator="bob", status="skipped")
    found = reliabilities([ranking((1, 2)), skipped])
    assert list(found) == ["ada"]
    assert found["ada"].weight == 1.0


def test_clickers_weigh_little_in_a_crowd_of_rankings() -> None:
    kinds = {**{f"careful-{n}": "careful" for n in range(6)}, "random": "random", "flipped": "flipped"}
    found = reliabilities(crowd(0, kinds, num_prompts=200, overlap=3))
    assert found["flipped"].weight == 0.0
    assert found["random"].weight < 0.3
    assert all(found[f"careful-{n}"].weight > 1 for n in range(6))


# ------------------------------------------------------------------------------ one slate


def test_strengths_of_two_by_hand() -> None:
    """One win and a drawn game of each against the average: with s = (d/2, -d/2), the likelihood is at its
    top where 1 - sigmoid(d) = sigmoid(d / 2) - 1 / 2."""
    best, worst = strengths([[1, 2]])
    gap = best - worst
    assert best == pytest.approx(-worst)
    assert 1 - 1 / (1 + math.exp(-gap)) == pytest.approx(1 / (1 + math.exp(-gap / 2)) - 0.5)
    assert math.exp(gap) == pytest.approx(4.54, abs=0.01)


def test_more_annotators_are_surer_and_ties_pull_together() -> None:
    def gap(*rows: list[int]) -> float:
        found = strengths(rows)
        return found[0] - found[1]

    assert gap([1, 2], [1, 2], [1, 2]) > gap([1, 2], [1, 2]) > gap([1, 2]) > gap([1, 2], [1, 1]) > 0
    assert gap([1, 2], [2, 1]) == pytest.approx(0.0)
    assert gap([3, 3]) == pytest.approx(0.0)
    assert gap([1, 2], [0, 0]) == pytest.approx(gap([1, 2]))


def test_an_answer_is_placed_through_others() -> None:
    """Nobody compared the first with the third, but the second lies between them."""
    found = strengths([[1, 2, 0], [0, 1, 2], [1, 2, 0], [0, 1, 2]])
    assert ranks_of(found) == (1, 2, 3)
    assert found[1] == pytest.approx(0.0, abs=1e-6)
    assert ranks_of(strengths([[1, 2, 0]])) == (1, 3, 2)  # unseen: average


def test_ranks_of_strengths_tie_where_equal() -> None:
    assert ranks_of([0.5, -1.0, 0.5 + 1e-12, 2.0]) == (2, 4, 2, 1)
