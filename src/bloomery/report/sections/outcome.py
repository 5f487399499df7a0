"""The opening: one sentence of verdict, four numbers, and the table behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bloomery.journey.results import Row, change_of
from bloomery.report.bars import Bar, strip
from bloomery.report.html import Child, Html, join, tag
from bloomery.report.plots import Number, percent
from bloomery.report.sections import missing, section
from bloomery.report.view import ROW_COLOURS, View, number_in

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """A row of the table. `better`: +1 more is better, -1 less is, 0 neither. `decoding` None: a number of
    the table itself."""

    key: str
    title: str
    explain: str
    better: int
    percent: bool = True
    decoding: str | None = None

    def show(self, value: Number) -> str:
        if value is None:
            return "–"
        return percent(value, 1) if self.percent else f"{value:.3f}".replace("-", "−")

    def short(self, value: Number) -> str:
        if value is None:
            return "–"
        return percent(value) if self.percent else f"{value:.2f}".replace("-", "−")


GRADED = Measure(
    "graded_reward",
    "Graded reward",
    "Mean grade of sampled answers: right +1, abstained 0, wrong −2, or as world.grades says",
    1,
    False,
)
KNOWN = Measure("known_accuracy", "Known facts", "Right answers about facts the documents state often", 1)
MADE_UP = Measure("fabrication_rate", "Made up", "False claims about facts that no document states", -1)
HARMFUL = Measure("refuse_harmful_rate", "Refuses harmful", "Harmful requests that are declined", 1)
BITS = Measure("bpb", "Bits per byte", "On held-out documents: what alignment costs in language", -1, False)
KL = Measure("kl", "KL to SFT", "Nats per answer: how far the policy has moved", 0, False)
SCORE = Measure("proxy_reward", "Reward model’s score", "Of sampled answers", 1, False, "sampled")
MEASURES = (
    GRADED,
    Measure("graded_reward_greedy", "Graded reward, greedy", "The same for the likeliest answers", 1, False),
    KNOWN,
    MADE_UP,
    Measure(
        "abstain_never_rate", "Abstains, never seen", "“I do not know” where nobody could", 1, True, "greedy"
    ),
    Measure("abstain_known_rate", "Abstains though known", "“I do not know” about often-stated facts", -1),
    HARMFUL,
    Measure(
        "refuse_harmless_rate", "Refuses harmless", "Harmless requests that are declined all the same", -1
    ),
    Measure("malformed_rate", "Garbled", "Broken sentences, loops, words from nowhere", -1, True, "greedy"),
    SCORE,
    Measure("unfinished_rate", "Cut off", "Answers that did not end in time", -1, True, "sampled"),
    BITS,
    KL,
)


def hero(view: View) -> Html:
    rows = {row.name: row for row in view.rows}
    paired = (view.results or {}).get("paired") or {}
    title, lede = _verdict(rows, paired)
    return tag(
        "header",
        tag("p", _flame(), f"Bloomery · report of {view.out.resolve().name}", class_="brand"),
        tag("h1", title),
        tag("p", lede, class_="lede"),
        _tiles(rows, paired),
    )


def _flame() -> Html:
    drop = "M12 2c1 4 6 6.5 6 12a6 6 0 0 1-12 0c0-2.6 1.2-4.3 2.6-5.6.2 1.6.9 2.4 1.8 2.8C10.2 8 10.6 5 12 2z"
    return tag("svg", tag("path", d=drop, class_="flame"), viewBox="0 0 24 24", aria_hidden="true")


def _verdict(rows: Mapping[str, Row], paired: Json) -> tuple[Html, str]:
    """One sentence that says what reinforcement learning did, and no more than the intervals allow."""
    have = ", ".join(row.label for row in rows.values())
    if "rl" not in rows or "sft" not in rows:
        return join("A run in progress"), f"Evaluated so far: {have or 'nothing yet'}."
    sampled, greedy = ((paired.get(d) or {}).get("graded_reward") for d in ("sampled", "greedy"))
    if not sampled or sampled["mean"] is None:
        words = "No oracle knows the answers to these prompts: read the reward model’s score and the text."
        return join("What tuning did to the model, step by step"), f"{have}, side by side. {words}"
    before, after = (_signed(rows[name].get("graded_reward")[0]) for name in ("sft", "rl"))
    sides = [_side(sampled), _side(greedy)]
    verb = {1: "raised", -1: "lowered", 0: "did not clearly change"}[sides[0]]
    moved = f" from {before} to {after}" if sides[0] else f" ({before} before, {after} after)"
    title = join("Feedback ", tag("em", verb), " the graded reward of the model’s answers", moved)
    fabricated = change_of("fabrication_rate", paired)
    if fabricated and fabricated["mean"] is not None:
        title = join(title, _made_up(rows, _side(fabricated), sides[0]))
    agree = {
        (1, 1): "The gain holds for sampled and for greedy answers: both 95 % intervals exclude zero.",
        (1, 0): "The gain holds for sampled answers; for greedy ones the interval includes zero.",
        (1, -1): "Sampled answers gained, greedy ones lost: the policy got sharper rather than better.",
        (0, 1): "Greedy answers gained; for sampled ones the interval includes zero.",
        (0, 0): "For sampled and for greedy answers the 95 % interval of the difference includes zero.",
        (0, -1): "Greedy answers got worse; for sampled ones the interval includes zero.",
        (-1, 1): "Sampled answers got worse although greedy ones gained.",
        (-1, 0): "Sampled answers got worse; for greedy ones the interval includes zero.",
        (-1, -1): "Sampled and greedy answers both got worse: the reward model was probably over-optimised.",
    }[sides[0], sides[1]]
    lede = f"SFT against RL on {sampled['n']:,} held-out questions with known answers. {agree}"
    return join(title, "."), lede


def _made_up(rows: Mapping[str, Row], side: int, gain: int) -> str:
    before, after = (percent(rows[name].get("fabrication_rate")[0]) for name in ("sft", "rl"))
    if side == 0:
        return (
            ", nor did made-up answers clearly change"
            if gain == 0
            else "; made-up answers did not clearly change"
        )
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


def _tiles(rows: Mapping[str, Row], paired: Json) -> Html:
    if "rl" not in rows:
        return Html("")
    before = rows.get("sft")
    tiles: list[Html] = []
    for measure in (GRADED, KNOWN, MADE_UP, HARMFUL, SCORE, BITS, KL):
        value = rows["rl"].get(measure.key, measure.decoding)[0]
        if value is None or len(tiles) == 4:
            continue
        was = before.get(measure.key, measure.decoding)[0] if before else None
        change = change_of(measure.key, paired, measure.decoding)
        tiles.append(
            tag(
                "li",
                tag("span", measure.title, class_="what"),
                tag("span", _signed(value) if measure is GRADED else measure.short(value), class_="value"),
                tag("span", f"SFT {measure.short(was)} ", _change(measure, change), class_="was"),
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
    rows = view.rows
    head = [tag("th", "", class_="left"), *(_head(row) for row in rows), tag("th", "")]
    measured = [m for m in MEASURES if any(row.get(m.key, m.decoding)[0] is not None for row in rows)]
    body = [_line(measure, rows) for measure in measured]
    intro = (
        "Every model answers the same held-out questions, which no demonstrator and no annotator saw. "
        "Rates are "
        "those of greedy answers. Under each number is its 95 % bootstrap interval; "
        "arrows say which way is better. A base model is asked by continuation, so its row shows what it "
        "recalls, not how it chats."
    )
    picture = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *body), class_="models")
    return section("outcome", title, intro, tag("div", picture, class_="scroll"), _paired_note(view.results))


def colour_of(name: str) -> str:
    return ROW_COLOURS.get(name, "s5")


def _head(row: Row) -> Html:
    mark = tag("span", tag("span", row.label), class_=f"head {colour_of(row.name)}")
    return tag("th", mark, class_="final" if row.name == "rl" else None)


def _line(measure: Measure, rows: Sequence[Row]) -> Html:
    arrow = tag("span", {1: " ↑", -1: " ↓", 0: ""}[measure.better], class_="arrow")
    cells: list[Child] = [tag("th", measure.title, arrow, tag("span", measure.explain, class_="explain"))]
    bars = []
    for row in rows:
        value, low, high = row.get(measure.key, measure.decoding)
        parts = [tag("span", measure.show(value), class_="mean")]
        if value is not None and low is not None and low != high:
            parts.append(tag("span", f"{measure.short(low)} to {measure.short(high)}", class_="interval"))
        cells.append(tag("td", *parts, class_="final" if row.name == "rl" else None))
        bars.append(Bar(row.label, value, low, high, colour_of(row.name)))
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
        f"{ {'base': 'base', 'sft': 'SFT', 'rl': 'RL'}[name] } "
        f"{percent(number_in(row, 'fabrication_rate', 'mean'))}"
        for name, row in strangers.items()
        if number_in(row, "fabrication_rate", "mean") is not None
    ]
    if not rates:
        return Html("")
    words = (
        "Made up about people who occur in no labelled prompt, the harder test of whether a habit was "
        "learned "
        f"rather than a list: {', '.join(rates)}."
    )
    return tag("figcaption", words)
