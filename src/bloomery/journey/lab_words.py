"""The findings of the over-optimisation laboratory in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bloomery.evals.overoptimisation import Law
from bloomery.journey.lab import RULES, overall


def lines(results: Mapping[str, Any]) -> Iterator[str]:
    """The findings in words, a few lines for each reward model."""
    yield f"the SFT model is graded {results['start']:+.2f} by the oracle; what follows is gained over that"
    for model in results["reward_models"]:
        yield f"{model['name']}: {described(model)}"
        yield f"  PPO        {law_in_words(model['rl'], 'rl')}"
        yield f"  best-of-n  {law_in_words(model['best_of_n'], 'bon')}"
        for run in model["runs"]:
            stops = [f"{one['rule']} {one['gain']:+.2f} ({step(one)})" for one in run["stops"]]
            yield f"  kl_coef {run['kl_coef']:g}: {', '.join(stops)}, at the end {run['end']:+.2f}"
        peak = model["peak"]
        yield f"  highest, over all of them: {peak['gain']:+.2f} at KL {peak['kl']:.2f}"
    found = overall(results["reward_models"])
    rules = [f"{rule} {found[rule]:+.2f}" for rule in RULES]
    yield f"gold gained on average: {found['peak']:+.2f} at the peak, {', '.join(rules)}"


def step(stop: Mapping[str, Any]) -> str:
    """The step whose weights a rule would have saved, if it ends the run."""
    return "runs on" if stop["stop"] is None else f"step {stop['at']}"


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
