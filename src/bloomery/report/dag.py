"""A drawing of a directed acyclic graph in lanes: a first lane, then one for each round."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bloomery.report.html import Html, tag

BOX, HIGH = 112, 40
GAP, LANE = 34, 84
LEFT, TOP = 72, 14


@dataclass(frozen=True)
class Node:
    """`parents`: (name, whether weights are handed on). Parents must be nodes themselves."""

    name: str
    note: str
    parents: tuple[tuple[str, bool], ...]
    model: bool = False
    title: str = ""


def draw(nodes: Sequence[Node]) -> Html:
    """Lanes from the number at the end of a name; in a lane, left to right, after whatever it depends on."""
    place = layout(nodes)
    width = LEFT + (max(x for x, _ in place.values()) + 1) * (BOX + GAP)
    height = TOP + (max(y for _, y in place.values()) + 1) * LANE
    edges = [
        _edge(place[parent], place[name], weights, f"{parent} to {name}")
        for parent, name, weights in sorted(drawn_edges(nodes), key=lambda edge: edge[2])
    ]
    lanes = sorted({y for _, y in place.values()})
    labels = [
        tag("text", "first" if y == 0 else f"round {y}", class_="lane", x=0, y=TOP + y * LANE + HIGH / 2 + 4)
        for y in lanes
        if len(lanes) > 1
    ]
    return tag(
        "svg",
        tag("title", "Lineage of the stages"),
        *labels,
        *edges,
        *(_box(node, place[node.name]) for node in nodes),
        viewBox=f"0 0 {width} {height}",
        class_="dag",
        role="img",
    )


def drawn_edges(nodes: Sequence[Node]) -> list[tuple[str, str, bool]]:
    """(parent, child, weights): every edge that carries weights, and of the others those that no longer path
    already tells."""
    above: dict[str, set[str]] = {}
    parents = {node.name: [p for p, _ in node.parents] for node in nodes}

    def ancestors(name: str) -> set[str]:
        if name not in above:
            above[name] = set()  # a circle, which a lineage cannot have, would end here
            direct = [p for p in parents.get(name, ()) if p in parents]
            above[name] = set(direct).union(*(ancestors(p) for p in direct))
        return above[name]

    return [
        (parent, node.name, weights)
        for node in nodes
        for parent, weights in node.parents
        if parent in parents
        and (weights or not any(parent in ancestors(other) for other in parents[node.name]))
    ]


def layout(nodes: Sequence[Node]) -> dict[str, tuple[int, int]]:
    """(column, lane) of each node: no two share a place, and within a lane parents are to the left."""
    lanes = {node.name: _lane(node.name) for node in nodes}
    found: dict[str, tuple[int, int]] = {}
    used = {parent for node in nodes for parent, _ in node.parents}
    waiting = sorted(nodes, key=lambda node: node.name not in used)  # evaluations at the end of their lane
    while waiting:
        ready = [n for n in waiting if all(p in found or p not in lanes for p, _ in n.parents)]
        for node in ready or waiting[:1]:
            lane = lanes[node.name]
            after = [found[p][0] + 1 for p, _ in node.parents if p in found and found[p][1] == lane]
            at = max(after, default=0)
            while (at, lane) in found.values():
                at += 1
            found[node.name] = (at, lane)
            waiting.remove(node)
    return found


def _lane(name: str) -> int:
    match = re.search(r"-(\d+)$", name)
    return int(match[1]) if match else 0


def _corner(place: tuple[int, int]) -> tuple[float, float]:
    return LEFT + place[0] * (BOX + GAP), TOP + place[1] * LANE


def _edge(start: tuple[int, int], end: tuple[int, int], weights: bool, title: str) -> Html:
    """Neighbours in a lane: straight. Further along it: an arc below. Another lane: an S-curve down."""
    (x0, y0), (x1, y1) = _corner(start), _corner(end)
    if start[1] == end[1]:
        a, b, y = x0 + BOX, x1, y0 + HIGH / 2
        if end[0] == start[0] + 1:
            path = f"M{a} {y}L{b} {y}"
        else:
            a, b, y = x0 + BOX * 0.7, x1 + BOX * 0.3, y0 + HIGH
            path = f"M{a} {y}C{a + 24} {y + 26} {b - 24} {y + 26} {b} {y}"
    else:
        a, b, top, bottom = x0 + BOX / 2, x1 + BOX / 2, y0 + HIGH, y1
        bend = min(60.0, (bottom - top) / 2)
        path = f"M{a} {top}C{a} {top + bend} {b} {bottom - bend} {b} {bottom}"
    return tag("g", tag("title", title), tag("path", d=path, class_="edge weights" if weights else "edge"))


def _box(node: Node, place: tuple[int, int]) -> Html:
    x, y = _corner(place)
    name = node.name if len(node.name) <= 15 else node.name[:14] + "…"
    return tag(
        "g",
        tag("title", node.title or node.name),
        tag("rect", x=x, y=y, width=BOX, height=HIGH, rx=5),
        tag("text", name, class_="name", x=x + BOX / 2, y=y + 17, text_anchor="middle"),
        tag("text", node.note, class_="key", x=x + BOX / 2, y=y + 31, text_anchor="middle"),
        class_="node model" if node.model else "node",
    )
