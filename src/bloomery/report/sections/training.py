"""How the base model learned the language, and the SFT model to answer."""

from __future__ import annotations

from collections.abc import Sequence

from bloomery.report.bars import Bar, bar_plot
from bloomery.report.html import Html
from bloomery.report.normal import normal, why_not
from bloomery.report.plots import Series, line_plot, smooth
from bloomery.report.sections import figure, grid, missing, section
from bloomery.report.sections.outcome import colour_of
from bloomery.report.view import Rows, View, column, number_in

COLOURS = ("s1", "s2", "s3", "s4", "s5", "s6")


def curve(rows: Rows, key: str, name: str, colour: str, *, window: int | None = None) -> list[Series]:
    """A metric as a faint raw line under its moving average; short or sparse ones as they are."""
    x, y = column(rows, key)
    if not x:
        return []
    window = max(1, len(x) // 25) if window is None else window
    if window < 3:
        return [Series(name, x, y, colour, "points" if len(x) < 20 else "line")]
    return [Series(name, x, y, colour, "faint"), Series(name, x, smooth(y, window), colour)]


def pretraining(view: View) -> Html:
    rows = view.metrics("base")
    title = "Pretraining"
    if not rows:
        return section("pretraining", title, "", missing("No pretraining was logged in this run."))
    why = why_not(view, "base")
    losses = [*normal(view, "base", "train/loss", "s1"), *curve(rows, "train/loss", "training", "s1")]
    loss = line_plot(losses, x_label="step", describe="Pretraining loss")
    rate = line_plot(
        [Series("learning rate", *column(rows, "lr"), "s6")],
        x_label="step",
        zero=True,
        describe="Learning rate",
    )
    figures = [
        figure(
            "Loss",
            "nats per token; the faint line is raw, the strong one averaged",
            loss,
            "Look for a steep fall, then a slow one. A rise or a jump that stays is a learning rate too "
            "high." + why,
        ),
        figure(
            "Learning rate",
            "warm-up, then decay",
            rate,
            "A loss that still falls fast where the rate reaches its end would have liked more steps.",
        ),
    ]
    bits = held_out(rows)
    if bits:
        bits = [*normal(view, "base", "val/bpb", bits[0].colour), *bits]
        figures.append(
            figure(
                "Held-out bits per byte",
                "documents that were never trained on; of the sources, the hardest",
                line_plot(bits, x_label="step", describe="Held-out bits per byte"),
                "Should fall with the training loss. Rising while the loss falls means learning by heart."
                + why,
            )
        )
    sources = by_source(view)
    if sources:
        figures.append(sources)
    intro = "The base model reads the cleaned documents and learns to predict the next token, from nothing."
    return section("pretraining", title, intro, grid(*figures))


def held_out(rows: Rows) -> list[Series]:
    """val/bpb in all and, where it was logged, of the five hardest sources (the bars show every one)."""
    last = {key: row[key] for row in rows for key in row if key.startswith("val/bpb/")}
    keys = sorted(sorted(last, key=lambda key: -last[key])[:5])
    found = curve(rows, "val/bpb", "all", "s6" if keys else "s1", window=1)
    for i, key in enumerate(keys):
        found += curve(rows, key, key.removeprefix("val/bpb/"), COLOURS[i], window=1)
    return found


def by_source(view: View) -> Html | None:
    """Bits per byte by source, of the evaluated models: the base model's bars."""
    bits = ((view.results or {}).get("bpb_by_source") or {}).get("base") or {}
    bars = [
        Bar(name, number_in(row, "mean"), number_in(row, "low"), number_in(row, "high"), "s1")
        for name, row in sorted(bits.items(), key=lambda item: number_in(item[1], "mean") or 0.0)
        if name != "all"
    ]
    if not bars:
        return None
    whole = number_in(bits, "all", "mean")
    plot = bar_plot(
        bars, references=[(whole, "all")] if whole is not None else [], describe="Bits per byte by source"
    )
    return figure(
        "Bits per byte by source",
        "base model at the end, with 95 % intervals",
        plot,
        "Short bars are text the model finds easy. What cannot be predicted, such as false gossip, stays "
        "long.",
    )


def finetuning(view: View) -> Html:
    rows = view.metrics("sft")
    title = "Supervised fine-tuning"
    if not rows:
        return section("sft", title, "", missing("No fine-tuning was logged in this run."))
    why = why_not(view, "sft")
    losses = [
        *normal(view, "sft", "loss", "s1"),
        *normal(view, "sft", "eval_loss", "s2"),
        *curve(rows, "loss", "training", "s1"),
        *held_out_loss(rows),
    ]
    figures = [
        figure(
            "Loss",
            "nats per assistant token",
            line_plot(losses, x_label="step", describe="SFT loss"),
            "Both should fall together. Held-out turning up while training falls is the time to stop." + why,
        ),
    ]
    entropy = curve(rows, "entropy", "entropy", "s3")
    accuracy = curve(rows, "mean_token_accuracy", "token accuracy", "s3")
    if entropy:
        figures.append(
            figure(
                "Entropy of the answers",
                "nats per token",
                line_plot([*normal(view, "sft", "entropy", "s3"), *entropy], x_label="step"),
                "How undecided the model is. Near zero it always says the same, and PPO has nothing to "
                "choose from." + why,
            )
        )
    elif accuracy:
        accuracy = [*normal(view, "sft", "mean_token_accuracy", "s3"), *accuracy]
        figures.append(
            figure("Token accuracy", "", line_plot(accuracy, x_label="step", as_percent=True), why)
        )
    intro = (
        "The model imitates demonstrations; only the assistant’s words are trained on. Demonstrators who "
        "know more "
        "than the model teach it to answer, and, where it does not know, to make things up."
    )
    return section("sft", title, intro, grid(*figures))


def held_out_loss(rows: Rows) -> Sequence[Series]:
    x, y = column(rows, "eval_loss")
    return [Series("held out", x, y, "s2", "points")] if x else []


def tax(view: View) -> Html | None:
    """Bits per byte along the line base, SFT, rounds: what alignment costs in language."""
    bars = []
    for row in view.rows:
        value, low, high = row.get("bpb")
        bars.append(Bar(row.label, value, low, high, colour_of(row.name)))
    if sum(bar.value is not None for bar in bars) < 2:
        return None
    return figure(
        "The alignment tax",
        "bits per byte on held-out documents, with 95 % intervals",
        bar_plot(bars, describe="Bits per byte by model"),
        "Longer bars mean that tuning made the model forget language. The pretraining mix (PPO-ptx) "
        "shortens them.",
    )
