"""The people behind the numbers: how far they agree, how each of them leans; and what cleaning took away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bloomery.report.bars import Bar, bar_plot
from bloomery.report.html import Child, Html, tag
from bloomery.report.plots import Number, number, percent
from bloomery.report.sections import figure, grid, interval, missing, section, table
from bloomery.report.view import Json, View, number_in

# Column title, the path of its number in an annotator's report, and how it is shown.
COLUMNS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("rankings", ("num_rankings",), "count"),
    ("agrees with others", ("agreement",), "percent"),
    ("right on gold", ("gold",), "percent"),
    ("takes the first shown", ("position", "chance"), "percent"),
    ("takes the longer", ("length", "chance"), "percent"),
    ("ties", ("tie_rate",), "percent"),
    ("leniency", ("leniency",), "signed"),
    ("seconds", ("median_seconds",), "number"),
)
NAMES = {
    "between": "agreement of two annotators",
    "majority": "agreement with the majority of the others",
    "num_prompts": "prompts",
    "num_overlapping": "ranked by several",
    "num_repeated": "ranked twice by the same",
}


def annotators(view: View) -> Html:
    title = "Annotators"
    found = {r: tree for r in view.rounds if (tree := view.json(f"label-{r}", "agreement.json"))}
    if not found:
        return section("annotators", title, "", missing("No rankings were collected in this run."))
    last = found[max(found)]
    intro = (
        "Who ranked the answers, and how far to trust each of them. Simulated annotators of the embedded "
        "world have "
        "their own noise and leanings and use the same store as people do."
    )
    return section("annotators", title, intro, _agreement(found), _each(last.get("annotators")))


def _agreement(found: Mapping[int, Json]) -> Html:
    """Whatever numbers the stage gave, one row each, one column per round."""
    last = found[max(found)]
    paths: list[tuple[str, ...]] = [(k,) for k, v in last.items() if _value(v) is not None]
    paths += [("alpha", k) for k in last.get("alpha") or {}]
    rows: list[list[Child]] = [
        [_name(path), *(_with_interval(_at(tree, path)) for tree in found.values())] for path in paths
    ]
    return table(["", *(f"round {r}" for r in found)], rows) if rows else Html("")


def _name(path: tuple[str, ...]) -> str:
    if path[0] == "alpha":
        return f"Krippendorff’s alpha, {path[1]}"
    return NAMES.get(path[0], path[0].replace("_", " "))


def _at(tree: Any, path: Sequence[str]) -> Any:
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _value(value: Any) -> Number:
    """A number, or the middle of an interval."""
    return number_in(value, "value") if isinstance(value, dict) else number_in({"it": value}, "it")


def _with_interval(tree: Any) -> Child:
    value, low, high = _value(tree), number_in(tree, "low"), number_in(tree, "high")
    if low is None or high is None:
        return _fixed(value)
    return interval(_fixed(value), _fixed(low), _fixed(high))


def _fixed(value: Number) -> str:
    """Two decimals, or none for a count."""
    if value is None or value == int(value):
        return number(value)
    return f"{value:.2f}".replace("-", "−")


def _each(people: Any) -> Html:
    rows = _people(people)
    if not rows:
        return Html("")
    columns = [c for c in COLUMNS if any(_value(_at(row, c[1])) is not None for _, row in rows)]
    body: list[list[Child]] = [
        [who, *(_shown(_value(_at(row, path)), how) for _, path, how in columns)] for who, row in rows
    ]
    head: list[Child] = ["annotator", *(title for title, _, _ in columns)]
    caption = (
        "“Takes the first shown” and “takes the longer” (of two, twice as long) are what happens to an "
        "otherwise even pair: 50 % is no habit. Leniency is in points of rating. Somebody far from the "
        "others’ "
        "agreement is careless, or sees something they do not: read some of their rankings."
    )
    title = tag("h3", "One by one, in the last round")
    return tag(
        "div",
        tag("figure", title, table(head, body), tag("figcaption", caption), _flags(rows)),
        class_="wide",
    )


def _people(people: Any) -> list[tuple[str, Json]]:
    if isinstance(people, dict):
        return [(str(who), row) for who, row in sorted(people.items()) if isinstance(row, dict)]
    rows = people if isinstance(people, list) else []
    return [(str(row.get("annotator")), row) for row in rows if isinstance(row, dict)]


def _shown(value: Number, how: str) -> str:
    if value is None:
        return "–"
    if how == "percent":
        return percent(value)
    if how == "signed":
        return f"{value:+.2f}".replace("-", "−")
    return number(value)


def _flags(rows: Sequence[tuple[str, Json]]) -> Html:
    """What should make somebody look closer, in words."""
    flags = [(who, str(flag)) for who, row in rows for flag in row.get("flags") or []]
    if not flags:
        return Html("")
    return tag(
        "ul", *(tag("li", tag("span", who, class_="who"), f" {flag}") for who, flag in flags), class_="flags"
    )


# ---------------------------------------------------------------------------------------------- data


def cleaning(view: View) -> Html:
    title = "Data"
    report = view.json("data", "report.json")
    if report is None:
        return section(
            "data", title, "", missing("No cleaning report: the documents were used as they came.")
        )
    read, kept, dropped = counts(report)
    intro = "What cleaning and deduplication kept, and why the rest went."
    if read and kept is not None:
        intro = f"Of {read:,.0f} documents {kept:,.0f} were kept ({percent(kept / read, 1)}). {intro}"
    figures = []
    if dropped:
        bars = [
            Bar(reason.replace("_", " "), n, colour="s2")
            for reason, n in sorted(dropped.items(), key=lambda x: -x[1])
        ]
        figures.append(
            figure("Dropped, by reason", "documents", bar_plot(bars, describe="Documents dropped, by reason"))
        )
    for place, words in ((0, "source"), (1, "quality")):
        if bars := kept_shares(report.get("sources"), place):
            picture = bar_plot(bars, as_percent=True, top=1.0, describe=f"Share kept, by {words}")
            figures.append(figure(f"Kept, by {words}", "share of the documents", picture))
    return section("data", title, intro, grid(*figures) if figures else missing("Nothing was dropped."))


def counts(report: Json) -> tuple[Number, Number, dict[str, float]]:
    """(read, kept, dropped by reason) of a cleaning report."""
    reasons = report.get("reasons")
    found = {str(k): number_in(reasons, k) or 0.0 for k in reasons} if isinstance(reasons, dict) else {}
    return number_in(report, "read"), number_in(report, "kept"), found


def kept_shares(sources: Any, place: int) -> list[Bar]:
    """Share kept by source (`place` 0) or by quality (1), from {source: {quality: {reason: n}}}."""
    totals: dict[str, list[float]] = {}
    for source, qualities in (sources if isinstance(sources, dict) else {}).items():
        for quality, reasons in (qualities if isinstance(qualities, dict) else {}).items():
            total = totals.setdefault((source, quality)[place], [0.0, 0.0])
            total[0] += number_in(reasons, "kept") or 0.0
            total[1] += sum(number_in(reasons, reason) or 0.0 for reason in reasons)
    bars = [
        Bar(name, kept / read, colour="s3", note=f"{kept:,.0f} of {read:,.0f} documents")
        for name, (kept, read) in totals.items()
        if read
    ]
    return sorted(bars, key=lambda b: -(b.value or 0.0)) if len(bars) > 1 else []
