"""The benchmark harness with sides that only pretend: turns, medians, and a wrong answer that is fast."""

from __future__ import annotations

import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

# A step writes down whose turn it is; `wrong` gives another loss, `silent` dies.
PRETENDED = """
import os

def side(pace, settings, name, offset=0.0):
    pace.tell(tokens=[1, 2], **({"flops": 3.0} if name == "A" else {}))
    print("this goes to the log")
    step = 0
    while True:
        pace.start()
        with open(os.environ["TURNS"], "a") as turns:
            turns.write(name)
        pace.end(10, loss=5.0 - step + offset)
        step += 1

def ours(pace, settings):
    side(pace, settings, "A")

def theirs(pace, settings):
    side(pace, settings, "B")

def wrong(pace, settings):
    side(pace, settings, "B", 0.5)

def silent(pace, settings):
    raise ValueError("no such peer")
"""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    import importlib

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    (tmp_path / "pretended.py").write_text(PRETENDED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("TURNS", str(tmp_path / "turns"))
    return importlib.import_module("bench")


def race(bench: ModuleType, tmp_path: Path, theirs: str = "theirs", rounds: int = 3, steps: int = 2):  # type: ignore[no-untyped-def]
    from case import Case, steps_agree

    case = Case("help", "peer", "tok/s", 1, "ours", theirs, steps_agree("loss", 0.01, 4))
    start = [sys.executable, str(BENCHMARKS / "worker.py"), "pretended"]
    commands = [[*start, name, "{}"] for name in (case.ours, case.theirs)]
    sides = bench.race(commands, case, rounds=rounds, steps=steps, threads=1, logs=tmp_path / "logs")
    return case, sides


def test_sides_take_turns_and_the_warm_up_is_not_timed(bench: ModuleType, tmp_path: Path) -> None:
    _, (ours, theirs) = race(bench, tmp_path)
    assert (tmp_path / "turns").read_text() == "AABB" * 4
    assert len(ours.rounds) == len(theirs.rounds) == 3
    assert ours.facts["loss"] == [5.0 - step for step in range(8)]
    assert ours.told["tokens"] == [1, 2]
    assert min(ours.peak_mb, theirs.peak_mb) > 1
    assert "goes to the log" in next((tmp_path / "logs").glob("*-ours.log")).read_text()


def test_a_fast_wrong_answer_is_not_equal(bench: ModuleType, tmp_path: Path) -> None:
    case, sides = race(bench, tmp_path, rounds=1)
    assert bench.row_of(case, "S", *sides)["equal"] is True
    case, sides = race(bench, tmp_path, "wrong", rounds=1)
    row = bench.row_of(case, "S", *sides)
    assert row["equal"] is False
    assert "loss of step 0 is 5.00000 and 5.50000" in row["why"]
    assert "NO: loss of step 0" in bench.table([row])


def test_a_side_that_dies_shows_its_last_words(bench: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(bench.Broken, match="no such peer"):
        race(bench, tmp_path, "silent")


def test_rows_hold_medians_and_ratios(bench: ModuleType) -> None:
    from case import Case, Side

    def row(unit: str, ours: list[float], theirs: list[float]) -> dict[str, object]:
        sides = (Side({"flops": 2.0}, {}, ours, 10.0), Side({}, {}, theirs, 20.0))
        case = Case("sft", "peer", unit, 1, "ours", "theirs", lambda a, b: "")
        found: dict[str, object] = bench.row_of(case, "S", *sides)
        return found

    fast = row("tok/s", [100.0, 300.0, 1000.0], [10.0, 90.0, 60.0])
    assert {"work", "size", "peer", "ours", "theirs", "ratio", "equal", "unit"} <= set(fast)
    assert (fast["ours"], fast["theirs"], fast["ratio"], fast["flops"]) == (300.0, 60.0, 5.0, 600.0)
    assert row("s", [2.0, 4.0, 9.0], [8.0, 8.0, 8.0])["ratio"] == 2.0
    assert "300 (100-1,000)" in bench.table([fast])
    done = {"seconds": 4.0, "units": 8.0}
    assert (bench.value(done, "tok/s"), bench.value(done, "s")) == (2.0, 0.5)


def test_new_rows_replace_old_ones_of_the_same_benchmark(bench: ModuleType) -> None:
    def row(work: str, ours: float, precision: str = "fp32") -> dict[str, object]:
        return {"work": work, "size": "S", "peer": "p", "precision": precision, "ours": ours}

    old = [row("sft", 1.0), row("rollout", 2.0), row("sft", 4.0, "bf16")]
    found = bench.merged(old, [row("sft", 3.0)])
    assert [(r["work"], r["precision"], r["ours"]) for r in found] == [
        ("rollout", "fp32", 2.0),
        ("sft", "bf16", 4.0),
        ("sft", "fp32", 3.0),
    ]


def test_comparisons_notice_what_differs(bench: ModuleType) -> None:
    from case import Side, all_of, means_agree, steps_agree, told_same

    a = Side({"greedy": [1, 2]}, {"loss": [3.0, 2.0, 1.0], "length": [30.0, 32.0, 31.0, 33.0]})
    b = Side({"greedy": [1, 3]}, {"loss": [3.0, 2.0, 1.2], "length": [31.0, 32.0, 30.0, 34.0]})
    far = Side({}, {"length": [50.0, 52.0, 51.0, 53.0], "loss": [float("nan")] * 3})
    assert steps_agree("loss", 0.01, 2)(a, b) == ""
    assert "step 2" in steps_agree("loss", 0.01, 3)(a, b)
    assert steps_agree("loss", 0.01, 3)(a, far) != ""
    assert "only 0" in steps_agree("accuracy", 0.01, 3)(a, b)
    assert means_agree("length")(a, b) == ""
    assert "31.5" in means_agree("length")(a, far)
    assert "greedy" in told_same("greedy")(a, b)
    assert told_same("greedy")(a, a) == ""
    assert told_same("tokens")(a, b) != ""
    assert "greedy" in all_of(means_agree("length"), told_same("greedy"))(a, b)


def test_an_absent_peer_is_named_with_what_to_do(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BLOOMERY_TRL", str(tmp_path / "nowhere"))
    monkeypatch.setenv("BLOOMERY_NANOGPT", str(tmp_path / "nowhere"))
    with pytest.raises(bench.Missing, match="make peers"):
        bench.interpreter("trl")
    with pytest.raises(bench.Missing, match="git clone"):
        bench.checkout("nanoGPT")


def test_every_work_declares_its_cases(bench: ModuleType) -> None:
    for work in bench.WORKS:
        declared = bench.cases([work], "S", None)
        assert declared, work
        assert {case.work for case in declared} == {work}
        assert len({(case.peer, case.precision) for case in declared}) == len(declared)


def test_a_device_is_waited_for_where_a_round_begins_and_ends(bench: ModuleType) -> None:
    from io import StringIO

    from worker import Pace

    said = StringIO()
    pace, waits = Pace(StringIO('{"steps": 3}\n'), said), list[int]()
    pace.sync = lambda: waits.append(pace.left)
    for _ in range(3):
        pace.start()
        pace.end(1)
    assert waits == [3, 0]
    assert '"units": 3.0' in said.getvalue()


def test_both_ways_to_log_probs_learn_the_same(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vocabulary's axis: logits in pieces, and all at once; losses step by step."""
    from io import StringIO

    import scaling
    from case import Shape
    from worker import Finished, Pace

    monkeypatch.setitem(scaling.SIZES, "S", Shape(64, 1, 16))
    assert scaling.AXES["whole"] == scaling.AXES["vocabulary"]
    losses = {}
    for axis in ("vocabulary", "whole"):
        pace = Pace(StringIO('{"steps": 3}\n'), StringIO())
        with pytest.raises(Finished):
            scaling.vocabulary(pace, {axis: 50, "precision": "fp32", "threads": 1})
        losses[axis] = pace.facts["loss"]
        assert pace.units == 3 * 16 * 16
    assert losses["vocabulary"] == pytest.approx(losses["whole"], abs=1e-4)
    assert losses["whole"][2] != pytest.approx(losses["whole"][0], abs=1e-3)


def test_one_step_off_is_the_only_difference(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    module, told = importlib.import_module("one_step_off"), []
    monkeypatch.setattr(module, "race", lambda commands, case, **how: told.append((commands, case)))
    module.both("grpo", Namespace(size="S", precision="bf16", threads=2, steps=1, rounds=1))
    ((ahead, usual), case) = told[0]
    assert case.unit == "episodes/s"
    assert ahead[:-1] == usual[:-1]
    differ = {
        name: (value, json.loads(usual[-1])[name])
        for name, value in json.loads(ahead[-1]).items()
        if value != json.loads(usual[-1])[name]
    }
    assert set(differ) == {"one_step_off", "scratch"}, "two processes must not write to one place"
    assert differ["one_step_off"] == (True, False)
