"""The people behind the numbers: how far they agree, how each of them leans; and what cleaning took away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bloomery.report.bars import Bar, bar_plot
from bloomery.report.html import Child, Html, join, tag
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
        "Who ranked the answers, and how far to trust each of them. Simulated annotators of the embedded world have "
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
        return number(value)
    return interval(number(value), number(low), number(high))


def _each(people: Any) -> Html:
    rows = _people(people)
    if not rows:
        return Html("")
    columns = [c for c in COLUMNS if any(_value(_at(row, c[1])) is not None for _, row in rows)]
    body: list[list[Child]] = [
        [who, *(_shown(_value(_at(row, path)), how) for _, path, how in columns), _flags(row)]
        for who, row in rows
    ]
    head: list[Child] = ["annotator", *(title for title, _, _ in columns), "flags"]
    caption = (
        "“Takes the first shown” and “takes the longer” (of two, twice as long) are what happens to an "
        "otherwise even pair: 50 % is no habit. Leniency is in points of rating. Somebody far from the others’ "
        "agreement is careless, or sees something they do not: read some of their rankings."
    )
    return tag("div", tag("figure", table(head, body), tag("figcaption", caption)), class_="wide")


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


def _flags(row: Json) -> Html:
    flags = row.get("flags") or []
    return join(*(tag("span", str(flag), class_="badge bad") for flag in flags))


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
    for key, words in (
        ("by_source", "source"),
        ("by_quality", "quality"),
        ("sources", "source"),
        ("qualities", "quality"),
    ):
        if isinstance(report.get(key), dict) and (bars := _kept_shares(report[key])):
            figures.append(
                figure(
                    f"Kept, by {words}", "share of the documents", bar_plot(bars, as_percent=True, top=1.0)
                )
            )
    return section("data", title, intro, grid(*figures) if figures else missing("Nothing was dropped."))


def counts(report: Json) -> tuple[Number, Number, dict[str, float]]:
    """(read, kept, dropped by reason) of a cleaning report."""
    kept, read = number_in(report, "kept"), number_in(report, "read")
    reasons = report.get("dropped") or report.get("reasons") or report.get("by_reason")
    dropped = (
        {str(k): float(v) for k, v in reasons.items() if isinstance(v, int | float)}
        if isinstance(reasons, dict)
        else {}
    )
    if read is None and kept is not None:
        read = kept + sum(dropped.values())
    return read, kept, dropped


def _kept_shares(groups: Json) -> list[Bar]:
    bars = []
    for name, row in groups.items():
        kept, read = number_in(row, "kept"), number_in(row, "read")
        if kept is not None and read:
            bars.append(Bar(str(name), kept / read, colour="s3", note=f"{kept:,.0f} of {read:,.0f}"))
    return sorted(bars, key=lambda b: -(b.value or 0.0))
