"""Checkpoints that are whole or absent: tensors as safetensors, the rest as JSON, sealed by a manifest.

    checkpoint-<step>/  <module>.safetensors  <optimizer>.optimizer.safetensors  state.json  MANIFEST.json

A save writes checkpoint-<step>.tmp-<random>/, syncs every file, writes the manifest, syncs the directory,
renames it, syncs the parent, and only then deletes older ones. A reader takes the newest checkpoint whose
every byte matches its manifest. Nothing here is a pickle.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bloomery.errors import ArtifactError
from bloomery.lineage import sync, verify, write_json, write_manifest

STATE = "state.json"
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Restored:
    """What was read: the number of steps done, the caller's own state, and where from."""

    step: int
    state: dict[str, Any]
    path: Path


def save(
    directory: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    state: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Commit checkpoint-<step> under `directory` and drop all but the newest `keep`.

    `step` counts the steps done. `state` is JSON. Raises `ArtifactError` naming the path, the bytes needed
    and the bytes free when the disk refuses; earlier checkpoints are then as they were.
    """
    tensors: dict[str, dict[str, Tensor]] = {}
    scalars: dict[str, Any] = {"step": step, "state": dict(state), "shared": {}, "optimizers": {}}
    for name, module in modules.items():
        tensors[name], scalars["shared"][name] = _unshared(module.state_dict())
    for name, optimizer in optimizers.items():
        tensors[f"{name}.optimizer"], scalars["optimizers"][name] = _optimizer_state(optimizer)
    final = directory / f"checkpoint-{step}"
    partial = directory / f"checkpoint-{step}.tmp-{secrets.token_hex(4)}"
    try:
        partial.mkdir(parents=True)
        for name, group in tensors.items():
            save_file(group, partial / f"{name}.safetensors", metadata={"format": "pt"})
        write_json(partial / STATE, scalars)
        write_manifest(partial)
        if final.exists():
            drop(final)
        partial.rename(final)
        sync(directory)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        need = sum(t.nbytes for group in tensors.values() for t in group.values())
        free = shutil.disk_usage(directory).free if directory.exists() else 0
        raise ArtifactError(
            "the checkpoint could not be written; earlier ones are intact",
            where=final,
            got=f"{error} ({free} bytes free)",
            expected=f"room for {need} bytes",
            do="free some space and run the same command again",
        ) from None
    for old in checkpoints(directory)[keep:]:
        drop(old)
    return final


def checkpoints(directory: Path) -> list[Path]:
    """The committed checkpoints of a run, newest first."""
    found = [
        (int(match[1]), path)
        for path in directory.glob("checkpoint-*")
        if (match := _NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found, reverse=True)]


def clear_leftovers(directory: Path) -> list[str]:
    """Delete what an interrupted save or delete left behind; returns the names."""
    left = [path for path in directory.glob("checkpoint-*.tmp-*") if path.is_dir()]
    for path in left:
        shutil.rmtree(path)
    return [path.name for path in left]


def clear(directory: Path) -> None:
    """Delete every checkpoint of a run, oldest first, and leftovers."""
    for path in reversed(checkpoints(directory)):
        drop(path)
    clear_leftovers(directory)


def drop(path: Path) -> None:
    """Delete a checkpoint so that it is never seen half deleted: first it loses its name."""
    shutil.rmtree(path.rename(path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")))


def newest_valid(directory: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose every byte is as it was written; each one passed over is told to `say`."""
    for path in checkpoints(directory):
        problems = verify(path)
        if not problems:
            return path
        say(f"{path.name} is damaged ({'; '.join(problems)}); trying the one before")
    return None


def restore(
    directory: Path,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    say: Callable[[str], None],
) -> Restored | None:
    """Load the newest valid checkpoint into `modules` and `optimizers`, bit for bit; None if there is none.

    Raises `ArtifactError` when the checkpoint belongs to other modules, shapes or optimizers; then nothing
    has been changed.
    """
    path = newest_valid(directory, say)
    if path is None:
        return None
    scalars = json.loads((path / STATE).read_text(encoding="utf-8"))
    saved = (set(scalars["shared"]), set(scalars["optimizers"]))
    if saved != (set(modules), set(optimizers)):
        raise ArtifactError(
            "this checkpoint holds other parts than the run tracks",
            where=path,
            got=sorted(saved[0] | saved[1]),
            expected=sorted({*modules, *optimizers}),
        )
    weights: dict[str, dict[str, Tensor]] = {}
    for name, module in modules.items():
        weights[name] = load_file(path / f"{name}.safetensors")
        weights[name] |= {alias: weights[name][of] for alias, of in scalars["shared"][name].items()}
        _check_fit(module.state_dict(), weights[name], path / f"{name}.safetensors")
    moments: dict[str, dict[str, Any]] = {}
    for name, optimizer in optimizers.items():
        file = path / f"{name}.optimizer.safetensors"
        moments[name] = _optimizer_dict(optimizer, load_file(file), scalars["optimizers"][name], file)
    for name, module in modules.items():
        module.load_state_dict(weights[name])
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(moments[name])
    return Restored(int(scalars["step"]), scalars["state"], path)


def _unshared(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors to store, and {name: name of the stored tensor it is the same memory as} (tied weights)."""
    stored: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and place in seen:
            shared[name] = seen[place]
        else:
            seen[place] = name
            stored[name] = tensor.detach().contiguous()
    return stored, shared


def _optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    whole = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, values in whole["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{key}"] = value.detach().contiguous()
            else:
                plain.setdefault(str(index), {})[key] = value
    return tensors, {"state": plain, "groups": whole["param_groups"]}


def _optimizer_dict(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any], file: Path
) -> dict[str, Any]:
    current = optimizer.state_dict()["param_groups"]
    got, expected = [[g["params"] for g in groups] for groups in (scalars["groups"], current)]
    if got != expected:
        raise ArtifactError(
            "this optimizer state is for other parameters",
            where=file,
            got=[len(group) for group in got],
            expected=[len(group) for group in expected],
        )
    state: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in scalars["state"].items()}
    shapes = [p.shape for group in optimizer.param_groups for p in group["params"]]
    for name, tensor in tensors.items():
        index, key = name.split("/", 1)
        if tensor.dim() and tensor.shape != shapes[int(index)]:
            raise ArtifactError(
                f"'{name}' does not fit its parameter",
                where=file,
                got=tuple(tensor.shape),
                expected=tuple(shapes[int(index)]),
            )
        state.setdefault(int(index), {})[key] = tensor
    return {
        "state": state,
        "param_groups": [_tuples_as_in(a, b) for a, b in zip(scalars["groups"], current, strict=True)],
    }


def _tuples_as_in(saved: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no tuples: what is a tuple in the live group (betas) becomes one again."""
    return {key: tuple(v) if isinstance(current.get(key), tuple) else v for key, v in saved.items()}


def _check_fit(expected: Mapping[str, Tensor], got: Mapping[str, Tensor], file: Path) -> None:
    for name in sorted(set(expected) | set(got)):
        shapes = [tuple(side[name].shape) if name in side else None for side in (got, expected)]
        if shapes[0] != shapes[1]:
            raise ArtifactError(
                f"tensor '{name}' does not fit the model", where=file, got=shapes[0], expected=shapes[1]
            )
