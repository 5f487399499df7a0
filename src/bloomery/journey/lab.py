"""What the over-optimisation laboratory found: overoptimisation.json.

Of every reward model: the curves of PPO on each leash and of best-of-n over d = sqrt(KL), both laws of
`evals.overoptimisation` fitted to gold, the KL at which gold peaks, and where the stop rule, which never sees
gold, would have ended each run. The runs go to their end, so that what a rule gave up can be told.

A step of PPO asks few prompts, some harder than others. So its gold is held against what the SFT model gets
for the very same prompts, of which it answered each several times: a control variate, which halves the
variance where the policy is still near, and tells the level at distance 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bloomery.data.loader import batch_indices
from bloomery.errors import ArtifactError, UsageError
from bloomery.evals import overoptimisation as over
from bloomery.evals.overoptimisation import Floats, Law
from bloomery.journey.results import read_json
from bloomery.journey.settings import BASELINE, ENSEMBLE, HELD_OUT, Journey, Opponent, _Lab
from bloomery.lineage import write_json
from bloomery.objectives.search import expected_best
from bloomery.recipe import load
from bloomery.stages.stop import KL, PROXY

Json = dict[str, Any]
FILE = "overoptimisation.json"
WITNESSES = (HELD_OUT, ENSEMBLE)
BUDGET = "budget"
TWIN_IN_BUDGET = f"{HELD_OUT} in {BUDGET}"
STOPS: dict[str, tuple[str | None, bool]] = {
    HELD_OUT: (HELD_OUT, False),
    ENSEMBLE: (ENSEMBLE, False),
    BUDGET: (None, True),
    TWIN_IN_BUDGET: (HELD_OUT, True),
    f"{ENSEMBLE} in {BUDGET}": (ENSEMBLE, True),
}
"""What may end a run: its witness, and whether the budget of the reward model's report card is heeded."""
NO_RULE = "no rule"
RULES = (*STOPS, NO_RULE)
GOLD = "gold/graded_reward"
CLOSE = 0.9
"""A rule whose runs keep this share of what is gained at the peak is close."""
POINTS = 60
"""Of each curve that is written down to be drawn."""
WIDTH = 0.2
"""Of the normal curve that smooths over d: half of what is averaged lies within 0.13. A peak loses some of
its height by that, and the highest point of a curve that is still noisy wins some."""


def collect(out: Path) -> Json | None:
    """Gather the laboratory of a finished journey and write OUT/overoptimisation.json; returns what it holds,
    or None where the journey's recipe has no lab.

    Raises `ArtifactError` where a step did not log what is needed.
    """
    journey = load(Journey, out / "recipe.yaml")
    if journey.lab is None:
        return None
    usual = read_answers(out / BASELINE)[1].mean(axis=1)
    results: Json = {
        "seed": journey.seed,
        "window": journey.lab.window,
        "share": journey.lab.share,
        "patience": journey.lab.patience,
        "start": float(np.nanmean(usual)),
        "reward_models": [against(out, journey, one, usual) for one in journey.lab.reward_models],
    }
    write_json(out / FILE, results)
    return results


def against(out: Path, journey: Journey, one: Opponent, usual: Floats) -> Json:
    """What was seen of one reward model: its accuracy, PPO's runs, their peak and law, best-of-n's curve and
    law, and the gain of gold `by_rule`, means over the runs; `usual` is the SFT model's of each prompt."""
    lab, start = journey.lab, float(np.nanmean(usual))
    card = read_json(out / f"reward-{one.name}" / "evaluation.json")
    budget = card.get("verdict", {}).get("kl")
    size = journey.first.ppo.prompts_per_step
    runs = [read_run(out / one.ppo(coef), usual, size, journey.seed) for coef in lab.kl_coefs]
    for run, coef in zip(runs, lab.kl_coefs, strict=True):
        end = over.gained(run["gold"], start, len(run["gold"]) - 1, lab.window)
        stops = [stopped(run, lab, rule, budget, start) for rule in STOPS]
        run |= {"kl_coef": coef, "stops": stops, "end": end}
    d, gold = (np.concatenate([run[key] for run in runs]) for key in ("d", "gold"))
    several = {"block": lab.window, "runs": len(runs), "seed": journey.seed}
    drawn = partial(over.along_runs, d=d, gold=gold, start=start, **several)
    line = np.linspace(0.0, float(d.max()), POINTS)
    columns = [run["watched"] | {"proxy": run["proxy"], "gold": run["gold"]} for run in runs]
    smooth = {
        name: over.smoothed(d, np.concatenate([one[name] for one in columns]), line, WIDTH)
        for name in columns[0]
    }
    at = int(smooth["gold"].argmax())
    peak = {"d": line[at], "kl": line[at] ** 2, "gain": smooth["gold"][at] - start}
    gains = [[*(stop["gain"] for stop in run["stops"]), run["end"]] for run in runs]
    return {
        **one.model_dump(),
        "accuracy": {key: card.get(key) for key in ("accuracy", "low", "high")},
        "budget": budget,
        "runs": runs,
        "smooth": {"d": line.tolist()} | {name: curve.tolist() for name, curve in smooth.items()},
        "peak": peak | {"reached": at < POINTS - 1},
        "by_rule": dict(zip(RULES, np.mean(gains, axis=0).tolist(), strict=True)),
        "rl": fitted(d, gold, drawn, start),
        "best_of_n": best_of_n(out / one.best, start, journey.seed),
    }


def read_answers(path: Path) -> tuple[Floats, Floats]:
    """Scores and the oracle's grades `[prompts, answers]` of a best-of-n, NaN where there is none.
    Raises `ArtifactError` where the oracle knows no prompt."""
    file = path / "answers.jsonl"
    asked = [json.loads(line)["answers"] for line in file.read_text(encoding="utf-8").splitlines()]
    scores, gold = (
        np.array([[one.get(key, np.nan) for one in answers] for answers in asked], dtype=np.float64)
        for key in ("score", "graded_reward")
    )
    if np.isnan(gold).all():
        raise ArtifactError("no answer was graded by the oracle", where=file)
    return scores, gold


def read_run(path: Path, usual: Floats, size: int, seed: int) -> Json:
    """A run of PPO as columns, a number for each step. `gold` is `usual` on average over all prompts, the SFT
    model's level, plus what the step's `size` prompts got beyond what is usual for them."""
    file = path / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    watched = {name: f"watch/{name}/mean" for name in WITNESSES}
    for name in (KL, PROXY, GOLD, *watched.values()):
        if not rows or any(row.get(name) is None for row in rows):
            raise ArtifactError(f"not every step logged {name}", where=file)
    kl = [row[KL] for row in rows]
    asked = [batch_indices(len(usual), size, seed=seed, step=row["step"]) for row in rows]
    easier = [float(np.nanmean(usual[some]) - np.nanmean(usual)) for some in asked]
    return {
        "kl": kl,
        "d": over.distances(kl).tolist(),
        "proxy": [row[PROXY] for row in rows],
        "gold": [row[GOLD] - ease for row, ease in zip(rows, easier, strict=True)],
        "watched": {name: [row[key] for row in rows] for name, key in watched.items()},
    }


def heeds(rule: str, budget: float | None) -> tuple[str | None, float | None]:
    """The witness and the budget that a rule goes by. A card without a budget leaves it to the witness."""
    witness, within = STOPS[rule]
    return witness, budget if within else None


def stopped(run: Json, lab: _Lab, rule: str, budget: float | None, start: float) -> Json:
    """Where a rule would have ended the run, whose weights it would have saved, and what they gain."""
    witness, within = heeds(rule, budget)
    seen = None if witness is None else run["watched"][witness]
    said = lab.verdict(run["proxy"], run["kl"], seen, within)
    at = len(run["proxy"]) - 1 if said.stop is None else said.best
    place = {"rule": rule, "stop": said.stop, "at": at, "kl": run["kl"][at], "d": run["d"][at]}
    return place | {"gain": over.gained(run["gold"], start, at, lab.window)}


def best_of_n(path: Path, start: float, seed: int) -> Json:
    """The curve of best-of-n and the laws fitted to it. Every n is measured on the same answers, and held
    against a random one of them, which is taken to be worth `start`: its prompts are only some."""
    table = read_json(path / "best_of_n.json")["table"]
    found = read_answers(path)
    scores, gold = (torch.from_numpy(one[~np.isnan(found[1]).any(axis=1)]) for one in found)
    ns, kl = [row["n"] for row in table], [row["kl"] for row in table]
    proxies, worth = (
        np.stack([expected_best(scores, values, n).numpy() for n in ns], axis=1) for values in (scores, gold)
    )
    worth += start - gold.mean(dim=1, keepdim=True).numpy()
    drawn, d = over.over_prompts(worth, seed=seed), over.distances(kl)
    bounds = [over.ranged(m, column) for m, column in zip(worth.mean(axis=0), drawn.T, strict=True)]
    return {
        "n": ns,
        "kl": kl,
        "d": d.tolist(),
        "proxy": proxies.mean(axis=0).tolist(),
        "gold": [bound.value for bound in bounds],
        "low": [bound.low for bound in bounds],
        "high": [bound.high for bound in bounds],
        **fitted(d, worth.mean(axis=0), lambda name: drawn, start),
    }


def fitted(d: Floats, gold: Floats, draws: Callable[[Law], Floats], start: float) -> Json:
    """Both laws through the start, the nearer of them, and their curves to be drawn; or why there is none."""
    try:
        fits = {law: over.fit(law, d, gold, draws(law), start) for law in over.LAWS}
    except UsageError as error:
        return {"fits": None, "nearest": None, "why": error.what, "curves": None}
    line = np.linspace(0.0, float(d.max()), POINTS)
    curves = {law: {"d": line.tolist(), "gold": fit.gold(line).tolist()} for law, fit in fits.items()}
    tree = {law: asdict(fit) for law, fit in fits.items()}
    return {"fits": tree, "nearest": over.nearest(fits), "why": None, "curves": curves}


def overall(models: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Gains of gold, means over reward models: at the `peak`, and by each rule."""
    found = {"peak": float(np.mean([model["peak"]["gain"] for model in models]))}
    return found | {rule: float(np.mean([model["by_rule"][rule] for model in models])) for rule in RULES}
