"""Where and how precisely the arithmetic runs. Master weights are fp32 in every setting."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import torch
from torch import nn

from bloomery.errors import UsageError

Precision = Literal["fp32", "bf16"]


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# Names of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def setup(
    precision: Precision = "fp32", threads: int | None = None
) -> Callable[[], AbstractContextManager[object]]:
    """Set the process up for training and return the context each forward runs in.

    Matrix products may use the fast units of the machine (`float32_matmul_precision("medium")`: weights
    and sums stay fp32). "bf16" also autocasts activations. `threads` fixes the number of CPU threads:
    results are bit-exact only between runs that use the same number. Raises `UsageError` for an unknown
    precision or a thread count below 1. Freed memory stays with the process: see `keep_memory`.
    """
    if threads is not None:
        if threads < 1:
            raise UsageError("threads must be 1 or more", got=threads)
        torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("medium")
    keep_memory()
    if precision == "fp32":
        return nullcontext
    if precision == "bf16":
        kind = device().type
        # torch keeps one cache of casts for all threads, and whoever leaves autocast empties it: with two
        # threads (`together`) it would hang on their timing which gradients are summed before they are cast.
        return lambda: torch.autocast(kind, dtype=torch.bfloat16, cache_enabled=False)
    raise UsageError(f"no precision is called '{precision}'", expected="fp32 or bf16")


def keep_memory() -> bool:
    """Let the C library keep what is freed for the next step, instead of giving it back to the system and
    touching every page of it again: tensors below 32 MiB, the most it allows. Returns whether it could be
    told (glibc only)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and bool(
        mallopt(M_MMAP_THRESHOLD, 2**25) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    )


@dataclass
class Clock:
    """Seconds in which something was under way, however many threads were at it."""

    seconds: float = 0.0
    began: float | None = None

    def start(self, *_: object) -> None:
        self.began = perf_counter()

    def stop(self, *_: object) -> None:
        if self.began is not None:
            self.seconds, self.began = self.seconds + perf_counter() - self.began, None


_compiling = Clock()


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Compile the forward and backward pass of each block at its first call; like blocks share the work.
    `compile_seconds` counts from here.

    Sums may be ordered otherwise than without: results agree to rounding. Needs a C++ compiler on a CPU.
    """
    from torch._dynamo.callback import callback_handler as told

    _compiling.seconds = 0.0
    # They are told when the first of several threads begins and the last ends.
    if _compiling.start not in told.start_callbacks:
        told.register_start_callback(_compiling.start)
        told.register_end_callback(_compiling.stop)
    for block in blocks:
        block.compile()


def compile_seconds() -> float:
    """Since the last `compile_blocks`: seconds on the wall in which something was being compiled."""
    return _compiling.seconds
