"""Two models at work at the same time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

import torch

A = TypeVar("A")
B = TypeVar("B")


def together(one: Callable[[], A], other: Callable[[], B], device: torch.device) -> tuple[A, B]:
    """What two pieces of work give that share nothing they write to, a policy's and its critic's passes; or
    only gradients, which autograd adds up one at a time.

    On a CPU both run at once, each on half of the threads: the many small operations of a small model
    leave a second core idle most of the time, two models do not. On a GPU, or with one thread, one after the
    other. An error of either comes out when both have ended.
    """
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    if device.type != "cpu" or threads < 2:
        return one(), other()

    def beside() -> B:
        torch.set_num_threads(threads // 2)
        with torch.set_grad_enabled(grad):
            return other()

    running = _helper().submit(beside)
    torch.set_num_threads(threads - threads // 2)
    try:
        first = one()
    finally:
        wait([running])
        torch.set_num_threads(threads)
    return first, running.result()


@cache
def _helper() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="together")
