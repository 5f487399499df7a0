"""Conditions of learning from examples: pretraining, demonstrations, rankings, preferences."""

from __future__ import annotations

from bloomery.journey.diagnose.finding import Finding, condition, from_to, plain, setting
from bloomery.journey.diagnose.table import Column, Table, height, number

OVERFIT = 1.1
"""Held-out loss so far above its lowest; healthy fine-tuning ends within 3 % of it."""
BITS_RISE = 1.02
"""Held-out bits per byte hardly vary between measurements: 2 % above the lowest is a turn."""
FORGOTTEN = 1.25
"""Replayed text varies by 5 % between fifths; a quarter more is forgetting."""
ACCURACY_LOST = 0.03
"""Held-out accuracy below its best; a thousand pairs vary by 0.015."""
ACCURACY_GAP = 0.2
"""Training accuracy above held-out; healthy reward models are at 0.1 after three epochs."""
CHANCE = 0.55
"""Of two answers one is right half the time; 0.05 is what noise and length alone give."""
SPREAD = 10.0
"""Scores spread out as a reward model learns, by two or three times; tenfold is drift."""
SPREAD_AT_LEAST = 20.0
"""Differences of up to this many nats are a confident model's."""
UNLIKELIER = 0.3
"""The share of its log-probability by which a chosen answer may fall while the margin grows."""


@condition("overfit", "sft", "prefer")
def overfit(table: Table) -> Finding | None:
    """Held-out loss ends 10 % above its lowest while the training loss went on falling."""
    return _turned_up(table.get("eval_loss", least=3), table.get("loss"), OVERFIT, table)


@condition("held-out-bits-rising", "pretrain")
def held_out_bits_rising(table: Table) -> Finding | None:
    """val/bpb ends 2 % above its lowest while the training text's went on falling."""
    return _turned_up(table.get("val/bpb", least=3), table.get("bpb", "loss"), BITS_RISE, table)


def _turned_up(
    held_out: Column | None, training: Column | None, factor: float, table: Table
) -> Finding | None:
    if held_out is None:
        return None
    low = min(held_out.values)
    best = held_out.steps[held_out.values.index(low)]
    tall = height(held_out, low)
    if held_out.last <= low + (factor - 1) * tall:
        return None
    evidence = [
        f"{held_out.name} {plain(low)} at step {best:,}, {plain(held_out.last)} at step "
        f"{held_out.steps[-1]:,} ({(held_out.last - low) / tall:+.0%}{'' if tall == low else ' of its fall'})"
    ]
    if training is not None:
        then = [v for s, v in zip(training.steps, training.values, strict=True) if s <= best] or [
            training.head
        ]
        usual = sum(then[-20:]) / len(then[-20:])
        if training.tail > min(usual, training.values[0]):  # not overfitting but divergence: see there
            return None
        evidence.append(f"{training.name} {plain(usual)} then, {plain(training.tail)} in the last fifth")
    return Finding(
        "The model learns its examples by heart: held-out loss rises while training loss falls.",
        tuple(evidence),
        (
            f"stop near step {best:,}: fewer epochs" + setting(table, "epochs"),
            "more, or more varied, examples",
            "a lower learning rate" + setting(table, "optimiser.learning_rate"),
        ),
        held_out,
    )


@condition("nothing-trained", "sft", "prefer", "unknown")
def nothing_trained(table: Table) -> Finding | None:
    """Steps counted no token, or had a loss of exactly 0: the loss mask leaves nothing to learn."""
    tokens, loss = table.get("num_tokens"), table.get("loss")
    if tokens is not None and (
        empty := [s for s, v in zip(tokens.steps, tokens.values, strict=True) if v == 0]
    ):
        evidence = f"{tokens.name} is 0 in {len(empty)} of {len(tokens)} rows, first at step {empty[0]:,}"
    elif loss is not None and loss.values.count(0.0) > len(loss) // 2:
        evidence = f"{loss.name} is exactly 0 in {loss.values.count(0.0)} of {len(loss)} rows"
    else:
        return None
    return Finding(
        "No token counts in the loss: nothing is trained.",
        (evidence,),
        (
            "check the loss mask: the chat template must mark what the assistant says",
            "check that truncation does not cut the answers off",
        ),
        tokens if tokens is not None else loss,
    )


@condition("forgets-text", "sft", "reward", "ppo", "grpo", "prefer")
def forgets_text(table: Table) -> Finding | None:
    """The loss on pretraining text is a quarter higher at the end than at the start."""
    column = table.trend("loss/ptx_avg", "loss/replay")
    if column is None or column.tail <= FORGOTTEN * column.head:
        return None
    return Finding(
        "The model forgets the text it was pretrained on.",
        (from_to(column),),
        (
            "raise the weight of the pretraining text"
            + (setting(table, "ptx_coef") or setting(table, "replay.coef")),
            "fewer steps, or a lower learning rate" + setting(table, "optimiser.learning_rate"),
        ),
        column,
    )


@condition("preference-overfit", "reward", "process", "prefer")
def preference_overfit(table: Table) -> Finding | None:
    """Held-out accuracy ends 0.03 below its best while training accuracy rose, or ends 0.2 below it."""
    held_out, training = table.get("eval_accuracy"), table.trend("accuracy")
    if held_out is None or training is None:
        return None
    best = max(held_out.values)
    where = held_out.steps[held_out.values.index(best)]
    lost = best - held_out.last > ACCURACY_LOST and training.moved() > 3
    gap = training.tail - held_out.last
    if not lost and gap <= ACCURACY_GAP:
        return None
    return Finding(
        {
            "reward": "The reward model learns its pairs by heart.",
            "process": "The reward model learns its steps by heart.",
        }.get(table.stage, "The model learns its pairs by heart."),
        (
            f"{held_out.name} {plain(best)} at step {where:,}, {plain(held_out.last)} at the end",
            f"{training.name} {plain(training.head)} in the first fifth, {plain(training.tail)} in the last: "
            f"{plain(gap)} above held-out",
        ),
        (
            f"stop near step {where:,}, or after one epoch" + setting(table, "epochs"),
            "more labels, of more different prompts",
            "a lower learning rate" + setting(table, "optimiser.learning_rate"),
        ),
        held_out,
    )


@condition("preference-chance", "reward", "prefer")
def preference_chance(table: Table) -> Finding | None:
    """Held-out accuracy is no better than chance (its interval includes 0.5), or below 0.55."""
    low, accuracy = number(table.card, "low"), number(table.card, "accuracy")
    held_out, training = table.get("eval_accuracy"), table.trend("accuracy")
    column = held_out or training
    if low is not None and accuracy is not None:
        bad = low <= 0.5 or accuracy < CHANCE
        evidence = f"held-out accuracy {plain(accuracy)}, 95 % interval from {plain(low)}"
    elif column is not None:
        value = column.last if held_out else column.tail
        bad, evidence = value < CHANCE, f"{column.name} {plain(value)} at the end; chance is 0.5"
    else:
        return None
    if not bad:
        return None
    return Finding(
        "Which answer is better is guessed: no better than chance.",
        (evidence,),
        (
            "look at twenty rankings by hand: are chosen and rejected swapped, or labels random?",
            "check the annotators' agreement: a model cannot agree more than they do",
            "more rankings, more epochs, or a higher learning rate"
            + setting(table, "optimiser.learning_rate"),
        ),
        column,
    )


@condition("reward-length-only", "reward")
def reward_length_only(table: Table) -> Finding | None:
    """The report card's interval of held-out accuracy includes what a rule that reads only length reaches."""
    low, rule = number(table.card, "low"), number(table.card, "length_baseline")
    accuracy = number(table.card, "accuracy")
    if low is None or rule is None or accuracy is None or low > rule:
        return None
    return Finding(
        "The reward model is no better than counting words.",
        (f"held-out accuracy {plain(accuracy)} (interval from {plain(low)}); length alone {plain(rule)}",),
        (
            "more rankings in which the shorter answer wins; tell annotators not to reward length",
            "do not optimise against this model: answers would only grow longer (or shorter)",
        ),
        table.get("eval_accuracy"),
    )


@condition("reward-scale", "reward")
def reward_scale(table: Table) -> Finding | None:
    """The spread of scores (largest minus smallest) grows tenfold, beyond 20."""
    high, low = table.trend("max_reward"), table.trend("min_reward")
    if high is None or low is None:
        return None
    first, last = high.head - low.head, high.tail - low.tail
    if last <= max(SPREAD_AT_LEAST, SPREAD * first):
        return None
    return Finding(
        "Scores drift apart without limit.",
        (f"{high.name} minus {low.name}: {plain(first)} in the first fifth, {plain(last)} in the last",),
        (
            "charge for the squared score" + setting(table, "center"),
            "fewer epochs, or a lower learning rate" + setting(table, "optimiser.learning_rate"),
        ),
        high,
    )


@condition("chosen-falls", "prefer")
def chosen_falls(table: Table) -> Finding | None:
    """The chosen answers lose 30 % of their log-probability while the margin grows."""
    chosen, margin = table.trend("logps/chosen"), table.trend("rewards/margins")
    if chosen is None or margin is None:
        return None
    if chosen.tail > (1 + UNLIKELIER) * chosen.head or margin.moved() < 3:
        return None
    return Finding(
        "Chosen answers become unlikely too: only the margin is learned.",
        (from_to(chosen), from_to(margin)),
        (
            "add the chosen answers' own loss (supervised term), or use a loss that has one",
            "raise beta, lower the learning rate" + setting(table, "optimiser.learning_rate"),
            "fine-tune on the chosen answers first",
        ),
        chosen,
    )
