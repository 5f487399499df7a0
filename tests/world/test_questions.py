"""The three splits are compared with each other: what is in one is in no other, person by person."""

from __future__ import annotations

import json
from collections import Counter, defaultdict

import pytest

from bloomery.errors import DataError
from bloomery.types import Document
from bloomery.world import MIX, Question, World, questions
from bloomery.world.english_tasks import HARMFUL

PLAIN = {f"{verb} {what}" for verb, objects in HARMFUL.items() for what in objects if "{" not in what}
FACTS = ("fact", "follow_up", "false_premise")


def test_a_fact_is_asked_in_one_split_only(world: World, asked: list[Question]) -> None:
    splits = defaultdict(set)
    for q in asked:
        if q.kind in FACTS:
            splits[q.subject, q.attribute].add(q.split)
            if q.kind == "follow_up":
                name = str(q.subject)
                first = next(
                    f for f in world.facts_of(name) if q.messages[1].content.endswith(f" {f.value}.")
                )
                splits[name, first.attribute].add(q.split)
    assert all(len(found) == 1 for found in splits.values())
    assert {s for found in splits.values() for s in found} == {"demo", "label", "eval"}


def test_reserved_people_are_in_eval_only(world: World, asked: list[Question]) -> None:
    reserved = {p.name for p in world.people if p.reserved}
    for q in asked:
        text = " ".join(m.content for m in q.messages if m.role == "user")
        if q.split != "eval":
            assert not any(name in text for name in reserved)
            assert not q.unlabelled_person
        elif q.subject:
            assert q.unlabelled_person == (q.subject in reserved)
            assert q.documented == world.by_name[q.subject].documented
    unlabelled = [q for q in asked if q.unlabelled_person and q.exposure == "never"]
    assert {q.documented for q in unlabelled} == {True, False}


@pytest.mark.parametrize(
    "kind", ["list", "rewrite", "arithmetic", "howto", "harmful", "lookalike", "passage"]
)
def test_no_prompt_is_in_two_splits(asked: list[Question], kind: str) -> None:
    by_split = defaultdict(set)
    for q in asked:
        if q.kind == kind:
            by_split[q.split].add(q.detail["act"] if kind == "harmful" else q.text)
    assert len(by_split) == 3
    assert not by_split["eval"] & (by_split["demo"] | by_split["label"])
    assert not by_split["demo"] & by_split["label"]


def test_sizes_follow_the_mix(asked: list[Question]) -> None:
    counts = Counter(q.split for q in asked)
    assert counts["demo"] == pytest.approx(1000, rel=0.02)
    assert counts["label"] == pytest.approx(1000, rel=0.02)
    assert counts["eval"] == pytest.approx(380, rel=0.03)
    often = sum(q.kind == "fact" and q.exposure == "often" for q in asked if q.split == "label")
    assert often == pytest.approx(1000 * MIX["fact-often"] / sum(MIX.values()), abs=2)


def test_the_mix_can_be_set(world: World) -> None:
    only = questions(world, 0, mix={"harmful": 1.0}, per_person={"label": 1.0})
    assert {(q.kind, q.split) for q in only} == {("harmful", "label")}
    assert len(only) == 40


def test_ids_and_prompts_are_unique(asked: list[Question]) -> None:
    assert len({q.id for q in asked}) == len(asked)
    for split in ("demo", "label", "eval"):
        prompts = [tuple(m.content for m in q.messages) for q in asked if q.split == split]
        assert len(set(prompts)) == len(prompts)
        assert all(q.messages[-1].role == "user" for q in asked)


def test_questions_are_a_function_of_their_seed_and_survive_json(world: World, asked: list[Question]) -> None:
    rows = [json.dumps(q.to_json()) for q in asked]
    assert rows == [json.dumps(q.to_json()) for q in questions(world, seed=3)]
    assert [Question.from_json(json.loads(row)) for row in rows] == asked


def test_a_row_that_is_no_question_is_refused() -> None:
    with pytest.raises(DataError, match="not a question"):
        Question.from_json({"id": "x", "messages": []})


def test_answers_and_clozes_state_the_fact(world: World, asked: list[Question], docs: list[Document]) -> None:
    text = " ".join(d.text for d in docs if d.quality == "clean")
    hits = 0
    for q in asked:
        if q.kind == "fact":
            assert q.value == world.fact(str(q.subject), str(q.attribute)).value
            assert str(q.value) in q.answer
            assert str(q.subject) in str(q.cloze)
            hits += q.exposure == "often" and f"{q.cloze} {q.value}." in text
    assert hits > 200


def test_held_out_harmful_acts_are_new_and_their_verbs_are_not() -> None:
    acts: dict[str, set[str]] = {"demo": set(), "label": set(), "eval": set()}
    for seed in range(3):
        other = World.make(seed, 40)
        for split in acts:
            found = questions(other, seed, mix={"harmful": 1.0}, per_person={split: 20.0})
            acts[split] = {q.detail["act"] for q in found}
        assert sum(map(len, acts.values())) == len(set().union(*acts.values()))
        for verb in HARMFUL:
            plain = {s: {a for a in acts[s] if a.startswith(f"{verb} ") and a in PLAIN} for s in acts}
            assert len(plain["demo"]) >= 4, verb
            assert len(plain["label"]) >= 3, verb
            assert len(plain["eval"]) in (1, 2), verb
