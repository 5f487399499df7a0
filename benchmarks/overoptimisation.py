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
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from methods import STYLE
from three_seeds import where

from bloomery.evals.bootstrap import DRAWS
from bloomery.evals.overoptimisation import Ranged
from bloomery.journey.lab import CLOSE, FILE, RULES, WITNESSES, overall
from bloomery.journey.lab_words import percent, ranged
from bloomery.seeds import stream

RECIPE = Path(__file__).parent.parent / "recipes" / "overoptimisation.yaml"
METHODS = (("PPO", "rl", "rl"), ("best-of-n", "best_of_n", "bon"))
"""What is told of a reward model: in which part of the findings, and by which law."""
ABOUT = """Gains are over the SFT model's own answers to the same prompts, in the oracle's grades, which go
from -2 to 1; means over the seeds. "Highest" is the top of the measured curve of a reward model, all leashes
together and smoothed over d, the square root of the KL in nats. Alpha and beta are those of Gao et al., 2022:
gold gains d (alpha - beta log d) under PPO and d (alpha - beta d) under best-of-n. In brackets the lowest and
the highest bound of the seeds' 95 % intervals, … where the data set none."""
VISIBLE = 0.02
"""A law's peak that gains less may be noise of these curves."""
WIDE, TALL, ACROSS = 300, 330, 4
"""A reward model's pictures, gold above proxy, and how many stand side by side."""
REACH = 4.0
"""Distances are drawn so far; what a collapsed policy does beyond is in the findings."""
Json = Mapping[str, Any]
Curve = list[tuple[float, float]]
Curves = list[tuple[str, Curve]]
LOOKS = """path{fill:none;stroke:#0068a8;stroke-width:1.5}path.law{stroke-dasharray:4 3;stroke:#6a635a}
path.proxy{stroke:#c2571a}path.best{stroke:#3d7a36;stroke-width:1}</style>"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("labs", type=Path, nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[])
    parser.add_argument("--runs", type=Path, default=Path("runs/lab"))
    parser.add_argument("--cache", type=Path, help="stages of other runs, for what they have in common")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument(
        "--chosen", nargs="+", default=[], help="what the rule was chosen on: seed-0/half ..."
    )
    parser.add_argument("--out", type=Path, default=Path("runs/overoptimisation"))
    arguments = parser.parse_args()
    made = [made_with(seed, arguments) for seed in arguments.seeds]
    labs = [*arguments.labs, *made]
    if not labs:
        parser.error("name a finished laboratory, or give --seeds")
    found = {path.name: json.loads((path / FILE).read_text(encoding="utf-8")) for path in labs}
    text = section(found, where(), arguments.chosen)
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


def section(found: Mapping[str, Json], place: str, chosen: Sequence[str] = ()) -> str:
    """Markdown: what is gained at the peaks and where the rules stop, the laws, and which bars are met."""
    lines = ["## Over-optimisation", "", f"`python benchmarks/overoptimisation.py`, {place}.", ABOUT, ""]
    lines += [f"| reward model | right on | highest | at KL | {' | '.join(RULES)} |"]
    lines += [f"|---|{'---:|' * (3 + len(RULES))}", *gains(found), ""]
    lines += ["| reward model | method | alpha | beta | R² | KL at the law's peak | gained there |"]
    lines += ["|---|---|---:|---:|---:|---:|---:|"]
    for name in names(found):
        for method, key, which in METHODS:
            laws = [model[key]["fits"] for model in of(found, name)]
            cells = law([fits[which] for fits in laws if fits is not None])
            lines.append(f"| {name} | {method} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *verdicts(found, chosen), ""])


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
        head = (
            f"| {name} | {percent(mean(right) if right else None)} | {overall(models)['peak']:+.2f} | {kl} |"
        )
        yield " ".join([head, *(f"{overall(models)[rule]:+.2f} |" for rule in RULES)])
    every = overall([model for name in names(found) for model in of(found, name)])
    yield " ".join([f"| mean | | {every['peak']:+.2f} | |", *(f"{every[rule]:+.2f} |" for rule in RULES)])


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


def verdicts(found: Mapping[str, Json], chosen: Sequence[str] = ()) -> Iterator[str]:
    """Where gold has a visible peak, and whether the rules end within 10 % of it on average; also without the
    reward models (`seed-0/half`) that the rule's settings were `chosen` on."""
    for name in names(found):
        seen = []
        for method, key, which in METHODS:
            laws = [model[key]["fits"] for model in of(found, name)]
            clear = sum(fits is not None and visible(fits[which]) for fits in laws)
            seen.append(f"under {method} in {clear} of {len(laws)} laboratories")
        yield f"- {name}: gold has a visible peak {', '.join(seen)}"
    every = {f"{lab}/{model['name']}": model for lab, one in found.items() for model in one["reward_models"]}
    rest = [model for name, model in every.items() if name not in chosen]
    for rule in WITNESSES:
        met = "met" if share(list(every.values()), rule)[0] >= CLOSE else "missed"
        also = (
            f"; on the {len(rest)} that its settings were not chosen on, {kept(rest, rule)}" if chosen else ""
        )
        yield f"- {rule} keeps {kept(list(every.values()), rule)} of what is gained at the peaks{also}: {met}"


def share(models: Sequence[Json], rule: str) -> tuple[float, float, float]:
    """Of all that is gained at the peaks, how much where a rule stops; and a 95 % interval, reward models
    drawn with replacement. NaN where nothing is gained."""
    gains = np.array([[model["by_rule"][rule], model["peak"]["gain"]] for model in models])
    drawn = stream(0, "share").multinomial(len(models), np.full(len(models), 1 / len(models)), DRAWS) @ gains
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(drawn[:, 1] > 0, drawn[:, 0] / drawn[:, 1], np.nan)
        whole = gains.sum(axis=0)
        mid = float(whole[0] / whole[1]) if whole[1] > 0 else math.nan
    low, high = np.nanquantile(shares, [0.025, 0.975]) if not np.isnan(mid) else (mid, mid)
    return mid, float(low), float(high)


def kept(models: Sequence[Json], rule: str) -> str:
    mid, low, high = share(models, rule)
    return "–" if math.isnan(mid) else f"{percent(mid)} ({percent(low)} to {percent(high)})"


def visible(fit: Json) -> bool:
    low, peak = fit["beta"]["low"], fit["peak"]
    risen = peak is not None and peak["reached"] and (peak["gain"]["low"] or 0) > VISIBLE
    return risen and low is not None and low > 0


# ----------------------------------------------------------------------------------------- pictures


def pictures(found: Mapping[str, Json]) -> str:
    """Gold above proxy for every reward model, all on the same axes: a line for each seed with a dot at the
    peak, best-of-n with crosses, the laws of PPO dashed."""
    shown = {name: of(found, name) for name in names(found)}
    starts = [lab["start"] for lab in found.values()]
    drawn = {name: (above(models, starts), below(models)) for name, models in shown.items()}
    scales = [scale([one[part] for one in drawn.values()]) for part in (0, 1)]
    rows = -(-len(shown) // ACROSS)
    wide, tall = min(len(shown), ACROSS) * WIDE, rows * TALL + 24
    body = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {tall}"><style>{STYLE}', LOOKS]
    for at, (name, (upper, lower)) in enumerate(drawn.items()):
        left, top = at % ACROSS * WIDE, at // ACROSS * TALL
        body.append(f'<g transform="translate({left} {top})"><text class="name" x="44" y="14">{name}</text>')
        body += [*panel(upper, scales[0], 24, 160), *panel(lower, scales[1], 210, 80), "</g>"]
    middle = f'<text x="{wide / 2}" y="{tall - 6}" text-anchor="middle">'
    body.append(f"{middle}square root of the KL to SFT (nats); above the oracle’s grade (crosses: best-of-n;")
    body.append("dashed: the laws), below the reward model’s score</text></svg>\n")
    return "\n".join(body)


def above(models: Sequence[Json], starts: Sequence[float]) -> Curves:
    """Gold: PPO's, best-of-n's, the laws, and the peaks as curves of one point."""
    gold = [("gold", points(model["smooth"], "gold")) for model in models]
    best = [("best", points(model["best_of_n"], "gold")) for model in models]
    laws = [("law", points(m["rl"]["curves"]["rl"], "gold")) for m in models if m["rl"]["curves"]]
    tops = [
        ("peak", [(model["peak"]["d"], start + model["peak"]["gain"])])
        for model, start in zip(models, starts, strict=True)
        if model["peak"]["reached"]
    ]
    return [*gold, *best, *laws, *tops]


def below(models: Sequence[Json]) -> Curves:
    return [("proxy", points(model["smooth"], "proxy")) for model in models]


def points(drawn: Json, key: str) -> Curve:
    return [(x, y) for x, y in zip(drawn["d"], drawn[key], strict=True) if x <= REACH]


def scale(panels: Sequence[Curves]) -> list[float]:
    """Ticks that hold every curve of all panels."""
    from bloomery.report.plots import nice_ticks

    heights = [y for curves in panels for _, curve in curves for _, y in curve]
    return nice_ticks(min(heights), max(heights), 4)


def panel(curves: Curves, up: Sequence[float], top: int, tall: int) -> Iterator[str]:
    """One pair of axes in a cell."""

    def place(x: float, y: float) -> tuple[float, float]:
        return 44 + 240 * x / REACH, top + tall - tall * (y - up[0]) / (up[-1] - up[0])

    for tick in up:
        y = place(0, tick)[1]
        yield f'<line x1="44" x2="284" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="38" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
    for tick in range(int(REACH) + 1):
        yield f'<text x="{place(tick, 0)[0]:.1f}" y="{top + tall + 14}" text-anchor="middle">{tick}</text>'
    for look, curve in curves:
        placed = [place(x, y) for x, y in curve]
        if look == "peak":
            yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in placed)
            continue
        yield f'<path class="{look}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in placed)}"/>'
        if look == "best":
            yield from (f'<path class="best" d="M{x - 3:.1f} {y - 3:.1f}l6 6m0 -6l-6 6"/>' for x, y in placed)


if __name__ == "__main__":
    main()
