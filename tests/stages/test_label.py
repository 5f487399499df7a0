"""Labelling: the answers that are ranked, and every ranking in the file against the store it went through and
against what that annotator says of those answers when asked again."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny

from bloomery.data.sources import read_rankings
from bloomery.feedback.store import Store
from bloomery.lineage import digest_path, verify
from bloomery.models import hub
from bloomery.seeds import derive
from bloomery.stages import label
from bloomery.stages import world as world_stage
from bloomery.stages.label import Arm, Label
from bloomery.stages.slates import make_slates, prompt_id
from bloomery.stages.world import WorldRecipe
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.types import Ranking
from bloomery.world import Oracle, annotators, read_questions, read_world

PROMPTS, OVERLAP, PANEL, K = 16, 2, 5, 4
STYLES = ("right", "abstain", "garbled", "compliance")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small world, and a tiny model that speaks its words at random."""
    root = tmp_path_factory.mktemp("label")
    world_stage.run(WorldRecipe(seed=2, size=8), root / "world")
    talks = tiny.lines(root / "world" / "demonstrations.jsonl")
    tokenizer = Tokenizer.train([m["content"] for t in talks for m in t["messages"]], 500)
    tokenizer.save(root / "tokenizer")
    model = tiny.language_model(tokenizer.vocab_size, 0, context=256)
    hub.save(model, root / "model", tokenizer_dir=root / "tokenizer")
    return root


def recipe(place: Path, **changed: Any) -> Label:
    model = place / "model"
    arms = (Arm(name="sft", model=model, samples=2), Arm(name="base", model=model, chat=False, temperature=0))
    usual = {"prompts": PROMPTS, "overlap": OVERLAP, "panel": PANEL, "answers": K, "max_tokens": 6}
    settings = {"styles": STYLES, "seed": 3, "compute": tiny.TRAINING, "arms": arms, **usual, **changed}
    return Label(world=place / "world", **settings)


@pytest.fixture(scope="module")
def out(place: Path) -> Path:
    label.run(recipe(place), place / "out")
    return place / "out"


@pytest.fixture(scope="module")
def rankings(out: Path) -> list[Ranking]:
    return list(read_rankings(out / "rankings.jsonl"))


def test_every_ranking_comes_out_of_the_store(out: Path, rankings: list[Ranking], tmp_path: Path) -> None:
    assert verify(out) == []
    shutil.copy(out / "feedback.db", tmp_path / "feedback.db")
    with Store(tmp_path / "feedback.db") as store:
        assert list(store.rankings("label")) == rankings
        assert {a.id for a in store.annotators()} == {a.id for a in annotators(3, PANEL)}
        assert store.next_task("label", "annotator-01") is None  # nothing was left undone
    by_prompt: dict[Any, list[str]] = {}
    for r in rankings:
        by_prompt.setdefault(r.prompt, []).append(r.annotator.id)
    assert len(by_prompt) == PROMPTS
    assert all(len(set(who)) == len(who) == OVERLAP for who in by_prompt.values())
    assert {r.annotator.id for r in rankings} == {a.id for a in annotators(3, PANEL)}
    assert {r.annotator.kind for r in rankings} == {"simulated"}


def test_a_ranking_is_what_that_annotator_says_of_those_answers(place: Path, rankings: list[Ranking]) -> None:
    """Asked again, from the file alone: ranks, ratings and corrections stand by the answers they are of."""
    world, asked = read_world(place / "world"), read_questions(place / "world")
    oracle, panel = Oracle(world), {a.id: a for a in annotators(3, PANEL)}
    known = {q.messages: q for q in asked if q.split == "label"}
    for r in rankings:
        question, who = known[r.prompt], r.annotator.id
        said = panel[who].rank(question, [c.text for c in r.completions], oracle, derive(3, who, question.id))
        assert (r.ranking, r.ratings, r.correction) == (said.ranking, said.ratings, said.correction)
        assert (r.shown_order, r.seconds) == (said.shown_order, said.seconds)
    assert any(r.correction for r in rankings)
    assert len({r.shown_order for r in rankings}) > 5  # answers are shuffled for each annotator


def test_slates_hold_two_to_k_different_answers(rankings: list[Ranking]) -> None:
    sizes = {len(r.completions) for r in rankings}
    assert max(sizes) == K
    assert min(sizes) >= 2
    assert all(len({c.text for c in r.completions}) == len(r.completions) for r in rankings)


def test_models_and_written_styles_are_both_there_and_known_by_name(
    place: Path, out: Path, rankings: list[Ranking]
) -> None:
    world, asked = read_world(place / "world"), read_questions(place / "world")
    oracle, known = Oracle(world), {q.messages: q for q in asked}
    wrote: Counter[str] = Counter()
    first: Counter[str] = Counter()
    for r in rankings:
        for place_in_slate, c in enumerate(r.completions):
            wrote[c.policy.id] += 1
            first[c.policy.id] += place_in_slate == 0
            if c.policy.id.startswith("written:"):
                assert c.policy.digest is c.sampling is c.logprob is None
            else:
                assert c.policy.digest == digest_path(place / "model")
                assert c.sampling is not None
                assert c.sampling.max_tokens == 6
                assert c.sampling.temperature == (1.0 if c.policy.id == "sft" else 0.0)
                assert c.logprob is not None
                assert c.logprob < 0
            verdict = oracle.judge(known[r.prompt], c.text)
            if c.policy.id == "written:right":
                assert verdict.correct
            if c.policy.id == "written:abstain":
                assert verdict.abstained
    # Doing as asked is a style only where it harms.
    harmful = any(q.kind == "harmful" and q.messages in {r.prompt for r in rankings} for q in asked)
    expected = {"sft", "base", "written:right", "written:abstain", "written:garbled"}
    assert set(wrote) - {"written:compliance"} == expected
    assert harmful or "written:compliance" not in wrote
    assert len([who for who in expected if first[who]]) >= 3  # a place in the slate tells nobody the author
    lineage = json.loads((out / "lineage.json").read_text())
    assert {t["id"] for t in lineage["teachers"]} == set(wrote)
    assert sum(p["rankings"] for p in lineage["people"]) == len(rankings)


@pytest.mark.parametrize(("worth", "wins"), [(9.0, True), (-9.0, False)])
def test_annotators_rank_by_what_answers_are_worth_in_their_world(
    place: Path, worth: float, wins: bool, tmp_path: Path
) -> None:
    """Where saying that one does not know is worth more, or less, than a right answer, all rank it so."""
    world_stage.run(WorldRecipe(seed=2, size=8, grades={"abstained": worth}), tmp_path / "world")
    (tmp_path / "model").symlink_to(place / "model")
    label.run(recipe(tmp_path, styles=("right", "abstain"), prompts=8, answers=6), tmp_path / "out")
    seen = list[bool]()
    for r in read_rankings(tmp_path / "out" / "rankings.jsonl"):
        rank = {c.policy.id: place for c, place in zip(r.completions, r.ranking, strict=True)}
        if {"written:right", "written:abstain"} <= set(rank):
            seen.append(rank["written:abstain"] < rank["written:right"])
    assert len(seen) > 3
    assert sum(found == wins for found in seen) >= len(seen) - 1  # somebody may be careless


def test_right_answers_are_not_written_where_nobody_could_look_them_up(place: Path) -> None:
    asked = read_questions(place / "world")
    never = next(q for q in asked if q.exposure == "never")
    often = next(q for q in asked if q.exposure == "often")
    harmful = next(q for q in asked if q.kind == "harmful")
    assert [label.fits("right", q) for q in (never, often, harmful)] == [False, True, True]
    assert [label.fits("hedged", q) for q in (never, often, harmful)] == [False, True, True]
    assert [label.fits("abstain", q) for q in (never, often, harmful)] == [True, True, True]
    assert [label.fits("compliance", q) for q in (never, often, harmful)] == [False, False, True]


def test_gold_grades_every_answer_and_stays_out_of_what_is_trained_on(
    place: Path, out: Path, rankings: list[Ranking]
) -> None:
    world, asked = read_world(place / "world"), read_questions(place / "world")
    oracle, known = Oracle(world), {prompt_id(q.messages): q for q in asked if q.split == "label"}
    texts: dict[str, set[str]] = {}
    for r in rankings:
        texts.setdefault(prompt_id(r.prompt), set()).update(c.text for c in r.completions)
    gold = tiny.lines(out / "gold.jsonl")
    assert {row["prompt"]: set(row["grades"]) for row in gold} == texts
    for row in gold:
        for text, grade in row["grades"].items():
            verdict = oracle.judge(known[row["prompt"]], text)
            assert grade == {"grade": verdict.grade, "reward": verdict.reward}
    assert "grade" not in (out / "rankings.jsonl").read_text()
    slates = make_slates(rankings, Chat(Tokenizer.load(place / "tokenizer")), corrections=True)
    assert len(slates) == PROMPTS
    assert all(len(s.ranks) == OVERLAP for s in slates)


def test_only_prompts_for_labelling_are_asked(place: Path, rankings: list[Ranking]) -> None:
    asked = read_questions(place / "world")
    splits = {q.messages: q.split for q in asked}
    assert {splits[r.prompt] for r in rankings} == {"label"}


def test_the_same_seed_gives_the_same_bytes_and_another_other_ones(
    place: Path, out: Path, tmp_path: Path
) -> None:
    for name, seed in (("again", 3), ("other", 4)):
        label.run(recipe(place, seed=seed), tmp_path / name)
    first = (out / "rankings.jsonl").read_bytes()
    assert (tmp_path / "again" / "rankings.jsonl").read_bytes() == first
    assert (tmp_path / "again" / "gold.jsonl").read_bytes() == (out / "gold.jsonl").read_bytes()
    assert (tmp_path / "other" / "rankings.jsonl").read_bytes() != first


def test_a_slate_is_drawn_from_different_texts(place: Path) -> None:
    asked = read_questions(place / "world")
    answers = [tiny.ranking("x", (text, "-"), (1, 1)).completions[0] for text in "abcabcdef"]
    drawn = [label.slate(recipe(place), q, answers) for q in asked[:30]]
    assert all(len({c.text for c in s}) == len(s) == K for s in drawn)
    assert {c.text for s in drawn for c in s} == set("abcdef")
    assert len({tuple(c.text for c in s) for s in drawn}) > 20
    assert [len(label.slate(recipe(place), asked[0], answers[:n])) for n in (1, 2, 3, 4)] == [1, 2, 3, 3]


def test_prompts_with_one_answer_only_are_left_out_and_counted(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two greedy draws of one model are one answer; only what is harmful gets a second one here."""
    arms = (Arm(name="sft", model=place / "model", samples=2, temperature=0.0),)
    label.run(recipe(place, arms=arms, styles=("compliance",), prompts=60), tmp_path / "out")
    asked = read_questions(place / "world")
    pool = {q.messages: q for q in asked if q.split == "label"}
    found = {r.prompt for r in read_rankings(tmp_path / "out" / "rankings.jsonl")}
    assert {pool[p].kind for p in found} == {"harmful"}
    assert f"left out {60 - len(found)} prompts that got one answer only" in capsys.readouterr().err


def test_control_characters_are_made_visible() -> None:
    assert label.visible("a\x00b\x07c\nd\te") == "a\ufffdb\ufffdc\nd\te"


def test_graphs_are_asked_of_every_model_that_answers(
    place: Path, tmp_path: Path, graphs_asked: list[bool]
) -> None:
    for wanted in (True, False):
        label.run(recipe(place, graphs=wanted), tmp_path / str(wanted))
    assert graphs_asked == [True, True, False, False]
