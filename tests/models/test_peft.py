"""Adapter directories against the PEFT library, live where it is installed and by golden files it wrote; what
is saved comes back bit for bit, and what is damaged, foreign or not supported is an error that names it."""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bloomery.errors import ArtifactError, UsageError
from bloomery.models import Llama, LlamaConfig, ScalarModel, hub, lora, peft
from bloomery.models.lora import Adapter, adapted

CONFIG = LlamaConfig.shape(16, 2, 4, 40, kv_heads=2, context=64, tied=False)
GOLDEN = Path(__file__).parent.parent / "golden"
FEW = ("q_proj", "v_proj")


def loud(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.2 + (1 if name.endswith("norm.weight") else 0))


def tokens() -> Tensor:
    return torch.randint(1, 40, (3, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    model = Llama(CONFIG)
    loud(model, 0)
    hub.save(model, tmp_path / "base", eos_id=5, pad_id=0)
    return tmp_path / "base"


@pytest.fixture
def scalar(tmp_path: Path) -> Path:
    model = ScalarModel(CONFIG)
    loud(model, 2)
    model.shift.fill_(0.1)
    hub.save(model, tmp_path / "scalar", pad_id=0)
    return tmp_path / "scalar"


def adapt(model: Llama | ScalarModel, home: Path | None, seed: int = 3, **changed: Any) -> None:
    """Adapters on a model, not as they begin but as if they had learned."""
    settings: dict[str, Any] = {"rank": 2, "alpha": 3.0, "targets": FEW, "rslora": True, "base": home}
    lora.attach(model, Adapter(**{**settings, **changed}))
    loud(nn.ParameterList(getattr(layer, n) for layer in adapted(model).values() for n in layer.learns), seed)


@pytest.fixture
def saved(base: Path, tmp_path: Path) -> Path:
    model = hub.load(base)
    adapt(model, base)
    hub.save(model, tmp_path / "adapters")
    return tmp_path / "adapters"


def edit_config(directory: Path, **changes: object) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = directory / "adapter_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


# ---------------------------------------------------------------------------------- the PEFT library


@pytest.mark.parametrize("case", ["causal", "rslora", "tokens", "scalar"])
def test_what_peft_wrote_computes_what_peft_computed(case: str, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("export_peft", GOLDEN / "export_peft.py")
    assert spec is not None
    assert spec.loader is not None
    export = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(export)
    golden = json.loads((GOLDEN / "peft.json").read_text())
    case_files = golden["cases"][case]
    hub.save(export.small(case), tmp_path / "base", pad_id=0)
    (tmp_path / "adapters").mkdir()
    for name, content in case_files.items():
        if name == "adapter_config.json":
            (tmp_path / "adapters" / name).write_text(json.dumps(content))
        elif name == "adapter_model.safetensors":
            (tmp_path / "adapters" / name).write_bytes(base64.b64decode(content))
    x, want = torch.tensor(golden["tokens"]), torch.tensor(case_files["logits"])
    for merge in (True, False):
        with torch.no_grad():
            if case == "scalar":
                scores = hub.load(tmp_path / "adapters", "scalar", merge=merge)(x)
                got = scores[[0, 1], [7, 6]][:, None]  # at the last token that is no padding
                plain = export.small(case)(x)[[0, 1], [7, 6]][:, None]
            else:
                model, start = hub.load(tmp_path / "adapters", merge=merge), export.small(case)
                got, plain = model.logits(model(x)).flatten(1), start.logits(start(x)).flatten(1)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
        assert (plain - want).abs().max() > 0.01, "these adapters would prove nothing"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks transformers
@pytest.mark.parametrize(
    ("head", "changed"),
    [
        ("causal", {"rslora": False}),
        ("causal", {"targets": lora.LAYERS, "rank": 4}),
        ("causal", {"tokens": (7, 1, 39)}),
        ("scalar", {"targets": lora.LAYERS}),
        ("scalar", {"tokens": (3,)}),
        ("scalar on causal", {}),
    ],
)
def test_peft_computes_what_we_saved_and_we_what_it_saves(
    head: str,
    changed: dict[str, Any],
    base: Path,
    scalar: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    out, x = tmp_path / "adapters", tokens()
    home = scalar if head == "scalar" else base
    if head == "causal":
        ours: Any = hub.load(base)
        auto = transformers.AutoModelForCausalLM
    else:
        ours = hub.load(scalar, "scalar") if head == "scalar" else ScalarModel.from_causal(hub.load(base), 7)
        auto = transformers.AutoModelForSequenceClassification
    adapt(ours, home, **changed)
    hub.save(ours, out)
    monkeypatch.chdir(out)  # PEFT reads a relative base path from here
    labels = {} if head == "causal" else {"num_labels": 1}
    theirs = library.PeftModel.from_pretrained(
        auto.from_pretrained(home, dtype=torch.float32, **labels), out, torch_device="cpu"
    )
    theirs.save_pretrained(tmp_path / "again")
    edit_config(tmp_path / "again", base_model_name_or_path=str(home))
    with torch.no_grad():
        want = theirs(x).logits
        folded = theirs.merge_and_unload()(x).logits
        torch.testing.assert_close(folded, want, atol=1e-4, rtol=0)
        if head == "causal":
            again = hub.load(tmp_path / "again", merge=False)
            got = [one.logits(one(x)) for one in (ours, again, hub.load(out))]
        else:
            shift = ours.shift
            again = hub.load(tmp_path / "again", "scalar", merge=False)
            got = [one(x)[:, -1:] - shift for one in (ours, again, hub.load(out, "scalar"))]
    for one in got:
        torch.testing.assert_close(one, want, atol=1e-4, rtol=0)
    assert {name for name, _ in again.named_parameters()} == {name for name, _ in ours.named_parameters()}


# ------------------------------------------------------------------------------------ there and back


def test_adapters_come_back_bit_for_bit_and_alone(base: Path, saved: Path) -> None:
    model = hub.load(base)
    adapt(model, base)
    names = ["adapter_config.json", "adapter_model.safetensors", "adapter_notes.json"]
    assert sorted(path.name for path in saved.iterdir()) == names
    files = [(saved / name).read_bytes() for name in names]
    hub.save(model, saved)
    assert [(saved / name).read_bytes() for name in names] == files
    again = hub.load(saved, merge=False)
    assert list(again.state_dict()) == list(model.state_dict())
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in again.state_dict().items())
    assert lora.adapter_of(again) == Adapter(2, 3.0, FEW, rslora=True, base=base.resolve())
    assert {n.rpartition(".")[2] for n, p in again.named_parameters() if p.requires_grad} == {
        "lora_A",
        "lora_B",
    }


def test_a_loaded_model_has_its_adapters_folded_in(base: Path, saved: Path) -> None:
    apart, whole = hub.load(saved, merge=False), hub.load(saved)
    assert not adapted(whole)
    assert all(p.requires_grad for p in whole.parameters())
    assert whole.config == hub.load(base).config == hub.read_config(saved)
    with torch.no_grad():
        torch.testing.assert_close(whole(tokens()), apart(tokens()), atol=1e-5, rtol=0)
        assert (whole(tokens()) - hub.load(base)(tokens())).abs().max() > 0.1


def test_whole_weights_are_saved_when_asked_for(base: Path, saved: Path, tmp_path: Path) -> None:
    apart = hub.load(saved, merge=False)
    hub.save(apart, tmp_path / "whole", merge=True)
    assert not peft.is_adapter(tmp_path / "whole")
    assert list(load_file(tmp_path / "whole" / "model.safetensors")) == list(
        load_file(base / "model.safetensors")
    )
    folded = hub.load(saved).state_dict()
    assert all(torch.equal(t, folded[n]) for n, t in hub.load(tmp_path / "whole").state_dict().items())
    assert len(adapted(apart)) == 4, "saving changed the model"


@pytest.mark.parametrize("on", ["scalar", "causal"])
def test_a_scalar_model_brings_its_head_and_its_shift(
    on: str, base: Path, scalar: Path, tmp_path: Path
) -> None:
    model = hub.load(scalar, "scalar") if on == "scalar" else ScalarModel.from_causal(hub.load(base), 7)
    adapt(model, scalar if on == "scalar" else base)
    with torch.no_grad():
        model.score.weight.add_(0.3)
        model.shift.fill_(-1 / 3)
    hub.save(model, tmp_path / "out")
    again = hub.load(tmp_path / "out", "scalar", merge=False)
    assert torch.equal(again.shift, model.shift)
    assert again.score.weight.requires_grad
    assert torch.equal(again(tokens()), model(tokens()))
    assert hub.kind_of(tmp_path / "out") == hub.kind_of(scalar) == "scalar"
    assert hub.kind_of(base) == "causal"


def test_adapters_on_adapters(base: Path, saved: Path, tmp_path: Path) -> None:
    model = hub.load(saved)
    adapt(model, saved, seed=9, targets=("up_proj",))
    hub.save(model, tmp_path / "second")
    again = hub.load(tmp_path / "second", merge=False)
    assert torch.equal(again(tokens()), model(tokens()))
    with lora.without(again), torch.no_grad():
        assert torch.equal(again(tokens()), hub.load(saved)(tokens()))
    assert hub.read_config(tmp_path / "second") == hub.read_config(base)


def test_the_base_is_found_beside_the_adapters_or_where_they_or_we_say(
    base: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = hub.load(saved)(tokens())
    assert json.loads((saved / "adapter_config.json").read_text())["base_model_name_or_path"] == "../base"
    moved = tmp_path / "moved"
    moved.mkdir()
    saved.rename(moved / "adapters")
    with pytest.raises(
        ArtifactError, match=r"adapter_config\.json: the base model of these adapters is not here"
    ):
        hub.load(moved / "adapters")
    assert torch.equal(hub.load(moved / "adapters", base=base)(tokens()), want)
    shutil.copytree(base, moved / "base")
    assert torch.equal(hub.load(moved / "adapters")(tokens()), want)
    (tmp_path / "link").symlink_to(moved / "adapters")
    assert torch.equal(hub.load(tmp_path / "link")(tokens()), want)

    model = hub.load(base)
    adapt(model, base)
    hub.save(model, moved / "far" / "away")
    named = json.loads((moved / "far" / "away" / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ]
    assert named == str(base.resolve())
    assert torch.equal(hub.load(moved / "far" / "away")(tokens()), want)
    edit_config(moved / "far" / "away", base_model_name_or_path="base")
    monkeypatch.chdir(tmp_path)
    assert torch.equal(hub.load(moved / "far" / "away")(tokens()), want)
    with pytest.raises(UsageError, match="only adapters have a base"):
        hub.load(base, base=base)


def test_the_tokenizer_comes_along(base: Path, saved: Path, tmp_path: Path) -> None:
    tree = {"added_tokens": [{"id": 5, "content": "<|end|>"}], "model": {"vocab": {"a": 6}}}
    (base / "tokenizer.json").write_text(json.dumps(tree))
    (base / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    model = hub.load(saved, merge=False)
    hub.save(model, tmp_path / "out", tokenizer_dir=base)
    assert (tmp_path / "out" / "tokenizer.json").read_text() == json.dumps(tree)
    with pytest.raises(UsageError, match="special ids of their base"):
        hub.save(model, tmp_path / "other", eos_id=3)


# ----------------------------------------------------------------------------------- what is refused


def test_a_base_that_has_changed_is_refused(base: Path, saved: Path) -> None:
    model = hub.load(base)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    hub.save(model, base)
    with pytest.raises(
        ArtifactError, match="the base model has changed since these adapters were trained on it"
    ):
        hub.load(saved)


def test_adapters_that_stand_on_one_another_are_refused(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "other")
    edit_config(saved, base_model_name_or_path="../other")
    edit_config(tmp_path / "other", base_model_name_or_path="../adapters")
    with pytest.raises(ArtifactError, match="no base but one another"):
        hub.load(saved)
    edit_config(saved, base_model_name_or_path=".")
    with pytest.raises(ArtifactError, match="no base but one another"):
        hub.load(saved)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "IA3"),
        ("task_type", "SEQ_2_SEQ_LM"),
        ("bias", "all"),
        ("use_dora", True),
        ("fan_in_fan_out", True),
        ("rank_pattern", {"q_proj": 4}),
        ("alpha_pattern", {"q_proj": 4}),
        ("layers_to_transform", [0]),
        ("init_lora_weights", "pissa"),
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", ["3"]),
        ("trainable_token_indices", {"lm_head": [3]}),
        ("trainable_token_indices", {"embed_tokens": [3], "o_proj": [3]}),
        ("trainable_token_indices", {"embed_tokens": [3], "lm_head": [4]}),
        ("trainable_token_indices", [3, 3]),
        ("trainable_token_indices", [3, 40]),
        ("something_of_next_year", "on"),
        ("r", "2"),
        ("r", 0),
        ("lora_alpha", None),
        ("lora_alpha", float("nan")),
        ("use_rslora", "yes"),
        ("target_modules", None),
        ("target_modules", [3]),
        ("base_model_name_or_path", None),
        ("base_model_name_or_path", "someone/somewhere"),
    ],
)
def test_what_we_would_compute_otherwise_is_refused(saved: Path, key: str, value: object) -> None:
    edit_config(saved, **{key: value})
    with pytest.raises(ArtifactError, match=r"adapter_config\.json: "):
        hub.load(saved)


def test_what_makes_no_difference_is_accepted(saved: Path) -> None:
    want = hub.load(saved)(tokens())
    edit_config(
        saved,
        lora_dropout=0.1,
        init_lora_weights="gaussian",
        peft_version="9.9",
        something_of_next_year=False,
        target_modules=["v_proj", "c_attn", "q_proj"],
        task_type=None,
        runtime={},
    )
    assert torch.equal(hub.load(saved)(tokens()), want)
    edit_config(saved, target_modules=r".*\.(q|v)_proj")
    assert torch.equal(hub.load(saved)(tokens()), want)


def test_rows_come_back_bit_for_bit_and_none_may_lack(base: Path, tmp_path: Path) -> None:
    model, out = hub.load(base), tmp_path / "out"
    adapt(model, base, tokens=(7, 1))
    hub.save(model, out)
    again = hub.load(out, merge=False)
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in again.state_dict().items())
    assert lora.adapter_of(again) == Adapter(2, 3.0, FEW, True, base.resolve(), (7, 1))
    whole = hub.load(out).state_dict()
    for name, changed in (("model.embed_tokens", [1, 7]), ("lm_head", [1, 7])):
        old, new = hub.load(base).state_dict()[f"{name}.weight"], whole[f"{name}.weight"]
        assert (old != new).any(1).nonzero().flatten().tolist() == changed
    hub.save(again, tmp_path / "merged", merge=True)
    merged = hub.load(tmp_path / "merged").state_dict()
    assert all(torch.equal(t, merged[n]) for n, t in whole.items())
    edit_tensors(out, lambda w: w.pop("base_model.model.lm_head.token_adapter.trainable_tokens_delta"))
    with pytest.raises(ArtifactError, match=r"'lm_head\.rows' is missing"):
        hub.load(out)
    edit_config(out, trainable_token_indices=[7, 1])  # of the embedding alone: the head is the base's
    bare = hub.load(out).state_dict()
    assert torch.equal(bare["lm_head.weight"], hub.load(base).state_dict()["lm_head.weight"])
    assert torch.equal(bare["model.embed_tokens.weight"], whole["model.embed_tokens.weight"])
    edit_config(out, trainable_token_indices=None)
    with pytest.raises(ArtifactError, match=r"embed_tokens\.rows' is for no adapter"):
        hub.load(out)


NAME = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
DAMAGE = {
    r"v_proj\.lora_B' is missing": lambda w: w.pop(NAME),
    "another shape": lambda w: w.update({NAME: w[NAME][1:].contiguous()}),
    "not finite": lambda w: w[NAME][0, 0].fill_(float("nan")),
    "for no adapter": lambda w: w.update({NAME.replace("v_proj", "k_proj"): w[NAME].clone()}),
    "not part of an adapter": lambda w: w.update({NAME.replace("lora_B.", ""): w[NAME].clone()}),
    "'model.x.lora_A.weight' is not part": lambda w: w.update({"model.x.lora_A.weight": w[NAME].clone()}),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_tensors_are_named(saved: Path, what: str) -> None:
    edit_tensors(saved, DAMAGE[what])
    with pytest.raises(ArtifactError, match=rf"adapter_model\.safetensors: .*{what}"):
        hub.load(saved)


def test_absent_and_broken_files_are_named(saved: Path) -> None:
    path = saved / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(ArtifactError, match=r"adapter_model\.safetensors: there is no such file"):
        hub.load(saved)
    path.write_bytes(whole[:300])
    with pytest.raises(
        ArtifactError, match=r"adapter_model\.safetensors: this is not a whole safetensors file"
    ):
        hub.load(saved)
    path.write_bytes(whole)
    (saved / "adapter_notes.json").write_text('{"score_shift": "much"}')
    with pytest.raises(ArtifactError, match=r"adapter_notes\.json: these notes are not usable"):
        hub.load(saved)
    (saved / "adapter_config.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"adapter_config\.json: this is not JSON"):
        hub.load(saved)


def test_kinds_are_not_confused(base: Path, saved: Path, scalar: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not adapters of a scalar model"):
        hub.load(saved, "scalar")
    model = ScalarModel.from_causal(hub.load(base), 7)
    adapt(model, base)
    hub.save(model, tmp_path / "out")
    with pytest.raises(ArtifactError, match="not adapters of a causal model"):
        hub.load(tmp_path / "out")
    edit_tensors(tmp_path / "out", lambda w: w.pop("base_model.model.score.weight"))
    with pytest.raises(ArtifactError, match=r"'score\.weight' is missing"):
        hub.load(tmp_path / "out", "scalar")
    (saved / "adapter_notes.json").unlink()  # the file that knows which base they are for
    with pytest.raises(ArtifactError, match="not a causal model"):
        hub.load(saved, base=scalar)


def test_adapters_and_a_whole_model_do_not_share_a_directory(base: Path, saved: Path) -> None:
    model = hub.load(saved, merge=False)
    with pytest.raises(ArtifactError, match="another kind of model"):
        hub.save(model, base)
    with pytest.raises(ArtifactError, match="another kind of model"):
        hub.save(model, saved, merge=True)
    hub.save(model, saved)


def test_what_cannot_be_saved(base: Path, tmp_path: Path) -> None:
    model = hub.load(base)
    adapt(model, None)
    with pytest.raises(UsageError, match="which model these adapters are for"):
        hub.save(model, tmp_path / "out")
    with torch.no_grad():
        next(iter(adapted(model).values())).lora_A[0, 0] = float("nan")
    with pytest.raises(ArtifactError, match="lora_A' is not finite"):
        hub.save(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
