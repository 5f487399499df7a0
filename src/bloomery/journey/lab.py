"""What the over-optimisation laboratory found: overoptimisation.json, and the lines that are printed.

Of every reward model: the curves of PPO on each leash and of best-of-n over d = sqrt(KL), both laws of
`evals.overoptimisation` fitted to gold, the KL at which gold peaks, and where the stop rule, which never sees
gold, would have ended each run. The runs go to their end, so that what a rule gave up can be told.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bloomery.errors import ArtifactError, UsageError
from bloomery.evals import overoptimisation as over
from bloomery.evals.overoptimisation import Fit, Floats, Law
from bloomery.journey.settings import ENSEMBLE, HELD_OUT, Journey, Opponent, _Lab
from bloomery.lineage import write_json
from bloomery.objectives.search import expected_best
from bloomery.recipe import load
from bloomery.stages.stop import PROXY, StopRule

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
        "patience": journey.lab.patience,
        "reward_models": found,
        "stop_rule": {name: summary([s for s in stops if s["witness"] == name]) for name in WITNESSES},
        "without": summary([{"kept": run["kept_at_end"]} for model in found for run in model["runs"]]),
    }
    write_json(out / FILE, results)
    return results


def against(out: Path, lab: _Lab, one: Opponent, seed: int) -> Json:
    """What was seen of one reward model: its accuracy, PPO's runs and law, best-of-n's curve and law."""
    card = read_json(out / f"reward-{one.name}" / "evaluation.json")
    runs = [read_run(out / one.ppo(coef)) for coef in lab.kl_coefs]
    d, gold = (np.concatenate([run[key] for run in runs]) for key in ("d", "gold"))
    law, fits = fitted(d, gold, lambda name: over.along_runs(name, d, gold, block=lab.window, seed=seed))
    fit = fits.get("rl")
    for run, coef in zip(runs, lab.kl_coefs, strict=True):
        start = fit.start.value if fit else run["gold"][0]
        run |= {
            "kl_coef": coef,
            "stops": [judged(run, start, fit, name, lab) for name in WITNESSES],
            "kept_at_end": over.share_kept(run["gold"], start, len(run["gold"]) - 1, lab.window),
        }
        del run["rows"]
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
        "rows": rows,
        "kl": kl,
        "d": over.distances(kl).tolist(),
        "proxy": [row[PROXY] for row in rows],
        "gold": [row[GOLD] for row in rows],
        "watched": {name: [row[key] for row in rows] for name, key in watched.items()},
    }


def judged(run: Json, start: float, fit: Fit | None, witness: str, lab: _Lab) -> Json:
    """What the stop rule would have done, and how much of the best gain of gold it would have kept: by what
    was measured around that step, and by the law."""
    rule = StopRule(watch=witness, window=lab.window, patience=lab.patience)
    said = rule.verdict(run["rows"])
    at = len(run["rows"]) - 1 if said.stop is None else said.best
    by_law = None
    if fit is not None:
        highest = float(fit.gain(np.linspace(0.0, max(run["d"]), POINTS)).max())
        by_law = float(fit.gain(run["d"][at])) / highest if highest > 0 else None
    return {
        "witness": witness,
        "stop": said.stop,
        "at": at,
        "kl": run["kl"][at],
        "d": run["d"][at],
        "kept": over.share_kept(run["gold"], start, at, lab.window),
        "kept_by_law": by_law,
    }


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


def summary(stops: Sequence[Mapping[str, Any]]) -> Json:
    """Of the runs in which gold was gained at all: how many, their mean share kept, how many came close."""
    kept = [stop["kept"] for stop in stops if stop["kept"] is not None]
    mean = sum(kept) / len(kept) if kept else None
    return {"runs": len(kept), "kept": mean, "close": sum(share >= CLOSE for share in kept)}


def read_json(path: Path) -> Json:
    """Raises `ArtifactError` when there is no JSON object at `path`."""
    try:
        tree: Json = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError("this is not JSON", where=path, got=error) from None
    return tree


# ------------------------------------------------------------------------------------- on the terminal


def lines(results: Mapping[str, Any]) -> Iterator[str]:
    """The findings in words, a few lines for each reward model."""
    for model in results["reward_models"]:
        yield f"{model['name']}: {described(model)}"
        yield f"  PPO        {law_in_words(model['rl'], 'rl')}"
        yield f"  best-of-n  {law_in_words(model['best_of_n'], 'bon')}"
        for run in model["runs"]:
            stops = ", ".join(
                f"{s['witness']} {'never stops' if s['stop'] is None else 'keeps step ' + str(s['at'])} "
                f"({percent(s['kept'])})"
                for s in run["stops"]
            )
            yield f"  kl_coef {run['kl_coef']:g}: {stops}; at the end {percent(run['kept_at_end'])}"
    yield "in brackets: share of the best gain in gold that is kept"
    for name, found in (*results["stop_rule"].items(), ("no rule", results["without"])):
        yield f"{name}: {percent(found['kept'])} on average, {found['close']} of {found['runs']} within 10 %"


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
