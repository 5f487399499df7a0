"""Small, quiet SVG plots: nice ticks, confidence bands, hover titles. Colours are classes; the style sheet
decides what they look like by day, by night and on paper."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from bloomery.report.html import Html, join, tag

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 12, 40
MAX_POINTS = 300
HOVERS = 48
LETTER, ROW = 6.0, 12
"""Of the words beside vertical lines: how wide a letter is at most on average, and how high a row."""

Number = float | None


@dataclass(frozen=True)
class Series:
    """One curve. A None in `y` is a gap. `low` and `high`, if given, are drawn as a band (lines) or whiskers
    (points). `look`: "line", "faint" (raw values behind a smoothed line), "dashed", "points" (joined),
    "normal" (the band alone: where such curves run)."""

    name: str
    x: Sequence[float]
    y: Sequence[Number]
    colour: str = "s1"
    look: str = "line"
    low: Sequence[Number] = field(default=())
    high: Sequence[Number] = field(default=())


def nice_ticks(low: float, high: float, target: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that cover [low, high]; about `target` of them."""
    if not high > low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / max(1, target - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: Number, digits: int = 3) -> str:
    """A short, readable number: 1,234 · 0.034 · 2e-05. A typographic minus keeps columns aligned."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e7):
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        if "." in mantissa:
            mantissa = mantissa.rstrip("0").rstrip(".")
        shown = f"{mantissa}e{int(exponent)}"
    elif size >= 1000 or value == int(value):
        shown = f"{value:,.0f}"
    else:
        decimals = max(0, digits - 1 - math.floor(math.log10(size)))
        shown = f"{value:.{decimals}f}".rstrip("0").rstrip(".")
    return shown.replace("-", "−")


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """The ticks of one axis with the same number of decimals; very small ones as powers of ten."""
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=0.0)
    if not step or step < 1e-4 or max(map(abs, ticks)) >= 1e7:
        return [number(t) for t in ticks]
    decimals = next(d for d in range(6) if abs(step * 10**d - round(step * 10**d)) < 1e-6 * 10**d)
    return [f"{t:,.{decimals}f}".replace("-", "−") for t in ticks]


def percent(value: Number, digits: int = 0) -> str:
    return (
        "–" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f}%".replace("-", "−")
    )


def smooth(y: Sequence[Number], window: int) -> list[Number]:
    """Centred moving average over `window` points; gaps stay gaps and do not count."""
    out: list[Number] = []
    half = window // 2
    for i, value in enumerate(y):
        near = [v for v in y[max(0, i - half) : i + half + 1] if v is not None]
        out.append(None if value is None else sum(near) / len(near))
    return out


def thin(series: Series, limit: int = MAX_POINTS) -> Series:
    """At most `limit` points: each is the mean of a run of neighbours, so that no spike is picked by luck."""
    stride = math.ceil(len(series.x) / limit)
    if stride <= 1:
        return series

    def means(values: Sequence[Number]) -> list[Number]:
        chunks = [values[i : i + stride] for i in range(0, len(values), stride)]
        kept = [[v for v in chunk if v is not None] for chunk in chunks]
        return [sum(chunk) / len(chunk) if chunk else None for chunk in kept]

    x = [v for v in means(series.x) if v is not None]
    return Series(
        series.name, x, means(series.y), series.colour, series.look, means(series.low), means(series.high)
    )


class Frame:
    """The plotting area: data to pixels, and the axes around it."""

    def __init__(
        self,
        x_ticks: list[float],
        y_ticks: list[float],
        *,
        x_range: tuple[float, float],
        log: bool = False,
        width: int = WIDTH,
        height: int = HEIGHT,
    ) -> None:
        self.x_ticks, self.y_ticks, self.log = x_ticks, y_ticks, log
        self.width, self.height = width, height
        self.x0, self.x1 = x_range
        self.y0, self.y1 = self._scale(y_ticks[0]), self._scale(y_ticks[-1])

    def _scale(self, y: float) -> float:
        return math.log10(y) if self.log else y

    def px(self, x: float) -> float:
        inner = self.width - LEFT - RIGHT
        return round(LEFT + inner * (x - self.x0) / ((self.x1 - self.x0) or 1.0), 1)

    def py(self, y: float) -> float:
        inner = self.height - TOP - BOTTOM
        return round(TOP + inner * (1 - (self._scale(y) - self.y0) / ((self.y1 - self.y0) or 1.0)), 1)

    def axes(self, x_label: str, as_percent: bool) -> Html:
        parts: list[Html] = []
        labels = [percent(y) for y in self.y_ticks] if as_percent else tick_labels(self.y_ticks)
        for y, label in zip(self.y_ticks, labels, strict=True):
            at = self.py(y)
            zero = y == 0 and self.y_ticks[0] < 0
            parts.append(
                tag("line", class_="zero" if zero else "rule", x1=LEFT, x2=self.width - RIGHT, y1=at, y2=at)
            )
            parts.append(tag("text", label, class_="tick", x=LEFT - 8, y=at + 3.5, text_anchor="end"))
        base = self.height - BOTTOM
        for x, label in zip(self.x_ticks, tick_labels(self.x_ticks), strict=True):
            at = self.px(x)
            parts.append(tag("line", class_="axis", x1=at, x2=at, y1=base, y2=base + 4))
            parts.append(tag("text", label, class_="tick", x=at, y=base + 16, text_anchor="middle"))
        parts.append(tag("line", class_="axis", x1=LEFT, x2=self.width - RIGHT, y1=base, y2=base))
        middle = (LEFT + self.width - RIGHT) / 2
        parts.append(tag("text", x_label, class_="label", x=middle, y=self.height - 6, text_anchor="middle"))
        return join(*parts)


def line_plot(
    series: Sequence[Series],
    *,
    x_label: str,
    as_percent: bool = False,
    log: bool = False,
    zero: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    x_ticks: Sequence[float] | None = None,
    describe: str = "",
    hover: bool = True,
) -> Html:
    """Curves over one x axis, with a legend when there is more than one name.

    `zero` makes the y axis start at 0; `marks` are vertical lines with a word, such as where a round begins;
    `x_ticks` fixes the ticks (rounds are whole numbers). `describe` is read out by screen readers. Without
    `hover` nothing answers the pointer, as nothing can in an image.
    Values that cannot be drawn on a log axis (0 or less) become gaps.
    """
    drawn = [_drawable(thin(s), log) for s in series]
    drawn = [s for s in drawn if any(v is not None for v in s.y)]
    if not drawn:
        return tag("p", "Nothing was logged for this plot.", class_="missing")
    frame = _frame(drawn, log=log, zero=zero, as_percent=as_percent, x_ticks=x_ticks)
    body = [frame.axes(x_label, as_percent)]
    body += _marks(frame, marks)
    body += [_band(frame, s) for s in drawn if s.low]
    body += [_curve(frame, s) for s in drawn if s.look != "normal"]
    if hover:
        body.append(_hovers(frame, drawn, x_label, as_percent))
    picture = tag(
        "svg",
        tag("title", describe) if describe else "",
        *body,
        viewBox=f"0 0 {frame.width} {frame.height}",
        class_="plot",
        role="img",
        aria_label=describe or None,
    )
    return join(legend([s for s in drawn if s.look != "faint"]), picture)


def _marks(frame: Frame, marks: Sequence[tuple[float, str]]) -> list[Html]:
    """Vertical lines with their words, each in the first row in which it covers no other."""
    parts, ends = [], list[float]()
    for at, word in sorted(marks):
        x = frame.px(at)
        row = next((i for i, end in enumerate(ends) if end <= x), len(ends))
        ends[row : row + 1] = [x + 4 + LETTER * len(word)]
        parts.append(tag("line", class_="mark", x1=x, x2=x, y1=TOP, y2=frame.height - BOTTOM))
        parts.append(tag("text", word, class_="marklabel", x=x + 4, y=TOP + 8 + ROW * row))
    return parts


def legend(series: Sequence[Series]) -> Html:
    """Names beside a short stroke of their colour; empty when a single curve needs none."""
    if len(series) < 2:
        return tag("div", class_="legend")
    lines = [s for s in series if s.look != "normal"]
    bands = {s.colour: s for s in series if s.look == "normal"}
    if bands:  # one word for all of them; in no line's colour where they have several
        colour, band = next(iter(bands.items()))
        lines.append(replace(band, colour=colour if len(bands) == 1 else "s6"))
    items = [
        tag(
            "li",
            tag("svg", _stroke(s), viewBox="0 0 18 10", class_="swatch", aria_hidden="true"),
            s.name,
        )
        for s in lines
    ]
    return tag("ul", *items, class_="legend")


def _stroke(s: Series) -> Html:
    if s.look == "normal":
        return tag("rect", class_=f"band {s.colour}", x=1, y=0, width=16, height=10, rx=2)
    return tag("line", class_=f"curve {s.look} {s.colour}", x1=1, x2=17, y1=5, y2=5)


def _drawable(s: Series, log: bool) -> Series:
    def keep(values: Sequence[Number]) -> list[Number]:
        return [v if v is not None and math.isfinite(v) and (v > 0 or not log) else None for v in values]

    return Series(s.name, s.x, keep(s.y), s.colour, s.look, keep(s.low), keep(s.high))


def _frame(
    drawn: Sequence[Series], *, log: bool, zero: bool, as_percent: bool, x_ticks: Sequence[float] | None
) -> Frame:
    xs = [x for s in drawn for x, y in zip(s.x, s.y, strict=True) if y is not None]
    ys = [v for s in drawn for v in (*s.y, *s.low, *s.high) if v is not None]
    low, high = min(ys), max(ys)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
        low = 0.0 if low > -0.02 * high else low  # noise around 0 deserves no tick below it
    if as_percent and (0.93 < high <= 1.0 or low == high == 0.0):
        high = 1.0
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        y_ticks = [10.0**e for e in range(first, max(last, first + 1) + 1)]
    else:
        y_ticks = nice_ticks(low, high)
    x0, x1 = min(xs), max(xs)
    if x_ticks is None:
        ticks = [t for t in nice_ticks(x0, x1, 6) if x0 <= t <= x1] if x1 > x0 else [x0]
    else:
        ticks = list(x_ticks)
        pad = 0.25 if len(ticks) > 1 else 0.5
        x0, x1 = min(x0, *ticks) - pad, max(x1, *ticks) + pad
    if x0 == x1:
        x0, x1 = x0 - 0.5, x1 + 0.5
    return Frame(ticks, y_ticks, x_range=(x0, x1), log=log)


def _runs(s: Series, frame: Frame, y: Sequence[Number]) -> Iterable[list[tuple[float, float]]]:
    run: list[tuple[float, float]] = []
    for a, b in zip(s.x, y, strict=True):
        if b is None:
            if run:
                yield run
            run = []
        else:
            run.append((frame.px(a), frame.py(b)))
    if run:
        yield run


def _curve(frame: Frame, s: Series) -> Html:
    parts = []
    for run in _runs(s, frame, s.y):
        if len(run) > 1:
            points = " ".join(f"{x},{y}" for x, y in run)
            parts.append(tag("polyline", class_=f"curve {s.look} {s.colour}", points=points))
        if len(run) == 1 or s.look == "points":
            parts += [tag("circle", class_=f"dot {s.colour}", cx=x, cy=y, r=3.2) for x, y in run]
    return join(*parts)


def _band(frame: Frame, s: Series) -> Html:
    rows = [
        None if a is None or b is None else (frame.px(x), frame.py(a), frame.py(b))
        for x, a, b in zip(s.x, s.low, s.high, strict=True)
    ]
    if s.look == "points":
        bars = [row for row in rows if row]
        return join(*(tag("line", class_=f"whisker {s.colour}", x1=x, x2=x, y1=a, y2=b) for x, a, b in bars))
    parts = []
    for there, group in itertools.groupby(rows, key=bool):
        edge = [row for row in group if there and row]
        around = [(x, b) for x, _, b in edge] + [(x, a) for x, a, _ in reversed(edge)]
        if len(edge) > 1:
            points = " ".join(f"{x},{y}" for x, y in around)
            parts.append(tag("polygon", class_=f"band {s.colour}", points=points))
    return join(*parts)


def _hovers(frame: Frame, drawn: Sequence[Series], x_label: str, as_percent: bool) -> Html:
    """Invisible strips over the plot. Pointing at one shows a guide, dots and a tooltip with the values."""
    show = percent if as_percent else number
    named = [s for s in drawn if s.look != "faint"]
    every = sorted({x for s in named if s.look != "normal" for x in s.x})
    stride = max(1, math.ceil(len(every) / HOVERS))
    at = every[::stride]
    edges = [frame.px(x) for x in at]
    strips = []
    for i, x in enumerate(at):
        left = LEFT if i == 0 else (edges[i - 1] + edges[i]) / 2
        right = frame.width - RIGHT if i == len(at) - 1 else (edges[i] + edges[i + 1]) / 2
        rows, dots = [f"{x_label} {number(x)}"], []
        for s in named:
            near = min(range(len(s.x)), key=lambda k: abs(s.x[k] - x))
            value = s.y[near]
            if value is None or abs(s.x[near] - x) > stride * (frame.x1 - frame.x0) / HOVERS:
                continue
            if s.look == "normal":
                rows.append(f"{s.name}: {show(s.low[near])} to {show(s.high[near])}")
                continue
            band = (
                f" [{show(s.low[near])} to {show(s.high[near])}]" if s.low and s.low[near] is not None else ""
            )
            rows.append(f"{s.name}: {percent(value, 1) if as_percent else number(value, 4)}{band}")
            dots.append(
                tag("circle", class_=f"dot {s.colour}", cx=frame.px(s.x[near]), cy=frame.py(value), r=3)
            )
        area = tag(
            "rect",
            x=round(left, 1),
            y=TOP,
            width=round(max(0.1, right - left), 1),
            height=frame.height - TOP - BOTTOM,
        )
        guide = tag("line", class_="guide", x1=edges[i], x2=edges[i], y1=TOP, y2=frame.height - BOTTOM)
        strips.append(tag("g", tag("title", "\n".join(rows)), area, guide, *dots, class_="hover"))
    return tag("g", *strips, class_="hovers")
