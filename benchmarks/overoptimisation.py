"""The over-optimisation laboratory over several seeds: the laws, the peaks, what the stop rule keeps.

    python benchmarks/overoptimisation.py runs/lab/seed-0 runs/lab/seed-1 [--out runs/overoptimisation]
    python benchmarks/overoptimisation.py --seeds 0 1 2 [--runs runs/lab] [--cache DIR] [--set key=value ...]

A directory is a finished laboratory (`bloomery run recipes/overoptimisation.yaml`); with --seeds they are
made first, in --runs, hours each; finished stages are not repeated. Prints the section of docs/results.md and
writes it as overoptimisation.md, beside overoptimisation.svg: gold and proxy of every reward model over the
square root of the KL, a line for each seed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from methods import STYLE
from three_seeds import where

from bloomery.journey.lab import CLOSE, FILE, WITNESSES, percent, ranged

RECIPE = Path(__file__).parent.parent / "recipes" / "overoptimisation.yaml"
METHODS = (("PPO", "rl", "rl"), ("best-of-n", "best_of_n", "bon"))
"""What is told of a reward model: in which part of the findings, and by which law."""
ABOUT = """alpha and beta are those of Gao et al. (2022): gold gains d (alpha - beta log d) under PPO and
d (alpha - beta d) under best-of-n, d the square root of the KL in nats; 95 % intervals in brackets, … where
the data set no bound. A peak is visible where beta's interval is above 0 and the runs went as far as it."""
WIDE, TALL, ACROSS = 300, 300, 4
"""A reward model's pictures, gold above proxy, and how many stand side by side."""
Json = Mapping[str, Any]
Curve = list[tuple[float, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("labs", type=Path, nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[])
    parser.add_argument("--runs", type=Path, default=Path("runs/lab"))
    parser.add_argument("--cache", type=Path, help="stages of other runs, for what they have in common")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--out", type=Path, default=Path("runs/overoptimisation"))
    arguments = parser.parse_args()
    made = [made_with(seed, arguments) for seed in arguments.seeds]
    labs = [*arguments.labs, *made]
    if not labs:
        parser.error("name a finished laboratory, or give --seeds")
    found = {path.name: json.loads((path / FILE).read_text(encoding="utf-8")) for path in labs}
    text = section(found, where())
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "overoptimisation.md").write_text(text, encoding="utf-8")
    (arguments.out / "overoptimisation.svg").write_text(pictures(found), encoding="utf-8")
    print(text)


def made_with(seed: int, arguments: argparse.Namespace) -> Path:
    """The directory of a seed's laboratory, which is run unless it is finished."""
    out: Path = arguments.runs / f"seed-{seed}"
    command = [sys.executable, "-m", "bloomery.cli", "run", str(RECIPE), "--out", str(out)]
    command += ["--cache", str(arguments.cache)] if arguments.cache else []
    for override in (f"seed={seed}", *arguments.overrides):
        command += ["--set", override]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


# ------------------------------------------------------------------------------------------- tables


def section(found: Mapping[str, Json], place: str) -> str:
    """Markdown: the laws of every laboratory, what the rules keep, and which bars are met."""
    lines = ["## Over-optimisation", "", f"`python benchmarks/overoptimisation.py`, {place}.", ABOUT, ""]
    lines += [
        "| | reward model | right on | method | alpha | beta | R² | KL at the peak | gold gained there |"
    ]
    lines += ["|---|---|---:|---|---:|---:|---:|---:|---:|"]
    for name, lab in found.items():
        for model in lab["reward_models"]:
            start = f"| {name} | {model['name']} | {percent(model['accuracy']['accuracy'])} |"
            lines += [f"{start} {method} | {law(model[key], which)} |" for method, key, which in METHODS]
    lines += [
        "",
        "Share of the best gain in gold that is kept, mean of the runs in which gold gained at all:",
        "",
    ]
    lines += ["| | rule | by the law | as measured | within 10 %, by the law | within 10 %, measured |"]
    lines += ["|---|---|---:|---:|---:|---:|", *kept(found), "", *verdicts(found)]
    return "\n".join([*lines, ""])


def law(findings: Json, which: str) -> str:
    """The last five cells of a row of laws."""
    if findings["fits"] is None:
        return f"no law: {findings['why']} | | | |"
    fit = findings["fits"][which]
    cells = [ranged(fit["alpha"]), ranged(fit["beta"]), "–" if fit["r2"] is None else f"{fit['r2']:.2f}"]
    peak = fit["peak"]
    if peak is None:
        return " | ".join([*cells, "none", "–"])
    beyond = "" if peak["reached"] else ", beyond the runs"
    return " | ".join([*cells, ranged(peak["kl"]) + beyond, ranged(peak["gain"])])


def kept(found: Mapping[str, Json]) -> Iterator[str]:
    """A row for each laboratory and rule, then the mean over laboratories of each rule."""
    for rule in (*WITNESSES, "no rule"):
        ends = {name: ending(lab, rule) for name, lab in found.items()}
        for name, end in ends.items():
            by_law, seen = end["kept_by_law"], end["kept"]
            close = " | ".join(f"{one['close']} of {one['runs']}" for one in (by_law, seen))
            yield f"| {name} | {rule} | {percent(by_law['mean'])} | {percent(seen['mean'])} | {close} |"
        both = (overall(list(ends.values()), key) for key in ("kept_by_law", "kept"))
        yield f"| mean | {rule} | {' | '.join(percent(share) for share in both)} | | |"


def ending(lab: Json, rule: str) -> Json:
    """What is kept where a rule ends the runs, or at their end."""
    found: Json = lab["without"] if rule == "no rule" else lab["stop_rule"][rule]
    return found


def overall(ends: Sequence[Json], key: str) -> float | None:
    """The mean over laboratories; those in which no run gained anything say nothing."""
    shares = [end[key]["mean"] for end in ends if end[key]["mean"] is not None]
    return mean(shares) if shares else None


def verdicts(found: Mapping[str, Json]) -> Iterator[str]:
    """Where gold has a visible peak under PPO, and whether a rule ends within 10 % of it on average."""
    for name in [model["name"] for model in next(iter(found.values()))["reward_models"]]:
        laws = [m["rl"]["fits"] for lab in found.values() for m in lab["reward_models"] if m["name"] == name]
        seen = sum(fits is not None and visible(fits["rl"]) for fits in laws)
        yield f"- {name}: gold has a visible peak under PPO in {seen} of {len(laws)} laboratories"
    for rule in WITNESSES:
        share = overall([ending(lab, rule) for lab in found.values()], "kept_by_law")
        met = "met" if share is not None and share >= CLOSE else "missed"
        yield f"- {rule} keeps {percent(share)} of the best gain over {len(found)} laboratories: {met}"


def visible(fit: Json) -> bool:
    low = fit["beta"]["low"]
    return fit["peak"] is not None and fit["peak"]["reached"] and low is not None and low > 0


# ----------------------------------------------------------------------------------------- pictures


def pictures(found: Mapping[str, Json]) -> str:
    """Gold above proxy for every reward model: a line for each seed, gold's law dashed, its peak a dot."""
    names = [model["name"] for model in next(iter(found.values()))["reward_models"]]
    rows = -(-len(names) // ACROSS)
    size = f"{min(len(names), ACROSS) * WIDE} {rows * TALL + 24}"
    body = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}"><style>{STYLE}']
    body.append(
        "path{fill:none;stroke:#0068a8;stroke-width:1.5}path.law{stroke-dasharray:4 3;stroke:#6a635a}"
    )
    body.append("path.proxy{stroke:#c2571a}</style>")
    for at, name in enumerate(names):
        left, top = at % ACROSS * WIDE, at // ACROSS * TALL
        models = [
            (lab, model) for lab in found.values() for model in lab["reward_models"] if model["name"] == name
        ]
        body.append(f'<g transform="translate({left} {top})"><text class="name" x="44" y="14">{name}</text>')
        gold = [("gold", averaged(model, "gold", lab["window"])) for lab, model in models]
        proxy = [("proxy", averaged(model, "proxy", lab["window"])) for lab, model in models]
        fits = [(m["rl"]["curves"], m["rl"]["fits"]) for _, m in models if m["rl"]["curves"]]
        laws = [("law", list(zip(c["rl"]["d"], c["rl"]["gold"], strict=True))) for c, _ in fits]
        peaks = [
            (f["rl"]["peak"]["d"]["value"], f["rl"]["start"]["value"] + f["rl"]["peak"]["gain"]["value"])
            for _, f in fits
            if f["rl"]["peak"] and f["rl"]["peak"]["reached"]
        ]
        body += panel(gold + laws, peaks, 24, 130) + panel(proxy, [], 180, 80)
        body.append("</g>")
    x, y = size.split()
    body.append(
        f'<text x="{int(x) / 2}" y="{int(y) - 6}" text-anchor="middle">square root of the KL to SFT (nats); '
        "above the oracle’s grade, below the reward model’s score</text></svg>\n"
    )
    return "\n".join(body)


def averaged(model: Json, key: str, window: int) -> Curve:
    """A column of all runs over the distance, as the report smooths it."""
    from bloomery.report.plots import smooth

    points = sorted((d, y) for run in model["runs"] for d, y in zip(run["d"], run[key], strict=True))
    smoothed = smooth([y for _, y in points], window * len(model["runs"]))
    return [(d, y) for (d, _), y in zip(points, smoothed, strict=True) if y is not None]


def panel(curves: Sequence[tuple[str, Curve]], peaks: Curve, top: int, tall: int) -> list[str]:
    """One pair of axes in a cell: curves by class, and dots."""
    from bloomery.report.plots import nice_ticks

    heights = [y for _, curve in curves for _, y in curve]
    across = nice_ticks(0.0, max(x for _, curve in curves for x, _ in curve), 4)
    up = nice_ticks(min(heights), max(heights), 4)

    def place(x: float, y: float) -> tuple[float, float]:
        return 44 + 240 * x / across[-1], top + tall - tall * (y - up[0]) / (up[-1] - up[0])

    body = []
    for tick in up:
        y = place(0, tick)[1]
        body.append(f'<line x1="44" x2="284" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(f'<text x="38" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in across:
        body.append(
            f'<text x="{place(tick, 0)[0]:.1f}" y="{top + tall + 14}" text-anchor="middle">{tick:g}</text>'
        )
    for look, curve in curves:
        points = "L".join("{:.1f} {:.1f}".format(*place(x, y)) for x, y in curve)
        body.append(f'<path class="{look}" d="M{points}"/>')
    body += ['<circle cx="{:.1f}" cy="{:.1f}" r="3.5"/>'.format(*place(x, y)) for x, y in peaks]
    return body


if __name__ == "__main__":
    main()
