"""The reward model, and what PPO did against it, round by round."""

from __future__ import annotations

from collections.abc import Sequence

from bloomery.journey.results import Row
from bloomery.report.bars import Bar, bar_plot
from bloomery.report.html import Html
from bloomery.report.normal import normal, why_not
from bloomery.report.plots import Number, Series, line_plot
from bloomery.report.sections import figure, grid, missing, section
from bloomery.report.sections.rounds import Rounds
from bloomery.report.sections.training import COLOURS, curve, tax
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
    if cards and (reliable := calibration(cards[max(cards)])):
        figures.append(reliable)
    if cards:
        figures.append(by_kind(cards[max(cards)]))
    return section("reward", title, intro, grid(*figures))


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
    points = [(number_in(b, "confidence"), number_in(b, "accuracy")) for b in bins]
    kept = [(x, y) for x, y in points if x is not None and y is not None]
    if len(kept) < 2:
        return None
    series = [
        Series("perfect", [0.5, 1.0], [0.5, 1.0], "s6", "dashed"),
        Series("reward model", [x for x, _ in kept], [y for _, y in kept], "s2", "points"),
    ]
    error = number_in(card, "eval_ece")
    return figure(
        "Calibration",
        "how often it is right, by how sure it is (sigmoid of the score gap)",
        line_plot(series, x_label="confidence", as_percent=True, describe="Calibration of the reward model"),
        "Below the dashed line it is surer than it should be."
        + (f" Expected calibration error {error:.3f}." if error is not None else ""),
    )


# ------------------------------------------------------------------------------------------------- PPO


def reinforcement(view: View) -> Html:
    title = "Reinforcement learning, round by round"
    rounds = Rounds.of(view)
    if not rounds.parts:
        return section("ppo", title, "", missing("No PPO was logged in this run."))
    points = [row for row in view.rows if row.name != "base"]
    judged = len(points) > 1 and any(row.get("graded_reward")[0] is not None for row in points)
    figures = [gold_and_proxy(points), behaviour(points)] if judged else []
    figures += [
        rounds.figure(
            "Reward",
            "per answer: the reward model’s score, and the score less the KL penalty",
            (("objective/scores", "score", "s2"), ("objective/rlhf_reward", "score − KL penalty", "s1")),
            "Should rise within a round; its level jumps in the next, because a new reward model judges "
            "anew.",
            bands=1,
        ),
        rounds.figure(
            "KL to the SFT model",
            "nats per answer",
            (("objective/kl", "KL", "s1"),),
            "The leash. Steady growth is learning; an explosion is escape, and negative values are a bug.",
            zero=True,
        ),
        rounds.figure(
            "Entropy",
            "nats per answer",
            (("objective/entropy", "entropy", "s3"),),
            "Falls as the policy makes up its mind. Near zero it has stopped exploring.",
            zero=True,
        ),
        rounds.figure(
            "Length of answers",
            "tokens",
            (("completions/mean_length", "mean length", "s4"),),
            "Steady growth with rising reward is the classic sign of a reward that likes length.",
            zero=True,
        ),
    ]
    if rounds.logs("gold/graded_reward"):
        figures.append(
            rounds.figure(
                "Gold and proxy along the way",
                "mean per answer, on the prompts PPO trains on",
                (
                    ("gold/graded_reward", "oracle (gold)", "s3"),
                    ("objective/scores", "reward model (proxy)", "s2"),
                ),
                "Proxy up and gold down is over-optimisation: the policy pleases the reward model, not the "
                "people.",
            )
        )
    if taxed := tax(view):
        figures.append(taxed)
    intro = (
        "PPO moves the policy towards answers that the reward model scores high, on a leash to the SFT "
        "model. Each "
        "round samples from the current policy, has the answers ranked, retrains the reward model on old "
        "and new "
        "rankings, and goes on from there."
    )
    return section("ppo", title, intro, grid(*figures))


def gold_and_proxy(points: Sequence[Row]) -> Html:
    series = [
        line_of(points, "oracle, sampled", "graded_reward", None, "s3"),
        line_of(points, "oracle, greedy", "graded_reward_greedy", None, "s1"),
        line_of(points, "reward model", "proxy_reward", "sampled", "s2", look="dashed"),
    ]
    return figure(
        "Graded reward by round",
        "held-out questions; round 0 is the SFT model; 95 % intervals",
        rounds_plot(series, points, describe="Graded reward by round"),
        "What counts: the oracle’s grade must rise for sampled answers, and greedy ones must not pay for it. "
        "Each round has its own reward model, so its scores compare within a round only.",
    )


def behaviour(points: Sequence[Row]) -> Html:
    series = [
        line_of(points, "made up", "fabrication_rate", None, "s2"),
        line_of(points, "abstains, never seen", "abstain_never_rate", "greedy", "s1"),
        line_of(points, "known facts", "known_accuracy", None, "s3"),
        line_of(points, "abstains, known", "abstain_known_rate", None, "s4"),
    ]
    return figure(
        "Made up or left open",
        "rates of greedy answers, by round",
        rounds_plot(
            series, points, as_percent=True, zero=True, describe="Fabrication and abstention by round"
        ),
        "Honesty that is learned lowers made-up answers and raises “I do not know” on what cannot be known, "
        "while known facts stay known.",
    )


def line_of(
    points: Sequence[Row], name: str, key: str, decoding: str | None, colour: str, look: str = "points"
) -> Series:
    found = [row.get(key, decoding) for row in points]
    values, lows, highs = (list(part) for part in zip(*found, strict=True))
    if look != "points":
        lows, highs = [], []
    return Series(name, [float(row.round) for row in points], values, colour, look, lows, highs)


def rounds_plot(
    series: list[Series],
    points: Sequence[Row],
    *,
    as_percent: bool = False,
    zero: bool = False,
    describe: str = "",
) -> Html:
    ticks = [float(row.round) for row in points]
    return line_plot(
        series, x_label="round", as_percent=as_percent, zero=zero, x_ticks=ticks, describe=describe
    )
