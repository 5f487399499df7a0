"""Where it all came from: the graph of stages, the people and models behind the last policy, time, recipe."""

from __future__ import annotations

from bloomery.report.bars import Bar, bar_plot
from bloomery.report.dag import Node, draw
from bloomery.report.html import Child, Html, tag
from bloomery.report.plots import number
from bloomery.report.sections import figure, missing, section, table
from bloomery.report.view import Json, View, number_in

GROUPS = ("pretrain", "sft", "label", "reward", "ppo", "evaluate")
MODELS = {"pretrain", "sft", "reward", "ppo"}


def lineage(view: View) -> Html:
    title = "Lineage"
    records = {name: tree for name in view.steps if (tree := view.json(name, "lineage.json"))}
    if not records:
        return section("lineage", title, "", missing("No lineage was recorded in this run."))
    graph = draw(_nodes(view, records))
    intro = (
        "Each box is a stage with the digest of its settings, inputs and code; strong lines carry "
        "weights, thin ones "
        "data. A line is left out where a longer way tells the same; point at a box for all that went "
        "into it."
    )
    return section(
        "lineage", title, intro, tag("div", graph, class_="scroll"), _behind(records), class_wide(_time(view))
    )


def class_wide(child: Html) -> Html:
    return tag("div", child, class_="wide")


def _nodes(view: View, records: dict[str, Json]) -> list[Node]:
    """Stages as nodes; an input counts as an edge where the directory it lies in is a stage of this run."""
    places = {path.resolve(): name for name, path in view.steps.items()}
    nodes = []
    for name, record in records.items():
        home = view.steps[name].resolve()
        parents: dict[str, bool] = {}
        for one in record.get("inputs") or []:
            path = (home / str(one.get("path"))).resolve()
            source = places.get(path) or places.get(path.parent)
            if source and source != name:
                weights = _carries_weights(str(record.get("stage")), str(one.get("role")))
                parents[source] = parents.get(source, False) or weights
        nodes.append(
            Node(
                name=name,
                note=str(record.get("key", ""))[:12],
                parents=tuple(parents.items()),
                model=record.get("stage") in MODELS,
                title=_title(name, record),
            )
        )
    return nodes


def _carries_weights(stage: str, role: str) -> bool:
    """Whether training starts from this input's weights."""
    return (stage, role) in {("sft", "model"), ("reward", "model"), ("reward", "start"), ("ppo", "policy")}


def _title(name: str, record: Json) -> str:
    people, teachers = record.get("people") or [], record.get("teachers") or []
    lines = [
        f"{name} ({record.get('stage')})",
        f"key {record.get('key')}",
        f"code {str(record.get('code'))[:12]}",
    ]
    lines += [f"input {one.get('role')}: {str(one.get('digest'))[:12]}" for one in record.get("inputs") or []]
    return "\n".join([*lines, f"{len(people)} people, {len(teachers)} teachers"])


def _behind(records: dict[str, Json]) -> Html:
    """The people and models whose judgement or answers are in the last policy."""
    name, last = next(
        ((n, r) for n, r in reversed(records.items()) if r.get("stage") in ("ppo", "reward", "sft")), ("", {})
    )
    people: list[list[Child]] = [
        [str(one.get("id")), str(one.get("kind")), number(number_in(one, "rankings") or None)]
        for one in last.get("people") or []
    ]
    teachers: list[list[Child]] = [
        [str(one.get("id")), tag("code", str(one.get("digest") or "")[:12])]
        for one in last.get("teachers") or []
    ]
    if not people and not teachers:
        return Html("")
    parts: list[Child] = []
    if people:
        caption = f"The people behind {name}"
        parts.append(tag("figure", tag("h3", caption), table(["who", "kind", "rankings"], people, left=2)))
    if teachers:
        caption = f"Who wrote the answers ranked for {name}"
        parts.append(tag("figure", tag("h3", caption), table(["policy", "digest"], teachers, left=2)))
    return tag("div", *parts, class_="grid")


def _time(view: View) -> Html:
    if not view.seconds:
        return figure("Time", "", missing("No journey.json: how long the steps took was not written down."))
    total = sum(view.seconds.values())
    bars = [
        Bar(name, seconds, colour="s6") for name, seconds in view.seconds.items() if seconds >= 0.005 * total
    ]
    rest = len(view.seconds) - len(bars)
    note = f" {rest} steps under half a per cent are left out." if rest else ""
    return figure(
        "Time",
        f"seconds per step, {total / 60:.1f} minutes in all",
        bar_plot(bars, describe="Seconds per step"),
        f"What each step took when it was made; a step taken from the cache counts as it was then.{note}",
    )


def recipe(view: View) -> Html:
    text = view.text("recipe.yaml")
    if text is None:
        return section("recipe", "Recipe", "", missing("No recipe.yaml lies in this run."))
    intro = "Every setting, defaults written out. Running this file again repeats the journey."
    shown = tag("details", tag("summary", f"recipe.yaml, {len(text.splitlines())} lines"), tag("pre", text))
    return section("recipe", "Recipe", intro, shown)
