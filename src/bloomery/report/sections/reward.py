"""The reward model: how it learnt, and its report card, on a journey's page and on a page of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from bloomery.report.bars import Bar, bar_plot
from bloomery.report.html import Html, join, tag
from bloomery.report.normal import normal, why_not
from bloomery.report.plots import Number, Series, line_plot, number, percent
from bloomery.report.sections import figure, grid, missing, section
from bloomery.report.sections.training import COLOURS, curve
from bloomery.report.view import Json, View, column, number_in

MANY_KINDS = 14


def reward_model(view: View) -> Html:
    title = "Reward model"
    numbers = [r for r in view.rounds if view.metrics(f"reward-{r}")]
    cards = {r: card for r in view.rounds if (card := view.json(f"reward-{r}", "evaluation.json"))}
    if not numbers and not cards:
        return section("reward", title, "", missing("No reward model was trained in this run."))
    intro = (
        "Annotators rank several answers to each prompt; the reward model learns to order answers as "
        "they do, from "
        "all pairs of a ranking. It can be no better than annotators agree with each other, and it must beat "
        "a rule that only counts characters."
    )
    figures = [accuracy_by_round(cards)] if cards else []
    if numbers:
        figures += [loss(view, numbers), learning(view, numbers)]
    if not cards:
        return section("reward", title, intro, grid(*figures))
    last = cards[max(cards)]
    figures += [*card_figures(last), by_kind(last)]
    return section("reward", title, intro, verdict(last), grid(*figures))


def opening(card: Json, out: Path) -> Html:
    """The head of a page that is a report card and nothing else."""
    said = card.get("verdict") or {}
    why = str(said.get("sentence", "")).partition(": ")[2]
    title = "Nothing was held out to compare"
    if said.get("optimise") is not None:
        far = f"Good enough to optimise against, up to about {number_in(said, 'kl') or 0.0:.1f} nats"
        title = far if said["optimise"] else "Not good enough to optimise against"
    lead = number_in(card, "baselines", "length", "lead", "mean") or 0.0
    tiles = (
        ("Right", percent(number_in(card, "accuracy"), 1), between(card)),
        (
            "Two annotators agree",
            percent(number_in(card, "ceiling", "accuracy"), 1),
            between(card["ceiling"]),
        ),
        ("More than length alone", f"{100 * lead:+.1f}".replace("-", "−"), "points"),
        ("Calibration error", f"{number_in(card, 'eval_ece') or 0.0:.3f}", "expected; 0 is best"),
    )
    return tag(
        "header",
        tag("p", f"Bloomery · reward model · {out.resolve().name}", class_="brand"),
        tag("h1", title),
        tag("p", f"{why[:1].upper()}{why[1:]}", class_="lede"),
        tag(
            "ul",
            *(
                tag(
                    "li",
                    tag("span", what, class_="what"),
                    tag("span", value, class_="value"),
                    tag("span", under, class_="was"),
                )
                for what, value, under in tiles
            ),
            class_="tiles",
        ),
    )


def between(row: Json) -> str:
    low, high = number_in(row, "low"), number_in(row, "high")
    return "" if low is None else f"{percent(low, 1)} to {percent(high, 1)}"


def alone(card: Json) -> Html:
    """The body of that page."""
    intro = (
        f"On {number_in(card, 'num_pairs') or 0:,.0f} comparisons of answers to "
        f"{number_in(card, 'num_slates') or 0:,.0f} prompts that were not trained on. Intervals are 95 %, "
        "from drawing whole prompts."
    )
    figures = [beside(card), *card_figures(card), *([by_kind(card)] if card.get("by_kind") else [])]
    return section("reward", "Report card", intro, notes(card), grid(*figures))


def verdict(card: Json) -> Html:
    """Whether to optimise against it; nothing on cards that are older than the question."""
    said = card.get("verdict") or {}
    if not said:
        return Html("")
    return join(tag("p", str(said["sentence"]), class_="verdict"), notes(card))


def notes(card: Json) -> Html:
    lines = [tag("li", str(note)) for note in (card.get("verdict") or {}).get("notes", ())]
    return tag("ul", *lines, class_="flags block") if lines else Html("")


def card_figures(card: Json) -> list[Html]:
    """What a card says in plots, as far as it says it."""
    figures = [calibration(card), by_margin(card), distribution(card), choosing(card), *by_group(card)]
    return [one for one in figures if one is not None]


def beside(card: Json) -> Html:
    """The model, and what knows less or more."""
    named = (
        ("reward model", card, "s2"),
        ("where all agree", card.get("agreed"), "s2"),
        ("given the sources", card.get("given_sources"), "s2"),
        ("two annotators", card.get("ceiling"), "s3"),
        ("length alone", number_tree(card, "baselines", "length"), "s6"),
        ("source alone", number_tree(card, "baselines", "prior"), "s6"),
    )
    return figure(
        "Beside others",
        "share of comparisons ordered as the annotator did",
        bar_plot(
            [rated(name, row or {}, colour) for name, row, colour in named],
            as_percent=True,
            top=1.0,
            references=[(0.5, "chance")],
            describe="The reward model beside annotators and baselines",
        ),
        "“Given the sources” weighs comparisons so that a rule which only knows who wrote an answer is right "
        "in one half: what the model knows beyond that. Annotators’ agreement is the ceiling.",
    )


def number_tree(tree: Json, *keys: str) -> Json:
    for key in keys:
        tree = tree.get(key) or {}
    return tree


def rated(name: str, row: Json, colour: str = "s2") -> Bar:
    num = number_in(row, "num_pairs") or 0.0
    ends = number_in(row, "low"), number_in(row, "high")
    return Bar(name, number_in(row, "accuracy"), *ends, colour, f"{num:,.0f} pairs")


def by_margin(card: Json) -> Html | None:
    rows = number_tree(card, "groups").get("margin") or []
    if len(rows) < 2:
        return None
    x, y, low, high = ([number_in(row, key) for row in rows] for key in ("mean", "accuracy", "low", "high"))
    margins = [value or 0.0 for value in x]
    promised = [1 / (1 + math.exp(-min(value, 50.0))) for value in margins]
    return figure(
        "Accuracy by margin",
        "how often it is right, by the difference of its two scores; five bands of equal size",
        line_plot(
            [
                Series("promised", margins, promised, "s6", "dashed"),
                Series("reward model", margins, y, "s2", "points", low, high),
            ],
            x_label="difference of scores",
            as_percent=True,
            describe="Accuracy of the reward model by margin",
        ),
        "Dashed: the sigmoid of the difference, which is what its training promised.",
    )


def distribution(card: Json) -> Html | None:
    found = number_tree(card, "distribution")
    bars = found.get("histogram") or {}
    if not bars:
        return None
    edges, counts = bars["edges"], bars["counts"]
    x = [edge for i in range(len(counts)) for edge in (edges[i], edges[i + 1])]
    y: list[Number] = [float(n) for n in counts for _ in range(2)]
    mean, std, ties = (number_in(found, key) or 0.0 for key in ("mean", "std", "ties"))
    return figure(
        "Scores",
        f"how many of {number_in(found, 'num') or 0:,.0f} held-out answers",
        line_plot(
            [Series("answers", x, y, "s2")],
            x_label="score",
            zero=True,
            describe="Distribution of the reward model’s scores",
        ),
        f"Mean {number(mean)}, standard deviation {number(std)}, {number(number_in(found, 'within'))} among "
        f"answers to one prompt. {percent(ties, 1)} of pairs score the same.",
    )


def choosing(card: Json) -> Html | None:
    rows = number_tree(card, "choosing").get("curve") or []
    if len(rows) < 2:
        return None
    x = [number_in(row, "kl") or 0.0 for row in rows]
    y, low, high = ([number_in(row, "above", key) for row in rows] for key in ("value", "low", "high"))
    peak = number_in(card, "choosing", "peak", "kl")
    words = f"The law fitted to this is highest at {peak:.1f} nats" if peak is not None else ""
    ends = number_in(card, "choosing", "peak", "low"), number_in(card, "choosing", "peak", "high")
    if peak is not None:
        shown = [f"{end:.1f}" if end is not None else "no bound" for end in ends]
        words += f" [{shown[0]} to {shown[1]}]: far beyond what was measured, so read it with doubt."
    return figure(
        "Choosing by score",
        f"share of the other answers that the best of n stands above; n is 1 to {len(rows)}",
        line_plot(
            [Series("best of n", x, y, "s2", "points", low, high)],
            x_label="KL, nats",
            as_percent=True,
            describe="What annotators say of the best of n answers",
        ),
        "A small experiment in optimising, judged by the annotators’ rankings. " + words,
    )


GROUPS = (
    ("length", "Accuracy by length", "characters of the preferred answer, against the other", 170),
    (
        "rated",
        "Accuracy by rated difference",
        "how much higher the annotator rated the preferred answer",
        150,
    ),
    ("annotator", "Accuracy by annotator", "on each one’s comparisons; weakest first", 128),
    ("category", "Accuracy by category", "of prompts; weakest first", 150),
    ("source", "Accuracy by source", "comparisons with an answer of this source; weakest first", 150),
    ("sources", "One source or two", "an optimised policy gives answers of one source only", 150),
)
CAPTIONS = {
    "length": "A model that likes length is worse where the shorter answer was preferred.",
    "category": "A policy learns the weak spots.",
}


def by_group(card: Json) -> Iterator[Html]:
    for name, title, unit, width in GROUPS:
        rows = number_tree(card, "groups").get(name) or []
        if len(rows) > 1:
            if "weakest" in unit:
                rows = sorted(rows, key=lambda row: number_in(row, "accuracy") or 0.0)
            rest = f" The {MANY_KINDS} weakest of {len(rows)}." if len(rows) > MANY_KINDS else ""
            bars = [rated(str(row["name"]), row) for row in rows[:MANY_KINDS]]
            picture = bar_plot(
                bars, as_percent=True, top=1.0, references=[(0.5, "chance")], name_width=width, describe=title
            )
            yield figure(title, unit, picture, CAPTIONS.get(name, "") + rest)


def accuracy_by_round(cards: dict[int, Json]) -> Html:
    bars = [
        Bar(f"Round {r}", number_in(c, "accuracy"), number_in(c, "low"), number_in(c, "high"), "s2")
        for r, c in cards.items()
    ]
    last = cards[max(cards)]
    references = [
        (value, word)
        for key, word in (("length_baseline", "length"), ("agreement", "annotators"))
        if (value := number_in(last, key)) is not None
    ]
    agreed = number_in(last, "agreed", "accuracy")
    caption = "Dashed: a rule that reads only length, and how far two annotators agree (the ceiling)."
    if agreed is not None:
        caption += f" On comparisons where annotators agree the last one is right in {100 * agreed:.0f} %."
    return figure(
        "Held-out accuracy",
        "share of comparisons ordered as the annotator did, with 95 % intervals",
        bar_plot(bars, as_percent=True, top=1.0, references=references, describe="Reward model accuracy"),
        caption,
    )


def by_kind(card: Json) -> Html:
    rows = [
        (name, number_in(row, "accuracy"), number_in(row, "n") or 0.0)
        for name, row in (card.get("by_kind") or {}).items()
    ]
    if not rows:
        return figure("By kind of comparison", "", missing("No oracle graded the held-out answers."))
    shown = sorted(rows, key=lambda row: -row[2])[:MANY_KINDS]
    bars = [kind_bar(name, accuracy, n) for name, accuracy, n in sorted(shown, key=lambda row: row[1] or 0.0)]
    rest = f" The {MANY_KINDS} most frequent of {len(rows)} kinds." if len(rows) > MANY_KINDS else ""
    return figure(
        "By kind of comparison",
        "does it prefer what the oracle prefers? Last round; weakest first",
        bar_plot(bars, as_percent=True, top=1.0, references=[(0.5, "chance")], name_width=204),
        "Policies learn the weak spots: a kind near chance is one where PPO can earn reward for the "
        "wrong thing." + rest,
    )


def kind_bar(name: str, accuracy: Number, n: float) -> Bar:
    """ "fact-never: abstained over wrong_confident" as a bar with two lines of name."""
    kind, _, comparison = name.replace("_", " ").partition(": ")
    return Bar(
        kind,
        accuracy,
        colour="s3" if (accuracy or 0.0) >= 0.75 else "s2",
        note=f"{n:,.0f} pairs",
        detail=comparison.replace(" over ", " > "),
    )


def loss(view: View, numbers: Sequence[int]) -> Html:
    series = []
    for i, r in enumerate(numbers):
        step, colour = f"reward-{r}", COLOURS[i % 6]
        series += normal(view, step, "loss", colour)
        series += curve(view.metrics(step), "loss", f"round {r}", colour)
    return figure(
        "Loss",
        "per ranking, training",
        line_plot(series, x_label="step", describe="Reward model loss"),
        "Starts near log 2 = 0.69, a coin toss, and falls."
        + why_not(view, *(f"reward-{r}" for r in numbers)),
    )


def learning(view: View, numbers: Sequence[int]) -> Html:
    step = f"reward-{numbers[-1]}"
    rows = view.metrics(step)
    x, y = column(rows, "eval_accuracy")
    series = [
        *normal(view, step, "accuracy", "s1"),
        *normal(view, step, "eval_accuracy", "s2"),
        *curve(rows, "accuracy", "training", "s1"),
        *([Series("held out", x, y, "s2", "points")] if x else []),
    ]
    return figure(
        "Accuracy while training",
        f"round {numbers[-1]}",
        line_plot(series, x_label="step", as_percent=True, describe="Reward model accuracy while training"),
        "Training far above held-out means it learns the annotators’ slips by heart: stop earlier."
        + why_not(view, step),
    )


def calibration(card: Json) -> Html | None:
    bins = (card.get("calibration") or {}).get("bins") or []
    kept = [b for b in bins if None not in (number_in(b, "confidence"), number_in(b, "accuracy"))]
    if len(kept) < 2:
        return None
    x = [number_in(b, "confidence") or 0.0 for b in kept]
    y, low, high = ([number_in(b, key) for b in kept] for key in ("accuracy", "low", "high"))
    series = [
        Series("perfect", [0.5, 1.0], [0.5, 1.0], "s6", "dashed"),
        Series("reward model", x, y, "s2", "points", low, high),
    ]
    error = number_in(card, "eval_ece")
    return figure(
        "Calibration",
        "how often it is right, by how sure it is (sigmoid of the score gap)",
        line_plot(series, x_label="confidence", as_percent=True, describe="Calibration of the reward model"),
        "Below the dashed line it is surer than it should be."
        + (f" Expected calibration error {error:.3f}." if error is not None else ""),
    )
