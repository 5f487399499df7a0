"""Compared: the dtypes a forward pass has with those the precision promises, compiled layers with plain ones,
pages touched with and without memory that is kept."""

from __future__ import annotations

import platform
import resource
import sys
from shutil import which
from threading import Barrier, Thread
from time import perf_counter, sleep

import pytest
import torch
import torch._inductor.config
from torch import nn
from torch._dynamo.callback import CallbackTrigger, callback_handler

from bloomery.errors import UsageError
from bloomery.models import LlamaConfig, build, init
from bloomery.train import precision


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_activations_follow_the_precision_and_weights_stay_fp32(name, dtype: torch.dtype) -> None:
    autocast = precision.setup(name)
    layer = nn.Linear(4, 4).to(precision.device())
    for _ in range(2):
        with autocast():
            out = layer(torch.ones(2, 4, device=precision.device()))
        assert out.dtype == dtype
    out.float().sum().backward()
    assert layer.weight.dtype == layer.weight.grad.dtype == torch.float32
    assert torch.get_float32_matmul_precision() == "medium"


def test_gradients_do_not_depend_on_who_else_leaves_autocast() -> None:
    """torch's cache of casts is one for all threads, and whoever leaves autocast empties it."""
    autocast, gradients = precision.setup("bf16"), list[torch.Tensor]()

    def leave() -> None:
        with autocast():
            pass

    for disturbed in (False, True):
        torch.manual_seed(0)
        layer, x = nn.Linear(64, 64), torch.randn(9, 64)
        with autocast():
            first = layer(x).float().square().sum()
            if disturbed:
                other = Thread(target=leave)
                other.start()
                other.join()
            (first + layer(x * 3).float().square().sum() / 7).backward()
        gradients.append(layer.weight.grad)
    assert torch.equal(*gradients)


def test_threads_are_set_only_when_asked() -> None:
    before = torch.get_num_threads()
    precision.setup("fp32")
    assert torch.get_num_threads() == before
    precision.setup("fp32", threads=1)
    assert torch.get_num_threads() == 1


def test_what_cannot_be() -> None:
    with pytest.raises(UsageError, match="no precision is called 'fp8'"):
        precision.setup("fp8")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="threads must be 1 or more"):
        precision.setup("fp32", threads=0)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_memory_that_was_freed_is_touched_once() -> None:
    assert precision.keep_memory()
    found, pages = [], 8 * 2**24 / resource.getpagesize()
    for _ in range(6):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        held = [torch.ones(2**22) for _ in range(8)]  # 16 MiB each: together they would be given back
        del held
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert min(found) < pages / 10, found  # the least: the system may take pages away in between


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not precision.keep_memory()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo's own, which it hides from its users
def test_compiled_blocks_are_the_same_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph a block, no break in it; loss and gradients as without. The graph is run by torch: what
    inductor makes of it is inductor's."""
    real = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: real(self, backend="aot_eager", fullgraph=True))
    tokens = torch.randint(6, 50, (2, 20), generator=torch.Generator().manual_seed(1))
    segments = torch.tensor([[1] * 12 + [2] * 8] * 2)
    found = []
    for compiled in (False, True):
        model = build(LlamaConfig.shape(32, 2, 4, 50, kv_heads=2, context=64))
        init(model, 0)
        if compiled:
            precision.compile_blocks(model.model.layers)
            assert precision.compile_seconds() == 0.0
        before, began = precision.compile_seconds(), perf_counter()
        assert list(model.state_dict()) == list(build(model.config).state_dict())
        loss = model(tokens, segments=segments).square().sum()
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)])
        assert (precision.compile_seconds() > before) == compiled
        assert precision.compile_seconds() - before < perf_counter() - began
    for plain, other in zip(*found, strict=True):
        torch.testing.assert_close(plain, other, atol=1e-5, rtol=1e-5)


def test_what_several_threads_compile_at_once_is_counted_once() -> None:
    """As torch tells of it; and a run's clock begins at 0, whatever the runs before it compiled."""
    precision.compile_blocks([])
    both, began = Barrier(2), perf_counter()

    def compiling() -> None:
        with callback_handler.install_callbacks(CallbackTrigger.DYNAMO, "0/0"):
            both.wait()
            sleep(0.05)
            both.wait()

    threads = [Thread(target=compiling) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.05 <= precision.compile_seconds() <= perf_counter() - began
    precision.compile_blocks([])
    assert precision.compile_seconds() == 0.0


@pytest.mark.skipif(which("g++") is None and which("clang++") is None, reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # inductor's own
def test_what_inductor_makes_of_a_block_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: workers would take longer to start than one small layer takes to compile."""
    monkeypatch.setattr(torch._inductor.config, "compile_threads", 1)
    tokens = torch.randint(6, 50, (2, 12), generator=torch.Generator().manual_seed(1))
    found = []
    for compiled in (False, True):
        model = build(LlamaConfig.shape(16, 1, 2, 50, context=16))
        init(model, 0)
        if compiled:
            precision.compile_blocks(model.model.layers)
        loss = model(tokens).square().sum()
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)])
    assert precision.compile_seconds() > 0
    for plain, other in zip(*found, strict=True):
        torch.testing.assert_close(plain, other, atol=1e-4, rtol=1e-3)  # it sums in an order of its own
