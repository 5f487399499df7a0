"""What training looks like: the curves of docs/algorithms, drawn from finished runs.

    python benchmarks/curves.py runs/seeds/seed-0 runs/seeds/seed-1 runs/seeds/seed-2
        [--methods runs/methods] [--fp32 runs/fp32] [--out runs/curves]

The directories are default journeys (benchmarks/three_seeds.py), --methods what benchmarks/methods.py made of
them; --fp32 the same seeds with pretraining, SFT and reward model in float32. A line is the mean of the
seeds, its band from the lowest to the highest; values of every step are first averaged over a tenth of the
run. Writes one SVG for each page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean

from pictures import COLOURS, Panel, picture

from bloomery.report.plots import Series, smooth

KL = "objective/kl"
GOLD = "gold/graded_reward"
Curve = list[tuple[float, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("journeys", type=Path, nargs="+")
    parser.add_argument("--methods", type=Path, default=Path("runs/methods"))
    parser.add_argument("--fp32", type=Path, default=Path("runs/fp32"))
    parser.add_argument("--out", type=Path, default=Path("runs/curves"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    made = [arguments.methods / journey.name for journey in arguments.journeys]
    drawn = {page: draw(arguments.journeys, made) for page, draw in PAGES.items()}
    full = [arguments.fp32 / journey.name for journey in arguments.journeys]
    if all(run.is_dir() for run in full):
        drawn["precision"] = precisions(arguments.journeys, full)
    for page, text in drawn.items():
        (arguments.out / f"curve-{page}.svg").write_text(text, encoding="utf-8")
        print(arguments.out / f"curve-{page}.svg")


def logged(run: Path, key: str, window: float = 0.1) -> Curve:
    """A metric over the steps of a run; logged at every step, averaged over a share of them."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [(row["step"] + 1, row[key]) for row in rows if key in row]
    width = round(window * len(found)) if len(found) == len(rows) else 1
    values = smooth([y for _, y in found], max(1, width))
    return [(x, y) for (x, _), y in zip(found, values, strict=True) if y is not None]


def over_seeds(name: str, curves: Sequence[Curve], colour: str, look: str = "line") -> Series:
    """The mean of curves at the places that all have, from the lowest to the highest."""
    tables = [dict(curve) for curve in curves]
    places = sorted(set.intersection(*(set(table) for table in tables)))
    values = [[table[x] for table in tables] for x in places]
    low, high = [min(v) for v in values], [max(v) for v in values]
    return Series(name, places, [mean(v) for v in values], colour, look, low, high)


def steps(title: str, key: str, runs: Mapping[str, Sequence[Path]], as_percent: bool = False) -> Panel:
    """A metric of several methods over their steps."""
    found = [
        over_seeds(name, [logged(run, key) for run in those], colour)
        for (name, those), colour in zip(runs.items(), COLOURS, strict=False)
    ]
    return Panel(title, "step", found, as_percent)


def reinforced(*names: str) -> Callable[[Sequence[Path], Sequence[Path]], str]:
    def draw(journeys: Sequence[Path], made: Sequence[Path]) -> str:
        runs = {name: [where / name for where in made] for name in names}
        return picture(steps("The oracle’s grade", GOLD, runs), steps("KL to SFT, nats an answer", KL, runs))

    return draw


def preferred(journeys: Sequence[Path], made: Sequence[Path]) -> str:
    runs = {name: [where / name for where in made] for name in ("DPO", "IPO", "KTO")}
    return picture(
        steps("Pairs ordered as people did", "rewards/accuracies", runs, as_percent=True),
        steps("Log-prob of the better answer", "logps/chosen", runs),
    )


def searched(journeys: Sequence[Path], made: Sequence[Path]) -> str:
    """Best-of-n over the distance it costs, by the score that chose and by the oracle."""
    found = []
    keys = (("reward model’s score", "proxy_reward", "s2"), ("oracle’s grade", "graded_reward", "s1"))
    for name, key, colour in keys:
        tables = [json.loads((where / "best-of/best_of_n.json").read_text())["table"] for where in made]
        curves = [[(round(row["sqrt_kl"], 3), row[key]["mean"]) for row in table] for table in tables]
        found.append(over_seeds(name, curves, colour, "points"))
    best = Panel("Best of 1, 2, 4, 8, 16", "square root of the KL (nats)", found)
    runs = {"rejection sampling": [where / "rejection" for where in made]}
    return picture(best, steps("Score of what rejection sampling draws", "reward", runs))


def rewarded(journeys: Sequence[Path], made: Sequence[Path]) -> str:
    """The first reward model of the journeys."""
    runs = [journey / "reward-1" for journey in journeys]
    panels = []
    for title, seen, held, as_percent in (
        ("Pairs ordered as people did", "accuracy", "eval_accuracy", True),
        ("Loss", "loss", "eval_loss", False),
    ):
        both = [over_seeds("in training", [logged(run, seen) for run in runs], "s2")]
        if all(logged(run, held) for run in runs):
            both.append(over_seeds("held out", [logged(run, held) for run in runs], "s1", "points"))
        panels.append(Panel(title, "step", both, as_percent))
    return picture(*panels)


def precisions(journeys: Sequence[Path], full: Sequence[Path]) -> str:
    """What is held out, over the steps of the three stages that compute in bf16 by default."""
    panels = []
    for title, stage, key, as_percent in (
        ("Pretraining: bits per byte", "base", "val/bpb", False),
        ("SFT: loss of demonstrations", "sft", "eval_loss", False),
        ("Reward model: pairs ordered as people did", "reward-1", "eval_accuracy", True),
    ):
        sides = {"bf16": journeys, "fp32": full}
        runs = {name: [journey / stage for journey in where] for name, where in sides.items()}
        panels.append(steps(title, key, runs, as_percent))
    return picture(*panels)


PAGES: dict[str, Callable[[Sequence[Path], Sequence[Path]], str]] = {
    "ppo": reinforced("PPO", "PPO-ptx"),
    "grpo": reinforced("GRPO", "RLOO"),
    "prefer": preferred,
    "search": searched,
    "reward": rewarded,
}


if __name__ == "__main__":
    main()
