"""Rows of the cache copied, swapped and resized: decoding goes on as if they had always been there."""

from __future__ import annotations

import pytest
import torch

from bloomery.models import KVCache, Llama, LlamaConfig, build

CONFIG = LlamaConfig.shape(32, 2, 4, 50, kv_heads=2, context=64)


@pytest.fixture(scope="module")
def model() -> Llama:
    made = build(CONFIG)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return made.requires_grad_(False)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randint(6, 50, (3, 9), generator=torch.Generator().manual_seed(1))


def filled(model: Llama, x: torch.Tensor) -> KVCache:
    """Three rows of 8, 5 and 3 tokens."""
    cache = KVCache(CONFIG, 3, 9)
    model(x[:, :8], cache=cache)
    cache.trim(torch.tensor([8, 5, 3]))
    return cache


def check(model: Llama, x: torch.Tensor, cache: KVCache, rows: list[int], lengths: list[int]) -> None:
    """Row i of the cache holds `lengths[i]` tokens of row `rows[i]` of x: its next token is read alike."""
    cache.trim(torch.tensor(lengths))
    new = torch.stack([x[row, length] for row, length in zip(rows, lengths, strict=True)])[:, None]
    expected = torch.stack([model(x)[row, length] for row, length in zip(rows, lengths, strict=True)])
    torch.testing.assert_close(model(new, cache=cache)[:, 0], expected, atol=1e-5, rtol=0)


def test_copy(model: Llama, x: torch.Tensor) -> None:
    cache = filled(model, x)
    cache.copy(0, 2, 6)
    check(model, x, cache, [0, 1, 0], [8, 5, 6])


def test_swap(model: Llama, x: torch.Tensor) -> None:
    cache = filled(model, x)
    cache.swap(0, 1, 8)
    check(model, x, cache, [1, 0, 2], [5, 8, 3])


def test_resize_both_ways(model: Llama, x: torch.Tensor) -> None:
    cache = filled(model, x)
    cache.resize(5, 20)
    assert cache.lengths.tolist() == [8, 5, 3, 0, 0]
    cache.copy(1, 4, 5)
    cache.copy(2, 3, 3)
    check(model, x, cache, [0, 1, 2, 2, 1], [8, 5, 3, 3, 5])
    cache = filled(model, x)
    cache.resize(2, 9)
    check(model, x, cache, [0, 1], [8, 5])
    cache.copy(1, 0, 5)
    cache.resize(2, 6)
    assert cache.longest == 6
    check(model, x, cache, [1, 1], [5, 5])


def test_what_is_beyond_a_rows_length_is_never_seen(model: Llama, x: torch.Tensor) -> None:
    cache = filled(model, x)
    for keys, values in zip(cache.keys, cache.values, strict=True):
        for row, length in enumerate([8, 5, 3]):
            keys[row, :, :, length:] = 1e4
            values[row, :, length:] = -1e4
    check(model, x, cache, [0, 1, 2], [8, 5, 3])
