"""A reward model's report card on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bloomery.cli.show import table

if TYPE_CHECKING:
    from rich.console import RenderableType

Card = Mapping[str, Any]
GROUPS = {
    "margin": "by difference of its scores",
    "rated": "by difference in ratings",
    "length": "by characters, preferred",
    "annotator": "by annotator",
    "category": "by category",
    "source": "by source of an answer",
    "sources": "between two answers",
}
HEADINGS = ("", "right", "95 % interval", "pairs", "50 %           100 %")
CHOICES = ("best of", "nats", "stands above", "95 % interval")
WIDTH = len(HEADINGS[-1])


def tables(card: Card) -> Iterator[RenderableType]:
    """What is printed, from top to bottom: the model beside what it is held against, accuracy in groups, the
    scores themselves, and the verdict."""
    from rich.text import Text

    rows: list[Sequence[object]] = list(_beside(card))
    for name, title in GROUPS.items():
        if card["groups"][name]:
            rows += [("",) * 5, (Text(title, "bold"), "", "", "", "")]
            rows += [_row(row["name"], row) for row in card["groups"][name]]
    yield table(HEADINGS, rows, right=HEADINGS[1:4])
    yield Text()
    yield from map(Text, _scores(card))
    if card["choosing"]:
        yield Text("\nthe best of n answers by its score, judged by the annotators' rankings", "bold")
        yield table(CHOICES, list(_choices(card)), right=CHOICES)
    verdict = card["verdict"]
    look = {True: "bold green", False: "bold red", None: "bold"}[verdict["optimise"]]
    yield Text("\n" + verdict["sentence"], look)
    yield from (Text("- " + note) for note in verdict["notes"])
    if verdict["optimise"]:
        yield Text(f"- to end a run of PPO by this: --set stop_rule.budget={verdict['kl']:.2g}")


def _beside(card: Card) -> Iterator[tuple[str, ...]]:
    yield _row("reward model", card)
    yield _row("  where all annotators agree", card["agreed"])
    yield _row("  given the two sources", card["given_sources"])
    yield _row("two annotators agree", card["ceiling"])
    yield _row("length alone", card["baselines"]["length"])
    yield _row("source alone", card["baselines"]["prior"])


def _row(name: str, row: Card) -> tuple[str, ...]:
    if row["accuracy"] is None:
        return (name, "-", "", "0", "")
    right = row["accuracy"]
    filled = min(max(round(WIDTH * (2 * right - 1)), 0), WIDTH)
    interval = f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
    return (name, f"{100 * right:.1f} %", interval, f"{row['num_pairs']:,}", "█" * filled)


def _scores(card: Card) -> Iterator[str]:
    trust, spread = card["calibration"], card["distribution"]
    surer = "surer than right" if trust["surer"] > 0 else "too modest"
    yield f"calibration: expected error {trust['ece']:.3f}; {100 * abs(trust['surer']):.1f} points {surer}"
    if spread:
        low, middle, high = (spread["quantiles"][q] for q in ("0.05", "0.5", "0.95"))
        yield (
            f"scores: {spread['num']:,} answers, mean {spread['mean']:.2f}, standard deviation "
            f"{spread['std']:.2f} ({spread['within']:.2f} among answers to one prompt)"
        )
        yield f"  5 % below {low:.2f}, half below {middle:.2f}, 95 % below {high:.2f}"
        yield f"  {100 * spread['ties']:.1f} % of pairs score the same"
    if card.get("disagreement") is not None:
        yield f"  the models disagree by {card['disagreement']:.2f} (standard deviation, mean over answers)"


def _choices(card: Card) -> Iterator[tuple[str, ...]]:
    for row in card["choosing"]["curve"][1:]:
        above = row["above"]
        yield (
            str(row["n"]),
            f"{row['kl']:.2f}",
            f"{100 * above['value']:.0f} %",
            f"{100 * above['low']:.0f} to {100 * above['high']:.0f}",
        )
