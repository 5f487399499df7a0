"""The alignment tax: runs are matched at a divergence, by lines worked by hand, and the bar has two sides."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def tax(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("alignment_tax")


def row(kl: float, graded: float, bpb: float) -> dict[str, float]:
    known = 0.9 - 10 * (bpb - 0.26)
    return {"kl": kl, "graded": graded, "greedy": graded + 0.5, "bpb": bpb, "known_accuracy": known}


# From SFT at KL 0 over PPO at 1 and 4: a step of the root is worth .2 or .1 of grade, .004 or .006 bits.
SFT, TIGHT, LOOSE = row(0, -0.6, 0.260), row(1, -0.4, 0.264), row(4, -0.3, 0.270)
SEED = {"SFT": SFT, "PPO-17": LOOSE, "PPO-10": TIGHT, "PPO-ptx-1": row(2.25, -0.37, 0.262)}


def test_a_curve_is_read_between_its_neighbours_over_the_root_of_the_kl(tax: ModuleType) -> None:
    curve = [SFT, LOOSE, TIGHT]
    assert tax.at(curve, 2.25) == pytest.approx(row(2.25, -0.35, 0.267) | {"kl": 2.5})
    assert tax.at(curve, 0.25) == pytest.approx(row(0.5, -0.5, 0.262))
    assert tax.at(curve, 4)["bpb"] == 0.270
    assert tax.at(curve, 4.01) is None
    assert tax.at([SFT], 1) is None
    assert tax.at([TIGHT, TIGHT], 1) == TIGHT


def test_gain_and_loss_are_changes_from_sft_beside_ppo_at_the_same_kl(tax: ModuleType) -> None:
    found = tax.compared(SEED)
    assert set(found) == {"PPO-ptx-1"}
    assert found["PPO-ptx-1"] == pytest.approx(
        {
            "kl": 2.25,
            **{"gain": 0.23, "PPO gain": 0.25, "gain, greedy": 0.23, "PPO gain, greedy": 0.25},
            **{"loss": 0.002, "PPO loss": 0.007, "known": -0.02, "PPO known": -0.07},
        }
    )
    near = tax.compared(SEED | {"PPO-ptx-1": row(0.25, -0.5, 0.260)})["PPO-ptx-1"]
    assert (near["PPO gain"], near["PPO loss"]) == pytest.approx((0.1, 0.002))
    assert tax.compared(SEED | {"PPO-ptx-1": row(5, 0.0, 0.260)}) == {}
    assert tax.compared({"SFT": SFT}) == {}


@pytest.mark.parametrize(
    ("gain", "loss", "said"),
    [
        (0.17, 0.0024, "keeps 85% of the gain at 40% of the loss (1 seeds): met"),
        (0.17, 0.0031, "keeps 85% of the gain at 52% of the loss (1 seeds): missed"),
        (0.15, 0.0024, "keeps 75% of the gain at 40% of the loss (1 seeds): missed"),
        (0.25, -0.003, "keeps 125% of the gain at -50% of the loss (1 seeds): met"),
    ],
)
def test_the_bar_is_held_to_gain_and_loss(tax: ModuleType, gain: float, loss: float, said: str) -> None:
    run = {"gain": gain, "loss": loss, "PPO gain": 0.2, "PPO loss": 0.006}
    assert tax.verdict("PPO-ptx-1", [run]) == f"- PPO-ptx-1 {said}"


def test_shares_are_of_the_seeds_means(tax: ModuleType) -> None:
    """The mean of the two seeds' own shares of the loss would be 55 %."""
    runs = [
        {"gain": 0.2, "loss": 0.001, "PPO gain": 0.2, "PPO loss": 0.001},
        {"gain": 0.1, "loss": 0.001, "PPO gain": 0.1, "PPO loss": 0.010},
    ]
    assert "keeps 100% of the gain at 18% of the loss (2 seeds): met" in tax.verdict("PPO-ptx-0.25", runs)


def test_no_loss_or_no_run_is_nothing_to_compare(tax: ModuleType) -> None:
    run = {"gain": 0.2, "loss": 0.0, "PPO gain": 0.2, "PPO loss": 0.0}
    assert "nothing to compare over 1 seeds" in tax.verdict("PPO-ptx-1", [run])
    assert "nothing to compare over 0 seeds" in tax.verdict("PPO-ptx-1", [])


def test_every_table_of_the_section_is_as_wide_as_its_head(tax: ModuleType) -> None:
    text = tax.section({"seed-0": SEED}, {"seed-0": tax.compared(SEED)}, "commit abc, one machine")
    assert "| seed-0 | PPO-10 | -0.400 | 0.100 | 0.860 | 0.2640 | 1.00 |  |" in text
    cells = "+0.2300 | +0.2500 | +0.2300 | +0.2500 | -0.0200 | -0.0700 | +0.0020 | +0.0070"
    assert f"| seed-0 | PPO-ptx-1 | 2.25 | {cells} |" in text
    assert "- PPO-ptx-1 keeps 92% of the gain at 29% of the loss (1 seeds): met" in text
    for table in (part.splitlines() for part in text.split("\n\n") if part.startswith("|")):
        assert len({line.count("|") for line in table}) == 1


def evaluation(path: Path, found: dict[str, float]) -> None:
    path.mkdir(parents=True)
    graded, greedy = {"mean": found["graded"]}, {"mean": found["greedy"]}
    known = {"mean": found["known_accuracy"]}
    tree = {
        "sampled": {"graded_reward": graded},
        "greedy": {"graded_reward": greedy, "known_accuracy": known},
    }
    tree |= {"kl": {"mean": found["kl"]}, "bpb": {"all": {"mean": found["bpb"]}}}
    (path / "evaluation.json").write_text(json.dumps(tree))


def test_what_is_there_is_not_run_again(
    tax: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One PPO run is finished; the other is but for its evaluation, which is the first thing to be run."""
    journey, out = tmp_path / "seed-7", tmp_path / "out"
    evaluation(journey / "evaluate-sft", SFT)
    (journey / "recipe.yaml").write_text("seed: 7")
    evaluation(out / "seed-7" / "evaluate-PPO-10", TIGHT)
    for name in ("PPO-10", "evaluate-PPO-10", "PPO-17"):
        (out / "seed-7" / f"{name}.seconds").write_text("90.0")
    started = list[list[str]]()

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        if command[0] != sys.executable:
            return subprocess.CompletedProcess(command, 0, stdout="abc")
        started.append(command)
        raise InterruptedError

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["alignment_tax.py", str(journey), "--out", str(out)])
    with pytest.raises(InterruptedError):
        tax.main()
    assert [command[3:4] + command[-1:] for command in started] == [
        ["evaluate", str(out / "seed-7" / "evaluate-PPO-17")]
    ]
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--table"])
    tax.main()
    assert len(started) == 1
    assert "| seed-7 | PPO-10 | -0.400 | 0.100 | 0.860 | 0.2640 | 1.00 | 1.5 |" in capsys.readouterr().out
    assert "PPO-17" not in (out / "alignment_tax.md").read_text()
    assert set(json.loads((out / "alignment_tax.json").read_text())["rows"]["seed-7"]) == {"SFT", "PPO-10"}
    assert (out / "bpb.svg").read_text().count('class="name"') == 2


def test_the_plot_shows_the_column_it_is_asked_for(tax: ModuleType) -> None:
    """The column's name decides the heights: more bits stand higher, whatever the grades."""
    rows = {"less": [row(1, 0.0, 0.25)], "more": [row(1, -0.5, 0.27)]}

    def heights(svg: str) -> dict[str, float]:
        """Of the large dots, each of which its name follows."""
        dots = re.findall(r'cy="([0-9.]+)" r="4.5"/>\n<text class="name"[^>]*>(\w+)<', svg)
        return {name: float(y) for y, name in dots}

    bits, grades = heights(tax.frontier(rows, "bpb", "bits per byte")), heights(tax.frontier(rows))
    assert bits["less"] > bits["more"]
    assert grades["less"] < grades["more"]
    assert ">bits per byte<" in tax.frontier(rows, "bpb", "bits per byte")
    assert ">graded reward of sampled answers<" in tax.frontier(rows)
