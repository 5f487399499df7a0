"""How many tokens the cache may hold by default, from the memory that is free."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from bloomery.models import LlamaConfig


def token_bytes(config: LlamaConfig, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one token."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize


def budget(tokens: int, context: int, most: int) -> int:
    """The tokens that a cache may hold where memory for `tokens` is free: half of them, rounded down to a
    power of two so that it hardly depends on the moment, and `most` at most. A whole `context` even if that
    is more than half, but never more than is free.

    >>> budget(100_000, context=1024, most=262_144)
    32768
    >>> budget(1500, context=1024, most=262_144), budget(500, context=1024, most=262_144)
    (1024, 500)
    """
    half = 1 << max(0, tokens.bit_length() - 2)
    return max(1, min(most, tokens, max(context, half)))


def free(device: torch.device) -> int | None:
    """Bytes that may still be allocated there; on a CPU what the kernel and the container's limit leave, or
    all of the memory where neither is told. None where nothing is."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    return host(Path("/proc/meminfo"), Path("/sys/fs/cgroup"))


def host(meminfo: Path, cgroup: Path) -> int | None:
    """`free` of the machine, from files of Linux: the memory available, and a control group's limit less what
    it cannot give back."""
    available, limit = _number(meminfo, "MemAvailable:"), _number(cgroup / "memory.max")
    left = [] if available is None else [available * 1024]
    if limit is not None:
        left.append(max(0, limit - (_number(cgroup / "memory.stat", "anon") or 0)))
    return min(left) if left else _whole()


def _whole() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _number(path: Path, name: str = "") -> int | None:
    """The number after `name` at the start of a line, or None."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.removeprefix(name).split()
        if line.startswith(name) and words and words[0].isdigit():
            return int(words[0])
    return None
