"""Plots: ticks worked out by hand, places on the picture, gaps, escaping."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery.report.bars import Bar, bar_plot, strip
from bloomery.report.dag import Node, draw, drawn_edges, layout
from bloomery.report.html import Html, join, tag, text
from bloomery.report.plots import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Series,
    line_plot,
    nice_ticks,
    number,
    percent,
    smooth,
    thin,
    tick_labels,
)

NASTY = "<script>alert(1)</script>&\"'"


def svg(markup: Html) -> ET.Element:
    """The picture itself; parsing it proves that it is well formed."""
    found = re.search(r'<svg[^>]*class="(?:plot|dag|strip)".*</svg>', markup, re.S)
    assert found
    return ET.fromstring(found[0])


def points(markup: Html, look: str = "curve") -> list[list[tuple[float, float]]]:
    lines = [e for e in svg(markup).iter("polyline") if look in (e.get("class") or "")]
    return [[tuple(map(float, p.split(","))) for p in (e.get("points") or "").split()] for e in lines]  # type: ignore[misc]


# ----------------------------------------------------------------------------------------------- markup


def test_whatever_is_not_markup_is_escaped() -> None:
    assert tag("p", NASTY, title=NASTY) == (
        '<p title="&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;&#x27;">'
        "&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;&#x27;</p>"
    )
    assert join(tag("b", "x"), "<") == "<b>x</b>&lt;"
    assert not isinstance(tag("b", "x") + "<", Html), "added up by hand, it is not safe any more"


def test_control_characters_are_shown_not_obeyed() -> None:
    assert text("a\x1b[31mb\u202ec\x00") == "a\\u001b[31mb\\u202ec\\u0000"
    assert text("two\nlines\tand é 文 🙂") == "two\nlines\tand é 文 🙂"


def test_attributes() -> None:
    assert tag("line", x1=0, class_="a", aria_hidden=None, hidden=False, open=True) == (
        '<line x1="0" class="a" open=""/>'
    )


# ------------------------------------------------------------------------------------------------ ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (0.0, 100.0, [0.0, 25.0, 50.0, 75.0, 100.0]),
        (-0.14, 0.34, [-0.2, 0.0, 0.2, 0.4]),
        (3.0, 3.0, [2.6, 2.8, 3.0, 3.2, 3.4]),
        (0.0, 7.3, [0.0, 2.0, 4.0, 6.0, 8.0]),
    ],
)
def test_ticks_by_hand(low: float, high: float, expected: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(expected)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_cover_the_data_with_few_even_steps(low: float, width: float) -> None:
    high = low + width
    ticks = nice_ticks(low, high)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + 1e-6 * step + 1e-9
    assert ticks[-1] >= high - 1e-6 * step - 1e-9
    assert 2 <= len(ticks) <= 9


def test_numbers_are_short() -> None:
    given_values = (1234567.0, 1234.0, 0.0, 0.5, 0.03456, 2e-5, -0.25, 12.0, None, math.inf)
    expected = ["1,234,567", "1,234", "0", "0.5", "0.0346", "2e−5", "−0.25", "12", "–", "–"]
    assert [number(v) for v in given_values] == expected
    assert percent(0.876, 1) == "87.6%"
    assert percent(-0.05) == "−5%"


def test_one_axis_has_one_number_of_decimals() -> None:
    assert tick_labels([0.0, 0.25, 0.5]) == ["0.00", "0.25", "0.50"]
    assert tick_labels([0.0, 0.0005, 0.001]) == ["0.0000", "0.0005", "0.0010"]
    assert tick_labels([-50.0, 0.0, 50.0]) == ["−50", "0", "50"]


# ----------------------------------------------------------------------------------------------- curves


def test_a_line_from_corner_to_corner() -> None:
    """Ticks end at 0 and 1 on both axes, so (0, 0) and (1, 1) are corners of the plotting area."""
    (line,) = points(line_plot([Series("a", [0.0, 1.0], [0.0, 1.0])], x_label="step"))
    assert line == [(LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, TOP)]


def test_a_log_axis_has_equal_steps_for_equal_factors() -> None:
    (line,) = points(line_plot([Series("a", [0.0, 1.0, 2.0], [1.0, 10.0, 100.0])], x_label="x", log=True))
    ys = [y for _, y in line]
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.11)


def test_gaps_break_the_line() -> None:
    broken = line_plot([Series("a", [0, 1, 2, 3, 4], [1.0, 2.0, None, 2.0, 1.0])], x_label="x")
    assert [len(line) for line in points(broken)] == [2, 2]
    log = line_plot([Series("a", [0, 1, 2, 3, 4], [1.0, 2.0, 0.0, 2.0, 1.0])], x_label="x", log=True)
    assert [len(line) for line in points(log)] == [2, 2]
    wild = line_plot([Series("a", [0, 1, 2], [1.0, math.nan, math.inf])], x_label="x")
    assert "nan" not in wild
    assert "inf" not in wild


def test_nothing_to_draw_is_said() -> None:
    assert "missing" in line_plot([Series("a", [], [])], x_label="x")
    assert "missing" in bar_plot([Bar("a", None)])


def test_rates_that_are_all_zero_have_a_scale_from_none_to_all() -> None:
    markup = line_plot([Series("a", [0.0, 1.0], [0.0, 0.0])], x_label="round", as_percent=True)
    assert ">100%<" in markup
    assert "−" not in markup


def test_legend_only_where_there_is_a_choice() -> None:
    one = line_plot([Series("alone", [0, 1], [0, 1])], x_label="x")
    two = line_plot([Series("a", [0, 1], [0, 1]), Series(NASTY, [0, 1], [1, 0], "s2")], x_label="x")
    assert "<li>" not in one
    assert two.count("<li>") == 2
    assert "<script" not in two


def test_hover_names_every_value() -> None:
    series = [
        Series("a", [0, 1], [0.25, 0.5], low=[0.1, 0.4], high=[0.3, 0.6]),
        Series("b", [0, 1], [1, 2], "s2"),
    ]
    titles = [e.text for e in svg(line_plot(series, x_label="step")).iter("title")]
    assert titles == ["step 0\na: 0.25 [0.1 to 0.3]\nb: 1", "step 1\na: 0.5 [0.4 to 0.6]\nb: 2"]


def test_long_curves_are_thinned_to_means() -> None:
    long = Series("a", list(range(1000)), [float(i % 2) for i in range(1000)])
    short = thin(long, 100)
    assert len(short.x) == 100
    assert set(short.y) == {0.5}


def test_smoothing_keeps_gaps_and_means() -> None:
    assert smooth([0.0, 3.0, None, 3.0, 0.0], 3) == [1.5, 1.5, None, 1.5, 1.5]


# ------------------------------------------------------------------------------------------------- bars


def test_bars_are_as_long_as_their_values() -> None:
    picture = svg(bar_plot([Bar("half", 0.5), Bar("all", 1.0), Bar("none", None)], as_percent=True, top=1.0))
    widths = [float(e.get("width") or 0) for e in picture.iter("rect") if "bar" in (e.get("class") or "")]
    assert len(widths) == 2
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.2)


def test_bars_below_zero_and_names_that_bite() -> None:
    markup = bar_plot([Bar(NASTY, -1.0, -1.2, -0.8, detail=NASTY), Bar("b", 1.0)])
    assert "<script" not in markup
    assert svg(markup) is not None


def test_strip_keeps_order() -> None:
    picture = svg(strip([Bar("a", 0.1), Bar("b", 0.9, 0.8, 1.0)], 0.0, 1.0, as_percent=True))
    xs = [float(e.get("cx") or 0) for e in picture.iter("circle")]
    assert xs[0] < xs[1]


# ---------------------------------------------------------------------------------------------- lineage

GRAPH = [
    Node("world", "1", ()),
    Node("base", "2", (("world", False),)),
    Node("sft", "3", (("base", True), ("world", False))),
    Node("ppo-1", "4", (("sft", True), ("world", False), ("elsewhere", False))),
    Node("ppo-2", "5", (("ppo-1", True), ("sft", False))),
]


def test_lanes_and_columns() -> None:
    assert layout(GRAPH) == {"world": (0, 0), "base": (1, 0), "sft": (2, 0), "ppo-1": (0, 1), "ppo-2": (0, 2)}
    assert len(set(layout(list(reversed(GRAPH))).values())) == len(GRAPH)


def test_lines_that_follow_from_others_are_left_out() -> None:
    assert set(drawn_edges(GRAPH)) == {
        ("world", "base", False),
        ("base", "sft", True),
        ("sft", "ppo-1", True),
        ("ppo-1", "ppo-2", True),
    }


def test_a_graph_is_drawn_whole_and_escaped() -> None:
    picture = draw([*GRAPH, Node(NASTY, NASTY, (("sft", False),), title=NASTY)])
    assert "<script" not in picture
    assert len(list(svg(picture).iter("rect"))) == 6


def test_words_at_lines_that_are_near_stand_below_each_other() -> None:
    line = Series("a", [0, 10], [0.0, 1.0])
    drawn = svg(line_plot([line], x_label="step", marks=[(5.2, "peak"), (5, "stop"), (5.3, "x"), (9, "end")]))
    words = [e for e in drawn.iter("text") if e.get("class") == "marklabel"]
    assert [e.text for e in words] == ["stop", "peak", "x", "end"]
    rows = [float(e.get("y") or 0) for e in words]
    assert rows[0] == rows[3] < rows[1] < rows[2]
    lines = [float(e.get("x1") or 0) for e in drawn.iter("line") if e.get("class") == "mark"]
    assert [float(e.get("x") or 0) - x for e, x in zip(words, lines, strict=True)] == pytest.approx([4] * 4)
