"""Several rewards on one trunk, and their weighted sum, which is one reward again.

Heads are linear in the same hidden state, so any fixed weighting of them is itself a scalar head: a model
is trained with three numbers per answer and leaves as an ordinary reward model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bloomery.models.llama import ScalarModel
from bloomery.seeds import derive


def widen(model: ScalarModel, means: Sequence[float], seed: int) -> None:
    """Put H >= 2 fresh heads in place of the model's one: scores become `[B, T, H]`.

    Weights ~ normal(0, 1 / sqrt(D + 1)), each head from the stream (seed, "head", h). `means` `[H]` are
    what the heads add to their outputs: with the means of what they are to predict, they start there.
    """
    old, width = model.score.weight, model.config.hidden_size
    rows = []
    for h in range(len(means)):
        generator = torch.Generator().manual_seed(derive(seed, "head", h))
        rows.append(torch.randn(width, generator=generator) * (width + 1) ** -0.5)
    model.score = nn.Linear(width, len(means), bias=False, device=old.device, dtype=old.dtype)
    with torch.no_grad():
        model.score.weight.copy_(torch.stack(rows))
    model.shift = torch.tensor(means, device=old.device, dtype=old.dtype)


def fold(model: ScalarModel, weights: Tensor) -> None:
    """Make the weighted sum of the heads the model's one score: `s = sum_h weights_h s_h`, `[B, T]`."""
    heads = model.score.weight.detach()
    weights = weights.to(heads)
    model.score = nn.Linear(heads.shape[1], 1, bias=False, device=heads.device, dtype=heads.dtype)
    with torch.no_grad():
        model.score.weight.copy_(weights[None] @ heads)
    model.shift = (weights * model.shift).sum()
