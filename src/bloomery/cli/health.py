"""What `bloomery doctor` looks at."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bloomery.cli.show import size


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; `advice` says what to do when it is not `good`, or what it means."""

    name: str
    found: str
    good: bool
    advice: str = ""


def examine() -> Iterator[Check]:
    """Every check in turn; takes about two seconds, most of it importing torch and timing it."""
    python = platform.python_version()
    yield Check(
        "python",
        python,
        sys.version_info >= (3, 11),
        "" if sys.version_info >= (3, 11) else "use 3.11 or newer",
    )
    yield from _torch()
    yield _memory()
    free = shutil.disk_usage(Path.cwd()).free
    yield Check(
        "disk", f"{size(free)} free here", free > 2e9, "" if free > 2e9 else "a journey needs about 1 GB"
    )
    yield Check(
        "sqlite", sqlite3.sqlite_version, True, "fine for one labelling process; for more use PostgreSQL"
    )
    for name, why in (("tokenizers", ""), ("transformers", "only for tests: pip install -e .[hf]")):
        try:
            yield Check(name, version(name), True)
        except PackageNotFoundError:
            yield Check(name, "not installed", bool(why), why or "pip install -e .")


def _torch() -> Iterator[Check]:
    import torch

    from bloomery.journey.estimate import matmul_speed

    yield Check("torch", torch.__version__, True)
    cores, threads = _cores(), torch.get_num_threads()
    advice = "" if threads <= cores else f"set OMP_NUM_THREADS={cores}: more threads than cores is slower"
    yield Check("threads", f"{threads} of {cores} cores", threads <= cores, advice)
    fp32, bf16 = matmul_speed(torch.float32), matmul_speed(torch.bfloat16)
    advice = "" if fp32 > 2e10 else "slow: is another program running? journeys take longer here"
    yield Check("matrix products", f"{fp32 / 1e9:,.0f} GFLOP/s in fp32", fp32 > 2e10, advice)
    fast = bf16 > 1.2 * fp32
    yield Check(
        "bf16",
        f"{bf16 / 1e9:,.0f} GFLOP/s",
        True,
        "precision: bf16 helps here" if fast else "no faster here: stay with fp32",
    )
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield Check("CUDA", names, True)
    else:
        yield Check("CUDA", "none", True, "not needed: the default journey is made for a CPU")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> Check:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return Check("memory", "unknown", True)
    good = total > 3e9
    return Check(
        "memory", f"{size(total)} in all", good, "" if good else "the default journey needs about 2 GB"
    )
