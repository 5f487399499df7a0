"""The alignment tax: PPO with and without the pretraining mix, compared at equal divergence.

    python benchmarks/alignment_tax.py runs/seeds/seed-0 runs/seeds/seed-1 runs/seeds/seed-2
        [--out runs/alignment_tax] [--table]

Each directory is a finished default journey (benchmarks/three_seeds.py makes them), whose SFT model and first
reward model every run gets. The default journey moves a model so little that its text hardly suffers; here
the learning rate is four times as high and the leash half as strong, so that there is a tax to save.

At that rate the divergence grows with the steps and does not settle where the leash would hold it. So PPO is
stopped at three lengths, which makes its curve, and PPO-ptx at one between them. What PPO wins and pays at
the very divergence of a PPO-ptx run is read off the lines from the SFT model through PPO's runs, over the
square root of the KL; a run beyond the last of them is not compared. (That two runs end at one divergence
could only be had by a search, and would hold only up to the noise of sampling.) Finished parts are not
repeated; --table prints what is there. Writes alignment_tax.json, alignment_tax.md, the section of
docs/results.md, and two plots over the divergence: of grades and of bits per byte.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from methods import frontier, of_evaluation, trained
from three_seeds import where

ALL: dict[str, Any] = {"kl_coef": 0.1, "optimiser": {"learning_rate": 2e-4}}
# name -> what else differs from the PPO stage's defaults
PPO: dict[str, dict[str, Any]] = {f"PPO-{steps}": {"steps": steps} for steps in (10, 17, 24)}
PTX: dict[str, dict[str, Any]] = {
    f"PPO-ptx-{gamma}": {"steps": 20, "ptx_coef": gamma, "ptx_batch": 4} for gamma in (0.25, 1)
}
SIDES = {"gain": "graded", "gain, greedy": "greedy", "known": "known_accuracy", "loss": "bpb"}
"""What is won and paid: how much more there is of a column than with the SFT model."""
ABOUT = """PPO is named after its steps, PPO-ptx, which has 20, after gamma; the learning rate is four times
the default's and the leash half of it. "Known" is of greedy answers, bits per byte of held-out documents,
the KL to the SFT model of sampled answers."""
KEEPS, AT = 0.8, 0.5
"""The bar: this share of the gain, at less than this share of the loss."""
COLUMNS = (
    ("graded", "graded", ".3f"),
    ("greedy", "graded greedy", ".3f"),
    ("known_accuracy", "known", ".3f"),
    ("bpb", "bits/byte", ".4f"),
    ("kl", "KL", ".2f"),
    ("minutes", "minutes", ".1f"),
)
Row = Mapping[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("journeys", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("runs/alignment_tax"))
    parser.add_argument("--table", action="store_true", help="run nothing, print what is there")
    arguments = parser.parse_args()
    found: dict[str, dict[str, Row]] = {}
    for journey in arguments.journeys:
        out = arguments.out / journey.name
        out.mkdir(parents=True, exist_ok=True)
        rows = found.setdefault(journey.name, {"SFT": of_evaluation(journey / "evaluate-sft", 0.0)})
        for name, changed in (PPO | PTX).items():
            if row := trained(journey, out, name, ("ppo", ALL | changed), arguments.table):
                rows[name] = row
    beside = {seed: compared(rows) for seed, rows in found.items()}
    (arguments.out / "alignment_tax.json").write_text(
        json.dumps({"where": where(), "rows": found, "compared": beside}, indent=1) + "\n"
    )
    text = section(found, beside, where())
    (arguments.out / "alignment_tax.md").write_text(text)
    names = ("SFT", *PPO, *PTX)
    by_name = {name: [rows[name] for rows in found.values() if name in rows] for name in names}
    for key, title in (("graded", "graded reward of sampled answers"), ("bpb", "bits per byte of text")):
        (arguments.out / f"{key}.svg").write_text(frontier(by_name, key, title))
    print(text)


def compared(rows: Mapping[str, Row]) -> dict[str, dict[str, float]]:
    """For each PPO-ptx run of a seed what it won and paid against the SFT model, its KL to it, and what PPO
    won and paid at that KL (`"PPO gain"` and so on). A run beyond PPO's last is left out."""
    found: dict[str, dict[str, float]] = {}
    curve = [rows[name] for name in ("SFT", *PPO) if name in rows]
    for name in (name for name in PTX if name in rows):
        alike = at(curve, rows[name]["kl"])
        if alike is None:
            continue
        found[name] = {"kl": rows[name]["kl"]}
        for side, key in SIDES.items():
            found[name][side] = rows[name][key] - rows["SFT"][key]
            found[name][f"PPO {side}"] = alike[key] - rows["SFT"][key]
    return found


def at(curve: Sequence[Row], kl: float) -> dict[str, float] | None:
    """Every column of a curve's runs at a divergence, linear in its square root between two neighbours; None
    outside of them."""
    ordered = sorted(curve, key=lambda row: row["kl"])
    for low, high in pairwise(ordered):
        if low["kl"] <= kl <= high["kl"]:
            left, here, right = (x**0.5 for x in (low["kl"], kl, high["kl"]))
            share = (here - left) / (right - left) if right > left else 0.0
            return {key: low[key] + share * (high[key] - low[key]) for key in low if key in high}
    return None


def section(found: Mapping[str, Mapping[str, Row]], beside: Mapping[str, Any], place: str) -> str:
    """Markdown: a row for each seed and run; PPO-ptx beside PPO at the same KL; which bar is met."""
    lines = ["## The alignment tax", "", f"`python benchmarks/alignment_tax.py runs/seeds/seed-*`, {place}."]
    lines += [ABOUT, ""]
    lines += ["| seed | | " + " | ".join(title for _, title, _ in COLUMNS) + " |"]
    lines += ["|---|---|" + "---:|" * len(COLUMNS)]
    for seed, rows in found.items():
        for name, row in rows.items():
            cells = [format(row[key], style) if key in row else "" for key, _, style in COLUMNS]
            lines.append(f"| {seed} | {name} | " + " | ".join(cells) + " |")
    lines += ["", "Against the SFT model, and what PPO wins and loses at the same KL:", ""]
    lines += ["| seed | | KL | " + " | ".join(f"{side} | PPO's {side}" for side in SIDES) + " |"]
    lines += ["|---|---|---:|" + "---:|" * 2 * len(SIDES)]
    for seed, runs in beside.items():
        for name, row in runs.items():
            both = [x for side in SIDES for x in (row[side], row[f"PPO {side}"])]
            cells = [format(x, "+.4f") for x in both]
            lines.append(f"| {seed} | {name} | {row['kl']:.2f} | " + " | ".join(cells) + " |")
    lines += ["", *(verdict(name, [runs[name] for runs in beside.values() if name in runs]) for name in PTX)]
    return "\n".join([*lines, ""])


def verdict(name: str, runs: Sequence[Row]) -> str:
    """Which share of PPO's gain a run keeps over the seeds, at which share of its loss, and whether that is
    enough. Shares are of the seeds' means: a seed in which PPO loses next to nothing does not decide."""
    gained, lost = (mean(run[f"PPO {side}"] for run in runs) if runs else 0.0 for side in ("gain", "loss"))
    if gained <= 0 or lost <= 0:
        return f"- {name}: nothing to compare over {len(runs)} seeds; PPO won {gained:+.3f}, lost {lost:+.4f}"
    kept, paid = mean(run["gain"] for run in runs) / gained, mean(run["loss"] for run in runs) / lost
    met = "met" if kept >= KEEPS and paid < AT else "missed"
    return f"- {name} keeps {kept:.0%} of the gain at {paid:.0%} of the loss ({len(runs)} seeds): {met}"


if __name__ == "__main__":
    main()
