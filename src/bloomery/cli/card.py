"""A reward model's report card on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bloomery.cli.show import table

if TYPE_CHECKING:
    from rich.console import RenderableType

Card = Mapping[str, Any]
GROUPS = {
    "margin": "by difference of its two scores",
    "rated": "by how much higher the annotator rated it",
    "length": "by characters of the preferred answer",
    "annotator": "by annotator",
    "category": "by category",
    "source": "by source of an answer",
    "sources": "between answers",
}
HEADINGS = ("", "right", "95 % interval", "pairs", "")
WIDTH = 24


def tables(card: Card) -> Iterator[RenderableType]:
    """What is printed, from top to bottom: the model beside what it is held against, accuracy in groups, the
    scores themselves, and the verdict."""
    from rich.padding import Padding
    from rich.text import Text

    yield table(HEADINGS, list(_beside(card)), right=HEADINGS[1:4])
    for name, title in GROUPS.items():
        if rows := card["groups"][name]:
            yield Text(f"\n{title}", "bold")
            yield table(HEADINGS, [_row(row["name"], row) for row in rows], right=HEADINGS[1:4])
    yield Text()
    yield from map(Text, _scores(card))
    verdict = card["verdict"]
    good = {True: "bold green", False: "bold red", None: "bold"}[verdict["optimise"]]
    yield Padding(Text(verdict["sentence"], good), (1, 0, 0, 0))
    for note in verdict["notes"]:
        yield Padding(Text(f"- {note}"), (0, 0, 0, 0))


def _beside(card: Card) -> Iterator[tuple[str, ...]]:
    yield _row("reward model", card)
    yield _row("  where annotators agree", card["agreed"])
    yield _row("  given the two sources", card["given_sources"])
    yield _row("two annotators agree", card["ceiling"])
    yield _row("length alone", card["baselines"]["length"])
    yield _row("source alone", card["baselines"]["prior"])


def _row(name: str, row: Card) -> tuple[str, ...]:
    if row["accuracy"] is None:
        return (name, "-", "", "0", "")
    right = row["accuracy"]
    bar = "█" * round(WIDTH * right) + "·" * (WIDTH - round(WIDTH * right))
    interval = f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
    return (name, f"{100 * right:.1f} %", interval, f"{row['num_pairs']:,}", bar)


def _scores(card: Card) -> Iterator[str]:
    trust, spread = card["calibration"], card["distribution"]
    surer = (
        f"{100 * abs(trust['surer']):.1f} points {'surer than right' if trust['surer'] > 0 else 'too modest'}"
    )
    yield f"calibration: expected error {trust['ece']:.3f}, on average {surer}"
    low, middle, high = (spread["quantiles"][q] for q in ("0.05", "0.5", "0.95"))
    yield (
        f"scores: {spread['num']:,} answers, mean {spread['mean']:.2f}, standard deviation {spread['std']:.2f} "
        f"({spread['within']:.2f} among answers to one prompt); 5 % below {low:.2f}, half below {middle:.2f}, "
        f"95 % below {high:.2f}; {100 * spread['ties']:.1f} % of pairs tie"
    )
    if card.get("disagreement") is not None:
        yield f"several models: they disagree by {card['disagreement']:.2f} (standard deviation of an answer's scores)"
    if card["choosing"]:
        for row in card["choosing"]["curve"][1:]:
            yield (
                f"best of {row['n']} ({row['kl']:.2f} nats): {row['gain']:.2f} [{row['low']:.2f} to "
                f"{row['high']:.2f}] standard deviations better, above {100 * row['above']['value']:.0f} % of the others"
            )
