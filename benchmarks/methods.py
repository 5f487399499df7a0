"""Every way of learning from the first round's labels, from the same SFT model, on one scoreboard.

    python benchmarks/methods.py runs/seeds/seed-0 runs/seeds/seed-1 runs/seeds/seed-2 [--out runs/methods]
        [--only ppo ...] [--table]

Each directory is a finished default journey (benchmarks/three_seeds.py makes them): its SFT model, first
rankings and first reward model are what every method gets. Methods that sample draw 5,120 answers to train
on; direct ones see every ranking once. RLOO and GRPO are what docs/algorithms/grpo.md calls so.
Finished parts are not repeated; --table prints what is there. Prints the table of docs/results.md, a row for
each method (mean over seeds, its 95 % interval from three seeds on, the seeds' range) and how it is to be
read, and writes methods.json and frontier.svg: the oracle's grade over the distance from the SFT model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml
from three_seeds import where

LETTER = 7.0
"""How wide a letter of a name is in the picture, about."""
# name -> (stage's command, what differs from the stage's defaults)
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "rejection": ("rejection", {"steps": 4, "prompts_per_step": 160, "samples": 8}),
    "DPO": ("prefer", {"loss": "dpo"}),
    "IPO": ("prefer", {"loss": "ipo"}),
    "KTO": ("prefer", {"loss": "kto"}),
    "online DPO": ("prefer-online", {"samples": 4}),
    "RLOO": (
        "grpo",
        {"advantage": "rloo", "loss": "reinforce", "minibatches": 1, "kl_in": "reward", "kl_coef": 0.2},
    ),
    "GRPO": ("grpo", {"averaging": "sequence", "kl_coef": 0.2}),
    "PPO": ("ppo", {"kl_coef": 0.2}),
    "PPO-ptx": ("ppo", {"kl_coef": 0.2, "ptx_coef": 1.0, "ptx_batch": 2}),
}
BEST_OF = 16
ABOUT = """Rates and "graded greedy" are of greedy answers; those of the rows "best of n" are of sampled
ones, for its answers are chosen among samples. Its bits per byte are the SFT model's, whose weights it leaves
alone. The base model has no KL: it is asked by continuation, not in a chat, so its answers follow other
prompts. "Gain" is the grade of sampled answers beyond the same seed's SFT model, ± half of Student's 95 %
interval of the mean over seeds. Minutes are of training (of best-of-n: of answering), all sittings together.
Means over seeds, in brackets the lowest and the highest; rates in per cent."""
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""The 97.5 % quantile of Student's t with 1, 2, ... degrees of freedom; beyond the last it is less."""
STYLE = (
    "text{font:11.5px sans-serif;fill:#6a635a}text.name{fill:#1f1b16;font-weight:600}line{stroke:#e7e2da}"
    "circle{fill:#0068a8}circle.seed{fill-opacity:.35}"
)
# key -> title, how a number is written, and what it is multiplied by
COLUMNS = {
    "graded": ("graded", "+.3f", 1),
    "greedy": ("graded greedy", "+.3f", 1),
    "kl": ("KL", ".2f", 1),
    "fabrication_rate": ("made up", ".1f", 100),
    "known_accuracy": ("known", ".1f", 100),
    "refuse_harmful_rate": ("refuses harmful", ".1f", 100),
    "refuse_harmless_rate": ("refuses harmless", ".1f", 100),
    "bpb": ("bits/byte", ".3f", 1),
    "minutes": ("minutes", ".1f", 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("journeys", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--only", nargs="+", choices=["best-of", *METHODS], default=["best-of", *METHODS])
    parser.add_argument("--table", action="store_true", help="run nothing, print what is there")
    arguments = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {}
    for journey in arguments.journeys:
        out = arguments.out / journey.name
        out.mkdir(parents=True, exist_ok=True)
        for name in ("base", "sft"):
            rows.setdefault(name, []).append(of_evaluation(journey / f"evaluate-{name}", 0.0))
        if "best-of" in arguments.only:
            best_of(journey, out, rows, arguments.table)
        for name in (name for name in METHODS if name in arguments.only):
            if row := trained(journey, out, name, METHODS[name], arguments.table):
                rows.setdefault(name, []).append(row)
    (arguments.out / "methods.json").write_text(json.dumps(rows, indent=1) + "\n")
    (arguments.out / "frontier.svg").write_text(frontier(gains(rows), "gain", "grade beyond the SFT model’s"))
    print(where())
    print("\n| | gain | " + " | ".join(title for title, _, _ in COLUMNS.values()) + " | seeds |")
    print("|---|" + "---:|" * (len(COLUMNS) + 2))
    for name, found in rows.items():
        cells = [gain(name, rows)]
        for key, (_, form, times) in COLUMNS.items():
            cells.append(spread([times * row[key] for row in found if key in row], form))
        print(f"| {name} | " + " | ".join(cells) + f" | {len(found)} |")
    print(f"\n{ABOUT}")


def best_of(journey: Path, out: Path, rows: dict[str, list[dict[str, float]]], table: bool) -> None:
    """The answers that the reward model likes best of n of the SFT model's, to the held-out questions."""
    given = inputs(journey)
    recipe = {name: given[name] for name in ("policy", "reward", "world")} | {"samples": BEST_OF}
    seconds = make("best-of-n", recipe, out / "best-of", table)
    if seconds is None:
        return
    tree = json.loads((out / "best-of" / "best_of_n.json").read_text())
    bpb = of_evaluation(journey / "evaluate-sft", 0.0)["bpb"]
    for entry in tree["table"]:
        if entry["n"] in (4, BEST_OF):
            found = {"graded": entry["graded_reward"]["mean"], "kl": entry["kl"], "minutes": seconds / 60}
            found["bpb"] = bpb
            found |= {key: entry[key]["mean"] for key in COLUMNS if isinstance(entry.get(key), dict)}
            rows.setdefault(f"best of {entry['n']}", []).append(found)


def trained(
    journey: Path, out: Path, name: str, method: tuple[str, dict[str, Any]], table: bool
) -> dict[str, float] | None:
    """A method's row: train, then measure like every model of the journey."""
    seconds = learned(journey, out / name, method, table)
    if seconds is None:
        return None
    given = inputs(journey)
    measured = {key: given[key] for key in ("world", "reference", "corpus", "reward", "seed")}
    if make("evaluate", measured | {"model": str(out / name)}, out / f"evaluate-{name}", table) is None:
        return None
    return of_evaluation(out / f"evaluate-{name}", seconds)


def learned(journey: Path, out: Path, method: tuple[str, dict[str, Any]], table: bool) -> float | None:
    """Train by a method from what a journey made, into `out`; as `make`."""
    command, changed = method
    keys = {
        "rejection": ("policy", "reward", "prompts", "corpus"),
        "prefer": ("model", "rankings"),
        "prefer-online": ("policy", "reward", "prompts", "world"),
        "grpo": ("policy", "reward", "prompts", "world"),
        "ppo": ("policy", "reference", "reward", "prompts", "world", "corpus"),
    }[command]
    given = inputs(journey)
    return make(command, {key: given[key] for key in (*keys, "seed")} | changed, out, table)


def inputs(journey: Path) -> dict[str, Any]:
    """What the methods share, by the keys that stages know it by."""
    sft, world = str(journey / "sft"), journey / "world"
    return {
        **{"policy": sft, "model": sft, "reference": sft, "reward": str(journey / "reward-1")},
        **{"world": str(world), "corpus": str(journey / "corpus")},
        **{"prompts": [str(world / "prompts.jsonl")], "rankings": [str(journey / "label-1/rankings.jsonl")]},
        "seed": yaml.safe_load((journey / "recipe.yaml").read_text())["seed"],
    }


def make(command: str, recipe: dict[str, Any], out: Path, table: bool) -> float | None:
    """Run a stage unless it is finished; the seconds it took in all its sittings, None where it is missing
    and `table` is set."""
    clock, sittings = (out.with_name(f"{out.name}.{kind}") for kind in ("seconds", "sittings"))
    if not clock.exists():
        if table:
            return None
        config = out.with_name(f"{out.name}.yaml")
        config.write_text(yaml.safe_dump(recipe))
        start = time.perf_counter() - (float(sittings.read_text()) if sittings.exists() else 0.0)
        try:
            subprocess.run(
                [sys.executable, "-m", "bloomery.cli", command, "--config", str(config), "--out", str(out)],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        finally:
            sittings.write_text(str(time.perf_counter() - start))
        sittings.replace(clock)
    return float(clock.read_text())


def of_evaluation(directory: Path, seconds: float) -> dict[str, float]:
    """The columns of one evaluated model; rates are of greedy answers."""
    tree = json.loads((directory / "evaluation.json").read_text())
    rates = {key: tree["greedy"][key]["mean"] for key in COLUMNS if key in tree["greedy"]}
    kl = {"kl": tree["kl"]["mean"]} if tree["kl"] and tree["kl"]["mean"] is not None else {}
    return {
        "graded": tree["sampled"]["graded_reward"]["mean"],
        "greedy": tree["greedy"]["graded_reward"]["mean"],
        "bpb": tree["bpb"]["all"]["mean"],
        **({"minutes": seconds / 60} if seconds else {}),
        **rates,
        **kl,
    }


def gain(name: str, rows: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """What a method adds to the grade of each seed's SFT model, where every seed has both."""
    if name in ("base", "sft") or len(rows[name]) != len(rows["sft"]):
        return ""
    more = [row["gain"] for row in gains(rows)[name]]
    beside = f" ± {half(more):.3f}" if len(more) > 2 else ""
    return f"{mean(more):+.3f}{beside}"


def gains(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, list[dict[str, float]]]:
    """The rows of all methods that every seed has, with `gain`: the grade beyond that seed's SFT model."""
    return {
        name: [
            {**row, "gain": row["graded"] - sft["graded"]}
            for row, sft in zip(found, rows["sft"], strict=True)
        ]
        for name, found in rows.items()
        if len(found) == len(rows["sft"])
    }


def half(values: Sequence[float]) -> float:
    """Of the 95 % interval of a mean, by Student's t."""
    num = len(values)
    return STUDENT[min(num - 2, len(STUDENT) - 1)] * stdev(values) / num**0.5


def spread(values: Sequence[float], form: str) -> str:
    """The mean of the seeds, and from two on the lowest and the highest."""
    if not values:
        return ""
    lowest, highest = format(min(values), form), format(max(values), form)
    return format(mean(values), form) + (f" ({lowest} to {highest})" if len(values) > 1 else "")


def frontier(
    rows: Mapping[str, Sequence[Mapping[str, float]]],
    key: str = "graded",
    title: str = "graded reward of sampled answers",
) -> str:
    """A column (the oracle's grade) over the square root of the KL to the SFT model: a named dot for each
    method's mean over seeds, small ones for the seeds."""
    from bloomery.report.plots import nice_ticks

    points = {
        name: [(row["kl"] ** 0.5, row[key]) for row in found if row.get("kl", -1.0) >= 0]
        for name, found in rows.items()
    }
    points = {name: found for name, found in points.items() if found}
    across = nice_ticks(0.0, max(x for found in points.values() for x, _ in found))
    heights = [y for found in points.values() for _, y in found]
    up = nice_ticks(min(heights), max(heights))

    def place(x: float, y: float) -> tuple[float, float]:
        return 60 + 560 * x / across[-1], 330 - 300 * (y - up[0]) / (up[-1] - up[0])

    body = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 390"><style>{STYLE}</style>']
    for tick in up:
        y = place(0, tick)[1]
        body.append(f'<line x1="60" x2="620" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(f'<text x="52" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in across:
        body.append(f'<text x="{place(tick, 0)[0]:.1f}" y="350" text-anchor="middle">{tick:g}</text>')
    body.append('<text x="340" y="378" text-anchor="middle">square root of the KL to SFT (nats)</text>')
    body.append(f'<text x="60" y="18">{title}</text>')
    middles = {
        name: place(mean(x for x, _ in found), mean(y for _, y in found)) for name, found in points.items()
    }
    taken = [(x - 6, x + 6, y + 4) for x, y in middles.values()]
    for name, (x, y) in sorted(middles.items(), key=lambda item: item[1][1]):
        body += [
            f'<circle class="seed" cx="{a:.1f}" cy="{b:.1f}" r="2.5"/>'
            for a, b in (place(*p) for p in points[name])
        ]
        body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
        side, line = beside(x, y + 4, LETTER * len(name), taken)
        anchor = "" if side > 0 else ' text-anchor="end"'
        body.append(f'<text class="name" x="{x + 8 * side:.1f}" y="{line:.1f}"{anchor}>{name}</text>')
    return "\n".join([*body, "</svg>", ""])


def beside(x: float, line: float, width: float, taken: list[tuple[float, float, float]]) -> tuple[int, float]:
    """Where a name stands beside its dot: right of it, or left, or lower, so that it covers nothing that is
    `taken` (from, to, line) already; it is added there. Returns the side, 1 or -1, and the line."""
    while True:
        for side in (1, -1):
            first, last = sorted((x + 8 * side, x + (8 + width) * side))
            if all(abs(line - other) >= 12 or first > b or last < a for a, b, other in taken):
                taken.append((first, last, line))
                return side, line
        line += 2


if __name__ == "__main__":
    main()
