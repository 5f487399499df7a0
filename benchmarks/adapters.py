"""All weights, adapters and the last layers: fine-tuned from the same base, and PPO from the same SFT model.

    python benchmarks/adapters.py runs/seeds/seed-0 runs/seeds/seed-1 runs/seeds/seed-2 [--out runs/adapters]
        [--only "rank 8" ...] [--table]

Each directory is a finished default journey (benchmarks/three_seeds.py makes them), whose own models are
"all weights". Finished parts are not repeated; --table prints what is there. Prints the tables of
docs/results.md and writes adapters.json and curve-lora.svg: held-out loss and the oracle's grade over the
steps.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import methods
from curves import logged, over_seeds
from methods import inputs, make, of_evaluation, spread, trained
from pictures import COLOURS, Panel, picture
from three_seeds import where

ALL, PPO = "all weights", "PPO, all weights"
LAST = ["model.layers.2.*", "model.layers.3.*", "model.norm.weight", "model.embed_tokens.weight"]
# name -> what differs from the stage's defaults; a thin matrix needs a higher rate than the one beside it
SIDES: dict[str, dict[str, Any]] = {
    "rank 32": {"lora": {"rank": 32, "alpha": 64.0}, "optimiser": {"learning_rate": 3e-3}},
    "rank 8": {"lora": {"rank": 8, "alpha": 16.0}, "optimiser": {"learning_rate": 5e-3}},
    "rank 8, no new tokens": {
        "lora": {"rank": 8, "alpha": 16.0, "new_tokens": False},
        "optimiser": {"learning_rate": 5e-3},
    },
    "last two layers, embedding": {"train": LAST},
}
REINFORCED: dict[str, dict[str, Any]] = {
    f"PPO, rank {rank}": {"lora": {"rank": rank, "alpha": 2.0 * rank}, "optimiser": {"learning_rate": 5e-4}}
    for rank in (32, 8)
}
COLUMNS = {"learning": ("learns", ",.0f", 1), "loss": ("held-out loss", ".3f", 1), **methods.COLUMNS}
Rows = dict[str, list[dict[str, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("journeys", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("runs/adapters"))
    every = [*SIDES, *REINFORCED]
    parser.add_argument("--only", nargs="+", choices=every, default=every)
    parser.add_argument("--table", action="store_true", help="run nothing, print what is there")
    arguments = parser.parse_args()
    rows: Rows = {}
    runs: dict[str, list[Path]] = {}
    for journey in arguments.journeys:
        out = arguments.out / journey.name
        out.mkdir(parents=True, exist_ok=True)
        add(rows, runs, ALL, journey / "sft", journey / "evaluate-sft")
        add(rows, runs, PPO, journey / "ppo-1", journey / "evaluate-rl-1")
        for name in arguments.only:
            if made(journey, out, name, arguments.table):
                add(rows, runs, name, out / name, out / f"evaluate-{name}")
    (arguments.out / "adapters.json").write_text(json.dumps(rows, indent=1) + "\n")
    (arguments.out / "curve-lora.svg").write_text(drawn(runs), encoding="utf-8")
    print(f"{where()}\n\n{table(rows)}")


def made(journey: Path, out: Path, name: str, table: bool) -> bool:
    """Train a side and measure it like the journey's own model; whether both are there."""
    if name in REINFORCED:
        return trained(journey, out, name, ("ppo", REINFORCED[name]), table) is not None
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
    found = of_evaluation(evaluation, 0.0) | {"learning": float(learning(run))}
    if losses := logged(run, "eval_loss"):
        found["loss"] = losses[-1][1]
    rows.setdefault(name, []).append(found)
    runs.setdefault(name, []).append(run)


def learning(run: Path) -> int:
    """How many numbers a stage trained, from what it wrote: adapters alone, or a whole model."""
    import yaml

    from bloomery.models import hub, lora
    from bloomery.models.partial import train_only

    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    model = hub.load(run, merge=False)
    if lora.adapter_of(model) is None:
        train_only(model, recipe.get("train", ()))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def table(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Fine-tuning and PPO by themselves, each with the columns that it has."""
    parts = []
    for ppo in (False, True):
        part = {name: rows[name] for name in order(rows) if name.startswith("PPO") is ppo}
        columns = {key: told for key, told in COLUMNS.items() if any(key in row[0] for row in part.values())}
        lines = ["| | " + " | ".join(title for title, _, _ in columns.values()) + " | seeds |"]
        lines.append("|---|" + "---:|" * (len(columns) + 1))
        for name, found in part.items():
            cells = [f"{found[0]['learning']:,.0f}"]
            for key, (_, form, times) in list(columns.items())[1:]:
                cells.append(spread([times * row[key] for row in found if key in row], form))
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {len(found)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def order(names: Mapping[str, Any]) -> list[str]:
    """All weights first."""
    return [name for name in (ALL, *SIDES, PPO, *REINFORCED) if name in names]


def drawn(runs: Mapping[str, Sequence[Path]]) -> str:
    """The loss of held-out demonstrations, and the oracle's grade of PPO's answers, over the steps: of all
    weights and of adapters."""
    panels = []
    for ppo, title, key in (
        (False, "Loss, held out", "eval_loss"),
        (True, "PPO: the oracle’s grade", "gold/graded_reward"),
    ):
        names = [n for n in order(runs) if n.startswith("PPO") is ppo and ("rank" in n or "all" in n)]
        found = [
            over_seeds(name.removeprefix("PPO, "), [logged(run, key) for run in runs[name]], colour)
            for name, colour in zip(names, COLOURS, strict=False)
        ]
        panels.append(Panel(title, "step", found))
    return picture(*panels)


if __name__ == "__main__":
    main()
