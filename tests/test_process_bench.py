"""Process rewards on sums: what is called right, counted and chosen, by hand; both judges read the same."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from bloomery.data.sources import read_solutions
from bloomery.models import LlamaConfig, build, hub
from bloomery.models.llama import ScalarModel
from bloomery.seeds import stream
from bloomery.stages.process import ProcessRecipe
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def bench(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("process")


def test_sums_are_distinct_and_answered_rightly(bench: ModuleType) -> None:
    found = bench.sums(200, seed=3)
    assert len(set(found)) == len(found) == 200
    assert found == bench.sums(200, seed=3) != bench.sums(200, seed=4)
    assert {len(one) for one in found} == {bench.NUMBERS}
    assert {n for one in found for n in one} == set(range(1, bench.MOST + 1))
    assert bench.question((7, 4, 9)) == "Add 7 4 9."
    assert bench.answer((7, 4, 9)) == ["7+4=11", "11+9=20"]
    for one in found:
        steps = bench.answer(one)
        assert bench.labels(one, steps) == [True] * (len(one) - 1)
        assert bench.result("\n".join(steps)) == sum(one)


@pytest.mark.parametrize(
    ("steps", "right"),
    [
        (["7+4=11", "11+9=20", "20+3=23"], [True, True, True]),
        (["7+4=12", "12+9=21", "21+3=24"], [False, True, True]),  # goes on rightly from a wrong result
        (["7+4=12", "12+9=20", "20+3=23"], [False, False, True]),  # the right result, by luck
        (["7+4=11", "11+3=14", "14+3=17"], [True, False, True]),  # not the number whose turn it is
    ],
)
def test_labels(bench: ModuleType, steps: list[str], right: list[bool]) -> None:
    assert bench.labels((7, 4, 9, 3), steps) == right
    made = bench.row((7, 4, 9, 3), steps)
    assert made["prompt"] == "Add 7 4 9 3."
    assert (made["completions"], made["labels"]) == (steps, right)
    assert made["result"] == (steps[-1] == "20+3=23")


def test_slips_are_as_frequent_as_is_said_and_carried_on(bench: ModuleType) -> None:
    draw, every = stream(0, "test"), bench.sums(2000, seed=0)
    tried = [(one, bench.attempt(one, draw)) for one in every]
    wrong = other = 0
    for one, steps in tried:
        totals = [one[0], *(int(step.split("=")[1]) for step in steps)]
        assert [int(step.split("+")[0]) for step in steps] == totals[:-1]
        right = bench.labels(one, steps)
        told = [int(re.split(r"[+=]", step)[1]) for step in steps]
        other += sum(a != b for a, b in zip(told, one[1:], strict=True))
        wrong += right.count(False)
    num = 2000 * (bench.NUMBERS - 1)
    assert other / num == pytest.approx(bench.OTHER, abs=0.01)
    assert wrong / num == pytest.approx(bench.WRONG + bench.OTHER, abs=0.015)
    lucky = [bench.row(one, steps) for one, steps in tried]
    found = bench.facts(lucky)
    assert found["right_steps"] == pytest.approx(1 - wrong / num)
    fair = [one for one in lucky if all(one["labels"])]
    assert found["right"] == pytest.approx(len(fair) / 2000 / (1 - found["right_by_luck"]))
    assert 0 < found["right_by_luck"] < 0.2


def test_both_judges_read_the_same_answers(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They differ in the separator and in what is a step of the same text, and in nothing else."""
    given: dict[str, ProcessRecipe] = {}

    def run(recipe: ProcessRecipe, out: Path) -> None:
        given[out.name] = recipe

    monkeypatch.setattr(bench.stage, "run", run)
    (tmp_path / "start").mkdir()
    rows = [bench.row((7, 4, 9), steps) for steps in (["7+4=10", "10+9=19"], ["7+4=10", "10+9=20"])]
    for judge in bench.SEPARATORS:
        bench.train(judge, rows, 0, tmp_path)
    one, two = (given[name].model_dump(exclude={"separator", "solutions"}) for name in bench.SEPARATORS)
    assert one == two
    found: dict[str, list[Any]] = {}
    for name, recipe in given.items():
        found[name] = list(read_solutions(recipe.solutions[0]))
        texts = [recipe.separator.join(s.completions) for s in found[name]]
        assert texts == ["7+4=10\n10+9=19", "7+4=10\n10+9=20"]
    assert [s.labels for s in found["process"]] == [(False, True), (False, False)]
    assert [s.labels for s in found["outcome"]] == [(False,), (True,)]


def scalar(tokenizer: Tokenizer, seed: int) -> ScalarModel:
    shape = LlamaConfig.shape(32, 1, 2, tokenizer.vocab_size, context=64)
    model = ScalarModel.from_causal(build(shape), seed=seed)
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return model


def test_scores_are_those_of_the_judges(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Poolings by hand from `last` of answers that are cut after each step."""
    monkeypatch.setattr(bench, "N", 2)
    tokenizer = Tokenizer.train(["7+4=11\n11+9=20", "Add 7 4 9."], 270)
    tokenizer.save(tmp_path / "start")
    for seed, name in enumerate(bench.SEPARATORS):
        hub.save(scalar(tokenizer, seed), tmp_path / name, tokenizer_dir=tmp_path / "start")

    chat = Chat(tokenizer)
    whole, cut = (bench.said(chat, (7, 4, 9), text) for text in ("7+4=11\n11+9=21", "7+4=11\n"))
    assert whole.tokens[len(whole.prompt_tokens) :] == (*tokenizer.encode(whole.text), tokenizer.end_id)
    found = bench.scores(tmp_path, [whole, whole])
    assert {name: scores.shape for name, scores in found.items()} == dict.fromkeys(bench.WAYS[:4], (1, 2))
    short = replace(cut, completion=replace(cut.completion, tokens=cut.completion.tokens[:-1]))
    first = bench.scores(tmp_path, [short] * 2)["last"][0, 0]
    last = found["last"][0, 0]
    assert first != pytest.approx(last.item())
    assert found["product"][0, 0] == pytest.approx((first * last).item(), rel=1e-4)
    assert found["minimum"][0, 0] == pytest.approx(min(first, last).item(), rel=1e-4)
    with torch.no_grad():
        read = hub.load(tmp_path / "outcome", "scalar")(torch.tensor([whole.tokens]))[0, -1]
    assert found["outcome"][0, 0] == pytest.approx(read.sigmoid().item(), rel=1e-4)


def test_the_best_of_n_by_hand(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "N", 4)
    monkeypatch.setattr(bench, "AT", (1, 2, 4))
    asked = [(7, 4, 9)] * 4
    chat = Chat(Tokenizer.train(["16+4=20"], 270))
    rollouts = [bench.said(chat, asked[0], f"16+4={x}") for x in (20, 21, 21, 20)]
    scored = {"good": torch.tensor([[0.9, 0.1, 0.2, 0.8]]), "bad": torch.tensor([[0.1, 0.9, 0.2, 0.3]])}
    found = bench.best(scored, asked, rollouts)
    # Answers 0 and 3 are right: 5 of 6 pairs hold one of them; the bad judge takes one of 0-3 and of 2-3.
    assert found["good"] == pytest.approx([1 / 2, 5 / 6, 1])
    assert found["any right"] == pytest.approx([1 / 2, 5 / 6, 1])
    assert found["bad"] == pytest.approx([1 / 2, 2 / 6, 0])
    assert found["majority"] == pytest.approx([1 / 2, 1 / 2, 1 / 2])


def test_a_vote(bench: ModuleType) -> None:
    assert bench.vote([20, 20, 21, 19], 20, 4) == 1
    assert bench.vote([20, 21, 21, 19], 20, 4) == 0
    assert bench.vote([20, 21, 19], 20, 3) == pytest.approx(1 / 3)
    assert bench.vote([19, 19, 20, 21], 20, 2) == pytest.approx(1 / 4)
    assert bench.vote([20, 20, 21, 21], 20, 1) == 1 / 2


def test_section_and_picture(bench: ModuleType, tmp_path: Path) -> None:
    keys = ("step_accuracy", "baseline", "lead", "first_wrong", "none_wrong")
    found, runs = [], []
    for seed in range(2):
        card = {key: {"mean": 0.5 + seed / 4} for key in keys}
        outcome = card | {"first_wrong": {"mean": None}}
        best = {way: [seed / 10 + k / 100 for k in range(len(bench.AT))] for way in bench.WAYS}
        answers = {"right": 0.2, "right_steps": 0.8, "right_by_luck": 0.1}
        cards = {"process": card, "outcome": outcome}
        found.append({"where": "commit abc, a machine", "answers": answers, "cards": cards, "best": best})
        runs.append(tmp_path / str(seed))
        (runs[-1] / "process").mkdir(parents=True)
        rows = [{"step": i, "accuracy": 0.5} | ({"eval_accuracy": 0.6} if i == 9 else {}) for i in range(20)]
        (runs[-1] / "process/metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = bench.section(found)
    assert "2 seeds, commit abc, a machine." in text
    assert (
        "| product | 5.0 (0.0 to 10.0) | 7.0 (2.0 to 12.0) | 9.0 (4.0 to 14.0) | 11.0 (6.0 to 16.0) |" in text
    )
    assert "- process, first_wrong: 62.5% (50.0% to 75.0%)" in text
    assert "- outcome, first_wrong: \n" in text
    tree = ElementTree.fromstring(bench.drawn(runs, found))
    names = {span.text for span in tree.iter(f"{SVG}tspan")}
    assert names >= {"held out", "in training", *bench.WAYS[:5]}
