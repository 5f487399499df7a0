"""metrics.jsonl, one line per logged step, and what a person watching sees: a bar, or lines in a pipe."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, SupportsFloat

from torch import Tensor

from bloomery.errors import ArtifactError, DataError

FILE = "metrics.jsonl"
# What the bar shows, and under which names stages log it (the first that is there).
SHOWN: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("loss", ("loss", "train/loss")),
    ("acc", ("accuracy", "mean_token_accuracy")),
    ("score", ("objective/scores", "reward")),
    ("kl", ("objective/kl",)),
    ("tok/s", ("tok_per_sec", "train/tok_per_sec", "rollout/tok_per_sec")),
)

Value = SupportsFloat | str | bool | None


class MetricsWriter:
    """Appends to metrics.jsonl, flushing every line. A number that is not finite is written as null and
    counted in `non_finite`. `lines` counts what is in the file; opening with `lines=n` keeps the first n
    lines and cuts the rest off, so that a resumed run's file is the one an uninterrupted run would have."""

    def __init__(self, path: Path, lines: int = 0) -> None:
        self.path, self.non_finite = path, 0
        kept = path.read_bytes().splitlines(keepends=True)[:lines] if lines and path.exists() else []
        self.lines = len(kept)
        self._file = path.open("ab")
        self._file.truncate(sum(len(line) for line in kept))

    def write(self, step: int, metrics: Mapping[str, Value]) -> dict[str, Any]:
        """Write {"step": step, **metrics}; a tensor of one element is a number. Returns what was written."""
        row: dict[str, Any] = {"step": step}
        for name, value in metrics.items():
            row[name] = self._plain(value)
        try:
            self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise ArtifactError("cannot write the metrics", where=self.path, got=error.strerror) from None
        self.lines += 1
        return row

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _plain(self, value: Value) -> float | int | str | bool | None:
        if value is None or isinstance(value, str | bool | int):
            return value
        number = float(value.detach() if isinstance(value, Tensor) else value)
        if math.isfinite(number):
            return number
        self.non_finite += 1
        return None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl. A last line without its newline is still being written and is left out.

    Raises `DataError` naming file:line for a line that is not a JSON object with a step.
    """
    try:
        *whole, _partial = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError("cannot read the metrics", where=path, got=error.strerror or error) from None
    rows = []
    for number, line in enumerate(whole, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError("this is not JSON", where=f"{path}:{number}", got=error) from None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise DataError(
                "this is not a row of metrics",
                where=f"{path}:{number}",
                got=line.decode(errors="replace"),
                expected='{"step": number, name: number, ...}',
            )
        rows.append(row)
    return rows


def shown(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The few metrics worth a glance, as (label, text)."""
    found = []
    for label, names in SHOWN:
        value = next((metrics[name] for name in names if metrics.get(name) is not None), None)
        if isinstance(value, int | float):
            found.append((label, f"{value:,.0f}" if label == "tok/s" else f"{value:.3f}"))
    return found


def clock(seconds: float) -> str:
    """h:mm:ss, or m:ss under an hour."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress(Protocol):
    """Somebody is watching: `start` the loop, `update` after each step, say a `line`, `stop`."""

    def start(self, total: int, done: int) -> None: ...
    def update(self, done: int, metrics: Mapping[str, Any]) -> None: ...
    def line(self, text: str) -> None: ...
    def stop(self) -> None: ...


def progress(title: str) -> Progress:
    """A bar on a terminal, plain lines in a pipe; both on stderr."""
    return Bar(title) if sys.stderr.isatty() else Lines(title)


class Lines:
    """A line at the first step, then one every few seconds, and one at the last."""

    def __init__(self, title: str, every: float = 5.0) -> None:
        self.title, self.every = title, every
        self.total, self.first, self.began, self.last = 0, 0, 0.0, -math.inf

    def start(self, total: int, done: int) -> None:
        self.total, self.first, self.began = total, done, time.monotonic()

    def update(self, done: int, metrics: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if done < self.total and now - self.last < self.every:
            return
        self.last = now
        parts = [f"{label} {text}" for label, text in shown(metrics)]
        rate = (now - self.began) / max(1, done - self.first)
        when = (
            f"eta {clock(rate * (self.total - done))}"
            if done < self.total
            else f"took {clock(now - self.began)}"
        )
        self.line("  ".join([f"{done}/{self.total}", *parts, when]))

    def line(self, text: str) -> None:
        print(f"{self.title}: {text}", file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Nothing is held open."""


class Bar:
    """title ━━━━━━━━ 120/400  loss 1.234  5,400 tok/s  0:00:40  eta 0:01:20"""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            ProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Rich

        self.title, self.console = title, Console(stderr=True)
        wide = self.console.width >= 100
        columns: Sequence[ProgressColumn] = (
            TextColumn("[bold]{task.description}[/]"),
            BarColumn(
                bar_width=28 if wide else 8, complete_style="dark_orange3", finished_style="dark_orange3"
            ),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}", markup=True),
            *([TimeElapsedColumn()] if wide else []),
            TextColumn("[dim]eta[/]"),
            TimeRemainingColumn(),
        )
        self._rich = Rich(*columns, console=self.console, refresh_per_second=4)
        self._task: Any = None

    def start(self, total: int, done: int) -> None:
        if self._task is None:
            self._task = self._rich.add_task(self.title, total=total, completed=done, metrics="")
            self._rich.start()
        else:
            self._rich.reset(self._task, total=total, completed=done)

    def update(self, done: int, metrics: Mapping[str, Any]) -> None:
        text = "  ".join(
            f"{value} [dim]{label}[/]" if label == "tok/s" else f"[dim]{label}[/] {value}"
            for label, value in shown(metrics)
        )
        self._rich.update(self._task, completed=done, metrics=text)

    def line(self, text: str) -> None:
        self.console.print(f"{self.title}: {text}", markup=False, highlight=False)

    def stop(self) -> None:
        if self._task is not None:
            self._rich.stop()
