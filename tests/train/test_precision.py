"""Compared: the dtypes a forward pass has with those the precision promises."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bloomery.errors import UsageError
from bloomery.train import precision


@pytest.fixture(autouse=True)
def _put_back():
    threads, products = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(products)


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
