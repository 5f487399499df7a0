"""Model directories: what is saved comes back bit for bit, and every kind of damage is an ArtifactError that
names the file and the tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bloomery.errors import ArtifactError
from bloomery.models import LlamaConfig, ScalarModel, build, init, load, save

CONFIG = LlamaConfig.shape(16, 2, 2, 40, context=32, tied=False)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = build(CONFIG)
    init(model, 0)
    save(model, tmp_path, eos_id=5, pad_id=0)
    return tmp_path


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_and_config_come_back(dtype: torch.dtype, tied: bool, tmp_path: Path) -> None:
    model = build(LlamaConfig.shape(16, 2, 2, 40, tied=tied)).to(dtype)
    init(model, 1)
    save(model, tmp_path)
    again = load(tmp_path, dtype=dtype)
    assert again.config == model.config
    assert all(torch.equal(a, again.state_dict()[name]) for name, a in model.state_dict().items())
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == str(dtype).split(".")[1]
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not tied
    assert all(p.requires_grad for p in again.parameters())
    assert not list(tmp_path.glob(".*"))


def test_a_loaded_model_is_its_own(saved: Path) -> None:
    model = load(saved)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert load(saved).lm_head.weight.abs().sum() > 0


def test_saving_again_replaces(saved: Path) -> None:
    model = load(saved)
    with torch.no_grad():
        model.lm_head.weight.fill_(1)
    save(model, saved)
    assert torch.equal(load(saved).lm_head.weight, model.lm_head.weight)
    assert load(saved).config.eos_token_id == 5


def test_a_shift_survives(tmp_path: Path) -> None:
    scalar = ScalarModel(CONFIG)
    init(scalar, 0)
    scalar.shift.fill_(0.1)
    save(scalar, tmp_path)
    assert "shift" not in load_file(tmp_path / "model.safetensors")
    assert torch.equal(load(tmp_path, "scalar").shift, scalar.shift)
    edit_json(tmp_path / "config.json", bloomery_score_shift="much")
    with pytest.raises(ArtifactError, match="bloomery_score_shift"):
        load(tmp_path, "scalar")


def test_kinds_are_not_confused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a scalar model"):
        load(saved, "scalar")
    scalar = ScalarModel(CONFIG)
    init(scalar, 0)
    save(scalar, tmp_path / "scalar")
    with pytest.raises(ArtifactError, match="not a causal model"):
        load(tmp_path / "scalar")
    edit_json(tmp_path / "scalar" / "config.json", id2label={"0": "a", "1": "b"})
    with pytest.raises(ArtifactError, match="one label"):
        load(tmp_path / "scalar", "scalar")


NAME = "model.layers.1.mlp.up_proj.weight"
DAMAGE = {
    "missing": lambda w: w.pop(NAME),
    "another shape": lambda w: w.update({NAME: w[NAME][1:].contiguous()}),
    "not finite": lambda w: w[NAME][0, 0].fill_(float("nan")),
    "not part of this model": lambda w: w.update({NAME + "s": torch.ones(1)}),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_tensors_are_named(saved: Path, what: str) -> None:
    edit_weights(saved, DAMAGE[what])
    with pytest.raises(ArtifactError, match=what) as caught:
        load(saved)
    assert NAME in str(caught.value)
    assert "model.safetensors" in str(caught.value)


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_truncated_files_are_named(saved: Path, keep: int) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"model\.safetensors: this is not a whole safetensors file"):
        load(saved)


def test_absent_or_broken_files_are_named(saved: Path) -> None:
    with pytest.raises(ArtifactError, match=r"nowhere/config\.json"):
        load(saved / "nowhere")
    (saved / "model.safetensors").rename(saved / "elsewhere")
    with pytest.raises(ArtifactError, match=r"model\.safetensors: there is no such file"):
        load(saved)
    (saved / "config.json").write_text('{"model_type": ')
    with pytest.raises(ArtifactError, match=r"config\.json: this is not JSON"):
        load(saved)
    (saved / "config.json").write_text("[]")
    with pytest.raises(ArtifactError, match="not a JSON object"):
        load(saved)


def test_foreign_code_and_unknown_families_are_refused(saved: Path) -> None:
    edit_json(saved / "config.json", auto_map={"AutoModel": "evil.Model"})
    with pytest.raises(ArtifactError, match="code of its own"):
        load(saved)
    (saved / "config.json").write_text('{"model_type": "gpt9"}')
    with pytest.raises(ArtifactError, match="unknown model_type"):
        load(saved)


def test_tied_files_that_also_hold_the_head(tmp_path: Path) -> None:
    model = build(LlamaConfig.shape(16, 1, 2, 40, tied=True))
    init(model, 0)
    save(model, tmp_path)
    edit_weights(tmp_path, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    assert torch.equal(load(tmp_path).model.embed_tokens.weight, model.model.embed_tokens.weight)
    edit_weights(tmp_path, lambda w: w["lm_head.weight"].add_(1))
    with pytest.raises(ArtifactError, match=r"lm_head\.weight"):
        load(tmp_path)


def test_shards(saved: Path) -> None:
    expected = load(saved).state_dict()
    weights = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    names = sorted(weights)
    placed = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(placed.values()):
        save_file({n: weights[n] for n in names if placed[n] == shard}, saved / shard)
    index = saved / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    assert all(torch.equal(t, expected[n]) for n, t in load(saved).state_dict().items())

    index.write_text(json.dumps({"weight_map": {**placed, "more": placed[names[0]]}}))
    with pytest.raises(ArtifactError, match="'more' is in the index but in no shard"):
        load(saved)
    swapped = {**placed, names[0]: placed[names[1]]}
    index.write_text(json.dumps({"weight_map": swapped}))
    with pytest.raises(ArtifactError, match=names[0].replace(".", r"\.")):
        load(saved)
    index.write_text(json.dumps({"weight_map": {n: "../" + s for n, s in placed.items()}}))
    with pytest.raises(ArtifactError, match="must lie in the model directory"):
        load(saved)
    index.write_text(json.dumps({"weight_map": 3}))
    with pytest.raises(ArtifactError, match="no weight_map"):
        load(saved)


def test_links_out_of_the_directory_are_refused_and_a_hub_cache_is_not(saved: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    blob = tmp_path / "models--a--b" / "blobs" / "123"
    blob.parent.mkdir()
    blob.write_bytes((saved / "model.safetensors").read_bytes())
    (snapshot / "config.json").write_bytes((saved / "config.json").read_bytes())
    (snapshot / "model.safetensors").symlink_to("../../blobs/123")
    load(snapshot)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(saved / "model.safetensors")
    with pytest.raises(ArtifactError, match="must lie in the model directory"):
        load(snapshot)


def test_a_model_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    model = build(CONFIG)
    init(model, 0)
    with torch.no_grad():
        model.model.norm.weight[3] = float("inf")
    with pytest.raises(ArtifactError, match=r"model\.norm\.weight"):
        save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tokenizer_files_and_ids_come_along(saved: Path, tmp_path: Path) -> None:
    source = tmp_path / "tokenizer"
    source.mkdir()
    added = [{"id": 0, "content": "<|pad|>"}, {"id": 5, "content": "<|end|>"}]
    tree = {"added_tokens": added, "model": {"vocab": {"<|pad|>": 0, "a": 6, "b": 39}}}
    (source / "tokenizer.json").write_text(json.dumps(tree))
    settings = {"eos_token": {"content": "<|end|>"}, "pad_token": "<|pad|>", "bos_token": None}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    (source / "chat_template.jinja").write_text("{{ messages }}")
    model, out = load(saved), tmp_path / "out"
    save(model, out, tokenizer_dir=source)
    config = load(out).config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, 5, 0)
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"

    tree["model"]["vocab"]["c"] = 40
    (source / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(ArtifactError, match="beyond the model's vocabulary"):
        save(model, out, tokenizer_dir=source)
    (source / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 1}}}))
    with pytest.raises(ArtifactError, match="eos_token is not a token"):
        save(model, out, tokenizer_dir=source)
