"""Runs to plant diseases in: real curves of the default journey and of what it does not do, and made-up ones
under the names of other programs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import yaml

from bloomery.journey.diagnose.reference import read_step

Row = dict[str, Any]
HEALTHY = Path(__file__).parent / "healthy"
STAGES = {"base": "pretrain", "sft": "sft", "reward-1": "reward", "reward-2": "reward"}


@dataclass
class Run:
    """A finished run as it lies on disk, before it is written."""

    stage: str
    rows: list[Row]
    settings: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    sealed: bool = True

    def write(self, path: Path) -> Path:
        path.mkdir(parents=True)
        (path / "lineage.json").write_text(json.dumps({"stage": self.stage}))
        (path / "recipe.yaml").write_text(yaml.safe_dump(self.settings))
        (path / "trainer_state.json").write_text(json.dumps({"stage": self.stage, **self.state}))
        lines(path / "metrics.jsonl", self.rows)
        if self.card:
            (path / "evaluation.json").write_text(json.dumps(self.card))
        if self.sealed:
            (path / "MANIFEST.json").write_text("{}")
        return path

    def change(self, name: str, new: Callable[[float, float], float], start: float = 0.0) -> None:
        """Replace a metric's values, from a fraction of the run on, by `new(old value, progress)`."""
        places = [row for row in self.rows if name in row]
        assert places, f"no row has {name}"
        for i, row in enumerate(places):
            progress = i / max(len(places) - 1, 1)
            if progress >= start:
                row[name] = new(row[name], progress)

    def grow(self, name: str, factor: float) -> None:
        """Multiply a metric by a factor that grows from 1 at half the run to `factor` at four fifths."""
        self.change(name, lambda old, at: old * (1 + (factor - 1) * min(1.0, (at - 0.5) / 0.3)), start=0.5)

    def add(self, name: str, value: Callable[[float], float]) -> None:
        """A metric that was not logged; `value` is asked with the progress."""
        for i, row in enumerate(self.rows):
            row[name] = value(i / (len(self.rows) - 1))


def lines(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def default(step: str, seed: int = 0) -> Run:
    """A step of the default journey, from its reference curves."""
    rows: dict[int, Row] = {}
    for curve in read_step(step):
        if curve.seed == seed:
            for at, value in zip(curve.column.steps, curve.column.values, strict=True):
                rows.setdefault(at, {"step": at})[curve.column.name] = value
    settings = {"optimiser": {"max_norm": 1.0}, "compute": {"precision": "bf16"}}
    return Run(STAGES.get(step, "ppo"), [rows[at] for at in sorted(rows)], settings)


def read_lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def methods() -> list[tuple[str, int]]:
    """What else has real curves, made by benchmarks/healthy_runs.py, and by which seeds."""
    found = {(path.stem, row["seed"]) for path in HEALTHY.glob("*.jsonl") for row in read_lines(path)[1:]}
    return sorted(found)


def method(name: str, seed: int) -> Run:
    """A real run of a method that the default journey does not do."""
    head, *curves = read_lines(HEALTHY / f"{name}.jsonl")
    rows: dict[int, Row] = {}
    for curve in curves:
        if curve["seed"] == seed:
            for at, value in zip(curve["steps"], curve["values"], strict=True):
                rows.setdefault(at, {"step": at})[curve["metric"]] = value
    return Run(head["stage"], [rows[at] for at in sorted(rows)], head["settings"])


def grpo(rows: int = 50) -> Run:
    """A healthy run without a critic, under TRL's names."""
    draw, run = Random(0), []
    for i in range(rows):
        at = i / rows
        run.append(
            {
                "step": i,
                "loss": 0.01 * at + draw.gauss(0, 0.002),
                "grad_norm": 0.4 + draw.gauss(0, 0.05),
                "learning_rate": 1e-6 * (1 - 0.9 * at),
                "reward": 0.2 + 0.5 * at + draw.gauss(0, 0.04),
                "reward_std": 0.3 + draw.gauss(0, 0.02),
                "frac_reward_zero_std": 0.3 + draw.gauss(0, 0.05),
                "completions/mean_length": 120 + 15 * at + draw.gauss(0, 4),
                "completions/clipped_ratio": 0.05 + abs(draw.gauss(0, 0.01)),
                "kl": 0.08 * at + abs(draw.gauss(0, 0.004)),
                "entropy": 0.5 - 0.15 * at + draw.gauss(0, 0.02),
                "clip_ratio/region_mean": 0.05 + draw.gauss(0, 0.01),
                "sampling/sampling_logp_difference/mean": 0.004 + abs(draw.gauss(0, 0.0005)),
                "step_time": 12.0 + draw.gauss(0, 0.4),
            }
        )
    return Run("grpo", run)


def prefer(rows: int = 50) -> Run:
    """A healthy direct-preference run, under TRL's names."""
    draw, run = Random(0), []
    for i in range(rows):
        at = i / rows
        row = {
            "step": i,
            "loss": 0.69 - 0.2 * at + draw.gauss(0, 0.02),
            "grad_norm": 2.0 + draw.gauss(0, 0.2),
            "learning_rate": 5e-7 * (1 - 0.9 * at),
            "rewards/chosen": 0.2 * at + draw.gauss(0, 0.02),
            "rewards/rejected": -0.8 * at + draw.gauss(0, 0.02),
            "rewards/margins": at + draw.gauss(0, 0.03),
            "rewards/accuracies": 0.55 + 0.2 * at + draw.gauss(0, 0.03),
            "logps/chosen": -60 - 3 * at + draw.gauss(0, 1.0),
            "logps/rejected": -65 - 9 * at + draw.gauss(0, 1.0),
        }
        if i % 10 == 9:
            row["eval_loss"] = 0.69 - 0.12 * at
            row["eval_rewards/accuracies"] = 0.55 + 0.15 * at
        run.append(row)
    return Run("prefer", run)


def robust(rows: int = 60) -> Run:
    """A healthy run of robust DPO (label noise 0.1, beta 0.1): its loss ends below 0, held-out loss too."""
    draw, run = Random(0), []

    def loss(margin: float) -> float:
        right, wrong = math.log1p(math.exp(-margin)), math.log1p(math.exp(margin))
        return (0.9 * right - 0.1 * wrong) / 0.8

    for i in range(rows):
        margin = 8 * i / rows
        row = {
            "step": i,
            "loss": loss(margin) + draw.gauss(0, 0.01),
            "grad_norm": 0.5 + draw.gauss(0, 0.05),
            "learning_rate": 1e-4,
            "rewards/margins": margin + draw.gauss(0, 0.03),
            "rewards/accuracies": 0.55 + 0.04 * margin + draw.gauss(0, 0.03),
        }
        if i % 10 == 9:
            row["eval_loss"] = 0.9 * loss(margin) + draw.gauss(0, 0.005)
            row["eval_rewards/accuracies"] = 0.55 + 0.03 * margin
        run.append(row)
    return Run("prefer", run)
