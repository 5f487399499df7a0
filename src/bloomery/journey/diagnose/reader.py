"""From what a run left behind to tables: our directories, a trainer_state.json of transformers and TRL, and
lines of metrics as OpenRLHF and others log them."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bloomery.errors import ArtifactError, DataError, UsageError
from bloomery.journey.diagnose.table import LOOKED_AT, Column, Json, Status, Table, columns_of, leaves
from bloomery.journey.run import read_journal
from bloomery.lineage import LINEAGE, MANIFEST

METRICS, STATE = "metrics.jsonl", "trainer_state.json"
STEP_NAMES = ("step", "global_step", "train/global_step", "eval/global_step", "_step")
_KEY = re.compile(r"-[0-9a-f]{12}")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_EVALUATION = re.compile(r"(?:evaluate|eval)-(?:(?:rl|ppo|round)-)?(\d+)")

# A stage of another program is recognised by what it logs: the first of these whose columns are all there.
SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("ppo", ("loss/value_avg",)),
    ("ppo", ("objective/kl",)),
    ("grpo", ("reward", "reward_std")),
    ("grpo", ("reward", "completions/mean_length")),
    ("grpo", ("reward", "loss/policy_avg")),
    ("prefer", ("rewards/margins",)),
    ("reward", ("accuracy", "mean_reward")),
    ("reward", ("accuracy", "margin")),
    ("reward", ("accuracy", "chosen_reward")),
    ("pretrain", ("bpb",)),
    ("sft", ("mean_token_accuracy",)),
    ("sft", ("loss",)),
)


def read(path: Path) -> list[Table]:
    """The tables of every stage that logged something, in the order they ran.

    `path` is a journey's directory, a stage's, a TRL trainer's output directory, or a file: JSON Lines of
    metrics, or a trainer_state.json (or its log_history alone). Raises `UsageError` where there is nothing to
    diagnose, `DataError` naming file:line for a line that is no JSON object.
    """
    if path.is_file():
        ours = path.name == METRICS and (path.parent / LINEAGE).is_file()
        tables = read(path.parent) if ours else [_file(path)]
    elif (path / LINEAGE).is_file():
        tables = [_stage(_KEY.sub("", path.resolve().name), path)]
    elif (path / "journey.json").is_file():
        tables = _journey(path)
    elif path.is_dir():
        tables = [_file(_metrics_file(path))]
    else:
        raise UsageError("there is no such run", where=path)
    tables = [table for table in tables if table.rows or table.status == "unfinished"]
    if not tables:
        raise UsageError("nothing was logged here", where=path, expected=METRICS)
    return tables


# ------------------------------------------------------------------------------------------- our own


def _journey(out: Path) -> list[Table]:
    steps = {done.name: out / done.directory for done in read_journal(out)}
    for path in sorted((out / "stages").glob(f"*/{LINEAGE}")):
        name = _KEY.sub("", path.parent.name)
        if name not in steps and not (path.parent / MANIFEST).exists():
            steps[name] = path.parent
    found = {_round(name): _json(path / "evaluation.json") for name, path in steps.items() if _round(name)}
    before = _json(steps["evaluate-sft"] / "evaluation.json") if "evaluate-sft" in steps else {}
    recipe, tables = _settings(out / "recipe.yaml"), []
    for name, path in steps.items():
        number = name.removeprefix("ppo-")
        with_evaluation = {"before": before, "after": found[number]} if number in found else {}
        tables.append(_stage(name, path, journey=recipe, **with_evaluation))
    return tables


def _round(name: str) -> str:
    match = _EVALUATION.fullmatch(name)
    return match[1] if match else ""


def _stage(name: str, directory: Path, **of_the_journey: Json) -> Table:
    path = directory / METRICS
    rows = list(_lines(path)) if path.is_file() else []
    return Table(
        name=name,
        stage=str(_json(directory / LINEAGE).get("stage")),
        rows=len(rows),
        columns=columns_of(rows),
        status=_status(directory),
        settings=_settings(directory / "recipe.yaml"),
        state=_json(directory / STATE),
        card=_json(directory / "evaluation.json"),
        **of_the_journey,
    )


def _status(directory: Path) -> Status:
    """A run holds a lock on its directory for as long as its process lives."""
    if (directory / MANIFEST).is_file():
        return "finished"
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "running"
    except OSError:  # a file system without locks cannot tell
        return "unknown"
    finally:
        os.close(handle)
    return "unfinished"


def _settings(path: Path) -> dict[str, Any]:
    """recipe.yaml with dotted keys; empty where there is none."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError:
        return {}
    except yaml.YAMLError as error:
        raise ArtifactError("this is not YAML", where=path, got=error) from None
    return dict(leaves(tree)) if isinstance(tree, Mapping) else {}


def _json(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no file. Raises `ArtifactError` for anything else."""
    if not path.is_file():
        return {}
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError("this is not JSON", where=path, got=error) from None
    if not isinstance(tree, dict):
        raise ArtifactError("this is not a JSON object", where=path, got=type(tree).__name__)
    return tree


# ----------------------------------------------------------------------------------- other programs


def _metrics_file(directory: Path) -> Path:
    """The one file with metrics of a directory that is not ours; of TRL's checkpoints, the newest's."""
    states = {int(m[1]): p for p in directory.iterdir() if (m := _CHECKPOINT.fullmatch(p.name))}
    newest = states[max(states)] if states else directory
    for path in (directory / STATE, newest / STATE, directory / METRICS):
        if path.is_file():
            return path
    found = sorted(directory.glob("*.jsonl"))
    if len(found) != 1:
        raise UsageError(
            "this directory holds no run that can be read",
            where=directory,
            got=", ".join(path.name for path in found) or "no file of metrics",
            expected=f"journey.json, {METRICS}, {STATE}, or one .jsonl file",
            do="name the file",
        )
    return found[0]


def _file(path: Path) -> Table:
    rows = list(_history(path) if path.suffix == ".json" else _lines(path))
    columns = columns_of(rows)
    if rows and not columns.keys() & LOOKED_AT:
        names = ", ".join(list(columns)[:8])
        raise UsageError(
            "no metric in this file is one that is known",
            where=path,
            got=names or "no column of numbers",
            expected="such as loss, reward, accuracy, learning_rate, grad_norm, objective/kl",
            do="name the columns as TRL or OpenRLHF do",
        )
    name = path.parent.name if path.name in (METRICS, STATE) else path.stem
    return Table(name=name or path.stem, stage=guess_stage(columns), rows=len(rows), columns=columns)


def guess_stage(columns: Mapping[str, Column]) -> str:
    """What kind of training logs such columns; "unknown" is asked only what holds everywhere."""
    return next((stage for stage, names in SIGNS if all(name in columns for name in names)), "unknown")


def _history(path: Path) -> Iterator[tuple[int, Json]]:
    """The log of a trainer_state.json, or a list of rows by itself."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError("this is not JSON", where=path, got=error) from None
    rows = tree.get("log_history") if isinstance(tree, dict) else tree
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError("this holds no log_history", where=path, expected="a list of objects")
    return _with_steps(rows)


def _lines(path: Path) -> Iterator[tuple[int, Json]]:
    """(step, metrics) of every line; a last line that breaks off is still being written."""
    rows = []
    parts = path.read_bytes().split(b"\n")
    for number, line in enumerate(parts, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(parts):
                break
            raise DataError("this is not JSON", where=f"{path}:{number}", got=error) from None
        if not isinstance(row, dict):
            raise DataError("this is not a row of metrics", where=f"{path}:{number}", got=row)
        rows.append(row)
    return _with_steps(rows)


def _with_steps(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Json]]:
    for number, row in enumerate(rows):
        step = next((row[name] for name in STEP_NAMES if isinstance(row.get(name), int)), number)
        yield step, {name: value for name, value in row.items() if name not in STEP_NAMES}
