"""Bootstrap intervals against resampling written out by index, the normal theory, and their own coverage."""

from __future__ import annotations

import numpy as np
import pytest

from bloomery.errors import UsageError
from bloomery.evals.bootstrap import Estimate, estimate, interval, paired


def test_mean_and_count_are_those_of_the_values() -> None:
    got = estimate([0.0, 1.0, 1.0, 2.0], seed=1)
    assert got.mean == 1.0
    assert got.n == 4
    assert 0.0 <= got.low < 1.0 < got.high <= 2.0  # type: ignore[operator]


def test_same_as_resampling_indices() -> None:
    """The multinomial shortcut has the distribution of the textbook loop (compared at its quantiles)."""
    values = np.array([0.0, 0.0, 1.0, 1.0, 1.0, -2.0, 0.5, 0.5] * 10)
    rng = np.random.default_rng(0)
    by_index = values[rng.integers(0, len(values), (20000, len(values)))].mean(axis=1)
    got = estimate(values.tolist(), draws=20000)
    assert (got.low, got.high) == pytest.approx(tuple(np.quantile(by_index, [0.025, 0.975])), abs=0.015)


def test_width_is_that_of_normal_theory() -> None:
    values = [0.0] * 300 + [1.0] * 100
    half = 1.96 * (0.25 * 0.75 / 400) ** 0.5
    got = estimate(values, draws=5000)
    assert (got.low, got.high) == pytest.approx((0.25 - half, 0.25 + half), abs=0.006)


def test_covers_the_truth_as_often_as_it_says() -> None:
    """Of 300 samples of 80 answers with true rate 0.3, about 95 % of the intervals hold 0.3."""
    rng = np.random.default_rng(7)
    hits = 0
    for i in range(300):
        got = estimate((rng.random(80) < 0.3).astype(float).tolist(), seed=i, draws=400)
        hits += got.low <= 0.3 <= got.high  # type: ignore[operator]
    assert 0.90 <= hits / 300 <= 0.985


def test_seeded() -> None:
    values = np.random.default_rng(0).normal(size=50).tolist()
    assert estimate(values, seed=3) == estimate(values, seed=3)
    assert estimate(values, seed=3) != estimate(values, seed=4)


def test_pairing_removes_the_difficulty_of_the_questions() -> None:
    hard = np.random.default_rng(1).normal(0, 10, 200)
    got = paired((hard + 0.5).tolist(), hard.tolist())
    assert got.mean == pytest.approx(0.5)
    assert (got.low, got.high) == pytest.approx((0.5, 0.5))


def test_sign_of_a_difference() -> None:
    assert paired([1.0, 1.0], [0.0, 0.0]).mean == 1.0


def test_no_values_is_no_number() -> None:
    assert estimate([]) == Estimate(None, None, None, 0)


def test_refuses_what_it_cannot_average() -> None:
    with pytest.raises(UsageError, match="not finite"):
        estimate([1.0, float("nan")])
    with pytest.raises(UsageError, match="same questions"):
        paired([1.0], [1.0, 2.0])


def test_groups_that_stand_or_fall_together_widen_the_interval() -> None:
    """40 groups of 10 equal cases carry the information of 40 cases, not of 400."""
    groups = [(10.0, 10)] * 20 + [(0.0, 10)] * 20
    low, high = interval(groups)
    half = 1.96 * (0.25 / 40) ** 0.5
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.02)


def test_groups_of_one_are_plain_cases() -> None:
    values = [1.0] * 30 + [0.0] * 70
    plain = estimate(values, seed=5)
    assert interval([(v, 1) for v in values], seed=5) == pytest.approx((plain.low, plain.high))


def test_no_groups() -> None:
    with pytest.raises(UsageError, match="no cases"):
        interval([])
