"""Packed weights compute what the model computes, in every shape; the engine follows the weights."""

from __future__ import annotations

import pytest
import torch

from bloomery.infer import Engine
from bloomery.models import KVCache, Llama, LlamaConfig, build
from bloomery.models.lora import LAYERS, Adapter, Bare, adapted, attach
from bloomery.models.packed import Product, pack
from bloomery.types import SamplingParams


def loud(model: Llama) -> Llama:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def shaped(**changes) -> Llama:
    sizes = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
    }
    return loud(build(LlamaConfig(**(sizes | changes))))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": 4},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_packed_equals_unpacked(changes: dict[str, object], dtype: torch.dtype) -> None:
    model = shaped(**changes).to(dtype)
    twin = pack(model)
    assert type(twin) is not Llama
    x = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(1))
    tolerance = {"atol": 1e-4 if dtype == torch.float32 else 1e-11, "rtol": 0}
    with torch.no_grad():
        expected = model.logits(model(x))
        torch.testing.assert_close(twin.logits(twin(x)), expected, **tolerance)
        cache = KVCache(model.config, 3, 12, dtype=dtype)
        twin(x[:, :8], cache=cache)
        step = twin.logits(twin(x[:, 8:], cache=cache)[:, -1])
        torch.testing.assert_close(step, expected[:, -1], **tolerance)


def test_on_a_cpu_float32_weights_go_through_onednn() -> None:
    layer = torch.nn.Linear(8, 4)
    assert Product(layer).onednn == torch.backends.mkldnn.is_available()
    assert not Product(layer.double()).onednn


@pytest.mark.parametrize("targets", [LAYERS, ("v_proj", "down_proj")])
def test_adapters_are_part_of_the_packed_weights(targets: tuple[str, ...]) -> None:
    """With them, not without; and what they learn later is not in the snapshot."""
    model = shaped(attention_bias=True)
    attach(model, Adapter(rank=3, alpha=6.0, targets=targets))
    loud(model)
    x = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, bare = model.logits(model(x)), Bare(model).logits(Bare(model)(x))
        twin = pack(model)
        assert type(twin) is not Llama
        for layer in adapted(model).values():
            layer.lora_B.zero_()
        torch.testing.assert_close(twin.logits(twin(x)), expected, atol=1e-3, rtol=1e-4)
        assert (expected - bare).abs().max() > 1


def test_unknown_layers_are_left_as_they_are() -> None:
    class Other(torch.nn.Linear):
        pass

    model = shaped()
    model.model.layers[1].self_attn.v_proj = Other(32, 16, bias=False)
    assert pack(model) is model


@pytest.mark.parametrize("fused", [True, False])
def test_a_call_sees_what_the_optimizer_did(fused: bool) -> None:
    """Also when requests were submitted before, and though a fused step leaves no trace on a parameter."""
    model = shaped()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5, fused=fused)
    engine = Engine(model, stop_id=-1, pad_id=0)
    request = [1, 2, 3], SamplingParams(max_tokens=5)
    before = list(engine.stream(*request))
    assert list(engine.stream(*request)) == before
    model.logits(model(torch.tensor([[1, 2, 3]])))[..., 7].sum().neg().backward()
    optimizer.step()
    expected = Engine(model, stop_id=-1, pad_id=0)([request[0]], [request[1]])[0].tokens
    assert tuple(before) != expected
    assert tuple(engine.stream(*request)) == expected
