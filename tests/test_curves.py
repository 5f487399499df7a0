"""The pictures of docs/algorithms: what is averaged, by hand; that they are well-formed and stand alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from bloomery.report.plots import Series

ROOT = Path(__file__).parent.parent
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def curves(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("curves")


def run(place: Path, rows: list[dict[str, Any]]) -> Path:
    place.mkdir(parents=True)
    (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def test_what_every_step_has_is_averaged_and_what_few_have_is_not(curves: ModuleType, tmp_path: Path) -> None:
    rows = [{"step": i, "loss": float(i % 2)} | ({"eval": i} if i in (9, 29) else {}) for i in range(30)]
    made = run(tmp_path / "a", rows)
    assert curves.logged(made, "loss")[1:3] == [(2, pytest.approx(1 / 3)), (3, pytest.approx(2 / 3))]
    assert curves.logged(made, "eval") == [(10, 9), (30, 29)]
    assert curves.logged(made, "nothing") == []


def test_seeds_are_joined_where_all_have_been(curves: ModuleType) -> None:
    found = curves.over_seeds("a", [[(1, 0.0), (2, 4.0)], [(1, 2.0), (2, 5.0), (3, 9.0)]], "s1")
    assert (found.x, found.y, found.low, found.high) == ([1, 2], [1.0, 4.5], [0.0, 4.0], [2.0, 5.0])


def test_every_page_is_drawn(curves: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("rewards/accuracies", "logps/chosen", curves.GOLD, curves.KL, "reward", "accuracy", "loss")
    rows = [{"step": i} | {name: i / (9 + k) for k, name in enumerate(names)} for i in range(20)]
    rows[10] |= {"eval_accuracy": 0.5, "eval_loss": 1.0, "val/bpb": 0.25}
    journeys = [tmp_path / "runs" / f"seed-{seed}" for seed in range(2)]
    for journey in journeys:
        for place in (journey, tmp_path / "fp32" / journey.name):
            for stage in ("base", "sft", "reward-1"):
                run(place / stage, rows)
        made = tmp_path / "methods" / journey.name
        for name in ("PPO", "PPO-ptx", "GRPO", "RLOO", "DPO", "IPO", "KTO", "rejection"):
            run(made / name, rows)
        table = [
            {"sqrt_kl": n, **{k: {"mean": n} for k in ("proxy_reward", "graded_reward")}} for n in (0, 1)
        ]
        (made / "best-of").mkdir()
        (made / "best-of/best_of_n.json").write_text(json.dumps({"table": table}))
    out = tmp_path / "out"
    told = ["curves.py", *map(str, journeys), "--methods", str(tmp_path / "methods"), "--out", str(out)]
    told += ["--fp32", str(tmp_path / "fp32")]
    monkeypatch.setattr("sys.argv", told)
    curves.main()
    for page in curves.PAGES:
        text = (out / f"curve-{page}.svg").read_text()
        tree = ElementTree.fromstring(text)
        assert len(tree.findall(f"{SVG}svg")) == 2, page
        assert "var(--" not in text, "no style sheet is at hand"
        shown = (ROOT / "docs" / "algorithms" / f"{page}.md").read_text()
        assert f"](../plots/curve-{page}.svg)" in shown
        assert (ROOT / "docs" / "plots" / f"curve-{page}.svg").exists()

    tree = ElementTree.parse(out / "curve-precision.svg").getroot()
    assert len(tree.findall(f"{SVG}svg")) == 3


def test_names_stand_in_the_colour_of_their_curves(curves: ModuleType) -> None:
    from pictures import Panel, picture  # type: ignore[import-not-found]

    two = [Series("left", [1, 2], [1.0, 2.0], "s1"), Series("right", [1, 2], [2.0, 1.0], "s2")]
    tree = ElementTree.fromstring(picture(Panel("What", "step", two)))
    told = {span.text: span.get("fill") for span in tree.iter(f"{SVG}tspan")}
    assert told == {"What": None, "left": curves.COLOURS["s1"], "right": curves.COLOURS["s2"]}
    groups = [g.get("class") or "" for g in tree.iter(f"{SVG}g")]
    assert not any("hover" in name for name in groups), "an image has no pointer"
