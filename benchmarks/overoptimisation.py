"""The over-optimisation laboratory over several seeds: laws, peaks, and what is gained where a rule stops.

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
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

from pictures import Panel, picture
from three_seeds import where

from bloomery.evals.bootstrap import interval
from bloomery.evals.overoptimisation import Ranged
from bloomery.journey.lab import CLOSE, FILE, NO_RULE, RULES, STOPS, overall
from bloomery.journey.lab_words import percent, ranged
from bloomery.journey.settings import HELD_OUT
from bloomery.report.plots import Series

RECIPE = Path(__file__).parent.parent / "recipes" / "overoptimisation.yaml"
METHODS = (("PPO", "rl", "rl"), ("best-of-n", "best_of_n", "bon"))
"""What is told of a reward model: in which part of the findings, and by which law."""
ABOUT = """Gains are over the SFT model's own answers to the same prompts, in the oracle's grades, which go
from -2 to 1; means over the seeds. "Highest" is the top of the measured curve of a reward model, all leashes
together and smoothed over d, the square root of the KL in nats; "budget" is the KL that the reward model's
own report card allowed, from held-out rankings alone, 0 where it says not to optimise; with "budget" a rule
ends a run by it, or hears its witness between half of it and twice of it. Alpha and beta are
those of Gao et al., 2022: gold gains d (alpha - beta log d) under PPO and d (alpha - beta d) under best-of-n;
in their brackets the lowest and the highest bound of the seeds' 95 % intervals, … where the data set none. A
rule meets the bar where it keeps at least 90 % of what is gained at the peaks; in brackets the 95 % interval
when reward models are drawn with replacement."""
VISIBLE = 0.02
"""A law's peak that gains less may be noise of these curves."""
WORTH = 0.05
"""A measured peak is known to about 0.01: where it gains less than this, shares of it say little."""
REACH = 4.0
"""Distances are drawn so far; what a collapsed policy does beyond is in the findings."""
AXIS = "square root of the KL to SFT (nats)"
Json = Mapping[str, Any]


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
    """Markdown: what is gained at the peaks and where the rules stop, the laws, and which bars are met."""
    lines = [
        "## Over-optimisation",
        "",
        f"`python benchmarks/overoptimisation.py runs/lab/seed-*`, {place}.",
        ABOUT,
        "",
    ]
    lines += [f"| reward model | right on | highest | at KL | budget, nats | {' | '.join(RULES)} |"]
    lines += [f"|---|{'---:|' * (4 + len(RULES))}", *gains(found), ""]
    lines += ["| reward model | method | alpha | beta | R² | KL at the law's peak | gained there |"]
    lines += ["|---|---|---:|---:|---:|---:|---:|"]
    for name in names(found):
        for method, key, which in METHODS:
            laws = [model[key]["fits"] for model in of(found, name)]
            cells = law([fits[which] for fits in laws if fits is not None])
            lines.append(f"| {name} | {method} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *shares(found), "", *peaks(found), ""])


def names(found: Mapping[str, Json]) -> list[str]:
    """The reward models, in the order of the first laboratory."""
    return [model["name"] for model in next(iter(found.values()))["reward_models"]]


def of(found: Mapping[str, Json], name: str) -> list[Json]:
    """A reward model in every laboratory."""
    return [model for lab in found.values() for model in lab["reward_models"] if model["name"] == name]


def gains(found: Mapping[str, Json]) -> Iterator[str]:
    """A row for each reward model: the highest gain, and those where the rules stop; then the means."""
    for name in names(found):
        models = of(found, name)
        right = [m["accuracy"]["accuracy"] for m in models if m["accuracy"]["accuracy"] is not None]
        kl = " / ".join(f"{model['peak']['kl']:.1f}" for model in models)
        budget = " / ".join("–" if m["budget"] is None else f"{m['budget']:.1f}" for m in models)
        rate = percent(mean(right) if right else None)
        head = f"| {name} | {rate} | {overall(models)['peak']:+.2f} | {kl} | {budget} |"
        yield " ".join([head, *(f"{overall(models)[rule]:+.2f} |" for rule in RULES)])
    every = overall([model for name in names(found) for model in of(found, name)])
    yield " ".join([f"| mean | | {every['peak']:+.2f} | | |", *(f"{every[rule]:+.2f} |" for rule in RULES)])


def law(fits: Sequence[Json]) -> list[str]:
    """The five cells of a law: means over the laboratories in which it could be fitted, and has a peak."""
    if not fits:
        return ["no law", *["–"] * 4]
    r2 = [fit["r2"] for fit in fits if fit["r2"] is not None]
    peaks = [fit["peak"] for fit in fits if fit["peak"] is not None]
    cells = [together([fit[key] for fit in fits]) for key in ("alpha", "beta")]
    cells.append(f"{mean(r2):.2f}" if r2 else "–")
    if len(peaks) < len(fits):
        return [*cells, f"none in {len(fits) - len(peaks)} of {len(fits)}", "–"]
    return [*cells, *(together([peak[key] for peak in peaks]) for key in ("kl", "gain"))]


def together(several: Sequence[Json]) -> str:
    """The mean of numbers with intervals, and the interval that holds all of theirs."""
    lows, highs = ([one[key] for one in several] for key in ("low", "high"))
    low, high = None if None in lows else min(lows), None if None in highs else max(highs)
    return ranged(asdict(Ranged(mean(one["value"] for one in several), low, high)))


def peaks(found: Mapping[str, Json]) -> Iterator[str]:
    """Where gold has a visible peak."""
    for name in names(found):
        seen = []
        for method, key, which in METHODS:
            laws = [model[key]["fits"] for model in of(found, name)]
            clear = sum(fits is not None and visible(fits[which]) for fits in laws)
            seen.append(f"under {method} in {clear} of {len(laws)} laboratories")
        yield f"- {name}: gold has a visible peak {', '.join(seen)}"


def shares(found: Mapping[str, Json]) -> Iterator[str]:
    """A row for each rule: which share it keeps of what is gained at the peaks, of all reward models and of
    those where something can be gained, and which share it avoids of what is lost from peaks to ends."""
    every = [model for lab in found.values() for model in lab["reward_models"]]
    worth = [model for model in every if model["peak"]["gain"] >= WORTH]
    lost = {rule: sum(model["peak"]["gain"] - model["by_rule"][rule] for model in every) for rule in RULES}
    most = lost[NO_RULE]
    share = f"where at least {WORTH:g} can be gained ({len(worth)} of {len(every)})"
    yield f"| rule | keeps of the gain at the peak | {share} | avoids of the loss after it |"
    yield "|---|---:|---:|---:|"
    for rule in STOPS:
        avoided = percent(1 - lost[rule] / most) if most > 0 else "–"
        yield f"| {rule} | {kept(rule, every)} | {kept(rule, worth)} | {avoided} |"


def kept(rule: str, models: Sequence[Json]) -> str:
    """Which share of the gain at the peaks a rule keeps, with its interval, and whether that is close."""
    gains = [(model["by_rule"][rule], model["peak"]["gain"]) for model in models]
    got, best = (sum(column) for column in zip(*gains, strict=True)) if gains else (0.0, 0.0)
    if best <= 0:
        return "–"
    low, high = interval(gains)
    met = "met" if got / best >= CLOSE else "missed"
    return f"{percent(got / best)} ({percent(low)} to {percent(high)}), {met}"


def visible(fit: Json) -> bool:
    low, peak = fit["beta"]["low"], fit["peak"]
    risen = peak is not None and peak["reached"] and (peak["gain"]["low"] or 0) > VISIBLE
    return risen and low is not None and low > 0


# ----------------------------------------------------------------------------------------- pictures


def pictures(found: Mapping[str, Json]) -> str:
    """Gold beside the score of every reward model, a line for each seed: PPO, its law, best-of-n, peaks."""
    panels = []
    for name in names(found):
        models = of(found, name)
        gold = [curve(model["smooth"], "gold", "PPO", "s3") for model in models]
        laws = [curve(m["rl"]["curves"]["rl"], "gold", "law", "s3") for m in models if m["rl"]["curves"]]
        gold += [replace(one, look="dashed") for one in laws]
        best = [curve(model["best_of_n"], "gold", "best-of-n", "s1") for model in models]
        peaks = [
            Series("peak", [model["peak"]["d"]], [lab["start"] + model["peak"]["gain"]], "s2", "points")
            for lab, model in zip(found.values(), models, strict=True)
            if model["peak"]["reached"]
        ]
        gold += [*(replace(one, look="points") for one in best), *peaks]
        scores = [curve(model["smooth"], "proxy", "score", "s2") for model in models]
        scores += [curve(model["smooth"], HELD_OUT, "held-out", "s4") for model in models]
        panels += [Panel(f"Gold against {name}", AXIS, gold), Panel(f"What {name} thinks", AXIS, scores)]
    return picture(*panels, across=2)


def curve(drawn: Json, key: str, name: str, colour: str) -> Series:
    near = [(x, y) for x, y in zip(drawn["d"], drawn[key], strict=True) if x <= REACH]
    return Series(name, [x for x, _ in near], [y for _, y in near], colour)


if __name__ == "__main__":
    main()
