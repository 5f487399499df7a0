"""The whole journey, tiny: every command on what it made, and the same weights byte for byte after a kill -9
in the middle of each training stage as without one."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bloomery.cli import main
from bloomery.lineage import ancestry, digest_file, everyone

TINY = Path(__file__).parent / "tiny.yaml"
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
TRAINED = ("base", "sft", "reward-1", "ppo-1")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def bloomery(*words: object) -> list[str]:
    return [sys.executable, "-m", "bloomery.cli", *map(str, words)]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished journey. Nobody writes into it."""
    path = tmp_path_factory.mktemp("journey") / "out"
    done = subprocess.run(bloomery("run", TINY, "--out", path), env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "RL" in done.stdout
    assert str(path / "report.html") in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    return path


@pytest.fixture
def copy(out: Path, tmp_path: Path) -> Path:
    """A finished journey to harm."""
    return Path(shutil.copytree(out, tmp_path / "copy", symlinks=True))


def snapshot(path: Path) -> dict[str, int]:
    return {str(p): p.lstat().st_mtime_ns for p in path.rglob("*")}


def test_results_hold_the_promised_keys(out: Path) -> None:
    results = json.loads((out / "results.json").read_text())
    assert set(results["table"]) == {"base", "sft", "rl"}
    assert set(results["table"]["rl"]) == {
        *("known_accuracy", "fabrication_rate", "abstain_known_rate", "refuse_harmful_rate"),
        *("refuse_harmless_rate", "graded_reward", "graded_reward_greedy", "bpb", "kl"),
    }
    assert set(results["table"]["rl"]["kl"]) == {"mean", "low", "high"}
    assert set(results["reward_model"]) >= {"accuracy", "low", "high", "agreement", "length_baseline"}
    assert set(results["seconds"]) >= {"world", "base", "sft", "label-1", "reward-2", "ppo-2"}
    assert results["seed"] == 0
    assert len(results["rounds"]) == 2


def test_the_report_is_one_page_without_outside_requests(out: Path) -> None:
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "http://" not in page.replace("http://www.w3.org/", "")
    assert "https://" not in page


def test_a_second_run_makes_nothing_and_says_the_same(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: v for p, v in snapshot(copy / "stages").items() if "lock" not in p}
    results = (copy / "results.json").read_bytes()
    assert main(["run", str(TINY), "--out", str(copy)]) == 0
    assert capsys.readouterr().err.count("cached") == 16
    assert {p: v for p, v in snapshot(copy / "stages").items() if "lock" not in p and p in before} == before
    assert (copy / "results.json").read_bytes() == results
    assert main(["run", str(copy / "recipe.yaml"), "--out", str(copy)]) == 0
    assert capsys.readouterr().err.count("cached") == 16


def test_a_dry_run_tells_what_a_setting_costs_and_writes_nothing(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(out)
    words = ["run", str(TINY), "--out", str(out), "--dry-run", "--set", "later.ppo.kl_coef=0.5"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "later" not in said
    assert "kl_coef: 0.3 -> 0.5" in said
    assert "2 of 16 steps to do" in said
    assert "estimate" in said
    assert snapshot(out) == before


def test_verify_finds_a_changed_byte_here_and_in_what_was_made_from_it(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(copy)]) == 0
    assert "16 stages" in capsys.readouterr().out
    weights = copy / "sft" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert main(["verify", str(copy)]) == 1
    said = capsys.readouterr().err
    assert "model.safetensors: content changed" in said
    assert main(["verify", str(copy / "rl")]) == 1
    assert f"{(copy / 'sft').resolve().name}: changed since" in capsys.readouterr().err


def test_lineage_goes_down_to_the_world_and_its_people(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lineage", str(out / "rl")]) == 0
    said = capsys.readouterr().out
    for stage in ("world", "encode", "pretrain", "sft", "reward", "ppo"):
        assert f"  {stage}  " in said
    assert "annotator" in said
    assert "simulated" in said
    nodes = list(everyone(ancestry(out / "rl")))
    assert {node.status for node in nodes} == {"ok"}


def test_chat_in_a_pipe(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    saved = tmp_path / "talk.jsonl"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"hello\n/temp 1\nwho?\n/save {saved}\n/quit\nunheard\n"))
    assert main(["chat", str(out / "rl"), "--max-tokens", "6"]) == 0
    assert capsys.readouterr().out.count("\n") >= 2
    messages = json.loads(saved.read_text())["messages"]
    assert [m["content"] for m in messages if m["role"] == "user"] == ["hello", "who?"]


def test_generate_answers_every_prompt_and_repeats_itself(out: Path) -> None:
    prompts = "".join((out / "world" / "prompts.jsonl").read_text().splitlines(keepends=True)[:3])
    said = [
        subprocess.run(
            bloomery("generate", out / "sft", "--max-tokens", 5, "--samples", 2, "--seed", 3),
            input=prompts,
            env=ENV,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    assert said[0] == said[1]
    rows = [json.loads(line) for line in said[0].split("\n") if line]
    assert [row["sample"] for row in rows] == [0, 1] * 3
    assert len({row["id"] for row in rows}) == 3
    assert all(row["logprob"] < 0 for row in rows)


def test_looking_into_a_stage_leaves_it_intact(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label", "stats", str(out / "label-1" / "feedback.db")]) == 0
    assert "24 prompts" in capsys.readouterr().out
    assert (
        main(
            ["data", "inspect", str(out / "world"), str(out / "corpus"), str(out / "label-1/rankings.jsonl")]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "harmful" in said
    assert "gossip" in said
    assert "rankings" in said
    assert main(["tokenizer", "show", str(out / "sft"), str(out / "world/demonstrations.jsonl")]) == 0
    assert "trained on" in capsys.readouterr().out
    assert main(["report", str(out)]) == 0
    assert main(["verify", str(out)]) == 0


def test_a_stages_own_recipe_makes_it_again(out: Path, tmp_path: Path) -> None:
    subprocess.run(
        bloomery("sft", "--config", out / "sft" / "recipe.yaml", "--out", tmp_path / "sft"),
        env=ENV,
        check=True,
        capture_output=True,
    )
    assert digest_file(tmp_path / "sft" / "model.safetensors") == digest_file(
        out / "sft" / "model.safetensors"
    )
    again = subprocess.run(
        bloomery("sft", "--out", tmp_path / "sft", "--config", out / "sft" / "recipe.yaml"),
        capture_output=True,
        text=True,
    )
    assert again.returncode == 1
    assert "already holds a finished run" in again.stderr


def test_a_journey_over_files_of_ones_own(out: Path, tmp_path: Path) -> None:
    """The same stages on files, as people bring them: no world, no oracle, rankings from a file."""
    words = [
        *("--set", f"data.root={out}", "--set", "data.documents=[world/documents.jsonl]"),
        *("--set", "data.demonstrations=[world/demonstrations.jsonl]", "--set", "rounds=1"),
        *("--set", "data.rankings=[label-1/rankings.jsonl]", "--set", "data.prompts=world/prompts.jsonl"),
    ]
    command = bloomery("run", TINY, "--out", tmp_path / "files", *words)
    done = subprocess.run(command, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "bloomery chat" in done.stdout
    results = json.loads((tmp_path / "files" / "results.json").read_text())
    assert results["table"]["rl"]["bpb"] > 0
    assert main(["verify", str(tmp_path / "files")]) == 0


def waiting_for_checkpoints(out: Path, process: subprocess.Popen[bytes]) -> Iterator[str]:
    """Names each stage once when its first checkpoint appears, until the process ends."""
    seen: set[str] = set()
    while process.poll() is None:
        for path in out.glob("stages/*/checkpoint-*/MANIFEST.json"):
            step = path.parent.parent.name.rsplit("-", 1)[0]
            if step not in seen and "tmp" not in path.parent.name:
                seen.add(step)
                yield step
        time.sleep(0.005)


def test_kill_9_in_every_training_stage_gives_the_same_bytes(out: Path, tmp_path: Path) -> None:
    target = tmp_path / "killed"
    often = [
        f"--set={part}.compute.checkpoint_every=1"
        for part in ("pretrain", "sft", "first.reward", "first.ppo")
    ]
    command = bloomery("run", TINY, "--out", target, "--set", "rounds=1", *often)
    killed: list[str] = []
    for _ in range(20):
        process = subprocess.Popen(command, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for step in waiting_for_checkpoints(target, process):
            if step not in killed:
                killed.append(step)
                process.send_signal(signal.SIGKILL)
                process.wait()
                break
        if process.wait() == 0:
            break
    assert killed == list(TRAINED)
    assert process.returncode == 0
    for step in TRAINED:
        weights = "model.safetensors"
        assert (target / step / weights).read_bytes() == (out / step / weights).read_bytes(), step
        state = json.loads((target / step / "trainer_state.json").read_text())
        assert state["resumed_at"], step


def test_a_journey_that_is_asked_to_stop_says_how_to_go_on(tmp_path: Path) -> None:
    target = tmp_path / "stopped"
    command = bloomery(
        "run", TINY, "--out", target, "--set", "pretrain.compute.checkpoint_every=1", "--set", "rounds=0"
    )
    process = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    next(waiting_for_checkpoints(target, process))  # type: ignore[arg-type]
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 143
    assert "stopped by SIGTERM" in said
    assert "goes on from" in said
    assert "Traceback" not in said
    assert any(target.glob("stages/base-*/checkpoint-*"))
