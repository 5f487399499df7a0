"""Model directories in Hugging Face's layout: config.json, model.safetensors, generation_config.json.

What is written here loads in transformers (`AutoModelForCausalLM`, `AutoModelForSequenceClassification`)
without any code of ours, and what transformers writes loads here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bloomery.errors import ArtifactError
from bloomery.models.config import LlamaConfig
from bloomery.models.families import Kind, families
from bloomery.models.llama import Llama, ScalarModel

SHIFT = "bloomery_score_shift"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
# Buffers that older versions of transformers stored; they follow from the config.
DERIVED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.(inv_freq|original_inv_freq)")
DTYPES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float64: "float64",
}


@overload
def load(
    directory: Path | str, kind: Literal["causal"] = "causal", *, dtype: torch.dtype = ..., device: str = ...
) -> Llama: ...
@overload
def load(
    directory: Path | str, kind: Literal["scalar"], *, dtype: torch.dtype = ..., device: str = ...
) -> ScalarModel: ...
def load(
    directory: Path | str,
    kind: Kind = "causal",
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Llama | ScalarModel:
    """Read a model directory; the weights are converted to `dtype`.

    Raises `ArtifactError` naming the file and the tensor when anything is missing, of another shape, not
    finite, or not part of the model, and when the directory holds the other kind of model.
    """
    directory = Path(directory)
    tree = read_json(directory / "config.json")
    config = read_config(directory)
    family = families[str(tree.get("model_type"))]
    _check_kind(tree, family.architectures, kind, directory)
    with torch.device("meta"):
        model: Llama | ScalarModel = (family.causal if kind == "causal" else family.scalar)(config)
    expected = {name: tensor for name, tensor in model.state_dict().items() if name != "shift"}
    weights = _read_weights(directory, expected, dtype, device)
    if isinstance(model, ScalarModel):
        shift = tree.get(SHIFT, 0.0)
        if type(shift) not in (int, float) or not -float("inf") < shift < float("inf"):
            raise ArtifactError(f"{SHIFT} is not a number", got=shift, where=directory / "config.json")
        weights["shift"] = torch.tensor(shift, dtype=dtype, device=device)
    model.load_state_dict(weights, strict=True, assign=True)
    model.to(device=device, dtype=dtype)
    return model


def read_config(directory: Path | str) -> LlamaConfig:
    """The config of a model directory. Raises `ArtifactError`, also for an unknown `model_type`."""
    path = Path(directory) / "config.json"
    tree = read_json(path)
    if "auto_map" in tree:
        raise ArtifactError(
            "this model asks to run code of its own", got=tree["auto_map"], where=path, do="it is never run"
        )
    name = str(tree.get("model_type"))
    if name not in families:
        raise ArtifactError("unknown model_type", got=name, expected=", ".join(families), where=path)
    return families[name].config.from_json(tree, path)


def save(
    model: Llama | ScalarModel,
    directory: Path | str,
    *,
    tokenizer_dir: Path | str | None = None,
    eos_id: int | None = None,
    pad_id: int | None = None,
) -> None:
    """Write a model directory; each file appears whole or not at all, config.json last.

    With `tokenizer_dir` the tokenizer's files are copied in and its eos, pad and bos tokens become the
    model's; `eos_id` and `pad_id` overrule. Raises `ArtifactError` when a weight is not finite (nothing is
    written then) or the tokenizer has ids beyond the vocabulary.
    """
    directory = Path(directory)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    shift = weights.pop("shift", None)
    for name, tensor in weights.items():
        _check_finite(name, tensor, directory / "model.safetensors")
    config = model.config
    if tokenizer_dir is not None:
        config = replace(config, **_special_ids(Path(tokenizer_dir), config.vocab_size))
    if eos_id is not None:
        config = replace(config, eos_token_id=eos_id)
    if pad_id is not None:
        config = replace(config, pad_token_id=pad_id)

    directory.mkdir(parents=True, exist_ok=True)
    if tokenizer_dir is not None and Path(tokenizer_dir).resolve() != directory.resolve():
        for name in TOKENIZER_FILES:
            if (source := Path(tokenizer_dir) / name).exists():
                with _replacing(directory / name) as temporary:
                    shutil.copyfile(source, temporary)
    with _replacing(directory / "model.safetensors") as temporary:
        safetensors.torch.save_file(weights, temporary, metadata={"format": "pt"})
    tree = _config_tree(model, config, next(iter(weights.values())).dtype)
    if shift is None:
        special = {k: tree[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
        _write_json(directory / "generation_config.json", {"_from_model_config": True, **special})
    else:
        tree[SHIFT] = shift.item()
    _write_json(directory / "config.json", tree)
    _sync(directory)


def _config_tree(model: Llama | ScalarModel, config: LlamaConfig, dtype: torch.dtype) -> dict[str, Any]:
    tree = config.to_json()
    kind: Kind = "scalar" if isinstance(model, ScalarModel) else "causal"
    tree["architectures"] = [families[tree["model_type"]].architectures[kind]]
    tree["torch_dtype"] = DTYPES[dtype]
    if kind == "scalar":
        # transformers reads the number of labels from these two.
        tree["id2label"], tree["label2id"] = {"0": "score"}, {"score": 0}
    return tree


def _check_kind(tree: dict[str, Any], architectures: dict[Kind, str], kind: Kind, directory: Path) -> None:
    named = tree.get("architectures") or []
    other: Kind = "scalar" if kind == "causal" else "causal"
    if architectures[other] in named and architectures[kind] not in named:
        raise ArtifactError(
            f"this is not a {kind} model",
            got=", ".join(named),
            expected=architectures[kind],
            where=directory / "config.json",
            do="ScalarModel.from_causal starts a scalar model from a causal one"
            if kind == "scalar"
            else None,
        )
    if kind == "scalar" and (tree.get("num_labels", 1) != 1 or len(tree.get("id2label", {"0": ""})) != 1):
        raise ArtifactError(
            "a scalar model has one label", got=tree.get("id2label"), where=directory / "config.json"
        )


def _read_weights(
    directory: Path, expected: dict[str, Tensor], dtype: torch.dtype, device: str
) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    tied: Tensor | None = None
    for path, name, tensor in _tensors(directory):
        if DERIVED.fullmatch(name):
            continue
        _check_finite(name, tensor, path)
        if name == "lm_head.weight" and name not in expected:
            tied = tensor
            continue
        if name not in expected:
            raise ArtifactError(f"tensor '{name}' is not part of this model", where=path)
        if tensor.shape != expected[name].shape:
            raise ArtifactError(
                f"tensor '{name}' has another shape than config.json says",
                got=tuple(tensor.shape),
                expected=tuple(expected[name].shape),
                where=path,
            )
        weights[name] = tensor.to(device=device, dtype=dtype, copy=True)
    if missing := sorted(set(expected) - set(weights)):
        raise ArtifactError(
            f"tensor '{missing[0]}' is missing" + (f" and {len(missing) - 1} more" if missing[1:] else ""),
            where=directory / "model.safetensors",
        )
    embeddings = weights["model.embed_tokens.weight"]
    if tied is not None and not torch.equal(tied.to(embeddings), embeddings):
        raise ArtifactError(
            "tensor 'lm_head.weight' differs from the embeddings, which config.json says it is tied to",
            where=directory,
            do="set tie_word_embeddings to false in config.json if they are meant to differ",
        )
    return weights


def _tensors(directory: Path) -> Iterator[tuple[Path, str, Tensor]]:
    """Every tensor of model.safetensors or, where there is an index instead, of its shards."""
    index = directory / "model.safetensors.index.json"
    if (directory / "model.safetensors").exists() or not index.exists():
        yield from _file_tensors(directory, "model.safetensors")
        return
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(shard, str) for shard in placed.values()):
        raise ArtifactError("the index has no weight_map of tensor names to file names", where=index)
    seen: set[str] = set()
    for shard in sorted(set(placed.values())):
        for path, name, tensor in _file_tensors(directory, shard):
            if placed.get(name) != shard:
                raise ArtifactError(f"tensor '{name}' is in this shard but not so in the index", where=path)
            seen.add(name)
            yield path, name, tensor
    if missing := sorted(set(placed) - seen):
        raise ArtifactError(f"tensor '{missing[0]}' is in the index but in no shard", where=index)


def _file_tensors(directory: Path, name: str) -> Iterator[tuple[Path, str, Tensor]]:
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


def _check_finite(name: str, tensor: Tensor, path: Path) -> None:
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


def _special_ids(directory: Path, vocab_size: int) -> dict[str, Any]:
    """bos, eos and pad ids of a tokenizer directory. Raises `ArtifactError` for ids beyond the vocabulary."""
    tokenizer, settings = (read_json(directory / n) for n in ("tokenizer.json", "tokenizer_config.json"))
    added = {str(t["content"]): int(t["id"]) for t in tokenizer.get("added_tokens", [])}
    vocab = {**tokenizer.get("model", {}).get("vocab", {}), **added}
    if (largest := max(vocab.values(), default=-1)) >= vocab_size:
        raise ArtifactError(
            "the tokenizer has ids beyond the model's vocabulary",
            got=largest,
            expected=f"at most {vocab_size - 1}",
            where=directory / "tokenizer.json",
        )
    ids: dict[str, Any] = {}
    for name in ("bos_token", "eos_token", "pad_token"):
        token = settings.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if text is not None and text not in vocab:
            raise ArtifactError(f"{name} is not a token", got=text, where=directory / "tokenizer_config.json")
        ids[f"{name}_id"] = None if text is None else vocab[text]
    return ids


class _replacing:
    """`with _replacing(path) as temporary`: write there; on leaving, it is synced and takes path's place."""

    def __init__(self, path: Path) -> None:
        self.path, self.temporary = path, path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.temporary.unlink(missing_ok=True)
            return
        _sync(self.temporary)
        os.replace(self.temporary, self.path)


def _write_json(path: Path, tree: dict[str, Any]) -> None:
    with _replacing(path) as temporary:
        temporary.write_text(json.dumps(tree, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
