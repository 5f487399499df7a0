"""Rankings into pairs, by hand: which pairs, in which direction, what is left out and counted, and how
several annotators become one."""

from __future__ import annotations

import pytest
from judgements import ranking

from bloomery.errors import DataError
from bloomery.feedback.pairs import (
    Pair,
    by_content,
    consensus,
    contestants,
    ranking_to_pairs,
    rankings_to_pairs,
    votes,
)


def short(pair: Pair) -> str:
    return f"{pair.chosen[0].content}{'=' if pair.tie else '>'}{pair.rejected[0].content}"


def test_three_answers_with_a_tie() -> None:
    pairs = ranking_to_pairs(ranking((1, 3, 1)))
    assert [short(pair) for pair in pairs] == ["a>b", "a=c", "c>b"]
    assert [pair.indices for pair in pairs] == [(0, 1), (0, 2), (2, 1)]
    assert {(pair.ranking_id, pair.annotator_id) for pair in pairs} == {("q/ada", "ada")}


@pytest.mark.parametrize("k", [2, 4, 9])
def test_k_answers_give_all_pairs_and_a_correction_k_more(k: int) -> None:
    ranks = tuple(range(1, k + 1))
    assert len(ranking_to_pairs(ranking(ranks))) == k * (k - 1) // 2
    assert len(ranking_to_pairs(ranking(ranks, correction="z"))) == k * (k + 1) // 2


def test_a_correction_beats_everything_the_best_answer_too() -> None:
    one = ranking((1, 1, 2), correction="z")
    answers, ranks = contestants(one)
    assert ranks == (2, 2, 3, 1)
    assert answers[3][0].content == "z"
    assert [short(pair) for pair in ranking_to_pairs(one)] == ["a=b", "a>c", "z>a", "b>c", "z>b", "z>c"]


def test_what_is_left_out_is_counted() -> None:
    found = rankings_to_pairs(
        [
            ranking((1, 2, 2)),
            ranking((1, 1, 1), annotator="bob"),
            ranking((1, 1, 1), annotator="cyd", correction="z"),
            ranking(None, annotator="dan", status="skipped"),
            ranking((1, 2), annotator="eve", status="flagged"),
            ranking((1, 2, 3), annotator="fay", texts=["a", "a", "b"]),
        ]
    )
    assert [short(pair) for pair in found.pairs] == ["a>b", "a>c", "z>a", "z>b", "z>c", "a>b", "a>b"]
    assert found.dropped_rankings == {"all tied": 1, "skipped": 1, "flagged": 1}
    assert found.dropped_pairs == {"tie": 1 + 3, "same text": 1}


def test_ties_are_kept_when_asked() -> None:
    found = rankings_to_pairs([ranking((1, 2, 2))], ties=True)
    assert [short(pair) for pair in found.pairs] == ["a>b", "a>c", "b=c"]
    assert found.dropped_pairs == {}


def test_a_record_without_a_ranking_has_no_pairs() -> None:
    with pytest.raises(DataError, match="no ranking"):
        ranking_to_pairs(ranking(None, status="skipped"))


def test_votes_and_consensus_of_three() -> None:
    said = [ranking(ranks, annotator=name) for name, ranks in zip("uvw", THREE, strict=True)]
    # a above b: u and v, not w. a above c: all. b above c: u and w.
    assert votes(said) == {(0, 1): pytest.approx(2 / 3), (0, 2): 1.0, (1, 2): pytest.approx(2 / 3)}
    # Borda: a 2/3 + 1, b 1/3 + 2/3, c 0 + 1/3.
    assert consensus(said) == (1, 2, 3)


THREE = [(1, 2, 3), (1, 3, 2), (2, 1, 3)]


def test_consensus_of_opposites_is_a_tie_and_ranks_skip() -> None:
    assert consensus([ranking((1, 2)), ranking((2, 1), annotator="bob")]) == (1, 1)
    assert consensus([ranking((1, 1, 2)), ranking((1, 1, 2), annotator="bob")]) == (1, 1, 3)


def test_only_rankings_of_the_same_answers_are_combined() -> None:
    same, other = ranking((2, 1), annotator="bob"), ranking((1, 2), texts=["a", "z"])
    groups = by_content([ranking((1, 2)), same, other, ranking(None, status="skipped")])
    assert [len(group) for group in groups.values()] == [2, 1]
    with pytest.raises(DataError, match="same completions"):
        votes([same, other])
