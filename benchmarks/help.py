"""How long a person waits: for the text of `--help`, and from a training command to its first step."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import stage
from case import SIZES, Case, Shape, Side


def cases(shape: Shape, precision: str | None) -> list[Case]:
    start = "trl sft --help (ours: pretrain to its first step)"
    return [
        Case("help", "trl sft --help", "s", 1, "ours", "trl", both_answer, python="trl"),
        Case("help", start, "s", 1, "first_step", "trl", both_answer, python="trl"),
    ]


def both_answer(ours: Side, theirs: Side) -> str:
    """Both said something of use and ended well."""
    sides = (("ours", ours), ("theirs", theirs))
    silent = [who for who, side in sides if not all(side.facts.get("said", [False]))]
    return f"{' and '.join(silent)} did not answer" if silent else ""


def ours(pace: Any, settings: dict[str, Any]) -> None:
    asked(pace, [str(Path(sys.executable).parent / "bloomery"), "--help"], "pretrain")


def trl(pace: Any, settings: dict[str, Any]) -> None:
    asked(pace, [str(Path(sys.executable).parent / "trl"), "sft", "--help"], "--learning_rate")


def asked(pace: Any, command: list[str], expected: str) -> None:
    while True:
        pace.start()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        pace.end(1, said=done.returncode == 0 and expected in done.stdout)


def first_step(pace: Any, settings: dict[str, Any]) -> None:
    """From the command to the first line of its metrics."""
    material, shape = Path(settings["material"]), SIZES[settings["size"]]
    out = Path(settings["scratch"]) / "first-step"
    config = Path(settings["scratch"]) / "first-step.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    recipe = {
        "corpus": str(material / "corpus"),
        "tokenizer": str(material / "tokenizer"),
        "model": {"width": shape.width, "depth": shape.depth, "heads": shape.heads, "context": shape.context},
        "compute": stage.compute(settings),
    }
    config.write_text(json.dumps(recipe))  # JSON is YAML
    command = [str(Path(sys.executable).parent / "bloomery"), "pretrain", "--config", str(config)]
    while True:
        shutil.rmtree(out, ignore_errors=True)
        pace.start()
        process = subprocess.Popen(
            [*command, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        metrics = out / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.005)
        said = metrics.exists()
        pace.end(1, said=said)
        process.kill()
        process.wait()
