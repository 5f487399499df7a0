"""What a report reads: a run directory, as far as it got. Nothing here fails because a part is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bloomery.errors import BloomeryError, UsageError
from bloomery.journey import results
from bloomery.journey.diagnose import Checkup, diagnose
from bloomery.journey.results import Row
from bloomery.journey.run import read_journal
from bloomery.lineage import LINEAGE
from bloomery.report.plots import Number

Json = dict[str, Any]
Rows = list[Json]

CARD = "evaluate_reward"
"""The step of a directory that is a reward model's report card."""
ROW_COLOURS = {"base": "s6", "sft": "s1", "rl": "s2"}


@dataclass(frozen=True)
class View:
    """A journey's directory, or a single stage's. `steps` maps names to directories in the order they ran;
    `checkups` are what `diagnose` says of those that logged something; `problems` collects what could not be
    read, for the end of the page."""

    out: Path
    steps: dict[str, Path]
    results: Json | None
    seconds: dict[str, float]
    checkups: dict[str, Checkup] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, out: Path) -> View:
        problems: list[str] = []
        steps, seconds = _steps(out)
        numbers = None
        if results.evaluations(out):
            try:
                numbers = results.collect(out)
            except (BloomeryError, KeyError, TypeError, AttributeError) as error:
                problems.append(f"the evaluations could not be put together: {error}")
        return cls(out, steps, numbers, seconds, _checkups(out, steps, problems), problems)

    @property
    def rows(self) -> list[Row]:
        """The evaluated models: base, SFT, every round, RL."""
        return results.rows(self.results) if self.results else []

    @property
    def rounds(self) -> list[int]:
        """Numbers of the rounds that left something behind."""
        found = {int(m[1]) for name in self.steps if (m := re.fullmatch(r"(?:ppo|reward|label)-(\d+)", name))}
        return sorted(found)

    def json(self, step: str, file: str) -> Json | None:
        """A JSON object of a step, or None; one that is there but cannot be read is a problem."""
        path = self.steps[step] / file if step in self.steps else None
        if path is None or not path.is_file():
            return None
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            self.problems.append(f"{step}/{file}: {error}")
            return None
        return tree if isinstance(tree, dict) else None

    def metrics(self, step: str) -> Rows:
        """The lines of a step's metrics.jsonl. A last line cut off by a kill is left out without a word."""
        path = self.steps[step] / "metrics.jsonl" if step in self.steps else None
        if path is None or not path.is_file():
            return []
        rows: Rows = []
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError:
                if number < len(lines):
                    self.problems.append(f"{step}/metrics.jsonl:{number} is not JSON")
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
        return rows

    def text(self, name: str) -> str | None:
        path = self.out / name
        return path.read_text(encoding="utf-8") if path.is_file() else None


def column(rows: Iterable[Json], key: str) -> tuple[list[float], list[Number]]:
    """Steps and values of one metric, where it was logged; null stays a gap."""
    found = [(float(row["step"]), row[key]) for row in rows if key in row]
    return [x for x, _ in found], [_float(y) for _, y in found]


def number_in(tree: Any, *keys: str) -> Number:
    """`number_in(tree, "a", "b")` is tree["a"]["b"] where that is a number, else None."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return _float(tree)


def _float(value: Any) -> Number:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _checkups(out: Path, steps: dict[str, Path], problems: list[str]) -> dict[str, Checkup]:
    """What `diagnose` says, by the names of the steps; nothing where nothing was logged."""
    try:
        found = diagnose(out)
    except UsageError:
        return {}
    except BloomeryError as error:
        problems.append(f"the run could not be examined: {error}")
        return {}
    if (out / LINEAGE).is_file():
        return dict(zip(steps, found, strict=True))
    return {one.table.name: one for one in found}


def _steps(out: Path) -> tuple[dict[str, Path], dict[str, float]]:
    if (out / LINEAGE).is_file():
        return {_stage_of(out): out}, {}
    try:
        done = read_journal(out)
    except BloomeryError:
        done = []
    steps = {record.name: out / record.directory for record in done}
    for path in sorted(out.iterdir()) if out.is_dir() else ():
        if (
            path.name not in steps
            and path.name[0] != "."
            and (path / LINEAGE).is_file()
            and not _alias(path, steps)
        ):
            steps[path.name] = path
    return steps, {record.name: record.seconds for record in done}


def _alias(path: Path, steps: dict[str, Path]) -> bool:
    """Whether a name such as OUT/rl stands for a step that is listed already."""
    return any(path.resolve() == other.resolve() for other in steps.values())


def _stage_of(directory: Path) -> str:
    """The journey's name for what a single stage made, so that the same sections show it."""
    try:
        stage = str(json.loads((directory / LINEAGE).read_text(encoding="utf-8")).get("stage"))
    except (OSError, ValueError, AttributeError):
        return "unknown"
    names = {"pretrain": "base", "clean": "data", "encode": "corpus"}
    numbered = {"ppo": "ppo-1", "reward": "reward-1", "label": "label-1", "evaluate": "evaluate-rl"}
    return names.get(stage) or numbered.get(stage) or stage
