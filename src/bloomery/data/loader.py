"""The order in which examples are seen: a pure function of the step, so resuming needs no state."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from bloomery.errors import UsageError
from bloomery.seeds import stream

T = TypeVar("T")


@lru_cache(maxsize=8)
def order(num: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The permutation of 0..num-1 that epoch number `epoch` goes through."""
    return stream(seed, "shuffle", epoch).permutation(num)


def batch_indices(num: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Which of `num` examples are in the batch of `step`. Epochs follow each other without a gap, so no
    example is left out: with 3 examples and batches of 2, step 1 ends epoch 0 and begins epoch 1."""
    if num < 1:
        raise UsageError("there are no examples to draw a batch from")
    first = step * batch_size
    return [int(order(num, seed, i // num)[i % num]) for i in range(first, first + batch_size)]


def ahead(make: Callable[[int], T], total: int) -> Callable[[int], T]:
    """`make`, a pure function of the step, for a loop over steps up to `total`: while a step is under way a
    thread makes what the next one will ask for. What `make` raises comes out at the step it belongs to."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    made: dict[int, Future[T]] = {}

    def of(step: int) -> T:
        result = made.pop(step).result() if step in made else make(step)
        made.clear()
        if step + 1 < total:
            made[step + 1] = pool.submit(make, step + 1)
        return result

    return of
