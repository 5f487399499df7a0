"""Make the reference curves that `bloomery diagnose` and the report hold a run against.

    python benchmarks/reference_curves.py runs/seeds/seed-0 runs/seeds/seed-1 runs/seeds/seed-2

Each directory is a journey of another seed (benchmarks/three_seeds.py --set rounds=2 makes them). Every
metric of every step is thinned and written to src/bloomery/journey/reference/<step>.jsonl, a line for each
seed and metric, beside the journeys' recipe, by which a run is told to be comparable; files that were there
before give way. A step that did not finish is left out, and said; journeys of different settings, and one
that `diagnose` finds fault with, are refused.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import yaml

from bloomery.journey.diagnose import diagnose
from bloomery.journey.diagnose.reference import lines

OUT = Path(__file__).parent.parent / "src" / "bloomery" / "journey" / "reference"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("journeys", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    made: dict[str, list[dict[str, object]]] = {}
    shared: dict[str, object] | None = None
    for journey in arguments.journeys:
        recipe = yaml.safe_load((journey / "recipe.yaml").read_text(encoding="utf-8"))
        seed = recipe.pop("seed")
        shared = recipe if shared is None else shared
        if recipe != shared:
            print(f"{journey}: its settings are not those of {arguments.journeys[0]}")
            return 1
        for one in diagnose(journey):
            if one.table.status != "finished":
                print(f"{journey}: {one.table.name} is left out: {one.table.status}")
                continue
            if one.findings:
                print(f"{journey}: {one.table.name}: {', '.join(f.condition for f in one.findings)}")
                return 1
            made.setdefault(one.table.name, []).extend(lines(seed, one.table.columns.values()))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for old in arguments.out.glob("*.jsonl"):
        old.unlink()
    (arguments.out / "recipe.yaml").write_text(yaml.safe_dump(shared, sort_keys=False))
    for step, rows in made.items():
        path = arguments.out / f"{step}.jsonl"
        path.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))
        print(f"{path.name}: {len(rows)} curves, {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
