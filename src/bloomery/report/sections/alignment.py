"""What PPO did against the reward model, round by round."""

from __future__ import annotations

from collections.abc import Sequence

from bloomery.journey.results import Row
from bloomery.report.html import Html
from bloomery.report.plots import Series, line_plot
from bloomery.report.sections import figure, grid, missing, section
from bloomery.report.sections.rounds import Rounds
from bloomery.report.sections.training import tax
from bloomery.report.view import View


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
