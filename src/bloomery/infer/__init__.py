"""Inference: sampling and the batched generation engine."""

from bloomery.infer.engine import Engine

__all__ = ["Engine"]
