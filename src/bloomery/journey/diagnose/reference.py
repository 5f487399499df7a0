"""Reference curves: what the default journey logs, three seeds, thinned. They lie in journey/reference, a
file for each step, a line for each seed and metric, beside the journeys' recipe;
benchmarks/reference_curves.py makes them."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from statistics import fmean, median
from typing import Any

import yaml

from bloomery.journey.diagnose.table import Column, Json, Table, common_name, leaves

_ROUND = re.compile(r"-\d+$")
POINTS = 100
"""At most so many points of a curve are kept."""
DIGITS = 4
"""Significant digits that are kept."""
# Times depend on the machine, counts on nothing of interest.
LEFT_OUT = ("timing/", "rollout/", "episode", "epoch", "train/tok_per_sec", "train/mfu")
STEPS = {"pretrain": "base", "sft": "sft", "reward": "reward-1", "ppo": "ppo-1"}
"""The step of the default journey that a stage by itself is held against."""
_TEXT = ("data", "world", "clean", "tokenizer", "encode", "pretrain")
_FIRST = (*_TEXT, "sft", "first.answers", "first.label", "first.reward")
_LATER = (*_TEXT, "sft", "first", "later.answers", "later.label", "later.reward")
SECTIONS = {
    "base": _TEXT,
    "sft": (*_TEXT, "sft"),
    "reward-1": _FIRST,
    "ppo-1": (*_FIRST, "first.ppo"),
    "reward-2": _LATER,
    "ppo-2": (*_LATER, "later.ppo"),
}
"""The parts of a journey's recipe that a step's curves depend on; the last is the step's own."""
NEAR = 1.5
"""Numbers that differ by less than this factor make curves that can be compared."""
# These change the draw, the place, the machine or how often one looks, not what is normal.
_INDIFFERENT = {"seed", "root", "compute", "on_bad_row", "evaluate_every", "validate_every"}
LONG = 20
"""Characters of a setting that are still quoted."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric of one seed's run."""

    seed: int
    column: Column


def steps() -> list[str]:
    """The steps of the default journey that have curves."""
    found = (files("bloomery.journey") / "reference").iterdir()
    return sorted(path.name.removesuffix(".jsonl") for path in found if path.name.endswith(".jsonl"))


@cache
def read_step(step: str) -> tuple[Curve, ...]:
    """Every curve of a step; none where the step has no curves."""
    path = files("bloomery.journey") / "reference" / f"{step}.jsonl"
    if not path.is_file():
        return ()
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return tuple(
        Curve(row["seed"], Column(row["metric"], tuple(row["steps"]), tuple(row["values"]))) for row in rows
    )


def curves(step: str, metric: str) -> list[Curve]:
    """The curves of a metric (by its name in the file, or its common name), one for each seed."""
    wanted = common_name(metric)
    return [curve for curve in read_step(step) if common_name(curve.column.name) == wanted]


def step_of(table: Table) -> str:
    """The step of the default journey that a table is held against: the same, or one of the same stage, or
    none (""). Rounds after the second are held against the second."""
    names = (table.name, _ROUND.sub("-2", table.name), STEPS.get(table.stage, ""))
    return next((name for name in names if read_step(name)), "")


def normal(table: Table, column: Column) -> list[Curve]:
    """What this column looks like in the default journey; nothing where the settings are too different."""
    return [] if unlike(table) else curves(step_of(table), column.name)


@cache
def settings() -> Json:
    """The recipe of the journeys that the curves are of, with dotted keys."""
    path = files("bloomery.journey") / "reference" / "recipe.yaml"
    return dict(leaves(yaml.safe_load(path.read_text(encoding="utf-8"))))


def unlike(table: Table) -> list[str]:
    """The settings because of which a table cannot be held against the default journey: its own and, where it
    is a step of a journey, those of the steps before it ("kl_coef is 0.02, not 0.2").

    Numbers may differ by less than a factor of `NEAR`. What a run does not say, or was no setting yet when
    the curves were made, is not held against it.
    """
    sections = SECTIONS.get(step_of(table), ("",))
    parts, own = tuple(f"{one}." for one in sections), f"{sections[-1]}."
    yours = {**table.journey, **{own + key: value for key, value in table.settings.items()}}
    found = []
    for key, usual in settings().items():
        if not f"{key}.".startswith(parts) or _INDIFFERENT & {*key.split(".")}:
            continue
        if key in yours and not _near(yours[key], usual):
            found.append(key.removeprefix(own) + _differs(yours[key], usual))
        elif usual is None and any(one.startswith(f"{key}.") for one in yours):
            found.append(f"{key.removeprefix(own)} is set")
    return found


def _near(value: Any, usual: Any) -> bool:
    numbers = [x for x in (value, usual) if isinstance(x, int | float) and not isinstance(x, bool)]
    if len(numbers) < 2 or value == usual:
        return bool(value == usual)
    low, high = sorted(map(float, numbers))
    return low > 0 and high < NEAR * low


def _differs(value: Any, usual: Any) -> str:
    """ " is 0.02, not 0.2", without what is too long to be quoted."""
    here, there = (json.dumps(one, default=str) for one in (value, usual))
    if len(there) > LONG:
        return " is another"
    return f" is not {there}" if len(here) > LONG else f" is {here}, not {there}"


def lines(seed: int, columns: Iterable[Column]) -> list[dict[str, Any]]:
    """The lines of a reference file for one run."""
    return [
        {"seed": seed, "metric": column.name, **_thinned(column)}
        for column in columns
        if len(column) and not column.name.startswith(LEFT_OUT)
    ]


def _thinned(column: Column) -> dict[str, Any]:
    count = min(POINTS, len(column))
    kept = [round(i * (len(column) - 1) / max(count - 1, 1)) for i in range(count)]
    return {
        "steps": [column.steps[i] for i in kept],
        "values": [float(f"{column.values[i]:.{DIGITS}g}") for i in kept],
    }


def resample(column: Column, places: int) -> list[float]:
    """The column averaged over `places` equal stretches of its run; one without values has the nearest."""
    span = max(column.steps[-1], 1)
    groups: list[list[float]] = [[] for _ in range(places)]
    for step, value in zip(column.steps, column.values, strict=True):
        groups[min(places - 1, step * places // (span + 1))].append(value)
    middle = [(i + 0.5) / places * span for i in range(places)]
    return [fmean(group) if group else _nearest(column, at) for group, at in zip(groups, middle, strict=True)]


def _nearest(column: Column, step: float) -> float:
    right = bisect_left(column.steps, step)
    around = [i for i in (right - 1, right) if 0 <= i < len(column)]
    return column.values[min(around, key=lambda i: abs(column.steps[i] - step))]


def band(found: Sequence[Curve], places: int) -> list[tuple[float, float, float]]:
    """(lowest, middle, highest) of the seeds along the run."""
    several = [resample(curve.column, places) for curve in found]
    return [(min(values), median(values), max(values)) for values in zip(*several, strict=True)]
