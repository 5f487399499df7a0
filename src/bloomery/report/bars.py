"""Plots of named things: horizontal bars with intervals, and the small dot-and-whisker strip of the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bloomery.report.html import Html, tag
from bloomery.report.plots import WIDTH, Number, nice_ticks, number, percent, tick_labels

ROW = 26
NAME = 128
VALUE = 54


@dataclass(frozen=True)
class Bar:
    name: str
    value: Number
    low: Number = None
    high: Number = None
    colour: str = "s1"
    note: str = ""
    detail: str = ""
    """A second, smaller line under the name."""


def bar_plot(
    bars: Sequence[Bar],
    *,
    as_percent: bool = False,
    references: Sequence[tuple[float, str]] = (),
    top: float | None = None,
    name_width: int = NAME,
    describe: str = "",
) -> Html:
    """One row per bar, from 0; whiskers where there is an interval; `references` are labelled vertical lines.

    Bars without a value are left out.
    """
    rows = [b for b in bars if b.value is not None and math.isfinite(b.value)]
    if not rows:
        return tag("p", "Nothing was measured for this plot.", class_="missing")
    show = percent if as_percent else _same_decimals([b.value or 0.0 for b in rows])
    high = ROW + 10 * any(b.detail for b in rows)
    ends = [v for b in rows for v in (b.value, b.low, b.high) if v is not None] + [r for r, _ in references]
    ticks = nice_ticks(min(0.0, *ends), top if top is not None else max(0.0, *ends), 5)
    first, last = ticks[0], ticks[-1] if top is None else top
    ticks = [t for t in ticks if t <= last + 1e-9]
    head = 16 if references else 4
    height = head + high * len(rows) + 24

    def px(v: float) -> float:
        return round(name_width + (WIDTH - name_width - VALUE) * (v - first) / ((last - first) or 1.0), 1)

    foot = head + high * len(rows)
    parts: list[Html] = []
    for t in ticks:
        parts.append(tag("line", class_="rule", x1=px(t), x2=px(t), y1=head, y2=foot))
    for t, label in zip(
        ticks, [percent(t) for t in ticks] if as_percent else tick_labels(ticks), strict=True
    ):
        parts.append(tag("text", label, class_="tick", x=px(t), y=foot + 15, text_anchor="middle"))
    for i, bar in enumerate(rows):
        parts.append(_row(bar, head + high * i, high, name_width, px, show))
    for at, word in references:
        parts.append(tag("line", class_="mark", x1=px(at), x2=px(at), y1=head - 2, y2=foot))
        parts.append(tag("text", word, class_="marklabel", x=px(at), y=10, text_anchor="middle"))
    return tag(
        "svg",
        tag("title", describe) if describe else "",
        *parts,
        viewBox=f"0 0 {WIDTH} {height}",
        class_="plot",
        role="img",
        aria_label=describe or None,
    )


def _row(
    bar: Bar,
    y: float,
    high: int,
    name_width: int,
    px: Callable[[float], float],
    show: Callable[[Number], str],
) -> Html:
    middle = y + high / 2
    shown, value = show(bar.value), bar.value or 0.0
    left, right = sorted((px(0.0), px(value)))
    interval = ""
    whisker = Html("")
    if bar.low is not None and bar.high is not None:
        interval = f" [{show(bar.low)} to {show(bar.high)}]"
        whisker = tag("line", class_="whisker over", x1=px(bar.low), x2=px(bar.high), y1=middle, y2=middle)
    return tag(
        "g",
        tag("title", f"{bar.name}: {shown}{interval}{' · ' + bar.note if bar.note else ''}"),
        tag("rect", class_="hit", x=0, y=y, width=WIDTH, height=high),
        *_name(bar, name_width - 10, middle),
        tag(
            "rect",
            class_=f"bar {bar.colour}",
            x=left,
            y=middle - ROW / 2 + 6,
            width=max(1, right - left),
            height=ROW - 12,
            rx=2,
        ),
        whisker,
        tag("text", shown, class_="barvalue", x=max(right, px(bar.high or 0.0)) + 8, y=middle + 4),
        class_="barrow",
    )


def _name(bar: Bar, right: float, middle: float) -> list[Html]:
    """The name at the left, and its detail under it, cut to what fits."""

    def cut(words: str, letter: float) -> str:
        fits = int(right / letter)
        return words if len(words) <= fits else words[: fits - 1] + "…"

    at = middle + (-2 if bar.detail else 4)
    found = [tag("text", cut(bar.name, 6.2), class_="barname", x=right, y=at, text_anchor="end")]
    if bar.detail:
        words = cut(bar.detail, 5.8)
        found.append(tag("text", words, class_="bardetail", x=right, y=at + 12, text_anchor="end"))
    return found


def _same_decimals(values: Sequence[float]) -> Callable[[Number], str]:
    """Three significant digits of the largest value, and as many decimals for all."""
    largest = max(map(abs, values), default=0.0)
    decimals = max(0, 2 - math.floor(math.log10(largest))) if largest else 0
    if decimals > 4 or all(v == int(v) for v in values):
        return number
    return lambda v: "–" if v is None else f"{v:,.{decimals}f}".replace("-", "−")


def strip(points: Sequence[Bar], low: float, high: float, *, as_percent: bool) -> Html:
    """A dot with a whisker per point on one common scale, stacked: how the models of a table row compare."""
    width, step = 150, 9
    height = step * len(points) + 6
    show = percent if as_percent else number

    def px(v: float) -> float:
        return round(5 + (width - 10) * (v - low) / ((high - low) or 1.0), 1)

    parts = (
        [tag("line", class_="rule", x1=px(0.0), x2=px(0.0), y1=0, y2=height)] if low <= 0.0 <= high else []
    )
    for i, p in enumerate(points):
        if p.value is None:
            continue
        y = 7.5 + step * i
        if p.low is not None and p.high is not None:
            parts.append(tag("line", class_=f"whisker {p.colour}", x1=px(p.low), x2=px(p.high), y1=y, y2=y))
        label = tag("title", f"{p.name}: {show(p.value)}")
        parts.append(tag("circle", label, class_=f"dot {p.colour}", cx=px(p.value), cy=y, r=3.4))
    return tag("svg", *parts, viewBox=f"0 0 {width} {height}", class_="strip", aria_hidden="true")
