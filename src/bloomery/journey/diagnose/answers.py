"""Conditions of policy optimisation that concern the answers: rewards, variety, length, endings."""

from __future__ import annotations

import math

from bloomery.journey.diagnose.finding import Finding, condition, from_to, plain, setting
from bloomery.journey.diagnose.table import TREND, Column, Table, number
from bloomery.journey.diagnose.update import POLICY

CLEARLY = 3.0
"""Standard errors between two fifths of a run."""
ENTROPY_LEFT = 0.25
"""Of the entropy at the start; the default journey keeps three quarters."""
ENTROPY_GROWN = 3.0
"""Times the entropy at the start: the policy dissolves into noise."""
LONGER, SHORTER = 1.5, 0.5
"""Times the length at the start; the default journey stays within 10 %."""
TOKENS = 3.0
"""A change by fewer tokens than this is not worth a word."""
CUT_OFF = 0.3
"""Share of the answers that reach the limit; the default journey has none."""
NEVER_ENDS = 0.95
"""From here on there is no answer to speak of that ends by itself."""
NO_SPREAD = 0.8
"""Share of the groups in which all rewards are equal: they teach nothing."""
SAME = 1e-6
"""Rewards closer together than this are equal."""
TAX = 1.1
"""Bits per byte after training, as a multiple of those before."""


@condition("over-optimised", *POLICY)
def over_optimised(table: Table) -> Finding | None:
    """The reward rises while a judge it does not learn from (gold, held-out, watched) falls from its best
    fifth; of several, the one that falls most clearly."""
    reward = table.trend("reward")
    turns = [turn for judge in _judges(table) if reward and (turn := _turned(judge, reward.fifths()))]
    if reward is not None and turns:
        judge, best, _ = max(turns, key=lambda turn: turn[2])
        gold, proxy = judge.fifths(), reward.fifths()
        step = judge.steps[int(best * len(judge) / 5)]
        return _over_optimised(
            (
                f"{judge.name} {plain(gold[best][0])} in the fifth from step {step:,}, "
                f"{plain(gold[4][0])} in the last",
                f"{reward.name} {plain(proxy[best][0])} then, {plain(proxy[4][0])} in the last",
            ),
            f"stop near step {step:,}",
            table,
            judge,
        )
    pair = [
        number(e, "sampled", name, "mean") for name in ("proxy_reward", "graded_reward") for e in _both(table)
    ]
    if any(value is None for value in pair):
        return None
    proxy_before, proxy_after, gold_before, gold_after = (value or 0.0 for value in pair)
    low = number(table.before, "sampled", "graded_reward", "low")
    if proxy_after <= proxy_before or low is None or gold_after >= low:
        return None
    return _over_optimised(
        (
            f"graded reward {plain(gold_before)} before, {plain(gold_after)} after",
            f"the reward model's score {plain(proxy_before)} before, {plain(proxy_after)} after",
        ),
        "stop earlier",
        table,
        reward,
    )


def _judges(table: Table) -> list[Column]:
    """What the policy does not learn from: gold, held-out scores, means (not spreads) of what is watched."""
    return [c for name, c in table.columns.items() if len(c) >= TREND and _independent(name)]


def _independent(name: str) -> bool:
    watched = name.startswith("watch/") and name.endswith("/mean")
    return (
        watched or name.startswith(("gold/", "heldout", "held_out")) or name in ("eval_reward", "eval_score")
    )


def _turned(judge: Column, proxy: list[tuple[float, float]]) -> tuple[Column, int, float] | None:
    """The judge, its best fifth and by how many standard errors its last is below, where that is clear and
    the reward has risen since."""
    gold = judge.fifths()
    best = max(range(5), key=lambda i: gold[i][0])
    fall, noise = gold[best][0] - gold[4][0], math.hypot(gold[best][1], gold[4][1])
    if fall <= CLEARLY * noise or fall <= 0 or proxy[4][0] <= proxy[best][0]:
        return None
    return judge, best, fall / noise if noise else math.inf


def _both(table: Table) -> tuple[object, object]:
    return table.before, table.after


def _over_optimised(evidence: tuple[str, ...], stop: str, table: Table, shown: Column | None) -> Finding:
    return Finding(
        "The reward is gamed: it rises while the answers get worse.",
        evidence,
        (
            stop,
            "raise the KL coefficient" + setting(table, "kl_coef"),
            "label answers of this policy and train the reward model again; or use several reward models",
        ),
        shown,
    )


@condition("alignment-tax", *POLICY)
def alignment_tax(table: Table) -> Finding | None:
    """Held-out bits per byte are 10 % higher after training than before (of a journey's evaluations)."""
    before, after = (number(e, "bpb", "all", "mean") for e in _both(table))
    if before is None or after is None or after <= TAX * before:
        return None
    return Finding(
        "The policy has paid for its reward with its language.",
        (f"bits per byte {plain(before)} before, {plain(after)} after ({after / before - 1:+.0%})",),
        (
            "mix pretraining text in (PPO-ptx)" + setting(table, "ptx_coef"),
            "raise the KL coefficient, or stop earlier" + setting(table, "kl_coef"),
        ),
    )


@condition("reward-falling", *POLICY)
def reward_falling(table: Table) -> Finding | None:
    """The reward that is optimised is clearly lower in the last fifth than in the first."""
    column = table.trend("reward")
    if column is None or column.moved() > -CLEARLY:
        return None
    return Finding(
        "The reward falls although it is what is optimised.",
        (from_to(column),),
        (
            "lower the learning rate" + setting(table, "optimiser.learning_rate"),
            "check the sign of rewards and advantages, and that answers and rewards stay in step",
            "a KL coefficient so large that only the leash is optimised" + setting(table, "kl_coef"),
        ),
        column,
    )


@condition("constant-reward", *POLICY)
def constant_reward(table: Table) -> Finding | None:
    """All rewards are equal: their standard deviation is 0, or their mean never changes."""
    deviation, reward = table.get("reward_std", "objective/scores_std", least=3), table.trend("reward")
    if deviation is not None and max(deviation.values) < SAME:
        shown, evidence = deviation, f"{deviation.name} is 0 in all {len(deviation)} rows"
    elif reward is not None and max(reward.values) - min(reward.values) < SAME:
        shown, evidence = reward, f"{reward.name} is {plain(reward.last)} in all {len(reward)} rows"
    else:
        return None
    return Finding(
        "Every answer gets the same reward: there is nothing to learn, and whitening divides by 0.",
        (evidence,),
        (
            "check that the reward reads the answer (not the prompt, not the padding)",
            "check that a clip does not flatten all scores" + setting(table, "score_clip"),
        ),
        shown,
    )


@condition("zero-variance-groups", "grpo", "prefer_online", "rejection")
def zero_variance_groups(table: Table) -> Finding | None:
    """In more than 0.8 of the groups all answers get the same reward."""
    column = table.get("frac_reward_zero_std")
    if column is None or column.tail <= NO_SPREAD:
        return None
    return Finding(
        "Most prompts teach nothing: all answers to them get the same reward.",
        (f"{column.name} {plain(column.tail)} in the last fifth; above {NO_SPREAD} is too much",),
        (
            "prompts of middling difficulty: leave out those that are always or never solved",
            "more answers for each prompt, a higher temperature, or a reward with more than two values",
        ),
        column,
    )


@condition("entropy-collapse", *POLICY)
def entropy_collapse(table: Table) -> Finding | None:
    """The policy's entropy falls below a quarter of what it was in the first fifth."""
    column = table.trend("entropy", "objective/entropy")
    if column is None or column.tail >= ENTROPY_LEFT * column.head:
        return None
    return Finding(
        "The policy always says the same: its entropy has collapsed.",
        (from_to(column),),
        (
            "raise the KL coefficient" + setting(table, "kl_coef"),
            "lower the learning rate" + setting(table, "optimiser.learning_rate"),
            "an entropy bonus, or clip-higher, where the method has one",
        ),
        column,
    )


@condition("entropy-explosion", *POLICY)
def entropy_explosion(table: Table) -> Finding | None:
    """The policy's entropy grows to three times what it was in the first fifth."""
    column = table.trend("entropy", "objective/entropy")
    if column is None or column.head <= 0 or column.tail <= ENTROPY_GROWN * column.head:
        return None
    return Finding(
        "The policy dissolves into noise: its entropy grows.",
        (from_to(column),),
        (
            "lower the learning rate" + setting(table, "optimiser.learning_rate"),
            "lower an entropy bonus; check the sign of the advantages",
        ),
        column,
    )


@condition("length-growth", *POLICY)
def length_growth(table: Table) -> Finding | None:
    """Answers are half as long again in the last fifth as in the first."""
    column = table.trend("completions/mean_length")
    if column is None or column.tail <= max(LONGER * column.head, column.head + TOKENS):
        return None
    return Finding(
        "Answers grow longer and longer.",
        (from_to(column),),
        (
            "check the reward model against length (its report card: length_baseline)",
            "a length penalty, or a penalty for answers that do not end"
            + setting(table, "missing_eos_penalty"),
            "token-mean losses favour length: see Dr. GRPO",
        ),
        column,
    )


@condition("length-collapse", *POLICY)
def length_collapse(table: Table) -> Finding | None:
    """Answers are half as long in the last fifth as in the first."""
    column = table.trend("completions/mean_length")
    if column is None or column.tail >= min(SHORTER * column.head, column.head - TOKENS):
        return None
    return Finding(
        "Answers shrink: the shortest one wins.",
        (from_to(column),),
        (
            "read some answers: is a refusal or an empty answer rewarded?",
            "raise the KL coefficient" + setting(table, "kl_coef"),
        ),
        column,
    )


@condition("eos-never", *POLICY)
def eos_never(table: Table) -> Finding | None:
    """No answer ends by itself in the last fifth: no end token, or nearly all reach the limit."""
    ends, cut = table.get("val/num_eos_tokens", least=3), table.get("completions/clipped_ratio", least=3)
    if cut is not None:
        column, bad = cut, cut.tail >= NEVER_ENDS
    elif ends is not None:
        column, bad = ends, ends.tail == 0
    else:
        return None
    if not bad:
        return None
    return Finding(
        "The model never ends its answers.",
        (f"{column.name} {plain(column.tail)} in the last fifth",),
        (
            "check that the end token is trained in fine-tuning: it must count in the loss mask",
            "check that sampling stops at the chat template's end token, and that the pad token is another",
            "allow longer answers" + setting(table, "max_tokens"),
        ),
        column,
    )


@condition("answers-cut-off", *POLICY)
def answers_cut_off(table: Table) -> Finding | None:
    """In the last fifth 0.3 of the answers or more reach the limit (0.95: see eos-never)."""
    column = table.get("completions/clipped_ratio", least=3)
    if column is None or not CUT_OFF <= column.tail < NEVER_ENDS:
        return None
    return Finding(
        "Many answers are cut off: their reward is for half an answer.",
        (f"{column.name} {plain(column.tail)} in the last fifth, {plain(column.head)} in the first",),
        (
            "allow longer answers" + setting(table, "max_tokens"),
            "charge for answers that do not end" + setting(table, "missing_eos_penalty"),
        ),
        column,
    )
