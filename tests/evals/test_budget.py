"""How far to optimise: the curve of choosing by hand, and the rule at its edges."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from bloomery.evals.budget import STRETCH, best_of, choosing, normal_places, verdict
from bloomery.evals.comparisons import Scored
from bloomery.evals.reward import report_card
from bloomery.objectives.search import best_of_n_kl


def test_places_of_a_normal_distribution() -> None:
    """The largest of 2 and of 3 normal draws are 1 / sqrt(pi) and 3 / (2 sqrt(pi)) on average."""
    assert normal_places(2) == pytest.approx([-1 / math.sqrt(math.pi), 1 / math.sqrt(math.pi)])
    assert normal_places(3) == pytest.approx(
        [-1.5 / math.sqrt(math.pi), 0, 1.5 / math.sqrt(math.pi)], abs=1e-9
    )
    drawn = np.sort(np.random.default_rng(0).normal(size=(200_000, 5)), axis=1).mean(axis=0)
    assert normal_places(5) == pytest.approx(drawn, abs=0.01)


def ranked(id: str, ranks: tuple[tuple[int, ...], ...], scores: tuple[float, ...]) -> Scored:
    return Scored(
        id, tuple(f"{k}" * (k + 1) for k in range(len(scores))), ranks, scores, sources=("m",) * len(scores)
    )


def test_choosing_by_hand() -> None:
    # Worth of four answers ranked 1, 2, 2, 4; scores put the third first, then the first, second, fourth.
    slate = ranked("p", ((1, 2, 2, 4),), (3.0, 2.0, 4.0, 1.0))
    found = choosing([slate])
    assert found is not None
    low, mid, high = normal_places(4)[0], normal_places(4)[1:3].mean(), normal_places(4)[3]
    # Best of 1: every answer equally often. Best of 4: the third. Best of 3: of the four subsets, three hold
    # it and one does not, where the first is best.
    assert [row["n"] for row in found["curve"]] == [1, 2, 3, 4]
    assert [row["gain"] for row in found["curve"]] == pytest.approx(
        [0.0, (3 * mid + 2 * high + mid) / 6, (3 * mid + high) / 4, mid], abs=1e-9
    )
    assert (low, mid) == pytest.approx((-high, 0.0))
    above = {1: 0.5, 4: 0.5, 3: (3 * 0.5 + 1) / 4, 2: (3 * 0.5 + 2 * 1 + 0.5) / 6}
    assert {row["n"]: pytest.approx(row["above"]["value"]) for row in found["curve"]} == above
    assert [row["kl"] for row in found["curve"]] == [best_of_n_kl(n) for n in (1, 2, 3, 4)]


def test_choosing_counts_what_all_annotators_ranked() -> None:
    whole = ranked("p", ((1, 2, 3), (2, 1, 3)), (3.0, 2.0, 1.0))
    # The second did not see the last answer: two answers are left, and the slates of three are fewer.
    part = ranked("q", ((1, 2, 3), (1, 2, 0)), (3.0, 2.0, 1.0))
    two = choosing([whole, part, replace(part, id="r")])
    assert two is not None
    assert (len(two["curve"]), two["num_prompts"]) == (2, 3)
    assert "peak" not in two
    assert choosing([ranked("p", ((1, 0), (0, 1)), (1.0, 2.0))]) is None
    # Opposite opinions cancel: nothing is gained whoever is chosen.
    torn = choosing([ranked("p", ((1, 2), (2, 1)), (1.0, 0.0))])
    assert torn is not None
    assert torn["curve"][1]["gain"] == pytest.approx(0.0)


def judged(skill: float, num: int = 120, answers: int = 4, seed: int = 0) -> list[Scored]:
    """Slates of answers with a worth drawn from a normal distribution, which annotators order without fault,
    and a judge whose scores are `skill` of the worth and the rest noise."""
    draw = np.random.default_rng(seed)
    found = []
    for i in range(num):
        worth = draw.normal(size=answers)
        scores = skill * worth + math.sqrt(1 - skill**2) * draw.normal(size=answers)
        ranks = tuple(int(n) for n in (-worth).argsort().argsort() + 1)
        found.append(ranked(str(i), (ranks,), tuple(scores.tolist())))
    return found


def test_a_perfect_judge_gains_what_order_statistics_say() -> None:
    found = choosing(judged(1.0))
    assert found is not None
    gains = [row["gain"] for row in found["curve"]]
    assert gains == pytest.approx([0.0, *(normal_places(n)[-1] for n in (2, 3, 4))], abs=1e-6)
    # In proportion to the root of the KL, so the law has no peak within reach.
    assert found["peak"]["low"] is None or found["peak"]["low"] > STRETCH**2 * best_of_n_kl(4)


def test_a_useless_judge() -> None:
    said = report_card(judged(0.0))["verdict"]
    assert (said["optimise"], said["kl"], said["best_of"]) == (False, 0.0, 1)
    assert said["sentence"].startswith("Do not optimise against it")
    assert "tossing a coin" in said["sentence"]


def test_a_judge_that_is_surely_wrong_is_not_called_a_coin() -> None:
    turned = [replace(one, scores=tuple(-s for s in one.scores)) for one in judged(0.9)]
    said = report_card(turned)["verdict"]
    assert said["optimise"] is False
    assert (
        "it prefers the answers they rejected: are chosen and rejected swapped somewhere?" in said["sentence"]
    )
    assert "coin" not in " ".join([said["sentence"], *said["notes"]])


def test_a_good_judge_has_a_budget_no_larger_than_the_stretch() -> None:
    said = report_card(judged(0.9))["verdict"]
    assert said["optimise"] is True
    assert 0 < said["kl"] <= STRETCH**2 * best_of_n_kl(4) + 1e-12
    assert said["best_of"] == best_of(said["kl"])
    assert f"{said['kl']:.1f} nats" in said["sentence"]


def by_characters(num: int = 80) -> list[Scored]:
    """Annotators like the longer answer, and so does the judge, for no other reason."""
    slates = judged(1.0, num)
    return [replace(s, texts=tuple("x" * (9 - row) for row in s.ranks[0])) for s in slates]


def test_no_better_than_length() -> None:
    said = report_card(by_characters())["verdict"]
    assert said["optimise"] is False
    assert "only counts characters" in said["sentence"]


def test_no_better_than_knowing_the_source() -> None:
    """Two sources, of which the one with the better answers is preferred in 9 of 10; the judge knows it, and
    nothing else."""
    slates = [
        Scored(
            str(i), ("aaa", "bbb"), ((2, 1) if i % 10 == 0 else (1, 2),), (1.0, 0.0), ("ada",), ("new", "old")
        )
        for i in range(100)
    ]
    card = report_card(slates)
    assert card["accuracy"] == pytest.approx(0.9)
    assert card["verdict"]["optimise"] is False
    assert "where they come from" in card["verdict"]["sentence"]
    # A judge that is also right where the other source won may be optimised against.
    knows = [replace(s, scores=(0.0, 1.0)) if s.ranks[0] == (2, 1) else s for s in slates]
    assert report_card(knows)["verdict"]["optimise"] is True


def test_nothing_held_out_is_neither() -> None:
    said = report_card([])["verdict"]
    assert said["optimise"] is None
    assert said["kl"] == 0.0


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    return report_card(judged(0.8))


@pytest.mark.parametrize(
    ("path", "value", "optimise", "word"),
    [
        (("low",), 0.5, False, "coin"),
        (("low",), 0.501, True, ""),
        (("baselines", "length", "lead", "low"), 0.0, False, "characters"),
        (("baselines", "length", "lead", "low"), 0.001, True, ""),
        (("given_sources", "low"), 0.5, False, "where they come from"),
        (("given_sources", "low"), 0.501, True, ""),
        (("choosing", "curve", 3, "low"), 0.0, False, "liked no better"),
        (("choosing", "curve", 3, "low"), 0.001, True, ""),
        (("choosing",), None, False, "no choice was measured"),
    ],
)
def test_the_edges_of_the_rule(
    good: dict[str, Any], path: tuple[Any, ...], value: Any, optimise: bool, word: str
) -> None:
    def put(tree: Any, keys: tuple[Any, ...]) -> Any:
        if not keys:
            return value
        copied = list(tree) if isinstance(tree, list) else dict(tree)
        copied[keys[0]] = put(tree[keys[0]], keys[1:])
        return copied

    assert verdict(good)["optimise"] is True
    said = verdict(put(good, path))
    assert said["optimise"] is optimise
    assert word in said["sentence"]
    assert (said["kl"] > 0) is optimise


def test_the_law_sets_the_budget_where_it_may_fall_first(good: dict[str, Any]) -> None:
    farthest = STRETCH**2 * best_of_n_kl(4)
    for low, budget in ((0.3, 0.3), (farthest + 1, farthest), (None, farthest)):
        found = {**good["choosing"], "peak": {"kl": 9.0, "low": low, "high": None}}
        assert verdict({**good, "choosing": found})["kl"] == pytest.approx(budget)


def test_notes_say_what_is_not_known(good: dict[str, Any]) -> None:
    words = " ".join(good["verdict"]["notes"])
    assert "nobody knows how good it could be" in words
    assert "Between two answers of one source" in words
    assert "watch a second reward model" in words
    sure = verdict({**good, "calibration": {"ece": 0.2, "surer": 0.2}})["notes"]
    assert any("surer than right by 20 points" in note for note in sure)
    unsure = verdict({**good, "calibration": {"ece": 0.2, "surer": -0.2}})["notes"]
    assert any("calibration error is 0.20" in note for note in unsure)
    ceiling = {"accuracy": 0.95, "low": 0.94, "high": 0.96, "num_pairs": 9}
    shared = verdict({**good, "accuracy": 0.77, "high": 0.8, "ceiling": ceiling})["notes"]
    assert any("learnt 60 % of what they share" in note for note in shared)
    reached = verdict({**good, "high": 0.945, "ceiling": ceiling})["notes"]
    assert any("at their ceiling" in note for note in reached)


def test_best_of_n_is_undone() -> None:
    assert [best_of(best_of_n_kl(n) + 1e-9) for n in (1, 2, 3, 16, 1000)] == [1, 2, 3, 16, 1000]
    assert best_of(best_of_n_kl(16) - 1e-9) == 15


def test_the_order_in_which_answers_are_stored_is_no_matter() -> None:
    slate = ranked("p", ((1, 2, 2, 4), (2, 1, 3, 3)), (3.0, 2.0, 4.0, 1.0))
    curves = set()
    for order in permutations(range(4)):
        shuffled = replace(
            slate,
            ranks=tuple(tuple(row[k] for k in order) for row in slate.ranks),
            scores=tuple(slate.scores[k] for k in order),
        )
        found = choosing([shuffled])
        assert found is not None
        curves.add(tuple(round(row["gain"], 9) for row in found["curve"]))
    assert len({tuple(g + 0.0 for g in curve) for curve in curves}) == 1
