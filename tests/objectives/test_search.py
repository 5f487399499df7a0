"""Best-of-n by hand, against every subset written out, and by what must always hold; ways to keep answers."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bloomery.errors import UsageError
from bloomery.objectives.search import best_of_n_kl, chances, expected_best, keepers

SCORES = st.lists(st.integers(-3, 3), min_size=1, max_size=7)


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def over_all_subsets(scores: list[int], values: list[float], n: int) -> float:
    """The mean, over every subset of n, of the mean value of those of it that score best."""
    found = []
    for subset in combinations(range(len(scores)), n):
        winners = [i for i in subset if scores[i] == max(scores[j] for j in subset)]
        found.append(sum(values[i] for i in winners) / len(winners))
    return sum(found) / len(found)


def test_the_divergence_by_hand() -> None:
    assert best_of_n_kl(1) == 0.0
    assert best_of_n_kl(2) == pytest.approx(math.log(2) - 0.5)
    assert best_of_n_kl(64) == pytest.approx(3.174508, abs=1e-6)
    with pytest.raises(UsageError, match="best of no answer"):
        best_of_n_kl(0)


@pytest.mark.parametrize("n", [2, 5])
def test_the_divergence_is_that_of_the_best_of_n_of_many_equally_likely_answers(n: int) -> None:
    """Of M ranked answers the i-th is the best of n draws with chance `(i/M)^n - ((i-1)/M)^n`. The finer they
    are, the closer is the KL to the formula, from below."""
    true = []
    for m in (20, 2000):
        at = torch.arange(m + 1, dtype=torch.float64) / m
        p = (at**n).diff()
        true.append(float((p * (p * m).log()).sum()))
    assert true[0] < true[1] < best_of_n_kl(n)
    assert true[1] == pytest.approx(best_of_n_kl(n), abs=0.01)


def test_chances_by_hand() -> None:
    """Of 3 pairs the highest wins two, the middle one, the lowest none."""
    assert chances(row(5, -1, 2), 2).tolist() == [pytest.approx([2 / 3, 0, 1 / 3])]
    assert chances(row(5, -1, 2), 1).tolist() == [pytest.approx([1 / 3] * 3)]
    assert chances(row(5, -1, 2), 3).tolist() == [pytest.approx([1, 0, 0])]
    # 4 4 1: both 4s are in one pair and share it; each also beats the 1.
    assert chances(row(4, 1, 4), 2).tolist() == [pytest.approx([0.5, 0, 0.5])]
    assert expected_best(row(4, 1, 4), row(10, 100, 30), 2).tolist() == pytest.approx([20])


def test_chosen_by_one_and_reported_by_the_other() -> None:
    """A proxy that is gamed: what it likes best is the worst in truth."""
    proxy, gold = row(0, 1, 2, 3), row(1, 2, 3, -10)
    seen = [float(expected_best(proxy, gold, n)) for n in (1, 2, 3, 4)]
    assert seen == pytest.approx([-1, (2 + 2 * 3 - 3 * 10) / 6, (3 - 3 * 10) / 4, -10])
    assert float(expected_best(gold, gold, 4)) == 3.0


@given(SCORES, st.data())
@settings(max_examples=40, deadline=None)
def test_the_estimate_is_the_mean_over_all_subsets(scores: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(scores)))
    values = data.draw(st.lists(st.integers(-9, 9), min_size=len(scores), max_size=len(scores)))
    found = float(expected_best(row(*scores), row(*values), n))
    assert found == pytest.approx(over_all_subsets(scores, [float(v) for v in values], n))


@given(SCORES, st.data())
@settings(max_examples=20, deadline=None)
def test_what_always_holds(scores: list[int], data: st.DataObject) -> None:
    x, num = row(*scores), len(scores)
    order = data.draw(st.permutations(range(num)))
    worth = [float(expected_best(x, x, n)) for n in range(1, num + 1)]
    assert worth[0] == pytest.approx(sum(scores) / num)
    assert worth[-1] == max(scores)
    assert all(a <= b + 1e-12 for a, b in pairwise(worth))
    for n in range(1, num + 1):
        weights = chances(x, n)
        assert float(weights.sum()) == pytest.approx(1)
        assert float(weights.min()) >= 0
        torch.testing.assert_close(chances(x[:, order], n), weights[:, order])
        torch.testing.assert_close(chances(7 * x - 2, n), weights)


def test_prompts_are_apart_and_many_answers_stay_exact() -> None:
    two = torch.stack([torch.arange(300.0), torch.arange(300.0).flip(0)])
    found = chances(two, 150)
    assert found[0].tolist() == found[1].flip(0).tolist()
    torch.testing.assert_close(found[:1], chances(two[:1], 150))
    assert found.sum(1).tolist() == pytest.approx([1.0, 1.0], abs=1e-12)


def test_all_ties_are_worth_their_mean() -> None:
    for n in (1, 2, 4):
        assert float(expected_best(row(2, 2, 2, 2), row(1, 2, 3, 6), n)) == pytest.approx(3.0)


@pytest.mark.parametrize(("n", "scores"), [(0, (1.0, 2.0)), (3, (1.0, 2.0)), (1, (1.0, math.nan))])
def test_what_has_no_answer_is_refused(n: int, scores: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match=r"best of more|no numbers"):
        chances(row(*scores), n)


# --------------------------------------------------------------------------- what is kept to learn from

NEVER = -math.inf
TABLE = torch.tensor([[1.0, 3.0, 3.0, NEVER], [0.0, 2.0, -1.0, 4.0], [NEVER] * 4])


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("best", {}, [(0, 1), (1, 3)]),
        ("best", {"count": 2}, [(0, 1), (0, 2), (1, 1), (1, 3)]),
        ("best", {"count": 9}, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3)]),
        ("above", {"threshold": 2.0}, [(0, 1), (0, 2), (1, 3)]),
        ("above", {"threshold": 4.0}, []),
        ("top", {"share": 1 / 7}, [(1, 3)]),
        ("top", {"share": 2 / 7}, [(0, 1), (0, 2), (1, 3)]),  # a tie at the edge
        ("top", {"share": 1e-9}, [(1, 3)]),
        ("top", {"share": 1.0}, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3)]),
    ],
)
def test_what_is_kept_by_hand(name: str, given: dict[str, float], kept: list[tuple[int, int]]) -> None:
    found = keepers.bind(name, given)(TABLE)
    assert [tuple(at) for at in found.nonzero().tolist()] == kept


@pytest.mark.parametrize("name", list(keepers))
def test_what_may_not_be_kept_never_is(name: str) -> None:
    given = {"best": {}, "above": {"threshold": -1e30}, "top": {"share": 1.0}}[name]
    assert not keepers.bind(name, given)(torch.full((2, 3), NEVER)).any()


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("bset", {}, "did you mean 'best'"),
        ("best", {"count": 0}, "count"),
        ("above", {}, "threshold"),
        ("top", {"share": 0.0}, "share"),
        ("top", {"share": 1.5}, "share"),
    ],
)
def test_settings_out_of_range_are_named(name: str, given: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        keepers.bind(name, given)
