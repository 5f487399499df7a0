"""One HTML file that needs nothing else: no script, no request, a content policy that forbids both."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from bloomery import __version__
from bloomery.errors import ArtifactError
from bloomery.lineage import write_text
from bloomery.report.html import Html, tag
from bloomery.report.sections import (
    alignment,
    health,
    lab,
    origin,
    outcome,
    people,
    reward,
    samples,
    training,
)
from bloomery.report.view import CARD, Json, View

CONTENTS = (
    ("outcome", "Outcome"),
    ("health", "Health"),
    ("samples", "Answers"),
    ("ppo", "PPO"),
    ("reward", "Reward model"),
    ("annotators", "Annotators"),
    ("sft", "SFT"),
    ("pretraining", "Pretraining"),
    ("data", "Data"),
    ("lineage", "Lineage"),
    ("recipe", "Recipe"),
)
LAB = ("lab", "Over-optimisation")


def build(out: Path) -> Path:
    """Write OUT/report.html from whatever lies in the run directory `out`, and return its path.

    Parts that are missing are named on the page. A single stage's directory is reported on beside it, as
    <directory>.html, because a sealed directory is not written to. Raises `ArtifactError` when `out` is no
    directory or holds no run.
    """
    if not out.is_dir():
        raise ArtifactError("there is no such run directory", where=out)
    view = View.of(out)
    if not view.steps:
        raise ArtifactError("this directory holds no run", where=out, expected="journey.json or lineage.json")
    alone = (out / "lineage.json").is_file()
    path = out.resolve().parent / f"{out.resolve().name}.html" if alone else out / "report.html"
    write_text(path, "<!doctype html>\n" + render(view) + "\n")
    return path


def render(view: View) -> Html:
    card = view.json(CARD, "evaluation.json")
    return _document(view, _card(view, card) if card else _journey(view))


def _card(view: View, card: Json) -> list[Html]:
    """A reward model's report card by itself."""
    return [reward.opening(card, view.out), tag("main", reward.alone(card), origin.recipe(view))]


def _journey(view: View) -> list[Html]:
    found = lab.overoptimisation(view)
    contents = [*CONTENTS[:1], *([LAB] if found else []), *CONTENTS[1:]]
    return [
        outcome.hero(view),
        tag("nav", tag("ul", *(tag("li", tag("a", word, href=f"#{name}")) for name, word in contents))),
        tag(
            "main",
            outcome.outcome(view),
            found,
            health.health(view),
            samples.samples(view),
            alignment.reinforcement(view),
            reward.reward_model(view),
            people.annotators(view),
            training.finetuning(view),
            training.pretraining(view),
            people.cleaning(view),
            origin.lineage(view),
            origin.recipe(view),
        ),
    ]


def _document(view: View, parts: list[Html]) -> Html:
    style = Html(resources.files("bloomery.report").joinpath("style.css").read_text(encoding="utf-8"))
    body = tag(
        "div",
        *parts,
        _problems(view),
        tag(
            "footer",
            f"Bloomery {__version__}, {datetime.now(UTC):%d %B %Y, %H:%M} UTC · {view.out.resolve()}",
        ),
        class_="page",
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy(style)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", f"Bloomery · {view.out.resolve().name}"),
        tag("style", style),
    )
    return tag("html", head, tag("body", body), lang="en")


def policy(style: str) -> str:
    """Nothing may be loaded, run or sent; only this very style sheet applies."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _problems(view: View) -> Html:
    if not view.problems:
        return Html("")
    lines = [tag("li", problem) for problem in dict.fromkeys(view.problems)]
    return tag("section", tag("h2", "What could not be read"), tag("ul", *lines), id="problems")
