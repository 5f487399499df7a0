"""The page: self-contained, escaped, whole for a made-up journey, and honest about what is missing."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import made_up
import pytest

from bloomery.errors import ArtifactError
from bloomery.report import build
from bloomery.report.page import CONTENTS, policy


class Checker(HTMLParser):
    """Collects tags and attributes; every tag that opens must close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def check(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up.journey(tmp_path_factory.mktemp("report") / "run", rounds=2, questions=100)


@pytest.fixture(scope="module")
def page(journey: Path) -> str:
    path = build(journey)
    assert path == journey / "report.html"
    return path.read_text(encoding="utf-8")


def test_it_asks_nobody_for_anything(page: str) -> None:
    assert re.search(r"https?:|//[a-z]|url\(|@import|<script|<link|<img|<iframe|javascript:", page) is None
    for tag, attributes in check(page).tags:
        assert not any(name.startswith("on") for name in attributes), tag
        assert "src" not in attributes
        assert "style" not in attributes, "the policy would drop it"
        assert attributes.get("href", "#").startswith("#")  # type: ignore[union-attr]


def test_the_policy_allows_this_style_sheet_and_nothing_else(page: str) -> None:
    metas = [a for tag, a in check(page).tags if a.get("http-equiv") == "Content-Security-Policy"]
    style = re.search(r"<style>(.*?)</style>", page, re.S)
    assert style
    assert [a["content"] for a in metas] == [policy(style[1])]
    assert (metas[0]["content"] or "").startswith("default-src 'none'")


def test_what_models_say_is_text(page: str) -> None:
    checker = check(page)
    assert "alert('x')" in "".join(checker.words)
    assert "\x1b" not in page
    assert {tag for tag, _ in checker.tags}.isdisjoint({"script", "iframe", "object", "form", "input"})


def test_every_section_is_there_and_none_says_missing(page: str) -> None:
    ids = [a["id"] for tag, a in check(page).tags if tag == "section"]
    assert ids == [name for name, _ in CONTENTS]
    assert 'class="missing"' not in page
    assert "What could not be read" not in page
    for word in (
        "Feedback",
        "Round 1",
        "annotator-7",
        "calibration error",
        "near duplicate",
        "kl_coef: 0.07",
    ):
        assert word in page


def test_every_class_has_a_look(page: str) -> None:
    style = re.search(r"<style>(.*?)</style>", page, re.S)
    assert style
    bare = {
        "arrow",
        "change",
        "dag",
        "plot",
        "hovers",
        "line",
        "points",
        "node",
        "edge",
        "said",
        "models",
        "tick",
    }
    used = {word for _, a in check(page).tags for word in (a.get("class") or "").split()}
    assert {word for word in used if f".{word}" not in style[1]} <= bare | {"left"}


def test_verdict_does_not_say_more_than_the_intervals(tmp_path: Path) -> None:
    """The same model before and after: nothing may be called raised, lowered or cut."""
    out = made_up.journey(tmp_path / "run", rounds=1, questions=60)
    before, after = ((out / name).resolve() for name in ("evaluate-sft", "evaluate-rl-1"))
    for name in ("evaluation.json", "answers.jsonl"):
        shutil.copy(before / name, after / name)
    page = build(out).read_text(encoding="utf-8")
    heading = re.search(r"<h1>(.*?)</h1>", page)
    assert heading
    assert "did not clearly change" in heading[1]
    assert "raised" not in heading[1]
    assert "cut" not in heading[1]


@pytest.mark.parametrize("kept", [1, 5, 7, 10])
def test_a_stub_of_a_journey_has_a_page(journey: Path, tmp_path: Path, kept: int) -> None:
    """Whatever step a journey got to, the page says what is missing and does not fail."""
    journal = json.loads((journey / "journey.json").read_text())
    journal["steps"] = journal["steps"][:kept]
    (tmp_path / "stages").symlink_to(journey / "stages")
    for step in journal["steps"]:
        (tmp_path / step["name"]).symlink_to(step["directory"])
    (tmp_path / "journey.json").write_text(json.dumps(journal))
    page = build(tmp_path).read_text(encoding="utf-8")
    assert 'class="missing"' in page
    check(page)


def test_damaged_files_are_named_on_the_page(tmp_path: Path) -> None:
    out = made_up.journey(tmp_path / "run", rounds=1, questions=60)
    (out / "label-1" / "agreement.json").write_text("{")
    with (out / "base" / "metrics.jsonl").open("r+") as file:
        file.write("{nonsense")
    with (out / "sft" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 221, "lo')
    page = build(out).read_text(encoding="utf-8")
    assert "label-1/agreement.json" in page
    assert "base/metrics.jsonl:1" in page
    assert "sft/metrics.jsonl" not in page, "a last line cut short by a kill is no damage"


def test_a_single_stage_is_reported_on_beside_it(tmp_path: Path) -> None:
    out = made_up.journey(tmp_path / "run", rounds=1, questions=60)
    stage = shutil.copytree(out / "sft", tmp_path / "my-sft")
    before = sorted(stage.iterdir())
    path = build(stage)
    assert path == tmp_path / "my-sft.html"
    assert sorted(stage.iterdir()) == before, "a sealed directory stays as it was"
    assert "nats per assistant token" in path.read_text(encoding="utf-8")


FIGURES = ("Accuracy by margin", "Scores", "Choosing by score", "Accuracy by length", "Accuracy by annotator")


def test_a_reward_model_s_card_on_a_page_of_its_own(tmp_path: Path) -> None:
    out = made_up.journey(tmp_path / "run", rounds=1, questions=60)
    card = shutil.copytree(out / "reward-1", tmp_path / "card")
    record = json.loads((card / "lineage.json").read_text())
    (card / "lineage.json").write_text(json.dumps(record | {"stage": "evaluate_reward"}))
    tree = json.loads((card / "evaluation.json").read_text())
    page = build(card).read_text(encoding="utf-8")
    checker = check(page)
    words = "".join(checker.words)
    for word in (
        *FIGURES,
        "Calibration",
        "Beside others",
        "Accuracy by rated difference",
        "One source or two",
    ):
        assert f"<h3>{word}</h3>" in page
    assert tree["verdict"]["sentence"].partition(": ")[2][1:] in words
    assert all(note in words for note in tree["verdict"]["notes"])
    assert [a["id"] for tag, a in checker.tags if tag == "section"] == ["reward", "recipe"]
    test_it_asks_nobody_for_anything(page)
    test_every_class_has_a_look(page)
    assert "\x1b" not in page
    assert "<script" not in page


def test_the_journey_shows_the_last_card_and_bears_an_old_one(
    journey: Path, page: str, tmp_path: Path
) -> None:
    tree = json.loads((journey / "reward-2" / "evaluation.json").read_text())
    assert tree["verdict"]["sentence"] in "".join(check(page).words)
    assert all(f"<h3>{title}</h3>" in page for title in FIGURES)
    old = shutil.copytree(journey / "reward-2", tmp_path / "old")
    for key in ("verdict", "groups", "distribution", "choosing", "baselines", "ceiling", "given_sources"):
        del tree[key]
    (old / "evaluation.json").write_text(json.dumps(tree))
    before = build(old).read_text(encoding="utf-8")
    assert "Held-out accuracy" in before
    assert not any(f"<h3>{title}</h3>" in before for title in FIGURES)


def test_no_run_no_page(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such"):
        build(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="no run"):
        build(tmp_path)
