"""What the machine can do at most: matrix products and copies, so that a rate can be read as a share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def ours(pace: Any, settings: dict[str, Any]) -> None:
    """Tell GFLOP/s of products of 1024 x 1024 matrices, and GB/s of a large copy (read and written)."""
    import torch

    torch.set_num_threads(settings["threads"])
    found = {}
    for name, dtype, precision in (
        ("fp32 GFLOP/s", torch.float32, "highest"),
        ("fp32 medium GFLOP/s", torch.float32, "medium"),
        ("bf16 GFLOP/s", torch.bfloat16, "highest"),
    ):
        torch.set_float32_matmul_precision(precision)
        a, b = torch.randn(1024, 1024).to(dtype), torch.randn(1024, 1024).to(dtype)
        found[name] = 2 * 1024**3 / best(lambda a=a, b=b: a @ b) / 1e9
    source, target = torch.ones(64 << 20), torch.empty(64 << 20)
    found["memory GB/s"] = 2 * source.nbytes / best(lambda: target.copy_(source)) / 1e9
    pace.tell(**found)
    pace.start()


def best(work: Callable[[], object], times: int = 20) -> float:
    """Seconds of the fastest of several runs."""
    work()
    seconds = list[float]()
    for _ in range(times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
