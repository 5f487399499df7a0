"""Conditions of any training run: numbers that are none, gradients, learning rate, speed, loss."""

from __future__ import annotations

from statistics import median

from bloomery.journey.diagnose.finding import Finding, condition, from_to, plain, setting
from bloomery.journey.diagnose.table import Column, Table, height, number
from bloomery.journey.diagnose.update import POLICY

SUPERVISED = ("pretrain", "sft", "reward", "process", "prefer")

FROZEN = 8
"""So many rows in a row with every digit the same, at the end, are no coincidence."""
DEAD_SHARE = 0.1
"""A schedule touches 0 in its last step; a tenth of the run at 0 is a schedule that ended too early."""
EXPLODED = 10.0
"""Gradient norms grow a little as learning rates do; ten times is another regime."""
VANISHED = 1e-6
"""A global norm below this moves no fp32 weight."""
CLIPPED = 20.0
"""Norms of a few times the limit are usual with Adam; at twenty times the limit sets every step's length."""
SLOWER = 3.0
"""A busy machine costs a factor of two; three is a leak, growing answers or somebody else's job."""
FALL = 0.98
"""A loss that has not fallen by 2 % from the first to the last fifth has not fallen."""
DIVERGED = 1.3
"""Held against the lowest fifth: noise between fifths of a healthy run is below 5 %."""
EXPLODED_LOSS = 2.0
"""Held against the first row, which is noisier: a run may be lost within its first fifth."""
SPIKE = 1.4
"""A spike stands at least so far above the running median..."""
SPIKE_NOISE = 15.0
"""...and so many times the usual distance from it (healthy runs: at most 8)."""
NEIGHBOURS = 20
"""Values before a spike that say what is usual."""


@condition("not-finite")
def not_finite(table: Table) -> Finding | None:
    """A metric is NaN or infinite, or updates were skipped because a loss or gradient was."""
    bad = [column for column in table.columns.values() if column.bad]
    skipped = int(number(table.state, "skipped_updates") or 0)
    if not bad and not skipped:
        return None
    evidence = [f"{c.name}: {_times(len(c.bad))}, first at step {c.bad[0]:,}" for c in bad[:4]]
    evidence += [f"and {len(bad) - 4} more metrics"] if len(bad) > 4 else []
    evidence += [f"{skipped} updates were skipped"] if skipped else []
    return Finding(
        "Numbers are not finite (NaN or infinite).",
        tuple(evidence),
        (
            "look at the data of the first bad step: an empty answer, a huge reward, a division by a count "
            "of 0",
            "lower the learning rate, or warm up longer" + setting(table, "optimiser.learning_rate"),
            "compute in fp32 to see whether precision is the cause" + setting(table, "compute.precision"),
        ),
        bad[0] if bad and bad[0].values else None,
    )


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


@condition("unfinished")
def unfinished(table: Table) -> Finding | None:
    """The directory has no manifest and no process is at work in it."""
    if table.status != "unfinished":
        return None
    return Finding(
        "The run did not finish: its directory was never sealed.",
        (
            f"no MANIFEST.json; the last logged step is {table.steps - 1:,}"
            if table.rows
            else "no MANIFEST.json",
        ),
        (
            "repeat the command that made it: it goes on from the last checkpoint",
            "if it stopped with an error, that error says what to change",
        ),
    )


@condition("frozen")
def frozen(table: Table) -> Finding | None:
    """The metric that matters repeats itself digit by digit for the last eight rows or a tenth of the run.
    A policy's 0 is not one: on policy and without a divergence its loss is 0 while it learns."""
    names = ("loss", "loss/policy_avg", "grad_norm", "reward")
    long = [c for name in names if (c := table.get(name, least=FROZEN + 2)) is not None]
    column = next((c for c in long if c.last != 0 or table.stage not in POLICY), None)
    if column is None:
        return None
    same = next((i for i, v in enumerate(reversed(column.values)) if v != column.last), len(column))
    if same < max(FROZEN, len(column) // 10):
        return None
    return Finding(
        "Nothing changes any more: the run is stuck.",
        (
            f"{column.name} is {column.last!r} in each of the last {same} rows, "
            f"from step {column.steps[-same]:,}",
        ),
        (
            "check that each step draws a new batch, and that parameters require gradients",
            "check the learning rate, and that the optimizer holds the parameters that are trained",
        ),
        column,
    )


@condition("dead-learning-rate")
def dead_learning_rate(table: Table) -> Finding | None:
    """The learning rate is 0 throughout, or for the last tenth of the run and at least three rows."""
    column = table.get("learning_rate", least=3)
    if column is None:
        return None
    zeros = next((i for i, v in enumerate(reversed(column.values)) if v > 0), len(column))
    if zeros < max(3, DEAD_SHARE * len(column)):
        return None
    whole = zeros == len(column)
    return Finding(
        "The learning rate is 0, so nothing is learned" + ("." if whole else " at the end."),
        (f"{column.name} is 0 in {zeros} of {len(column)} rows, from step {column.steps[-zeros]:,} on",),
        (
            "set a learning rate above 0"
            if whole
            else "make the schedule as long as the run: its total number of steps is too small",
        ),
        column,
    )


@condition("gradient-exploding")
def gradient_exploding(table: Table) -> Finding | None:
    """The last fifth's median gradient norm is ten times that of the second fifth (after the warm-up)."""
    column = table.trend("grad_norm")
    if column is None:
        return None
    early, late = median(column.part(0.2, 0.4)), median(column.part(0.8, 1.0))
    if late <= EXPLODED * early:
        return None
    return Finding(
        "Gradients grow without end.",
        (f"median {column.name} {plain(early)} in the second fifth of the run, {plain(late)} in the last",),
        (
            "lower the learning rate" + setting(table, "optimiser.learning_rate"),
            "clip gradients to a smaller norm" + setting(table, "optimiser.max_norm"),
            "go back to a checkpoint from before they grew",
        ),
        column,
    )


@condition("gradient-vanishing")
def gradient_vanishing(table: Table) -> Finding | None:
    """Half of the gradient norms of the run's second half are below 1e-6."""
    column = table.trend("grad_norm")
    if column is None or median(column.part(0.5, 1.0)) > VANISHED:
        return None
    return Finding(
        "Gradients are zero: nothing is learned.",
        (f"median {column.name} {plain(median(column.part(0.5, 1.0)))} in the second half of the run",),
        (
            "check that some token counts in the loss, and that the trained weights require gradients",
            "in reinforcement learning: check that rewards differ between answers",
            "in low precision: a loss scale may be too small",
        ),
        column,
    )


@condition("gradient-always-clipped")
def gradient_always_clipped(table: Table) -> Finding | None:
    """The median gradient norm is twenty times the clipping limit (1.0 where the recipe is not known)."""
    column = table.trend("grad_norm")
    limit = number(table.settings.get("optimiser.max_norm")) or 1.0
    if column is None or median(column.values) <= CLIPPED * limit:
        return None
    return Finding(
        "Nearly all of every gradient is clipped away.",
        (f"median {column.name} {plain(median(column.values))}, clipped to {plain(limit)}",),
        (
            "check the loss's scale: a sum where a mean is meant, or rewards that are too large",
            "lower the learning rate, and raise the limit to a few times the usual norm",
        ),
        column,
    )


@condition("throughput-collapse")
def throughput_collapse(table: Table) -> Finding | None:
    """The last fifth is three times slower than the first half's median."""
    rate, took = table.trend("tok_per_sec"), table.trend("step_time", "timing/step_total")
    column = rate or took
    if column is None:
        return None
    before, after = median(column.part(0.0, 0.5)), median(column.part(0.8, 1.0))
    if not (before > SLOWER * after if rate else after > SLOWER * before):
        return None
    return Finding(
        "The run has become much slower.",
        (f"median {column.name} {plain(before)} in the first half, {plain(after)} in the last fifth",),
        (
            "check that no other job shares the machine, and that memory is not being swapped",
            "check completions/mean_length: longer answers take longer",
        ),
        column,
    )


@condition("loss-not-falling", *SUPERVISED)
def loss_not_falling(table: Table) -> Finding | None:
    """The loss's last fifth is not 2 % below its first, and the model did not go on from an earlier one.
    A loss that goes below 0: 2 % of how far it fell."""
    column = table.trend("loss")
    if column is None or _goes_on(table) or loss_diverging(table):
        return None
    if column.tail < column.head - (1 - FALL) * height(column, column.head):
        return None
    return Finding(
        "The loss does not fall: nothing is learned.",
        (from_to(column),),
        (
            "raise the learning rate three- or tenfold" + setting(table, "optimiser.learning_rate"),
            "check that the loss mask counts what is to be learned, and that labels are not shuffled",
            "check that the model's weights are trainable and given to the optimizer",
        ),
        column,
    )


def _goes_on(table: Table) -> bool:
    """A model that has learned this task before has its loss behind it."""
    return table.stage == "reward" and table.settings.get("start") is not None


@condition("loss-diverging", *SUPERVISED)
def loss_diverging(table: Table) -> Finding | None:
    """The loss's last fifth is 30 % above its lowest fifth (of a loss that goes below 0: 30 % of how far it
    fell), or twice its first row."""
    column = table.trend("loss")
    if column is None:
        return None
    means, first = [mean for mean, _ in column.fifths()], column.values[0]
    low = min(means)
    if means[-1] > low + (DIVERGED - 1) * height(column, low) + 1e-3:
        where = column.steps[means.index(low) * len(column) // 5]
        before = f"{plain(low)} in the fifth from step {where:,}"
    elif means[-1] > EXPLODED_LOSS * first > 0:
        before = f"{plain(first)} at step {column.steps[0]:,}"
    else:
        return None
    return Finding(
        "The loss has turned up: training diverges.",
        (f"{column.name} {before}, {plain(means[-1])} in the last fifth",),
        (
            "lower the learning rate three- or tenfold" + setting(table, "optimiser.learning_rate"),
            "warm up longer" + setting(table, "optimiser.warmup"),
            "check whether the data changes where it turns",
        ),
        column,
    )


@condition("loss-spikes", *SUPERVISED)
def loss_spikes(table: Table) -> Finding | None:
    """A value is 1.4 times the median of the 20 before it and 15 times their usual distance from it."""
    column = table.get("loss", least=2 * NEIGHBOURS)
    if column is None:
        return None
    spikes = _spikes(column)
    if not spikes:
        return None
    index, usual = spikes[0]
    return Finding(
        f"The loss has {len(spikes)} spike{'s' if len(spikes) > 1 else ''}.",
        (
            f"{column.name} {plain(column.values[index])} at step {column.steps[index]:,} where "
            f"{plain(usual)} is usual"
            + (f"; the last at step {column.steps[spikes[-1][0]]:,}" if len(spikes) > 1 else ""),
        ),
        (
            "look at the batch of that step: garbled, very long or wrongly masked rows",
            "lower the learning rate, warm up longer, or clip gradients to a smaller norm",
        ),
        column,
    )


def _spikes(column: Column) -> list[tuple[int, float]]:
    """(index, median of the values before) of every spike."""
    found = []
    for i in range(NEIGHBOURS, len(column)):
        before = column.values[i - NEIGHBOURS : i]
        usual = median(before)
        distance = median(abs(value - usual) for value in before)
        above = column.values[i] - usual
        tall = usual != 0 and above > (SPIKE - 1) * height(column, usual)
        if tall and above > SPIKE_NOISE * 1.4826 * distance:
            found.append((i, usual))
    return found
