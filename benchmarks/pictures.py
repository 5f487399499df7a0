"""Plots of the report as files of their own: an SVG that a page can show anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from bloomery.report.plots import HEIGHT, WIDTH, Series, line_plot

COLOURS = {"s1": "#0068a8", "s2": "#d05a00", "s3": "#008a65", "s4": "#a24f84", "s5": "#b47a00"}
STYLE = (
    "<style>text{font:11.5px sans-serif;fill:#6a635a}.title{fill:#1f1b16;font-weight:600}"
    "line.rule{stroke:#e7e2da}line.zero,line.axis{stroke:#a39b90}"
    ".curve{fill:none;stroke:currentColor;stroke-width:2}.faint{stroke-width:1;opacity:.35}"
    ".dashed{stroke-dasharray:5 4}.dot,.band{fill:currentColor}.band{opacity:.15}"
    ".whisker{stroke:currentColor}"
    + "".join(f".{name}{{color:{colour}}}" for name, colour in COLOURS.items())
    + "</style>"
)
HEAD = 26


@dataclass(frozen=True)
class Panel:
    """A pair of axes; where there are several curves, the title is followed by their names."""

    title: str
    x_label: str
    series: Sequence[Series] = field(default=())
    as_percent: bool = False
    zero: bool = False


def picture(*panels: Panel, across: int | None = None) -> str:
    """Panels side by side as one SVG; after `across` of them, if given, a new row begins."""
    across = across or len(panels)
    size = f"0 0 {WIDTH * min(across, len(panels))} {(HEIGHT + HEAD) * -(-len(panels) // across)}"
    body = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}">{STYLE}']
    for number, panel in enumerate(panels):
        html = str(
            line_plot(
                panel.series,
                x_label=panel.x_label,
                as_percent=panel.as_percent,
                zero=panel.zero,
                hover=False,
            )
        )
        drawn = html[html.rindex('<svg viewBox="0 0 ' + str(WIDTH)) :]
        left, top = number % across * WIDTH, number // across * (HEIGHT + HEAD)
        place = f'<svg x="{left}" y="{top + HEAD}" width="{WIDTH}" height="{HEIGHT}"'
        body.append(f'<text x="{left + 12}" y="{top + 16}">{heading(panel)}</text>')
        body.append(drawn.replace("<svg", place, 1))
    return "\n".join([*body, "</svg>", ""])


def heading(panel: Panel) -> str:
    """The title, and each curve's name in its colour."""
    names = {s.name: COLOURS[s.colour] for s in panel.series if s.look != "faint"}
    told = [f'<tspan class="title">{panel.title}</tspan>']
    if len(names) > 1:
        told += [f'<tspan dx="10" fill="{colour}">{name}</tspan>' for name, colour in names.items()]
    return "".join(told)
