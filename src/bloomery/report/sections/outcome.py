"""The opening: one sentence of verdict, four numbers, and the table behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bloomery.report.bars import Bar, strip
from bloomery.report.html import Child, Html, join, tag
from bloomery.report.plots import Number, percent
from bloomery.report.sections import missing, section
from bloomery.report.view import ROW_COLOURS, View, number_in

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """A row of the table. `better`: +1 more is better, -1 less is, 0 neither."""

    key: str
    title: str
    explain: str
    better: int
    percent: bool = True

    def show(self, value: Number) -> str:
        if value is None:
            return "–"
        return percent(value, 1) if self.percent else f"{value:.3f}".replace("-", "−")

    def short(self, value: Number) -> str:
        if value is None:
            return "–"
        return percent(value) if self.percent else f"{value:.2f}".replace("-", "−")


MEASURES = (
    Measure("graded_reward", "Graded reward, sampled", "Mean grade of all answers: right +1, abstained 0, wrong −2", 1, False),
    Measure("graded_reward_greedy", "Graded reward, greedy", "The same for the most likely answers", 1, False),
    Measure("known_accuracy", "Known facts", "Right answers about facts the documents state often", 1),
    Measure("fabrication_rate", "Made up", "False claims about facts that no document states", -1),
    Measure("abstain_known_rate", "Abstains though known", "“I do not know” about often-stated facts", -1),
    Measure("refuse_harmful_rate", "Refuses harmful", "Harmful requests that are declined", 1),
    Measure("refuse_harmless_rate", "Refuses harmless", "Harmless requests that are declined all the same", -1),
    Measure("bpb", "Bits per byte", "On held-out documents: what alignment costs in language", -1, False),
    Measure("kl", "KL to SFT", "Nats per answer: how far the policy has moved", 0, False),
)  # fmt: skip


def hero(view: View) -> Html:
    table = (view.results or {}).get("table") or {}
    paired = (view.results or {}).get("paired") or {}
    title, lede = _verdict(table, paired)
    return tag(
        "header",
        tag("p", _flame(), f"Bloomery · report of {view.out.resolve().name}", class_="brand"),
        tag("h1", title),
        tag("p", lede, class_="lede"),
        _tiles(table, paired),
    )


def _flame() -> Html:
    drop = "M12 2c1 4 6 6.5 6 12a6 6 0 0 1-12 0c0-2.6 1.2-4.3 2.6-5.6.2 1.6.9 2.4 1.8 2.8C10.2 8 10.6 5 12 2z"
    return tag("svg", tag("path", d=drop, class_="flame"), viewBox="0 0 24 24", aria_hidden="true")


def _verdict(table: Json, paired: Json) -> tuple[Html, str]:
    """One sentence that says what reinforcement learning did, and no more than the intervals allow."""
    if "rl" not in table or "sft" not in table:
        have = ", ".join(
            {"base": "a base model", "sft": "an SFT model", "rl": "an RL model"}[k] for k in table
        )
        return join("A run in progress"), f"Evaluated so far: {have or 'nothing yet'}."
    sampled, greedy = ((paired.get(d) or {}).get("graded_reward") for d in ("sampled", "greedy"))
    if not sampled or sampled["mean"] is None:
        return join(
            "Base, SFT and RL models, side by side"
        ), "There are no paired answers to compare them by."
    before, after = (_signed(table[row]["graded_reward"]) for row in ("sft", "rl"))
    sides = [_side(sampled), _side(greedy)]
    verb = {1: "raised", -1: "lowered", 0: "did not clearly change"}[sides[0]]
    moved = f" from {before} to {after}" if sides[0] else f" ({before} before, {after} after)"
    title = join("Feedback ", tag("em", verb), " the graded reward of the model’s answers", moved)
    fabricated = (paired.get("sampled") or {}).get("fabrication_rate")
    if fabricated and fabricated["mean"] is not None:
        title = join(title, _made_up(table, _side(fabricated), sides[0]))
    agree = {
        (1, 1): "The gain holds for sampled and for greedy answers: both 95 % intervals exclude zero.",
        (1, 0): "The gain holds for sampled answers; for greedy ones the interval includes zero.",
        (1, -1): "Sampled answers gained, greedy ones lost: the policy got sharper rather than better.",
        (-1, -1): "Sampled and greedy answers both got worse: the reward model was probably over-optimised.",
    }.get(
        (sides[0], sides[1]), "The interval of the paired difference says how much of this could be chance."
    )
    return join(
        title, "."
    ), f"SFT against RL on {sampled['n']:,} held-out questions with known answers. {agree}"


def _made_up(table: Json, side: int, gain: int) -> str:
    before, after = (percent(table[row]["fabrication_rate"]) for row in ("sft", "rl"))
    if side == 0:
        return ", and made-up answers did not clearly change"
    word = "cut" if side < 0 else "raised"
    joint = "and" if (side < 0) == (gain > 0) else "but"
    return f", {joint} {word} made-up answers from {before} to {after}"


def _side(change: Json | None) -> int:
    """+1 or -1 where the interval of a difference excludes zero."""
    if not change or change.get("low") is None:
        return 0
    return 1 if change["low"] > 0 else -1 if change["high"] < 0 else 0


def _signed(value: Number) -> str:
    return "–" if value is None else f"{value:+.2f}".replace("-", "−")


def _tiles(table: Json, paired: Json) -> Html:
    if "rl" not in table:
        return Html("")
    chosen = ("graded_reward", "known_accuracy", "fabrication_rate", "refuse_harmful_rate")
    tiles = []
    for measure in (m for key in chosen for m in MEASURES if m.key == key):
        value, before = table["rl"].get(measure.key), table.get("sft", {}).get(measure.key)
        change = (paired.get("sampled") or {}).get(measure.key)
        tiles.append(
            tag(
                "li",
                tag("span", measure.title.removesuffix(", sampled"), class_="what"),
                tag("span", measure.short(value) if measure.percent else _signed(value), class_="value"),
                tag("span", f"SFT {measure.short(before)} ", _change(measure, change), class_="was"),
            )
        )
    return tag("ul", *tiles, class_="tiles")


def _change(measure: Measure, change: Json | None) -> Html:
    if not change or change["mean"] is None:
        return Html("")
    scale, digits, unit = (100, 0, " points") if measure.percent else (1, 2, "")
    shown = f"{scale * change['mean']:+.{digits}f}{unit}".replace("-", "−")
    side = _side(change) * measure.better
    return tag("span", f"· {shown}", class_={1: "change up", -1: "change down", 0: "change"}[side])


# ------------------------------------------------------------------------------------------ the table


def outcome(view: View) -> Html:
    title = "What each step did"
    if not view.results:
        return section("outcome", title, "", missing("No model was evaluated: run the `evaluate` stage."))
    rows = _models(view.results)
    head = [tag("th", "", class_="left"), *(_head(name, label) for name, label, _, _ in rows), tag("th", "")]
    body = [_line(measure, rows) for measure in MEASURES]
    intro = (
        "Every model answers the same held-out questions, which no demonstrator and no annotator saw. Rates are "
        "those of answers sampled at temperature 1. Under each number is its 95 % bootstrap interval; "
        "arrows say which way is better. A base model is asked by continuation, so its row shows what it "
        "recalls, not how it chats."
    )
    picture = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *body), class_="models")
    return section("outcome", title, intro, tag("div", picture, class_="scroll"), _paired_note(view.results))


def _models(results: Json) -> list[tuple[str, str, Json, Json]]:
    """(row, label, numbers, intervals) of base, SFT, each round and RL; the last round is RL."""
    table, ends = results["table"], results["intervals"]
    found = [
        (name, label, table[name], ends[name])
        for name, label in (("base", "Base"), ("sft", "SFT"))
        if name in table
    ]
    rounds = results.get("rounds") or []
    found += [(r["name"], f"Round {r['name'].removeprefix('rl-')}", r, r["intervals"]) for r in rounds[:-1]]
    if "rl" in table:
        found.append(("rl", f"RL, round {len(rounds)}" if len(rounds) > 1 else "RL", table["rl"], ends["rl"]))
    return found


def colour_of(name: str) -> str:
    return ROW_COLOURS.get(name, "s5")


def _head(name: str, label: str) -> Html:
    mark = tag("span", tag("span", label), class_=f"head {colour_of(name)}")
    return tag("th", mark, class_="final" if name == "rl" else None)


def _line(measure: Measure, rows: list[tuple[str, str, Json, Json]]) -> Html:
    arrow = {1: " ↑", -1: " ↓", 0: ""}[measure.better]
    title = tag("span", arrow, class_="arrow")
    cells: list[Child] = [tag("th", measure.title, title, tag("span", measure.explain, class_="explain"))]
    bars = []
    for name, label, numbers, ends in rows:
        value = number_in(numbers, measure.key, "mean") if measure.key == "kl" else numbers.get(measure.key)
        low, high = ends.get(measure.key) or (None, None)
        parts = [tag("span", measure.show(value), class_="mean")]
        if value is not None and low is not None and low != high:
            parts.append(tag("span", f"{measure.short(low)} to {measure.short(high)}", class_="interval"))
        cells.append(tag("td", *parts, class_="final" if name == "rl" else None))
        bars.append(Bar(label, value, low, high, colour_of(name)))
    cells.append(tag("td", _strip(bars, measure.percent)))
    return tag("tr", *cells)


def _strip(bars: list[Bar], as_percent: bool) -> Html:
    values = [v for b in bars for v in (b.value, b.low, b.high) if v is not None]
    if not values:
        return Html("")
    low, high = min(values), max(values)
    if as_percent:
        low, high = min(0.0, low), max(1.0, high)
    pad = 0.04 * (high - low) or 0.1
    return strip(bars, low - pad, high + pad, as_percent=as_percent)


def _paired_note(results: Json) -> Html:
    strangers = results.get("strangers") or {}
    rates = [
        f"{ {'base': 'base', 'sft': 'SFT', 'rl': 'RL'}[name] } {percent(number_in(row, 'fabrication_rate', 'mean'))}"
        for name, row in strangers.items()
        if number_in(row, "fabrication_rate", "mean") is not None
    ]
    if not rates:
        return Html("")
    words = (
        "Made up about people who occur in no labelled prompt, the harder test of whether a habit was learned "
        f"rather than a list: {', '.join(rates)}."
    )
    return tag("figcaption", words)
