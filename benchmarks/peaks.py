"""What the machine, or its GPU, can do at most: matrix products and copies, so that a rate can be read as a
share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def ours(pace: Any, settings: dict[str, Any]) -> None:
    """Tell GFLOP/s of products of square matrices, and GB/s of a large copy (read and written)."""
    import torch

    device = settings.get("device", "cpu")
    side, numbers = (8192, 1 << 30) if device == "cuda" else (1024, 64 << 20)
    if device == "cuda":
        pace.tell(gpu=torch.cuda.get_device_name(), cuda=torch.version.cuda)

    torch.set_num_threads(settings["threads"])
    found = {}
    for name, dtype, precision in (
        ("fp32 GFLOP/s", torch.float32, "highest"),
        ("fp32 medium GFLOP/s", torch.float32, "medium"),
        ("bf16 GFLOP/s", torch.bfloat16, "highest"),
    ):
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        found[name] = 2 * side**3 / best(lambda a=a, b=b: a @ b, pace.sync) / 1e9
    source, target = torch.ones(numbers, device=device), torch.empty(numbers, device=device)
    found["memory GB/s"] = 2 * source.nbytes / best(lambda: target.copy_(source), pace.sync) / 1e9
    pace.tell(**found)
    pace.start()


def best(work: Callable[[], object], sync: Callable[[], object], times: int = 20) -> float:
    """Seconds of the fastest of several runs; `sync` waits until the device has done its work."""
    work()
    sync()
    seconds = list[float]()
    for _ in range(times):
        began = time.perf_counter()
        work()
        sync()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
