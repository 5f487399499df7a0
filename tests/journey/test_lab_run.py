"""A tiny laboratory from the command line: it runs to its findings, repeats nothing, and begins with stage
directories that a journey made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bloomery.cli import main
from bloomery.data.loader import batch_indices
from bloomery.journey import lab
from bloomery.models import hub
from bloomery.recipe import load
from bloomery.stages import STAGES
from bloomery.stages.online import Sampler
from bloomery.stages.stop import StopRule
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer

TINY = Path(__file__).parent / "tiny.yaml"
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
LAB = [
    "rounds=0",
    "lab.sizes={small: {width: 16, depth: 1, heads: 2, context: 128}}",
    "lab.reward_models=[{name: few, share: 0.3, flipped: 0.3, size: small}]",
    "lab.kl_coefs=[0.0]",
    "lab.baseline=2",
    "lab.best_of_n={samples: 8, limit: 16, max_tokens: 12}",
    *("lab.window=2", "lab.patience=1"),
    *("first.ppo.steps=5", "first.ppo.optimiser.learning_rate=0.003", "evaluate.limit=8"),
]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def words(out: Path, *settings: str) -> list[str]:
    given = [word for setting in (*LAB, *settings) for word in ("--set", setting)]
    return ["run", str(TINY), "--out", str(out), *given]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished laboratory. Nobody writes into it."""
    path = tmp_path_factory.mktemp("lab") / "out"
    command = [sys.executable, "-m", "bloomery.cli", *words(path)]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "few: size small, 30 % of the labels, 30 % turned over" in done.stdout
    assert "gold gained on average: " in done.stdout
    return path


def test_the_findings(out: Path) -> None:
    found = json.loads((out / lab.FILE).read_text())
    (model,) = found["reward_models"]
    (run,) = model["runs"]
    assert len(run["kl"]) == len(run["gold"]) == 5
    assert run["kl"][0] == pytest.approx(0.0, abs=1e-4)
    assert model["rl"]["fits"]["rl"]["num"] == 5
    assert model["best_of_n"]["n"] == [1, 2, 4, 8]
    baseline = [json.loads(line) for line in (out / "baseline" / "answers.jsonl").read_text().splitlines()]
    recipe = load(STAGES["ppo"].recipe, out / "ppo-few-0" / "recipe.yaml")
    chat, policy = Chat(Tokenizer.load(out / "sft")), hub.load(out / "sft")
    sampler = Sampler(recipe, policy, chat, lambda line: None)
    asked = sampler.prompts  # those that leave room for an answer
    assert [one["id"] for one in baseline] == [prompt.id for prompt in asked]
    ease = [np.mean([a["graded_reward"] for a in one["answers"]]) for one in baseline]
    rows = [json.loads(line) for line in (out / "ppo-few-0" / "metrics.jsonl").read_text().splitlines()]
    assert run["watched"]["held-out"] == [row["watch/held-out/mean"] for row in rows]
    assert run["proxy"] == [row["objective/scores"] for row in rows]
    for step, row in enumerate(rows):
        chosen = batch_indices(len(asked), recipe.prompts_per_step, seed=recipe.seed, step=step)
        assert [one.prompt.id for one in sampler.ask(step)] == [baseline[i]["id"] for i in chosen]
        easier = np.mean([ease[i] for i in chosen]) - np.mean(ease)
        assert run["gold"][step] == pytest.approx(row["gold/graded_reward"] - easier)
    for stop in run["stops"]:
        watch, budget = lab.heeds(stop["rule"], model["budget"])
        rule = StopRule(watch=watch, budget=budget, window=2, patience=1)
        assert rule.of(rows).stop == stop["stop"]


def test_the_twin_learned_from_other_rankings(out: Path) -> None:
    held = [
        {json.loads(line)["id"] for line in (out / step / "rankings.jsonl").read_text().splitlines()}
        for step in ("spoil-few", "spoil-few-twin")
    ]
    both = held[0] & held[1]
    assert both < held[0]
    assert both < held[1]
    weights = [(out / f"reward-few{t}" / "model.safetensors").read_bytes() for t in ("", "-twin")]
    assert weights[0] != weights[1]


def test_nothing_is_made_twice_and_the_usual_journey_begins_with_the_same_stages(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(out)) == 0
    assert capsys.readouterr().err.count("cached") == 18
    journey = ["run", str(TINY), "--out", str(out.parent / "other"), "--cache", str(out / "stages")]
    assert main([*journey, "--set", "rounds=0", "--set", "evaluate.limit=8", "--dry-run"]) == 0
    assert "0 of 8 steps to do" in capsys.readouterr().out


def test_the_report_and_a_dry_run(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 'id="lab"' in (out / "report.html").read_text(encoding="utf-8")
    assert main([*words(out, "first.ppo.steps=6"), "--dry-run"]) == 0
    assert "1 of 18 steps to do" in capsys.readouterr().out
    assert main(["verify", str(out)]) == 0
