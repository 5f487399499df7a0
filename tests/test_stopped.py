"""A run made again with a stop rule: nothing else differs, and the table says what each policy is worth."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from bloomery.errors import ArtifactError

RECIPE = {"policy": "/somewhere/sft", "kl_coef": 0.0, "steps": 5, "seed": 7, "stop_rule": None}
WORTH = {"sft": -0.6, "ended": -0.3, "whole": -1.1}


@pytest.fixture
def stopped(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("stopped")


def a_run(path: Path, steps: int, **changed: float) -> Path:
    path.mkdir(parents=True)
    rows = [
        {"step": step, "objective/scores": step / 7, "timing/generation": 10 * steps + step, "eps": 1.0}
        for step in range(1, steps + 1)
    ]
    rows[-1] |= changed
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return path


def evaluated(path: Path, worth: float) -> None:
    path.mkdir(parents=True)
    grade = {"graded_reward": {"mean": worth}}
    tree = {"sampled": grade, "greedy": grade, "kl": {"mean": 2.0}, "bpb": {"all": {"mean": 0.25}}}
    (path / "evaluation.json").write_text(json.dumps(tree))


def test_only_the_clocks_may_differ(stopped: ModuleType, tmp_path: Path) -> None:
    whole, short = a_run(tmp_path / "whole", 5), a_run(tmp_path / "short", 3, eps=9.0)
    assert [row["step"] for row in stopped.same_until_ended(whole, short)] == [1, 2, 3]
    other = a_run(tmp_path / "other", 3, **{"objective/scores": 3 / 7 + 1e-12})
    with pytest.raises(
        ArtifactError, match=r"step 3 is another than without the rule: \['objective/scores'\]"
    ):
        stopped.same_until_ended(whole, other)


def test_what_is_run_and_what_is_told(
    stopped: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stages are replaced by what they would leave behind."""
    lab, out = tmp_path / "seed-7", tmp_path / "out"
    a_run(lab / "ppo-half-0", 5)
    (lab / "reward-half").mkdir()
    (lab / "reward-half" / "evaluation.json").write_text(json.dumps({"verdict": {"kl": 1.5}}))
    given = dict[str, dict[str, Any]]()

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        if command[0] == sys.executable:
            recipe, to = (Path(command[command.index(flag) + 1]) for flag in ("--config", "--out"))
            given[to.name] = yaml.safe_load(recipe.read_text())
            if command[3] == "ppo":
                a_run(to, 3)
            else:
                ends = {"evaluate-sft": "sft", "evaluate-ppo-half-0": "whole"}
                evaluated(to, WORTH[ends.get(to.name, "ended")])
        return subprocess.CompletedProcess(command, 0, stdout="abc")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["stopped.py", str(lab), "--against", "half", "--out", str(out)])
    stopped.main()
    again, within = "ppo-half-0-held-out", "ppo-half-0-held-out-in-budget"
    assert given[again] == RECIPE | {"stop_rule": {"watch": "held-out"}}
    assert given[within] == RECIPE | {"stop_rule": {"watch": "held-out", "budget": 1.5}}
    models = {name: recipe["model"] for name, recipe in given.items() if "model" in recipe}
    assert models == {
        "evaluate-sft": str(lab / "sft"),
        "evaluate-ppo-half-0": str(lab / "ppo-half-0"),
        **{f"evaluate-{name}": str(out / "seed-7" / name) for name in (again, within)},
    }
    assert {given[name]["world"] for name in models} == {str(lab / "world")}
    said = capsys.readouterr().out
    assert "| half | SFT | 0 | -0.600 | -0.600 | 2.00 |" in said
    assert "| half | held-out | 3 | -0.300 | -0.300 | 2.00 |" in said
    assert "| half | held-out in budget | 3 | -0.300 | -0.300 | 2.00 |" in said
    assert "| half | no rule | 5 | -1.100 | -1.100 | 2.00 |" in said
    assert len({line.count("|") for line in said.splitlines() if line.startswith("|")}) == 1

    given.clear()
    stopped.main()
    assert given == {}, "what is finished is not run again"
    assert (out / "stopped.md").read_text() in said
