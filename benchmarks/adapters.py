"""Fine-tuning of all weights, of adapters and of the last layers, from the same base and demonstrations.

    python benchmarks/adapters.py runs/seeds/seed-0 runs/seeds/seed-1 runs/seeds/seed-2 [--out runs/adapters]
        [--only "rank 8" ...] [--table]

Each directory is a finished default journey (benchmarks/three_seeds.py makes them), whose own SFT model is
"all weights". Finished parts are not repeated; --table prints what is there. Prints the table of
docs/results.md and writes adapters.json and curve-lora.svg, the losses over the steps.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from curves import logged, over_seeds
from methods import inputs, make, of_evaluation, spread
from pictures import COLOURS, Panel, picture
from three_seeds import where

ALL = "all weights"
LAST = ["model.layers.2.*", "model.layers.3.*", "model.norm.weight"]
# name -> what differs from the SFT stage's defaults; a thin matrix needs a higher rate than the one beside it
SIDES: dict[str, dict[str, Any]] = {
    "rank 32": {"lora": {"rank": 32, "alpha": 64.0}, "optimiser": {"learning_rate": 3e-3}},
    "rank 8": {"lora": {"rank": 8, "alpha": 16.0}, "optimiser": {"learning_rate": 5e-3}},
    "last two layers": {"train": LAST},
    "last two layers and embedding": {"train": [*LAST, "model.embed_tokens.weight"]},
}
# key -> title, how a number is written, and what it is multiplied by
COLUMNS = {
    "learning": ("learns", ",.0f", 1),
    "loss": ("held-out loss", ".3f", 1),
    "graded": ("graded", "+.3f", 1),
    "greedy": ("graded greedy", "+.3f", 1),
    "fabrication_rate": ("made up", ".1f", 100),
    "known_accuracy": ("known", ".1f", 100),
    "refuse_harmful_rate": ("refuses harmful", ".1f", 100),
    "bpb": ("bits/byte", ".3f", 1),
}
Rows = dict[str, list[dict[str, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("journeys", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("runs/adapters"))
    parser.add_argument("--only", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--table", action="store_true", help="run nothing, print what is there")
    arguments = parser.parse_args()
    rows: Rows = {}
    runs: dict[str, list[Path]] = {}
    for journey in arguments.journeys:
        out = arguments.out / journey.name
        out.mkdir(parents=True, exist_ok=True)
        add(rows, runs, ALL, journey / "sft", journey / "evaluate-sft")
        for name in arguments.only:
            if tuned(journey, out, name, arguments.table):
                add(rows, runs, name, out / name, out / f"evaluate-{name}")
    (arguments.out / "adapters.json").write_text(json.dumps(rows, indent=1) + "\n")
    (arguments.out / "curve-lora.svg").write_text(drawn(runs), encoding="utf-8")
    print(f"{where()}\n\n{table(rows)}")


def tuned(journey: Path, out: Path, name: str, table: bool) -> bool:
    """Train a side and measure it like the journey's own model; whether both are there."""
    given = inputs(journey)
    recipe = {"model": str(journey / "base"), "corpus": given["corpus"], "seed": given["seed"]}
    recipe |= {"demonstrations": [str(journey / "world/demonstrations.jsonl")], **SIDES[name]}
    measured = {key: given[key] for key in ("world", "reference", "corpus", "seed")}
    measured["model"] = str(out / name)
    return (
        make("sft", recipe, out / name, table) is not None
        and make("evaluate", measured, out / f"evaluate-{name}", table) is not None
    )


def add(rows: Rows, runs: dict[str, list[Path]], name: str, run: Path, evaluation: Path) -> None:
    found = of_evaluation(evaluation, 0.0) | {"loss": logged(run, "eval_loss")[-1][1]}
    rows.setdefault(name, []).append(found | {"learning": float(learning(run))})
    runs.setdefault(name, []).append(run)


def learning(run: Path) -> int:
    """How many numbers a stage trained, from what it wrote: adapters alone, or a whole model."""
    import yaml

    from bloomery.models import hub, lora
    from bloomery.models.partial import train_only

    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    model = hub.load(run, merge=False)
    if lora.adapter_of(model) is None:
        train_only(model, recipe["train"])
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def table(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    lines = ["| | " + " | ".join(title for title, _, _ in COLUMNS.values()) + " | seeds |"]
    lines.append("|---|" + "---:|" * (len(COLUMNS) + 1))
    for name, found in rows.items():
        cells = [f"{found[0]['learning']:,.0f}"]
        for key, (_, form, times) in list(COLUMNS.items())[1:]:
            cells.append(spread([times * row[key] for row in found if key in row], form))
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {len(found)} |")
    return "\n".join(lines)


def drawn(runs: Mapping[str, Sequence[Path]]) -> str:
    """Both losses over the steps: of demonstrations in training, and of held-out ones."""
    panels = []
    for title, key in (("Loss in training", "loss"), ("Loss of held-out demonstrations", "eval_loss")):
        found = [
            over_seeds(name, [logged(run, key) for run in those], colour)
            for (name, those), colour in zip(runs.items(), COLOURS, strict=False)
        ]
        panels.append(Panel(title, "step", found))
    return picture(*panels)


if __name__ == "__main__":
    main()
