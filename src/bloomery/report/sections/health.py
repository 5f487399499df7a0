"""What `bloomery diagnose` says of the run: one line where it is healthy, else what it found."""

from __future__ import annotations

from bloomery.journey.diagnose import CONDITIONS, Checkup, Finding
from bloomery.report.html import Html, tag
from bloomery.report.sections import missing, section
from bloomery.report.view import View


def health(view: View) -> Html:
    title = "Is it healthy?"
    checkups = list(view.checkups.values())
    if not checkups:
        return section("health", title, "", missing("No stage has logged anything that could be examined."))
    found = [(one, finding) for one in checkups for finding in one.findings]
    intro = (
        f"What bloomery diagnose says: it knows {len(CONDITIONS)} troubles and looked for them in the "
        f"curves of {_num(len(checkups), 'stage')}. The quiet band behind a curve, where there is one, is "
        "what three seeds of the default journey logged."
    )
    if not found:
        return section("health", title, intro, tag("p", _well(checkups), class_="well"))
    items = [_finding(one, finding) for one, finding in found]
    return section("health", title, intro, tag("ul", *items, class_="findings"))


def _well(checkups: list[Checkup]) -> str:
    short = [one.table.name for one in checkups if one.short]
    running = [one.table.name for one in checkups if one.table.status == "running"]
    words = "Healthy: none of them was found."
    if short:
        words += f" {', '.join(short)} logged too little to tell much."
    return words + (f" {', '.join(running)} is still at work." if running else "")


def _finding(one: Checkup, finding: Finding) -> Html:
    return tag(
        "li",
        tag("h3", one.table.name, " ", tag("span", finding.condition, class_="badge bad")),
        tag("p", finding.what),
        tag(
            "dl",
            *_lines("seen", finding.evidence),
            *_lines("try", finding.advice),
        ),
    )


def _lines(word: str, lines: tuple[str, ...]) -> list[Html]:
    return [tag("dt", word), *(tag("dd", line) for line in lines)] if lines else []


def _num(count: int, what: str) -> str:
    return f"{count} {what}" + ("s" if count != 1 else "")
