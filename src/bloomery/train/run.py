"""A stage's directory while it is being made: identity, resume, checkpoints, signals, metrics, the seal.

    with Run(out, stage="sft", recipe=recipe) as run:
        model, optimizer = ...
        run.track(model=model, optimizer=optimizer)     # after a kill: both are as they were, bit for bit
        for step in run.steps(total):                   # only the steps still to do
            ...
            run.log(step, {"loss": loss})
        hub.save(model, out)
        run.finish(tokenizer=recipe.tokenizer, summary="...")

A stage that does not train leaves out `track` and `steps`; one that has only its `state` to remember says
`run.track()`.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal, Self

import torch
from torch import nn

from bloomery import lineage
from bloomery.lineage import Lineage, Person
from bloomery.recipe import Section, input_paths
from bloomery.train import checkpoint
from bloomery.train.card import card
from bloomery.train.directory import Inputs, claim, discard, identity, lock
from bloomery.train.metrics import FILE, MetricsWriter, Value, progress
from bloomery.train.step import Guard
from bloomery.types import Policy

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


__all__ = ["Run", "Stopped", "discard"]


class Stopped(SystemExit):
    """The process was asked to end: exit code 143 for SIGTERM, 130 for Ctrl-C."""


class Run:
    """One stage into one directory.

    `inputs` names the artifacts that shape the result (by default every input path of the recipe). An
    unfinished run of the same recipe and inputs in `out` is gone on with from its newest checkpoint; if it
    has none, or with `resume="never"`, what it left is deleted and it starts again. Anything else in `out`,
    and a directory another process works in, is left alone: `ArtifactError`.

    A checkpoint is written every `checkpoint_every` steps and after the last step (0: neither), when
    `checkpoint_seconds` have passed since the one before (None: not by time), and when a signal asks the
    run to stop; the newest `keep` stay. The step under way when SIGTERM or Ctrl-C comes is finished first;
    a second signal does not wait.

    `guard` counts skipped updates (see `step.apply`). `state` is a dict of JSON values that a stage may use
    for whatever it must remember between steps; it is part of every checkpoint.
    """

    def __init__(
        self,
        out: Path,
        *,
        stage: str,
        recipe: Section,
        inputs: Inputs | None = None,
        resume: Literal["auto", "never"] = "auto",
        checkpoint_every: int = 100,
        checkpoint_seconds: float | None = None,
        keep: int = 2,
    ) -> None:
        self.out, self.stage, self.recipe = out, stage, recipe
        self.inputs: Inputs = dict(input_paths(recipe)) if inputs is None else inputs
        self.resume, self.keep = resume, keep
        self.every, self.seconds_between = checkpoint_every, checkpoint_seconds
        self.step = 0
        self.total: int | None = None
        self.guard = Guard()
        self.state: dict[str, Any] = {}
        self.progress = progress(stage)
        self._modules: dict[str, nn.Module] = {}
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        self._tracked = False
        self._metrics: MetricsWriter | None = None
        self._last: dict[str, Any] = {}
        self._resumed_at: list[int] = []
        self._earlier_seconds, self._earlier_non_finite = 0.0, 0
        self._in_loop = self._looped = False
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}

    # ------------------------------------------------------------------------------- beginning and end

    def __enter__(self) -> Self:
        self.lineage = identity(self.out, self.stage, self.recipe, self.inputs)
        self._lock = lock(self.out)
        try:
            claim(self.out, self.lineage, self.recipe, self.resume == "never", self.line)
        except BaseException:
            os.close(self._lock)
            raise
        self._began = self._saved_at = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self.progress.stop()
        if self._metrics is not None:
            self._metrics.close()
        os.close(self._lock)

    # -------------------------------------------------------------------------------------- the loop

    def track(self, **parts: nn.Module | torch.optim.Optimizer) -> None:
        """Name what a checkpoint must hold: everything that training changes, besides `state`. Called once,
        before the loop.

        If the directory holds a valid checkpoint, the parts, `state` and `guard` are set to it, and
        metrics.jsonl is cut back to that moment. Raises `ArtifactError` when it does not fit the parts.
        """
        self._tracked = True
        for name, part in parts.items():
            if isinstance(part, torch.optim.Optimizer):
                self._optimizers[name] = part
            else:
                self._modules[name] = part
        found = checkpoint.restore(self.out, self._modules, self._optimizers, self.line)
        if found is None:
            if checkpoint.checkpoints(self.out):
                self.line("no checkpoint is intact: starting again from the first step")
            checkpoint.clear(self.out)
            return
        for newer in checkpoint.checkpoints(self.out):
            if newer.name == found.path.name:
                break
            checkpoint.drop(newer)
        own = found.state["run"]
        self.step, self.state = found.step, found.state["stage"]
        self.guard.skipped, self.guard.in_a_row = own["skipped"], own["in_a_row"]
        self._earlier_seconds, self._earlier_non_finite = own["seconds"], own["non_finite"]
        self._resumed_at = [*own["resumed_at"], found.step]
        self._metrics = MetricsWriter(self.out / FILE, own["lines"])
        if self._metrics.lines < own["lines"]:
            self.line(f"{FILE} has {self._metrics.lines} lines where the checkpoint knew {own['lines']}")
        for name, value in self._arithmetic().items():
            if own["arithmetic"][name] != value:
                change = f"{name} was {own['arithmetic'][name]} and is now {value}"
                self.line(f"{change}: the result may differ in the last bits from an unbroken run")
        self.line(f"going on from {found.path.name}")

    def steps(self, total: int) -> Iterator[int]:
        """The steps still to do, counted from 0; after each the bar moves and a due checkpoint is saved."""
        self.total, self._looped = total, True
        self.progress.start(total, self.step)
        try:
            for step in range(self.step, total):
                self._in_loop = True
                yield step
                self.step = step + 1
                self.progress.update(self.step, self._last)
                if self._due():
                    self.save()
                self._obey()
        finally:
            self._in_loop = False

    def log(self, step: int, metrics: Mapping[str, Value]) -> None:
        """One line of metrics.jsonl. Numbers that are not finite are written as null and counted.

        What a resumed run logs between `track` and its loop is already in the file and not written again.
        """
        if self._resumed_at and not self._looped:
            return
        if self._metrics is None:
            self._metrics = MetricsWriter(self.out / FILE)
        before = self._metrics.non_finite
        self._last = self._metrics.write(step, metrics)
        if self._metrics.non_finite > before:
            names = [
                name for name, value in self._last.items() if value is None and metrics[name] is not None
            ]
            self.line(f"step {step}: not finite: {', '.join(names)}")

    def line(self, text: str) -> None:
        """Tell the person watching."""
        self.progress.line(text)

    @property
    def seconds(self) -> float:
        """Time spent on this run, earlier sittings included."""
        return self._earlier_seconds + time.monotonic() - self._began

    def save(self) -> None:
        """Write a checkpoint of everything tracked, now. Only between steps does that make sense."""
        if not self._tracked:
            return
        if self._metrics is not None:
            self._metrics.sync()
        own = {
            "skipped": self.guard.skipped,
            "in_a_row": self.guard.in_a_row,
            "seconds": self.seconds,
            "non_finite": self._non_finite,
            "lines": self._metrics.lines if self._metrics else 0,
            "resumed_at": self._resumed_at,
            "arithmetic": self._arithmetic(),
        }
        state = {"run": own, "stage": self.state}
        checkpoint.save(self.out, self.step, self._modules, self._optimizers, state, self.keep)
        self._saved_at = time.monotonic()

    def _due(self) -> bool:
        by_step = self.every > 0 and (self.step % self.every == 0 or self.step == self.total)
        by_time = (
            self.seconds_between is not None and time.monotonic() - self._saved_at >= self.seconds_between
        )
        return by_step or by_time or self._signal is not None

    @property
    def _non_finite(self) -> int:
        return self._earlier_non_finite + (self._metrics.non_finite if self._metrics else 0)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again, self._signal = self._signal is not None, number
        if again or not self._in_loop:
            self._obey()

    def _obey(self) -> None:
        if self._signal is not None:
            kept = checkpoint.checkpoints(self.out)
            after = f"goes on from {kept[0].name}" if kept else "starts again"
            self.line(f"stopped by {signal.Signals(self._signal).name}; the same command {after}")
            raise Stopped(128 + self._signal)

    # --------------------------------------------------------------------------------------- the seal

    def finish(
        self,
        tokenizer: Path | None = None,
        *,
        data: Sequence[Mapping[str, Any]] = (),
        people: Sequence[Person | Mapping[str, Any]] = (),
        teachers: Sequence[Policy] = (),
        summary: str = "",
        metrics: Mapping[str, float | None] | None = None,
        limits: Sequence[str] = (),
    ) -> None:
        """Complete the directory: tokenizer files, lineage, card, trainer state; last the manifest.

        `people` and `teachers` are those this stage knows of; those of its inputs are added. People given
        as {"id", "kind", "rankings"} are counted as new if the stage wrote rankings.jsonl, else only beyond
        what its inputs account for; `lineage.count_people(rankings, digest of their file)` is exact.
        `data` describes the data used (any JSON). `metrics` and `limits` go on the card.
        """
        self._obey()
        if tokenizer is not None:
            for name in TOKENIZER_FILES:
                if (tokenizer / name).is_file():
                    shutil.copyfile(tokenizer / name, self.out / name)
        rankings = self.out / "rankings.jsonl"
        new = rankings.is_file()
        source = lineage.digest_file(rankings) if new else self.lineage.key
        own = lineage.own_people(people, self.lineage.people, source, new)
        record = self.lineage.model_copy(
            update={
                "data": tuple(dict(one) for one in data),
                "people": lineage.union_people([self.lineage.people, own]),
                "teachers": lineage.union_teachers([self.lineage.teachers, teachers]),
            }
        )
        lineage.write(self.out, record)
        if self._metrics is not None:
            self._metrics.sync()
        lineage.write_json(self.out / "trainer_state.json", self._trainer_state(record))
        numbers = {**_numbers(self._last), **(metrics or {})}
        lineage.write_text(self.out / "README.md", card(record, self.step, summary, numbers, limits))
        checkpoint.clear_leftovers(self.out)
        lineage.write_manifest(self.out)
        checkpoint.clear(self.out)

    def _trainer_state(self, record: Lineage) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "global_step": self.step,
            "max_steps": self.total,
            "seconds": round(self.seconds, 3),
            "skipped_updates": self.guard.skipped,
            "non_finite_metrics": self._non_finite,
            "resumed_at": self._resumed_at,
            "started_at": record.created_at,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            **self._arithmetic(),
        }

    def _arithmetic(self) -> dict[str, Any]:
        """What the last bits of a sum depend on."""
        return {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": sorted({str(p.device) for m in self._modules.values() for p in m.parameters()}),
        }


def _numbers(row: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: value for name, value in row.items() if name != "step" and isinstance(value, int | float)}
