"""What is exported, read by PEFT and by transformers alone, from another directory: the same logits."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bloomery.cli import main
from bloomery.models import Llama, ScalarModel, hub, lora
from bloomery.models.lora import Adapter, adapted
from bloomery.text.tokenizer import Tokenizer

_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parent.parent / "stages" / "tiny.py")
assert _spec is not None
assert _spec.loader is not None
tiny: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bases and adapters on them, with a tokenizer: policy, judge, and twice (adapters on adapters)."""
    root = tmp_path_factory.mktemp("place")
    tokenizer = tiny.tokenizer()
    tokenizer.save(root / "tokenizer")
    size = tokenizer.vocab_size
    bases = {"base": tiny.language_model(size, 0, width=32), "scored": tiny.scalar_model(size, 7)}
    bases["scored"].shift.fill_(0.25)
    for name, model in bases.items():
        hub.save(model, root / name, tokenizer_dir=root / "tokenizer")
    learn(hub.load(root / "base"), root / "base", root / "policy")
    learn(hub.load(root / "scored", "scalar"), root / "scored", root / "judge")
    learn(hub.load(root / "policy"), root / "policy", root / "twice", targets=("up_proj",))
    return root


def learn(model: Llama | ScalarModel, base: Path, out: Path, **changed: Any) -> None:
    """Adapters with something in them, saved as a stage saves them."""
    settings: dict[str, Any] = {"rank": 2, "alpha": 3.0, "targets": ("q_proj", "down_proj"), "rslora": True}
    lora.attach(model, Adapter(**(settings | changed), base=base))
    generator = torch.Generator().manual_seed(len(out.name))
    with torch.no_grad():
        for layer in adapted(model).values():
            for part in (layer.lora_A, layer.lora_B):
                part.copy_(0.3 * torch.randn(part.shape, generator=generator))
    hub.save(model, out, tokenizer_dir=base)


def tokens(model: nn.Module) -> Tensor:
    size = model.config.vocab_size  # type: ignore[union-attr]
    return torch.randint(1, int(size), (2, 9), generator=torch.Generator().manual_seed(1))  # type: ignore[arg-type]


def ours(directory: Path) -> Tensor:
    """Logits `[B, T, V]`, or scores `[B, 1]` of the last tokens."""
    with torch.no_grad():
        if hub.kind_of(directory) == "scalar":
            judge = hub.load(directory, "scalar")
            return judge(tokens(judge))[:, -1:] - judge.shift
        model = hub.load(directory)
        return model.logits(model(tokens(model)))


# ------------------------------------------------------------------------------------------------ peft


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks transformers
@pytest.mark.parametrize("name", ["policy", "judge"])
def test_peft_reads_exported_adapters_from_anywhere(
    name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = pytest.importorskip("peft")
    monkeypatch.chdir(place)
    assert main(["export", "peft", name, str(tmp_path / "out")]) == 0  # a relative name, as people type it
    monkeypatch.chdir(tmp_path)
    causal = name == "policy"
    auto = library.AutoPeftModelForCausalLM if causal else library.AutoPeftModelForSequenceClassification
    labels = {} if causal else {"num_labels": 1}
    theirs = auto.from_pretrained("out", dtype=torch.float32, **labels)
    with torch.no_grad():
        got = theirs(tokens(theirs)).logits
    want = ours(place / name)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    assert (want - ours(place / ("base" if causal else "scored"))).abs().max() > 0.01


def test_tensors_keep_every_bit_and_the_tokenizer_comes_along(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, said in (("policy", "a causal model, rank 2"), ("judge", "scores elsewhere lack 0.25")):
        out = tmp_path / name
        assert main(["export", "peft", str(place / name), str(out)]) == 0
        assert said in capsys.readouterr().out
        before, after = load_file(place / name / WEIGHTS), load_file(out / WEIGHTS)
        assert list(before) == list(after)
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert Tokenizer.load(out).vocab_size == Tokenizer.load(place / name).vocab_size
        torch.testing.assert_close(ours(out), ours(place / name), atol=0, rtol=0)
        assert not {"model.safetensors", "config.json"} & {path.name for path in out.iterdir()}


def test_the_base_may_be_named_as_it_is_known_elsewhere(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def named(out: Path) -> str:
        tree = json.loads((out / "adapter_config.json").read_text())
        return str(tree["base_model_name_or_path"])

    assert main(["export", "peft", str(place / "policy"), str(tmp_path / "a")]) == 0
    assert named(tmp_path / "a") == str((place / "base").resolve())
    lonely = shutil.copytree(place / "policy", tmp_path / "lonely")
    assert main(["export", "peft", str(lonely), str(tmp_path / "b"), "--base", "somebody/a-model"]) == 0
    assert named(tmp_path / "b") == "somebody/a-model"
    shutil.copytree(place / "base", tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert main(["export", "peft", str(lonely), "c", "--base", "moved"]) == 0
    assert named(tmp_path / "c") == str(tmp_path / "moved")


# ---------------------------------------------------------------------------------------------- merged


@pytest.mark.parametrize("name", ["policy", "judge", "twice"])
def test_transformers_loads_a_merged_model_by_itself(
    name: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    out = tmp_path / "out"
    assert main(["export", "merged", str(place / name), str(out)]) == 0
    said = capsys.readouterr().out
    assert "a whole model" in said
    assert ("lack 0.25" in said) is (name == "judge")
    auto = "AutoModelForSequenceClassification" if name == "judge" else "AutoModelForCausalLM"
    theirs = getattr(transformers, auto).from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        got = theirs(tokens(theirs)).logits
    torch.testing.assert_close(got, ours(place / name), atol=1e-5, rtol=0)
    assert len(transformers.AutoTokenizer.from_pretrained(out)) == Tokenizer.load(place / name).vocab_size


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_merged_weights_are_those_that_peft_merges(place: Path, tmp_path: Path) -> None:
    library, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    assert main(["export", "merged", str(place / "policy"), str(tmp_path / "out")]) == 0
    base = transformers.AutoModelForCausalLM.from_pretrained(place / "base", dtype=torch.float32)
    folded = library.PeftModel.from_pretrained(base, place / "policy", torch_device="cpu").merge_and_unload()
    mine, start = (
        load_file(tmp_path / "out" / "model.safetensors"),
        load_file(place / "base" / "model.safetensors"),
    )
    theirs = folded.state_dict()
    for key, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[key], atol=1e-6, rtol=0)
        assert torch.equal(tensor, start[key]) is not key.endswith(("q_proj.weight", "down_proj.weight")), key


def test_merged_weights_can_be_smaller_on_disk(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["export", "merged", str(place / "policy"), str(out), "--dtype", "bfloat16"]) == 0
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    whole = hub.load(place / "policy").state_dict()
    for key, tensor in hub.load(out).state_dict().items():
        assert torch.equal(tensor, whole[key].to(torch.bfloat16).float()), "rounded once, after folding"


# --------------------------------------------------------------------------------------------- refused


def test_what_cannot_be_exported(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    changed = shutil.copytree(place / "policy", tmp_path / "changed")
    lonely = shutil.copytree(place / "policy", tmp_path / "lonely")
    for words, code, said in (
        (["peft", place / "base", tmp_path / "x"], 2, "there are no adapters here"),
        (["merged", place / "base", tmp_path / "x"], 2, "a whole model"),
        (["peft", place / "nowhere", tmp_path / "x"], 2, "no model"),
        (["peft", place / "policy", taken], 2, "not a new directory"),
        (["merged", place / "policy", taken], 2, "not a new directory"),
        (["peft", place / "twice", tmp_path / "x"], 2, "bloomery export merged"),
        (["peft", lonely, tmp_path / "x"], 1, "the base model of these adapters is not here"),
        (["peft", changed, tmp_path / "x", "--base", place / "scored"], 1, "the base model has changed"),
    ):
        assert main(["export", *map(str, words)]) == code, words
        assert said in capsys.readouterr().err
    assert [path.name for path in taken.iterdir()] == ["notes.txt"]
    assert not (tmp_path / "x").exists()
