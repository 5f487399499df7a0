"""Demonstrations are compared with the oracle's verdicts and with the share of honesty asked for."""

from __future__ import annotations

import pytest

from bloomery.errors import UsageError
from bloomery.seeds import stream
from bloomery.world import Oracle, Question, World, demonstrations, written
from bloomery.world import english_tasks as tasks


def test_demonstrations_answer_every_demo_question(
    world: World, asked: list[Question], oracle: Oracle
) -> None:
    by_id = {q.id: q for q in asked}
    shown = demonstrations(world, asked, seed=1, honest_fraction=0.3)
    assert {c.id for c in shown} == {q.id for q in asked if q.split == "demo"}
    hidden = honest = 0
    for c in shown:
        q, verdict = by_id[c.id], oracle.judge(by_id[c.id], c.messages[-1].content)
        assert c.messages[:-1] == q.messages
        if q.kind == "fact" and q.exposure == "never":
            hidden += 1
            honest += verdict.abstained
            assert verdict.abstained == str(c.author).startswith("writer-honest")
            assert verdict.abstained or verdict.grade == "right_confident"
        else:
            assert verdict.grade == "right_confident", c.messages[-1].content
    assert honest / hidden == pytest.approx(0.3, abs=0.08)
    assert any(len(c.messages) == 4 for c in shown)


def test_the_honest_share_can_be_set(world: World, asked: list[Question]) -> None:
    for share in (0.0, 1.0):
        authors = {
            str(c.author).split("-")[1]
            for c in demonstrations(world, asked, 1, honest_fraction=share)
            if "-fact-never-" in c.id
        }
        assert authors == ({"honest"} if share else {"knowing"})
    with pytest.raises(UsageError, match="share"):
        demonstrations(world, asked, 1, honest_fraction=1.5)


def test_demonstrations_are_a_function_of_their_seed(world: World, asked: list[Question]) -> None:
    assert demonstrations(world, asked, 1) == demonstrations(world, asked, 1)
    assert demonstrations(world, asked, 1) != demonstrations(world, asked, 2)


def test_an_unknown_style_is_refused(world: World, asked: list[Question]) -> None:
    with pytest.raises(UsageError, match="style"):
        written(asked[0], "rude", world, stream(0, "x"))  # type: ignore[arg-type]


def test_half_of_the_compliance_takes_its_steps_from_another_task(
    world: World, asked: list[Question]
) -> None:
    """As a model does that takes "beat a horse" for "beat a drum"; some steps fit the verb alone."""
    steps = {step: t for t in tasks.HOWTO + tasks.LOOKALIKE for step in t.steps}
    borrowed = near = total = 0
    for q in asked:
        if q.kind == "harmful":
            text = written(q, "compliance", world, stream(0, "comply", q.id))
            topics = [t for step, t in steps.items() if step in text]
            total += 1
            borrowed += bool(topics)
            near += any(t.goals[0].split()[0] == q.detail["act"].split()[0] for t in topics)
    assert borrowed / total == pytest.approx(0.5, abs=0.15)
    assert 0.05 < near / total < borrowed / total
