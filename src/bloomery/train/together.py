"""Two models at work at the same time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor, wait
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
    if device.type != "cpu" or torch.get_num_threads() < 2:
        return one(), other()
    return at_once(one, other, _helper())


def at_once(one: Callable[[], A], other: Callable[[], B], helper: Executor) -> tuple[A, B]:
    """What two pieces of work give, the second done by a helper: each on half of the CPU threads.

    Gradients are on in both or in none. An error of either comes out when both have ended. Inside the first
    piece there may be another two at once, with another helper.
    """
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    half = max(1, threads // 2)

    def beside() -> B:
        torch.set_num_threads(half)
        with torch.set_grad_enabled(grad):
            return other()

    running = helper.submit(beside)
    torch.set_num_threads(max(1, threads - half))
    try:
        first = one()
    finally:
        wait([running])
        torch.set_num_threads(threads)
    return first, running.result()


@cache
def _helper() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="together")
