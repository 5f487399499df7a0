"""The learned reward: a frozen reward model's score at the last token of prompt + answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bloomery.models.llama import ScalarModel
from bloomery.types import Rollout


def score_sequences(
    model: ScalarModel, sequences: Sequence[Sequence[int]], pad_id: int, batch_tokens: int = 8192
) -> Tensor:
    """The score of each token sequence at its last token, `[N]`, with gradient if the caller allows it.

    Sequences are forwarded sorted by length, in batches of at most `batch_tokens` padded positions.
    """
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    device = next(model.parameters()).device
    found: list[Tensor] = []
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * len(sequences[order[end]]) <= batch_tokens:
            end += 1
        found.append(_last_scores(model, [sequences[i] for i in order[start:end]], pad_id, device))
        start = end
    scores = torch.cat(found)
    back = torch.empty(len(order), dtype=torch.long, device=device)
    back[torch.tensor(order, device=device)] = torch.arange(len(order), device=device)
    return scores[back]


def _last_scores(
    model: ScalarModel, rows: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> Tensor:
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.full((len(rows), int(lengths.max())), pad_id, dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    scores: Tensor = model(tokens.to(device)).float()
    return scores[torch.arange(len(rows), device=device), lengths.to(device) - 1]


class RewardModel:
    """`Reward` by a trained, frozen `ScalarModel`."""

    def __init__(self, model: ScalarModel, pad_id: int) -> None:
        self.model, self.pad_id = model.train(False).requires_grad_(False), pad_id

    @torch.no_grad()
    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        scores: list[float] = score_sequences(self.model, [r.tokens for r in rollouts], self.pad_id).tolist()
        return scores
