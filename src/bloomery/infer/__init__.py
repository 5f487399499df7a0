"""Inference: sampling, the scheduler and the batched generation engine."""

from bloomery.infer.engine import Engine
from bloomery.infer.scheduler import Sequence

__all__ = ["Engine", "Sequence"]
