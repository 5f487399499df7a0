"""Model directories in Hugging Face's layout: config.json, model.safetensors, generation_config.json.

What is written here loads in transformers (`AutoModelForCausalLM`, `AutoModelForSequenceClassification`)
without any code of ours, and what transformers writes loads here. A directory of adapters (see `peft`) stands
for its base model with the adapters folded in.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

import safetensors.torch
import torch
from torch import Tensor, nn

from bloomery.errors import ArtifactError, UsageError
from bloomery.lineage import sync
from bloomery.models import lora, peft
from bloomery.models.config import LlamaConfig
from bloomery.models.families import Kind, families
from bloomery.models.files import check_finite, file_tensors, read_json, replacing, write_json
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
    directory: Path | str,
    kind: Literal["causal"] = "causal",
    *,
    dtype: torch.dtype = ...,
    device: str = ...,
    merge: bool = ...,
    base: Path | str | None = ...,
) -> Llama: ...
@overload
def load(
    directory: Path | str,
    kind: Literal["scalar"],
    *,
    dtype: torch.dtype = ...,
    device: str = ...,
    merge: bool = ...,
    base: Path | str | None = ...,
) -> ScalarModel: ...
def load(
    directory: Path | str,
    kind: Kind = "causal",
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    merge: bool = True,
    base: Path | str | None = None,
) -> Llama | ScalarModel:
    """Read a model directory; the weights are converted to `dtype`.

    Of a directory of adapters, the base model it names is read and the adapters are folded into it; with
    `merge=False` they stay apart, and only they can be trained. `base` is where the base model is, if not
    where the adapters say.

    Raises `ArtifactError` naming the file and the tensor when anything is missing, of another shape, not
    finite, or not part of the model, when the directory holds the other kind of model, and when adapters were
    trained on another base.
    """
    directory = Path(directory)
    if peft.is_adapter(directory):
        model = _load_adapted(directory, kind, dtype, device, base)
        return lora.fold(model) if merge else model
    if base is not None:
        raise UsageError("only adapters have a base", got=base, where=directory)
    return _load_whole(directory, kind, dtype, device)


def load_beside(directory: Path, other: nn.Module) -> ScalarModel:
    """A scalar model to be used beside another model, on its device.

    Where both are adapters, those of the scalar model stay apart (only they and its head can be trained) and
    what is frozen in it uses the other's memory, wherever their bases are the same: one trunk for a policy,
    its reward model and its critic. A whole model has a trunk of its own.
    """
    together = peft.is_adapter(directory) and lora.adapter_of(other) is not None
    model = load(directory, "scalar", merge=not together).to(next(other.parameters()).device)
    if together:
        lora.share(model, other)
    return model


def _load_whole(directory: Path, kind: Kind, dtype: torch.dtype, device: str) -> Llama | ScalarModel:
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


def _load_adapted(
    directory: Path, kind: Kind, dtype: torch.dtype, device: str, base: Path | str | None
) -> Llama | ScalarModel:
    saved = peft.read(directory, None if base is None else Path(base))
    if saved.kind != kind:
        raise ArtifactError(f"these are not adapters of a {kind} model", got=saved.kind, where=directory)
    peft.check_base(saved, directory)
    home = saved.adapter.base or directory
    model: Llama | ScalarModel
    if kind == "causal":
        model = load(home, dtype=dtype, device=device)
    elif kind_of(home) == "scalar":
        model = load(home, "scalar", dtype=dtype, device=device)
    elif peft.HEAD in saved.tensors:
        model = ScalarModel.from_causal(load(home, dtype=dtype, device=device), seed=0)
    else:
        raise ArtifactError(f"tensor '{peft.HEAD}' is missing, also from the base", where=directory)
    targets = lora.fitting(model, saved.adapter.targets)
    if not targets:
        raise ArtifactError(
            "the adapters fit no layer", got=", ".join(saved.adapter.targets), where=directory / peft.CONFIG
        )
    try:
        lora.attach(model, replace(saved.adapter, targets=targets))
    except UsageError as error:
        raise ArtifactError(
            error.what, got=error.got, expected=error.expected, where=directory / peft.CONFIG
        ) from None
    peft.fill(model, saved, directory)
    return model


def is_model(directory: Path | str) -> bool:
    """Whether there is a model directory here, of a whole model or of adapters."""
    return (Path(directory) / "config.json").is_file() or peft.is_adapter(Path(directory))


def kind_of(directory: Path | str) -> Kind:
    """Which kind of model a directory holds. Raises `ArtifactError` when it holds none."""
    directory = Path(directory)
    if peft.is_adapter(directory):
        return peft.kind_of(directory)
    tree = read_json(directory / "config.json")
    read_config(directory)
    scalar = families[str(tree["model_type"])].architectures["scalar"]
    return "scalar" if scalar in (tree.get("architectures") or []) else "causal"


def read_config(directory: Path | str) -> LlamaConfig:
    """The config of a model directory, of adapters that of their base. Raises `ArtifactError`, also for an
    unknown `model_type`."""
    if peft.is_adapter(Path(directory)):
        return read_config(peft.base_of(Path(directory)))
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
    merge: bool = False,
) -> None:
    """Write a model directory; each file appears whole or not at all, config.json last.

    A model with adapters becomes a directory of adapters, or with `merge` a whole model, them folded in.
    With `tokenizer_dir` the tokenizer's files are copied in and its eos, pad and bos tokens become the
    model's; `eos_id` and `pad_id` overrule. Raises `ArtifactError` when a weight is not finite (nothing is
    written then), when the tokenizer has ids beyond the vocabulary, and rather than put adapters and a whole
    model into one directory.
    """
    directory = Path(directory)
    config = model.config
    if tokenizer_dir is not None:
        config = replace(config, **_special_ids(Path(tokenizer_dir), config.vocab_size))
    adapter = None if merge else lora.adapter_of(model)
    weights = lora.plain_state(model) if adapter is None else model.state_dict()
    for name, tensor in weights.items():
        check_finite(name, tensor, directory / ("model.safetensors" if adapter is None else peft.WEIGHTS))
    taken = directory / ("config.json" if adapter is not None else peft.CONFIG)
    if taken.exists():
        raise ArtifactError(
            "this directory holds another kind of model", where=taken, do="choose another directory"
        )
    if eos_id is not None:
        config = replace(config, eos_token_id=eos_id)
    if pad_id is not None:
        config = replace(config, pad_token_id=pad_id)
    if adapter is not None and (eos_id is not None or pad_id is not None):
        raise UsageError("adapters have the special ids of their base", do="save with merge, or without ids")
    directory.mkdir(parents=True, exist_ok=True)
    if tokenizer_dir is not None:
        copy_tokenizer(Path(tokenizer_dir), directory)
    if adapter is None:
        _save_whole(model, config, directory)
    else:
        peft.write(model, adapter, directory)
    sync(directory)


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Copy a tokenizer's files, those that there are, into a directory."""
    for name in TOKENIZER_FILES:
        if (source / name).exists() and source.resolve() != directory.resolve():
            with replacing(directory / name) as temporary:
                shutil.copyfile(source / name, temporary)


def _save_whole(model: Llama | ScalarModel, config: LlamaConfig, directory: Path) -> None:
    weights = {n: t.detach().cpu().contiguous() for n, t in lora.plain_state(model).items()}
    shift = weights.pop("shift", None)
    with replacing(directory / "model.safetensors") as temporary:
        safetensors.torch.save_file(weights, temporary, metadata={"format": "pt"})
    tree = _config_tree(model, config, next(iter(weights.values())).dtype)
    if shift is None:
        special = {k: tree[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
        write_json(directory / "generation_config.json", {"_from_model_config": True, **special})
    else:
        tree[SHIFT] = shift.item()
    write_json(directory / "config.json", tree)


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
            do="`bloomery reward` makes a reward model of it (in code: ScalarModel.from_causal)"
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
        check_finite(name, tensor, path)
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
        yield from file_tensors(directory, "model.safetensors")
        return
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(shard, str) for shard in placed.values()):
        raise ArtifactError("the index has no weight_map of tensor names to file names", where=index)
    seen: set[str] = set()
    for shard in sorted(set(placed.values())):
        for path, name, tensor in file_tensors(directory, shard):
            if placed.get(name) != shard:
                raise ArtifactError(f"tensor '{name}' is in this shard but not so in the index", where=path)
            seen.add(name)
            yield path, name, tensor
    if missing := sorted(set(placed) - seen):
        raise ArtifactError(f"tensor '{missing[0]}' is in the index but in no shard", where=index)


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
