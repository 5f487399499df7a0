"""Named random streams. A draw is a function of (seed, name, step), so resuming needs no stored state."""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream `names` of a run seeded with `seed`; the same on every machine."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """The generator of a named stream, e.g. `stream(recipe.seed, "shuffle", epoch)`."""
    return np.random.Generator(np.random.Philox(key=derive(seed, *names)))
