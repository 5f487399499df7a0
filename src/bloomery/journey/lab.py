"""What the over-optimisation laboratory found: overoptimisation.json, and the lines that are printed.

Of every reward model: the curves of PPO on each leash and of best-of-n over d = sqrt(KL), both laws of
`evals.overoptimisation` fitted to gold, the KL at which gold peaks, and where the stop rule, which never sees
gold, would have ended each run. The runs go to their end, so that what a rule gave up can be told.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bloomery.errors import ArtifactError, UsageError
from bloomery.evals import overoptimisation as over
from bloomery.evals.overoptimisation import Fit, Floats, Law
from bloomery.journey.results import read_json
from bloomery.journey.settings import ENSEMBLE, HELD_OUT, Journey, Opponent, _Lab
from bloomery.lineage import write_json
from bloomery.objectives.search import expected_best
from bloomery.recipe import load
from bloomery.stages.stop import PROXY

Json = dict[str, Any]
FILE = "overoptimisation.json"
WITNESSES = (HELD_OUT, ENSEMBLE)
GOLD, KL = "gold/graded_reward", "objective/kl"
CLOSE = 0.9
"""A rule that keeps this share of the best gain is counted as close."""
POINTS = 60
"""Of each fitted curve that is written down to be drawn."""


def collect(out: Path) -> Json | None:
    """Gather the laboratory of a finished journey and write OUT/overoptimisation.json; returns what it holds,
    or None where the journey's recipe has no lab.

    Raises `ArtifactError` where a step did not log what is needed.
    """
    journey = load(Journey, out / "recipe.yaml")
    if journey.lab is None:
        return None
    found = [against(out, journey.lab, one, journey.seed) for one in journey.lab.reward_models]
    stops = [stop for model in found for run in model["runs"] for stop in run["stops"]]
    results: Json = {
        "seed": journey.seed,
        "window": journey.lab.window,
        "share": journey.lab.share,
        "patience": journey.lab.patience,
        "reward_models": found,
        "stop_rule": {name: summary([s for s in stops if s["witness"] == name]) for name in WITNESSES},
        "without": summary([run["end"] for model in found for run in model["runs"]]),
    }
    write_json(out / FILE, results)
    return results


def against(out: Path, lab: _Lab, one: Opponent, seed: int) -> Json:
    """What was seen of one reward model: its accuracy, PPO's runs and law, best-of-n's curve and law."""
    card = read_json(out / f"reward-{one.name}" / "evaluation.json")
    runs = [read_run(out / one.ppo(coef)) for coef in lab.kl_coefs]
    d, gold = (np.concatenate([run[key] for run in runs]) for key in ("d", "gold"))
    law, fits = fitted(d, gold, lambda name: over.along_runs(name, d, gold, block=lab.window, seed=seed))
    for run, coef in zip(runs, lab.kl_coefs, strict=True):
        kept = partial(shares, run, fits.get("rl"), lab.window)
        run |= {
            "kl_coef": coef,
            "stops": [stopped(run, lab, name, kept) for name in WITNESSES],
            "end": kept(len(run["kl"]) - 1),
        }
    return {
        **one.model_dump(),
        "accuracy": {key: card.get(key) for key in ("accuracy", "low", "high")},
        "runs": runs,
        "rl": law,
        "best_of_n": best_of_n(out / one.best, seed),
    }


def read_run(path: Path) -> Json:
    """A run of PPO as columns, a number for each step."""
    file = path / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    watched = {name: f"watch/{name}/mean" for name in WITNESSES}
    for name in (KL, PROXY, GOLD, *watched.values()):
        if not rows or any(row.get(name) is None for row in rows):
            raise ArtifactError(f"not every step logged {name}", where=file)
    kl = [row[KL] for row in rows]
    return {
        "kl": kl,
        "d": over.distances(kl).tolist(),
        "proxy": [row[PROXY] for row in rows],
        "gold": [row[GOLD] for row in rows],
        "watched": {name: [row[key] for row in rows] for name, key in watched.items()},
    }


def shares(run: Json, fit: Fit | None, window: int, at: int) -> Json:
    """How much of the best gain of gold a run has at step `at`: as the law says, and as measured around that
    step, where the best of many noisy means makes the share too low."""
    start = fit.start.value if fit else run["gold"][0]
    by_law = None
    if fit is not None:
        highest = float(fit.gain(np.linspace(0.0, max(run["d"]), POINTS)).max())
        by_law = float(fit.gain(run["d"][at])) / highest if highest > 0 else None
    return {"kept": over.share_kept(run["gold"], start, at, window), "kept_by_law": by_law}


def stopped(run: Json, lab: _Lab, witness: str, kept: Callable[[int], Json]) -> Json:
    """Where the stop rule would have ended the run, whose weights it would have saved, and what they keep."""
    said = lab.verdict(run["proxy"], run["watched"][witness])
    at = len(run["proxy"]) - 1 if said.stop is None else said.best
    place = {"witness": witness, "stop": said.stop, "at": at, "kl": run["kl"][at], "d": run["d"][at]}
    return place | kept(at)


def best_of_n(path: Path, seed: int) -> Json:
    """The curve of best-of-n, every n measured on the same answers, and the laws fitted to it."""
    table = read_json(path / "best_of_n.json")["table"]
    file = path / "answers.jsonl"
    asked = [json.loads(line)["answers"] for line in file.read_text(encoding="utf-8").splitlines()]
    known = [answers for answers in asked if all("graded_reward" in one for one in answers)]
    if not known:
        raise ArtifactError("no answer was graded by the oracle", where=file)
    scores, gold = (
        torch.tensor([[one[key] for one in answers] for answers in known], dtype=torch.float64)
        for key in ("score", "graded_reward")
    )
    ns, kl = [row["n"] for row in table], [row["kl"] for row in table]
    proxies, worth = (
        np.stack([expected_best(scores, values, n).numpy() for n in ns], axis=1) for values in (scores, gold)
    )
    drawn, d = over.over_prompts(worth, seed=seed), over.distances(kl)
    law, _ = fitted(d, worth.mean(axis=0), lambda name: drawn)
    bounds = [over.ranged(m, column) for m, column in zip(worth.mean(axis=0), drawn.T, strict=True)]
    return {
        "n": ns,
        "kl": kl,
        "d": d.tolist(),
        "proxy": proxies.mean(axis=0).tolist(),
        "gold": [bound.value for bound in bounds],
        "low": [bound.low for bound in bounds],
        "high": [bound.high for bound in bounds],
        **law,
    }


def fitted(d: Floats, gold: Floats, draws: Callable[[Law], Floats]) -> tuple[Json, dict[Law, Fit]]:
    """Both laws fitted, which of them is nearer, and their curves to be drawn; or why there are none."""
    try:
        fits = {law: over.fit(law, d, gold, draws(law)) for law in over.LAWS}
    except UsageError as error:
        return {"fits": None, "nearest": None, "why": error.what, "curves": None}, {}
    line = np.linspace(0.0, float(d.max()), POINTS)
    curves = {law: {"d": line.tolist(), "gold": fit.gold(line).tolist()} for law, fit in fits.items()}
    tree = {law: asdict(fit) for law, fit in fits.items()}
    return {"fits": tree, "nearest": over.nearest(fits), "why": None, "curves": curves}, fits


def summary(ends: Sequence[Json]) -> Json:
    """By both measures, of the runs in which gold was gained at all: how many there are, the mean share that
    was kept, and how many came close to all of it."""
    found: Json = {}
    for key in ("kept", "kept_by_law"):
        kept = [end[key] for end in ends if end[key] is not None]
        mean = sum(kept) / len(kept) if kept else None
        found[key] = {"runs": len(kept), "mean": mean, "close": sum(share >= CLOSE for share in kept)}
    return found


# ------------------------------------------------------------------------------------- on the terminal


def lines(results: Mapping[str, Any]) -> Iterator[str]:
    """The findings in words, a few lines for each reward model."""
    for model in results["reward_models"]:
        yield f"{model['name']}: {described(model)}"
        yield f"  PPO        {law_in_words(model['rl'], 'rl')}"
        yield f"  best-of-n  {law_in_words(model['best_of_n'], 'bon')}"
        for run in model["runs"]:
            stops = [f"{one['witness']} {step(one)}: {both(one)}" for one in run["stops"]]
            yield f"  kl_coef {run['kl_coef']:g}: {', '.join(stops)}, at the end: {both(run['end'])}"
    yield "share of the best gain in gold that is kept, by the law and as measured:"
    for name, found in (*results["stop_rule"].items(), ("no rule", results["without"])):
        law, seen = found["kept_by_law"], found["kept"]
        close = f"{law['close']} of {law['runs']} and {seen['close']} of {seen['runs']} runs within 10 %"
        yield f"  {name}: {percent(law['mean'])}, {percent(seen['mean'])} on average; {close}"


def step(stop: Mapping[str, Any]) -> str:
    """What a rule does with a run."""
    return "runs on" if stop["stop"] is None else f"goes back to step {stop['at']}"


def both(kept: Mapping[str, Any]) -> str:
    """Shares by the law and as measured."""
    return f"{percent(kept['kept_by_law'])} / {percent(kept['kept'])}"


def described(model: Mapping[str, Any]) -> str:
    accuracy = model["accuracy"]["accuracy"]
    parts = [f"{100 * model['share']:g} % of the labels", f"{100 * model['flipped']:g} % turned over"]
    size = [] if model["size"] is None else [f"size {model['size']}"]
    right = [] if accuracy is None else [f"right on {percent(accuracy)} of held-out pairs"]
    return ", ".join([*size, *parts, *right])


def law_in_words(law: Mapping[str, Any], name: Law) -> str:
    if law["fits"] is None:
        return f"no law: {law['why']}"
    fit = law["fits"][name]
    parts = [f"{key} {ranged(fit[key])}" for key in ("alpha", "beta")]
    parts.append("R² –" if fit["r2"] is None else f"R² {fit['r2']:.2f}")
    peak = fit["peak"]
    if peak is None:
        return ", ".join([*parts, "no peak"])
    beyond = "" if peak["reached"] else ", beyond what was measured"
    return ", ".join([*parts, f"gold peaks at KL {ranged(peak['kl'])}{beyond}"])


def ranged(number: Mapping[str, Any]) -> str:
    low, high = ("…" if number[key] is None else f"{number[key]:.2f}" for key in ("low", "high"))
    return f"{number['value']:.2f} ({low} to {high})"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"
