"""What tests of several floors share."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bloomery.models.config import LlamaConfig
from bloomery.models.llama import Llama


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    threads, products = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(products)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A script of benchmarks/ as its neighbours import it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    return importlib.import_module


@pytest.fixture(scope="session")
def loud_llama() -> Llama:
    """50 tokens, a context of 40, and weights so large that no term of it can hide."""
    made = Llama(LlamaConfig.shape(width=32, depth=2, heads=4, kv_heads=2, vocab=50, context=40))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return made
