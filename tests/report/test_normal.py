"""Yours over normal: where the band lies, how long it is, when there is none and what is said then; and the
list of what `diagnose` found."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import made_up
import numpy as np
import pytest
import yaml

from bloomery.journey.diagnose import Checkup, Column, Finding, Table, reference
from bloomery.report import build
from bloomery.report.normal import normal, why_not
from bloomery.report.plots import Series, line_plot, smooth
from bloomery.report.sections.health import health
from bloomery.report.view import View

STEPS = tuple(range(0, 100, 10))


def view(*tables: Table, findings: tuple[Finding, ...] = ()) -> View:
    return View(Path(), {}, None, {}, {one.name: Checkup(one, findings) for one in tables})


def table(status: str = "finished", steps: int = 201, **settings: Any) -> Table:
    columns = {"loss": Column("loss", (0, steps - 1), (1.0, 1.0))}
    return Table("sft", "sft", 30, columns, status, settings)  # type: ignore[arg-type]


@pytest.fixture
def seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three seeds of ten values each: 0, 10, 20 ... and twice and five times that; the last is longer."""

    def curve(seed: int, factor: float, stretch: int) -> reference.Curve:
        steps = tuple(stretch * step for step in STEPS)
        return reference.Curve(seed, Column("loss", steps, tuple(factor * step for step in STEPS)))

    found = [curve(0, 1.0, 1), curve(1, 2.0, 1), curve(2, 5.0, 3)]
    monkeypatch.setattr(reference, "curves", lambda step, metric: found)


# ------------------------------------------------------------------------------------------- the band


@pytest.mark.usefixtures("seeds")
def test_the_band_is_from_the_lowest_seed_to_the_highest_along_the_run() -> None:
    (band,) = normal(view(table()), "sft", "loss", "s3", start=1000.0)
    assert (band.look, band.colour) == ("normal", "s3")
    assert band.x == pytest.approx([1000 + i * 200 / 9 for i in range(10)])
    assert band.low == pytest.approx(STEPS)
    assert band.y == pytest.approx([2 * step for step in STEPS])
    assert band.high == pytest.approx([5 * step for step in STEPS])


@pytest.mark.usefixtures("seeds")
def test_an_unfinished_run_shows_how_far_it_got() -> None:
    for status in ("running", "unfinished"):
        (band,) = normal(view(table(status, steps=5)), "sft", "loss", "s1")
        assert (band.x[0], band.x[-1]) == (0.0, 90.0), "the middle one of the seeds is 90 steps long"


def test_what_is_logged_now_and_then_begins_where_it_was_first_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = [reference.Curve(0, Column("loss", (50, 100), (4.0, 2.0)))]
    monkeypatch.setattr(reference, "curves", lambda step, metric: found)
    (band,) = normal(view(table(steps=41)), "sft", "loss", "s1")
    assert (list(band.x), list(band.low)) == ([20.0, 40.0], [4.0, 2.0])


def test_noise_is_averaged_away(monkeypatch: pytest.MonkeyPatch) -> None:
    column = Column("loss", tuple(range(100)), tuple(float(i % 2) for i in range(100)))
    monkeypatch.setattr(reference, "curves", lambda step, metric: [reference.Curve(0, column)])
    (band,) = normal(view(table()), "sft", "loss", "s1")
    inner = [v for v in band.high[5:-5] if v is not None]
    assert 0.35 < min(inner) < max(inner) < 0.65


def test_no_band_where_settings_metrics_or_steps_are_others() -> None:
    far = view(table(epochs=50.0, batch=64))
    assert normal(view(table()), "sft", "loss", "s1")
    assert normal(far, "sft", "loss", "s1") == []
    assert why_not(far, "sft") == " No band of normal runs: epochs is 50.0, not 4.0 (1 more)."
    for step, key in (("sft", "unheard_of"), ("base", "train/loss")):
        assert normal(view(table()), step, key, "s1") == []
        assert why_not(view(table()), step) == ""


def test_a_seed_lies_within_its_own_band(tmp_path: Path) -> None:
    """Seed 1's curves as a journey of their own: every stage has its bands, and the run is within them."""
    out = seed_journey(tmp_path / "run")
    page = build(out).read_text(encoding="utf-8")
    assert "Healthy: none of them was found." in page
    assert "No band of normal runs" not in page
    bands = {
        section: len(re.findall("<polygon", part))
        for section, part in re.findall(r'<section id="(\w+)">(.*?)</section>', page, re.S)
    }
    # PPO: score, KL, entropy, length, gold and proxy in two rounds; reward: two losses, two accuracies.
    assert bands["ppo"] == 2 * 6
    assert bands["reward"] == 2 + 2
    assert bands["sft"] == 3
    assert bands["pretraining"] == 2
    (band,) = normal(View.of(out), "sft", "loss", "s1")
    own = next(c.column for c in reference.curves("sft", "loss") if c.seed == 1)
    mine = np.interp(np.linspace(0, 708, 100), own.steps, np.array(smooth(own.values, 4), float))
    assert own.steps[-1] == 708
    assert (np.array(band.low) - 1e-9 <= mine).all()
    assert (mine <= np.array(band.high) + 1e-9).all()


def seed_journey(out: Path, seed: int = 1) -> Path:
    """A made-up journey whose stages logged what a seed of the default journey did, sealed."""
    made_up.journey(out, rounds=2, questions=60)
    for directory in (out / "stages").iterdir():
        (directory / "MANIFEST.json").write_text("{}")
        name = directory.name.rpartition("-")[0]
        rows: dict[int, dict[str, Any]] = {}
        for curve in reference.read_step(name):
            if curve.seed == seed:
                for at, value in zip(curve.column.steps, curve.column.values, strict=True):
                    rows.setdefault(at, {"step": at})[curve.column.name] = value
        if rows:
            lines = [json.dumps(rows[at]) + "\n" for at in sorted(rows)]
            (directory / "metrics.jsonl").write_text("".join(lines))
    (out / "recipe.yaml").write_text(yaml.safe_dump({"seed": seed, "world": {"size": 120}}))
    return out


def test_a_page_of_another_world_says_why_it_has_no_bands(tmp_path: Path) -> None:
    out = seed_journey(tmp_path / "run")
    (out / "recipe.yaml").write_text("world: {size: 20}\n")
    page = build(out).read_text(encoding="utf-8")
    assert "<polygon" not in page
    assert page.count("No band of normal runs: world.size is 20, not 120.") == 11


# ------------------------------------------------------------------------------------------ the picture


def test_a_band_has_no_line_no_dots_and_one_word_in_the_legend() -> None:
    band = Series("normal", [0, 1, 2, 3], [1, 1, None, 1], "s1", "normal", [0, 0, None, 0], [2, 2, None, 2])
    line = Series("loss", [0, 1], [1.0, 1.5])
    picture = line_plot(
        [band, line, Series("normal", [0, 1], [5, 5], "s2", "normal", [4, 4], [6, 6])], x_label="x"
    )
    assert picture.count("<polyline") == 1
    corners = [points.count(",") for points in re.findall(r'<polygon[^>]* points="([^"]*)"', picture)]
    assert corners == [4, 4], "a gap ends a band, and one point is none"
    assert re.findall(r"</svg>(\w+)</li>", picture) == ["loss", "normal"]
    titles = re.findall(r"<title>(.*?)</title>", picture, re.S)
    assert titles == [
        "x 0\nnormal: 0 to 2\nloss: 1\nnormal: 4 to 6",
        "x 1\nnormal: 0 to 2\nloss: 1.5\nnormal: 4 to 6",
    ]
    for _, group in re.findall(r'<g class="(hover)">(.*?)</g>', picture, re.S):
        assert group.count("<circle") == 1


def test_noise_around_zero_gets_no_tick_below_it() -> None:
    for low, below in ((-0.01, False), (-0.1, True)):
        picture = line_plot([Series("kl", [0, 1], [low, 1.0])], x_label="x", zero=True)
        assert bool(re.search(r'class="tick"[^>]*>−', picture)) is below


# ---------------------------------------------------------------------------------------------- health


def test_a_healthy_run_has_one_line() -> None:
    page = health(view(table()))
    assert "Healthy: none of them was found." in page
    assert 'class="well"' in page
    assert "in the curves of 1 stage." in page
    assert "is still at work" not in page
    assert "sft is still at work" in health(view(table("running")))
    short = view(Table("ppo-1", "ppo", 3))
    assert "ppo-1 logged too little to tell much" in health(short)


def test_what_was_found_is_told_with_evidence_and_advice() -> None:
    finding = Finding("It <b>burns</b>.", ("fire 9", "smoke 3"), ("water",), condition="on-fire")
    page = health(view(table(), findings=(finding,)))
    assert "Healthy" not in page
    for words in (
        "on-fire",
        "It &lt;b&gt;burns",
        "<dd>fire 9</dd>",
        "<dd>smoke 3</dd>",
        "<dd>water</dd>",
        "sft",
    ):
        assert words in page


def test_a_run_that_cannot_be_examined_says_so(tmp_path: Path) -> None:
    out = made_up.journey(tmp_path / "run", rounds=1, questions=60)
    with (out / "base" / "metrics.jsonl").open("r+") as file:
        file.write("{nonsense")
    page = build(out).read_text(encoding="utf-8")
    assert "No stage has logged anything that could be examined" in page
    assert re.search(r"the run could not be examined: .*metrics\.jsonl:1: this is not JSON", page)


def test_a_single_stage_is_examined_under_the_journeys_name(tmp_path: Path) -> None:
    out = seed_journey(tmp_path / "run")
    stage = (out / "sft").resolve().rename(tmp_path / "mine")
    page = build(stage).read_text(encoding="utf-8")
    assert "<polygon" in page
    assert "Healthy" in page
