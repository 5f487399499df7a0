"""Adapter directories in the layout of the PEFT library: adapter_config.json and adapter_model.safetensors.

Beside them lies adapter_notes.json, which only we read: the digest of the base, and a scalar model's shift.
(A safetensors file could hold them as metadata, but it is not written in the same order every time.)

What is written here loads in PEFT, and what PEFT writes loads here. Whatever in a config would change the
computation and is not computed here is refused, never ignored.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from math import isfinite
from os.path import relpath
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from bloomery.errors import ArtifactError, UsageError
from bloomery.lineage import digest_file, digest_json
from bloomery.models.families import Kind
from bloomery.models.files import check_finite, file_tensors, read_json, replacing, write_json
from bloomery.models.llama import Llama, ScalarModel
from bloomery.models.lora import Adapter, adapted

CONFIG, WEIGHTS, NOTES = "adapter_config.json", "adapter_model.safetensors", "adapter_notes.json"
PREFIX = "base_model.model."
HEAD = "score.weight"
ROWS = ".token_adapter.trainable_tokens_delta"
HEAD_ROWS = "lm_head.rows"
TASKS: Mapping[Kind, str] = {"causal": "CAUSAL_LM", "scalar": "SEQ_CLS"}
# Read below, or without effect on what finished adapters compute.
KNOWN = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "lora_alpha",
        "lora_dropout",
        "megatron_core",
        "modules_to_save",
        "peft_version",
        "qalora_group_size",
        "r",
        "revision",
        "target_modules",
        "trainable_token_indices",
        "use_rslora",
    }
)
# The only values under which this code computes the same. Some ways to begin (pissa, loftq) change the base.
FIXED: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", "SEQ_CLS", None),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),
}


@dataclass(frozen=True, slots=True)
class Saved:
    """The content of an adapter directory. `tensors` have the names of an adapted model's parameters; `shift`
    is a scalar model's own, `base_digest` that of the base they were trained on, where the file tells."""

    adapter: Adapter
    kind: Kind
    tensors: dict[str, Tensor]
    shift: float | None
    base_digest: str | None


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds adapters, not a whole model."""
    return (directory / CONFIG).is_file()


def kind_of(directory: Path) -> Kind:
    """Of which kind of model an adapter directory's are."""
    return "scalar" if read_json(directory / CONFIG).get("task_type") == "SEQ_CLS" else "causal"


def base_of(directory: Path) -> Path:
    """The directory of the base model, which may again be adapters on a base.

    A path that is not absolute is one from the adapters' own directory, or else from here. Raises
    `ArtifactError` when it is not there, and when bases go round in a circle.
    """
    seen, at = list[Path](), directory.resolve()
    while at not in seen and is_adapter(at):
        seen.append(at)
        at = _named_base(at)
    if at in seen:
        raise ArtifactError("these adapters have no base but one another", where=directory / CONFIG)
    return _named_base(directory.resolve())


def _named_base(directory: Path) -> Path:
    named = read_json(directory / CONFIG).get("base_model_name_or_path")
    places = [directory / named, Path(named)] if isinstance(named, str) and named else []
    for place in places:
        if is_adapter(place) or (place / "config.json").is_file():
            return place.resolve()
    raise ArtifactError(
        "the base model of these adapters is not here",
        got=named,
        where=directory / CONFIG,
        do="put it there, or load the adapters with base=DIRECTORY",
    )


def read(directory: Path, base: Path | None = None) -> Saved:
    """An adapter directory; `base` overrules the base model it names.

    Raises `ArtifactError` naming the file and the key or tensor that is missing, damaged or not supported.
    """
    path = directory / CONFIG
    tree = read_json(path)
    for key, value in tree.items():
        if key in FIXED:
            if not any(value is one or (type(value) is str and value == one) for one in FIXED[key]):
                raise ArtifactError(f"{key} is not supported", got=value, expected=FIXED[key][0], where=path)
        elif key not in KNOWN and value not in (None, False, {}, [], ""):
            raise ArtifactError(
                f"{key} is not supported: it may change what adapters compute", got=value, where=path
            )
    kind = kind_of(directory)
    extra = tree.get("modules_to_save") or []
    if not set(extra) <= ({"score", "classifier"} if kind == "scalar" else set()):
        raise ArtifactError("modules_to_save is not supported", got=extra, where=path)
    tensors = _read_tensors(directory, kind)
    adapter = _adapter(tree, tensors, path, base_of(directory) if base is None else base)
    notes = read_json(directory / NOTES) if (directory / NOTES).is_file() else {}
    shift, digest = notes.get("score_shift"), notes.get("base_digest")
    if not isinstance(shift, float | None) or not isfinite(shift or 0) or not isinstance(digest, str | None):
        raise ArtifactError("these notes are not usable", got=notes, where=directory / NOTES)
    return Saved(adapter, kind, tensors, shift, digest)


def fill(model: Llama | ScalarModel, saved: Saved, directory: Path) -> None:
    """Set the adapters of a model, and its scalar head, to what was saved.

    Raises `ArtifactError` naming a tensor that is missing, of another shape, or for no adapter of the model.
    """
    path, state = directory / WEIGHTS, model.state_dict()
    expected = {f"{name}.{part}" for name, layer in adapted(model).items() for part in layer.learns}
    if strange := sorted(set(saved.tensors) - expected - {HEAD}):
        raise ArtifactError(f"tensor '{strange[0]}' is for no adapter of this model", where=path)
    if missing := sorted(expected - set(saved.tensors) - {HEAD_ROWS}):
        raise ArtifactError(f"tensor '{missing[0]}' is missing", got=f"{len(missing)} missing", where=path)
    for name, tensor in saved.tensors.items():
        if tensor.shape != state[name].shape:
            raise ArtifactError(
                f"tensor '{name}' has another shape than the model and {CONFIG} say",
                got=tuple(tensor.shape),
                expected=tuple(state[name].shape),
                where=path,
            )
    with torch.no_grad():
        for name, tensor in saved.tensors.items():
            state[name].copy_(tensor)
        if isinstance(model, ScalarModel) and saved.shift is not None:
            model.shift.fill_(saved.shift)


def write(model: Llama | ScalarModel, adapter: Adapter, directory: Path) -> None:
    """Write a model's adapters, and its scalar head: each file whole or not at all, the config last.

    The base is named by a relative path where it lies beside `directory`, so both can be moved together.
    Raises `UsageError` when the adapters have no base.
    """
    if adapter.base is None:
        raise UsageError(
            "nobody said which model these adapters are for", do="give them a base, or save with merge"
        )
    tensors = {
        f"{name}.{part}": getattr(layer, part)
        for name, layer in adapted(model).items()
        for part in layer.learns
    }
    kind: Kind = "causal"
    shift = None
    if isinstance(model, ScalarModel):
        kind, shift = "scalar", float(model.shift)
        tensors[HEAD] = model.score.weight
    saved = Saved(adapter, kind, tensors, shift, base_digest(adapter.base))
    store(saved, directory, _path_from(directory, adapter.base))


def store(saved: Saved, directory: Path, base: str) -> None:
    """Write the files of an adapter directory; `base` is what they name as their base model."""
    stored = {_theirs(name): tensor.detach().cpu().contiguous() for name, tensor in saved.tensors.items()}
    with replacing(directory / WEIGHTS) as temporary:
        safetensors.torch.save_file(stored, temporary, metadata={"format": "pt"})
    notes: dict[str, Any] = {} if saved.base_digest is None else {"base_digest": saved.base_digest}
    write_json(directory / NOTES, notes | ({} if saved.shift is None else {"score_shift": saved.shift}))
    adapter = saved.adapter
    tree = {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": ["score"] if saved.kind == "scalar" else None,
        "peft_type": "LORA",
        "r": adapter.rank,
        "target_modules": list(adapter.targets),
        "task_type": TASKS[saved.kind],
        "use_rslora": adapter.rslora,
    }
    if adapter.tokens:
        tables = [name.split(".")[-2] for name in saved.tensors if name.endswith(".rows")]
        ids = list(adapter.tokens)
        # A plain list is for the embedding, and for a head that is tied to it.
        tree["trainable_token_indices"] = ids if len(tables) == 1 else dict.fromkeys(tables, ids)
    write_json(directory / CONFIG, tree)


def check_base(saved: Saved, directory: Path) -> None:
    """Raises `ArtifactError` when the base is not, bit for bit, the one these adapters were trained on."""
    base = saved.adapter.base
    if base is not None and saved.base_digest is not None and base_digest(base) != saved.base_digest:
        raise ArtifactError(
            "the base model has changed since these adapters were trained on it",
            got=base,
            where=directory / CONFIG,
            do="bring back the base as it was, or train the adapters again",
        )


def base_digest(base: Path) -> str:
    """Digest of a directory's weight files. Adapters hold their own base's, so it covers what lies below."""
    return digest_json({path.name: digest_file(path) for path in sorted(base.glob("*.safetensors"))})


def _read_tensors(directory: Path, kind: Kind) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path, name, tensor in file_tensors(directory, WEIGHTS):
        check_finite(name, tensor, path)
        ours = _ours(name)
        if ours is None or (ours == HEAD and kind != "scalar"):
            raise ArtifactError(f"tensor '{name}' is not part of an adapter", where=path)
        found[ours] = tensor
    return found


def _ours(name: str) -> str | None:
    """A tensor's name in an adapted model, from that in a file; None for what no adapter has."""
    inner = name.removeprefix(PREFIX)
    if inner.endswith((".lora_A.weight", ".lora_B.weight")):
        inner = inner.removesuffix(".weight")
    elif inner.endswith(ROWS):
        inner = inner.removesuffix(ROWS) + ".rows"
    elif inner != HEAD:
        return None
    return inner if name.startswith(PREFIX) else None


def _theirs(name: str) -> str:
    """The other way round."""
    if name.endswith(".rows"):
        return PREFIX + name.removesuffix(".rows") + ROWS
    return PREFIX + (name if name == HEAD else f"{name}.weight")


def _adapter(tree: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path, base: Path) -> Adapter:
    rank, alpha, rslora = tree.get("r"), tree.get("lora_alpha"), tree.get("use_rslora", False)
    targets = tree.get("target_modules")
    if type(rank) is not int or not isinstance(alpha, int | float) or type(rslora) is not bool:
        raise ArtifactError(
            "r, lora_alpha or use_rslora is not usable", got=(rank, alpha, rslora), where=path
        )
    if isinstance(targets, str):  # A pattern: it is not run, the tensors tell which layers it fitted.
        targets = sorted({n.rpartition(".")[0] for n in tensors if n.endswith((".lora_A", ".lora_B"))})
    if not isinstance(targets, list) or not all(isinstance(one, str) for one in targets):
        raise ArtifactError("target_modules is not a list of names", got=targets, where=path)
    try:
        tokens = _tokens(tree.get("trainable_token_indices"), tensors, path)
        return Adapter(rank, float(alpha), tuple(sorted(targets)), rslora, base, tokens)
    except UsageError as error:
        raise ArtifactError(error.what, got=error.got, where=path) from None


def _tokens(told: Any, tensors: Container[str], path: Path) -> tuple[int, ...]:
    """The ids with rows of their own in the embedding, and in the head where it is named as well: else its
    rows are those of the base."""
    tables = told if isinstance(told, dict) else {"embed_tokens": told or []}
    ids = tables.get("embed_tokens")
    if not isinstance(ids, list) or not all(type(one) is int for one in ids):
        raise ArtifactError("trainable_token_indices names no rows of embed_tokens", got=told, where=path)
    if not set(tables) <= {"embed_tokens", "lm_head"} or tables.get("lm_head", ids) != ids:
        raise ArtifactError("trainable_token_indices differs between tables", got=told, where=path)
    if "lm_head" in tables and HEAD_ROWS not in tensors:
        raise ArtifactError(f"tensor '{HEAD_ROWS}' is missing", where=path.with_name(WEIGHTS))
    return tuple(ids)


def _path_from(directory: Path, base: Path) -> str:
    real, home = base.resolve(), directory.resolve()
    return Path(relpath(real, home) if real.is_relative_to(home.parent) else real).as_posix()
