"""Next-token prediction: the objective of pretraining and of supervised fine-tuning."""

from __future__ import annotations

import math

from torch import Tensor


def nll(logprobs: Tensor) -> Tensor:
    """Negative log-likelihood of each token in nats, `[B, T]`: the per-token cross-entropy."""
    return -logprobs


def bits_per_byte(nll_sum: float, num_bytes: int) -> float:
    """Nats over a text turned into bits per UTF-8 byte: comparable across tokenizers."""
    return nll_sum / math.log(2) / num_bytes
