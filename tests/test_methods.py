"""The scoreboard of methods: what a row is called is what runs, budgets are equal, cells are by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bloomery.stages.grpo import Grpo
from bloomery.stages.ppo import Ppo
from bloomery.stages.prefer_online import PreferOnline
from bloomery.stages.rejection import Rejection

ROOT = Path(__file__).parent.parent
EPISODES = 5120


@pytest.fixture
def methods(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("methods")


def settings(methods: ModuleType, name: str) -> dict[str, Any]:
    command, changed = methods.METHODS[name]
    stage = {"grpo": Grpo, "ppo": Ppo, "prefer-online": PreferOnline, "rejection": Rejection}[command]
    assert set(changed) <= set(stage.model_fields)
    usual = {key: field.get_default(call_default_factory=True) for key, field in stage.model_fields.items()}
    return {**usual, **changed}


@pytest.mark.parametrize("name", ["GRPO", "RLOO"])
def test_what_is_called_by_a_name_is_what_the_page_calls_so(methods: ModuleType, name: str) -> None:
    page = (ROOT / "docs" / "algorithms" / "grpo.md").read_text()
    (line,) = (line for line in page.splitlines() if line.startswith(f"| {name} |"))
    _, _, advantage, loss, averaging, divergence, _ = (cell.strip() for cell in line.split("|"))
    found = settings(methods, name)
    assert f"`{found['advantage']}`" == advantage
    assert loss.startswith(f"`{found['loss']}`")
    assert f"`{found['averaging']}`" == averaging
    assert f"`kl_in: {found['kl_in']}`" in divergence
    assert found["epochs"] == 1
    assert (found["minibatches"] == 1) == ("one pass in one minibatch" in loss)


def test_all_that_sample_draw_as_many_answers(methods: ModuleType) -> None:
    for name in ("rejection", "online DPO", "RLOO", "GRPO", "PPO", "PPO-ptx"):
        found = settings(methods, name)
        assert found["steps"] * found["prompts_per_step"] * found.get("samples", 1) == EPISODES, name


def test_cells_by_hand(methods: ModuleType) -> None:
    assert methods.spread([], ".3f") == ""
    assert methods.spread([0.5], "+.3f") == "+0.500"
    assert methods.spread([1.0, 3.0], ".1f") == "2.0 (1.0 to 3.0)"
    # a standard deviation of 1 over the root of 3, times 4.303
    assert methods.half([1.0, 2.0, 3.0]) == pytest.approx(2.4843, abs=1e-4)
    # 0 and 1 in turn, twenty times: a deviation of the root of 20 / 76, of 2.262 tables know no more
    assert methods.half([0.0, 1.0] * 10) == pytest.approx(0.2595, abs=1e-4)


def test_a_gain_is_over_the_same_seed_s_sft_model(methods: ModuleType) -> None:
    rows = {"sft": [{"graded": x} for x in (-1.0, 0.0, 2.0)], "a": [{"graded": x} for x in (0.0, 2.0, 5.0)]}
    assert methods.gain("a", rows) == "+2.000 ± 2.484"
    assert methods.gain("sft", rows) == ""
    assert methods.gain("a", {**rows, "a": rows["a"][:2]}) == "", "which seeds they are is not known"


def test_time_is_the_sum_of_all_sittings(
    methods: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sittings of 5 and 7 seconds, the first interrupted; a third is none."""
    clock, ends = [0.0], [(5.0, KeyboardInterrupt), (7.0, None)]

    def run(command: list[str], **options: Any) -> None:
        took, error = ends.pop(0)
        clock[0] += took
        if error:
            raise error

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(methods.time, "perf_counter", lambda: clock[0])
    out = tmp_path / "GRPO"
    with pytest.raises(KeyboardInterrupt):
        methods.make("grpo", {}, out, table=False)
    assert methods.make("grpo", {}, out, table=True) is None
    clock[0] += 100.0
    assert methods.make("grpo", {}, out, table=False) == 12.0
    assert methods.make("grpo", {}, out, table=False) == 12.0


def test_the_table_says_what_it_must_be_read_with(
    methods: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Best-of-n has the SFT model's bits per byte, and the base model no divergence."""
    journey, out = tmp_path / "seed-0", tmp_path / "out" / "seed-0"
    for name, bits, kl in (("base", 0.25, None), ("sft", 0.26, 0.0)):
        (journey / f"evaluate-{name}").mkdir(parents=True)
        graded = {"graded_reward": {"mean": -0.5}}
        tree = {"sampled": graded, "greedy": graded, "bpb": {"all": {"mean": bits}}}
        tree |= {"kl": None if kl is None else {"mean": kl}}
        (journey / f"evaluate-{name}" / "evaluation.json").write_text(json.dumps(tree))
    (journey / "recipe.yaml").write_text("seed: 0")
    (out / "best-of").mkdir(parents=True)
    (out / "best-of.seconds").write_text("60.0")
    row = {"graded_reward": {"mean": 0.1}, "kl": 1.8, "known_accuracy": {"mean": 0.9}}
    (out / "best-of" / "best_of_n.json").write_text(
        json.dumps({"table": [{"n": n, **row} for n in (1, 4, 16)]})
    )
    monkeypatch.setattr(sys, "argv", ["methods.py", str(journey), "--out", str(out.parent), "--table"])
    methods.main()
    said = capsys.readouterr().out
    assert "| base |  | -0.500 | -0.500 |  |  |  |  |  | 0.250 |  | 1 |" in said
    assert "| best of 16 | +0.600 | +0.100 |  | 1.80 |  | 90.0 |  |  | 0.260 | 1.0 | 1 |" in said
    assert said.endswith(f"\n{methods.ABOUT}\n")
    for promise in ("sampled", "base model has no KL", "95 % interval"):
        assert promise in " ".join(methods.ABOUT.split())


def test_a_name_covers_no_other_and_no_dot(methods: ModuleType) -> None:
    taken = [(44.0, 56.0, 104.0), (70.0, 82.0, 106.0)]  # its own dot, and one to the right
    assert methods.beside(50.0, 104.0, 30.0, taken) == (-1, 104.0)
    assert taken[-1] == (12.0, 42.0, 104.0)
    assert methods.beside(50.0, 104.0, 30.0, taken) == (-1, 116.0), "12 below the name that is there"
    assert methods.beside(50.0, 104.0, 10.0, taken) == (1, 104.0), "short enough to end before the other dot"
