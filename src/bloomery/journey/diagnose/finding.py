"""What a condition finds, and the registry of conditions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bloomery.journey.diagnose.table import Column, Table
from bloomery.registry import Registry


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not healthy: `what` in a sentence, the `evidence` (numbers and steps), what to `try`,
    and the column whose curve shows it. `condition` is filled in by `diagnose`."""

    what: str
    evidence: tuple[str, ...]
    advice: tuple[str, ...]
    shown: Column | None = None
    condition: str = ""


Look = Callable[[Table], Finding | None]


@dataclass(frozen=True, slots=True)
class Condition:
    """`look` is asked about tables of `stages` (none named: of every stage); its docstring says what it
    looks for and from where on it is not healthy."""

    name: str
    stages: tuple[str, ...]
    look: Look

    def applies(self, stage: str) -> bool:
        return not self.stages or stage in self.stages


CONDITIONS: Registry[Condition] = Registry("condition")


def condition(name: str, *stages: str) -> Callable[[Look], Look]:
    """Register a pure function from a table to what it finds, or None."""

    def put(look: Look) -> Look:
        CONDITIONS.register(name)(Condition(name, stages, look))
        return look

    return put


def plain(value: float) -> str:
    """A number for a sentence: 0.639, 12.3, 4,500, 3.2e-07."""
    if value == 0 or 0.001 <= abs(value) < 999.5:
        return f"{value:.3g}"
    return f"{value:,.0f}" if 999.5 <= abs(value) < 1e6 else f"{value:.2g}"


def from_to(column: Column) -> str:
    """ "loss 4.1 in the first fifth, 0.3 in the last (steps 0 to 884)" """
    span = f"steps {column.steps[0]:,} to {column.steps[-1]:,}"
    return f"{column.name} {plain(column.head)} in the first fifth, {plain(column.tail)} in the last ({span})"


def setting(table: Table, key: str) -> str:
    """ " (optimiser.learning_rate is 0.001)" where the recipe is known, else nothing."""
    return f" ({key} is {table.settings[key]})" if key in table.settings else ""
