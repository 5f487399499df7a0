"""Healthy runs of what the default journey does not do, three seeds, for the tests of `bloomery diagnose`.

    python benchmarks/healthy_runs.py runs/seeds/seed-0 runs/seeds/seed-1 runs/seeds/seed-2

Each directory is a finished journey of another seed; one round is enough. From its SFT model, rankings and
reward model every method of METHODS learns as in benchmarks/methods.py, whose runs are not repeated where
--out (runs/methods) has them. Their thinned curves are written to tests/journey/healthy/<method>.jsonl, a
line for each seed and metric, after one of the settings. The exit code is 1 where `diagnose` finds fault
with a run: then either the run is ill or a threshold is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
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
PLACES = {"policy", "model", "reference", "reward", "rankings", "prompts", "world", "corpus", "seed"}
"""Settings that say where a run lay, not what it did."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("journeys", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--to", type=Path, default=OUT)
    arguments = parser.parse_args()
    print(where())
    ill = 0
    for name, method in METHODS.items():
        rows: list[dict[str, object]] = []
        settings: dict[str, Any] = {}
        for journey in arguments.journeys:
            out = arguments.out / journey.name
            out.mkdir(parents=True, exist_ok=True)
            methods.learned(journey, out / name, method, table=False)
            (found,) = diagnose(out / name)
            for finding in found.findings:
                print(f"{out / name}: {finding.condition}: {'; '.join(finding.evidence)}")
            ill += bool(found.findings)
            recipe = yaml.safe_load((out / name / "recipe.yaml").read_text(encoding="utf-8"))
            settings = {key: value for key, value in recipe.items() if key not in PLACES}
            rows += lines(recipe["seed"], found.table.columns.values())
        arguments.to.mkdir(parents=True, exist_ok=True)
        path = arguments.to / f"{name.replace(' ', '-').lower()}.jsonl"
        head = {"stage": found.table.stage, "settings": settings}
        path.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in [head, *rows]))
        print(f"{path.name}: {len(rows)} curves, {path.stat().st_size / 1000:.0f} kB")
    return 1 if ill else 0


if __name__ == "__main__":
    sys.exit(main())
