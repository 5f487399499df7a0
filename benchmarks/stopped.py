"""What a policy is worth where a stop rule ends its run, and where nothing does.

    python benchmarks/stopped.py runs/lab/seed-0 runs/lab/seed-1 [--against centre] [--kl-coef 0]
        [--rules held-out "held-out in budget"] [--out runs/stopped] [--table]

Each directory is a finished over-optimisation laboratory, whose runs of PPO all went to their end. One of
them is made again with a `stop_rule` and nothing else changed. The SFT model, the policies that were saved
and the one that went on are then asked the held-out questions of the world, which no run has seen, as a
journey asks its models. Finished parts are not repeated; --table prints what is there. Writes stopped.json
and stopped.md, for docs/results.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from methods import COLUMNS, make, of_evaluation, spread
from three_seeds import where

from bloomery.errors import ArtifactError
from bloomery.journey.lab import NO_RULE, STOPS, TWIN_IN_BUDGET, heeds
from bloomery.journey.settings import HELD_OUT

CLOCKS = ("timing/", "eps", "rollout/")
"""What begins so tells of the machine, not of the run."""
SHOWN = [name for name in COLUMNS if name != "minutes"]
Row = Mapping[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("labs", type=Path, nargs="+")
    parser.add_argument("--against", nargs="+", default=["centre"], help="reward models of the laboratory")
    parser.add_argument("--kl-coef", default="0")
    parser.add_argument("--rules", nargs="+", choices=STOPS, default=[HELD_OUT, TWIN_IN_BUDGET])
    parser.add_argument("--out", type=Path, default=Path("runs/stopped"))
    parser.add_argument("--table", action="store_true", help="run nothing, print what is there")
    arguments = parser.parse_args()
    found: dict[str, dict[str, list[Row]]] = {}
    for name in arguments.against:
        runs = [stopped(lab, name, arguments) for lab in arguments.labs]
        policies = ("SFT", *arguments.rules, NO_RULE)
        found[name] = {policy: [run[policy] for run in runs if run] for policy in policies}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "stopped.json").write_text(json.dumps({"where": where(), "rows": found}, indent=1))
    text = section(found, where())
    (arguments.out / "stopped.md").write_text(text)
    print(text)


def stopped(lab: Path, name: str, arguments: argparse.Namespace) -> dict[str, Row] | None:
    """The rows of a laboratory, or None where parts are missing and nothing is to be run."""
    run = lab / f"ppo-{name}-{arguments.kl_coef}"
    out = arguments.out / lab.name
    out.mkdir(parents=True, exist_ok=True)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    card = json.loads((lab / f"reward-{name}" / "evaluation.json").read_text())
    models, steps = {"SFT": lab / "sft"}, {"SFT": 0, NO_RULE: recipe["steps"]}
    for rule in arguments.rules:
        ended = out / f"{run.name}-{rule.replace(' ', '-')}"
        watch, budget = heeds(rule, card.get("verdict", {}).get("kl"))
        given = {"watch": watch, "budget": budget}
        settings = {key: value for key, value in given.items() if value is not None}
        if make("ppo", recipe | {"stop_rule": settings}, ended, arguments.table) is None:
            return None
        models[rule], steps[rule] = ended, len(same_until_ended(run, ended))
    asked = {"world": str(lab / "world"), "corpus": str(lab / "corpus"), "reference": str(lab / "sft")}
    rows: dict[str, Row] = {}
    for policy, model in (models | {NO_RULE: run}).items():
        there = out / f"evaluate-{model.name}"
        given = asked | {"model": str(model), "seed": recipe["seed"]}
        if make("evaluate", given, there, arguments.table) is None:
            return None
        rows[policy] = {**of_evaluation(there, 0.0), "steps": steps[policy]}
    return rows


def same_until_ended(run: Path, ended: Path) -> list[dict[str, Any]]:
    """The lines of the run that was ended. Raises `ArtifactError` where they are not the other's, digit by
    digit: then more than the rule would tell the two apart."""
    whole, short = (
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (run, ended)
    )
    for one, other in zip(whole, short, strict=False):
        differ = [key for key in one if not key.startswith(CLOCKS) and one[key] != other.get(key)]
        if differ:
            raise ArtifactError(f"step {one['step']} is another than without the rule: {differ}", where=ended)
    return short


def section(found: Mapping[str, Mapping[str, Sequence[Row]]], place: str) -> str:
    """Markdown: a row for each policy, means over the seeds, the lowest and highest of its grade."""
    titles = " | ".join(COLUMNS[key][0] for key in SHOWN)
    lines = [
        f"`python benchmarks/stopped.py runs/lab/seed-*`, {place}.",
        "",
        f"| | | steps | {titles} | seeds |",
    ]
    lines += [f"|---|---|---:|{'---:|' * len(SHOWN)}---:|"]
    for name, rows in found.items():
        for policy, seeds in rows.items():
            cells = [spread([row["steps"] for row in seeds], ".0f")]
            cells += [
                spread([COLUMNS[key][2] * row[key] for row in seeds if key in row], COLUMNS[key][1])
                for key in SHOWN
            ]
            lines.append(f"| {name} | {policy} | {' | '.join(cells)} | {len(seeds)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
