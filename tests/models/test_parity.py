"""Compares our Llama with transformers' on tiny random models: logits, gradients, greedy tokens and scalar
scores, files written by us and read by them and the other way round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from bloomery.infer import Engine
from bloomery.models import Llama, LlamaConfig, ScalarModel, build, init, load, save
from bloomery.types import SamplingParams

transformers = pytest.importorskip("transformers")

VOCAB = 97
SHAPES = {
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "grouped": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "one_kv_head_biased": {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
    "wide_heads": {"head_dim": 24, "rope_theta": 50_000.0, "rms_norm_eps": 1e-5},
}


def config(**changes: object) -> LlamaConfig:
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "max_position_embeddings": 192,
        "eos_token_id": 5,
        "pad_token_id": 0,
    }
    return LlamaConfig(**{**sizes, **changes})  # type: ignore[arg-type]


def loud(model: Llama | ScalarModel, seed: int = 0) -> None:
    """Random weights large enough that a wrong angle, mask or norm would show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.2 + (1 if noise.ndim == 1 else 0))


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(6, VOCAB, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SHAPES)
def test_what_we_save_transformers_computes_alike(name: str, tmp_path: Path) -> None:
    ours = build(config(**SHAPES[name]))
    loud(ours)
    save(ours, tmp_path)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(theirs).__name__ == "LlamaForCausalLM"
    for length in (40, 150):  # attention by two products, and by the fused kernel
        x = tokens(2, length)
        torch.testing.assert_close(ours.logits(ours(x)), theirs(x).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SHAPES)
def test_what_transformers_saves_we_compute_alike(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tree = {
        k: v for k, v in config(**SHAPES[name]).to_json().items() if k not in ("rope_theta", "model_type")
    }
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**tree))
    loud(theirs)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    assert ours.config == config(**SHAPES[name])
    x = tokens(2, 40)
    torch.testing.assert_close(ours.logits(ours(x)), theirs(x).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "length"), [("tied", 24), ("grouped", 24), ("grouped", 150), ("untied", 24)]
)
def test_gradients_equal_those_of_transformers(name: str, length: int, tmp_path: Path) -> None:
    ours = build(config(**SHAPES[name]))
    loud(ours)
    save(ours, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    x = tokens(2, length)
    for logits in (ours.logits(ours(x)), theirs(x).logits):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten()).backward()
    expected = dict(theirs.named_parameters())
    for parameter_name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[parameter_name].grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["tied", "untied", "grouped"])
def test_fifty_greedy_tokens_are_the_same(name: str, tmp_path: Path) -> None:
    ours = build(config(**SHAPES[name], eos_token_id=None))
    loud(ours, seed=3)
    save(ours, tmp_path, pad_id=0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    prompts = tokens(4, 9)
    mask = torch.ones_like(prompts)
    expected = theirs.generate(prompts, attention_mask=mask, max_new_tokens=50, do_sample=False)[:, 9:]
    engine = Engine(ours, stop_id=-1, pad_id=0)
    got = engine(prompts.tolist(), [SamplingParams(max_tokens=50, temperature=0)] * 4)
    assert [list(one.tokens) for one in got] == expected.tolist()
    assert len({t for one in got for t in one.tokens}) > 10, "a constant answer would prove nothing"


def test_scalar_scores_differ_from_transformers_by_the_shift(tmp_path: Path) -> None:
    scalar = ScalarModel(config(num_key_value_heads=2))
    loud(scalar)
    scalar.shift.fill_(-1.25)
    save(scalar, tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    x, lengths = tokens(3, 20), [20, 13, 7]
    for row, length in enumerate(lengths):
        x[row, length:] = 0
    expected = theirs(x, attention_mask=(x != 0).long()).logits[:, 0]
    last = torch.tensor(lengths) - 1
    ours = load(tmp_path, "scalar")(x)[torch.arange(3), last]
    torch.testing.assert_close(ours, expected - 1.25, atol=1e-4, rtol=0)
    torch.testing.assert_close(scalar(x)[torch.arange(3), last], ours)


def test_a_scalar_model_of_transformers_loads(tmp_path: Path) -> None:
    tree = {k: v for k, v in config().to_json().items() if k not in ("rope_theta", "model_type")}
    theirs = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**tree, num_labels=1))
    loud(theirs)
    theirs.save_pretrained(tmp_path)
    x = tokens(2, 15)
    ours = load(tmp_path, "scalar")(x)[:, -1]
    torch.testing.assert_close(ours, theirs(x).logits[:, 0], atol=1e-4, rtol=0)


def test_the_written_config_says_no_more_and_no_less_than_ours(tmp_path: Path) -> None:
    model = build(config(rope_theta=12_345.0))
    init(model, 0)
    save(model, tmp_path)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert theirs.rope_parameters == {"rope_type": "default", "rope_theta": 12_345.0}
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (None, 5, 0)
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (5, 0)
