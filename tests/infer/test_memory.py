"""The default size of the cache against numbers by hand, files as Linux writes them, and what it must not do:
change a completion."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
import torch

from bloomery.errors import UsageError
from bloomery.infer import Engine, memory
from bloomery.models import KVCache, Llama, LlamaConfig, build
from bloomery.types import SamplingParams

CONTEXT, VOCAB = 32, 40
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Llama:
    made = build(LlamaConfig.shape(16, 2, 4, VOCAB, kv_heads=2, context=CONTEXT))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return made.double()


def test_half_of_what_is_free_between_one_context_and_all_of_them() -> None:
    assert doctest.testmod(memory).attempted
    found = [memory.budget(tokens, context=100, most=1000) for tokens in (9999, 2048, 2047, 300, 199, 99, 0)]
    assert found == [1000, 1000, 512, 128, 100, 99, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_a_token_are_those_of_the_cache(dtype: torch.dtype) -> None:
    config = LlamaConfig.shape(48, 3, 6, VOCAB, kv_heads=2, context=CONTEXT)
    cache = KVCache(config, 5, 7, dtype=dtype)
    assert sum(part.nbytes for part in (*cache.keys, *cache.values)) == 35 * memory.token_bytes(config, dtype)


def test_free_memory_is_read_from_the_kernel_and_the_containers_limit(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  900 kB\nMemFree:   100 kB\nMemAvailable:    400 kB\nSwapFree: 0 kB\n")
    assert memory.host(meminfo, tmp_path) == 400 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.stat").write_text("anon 20000\nfile 70000\n")
    assert memory.host(meminfo, tmp_path) == 400 * 1024
    (tmp_path / "memory.max").write_text("100000\n")
    assert memory.host(meminfo, tmp_path) == 80_000
    assert memory.host(tmp_path / "none", tmp_path) == 80_000
    (tmp_path / "memory.max").write_text("10000\n")
    assert memory.host(meminfo, tmp_path) == 0
    whole = memory.host(tmp_path / "none", tmp_path / "none")
    assert whole is None or whole > 2**20
    assert (memory.free(CPU) or 2**30) > 2**20


def test_free_memory_of_a_gpu_counts_what_torch_keeps_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("mem_get_info", (100, 900)), ("memory_reserved", 50), ("memory_allocated", 20)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert memory.free(torch.device("cuda")) == 130


def asked() -> tuple[list[list[int]], list[SamplingParams]]:
    prompts = [[1 + (3 * i + j) % (VOCAB - 1) for j in range(1 + 5 * i % 19)] for i in range(12)]
    return prompts, [SamplingParams(max_tokens=2 + i, seed=i) for i in range(12)]


def engine(model: Llama, tokens: int | None, monkeypatch: pytest.MonkeyPatch, **settings: int) -> Engine:
    """An engine where memory for so many tokens is free; None: nobody knows how much there is."""
    free = None if tokens is None else tokens * memory.token_bytes(model.config, torch.float64)
    monkeypatch.setattr(memory, "free", lambda device: free)
    return Engine(model, stop_id=0, pad_id=0, **settings)


def test_how_much_is_free_decides_who_waits_and_changes_no_completion(model, monkeypatch) -> None:
    prompts, params = asked()
    expected = Engine(model, stop_id=0, pad_id=0, cache_tokens=10_000)(prompts, params)
    for tokens, budget in ((None, 256 * CONTEXT), (10**6, 256 * CONTEXT), (600, 256), (300, 128), (40, 32)):
        made = engine(model, tokens, monkeypatch)
        got = made(prompts, params)
        assert made._scheduler.budget == budget
        assert [c.tokens for c in got] == [c.tokens for c in expected]
        for a, b in zip(got, expected, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-9)


def test_it_is_measured_when_requests_come_to_an_idle_engine_and_not_if_it_was_told(
    model, monkeypatch
) -> None:
    prompt, params = [1, 2, 3], SamplingParams(max_tokens=3)
    told = engine(model, 600, monkeypatch, cache_tokens=77)
    told.submit(prompt, params)
    assert told._scheduler.budget == 77
    made = engine(model, 600, monkeypatch)
    made.submit(prompt, params)
    token = memory.token_bytes(model.config, torch.float64)
    monkeypatch.setattr(memory, "free", lambda device: 300 * token)
    last = made.submit(prompt, params)
    assert made._scheduler.budget == 256, "requests are in flight"
    while last.finish_reason is None:
        made.step()
    cache = made._scheduler.cache
    assert cache is not None
    held = cache.batch * cache.max_len
    monkeypatch.setattr(memory, "free", lambda device: (256 - held) * token)
    made.submit(prompt, params)
    assert made._scheduler.budget == 128, "what its own cache holds is free to it"


def test_a_request_that_memory_has_no_room_for_is_refused_with_what_to_do(model, monkeypatch) -> None:
    made = engine(model, 20, monkeypatch)
    assert len(made([[1] * 10], [SamplingParams(max_tokens=11)])[0].tokens) <= 11
    with pytest.raises(UsageError, match="never fit") as error:
        made([[1] * 10], [SamplingParams(max_tokens=12)])
    assert "free memory" in str(error.value)
    assert "at most 21" in str(error.value)
