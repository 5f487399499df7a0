"""Rollouts as tensors, every one of them aligned with `tokens`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bloomery.types import Rollout


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """`tokens` is prompt + completion, right padded; `mask` is True on the completion with its end token.

    For prompt ids `7 8`, completion `9 5` with log-probs `-0.1 -0.7`, padded to 5:

        tokens        7     8     9     5     0
        mask          F     F     T     T     F
        old_logprobs  0.0   0.0  -0.1  -0.7   0.0
    """

    tokens: Tensor
    mask: Tensor
    old_logprobs: Tensor

    @staticmethod
    def of(rollouts: Sequence[Rollout], pad_id: int, device: torch.device | None = None) -> RolloutBatch:
        rows, width = len(rollouts), max(len(r.tokens) for r in rollouts)
        tokens = torch.full((rows, width), pad_id, dtype=torch.long)
        mask = torch.zeros(rows, width, dtype=torch.bool)
        old_logprobs = torch.zeros(rows, width)
        for i, r in enumerate(rollouts):
            start, end = len(r.prompt_tokens), len(r.tokens)
            tokens[i, :end] = torch.tensor(r.tokens)
            mask[i, start:end] = True
            old_logprobs[i, start:end] = torch.tensor(r.completion.logprobs)
        return RolloutBatch(tokens.to(device), mask.to(device), old_logprobs.to(device))

    def width_of(self, rows: Tensor) -> int:
        """Columns that hold something in these rows: a minibatch is trimmed to it."""
        used = self.mask[rows].any(0).nonzero()
        return int(used.max()) + 1 if len(used) else self.tokens.shape[1]


def trim(tensor: Tensor, rows: Tensor, width: int) -> Tensor:
    return tensor[rows, :width]
