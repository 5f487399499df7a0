"""Is my curve normal? `diagnose(path)` reads what a run logged and says what is not healthy, with the numbers
and what to try.

A condition is a pure function from a `Table` to a `Finding` or None, put into `CONDITIONS` by `@condition`.
The modules `training`, `supervised`, `update` and `answers` hold them; thresholds are the named constants at
their tops. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from bloomery.journey.diagnose import answers, supervised, training, update
from bloomery.journey.diagnose.finding import CONDITIONS, Condition, Finding, condition
from bloomery.journey.diagnose.reader import read
from bloomery.journey.diagnose.table import TREND, Column, Table

__all__ = [
    "CONDITIONS",
    "Checkup",
    "Column",
    "Condition",
    "Finding",
    "Table",
    "answers",
    "condition",
    "diagnose",
    "examine",
    "read",
    "supervised",
    "training",
    "update",
]


@dataclass(frozen=True, slots=True)
class Checkup:
    """A stage's table and everything found in it, in the order of the conditions' names."""

    table: Table
    findings: tuple[Finding, ...]

    @property
    def short(self) -> bool:
        """Whether there is too little to judge any trend by."""
        return self.table.rows < TREND


def examine(table: Table) -> Checkup:
    """Ask every condition of the table's stage."""
    asked = (CONDITIONS[name] for name in CONDITIONS if CONDITIONS[name].applies(table.stage))
    found = ((one.name, one.look(table)) for one in asked)
    return Checkup(table, tuple(replace(f, condition=name) for name, f in found if f is not None))


def diagnose(path: Path) -> list[Checkup]:
    """Every stage with metrics in a journey's directory, a stage's directory, a trainer's output directory,
    or a file of metrics. Raises what `read` raises."""
    return [examine(table) for table in read(path)]
