"""The over-optimisation laboratory: gold and proxy over sqrt(KL), the laws, the peaks, the stop rule."""

from __future__ import annotations

import json
from collections.abc import Sequence

from bloomery.journey.lab import FILE, NO_RULE, STOPS, TWIN_IN_BUDGET, overall
from bloomery.journey.lab_words import described, step
from bloomery.journey.settings import ENSEMBLE, HELD_OUT
from bloomery.report.html import Child, Html, join, tag
from bloomery.report.plots import Series, line_plot, number
from bloomery.report.sections import figure, grid, interval, section, table
from bloomery.report.view import Json, View

AXIS = "√KL to the SFT model"
RULES = {rule: rule.replace(HELD_OUT, "twin") for rule in STOPS}


def overoptimisation(view: View) -> Html:
    """Nothing, where the journey had no laboratory."""
    text = view.text(FILE)
    if text is None:
        return Html("")
    try:
        found = json.loads(text)
    except ValueError as error:
        view.problems.append(f"{FILE}: {error}")
        return Html("")
    if any({*RULES, NO_RULE} - model["by_rule"].keys() for model in found["reward_models"]):
        view.problems.append(f"{FILE}: of another version of this package; run the laboratory again")
        return Html("")
    intro = (
        "Each reward model is optimised against far too long, by PPO on leashes of several lengths and by "
        "best-of-n, while the oracle, which trains nobody, looks on. The weaker the reward model, the sooner "
        "what it praises stops being better. The stop rules see only the score, a second reward model "
        "taught by other rankings, and the KL budget of the first one's report card; what was gained where "
        "they stop is measured by the oracle afterwards."
    )
    pictures = [one for model in found["reward_models"] for one in (gold(model), proxy(model))]
    return section("lab", "Over-optimisation", intro, kept(found), laws(found), grid(*pictures))


def kept(found: Json) -> Html:
    """What gold had gained where each rule ended each run, beside the highest of all runs; and the means."""
    rows: list[list[Child]] = []
    for model in found["reward_models"]:
        for run in model["runs"]:
            stops = {stop["rule"]: stop for stop in run["stops"]}
            cells = [_gained(stops[name]["gain"], step(stops[name])) for name in RULES]
            peak = _gained(model["peak"]["gain"], f"at KL {model['peak']['kl']:.2f}")
            rows.append([model["name"], number(run["kl_coef"]), peak, *cells, _gained(run["end"])])
    means = overall(found["reward_models"])
    rows.append(["mean", "", *(_gained(means[key]) for key in ("peak", *RULES, NO_RULE))])
    head: list[Child] = ["reward model", "KL coefficient", "highest", *RULES.values(), NO_RULE]
    title = f"Gold gained over the SFT model, which has {number(found['start'])}"
    return tag("div", tag("h3", title), table(head, rows), class_="block")


def _gained(gain: float, how: str = "") -> Html:
    shown = f"{round(gain, 2) + 0.0:+.2f}".replace("-", "−")  # no minus before nothing
    return join(tag("span", shown, class_="mean"), tag("span", how, class_="interval"))


def laws(found: Json) -> Html:
    """Parameters of the fitted laws, a row for each reward model and method."""
    rows: list[list[Child]] = []
    for model in found["reward_models"]:
        for method, key, law in (("PPO", "rl", "rl"), ("best-of-n", "best_of_n", "bon")):
            fits = model[key]["fits"]
            if fits is None:
                rows.append([model["name"], method, model[key]["why"], *["–"] * 4])
                continue
            fit = fits[law]
            peak = fit["peak"]
            top = ["none", "–"] if peak is None else [_ranged(peak["kl"]), _ranged(peak["gain"])]
            rows.append(
                [
                    model["name"],
                    method,
                    _ranged(fit["alpha"]),
                    _ranged(fit["beta"]),
                    number(fit["r2"], 2),
                    *top,
                ]
            )
    head: list[Child] = ["reward model", "method", "α", "β", "R²", "KL of the peak", "gold gained there"]
    title = "Laws of Gao et al. (2022), with 95 % intervals"
    return tag("div", tag("h3", title), table(head, rows, left=2), class_="block")


def _ranged(one: Json) -> Html:
    value, low, high = ("–" if one[key] is None else f"{one[key]:.2f}" for key in ("value", "low", "high"))
    return interval(*(word.replace("-", "−") for word in (value, low, high)))


def gold(model: Json) -> Html:
    series = [*every_step(model), smooth(model, "gold", "PPO", "s3")]
    series += _law(model["rl"], "rl", "PPO’s law", "s3")
    best = model["best_of_n"]
    series.append(
        Series("best-of-n", best["d"], best["gold"], "s1", "points", low=best["low"], high=best["high"])
    )
    series += _law(best, "bon", "best-of-n’s law", "s1")
    return figure(
        f"Gold against “{model['name']}”",
        described(model),
        line_plot(series, x_label=AXIS, marks=marks(model), describe=f"Gold reward against {model['name']}"),
        "The oracle’s grade. Faint: every step of every leash, less what makes its prompts easier than "
        "others. Dashed: the laws. Stop: what the twin in budget goes back to on the loosest leash.",
    )


def proxy(model: Json) -> Html:
    best = model["best_of_n"]
    series = [
        smooth(model, "proxy", "reward model", "s2"),
        smooth(model, HELD_OUT, RULES[HELD_OUT], "s4"),
        smooth(model, ENSEMBLE, RULES[ENSEMBLE], "s5"),
        Series("best-of-n, reward model", best["d"], best["proxy"], "s1", "points"),
    ]
    return figure(
        f"What “{model['name']}” thinks",
        "score of the reward model that is optimised against, and of those that only watch",
        line_plot(series, x_label=AXIS, marks=marks(model), describe=f"Proxy reward of {model['name']}"),
        "Where the watchers no longer keep pace with the reward model, it is being gamed.",
    )


def every_step(model: Json) -> list[Series]:
    """Gold of all runs over the distance, as it came."""
    points = sorted(point for run in model["runs"] for point in zip(run["d"], run["gold"], strict=True))
    return [Series("PPO", [x for x, _ in points], [y for _, y in points], "s3", "faint")]


def smooth(model: Json, key: str, name: str, colour: str) -> Series:
    """A column of all runs over the distance, smoothed."""
    return Series(name, model["smooth"]["d"], model["smooth"][key], colour)


def _law(law: Json, which: str, name: str, colour: str) -> list[Series]:
    curve = (law["curves"] or {}).get(which)
    return [Series(name, curve["d"], curve["gold"], colour, "dashed")] if curve else []


def marks(model: Json) -> Sequence[tuple[float, str]]:
    """Where gold is highest under PPO, and the step that the rule goes back to on the loosest leash."""
    found = [(model["peak"]["d"], "peak")] if model["peak"]["reached"] else []
    loosest = min(model["runs"], key=lambda run: run["kl_coef"])
    stop = next(one for one in loosest["stops"] if one["rule"] == TWIN_IN_BUDGET)
    return found if stop["stop"] is None else [*found, (stop["d"], "stop")]
