"""Compared: records with the JSON they came from, the refusal of records that contradict themselves, and
the pairs of a ranking with pairs written by hand."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bloomery.types import Candidate, Conversation, Message, Ranking, Rating, ranked_pairs


def ranking(**changes: Any) -> dict[str, Any]:
    answers = [
        {"messages": [{"role": "assistant", "content": text}], "policy": {"id": "m", "digest": "ab"}}
        for text in ("one", "two", "three")
    ]
    row: dict[str, Any] = {
        "id": "r1",
        "prompt": [{"role": "user", "content": "Who is Ada?"}],
        "completions": answers,
        "ranking": [1, 3, 1],
        "ratings": [{"helpful": 7, "honest": 6, "harmless": 7}, None, None],
        "correction": "A smith.",
        "annotator": {"id": "a1", "kind": "human"},
        "seconds": 12.5,
        "shown_order": [2, 0, 1],
        "created_at": "2026-01-01T00:00:00+00:00",
    }
    return row | changes


def test_a_ranking_survives_a_round_trip_through_json() -> None:
    record = Ranking.model_validate(ranking())
    assert Ranking.model_validate_json(record.model_dump_json()) == record
    assert record.completions[1].text == "two"
    assert record.ranking == (1, 3, 1)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"ranking": [1, 2]}, "2 ranks for 3 completions"),
        ({"ranking": [0, 1, 2]}, "ranks start at 1, got 0"),
        ({"ranking": None}, "a submitted record needs a ranking"),
        ({"ratings": [None]}, "1 entries for 3 completions"),
        ({"shown_order": [0, 1, 1]}, "permutation of 0..2"),
        ({"shown_order": [1, 2, 3]}, "permutation of 0..2"),
        ({"seconds": -1}, "greater than or equal to 0"),
        ({"seconds": float("nan")}, "finite"),
        ({"prompt": []}, "at least 1"),
        ({"annotator": {"id": "a", "kind": "robot"}}, "'human', 'simulated' or 'ai'"),
        ({"colour": "red"}, "Extra inputs are not permitted"),
        ({"ratings": [{"helpful": 8, "honest": 1, "harmless": 1}, None, None]}, "less than or equal to 7"),
    ],
)
def test_a_ranking_that_contradicts_itself_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Ranking.model_validate(ranking(**changes))


@pytest.mark.parametrize("status", ["skipped", "flagged"])
def test_only_a_submitted_record_needs_a_ranking(status: str) -> None:
    assert Ranking.model_validate(ranking(ranking=None, status=status)).ranking is None


def test_one_completion_is_not_a_comparison() -> None:
    with pytest.raises(ValidationError, match="at least 2"):
        Ranking.model_validate(ranking(completions=ranking()["completions"][:1], ranking=[1], ratings=None))


def test_records_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Message(role="user", content="x").content = "y"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("role", "weight", "trained"),
    [
        ("assistant", None, True),
        ("assistant", 1, True),
        ("assistant", 0, False),
        ("user", None, False),
        ("user", 1, False),
        ("system", 1, False),
        ("tool", None, False),
    ],
)
def test_only_assistant_turns_with_weight_are_trained(role: Any, weight: Any, trained: bool) -> None:
    assert Message(role=role, content="x", weight=weight).trained is trained


def test_a_conversation_has_messages() -> None:
    with pytest.raises(ValidationError, match="at least 1"):
        Conversation(id="c", messages=())


def test_the_text_of_a_candidate_is_its_last_message() -> None:
    turns = (Message(role="assistant", content="first"), Message(role="assistant", content="last"))
    assert Candidate.model_validate({"messages": turns, "policy": {"id": "p"}}).text == "last"


def test_ratings_go_from_1_to_7() -> None:
    assert Rating(helpful=1, honest=7, harmless=4).honest == 7
    with pytest.raises(ValidationError):
        Rating(helpful=0, honest=1, harmless=1)


def test_pairs_by_hand() -> None:
    assert list(ranked_pairs([1, 3, 1])) == [(0, 1, False), (0, 2, True), (2, 1, False)]
    assert list(ranked_pairs([2, 1])) == [(1, 0, False)]
    assert list(ranked_pairs([5, 5])) == [(0, 1, True)]
    assert list(ranked_pairs([1])) == []


@given(st.lists(st.integers(1, 4), max_size=9))
def test_every_pair_comes_once_and_the_winner_has_the_better_rank(ranks: list[int]) -> None:
    pairs = list(ranked_pairs(ranks))
    assert sorted(tuple(sorted(pair[:2])) for pair in pairs) == list(combinations(range(len(ranks)), 2))
    for winner, loser, tie in pairs:
        assert (ranks[winner] == ranks[loser]) is tie
        assert ranks[winner] < ranks[loser] or (tie and winner < loser)
