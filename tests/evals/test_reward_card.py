"""The reward model's report card against slates small enough to count by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from bloomery.errors import DataError
from bloomery.evals.comparisons import Scored, judged_by_length, length_preference
from bloomery.evals.reward import (
    by_kind,
    calibration,
    distribution,
    peer_agreement,
    report_card,
    verdicts,
)

# Two annotators who disagree about the first two answers. Lengths 1, 3, 2; the model says 0 > 1 > 2.
FULL = Scored("full", ("x", "yyy", "zz"), ((1, 2, 3), (2, 1, 3)), (3.0, 2.0, 1.0))
# The first calls 0 and 1 a tie; the second never saw answer 2 and prefers 1. The model says 2 > 0 = 1.
PART = Scored("part", ("aa", "bb", "c"), ((1, 1, 2), (2, 1, 0)), (0.0, 0.0, 5.0))


def test_every_untied_pair_of_every_annotator_counts() -> None:
    # Pairs 01, 02, 12. First annotator: all right. Second: wrong on 01.
    assert sorted(verdicts(FULL)) == [0, 1, 1, 1, 1, 1]
    # First: no verdict on the tie, wrong on 02 and 12. Second: equal scores are half right, and nothing on 2.
    assert sorted(verdicts(PART)) == [0, 0, 0.5]


def test_unanimous_pairs_count_once_and_need_two_annotators() -> None:
    assert list(verdicts(FULL, unanimous=True)) == [1, 1]
    # A tie and an order are not unanimous, and one annotator alone is not either.
    assert list(verdicts(PART, unanimous=True)) == []
    tied = replace(FULL, ranks=((1, 1, 2), (1, 1, 2)))
    assert list(verdicts(tied, unanimous=True)) == [1, 1]


def test_the_ceiling_is_how_often_two_annotators_agree() -> None:
    assert sorted(peer_agreement(FULL)) == [0, 1, 1]
    assert list(peer_agreement(PART)) == []
    three = replace(FULL, ranks=((1, 2, 3), (2, 1, 3), (1, 2, 0)))
    # On 01 the three make three pairs of annotators, of which one agrees; on 02 and 12 there are two.
    assert sorted(peer_agreement(three)) == [0, 0, 1, 1, 1]


# What the length rule learns from: the longer, or the shorter, wins.
LONGER = (Scored("t", ("aa", "b"), ((1, 2),), (0.0, 0.0)),)
SHORTER = (Scored("t", ("aa", "b"), ((2, 1),), (0.0, 0.0)),)


def test_the_length_baseline_reads_only_lengths() -> None:
    longer, shorter = judged_by_length([FULL, PART], LONGER), judged_by_length([FULL, PART], SHORTER)
    # By "longer wins": 01 wrong and right, 02 wrong twice, 12 right twice.
    assert sorted(verdicts(longer[0])) == [0, 0, 0, 1, 1, 1]
    # 02 and 12 right; the second annotator's 01 is of equal lengths.
    assert sorted(verdicts(longer[1])) == [0.5, 1, 1]
    assert sorted(verdicts(shorter[1])) == [0, 0, 0.5]
    reversed_scores = replace(PART, scores=(9.0, -9.0, 1.0))
    assert judged_by_length([reversed_scores], LONGER) == longer[1:]


def test_the_card_puts_the_slates_together() -> None:
    card = report_card([FULL, PART], LONGER)
    assert card["accuracy"] == pytest.approx(5.5 / 9)
    assert card["num_pairs"] == 9
    assert card["agreed"]["accuracy"] == 1.0
    assert card["agreed"]["num_pairs"] == 2
    assert card["agreement"] == pytest.approx(2 / 3)
    assert card["length_baseline"] == pytest.approx(5.5 / 9)
    assert card["eval_ece"] == card["calibration"]["ece"]
    assert (card["ceiling"]["accuracy"], card["ceiling"]["num_pairs"]) == (card["agreement"], 3)
    length = card["baselines"]["length"]
    assert (length["accuracy"], length["num_pairs"]) == (card["length_baseline"], 9)
    assert length["lead"]["mean"] == pytest.approx(0.0)
    assert card["by_kind"] == {}
    assert card["num_slates"] == 2
    assert report_card([FULL], SHORTER)["length_baseline"] == pytest.approx(3 / 6)
    assert report_card([PART], SHORTER)["length_baseline"] == pytest.approx(0.5 / 3)


def two(id: str, first: float, second: float, *ranks: tuple[int, int]) -> Scored:
    return Scored(id, ("a", "b"), ranks, (first, second))


def test_the_interval_draws_slates_not_pairs() -> None:
    """Thirty annotators agree on each of two slates and the model is right on one of them: that is two
    observations, not sixty. Of the draws, a quarter are all right and a quarter all wrong."""
    slates = [two("right", 1, 0, *[(1, 2)] * 30), two("wrong", 0, 1, *[(1, 2)] * 30)]
    card = report_card(slates, LONGER)
    assert (card["accuracy"], card["low"], card["high"]) == (0.5, 0.0, 1.0)
    sure = report_card([two(str(i), 1, 0, (1, 2)) for i in range(5)], LONGER)
    assert (sure["low"], sure["accuracy"], sure["high"]) == (1.0, 1.0, 1.0)
    some = report_card([two(str(i), 1, i % 4, (1, 2)) for i in range(0, 200, 2)], LONGER)
    # Scores 1 against 0 or 2: right on half of 100 slates, standard error 0.05.
    assert some["accuracy"] == 0.5
    assert some["low"] == pytest.approx(0.4, abs=0.03)
    assert some["high"] == pytest.approx(0.6, abs=0.03)


def test_nothing_held_out_gives_no_number() -> None:
    card = report_card([], LONGER)
    assert card["accuracy"] is None
    assert card["low"] is None
    assert card["agreement"] is None
    assert card["num_pairs"] == 0
    alone = report_card([two("p", 1, 0, (1, 2))], LONGER)
    assert alone["agreement"] is None
    assert alone["agreed"] == {"accuracy": None, "low": None, "high": None, "num_pairs": 0}
    assert report_card([two("p", 1, 0, (1, 1))], LONGER)["accuracy"] is None


def test_calibration_by_hand() -> None:
    # sigmoid(log 3) = 0.75 and sigmoid(log 9) = 0.9.
    three_of_four = [two("a", math.log(3), 0, (1, 2), (1, 2), (1, 2), (2, 1))]
    assert calibration(three_of_four)["ece"] == pytest.approx(0.0, abs=1e-12)
    one_of_two = [two("b", 0, math.log(9), (1, 2), (2, 1))]
    assert calibration(one_of_two)["ece"] == pytest.approx(0.4)
    both = calibration(three_of_four + one_of_two)
    assert both["ece"] == pytest.approx((4 * 0.0 + 2 * 0.4) / 6)
    assert [row["n"] for row in both["bins"]] == [4, 2]
    assert [row["confidence"] for row in both["bins"]] == pytest.approx([0.75, 0.9])
    assert [row["accuracy"] for row in both["bins"]] == pytest.approx([0.75, 0.5])


def test_calibration_at_its_ends() -> None:
    undecided = calibration([two("a", 1, 1, (1, 2), (2, 1), (1, 1))])
    (row,) = undecided["bins"]
    assert (undecided["ece"], row["confidence"], row["accuracy"], row["n"]) == (0.0, 0.5, 0.5, 2)
    sure_and_wrong = calibration([two("a", -1e9, 1e9, (1, 2))])
    assert sure_and_wrong["ece"] == pytest.approx(1.0)
    assert sure_and_wrong["surer"] == pytest.approx(1.0)
    modest = calibration([two("a", 0.001, 0, (1, 2))])
    assert modest["surer"] == pytest.approx(-0.5, abs=1e-3)
    assert calibration([]) == {"ece": 0.0, "surer": 0.0, "bins": []}


GRADED = {
    "yes": {"grade": "correct", "reward": 1.0},
    "do not know": {"grade": "abstain", "reward": 0.0},
    "no": {"grade": "wrong", "reward": -1.0},
    "nope": {"grade": "wrong", "reward": -1.0},
}


def test_by_kind_asks_whether_the_model_prefers_what_the_oracle_prefers() -> None:
    gold = {"p": {"kind": "fact", "grades": GRADED}, "q": {"kind": "fact", "grades": GRADED}}
    # Annotators play no part: here they all say the opposite of the oracle.
    slates = [
        Scored("p", ("no", "yes", "do not know", "nope"), ((1, 4, 3, 1),), (2.0, 3.0, 1.0, -1.0)),
        Scored("q", ("yes", "no"), ((2, 1),), (1.0, 1.0)),
        Scored("unknown prompt", ("yes", "no"), ((1, 2),), (0.0, 1.0)),
        Scored("q", ("yes", "an ungraded correction"), ((2, 1),), (0.0, 1.0)),
    ]
    assert by_kind(slates, gold) == {
        "fact: abstain over wrong": {"accuracy": 0.5, "n": 2.0},  # 1 against 2 and against -1
        "fact: correct over abstain": {"accuracy": 1.0, "n": 1.0},
        "fact: correct over wrong": {"accuracy": 2.5 / 3, "n": 3.0},  # both of p, and the equal scores of q
    }
    assert report_card(slates, LONGER, gold)["by_kind"] == by_kind(slates, gold)


def test_length_preference() -> None:
    texts = [("long answer", "short", "mid size")]
    assert length_preference(texts, [[(1, 3, 2)]]) == 1
    assert length_preference(texts, [[(3, 1, 2)]]) == -1
    # One annotator saw two answers only; a tie says nothing; the majority of pairs decides.
    assert length_preference(texts, [[(1, 1, 1), (0, 1, 2)]]) == -1
    assert length_preference(texts, [[(1, 3, 2), (2, 1, 0)]]) == 1


def test_groups_of_the_card() -> None:
    """Ada is always right and Bob wrong; the model likes what `new` wrote."""
    who, written = ("ada", "bob"), ("new", "old")
    slates = [
        replace(two(str(i), 1.0, 0.0, (1, 2), (2, 1)), annotators=who, sources=written) for i in range(6)
    ]
    gold = {"0": {"kind": "fact", "grades": {}}, "1": {"kind": "fact", "grades": {}}}
    card = report_card(slates, LONGER, gold, {"1": "list", "2": "list"})
    rows = {
        name: [(r["name"], r["accuracy"], r["num_pairs"]) for r in rows]
        for name, rows in card["groups"].items()
    }
    assert rows["annotator"] == [("ada", 1.0, 6), ("bob", 0.0, 6)]
    assert rows["category"] == [("fact", 0.5, 2), ("list", 0.5, 4)]
    assert rows["source"] == [("new", 0.5, 12), ("old", 0.5, 12)]
    assert rows["sources"] == [("of two sources", 0.5, 12)]
    assert rows["margin"] == [("1.00 to 1.00", 0.5, 12)]
    assert rows["length"] == [("of the same length", 0.5, 12)]
    assert rows["rated"] == []
    unknown = report_card([replace(s, sources=()) for s in slates], LONGER)["groups"]
    assert (unknown["source"], unknown["sources"], unknown["category"]) == ([], [], [])


def test_the_distribution_of_scores_by_hand() -> None:
    slates = [Scored("a", ("x", "y", "z"), (), (0.0, 0.0, 3.0)), Scored("b", ("x", "x"), (), (1.0, 1.0))]
    found = distribution(slates)
    assert found is not None
    assert (found["num"], found["mean"], found["min"], found["max"]) == (5, 1.0, 0.0, 3.0)
    assert found["std"] == pytest.approx(math.sqrt(6 / 5))
    assert found["skew"] == pytest.approx((8 - 2) / 5 / (6 / 5) ** 1.5)
    assert found["within"] == pytest.approx((math.sqrt(2) + 0) / 2)
    # Of three pairs of different texts one ties; the same text twice is no tie.
    assert found["ties"] == pytest.approx(1 / 3)
    assert found["quantiles"]["0.5"] == 1.0
    assert sum(found["histogram"]["counts"]) == 5
    assert len(found["histogram"]["edges"]) == len(found["histogram"]["counts"]) + 1
    assert distribution([]) is None


def test_a_score_that_is_no_number_is_an_error() -> None:
    with pytest.raises(DataError, match="not a number"):
        report_card([two("p", math.nan, 0, (1, 2))], LONGER)
