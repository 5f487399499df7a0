"""config.json in both spellings of the rotary base; everything that could change the computation unseen is
an error that names the key."""

from __future__ import annotations

import pytest

from bloomery.errors import ArtifactError, UsageError
from bloomery.models import LlamaConfig

CONFIG = LlamaConfig.shape(64, 2, 4, 100, kv_heads=2, context=128)


def test_shape_derives_the_rest() -> None:
    assert (CONFIG.head_dim, CONFIG.intermediate_size, CONFIG.num_key_value_heads) == (16, 192, 2)
    assert LlamaConfig.shape(192, 4, 6, 2048).intermediate_size == 512  # 8/3 of 192 exactly
    assert LlamaConfig.shape(256, 4, 8, 2048).intermediate_size == 704  # 682.7 rounded up to 22 * 32


def test_num_parameters_by_hand() -> None:
    # embeddings 100*64; per layer: q and o 64*64, k and v 64*32, mlp 3*64*192, two norms of 64; final norm
    assert CONFIG.num_parameters() == 6400 + 2 * (2 * 4096 + 2 * 2048 + 3 * 12288 + 128) + 64


def test_round_trip() -> None:
    assert LlamaConfig.from_json(CONFIG.to_json()) == CONFIG
    two_ends = LlamaConfig.from_json({**CONFIG.to_json(), "eos_token_id": [5, 7]})
    assert two_ends.eos_token_id == (5, 7)
    assert two_ends.to_json()["eos_token_id"] == [5, 7]


def test_old_and_new_rotary_base() -> None:
    tree = CONFIG.to_json()
    del tree["rope_parameters"]
    assert LlamaConfig.from_json({**tree, "rope_theta": 5e5, "rope_scaling": None}).rope_theta == 5e5
    del tree["rope_theta"]
    new = {**tree, "rope_parameters": {"rope_type": "default", "rope_theta": 3e5}}
    assert LlamaConfig.from_json(new).rope_theta == 3e5
    with pytest.raises(ArtifactError, match="rope_theta"):
        LlamaConfig.from_json({**new, "rope_theta": 1e4})


def test_what_transformers_leaves_out() -> None:
    tree = CONFIG.to_json()
    del tree["num_key_value_heads"], tree["head_dim"]
    read = LlamaConfig.from_json(tree)
    assert (read.num_key_value_heads, read.head_dim) == (4, 16)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}),
        ("rope_parameters", "default"),
        ("attention_dropout", 0.1),
        ("sliding_window", 128),
        ("rms_norm_epsilon", 1e-5),
        ("attn_logit_softcapping", 50.0),
        ("hidden_size", "64"),
        ("tie_word_embeddings", 1),
        ("eos_token_id", [1, "2"]),
        ("num_hidden_layers", 0),
        ("num_key_value_heads", 3),
        ("head_dim", 15),
    ],
)
def test_keys_that_would_change_the_computation_are_named(key: str, value: object) -> None:
    with pytest.raises(ArtifactError, match=key):
        LlamaConfig.from_json({**CONFIG.to_json(), key: value})


def test_the_nearest_key_is_offered_and_missing_ones_are_listed() -> None:
    with pytest.raises(ArtifactError, match="did you mean 'rms_norm_eps'"):
        LlamaConfig.from_json({**CONFIG.to_json(), "rms_norm_epsilon": 1e-5})
    with pytest.raises(ArtifactError, match="hidden_size, intermediate_size"):
        LlamaConfig.from_json({"vocab_size": 10, "num_hidden_layers": 1, "num_attention_heads": 1})


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="even number"):
        LlamaConfig.shape(100, 2, 3, 50)
    with pytest.raises(UsageError, match="multiple"):
        LlamaConfig.shape(64, 2, 4, 50, kv_heads=3)
