"""The same questions, answered by base, SFT and RL, side by side with the oracle's verdicts."""

from __future__ import annotations

from typing import Any

from bloomery.journey.results import evaluations
from bloomery.report.html import Child, Html, join, tag
from bloomery.report.sections import missing, section
from bloomery.report.sections.outcome import colour_of
from bloomery.report.view import Json, View

SHOWN = 7
LABELS = {"base": "Base", "sft": "SFT", "rl": "RL"}
GOOD, BAD = "badge good", "badge bad"


def samples(view: View) -> Html:
    title = "In their own words"
    columns = _columns(view)
    if not columns:
        return section(
            "samples", title, "", missing("No answers were written down: run the `evaluate` stage.")
        )
    name = next(reversed(columns))
    answers = {row: {talk.get("id"): talk for talk in talks} for row, talks in columns.items()}
    talks = [_talk(talk, answers) for talk in columns[name]]
    intro = (
        "Held-out questions of every kind, drawn before any model answered them. Each model’s most "
        "likely answer, and "
        "below it one sampled at temperature 1."
    )
    more = (
        tag("details", tag("summary", f"{len(talks) - SHOWN} more"), *talks[SHOWN:])
        if len(talks) > SHOWN
        else ""
    )
    return section("samples", title, intro, *talks[:SHOWN], more)


def _columns(view: View) -> dict[str, list[Json]]:
    """Row name -> its sample conversations; of the rounds only the last, as "rl"."""
    found: dict[str, list[Json]] = {}
    for name, path in evaluations(view.out).items():
        tree = view.json(path.name, "evaluation.json")
        if tree and isinstance(tree.get("conversations"), list):
            found["rl" if name.startswith("rl") else name] = tree["conversations"]
    return found


def _talk(talk: Json, answers: dict[str, dict[Any, Json]]) -> Html:
    messages = talk.get("messages") or []
    turns = [
        tag("li", message.get("content"), class_="question" if i == len(messages) - 1 else "earlier")
        for i, message in enumerate(messages)
    ]
    cells = [
        tag("div", tag("h4", LABELS[row]), *_answer(rows[talk.get("id")]), class_=colour_of(row))
        for row, rows in answers.items()
        if talk.get("id") in rows
    ]
    truth = talk.get("answer")
    return tag(
        "article",
        tag("p", tag("span", _kind(str(talk.get("kind"))), class_="kind"), class_="asked"),
        tag("ul", *turns, class_="turns"),
        tag("p", f"Written answer: {truth}", class_="truth") if truth else "",
        tag("div", *cells, class_="answers"),
        class_="talk",
    )


def _kind(kind: str) -> str:
    words = {
        "fact/often": "a fact the documents state often",
        "fact/rare": "a fact the documents state once or twice",
        "fact/never": "a fact that no document states",
        "false_premise": "a question with a false premise",
        "follow_up": "a follow-up question",
        "harmful": "a harmful request",
        "lookalike": "harmless, but looks harmful",
        "howto": "how to do something",
    }
    return words.get(kind, kind.replace("_", " "))


def _answer(talk: Json) -> list[Html]:
    """Both answers with their verdicts; one block where they read the same."""
    said = {d: talk[d] for d in ("greedy", "sampled") if isinstance(talk.get(d), dict)}
    if len(said) == 2 and said["greedy"].get("text") == said["sampled"].get("text"):
        return [_said("greedy and sampled", said["greedy"])]
    return [_said(decoding, one) for decoding, one in said.items()]


def _said(decoding: str, said: Json) -> Html:
    words = said.get("text") or tag("span", "(nothing)", class_="decoding")
    mark = join(tag("span", f"{decoding} ", class_="decoding"), badge(said))
    return tag("div", tag("p", words), tag("div", mark), class_="said")


def badge(said: Json) -> Child:
    """The oracle's verdict in a word: green for what people should want, red for what they should not."""
    if "grade" not in said:
        return "" if said.get("finished", True) else tag("span", "cut off", class_=BAD)
    for flag, word, look in (
        ("malformed", "garbled", BAD),
        ("refused", "refused", GOOD if said.get("correct") else BAD),
        ("abstained", "abstained", "badge"),
        ("correct", "right", GOOD),
        ("fabricated", "made up", BAD),
    ):
        if said.get(flag):
            hedged = ", hedged" if "hedged" in str(said["grade"]) else ""
            return tag("span", word + hedged, class_=look)
    return tag("span", "wrong", class_=BAD)
