"""Files of a model directory: safetensors and JSON, read with suspicion and written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bloomery.errors import ArtifactError
from bloomery.lineage import sync


def file_tensors(directory: Path, name: str) -> Iterator[tuple[Path, str, Tensor]]:
    """(path, name, tensor) of everything in one safetensors file, which must lie in `directory`.

    Raises `ArtifactError` when it does not, is not there, or is not whole.
    """
    path = directory / name
    if Path(name).name != name or not name.endswith(".safetensors"):
        raise ArtifactError("a weight file must lie in the model directory", got=name, where=directory)
    # A hub cache links its snapshots to the blobs two levels up; any other way out is refused.
    home = directory.resolve()
    homes = (home, home.parent.parent) if home.parent.name == "snapshots" else (home,)
    if not any(path.resolve().is_relative_to(place) for place in homes):
        raise ArtifactError("a weight file must lie in the model directory", got=path.resolve(), where=path)
    if not path.is_file():
        raise ArtifactError("there is no such file", where=path, do="name a model directory with its weights")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for key in file.keys():  # noqa: SIM118 - the handle is not a mapping
                yield path, key, file.get_tensor(key)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(
            "this is not a whole safetensors file", got=error, where=path, do="copy or download it again"
        ) from None


def check_finite(name: str, tensor: Tensor, path: Path) -> None:
    """Raises `ArtifactError` naming a tensor that holds an infinity or NaN."""
    if not torch.isfinite(tensor).all():
        bad = int((~torch.isfinite(tensor)).sum())
        raise ArtifactError(
            f"tensor '{name}' is not finite", got=f"{bad} of {tensor.numel()} values", where=path
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises `ArtifactError` when there is none."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError("there is no such file", where=path, do="name a model directory") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError("this is not JSON", got=error, where=path) from None
    if not isinstance(tree, dict):
        raise ArtifactError("this is not a JSON object", got=type(tree).__name__, where=path)
    return tree


class replacing:
    """`with replacing(path) as temporary`: write there; on leaving, it is synced and takes path's place."""

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.temporary.unlink(missing_ok=True)
            return
        sync(self.temporary)
        os.replace(self.temporary, self.path)


def write_json(path: Path, tree: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(tree, indent=2, sort_keys=True) + "\n", encoding="utf-8")
