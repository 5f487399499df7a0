"""What is normal, behind a run's own curves: the range of the default journey's three seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import numpy as np

from bloomery.journey.diagnose import Column, Table, reference
from bloomery.journey.diagnose.table import common_name
from bloomery.report.plots import Number, Series, smooth
from bloomery.report.view import View

FEW = 20
"""A curve of fewer values than this is not averaged."""


def normal(view: View, step: str, key: str, colour: str, *, start: float = 0.0) -> list[Series]:
    """The band of a step's metric, one series; none where there is nothing to compare with (see `why_not`).

    It is as long as the run where that is finished, and else as long as the default journey, so that an
    unfinished run shows how far it got. `start` is where the step begins on the x axis.
    """
    table = view.checkups[step].table if step in view.checkups else None
    column = table.columns.get(common_name(key)) if table else None
    if table is None or column is None:
        return []
    found = [curve.column for curve in reference.normal(table, column)]
    return [_band(found, table, colour, start)] if found else []


def _band(found: list[Column], table: Table, colour: str, start: float) -> Series:
    """Lowest, middle and highest of the seeds, each averaged along its run as the run's own curve is."""
    at = np.linspace(max(_progress(one)[0] for one in found), 1.0, min(map(len, found)))
    several = [np.interp(at, _progress(one), _averaged(one.values)).tolist() for one in found]
    rows = list(zip(*several, strict=True))
    low, high = (_calm([edge(row) for row in rows], edge) for edge in (min, max))
    usual = median(column.steps[-1] for column in found)
    length = table.steps - 1 if table.status == "finished" else usual
    x = (start + at * length).tolist()
    return Series("normal", x, [median(row) for row in rows], colour, "normal", low, high)


def _progress(column: Column) -> list[float]:
    return [step / max(1, column.steps[-1]) for step in column.steps]


def _averaged(values: Sequence[float]) -> list[float]:
    window = _window(values)
    return [value for value in smooth(values, window) if value is not None]


def _calm(edge: Sequence[float], furthest: Callable[[Sequence[float]], float]) -> list[Number]:
    """An edge without its teeth: as far out as its neighbours are, and averaged over as many, so that it
    stays outside of every seed."""
    half = _window(edge) // 2
    return smooth([furthest(edge[max(0, i - half) : i + half + 1]) for i in range(len(edge))], 2 * half + 1)


def _window(values: Sequence[float]) -> int:
    return 1 if len(values) < FEW else max(3, len(values) // 25)


def why_not(view: View, *steps: str) -> str:
    """A sentence for a caption where settings are why there is no band; else nothing."""
    tables = [view.checkups[step].table for step in steps if step in view.checkups]
    reasons = list(dict.fromkeys(reason for table in tables for reason in reference.unlike(table)))
    if not reasons:
        return ""
    more = f" ({len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return f" No band of normal runs: {reasons[0]}{more}."
