"""The order in which examples are seen: a pure function of the step, so resuming needs no state."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from bloomery.errors import UsageError
from bloomery.seeds import stream


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
