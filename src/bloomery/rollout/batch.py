"""Rollouts as tensors, every one of them aligned with `tokens`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

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


def positions(device: torch.device) -> int:
    """How many a model reads at a time: on a CPU more are no faster, on a GPU fewer leave it idle."""
    return 1024 if device.type == "cpu" else 2**15


def pieces(mask: Tensor, budget: int | None = None) -> Iterator[tuple[Tensor, int]]:
    """Rows sorted by length, in runs of about `budget` positions (as suits the device, if not given):
    (indices of the rows, the width that holds all that counts in them)."""
    budget = positions(mask.device) if budget is None else budget
    used = torch.where(mask.any(1), mask.shape[1] - mask.flip(1).int().argmax(1), 1)
    order = used.argsort(stable=True)
    lengths, start = used[order].tolist(), 0
    while start < len(lengths):
        end = start + 1
        while end < len(lengths) and (end + 1 - start) * lengths[end] <= budget:
            end += 1
        yield order[start:end], lengths[end - 1]
        start = end


def in_pieces(
    read: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    tokens: Tensor,
    mask: Tensor,
    budget: int | None = None,
) -> tuple[Tensor, ...]:
    """`read(tokens, mask)` row by row alike, without paying for the padding of a few long rows.

    Rows go through `read` in `pieces` cut to their own width; its results, each `[B, T]`, come back in the
    order and width given, 0.0 where a piece did not reach.
    """
    found: list[tuple[Tensor, ...]] = []
    order: list[Tensor] = []
    for rows, width in pieces(mask, budget):
        gap = (0, mask.shape[1] - width)
        found.append(tuple(pad(x, gap) for x in read(tokens[rows, :width], mask[rows, :width])))
        order.append(rows)
    back = torch.cat(order).argsort()
    return tuple(torch.cat(part)[back] for part in zip(*found, strict=True))
