"""Healthy runs of what the default journey does not do, three seeds, for the tests of `bloomery diagnose`.

    python benchmarks/healthy_runs.py runs/seeds/seed-0 runs/seeds/seed-1 runs/seeds/seed-2

Each directory is a finished journey of another seed; one round is enough. From its SFT model, rankings and
reward model every method of METHODS learns as in benchmarks/methods.py, whose runs are not repeated where
--out (runs/methods) has them; --process takes finished seeds of benchmarks/process.py. The thinned curves are
written to tests/journey/healthy/<method>.jsonl, a line for each seed and metric, after one of the settings.
The exit code is 1 where `diagnose` finds fault with a run: then either it is ill or a threshold is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import methods
import yaml
from three_seeds import where

from bloomery.journey.diagnose import diagnose
from bloomery.journey.diagnose.reference import lines

OUT = Path(__file__).parent.parent / "tests" / "journey" / "healthy"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: methods.METHODS[name] for name in ("rejection", "DPO", "KTO", "online DPO", "RLOO", "GRPO")},
    "robust DPO": ("prefer", {"loss": "robust", "loss_settings": {"label_smoothing": 0.1}}),
}
PLACES = {
    *("policy", "model", "reference", "reward", "rankings", "solutions", "prompts", "world", "corpus", "seed")
}
"""Settings that say where a run lay, not what it did."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("journeys", type=Path, nargs="+")
    parser.add_argument("--process", type=Path, nargs="*", default=[], help="seeds of benchmarks/process.py")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--to", type=Path, default=OUT)
    arguments = parser.parse_args()
    print(where())
    arguments.to.mkdir(parents=True, exist_ok=True)
    ill = 0
    for name, method in METHODS.items():
        runs = []
        for journey in arguments.journeys:
            runs.append(arguments.out / journey.name / name)
            runs[-1].parent.mkdir(parents=True, exist_ok=True)
            methods.learned(journey, runs[-1], method, table=False)
        ill += write(arguments.to / f"{name.replace(' ', '-').lower()}.jsonl", runs)
    if arguments.process:
        ill += write(arguments.to / "process.jsonl", [seed / "process" for seed in arguments.process])
    return 1 if ill else 0


def write(path: Path, runs: Sequence[Path]) -> int:
    """Write the curves of the runs, which differ in their seed; how many of them are ill."""
    rows: list[dict[str, object]] = []
    ill = 0
    for run in runs:
        (found,) = diagnose(run)
        for finding in found.findings:
            print(f"{run}: {finding.condition}: {'; '.join(finding.evidence)}")
        ill += bool(found.findings)
        recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
        rows += lines(recipe["seed"], found.table.columns.values())
    settings = {key: value for key, value in recipe.items() if key not in PLACES}
    rows = [{"stage": found.table.stage, "settings": settings}, *rows]
    path.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))
    print(f"{path.name}: {len(rows) - 1} curves, {path.stat().st_size / 1000:.0f} kB")
    return ill


if __name__ == "__main__":
    sys.exit(main())
