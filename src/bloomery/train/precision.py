"""Where and how precisely the arithmetic runs. Master weights are fp32 in every setting."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from bloomery.errors import UsageError

Precision = Literal["fp32", "bf16"]


def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def setup(
    precision: Precision = "fp32", threads: int | None = None
) -> Callable[[], AbstractContextManager[object]]:
    """Set the process up for training and return the context each forward runs in.

    Matrix products may use the fast units of the machine (`float32_matmul_precision("medium")`: weights
    and sums stay fp32). "bf16" also autocasts activations. `threads` fixes the number of CPU threads:
    results are bit-exact only between runs that use the same number. Raises `UsageError` for an unknown
    precision or a thread count below 1.
    """
    if threads is not None:
        if threads < 1:
            raise UsageError("threads must be 1 or more", got=threads)
        torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("medium")
    if precision == "fp32":
        return nullcontext
    if precision == "bf16":
        kind = device().type
        return lambda: torch.autocast(kind, dtype=torch.bfloat16)
    raise UsageError(f"no precision is called '{precision}'", expected="fp32 or bf16")
