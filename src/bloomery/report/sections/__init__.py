"""The parts of the page, each a function of the view. A part whose files are missing says so."""

from __future__ import annotations

from bloomery.report.html import Child, Html, join, tag


def section(name: str, title: str, intro: str, *children: Child) -> Html:
    return tag("section", tag("h2", title), tag("p", intro, class_="intro"), *children, id=name)


def figure(title: str, unit: str, picture: Html, caption: str = "") -> Html:
    """Title, unit, legend, picture and caption: five rows, so that neighbours in a grid line up."""
    return tag(
        "figure",
        tag("h3", title),
        tag("p", unit, class_="unit"),
        picture if picture.startswith(("<ul", "<div")) else join(tag("div", class_="legend"), picture),
        tag("figcaption", caption),
    )


def grid(*figures: Child) -> Html:
    return tag("div", *figures, class_="grid")


def missing(what: str) -> Html:
    return tag("p", what, class_="missing")


def table(head: list[Child], rows: list[list[Child]], *, left: int = 1, class_: str = "small") -> Html:
    """A plain table; the first `left` columns are words, the others numbers."""
    side = ["left" if i < left else None for i in range(len(head))]
    return tag(
        "div",
        tag(
            "table",
            tag("thead", tag("tr", *(tag("th", h, class_=s) for h, s in zip(head, side, strict=True)))),
            tag(
                "tbody",
                *(
                    tag("tr", *(tag("td", c, class_=s) for c, s in zip(row, side, strict=True)))
                    for row in rows
                ),
            ),
            class_=class_,
        ),
        class_="scroll",
    )


def interval(shown: str, low: str, high: str) -> Html:
    """A number with its interval under it."""
    return join(tag("span", shown, class_="mean"), tag("span", f"{low} to {high}", class_="interval"))
