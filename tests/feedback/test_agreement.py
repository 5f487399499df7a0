"""Agreement by hand on small crowds, Krippendorff's alpha against his published worked example and another,
and the bootstrap against the textbook interval."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judgements import crowd, ranking

from bloomery.errors import UsageError
from bloomery.feedback.agreement import agree, agreement, krippendorff_alpha
from bloomery.feedback.verdicts import bootstrap
from bloomery.types import Rating

NO = float("nan")
# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C: four observers, twelve units.
OBSERVERS = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NO, NO, NO],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NO, 3],
        [NO, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NO],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NO],
    ]
)
# The example of the encyclopedia article "Krippendorff's alpha": three coders, fifteen units.
CODERS = np.array(
    [
        [NO, NO, NO, NO, NO, 3, 4, 1, 2, 1, 1, 3, 3, NO, 3],
        [1, NO, 2, 1, 3, 3, 4, 3, NO, NO, NO, NO, NO, NO, NO],
        [NO, NO, 2, 1, 3, 4, 4, NO, 2, 1, 1, 3, 3, NO, 4],
    ]
)


@pytest.mark.parametrize(("metric", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_the_published_example(metric: str, alpha: float) -> None:
    assert krippendorff_alpha(OBSERVERS, metric) == pytest.approx(alpha, abs=0.0006)


@pytest.mark.parametrize(("metric", "alpha"), [("nominal", 0.691), ("interval", 0.811)])
def test_alpha_of_another_example(metric: str, alpha: float) -> None:
    assert krippendorff_alpha(CODERS, metric) == pytest.approx(alpha, abs=0.0006)


def test_alpha_from_its_definition() -> None:
    """Observed over expected disagreement by brute force over pairs of values, without a matrix."""
    units = [column[~np.isnan(column)] for column in OBSERVERS.T]
    units = [unit for unit in units if len(unit) > 1]
    everything = np.concatenate(units)
    total = len(everything)
    observed = sum(
        sum((a - b) ** 2 for a, b in itertools.permutations(unit, 2)) / (len(unit) - 1) for unit in units
    )
    expected = sum((a - b) ** 2 for a, b in itertools.permutations(everything, 2))
    assert krippendorff_alpha(OBSERVERS, "interval") == pytest.approx(
        1 - (observed / total) / (expected / (total * (total - 1)))
    )


def test_alpha_at_its_ends() -> None:
    assert krippendorff_alpha(np.array([[1.0, 2, 3], [1, 2, 3]])) == pytest.approx(1)
    assert krippendorff_alpha(np.array([[1.0, 1], [1, 1]])) is None
    assert krippendorff_alpha(np.array([[1.0, NO], [NO, 2]])) is None
    assert krippendorff_alpha(np.array([[1.0, 2], [2, 1]])) < 0
    rng = np.random.default_rng(0)
    assert abs(krippendorff_alpha(rng.integers(1, 8, size=(3, 4000)).astype(float))) < 0.03
    with pytest.raises(UsageError, match="metric"):
        krippendorff_alpha(OBSERVERS, "ratio")  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 7), min_size=5, max_size=5), min_size=2, max_size=4),
    st.permutations(range(5)),
)
def test_alpha_knows_no_order_of_annotators_or_units(told: list[list[int]], order: list[int]) -> None:
    values = np.array(told, dtype=float)
    alpha = krippendorff_alpha(values)
    turned = krippendorff_alpha(values[::-1][:, order])
    assert alpha == turned or alpha == pytest.approx(turned)
    stretched = krippendorff_alpha(np.exp(values))
    assert alpha == stretched or alpha == pytest.approx(stretched)  # ordinal: only the order counts


def test_verdicts_by_hand() -> None:
    assert agree(np.array([1.0, 1, 1, 0]), np.array([1.0, -1, 0, 1])) == (1.5, 3)
    assert agree(np.array([1.0]), np.array([3.0])) == (1, 1)


def test_two_annotators_with_a_tie() -> None:
    # ada: a>b, a>c, b>c. bob: a=b, a>c, b>c. From ada's three: 1/2 + 1 + 1; from bob's two: 1 + 1.
    found = agreement([ranking((1, 2, 3)), ranking((1, 1, 2), annotator="bob")])
    assert found.between is not None
    assert (found.between.value, found.between.num) == (4.5 / 5, 5)
    assert found.pairs == {"ada | bob": found.between}
    assert found.majority is None


def test_a_pair_that_both_call_a_tie_does_not_count() -> None:
    found = agreement([ranking((1, 1, 2)), ranking((1, 1, 2), annotator="bob")])
    assert found.between is not None
    assert (found.between.value, found.between.num) == (1.0, 4)


def test_three_annotators_and_their_majority() -> None:
    said = [ranking((1, 2)), ranking((1, 2), annotator="bob"), ranking((2, 1), annotator="cyd")]
    found = agreement(said)
    # Ordered pairs of annotators: ada-bob and bob-ada agree, the other four do not.
    assert found.between is not None
    assert (found.between.value, found.between.num) == (pytest.approx(2 / 6), 6)
    # The others of ada (bob, cyd) are split: 1/2. The same for bob. Those of cyd are both against: 0.
    assert found.majority is not None
    assert (found.majority.value, found.majority.num) == (pytest.approx(1 / 3), 3)


def test_who_is_alone_and_who_comes_twice() -> None:
    alone = agreement([ranking((1, 2)), ranking((1, 2), prompt="other", annotator="bob")])
    assert (alone.between, alone.num_prompts, alone.num_overlapping) == (None, 2, 0)
    assert alone.alpha == {"preference": None, "helpful": None, "honest": None, "harmless": None}
    again = ranking((2, 1)).model_copy(update={"id": "again"})
    twice = agreement([ranking((1, 2)), again])
    assert (twice.between, twice.num_repeated) == (None, 1)
    assert agreement([]).num_prompts == 0


def test_alphas_of_a_report() -> None:
    rated = [Rating(helpful=7, honest=4, harmless=1), Rating(helpful=1, honest=4, harmless=7)]
    swapped = [Rating(helpful=7, honest=4, harmless=7), Rating(helpful=1, honest=4, harmless=1)]
    found = agreement([ranking((1, 2), ratings=rated), ranking((1, 2), annotator="bob", ratings=swapped)])
    assert found.alpha["helpful"] == 1
    assert found.alpha["honest"] is None
    assert found.alpha["harmless"] == krippendorff_alpha(np.array([[1.0, 7], [7, 1]]))
    assert found.alpha["preference"] == 1
    assert found.to_json()["between"]["value"] == 1.0


def test_a_crowd_agrees_more_with_its_majority_than_with_its_members() -> None:
    found = agreement(crowd(0, {f"a{n}": "careful" for n in range(6)}, num_prompts=60, overlap=5))
    assert found.between is not None
    assert found.majority is not None
    assert 0.65 < found.between.value < found.majority.value < 0.95
    assert found.between.low < found.between.value < found.between.high


def test_clickers_agree_at_chance() -> None:
    found = agreement(crowd(1, {f"a{n}": "random" for n in range(4)}, num_prompts=150, overlap=3))
    assert found.between is not None
    assert found.between.low < 0.5 < found.between.high
    assert abs(found.alpha["preference"] or 1) < 0.06


def test_the_bootstrap_is_as_wide_as_theory_says() -> None:
    wins = np.repeat([1.0, 0.0], [280, 120])
    interval = bootstrap(wins, np.ones(400), num=2000)
    assert interval is not None
    half = 1.96 * math.sqrt(0.7 * 0.3 / 400)
    assert (interval.value, interval.num) == (0.7, 400)
    assert interval.low == pytest.approx(0.7 - half, abs=0.005)
    assert interval.high == pytest.approx(0.7 + half, abs=0.005)
    # Ten comparisons that always agree with each other are worth one.
    clustered = bootstrap(wins * 10, np.full(400, 10.0), num=2000)
    assert clustered is not None
    assert clustered.high - clustered.low == pytest.approx(2 * half, abs=0.01)
    assert bootstrap(np.zeros(3), np.zeros(3)) is None
