"""Compared: a run directory with its manifest, a run that was broken off and resumed with one that was not,
byte for byte, and what a run refuses with what it must refuse."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bloomery import lineage
from bloomery.errors import ArtifactError, BloomeryError
from bloomery.recipe import InputPath, Section, load
from bloomery.train import checkpoint
from bloomery.train.metrics import read_metrics
from bloomery.train.optim import adamw
from bloomery.train.run import Run, Stopped, discard
from bloomery.train.step import apply
from bloomery.types import Policy


class Toy(Section):
    seed: int = 3
    steps: int = 10
    data: InputPath | None = None


class Crash(Exception):
    pass


Hook = Callable[[int], None]


def nothing(step: int) -> None:
    """No hook."""


def toy(
    out: Path, recipe: Toy | None = None, hook: Hook = nothing, every: int = 3, **settings: object
) -> Run:
    """A stage in small: fit a linear map; `hook` is called in the middle of each step."""
    recipe = recipe or Toy()
    with Run(out, stage="toy", recipe=recipe, checkpoint_every=every, **settings) as run:  # type: ignore[arg-type]
        torch.manual_seed(recipe.seed)
        model = nn.Linear(4, 4)
        optimizer = adamw(model, lr=0.01)
        run.track(model=model, optimizer=optimizer)
        run.log(0, {"eval": 1.0})
        for step in run.steps(recipe.steps):
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            loss = (model(x) - x).square().mean()
            loss.backward()
            hook(step)
            norm = apply(optimizer, 1.0, guard=run.guard, loss=loss, batch=step)
            run.state["sum"] = run.state.get("sum", 0.0) + loss.item()
            run.log(step, {"loss": loss, "grad_norm": norm, "sum": run.state["sum"]})
        run.log(recipe.steps, {"eval": 2.0})
        save_file(model.state_dict(), out / "model.safetensors")
        run.finish(summary="A toy.")
    return run


def at(wanted: int, do: Callable[[], None]) -> Hook:
    return lambda step: do() if step == wanted else None


def crash() -> None:
    raise Crash


def product(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in ("model.safetensors", "metrics.jsonl", "recipe.yaml")}


# --------------------------------------------------------------------------------------- a finished run


def test_a_finished_run_is_sealed_and_says_what_it_is(tmp_path: Path) -> None:
    out = tmp_path / "toy-run"
    toy(out)
    assert lineage.verify(out) == []
    assert sorted(path.name for path in out.iterdir()) == [
        "MANIFEST.json",
        "README.md",
        "lineage.json",
        "metrics.jsonl",
        "model.safetensors",
        "recipe.yaml",
        "trainer_state.json",
    ]
    assert load(Toy, out / "recipe.yaml") == Toy()
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, *range(10), 10]
    record = lineage.read(out)
    assert (record.stage, record.name, record.seed) == ("toy", "toy-run", 3)
    assert record.key == lineage.stage_key("toy", Toy())
    assert record.code == lineage.code_version()
    state = json.loads((out / "trainer_state.json").read_text())
    counts = [state[name] for name in ("global_step", "max_steps", "skipped_updates", "resumed_at")]
    assert counts == [10, 10, 0, []]
    assert state["seconds"] > 0


def test_what_its_inputs_know_is_passed_on(tmp_path: Path) -> None:
    raw = tmp_path / "raw.txt"
    raw.write_text("ore")
    label, reward = tmp_path / "label", tmp_path / "reward"
    with Run(label, stage="label", recipe=Toy(data=raw)) as run:
        (label / "rankings.jsonl").write_text("{}\n")
        run.line("no training here")
        run.finish(
            people=[{"id": "ann", "kind": "simulated", "rankings": 4}],
            teachers=[Policy(id="judge", digest="d")],
        )
    source = lineage.digest_file(label / "rankings.jsonl")
    for out, recipe in ((reward, Toy(data=label / "rankings.jsonl")), (tmp_path / "rl", Toy(data=reward))):
        with Run(out, stage="s", recipe=recipe) as run:
            run.finish(people=[{"id": "ann", "kind": "simulated", "rankings": 4}])
        record = lineage.read(out)
        assert [(p.id, p.rankings, p.given) for p in record.people] == [("ann", 4, {source: 4})]
        assert record.teachers == (Policy(id="judge", digest="d"),)
    path = [node.path.name for node in lineage.everyone(lineage.ancestry(tmp_path / "rl"))]
    assert path == ["rl", "reward", "rankings.jsonl", "raw.txt"]
    assert "| ann | simulated | 4 |" in (tmp_path / "rl" / "README.md").read_text()


def test_inputs_can_be_named_and_lists_are_numbered(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    inputs = {"model": tmp_path / "a", "rest": [tmp_path / "a", tmp_path / "b"], "none": None}
    with Run(tmp_path / "out", stage="s", recipe=Toy(), inputs=inputs) as run:
        run.finish()
    assert [(p.role, p.path) for p in lineage.read(tmp_path / "out").inputs] == [
        ("model", "../a"),
        ("rest[0]", "../a"),
        ("rest[1]", "../b"),
    ]


def test_the_card_says_what_from_whom_how_good_and_the_limits(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tok"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    out = tmp_path / "out"
    with Run(out, stage="sft", recipe=Toy()) as run:
        run.finish(
            tokenizer,
            data=[{"source": "stories", "licence": "CC0"}],
            summary="It tells stories.",
            metrics={"accuracy": 0.75, "broken": None},
            limits=["English only."],
        )
    text = (out / "README.md").read_text()
    for part in (
        "# out\n\nIt tells stories.",
        "stage `sft`",
        "seed 3",
        "- source: stories, licence: CC0",
        "| accuracy | 0.75 |",
        "| broken | not finite |",
        "- English only.",
    ):
        assert part in text
    assert "## People" not in text
    assert (out / "tokenizer.json").exists()
    assert lineage.read(out).data == ({"source": "stories", "licence": "CC0"},)


# ------------------------------------------------------------------------------------ broken and resumed


def test_a_broken_run_resumed_is_the_unbroken_run_byte_for_byte(tmp_path: Path, capsys) -> None:
    toy(tmp_path / "whole")
    out = tmp_path / "broken"
    for step in (1, 4, 8, 9):
        with pytest.raises(Crash):
            toy(out, hook=at(step, crash))
        assert not lineage.complete(out)
    toy(out)
    assert product(out) == product(tmp_path / "whole")
    assert lineage.digest_path(out) == lineage.digest_path(tmp_path / "whole")
    assert lineage.verify(out) == []
    assert checkpoint.checkpoints(out) == []
    assert json.loads((out / "trainer_state.json").read_text())["resumed_at"] == [3, 6, 9]
    assert "toy: going on from checkpoint-9" in capsys.readouterr().err


def test_without_the_checkpoints_state_the_comparison_would_fail(tmp_path: Path, monkeypatch) -> None:
    """Planted fault: a restore that forgets the optimizer is seen by the comparison above."""
    toy(tmp_path / "whole")
    with pytest.raises(Crash):
        toy(tmp_path / "broken", hook=at(5, crash))
    monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", lambda self, state: None)
    toy(tmp_path / "broken")
    assert product(tmp_path / "broken") != product(tmp_path / "whole")


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(tmp_path: Path, capsys) -> None:
    toy(tmp_path / "whole")
    out = tmp_path / "broken"
    with pytest.raises(Crash):
        toy(out, hook=at(8, crash))
    file = out / "checkpoint-6" / "optimizer.optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    toy(out)
    assert product(out) == product(tmp_path / "whole")
    err = capsys.readouterr().err
    assert "checkpoint-6 is damaged (optimizer.optimizer.safetensors: " in err
    assert "going on from checkpoint-3" in err


def test_when_no_checkpoint_is_intact_it_says_so_and_starts_again(tmp_path: Path, capsys) -> None:
    toy(tmp_path / "whole")
    out = tmp_path / "broken"
    with pytest.raises(Crash):
        toy(out, hook=at(8, crash))
    for path in checkpoint.checkpoints(out):
        (path / "state.json").unlink()
    toy(out)
    assert product(out) == product(tmp_path / "whole")
    assert "no checkpoint is intact: starting again from the first step" in capsys.readouterr().err


def test_asked_never_to_resume_it_starts_again(tmp_path: Path, capsys) -> None:
    toy(tmp_path / "whole")
    with pytest.raises(Crash):
        toy(tmp_path / "broken", hook=at(8, crash))
    toy(tmp_path / "broken", resume="never")
    assert product(tmp_path / "broken") == product(tmp_path / "whole")
    assert "going on" not in capsys.readouterr().err
    with pytest.raises(ArtifactError, match="this run is finished"):
        discard(tmp_path / "broken")


def test_a_discarded_run_starts_again(tmp_path: Path, capsys) -> None:
    toy(tmp_path / "whole")
    with pytest.raises(Crash):
        toy(tmp_path / "broken", hook=at(8, crash))
    (tmp_path / "broken" / "samples").mkdir()
    discard(tmp_path / "broken")
    assert [path.name for path in (tmp_path / "broken").iterdir()] == ["lineage.json"]
    toy(tmp_path / "broken")
    assert product(tmp_path / "broken") == product(tmp_path / "whole")
    assert "going on" not in capsys.readouterr().err
    discard(tmp_path / "nothing there")


def test_checkpoints_come_by_time_too_or_only_on_signals(tmp_path: Path) -> None:
    for name, settings, kept in (
        ("timed", {"every": 0, "checkpoint_seconds": 0.0}, ["checkpoint-5", "checkpoint-4"]),
        ("never", {"every": 0}, []),
        ("more", {"every": 1, "keep": 3}, ["checkpoint-5", "checkpoint-4", "checkpoint-3"]),
    ):
        with pytest.raises(Crash):
            toy(tmp_path / name, hook=at(5, crash), **settings)
        assert [path.name for path in checkpoint.checkpoints(tmp_path / name)] == kept


def test_leftovers_of_a_save_are_removed_at_the_next_start(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        toy(tmp_path / "out", hook=at(4, crash))
    (tmp_path / "out" / "checkpoint-4.tmp-1234").mkdir()
    with pytest.raises(Crash):
        toy(tmp_path / "out", hook=at(4, crash))
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-3"]


# ---------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_saves_and_exits(tmp_path: Path, number: int, code: int, capsys) -> None:
    before = signal.getsignal(number)
    toy(tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(Stopped) as caught:
        toy(out, hook=at(4, lambda: os.kill(os.getpid(), number)), every=0)
    assert caught.value.code == code
    assert [path.name for path in checkpoint.checkpoints(out)] == ["checkpoint-5"]
    said = f"stopped by {signal.Signals(number).name}; the same command goes on from checkpoint-5"
    assert said in capsys.readouterr().err
    assert signal.getsignal(number) is before
    toy(out, every=0)
    assert product(out) == product(tmp_path / "whole")


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("still here")

    with pytest.raises(Stopped):
        toy(tmp_path / "out", hook=at(4, twice))
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "out")] == ["checkpoint-3"]


def test_a_stage_that_does_not_train_stops_at_once(tmp_path: Path) -> None:
    def world() -> None:
        with Run(tmp_path / "out", stage="world", recipe=Toy()):
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("still here")

    with pytest.raises(Stopped) as caught:
        world()
    assert caught.value.code == 143


def test_a_signal_in_the_last_step_of_a_loop_left_early_is_not_forgotten(tmp_path: Path) -> None:
    def early(out: Path) -> None:
        with Run(out, stage="s", recipe=Toy()) as run:
            for _ in run.steps(3):
                os.kill(os.getpid(), signal.SIGTERM)
                break
            run.finish()

    with pytest.raises(Stopped):
        early(tmp_path / "out")
    assert not lineage.complete(tmp_path / "out")


# ---------------------------------------------------------------------------------------------- refusals


def test_what_is_not_this_run_is_left_alone(tmp_path: Path) -> None:
    finished, foreign, broken, file = (tmp_path / name for name in ("finished", "foreign", "broken", "file"))
    toy(finished)
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    file.write_text("x")
    with pytest.raises(Crash):
        toy(broken, hook=at(4, crash))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for out, recipe, complaint in (
        (finished, Toy(), "already holds a finished run"),
        (foreign, Toy(), "not empty and holds no run of ours"),
        (file, Toy(), "the output directory is a file"),
        (broken, Toy(seed=4), "an unfinished run of another recipe"),
    ):
        for resume in ("auto", "never"):
            with pytest.raises(ArtifactError, match=complaint):
                toy(out, recipe, resume=resume)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_input_that_changed_under_an_unfinished_run_is_noticed(tmp_path: Path) -> None:
    data = tmp_path / "data.txt"
    data.write_text("one")
    with pytest.raises(Crash):
        toy(tmp_path / "out", Toy(data=data), hook=at(4, crash))
    data.write_text("two")
    with pytest.raises(ArtifactError, match="another recipe and other inputs"):
        toy(tmp_path / "out", Toy(data=data))
    with pytest.raises(ArtifactError, match="no such file"):
        toy(tmp_path / "other", Toy(data=tmp_path / "missing"))


def test_changed_code_is_said_when_a_run_goes_on(tmp_path: Path, monkeypatch, capsys) -> None:
    with pytest.raises(Crash):
        toy(tmp_path / "out", hook=at(4, crash))
    monkeypatch.setattr(lineage, "code_version", lambda: "newer")
    toy(tmp_path / "out")
    assert "the code has changed since this run began" in capsys.readouterr().err


def test_two_processes_do_not_work_in_one_directory(tmp_path: Path) -> None:
    """Locks belong to open files, so a second Run of this very process stands for another process."""

    def second(step: int) -> None:
        with pytest.raises(ArtifactError, match="another process is working in this directory"):
            toy(tmp_path / "out")
        with pytest.raises(ArtifactError, match="another process is working in this directory"):
            discard(tmp_path / "out")

    toy(tmp_path / "out", hook=at(4, lambda: second(4)))
    assert lineage.complete(tmp_path / "out")


def test_what_an_unfinished_run_without_checkpoints_left_is_not_built_upon(tmp_path: Path) -> None:
    def label(out: Path, fail: bool) -> None:
        with Run(out, stage="label", recipe=Toy()) as run:
            with (out / "store.db").open("a") as file:
                file.write("a row\n")
            (out / "inner").mkdir()
            if fail:
                raise Crash
            run.finish()

    with pytest.raises(Crash):
        label(tmp_path / "out", True)
    assert (tmp_path / "out" / "store.db").exists()
    label(tmp_path / "out", False)
    assert (tmp_path / "out" / "store.db").read_text() == "a row\n"


def test_killed_after_the_last_step_nothing_is_trained_again(tmp_path: Path, monkeypatch) -> None:
    toy(tmp_path / "whole")
    out = tmp_path / "out"
    monkeypatch.setattr(Run, "finish", lambda self, **card: crash())
    with pytest.raises(Crash):
        toy(out)
    monkeypatch.undo()
    toy(out, hook=lambda step: crash())
    assert product(out) == product(tmp_path / "whole")


def test_checkpoints_stay_until_the_seal_is_written(tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(
            lineage, "write_text", lambda path, text: crash() if path.name == "MANIFEST.json" else None
        )
        patch.setattr(checkpoint, "write_manifest", lambda path: None)
        with pytest.raises(Crash):
            toy(out)
    assert [path.name for path in checkpoint.checkpoints(out)] == ["checkpoint-10", "checkpoint-9"]


def test_other_arithmetic_is_said_when_a_run_goes_on(tmp_path: Path, monkeypatch, capsys) -> None:
    with pytest.raises(Crash):
        toy(tmp_path / "out", hook=at(4, crash))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    toy(tmp_path / "out")
    assert "and is now 77: the result may differ in the last bits" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------- broken math


def test_not_finite_metrics_are_said_and_counted(tmp_path: Path, capsys) -> None:
    with Run(tmp_path / "out", stage="s", recipe=Toy()) as run:
        run.log(0, {"loss": float("nan"), "lr": 1.0, "none": None})
        run.finish()
    assert "s: step 0: not finite: loss" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["non_finite_metrics"] == 1


def test_skipped_updates_are_counted_across_a_resume(tmp_path: Path) -> None:
    """Gradients spoilt at steps 1, 5 and 6; the run breaks at 7 and resumes from 6."""

    def run(out: Path, stop: bool) -> Run:
        with Run(out, stage="toy", recipe=Toy(), checkpoint_every=3) as run:
            model = nn.Linear(2, 2)
            optimizer = adamw(model, lr=0.1)
            run.track(model=model, optimizer=optimizer)
            for step in run.steps(10):
                if stop and step == 7:
                    raise Crash
                model(torch.ones(1, 2)).sum().backward()
                loss = float("nan") if step in (1, 5, 6) else 0.0
                apply(optimizer, 1.0, guard=run.guard, loss=loss)
            run.finish()
        return run

    with pytest.raises(Crash):
        run(tmp_path / "out", True)
    assert run(tmp_path / "out", False).guard.skipped == 3


def test_a_run_that_is_not_finite_for_long_ends_naming_the_batch(tmp_path: Path) -> None:
    def run(out: Path) -> None:
        with Run(out, stage="toy", recipe=Toy()) as run:
            model = nn.Linear(2, 2)
            optimizer = adamw(model, lr=0.1)
            for step in run.steps(10):
                model(torch.ones(1, 2)).sum().backward()
                if step >= 3:
                    model.bias.grad[0] = float("inf")
                apply(optimizer, 1.0, guard=run.guard, batch=step)

    with pytest.raises(BloomeryError, match="batch 7: 5 updates in a row"):
        run(tmp_path / "out")
