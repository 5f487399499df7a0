"""The stage cache. A stage need not run again when a whole directory made from the same code, the same
settings and the same input bytes is there.

A store is a folder of stage directories named `<step>-<first 12 digits of the key>`, each with a record
`<directory>.json` beside it that says what went into the key and how many seconds it took. The record is
what lets a miss be explained ("lr: 0.001 -> 0.002").
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bloomery.errors import ArtifactError
from bloomery.lineage import MANIFEST, code_version, digest_json, digest_path, verify, write_json
from bloomery.recipe import Section, input_paths

State = Literal["cached", "half done", "damaged", "to do"]
KEY_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Ingredients:
    """All that decides what a stage makes. `config` is flat ("optimizer.lr") and holds no input path;
    `inputs` maps the same kind of key to the digest of what the path holds. The key is `lineage.stage_key`
    of these; it is empty while an input is still to be made."""

    stage: str
    config: dict[str, Any]
    inputs: dict[str, str]
    code: str
    key: str


@dataclass(slots=True)
class Entry:
    """The record beside a stage directory. `seconds` adds up over interrupted attempts."""

    step: str
    ingredients: Ingredients
    seconds: float = 0.0


def ingredients(stage: str, recipe: Section, waiting: Collection[str] = ()) -> Ingredients:
    """`waiting` names inputs that are still to be made. Raises `ArtifactError` when any other is missing."""
    tree: dict[str, Any] = recipe.model_dump(mode="json")
    digests: dict[str, str] = {}
    for name, path in input_paths(recipe):
        if name in waiting:
            continue
        if not path.exists():
            raise ArtifactError(
                f"the {stage} stage needs its input '{name}'", where=path, got="nothing there"
            )
        digests[name] = digest_path(path)
        put(tree, name, digests[name])
    code = code_version()
    key = "" if waiting else digest_json({"stage": stage, "recipe": tree, "code": code})
    flat = {name: value for name, value in _flatten(tree) if name not in digests and name not in waiting}
    return Ingredients(stage=stage, config=flat, inputs=digests, code=code, key=key)


def directory(store: Path, step: str, key: str) -> Path:
    return store / f"{step}-{key[:KEY_DIGITS]}"


def state(path: Path) -> tuple[State, list[str]]:
    """Whether the stage directory at `path` can be used, and what is wrong with a damaged one."""
    if not path.is_dir():
        return "to do", []
    if not (path / MANIFEST).is_file():
        return "half done", []
    problems = verify(path)
    return ("damaged", problems) if problems else ("cached", [])


def can_go_on(path: Path, *, look_only: bool = False) -> bool:
    """Whether an unfinished stage directory holds a checkpoint. If not, nothing in it is worth keeping: it is
    emptied, so that the stage starts as in a new one."""
    found = any(part.name.removeprefix("checkpoint-").isdigit() for part in path.iterdir())
    if not found and not look_only:
        shutil.rmtree(path)
    return found


def why_not(store: Path, step: str, wanted: Ingredients, waiting: Collection[str] = ()) -> list[str]:
    """What differs from the most similar directory that this step ever made in `store`, in plain words."""
    found: list[list[str]] = []
    for path in sorted(store.glob(f"{step}-*.json")):
        entry = read_entry(path.with_suffix(""))
        if entry is not None and entry.step == step and path.with_suffix("").is_dir():
            found.append(differences(entry.ingredients, wanted, waiting))
    if not found:
        return ["never made"]
    return min(found, key=len)


def differences(old: Ingredients, new: Ingredients, waiting: Collection[str] = ()) -> list[str]:
    lines: list[str] = []
    if old.stage != new.stage:
        lines.append(f"stage: {old.stage} -> {new.stage}")
    if old.code != new.code:
        lines.append("the code changed")
    for name in sorted(old.config.keys() | new.config.keys()):
        before, after = old.config.get(name, "(absent)"), new.config.get(name, "(absent)")
        if before != after:
            lines.append(f"{name}: {before} -> {after}")
    for name in sorted(old.inputs.keys() | new.inputs.keys()):
        if name not in waiting and old.inputs.get(name) != new.inputs.get(name):
            verb = (
                "changed"
                if name in old.inputs and name in new.inputs
                else "is new"
                if name in new.inputs
                else "left"
            )
            lines.append(f"input {name} {verb}")
    return lines


def set_aside(path: Path) -> Path:
    """Move a damaged directory out of the way without losing it; returns its new name."""
    for number in range(1, 1000):
        other = path.with_name(f"{path.name}.damaged-{number}")
        if not other.exists():
            path.rename(other)
            return other
    raise ArtifactError("too many damaged copies", where=path, do="remove the .damaged-* directories")


def read_entry(path: Path) -> Entry | None:
    """The record of the stage directory `path`, or None when there is none (or it is not ours)."""
    try:
        raw = json.loads(record_path(path).read_text(encoding="utf-8"))
        return Entry(
            step=raw["step"],
            ingredients=Ingredients(**raw["ingredients"]),
            seconds=float(raw["seconds"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_entry(path: Path, entry: Entry) -> None:
    write_json(
        record_path(path),
        {
            "step": entry.step,
            "seconds": round(entry.seconds, 3),
            "ingredients": asdict(entry.ingredients),
        },
    )


def record_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def link(name: Path, target: Path) -> None:
    """Point the symbolic link `name` at `target` by a relative path, replacing an older link in one step.

    Raises `ArtifactError` when something that is not a link stands there."""
    if name.exists() and not name.is_symlink():
        raise ArtifactError(
            "a journey keeps links here", where=name, got="a file or a directory", do="move it away"
        )
    partial = name.with_name(f".{name.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    partial.symlink_to(os.path.relpath(target, name.parent), target_is_directory=True)
    os.replace(partial, name)


def unlink_all(folder: Path, store: Path) -> None:
    """Remove the symbolic links in `folder` that point into `store`."""
    for path in folder.iterdir():
        if path.is_symlink() and Path(os.path.abspath(folder / path.readlink())).parent == store:
            path.unlink()


@contextmanager
def locked(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold `path` against other processes; `on_wait` is called first when one of them holds it."""
    with path.with_name(f".{path.name}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys; the items of a list are numbered as `input_paths` numbers them. Empty ones stay."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{key}.")
        elif isinstance(value, list) and value:
            for index, item in enumerate(value):
                if isinstance(item, Mapping):
                    yield from _flatten(item, f"{key}[{index}].")
                else:
                    yield f"{key}[{index}]", item
        else:
            yield key, value


def put(tree: dict[str, Any], key: str, value: str) -> None:
    """Set the leaf at a key of `input_paths`, such as `models[1]` or `data.corpus`."""
    *path, last = key.replace("[", ".").replace("]", "").split(".")
    node: Any = tree
    for part in path:
        node = node[int(part) if isinstance(node, list) else part]
    node[int(last) if isinstance(node, list) else last] = value
