"""Adapters for other tools: in PEFT's layout wherever they are put, or folded into a whole model."""

from __future__ import annotations

from pathlib import Path

import torch

from bloomery.errors import UsageError
from bloomery.lineage import sync
from bloomery.models import hub, peft
from bloomery.models.llama import Llama, ScalarModel


def adapters(directory: Path, out: Path, *, base: str | None = None) -> peft.Saved:
    """Write the adapters of `directory` into `out`, a new directory that PEFT reads from anywhere: it names
    the base model by its absolute path, or as `base` says (a path, or a name on the Hugging Face hub).

    Tensors keep every bit, and the tokenizer comes along. Raises `UsageError` when there are no adapters,
    when `out` is not empty, and when their base is itself adapters, which PEFT cannot stand on;
    `ArtifactError` as `peft.read` does, and when the base is not the one they were trained on.
    """
    _check(directory, out)
    saved = peft.read(directory, None if base is None else Path(base))
    home = saved.adapter.base or directory
    here = hub.is_model(home)
    if here and peft.is_adapter(home):
        raise UsageError(
            "these adapters stand on others, which PEFT cannot read", where=home, do="bloomery export merged"
        )
    if here:
        peft.check_base(saved, directory)
    out.mkdir(parents=True, exist_ok=True)
    hub.copy_tokenizer(directory, out)
    peft.store(saved, out, str(home.resolve()) if here else str(base))
    sync(out)
    return saved


def merged(directory: Path, out: Path, *, dtype: torch.dtype = torch.float32) -> Llama | ScalarModel:
    """Fold the adapters of `directory` into their base, in float32, and write the whole model into `out`, a
    new directory, in `dtype`, with the tokenizer of the adapters or else of the base. Returns the model.

    Raises what `adapters` does; adapters may stand on others.
    """
    _check(directory, out)
    model: Llama | ScalarModel
    model = hub.load(directory) if hub.kind_of(directory) == "causal" else hub.load(directory, "scalar")
    places = [place for place in (directory, peft.base_of(directory)) if (place / "tokenizer.json").is_file()]
    hub.save(model.to(dtype), out, tokenizer_dir=places[0] if places else None)
    return model


def _check(directory: Path, out: Path) -> None:
    if not peft.is_adapter(directory):
        raise UsageError(
            "there are no adapters here",
            where=directory,
            got="a whole model" if hub.is_model(directory) else "no model",
            expected=peft.CONFIG,
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError("this is not a new directory", where=out, do="choose another")
