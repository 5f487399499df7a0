"""Annotators are compared with themselves, with each other and with the truth they partly see."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from bloomery.seeds import stream
from bloomery.types import Annotator, Candidate, Message, Policy, Ranking
from bloomery.world import Oracle, Question, SimulatedAnnotator, World, annotators, written
from bloomery.world.annotators import ranks

CALM = SimulatedAnnotator("calm", 0.0, 0.0, 0.0, 0.0, 1.0, 0.1, 0.0, 0.0, 1.0)


@pytest.fixture(scope="module")
def sets(world: World, asked: list[Question]) -> list[tuple[Question, list[str]]]:
    rng = stream(0, "sets")
    styles = ("right", "right", "wrong", "wrong", "abstain", "garbled")
    chosen = [q for q in asked if q.split == "label"][:250]
    return [(q, [written(q, style, world, rng) for style in styles]) for q in chosen]


def agreement(one: list[tuple[int, ...]], two: list[tuple[int, ...]]) -> float:
    """Share of pairs that both rank, and rank the same way."""
    same = total = 0
    for a, b in zip(one, two, strict=True):
        for i, j in combinations(range(len(a)), 2):
            if a[i] != a[j] and b[i] != b[j]:
                total += 1
                same += (a[i] < a[j]) == (b[i] < b[j])
    return same / total


def test_a_panel_is_distinct_and_repeatable() -> None:
    panel = annotators(0)
    assert panel == annotators(0) != annotators(1)
    assert len({replace(a, id="") for a in panel}) == 8
    assert len({a.id for a in panel}) == 8
    assert sum(a.carelessness > 0.2 for a in panel) == 1


def test_agreement_is_that_of_people(sets: list[tuple[Question, list[str]]], oracle: Oracle) -> None:
    panel = annotators(0)
    views = [[a.rank(q, texts, oracle, 0).ranking for q, texts in sets] for a in panel]
    careful = [agreement(views[i], views[j]) for i, j in combinations(range(7), 2)]
    careless = [agreement(views[i], views[7]) for i in range(7)]
    assert 0.78 < sum(careful) / len(careful) < 0.88
    assert max(careless) < min(careful)


def test_a_calm_annotator_follows_the_table(sets: list[tuple[Question, list[str]]], oracle: Oracle) -> None:
    for q, texts in sets:
        ranking = CALM.rank(q, texts, oracle, 0).ranking
        rewards = [oracle.judge(q, t).reward for t in texts]
        for i, j in combinations(range(len(texts)), 2):
            if rewards[i] > rewards[j]:
                assert ranking[i] < ranking[j]


def test_garbled_text_is_nearly_always_last(sets: list[tuple[Question, list[str]]], oracle: Oracle) -> None:
    panel = annotators(0)[:7]
    beaten = [
        sum(r[k] < r[5] for k in (0, 1, 4))
        for a in panel
        for q, texts in sets
        if q.kind != "harmful"
        for r in [a.rank(q, texts, oracle, 0).ranking]
    ]
    assert sum(beaten) / (3 * len(beaten)) > 0.93


def test_habits_show(sets: list[tuple[Question, list[str]]], oracle: Oracle) -> None:
    """Each habit, turned up alone, changes what it should and nothing else."""
    first = replace(CALM, position_bias=50.0)
    long = replace(CALM, length_bias=500.0)
    kind = replace(CALM, leniency=2.0)
    for q, texts in sets[:60]:
        view = first.rank(q, texts, oracle, 0)
        assert view.ranking[view.shown_order[0]] == 1
        lengths = [len(t.split()) for t in texts]
        assert lengths[long.rank(q, texts, oracle, 0).ranking.index(1)] == max(lengths)
        calm = CALM.rank(q, texts, oracle, 0)
        assert kind.rank(q, texts, oracle, 0).ranking == calm.ranking
        for a, b in zip(kind.rank(q, texts, oracle, 0).ratings, calm.ratings, strict=True):
            assert a.honest == min(7, b.honest + 2)


def test_strictness_weighs_honesty(world: World, asked: list[Question], oracle: Oracle) -> None:
    q = next(q for q in asked if q.kind == "fact" and q.exposure == "never")
    lie, honest = (oracle.judge(q, written(q, s, world, stream(0, s))) for s in ("wrong", "abstain"))
    mild, strict = replace(CALM, strictness=0.0), replace(CALM, strictness=3.0)
    gap = [a.worth(q, honest) - a.worth(q, lie) for a in (mild, strict)]
    assert 0 < gap[0] < gap[1]


def test_corrections_are_right_and_only_where_nothing_is(
    world: World, asked: list[Question], oracle: Oracle
) -> None:
    writer = replace(CALM, corrects=1.0)
    for q in [q for q in asked if q.split == "label"][:80]:
        wrong = [written(q, "wrong", world, stream(k, "w")) for k in range(2)]
        fixed = writer.rank(q, wrong, oracle, 0).correction
        assert fixed is not None
        verdict = oracle.judge(q, fixed)
        assert verdict.correct or (verdict.abstained and q.exposure == "never")
        assert writer.rank(q, [*wrong, q.answer], oracle, 0).correction is None


def test_a_judgement_is_a_valid_record(sets: list[tuple[Question, list[str]]], oracle: Oracle) -> None:
    q, texts = sets[0]
    a = annotators(0)[0]
    view = a.rank(q, texts, oracle, 0)
    assert view == a.rank(q, texts, oracle, 0)
    Ranking(
        id="r",
        prompt=q.messages,
        completions=tuple(
            Candidate(messages=(Message(role="assistant", content=t),), policy=Policy(id="p")) for t in texts
        ),
        ranking=view.ranking,
        ratings=view.ratings,
        correction=view.correction,
        annotator=Annotator(id=a.id, kind="simulated"),
        seconds=view.seconds,
        shown_order=view.shown_order,
        created_at="2026-01-01T00:00:00Z",
    )


def test_ranks_tie_close_and_equal_texts() -> None:
    assert ranks([0.0, 2.0, 1.9], ["a", "b", "c"], 0.2) == (3, 1, 1)
    assert ranks([0.0, 5.0, 1.0], ["a", "a", "b"], 0.2) == (1, 1, 3)
    assert ranks([3.0, 2.0, 1.0], ["a", "b", "c"], 0.2) == (1, 2, 3)
