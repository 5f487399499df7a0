"""Several reward models as one: what they disagree on is what an optimiser would exploit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from bloomery.errors import UsageError
from bloomery.registry import Registry
from bloomery.types import Reward, Rollout

Floats = NDArray[np.float64]
Pool = Callable[[Floats], Floats]

# Scores [M, N] of M members on N answers -> [N]. Coste et al. 2023, "Reward Model Ensembles Help Mitigate
# Overoptimization" (arXiv 2310.02743), section 3.
pools: Registry[Pool] = Registry("ensemble pool")


@pools.register("mean")
def mean(scores: Floats) -> Floats:
    """The members' mean: their errors average out where they are independent."""
    out: Floats = scores.mean(axis=0)
    return out


@pools.register("minimum")
def minimum(scores: Floats) -> Floats:
    """The lowest: an answer is as good as its severest judge says (worst-case optimisation)."""
    out: Floats = scores.min(axis=0)
    return out


@pools.register("uncertainty")
def uncertainty(scores: Floats, *, penalty: Annotated[float, Field(ge=0)] = 0.5) -> Floats:
    """The mean less `penalty` times the members' variance (uncertainty-weighted optimisation)."""
    out: Floats = scores.mean(axis=0) - penalty * scores.var(axis=0)
    return out


class Ensemble:
    """`Reward` by M >= 2 members, pooled. Members are to share a scale, as reward models trained on the same
    rankings and centred on the same demonstrations do: a member on a larger one would outvote the rest.

    `metrics["disagreement"]` is the mean over the last call's answers of the members' standard deviation.
    """

    def __init__(self, members: Sequence[Reward], pool: Pool = mean) -> None:
        if len(members) < 2:
            raise UsageError("an ensemble has at least two members", got=len(members))
        self.members, self.pool = tuple(members), pool
        self.metrics: dict[str, float] = {}

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        scores = np.array([member(rollouts) for member in self.members], dtype=np.float64)
        self.metrics = {"disagreement": float(scores.std(axis=0).mean()) if rollouts else 0.0}
        found: list[float] = self.pool(scores).tolist()
        return found
