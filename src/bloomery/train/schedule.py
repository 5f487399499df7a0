"""Learning rates as a function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from typing import Literal

from bloomery.errors import UsageError

Schedule = Literal["cosine", "wsd", "linear", "constant"]


def learning_rate(
    step: int,
    *,
    total: int,
    peak: float,
    warmup: int = 0,
    kind: Schedule = "cosine",
    floor: float = 0.1,
    decay_fraction: float = 0.2,
) -> float:
    """The learning rate of update `step` (0 is the first, total - 1 the last).

    Warmup is linear: update s < warmup gets peak * (s + 1) / warmup, so that the first update already
    moves and the last of the warmup is at the peak. Then, with n = step + 1:

    - "constant": peak.
    - "cosine" (Loshchilov & Hutter 2017): from the peak to floor * peak at the last update.
    - "linear": the same ends, a straight line.
    - "wsd", warmup-stable-decay (Hu et al. 2024, MiniCPM): peak until the last `decay_fraction` of all
      updates, then a straight line to floor * peak.

    `floor` is a fraction of the peak. Raises `UsageError` for an unknown kind or a step outside the run.
    """
    if not 0 <= step < total:
        raise UsageError("no such step in this schedule", got=step, expected=f"0 to {total - 1}")
    if step < warmup:
        return peak * (step + 1) / warmup
    if kind == "constant":
        return peak
    start = warmup if kind != "wsd" else max(warmup, total - round(total * decay_fraction))
    done = max(0, step + 1 - start) / max(1, total - start)
    if kind == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * done))
    elif kind in ("linear", "wsd"):
        share = 1 - done
    else:
        raise UsageError(f"no schedule is called '{kind}'", expected="cosine, wsd, linear or constant")
    return peak * (floor + (1 - floor) * share)
