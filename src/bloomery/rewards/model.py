"""The learned reward: a frozen reward model's score at the last token of prompt + answer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from bloomery.models.llama import ScalarModel
from bloomery.models.slates import Batch, Tokens, read_slates
from bloomery.types import Rollout


def score_slates(
    model: ScalarModel, slates: Sequence[Sequence[Tokens]], pad_id: int, batch_tokens: int = 8192
) -> Tensor:
    """The score of each token sequence at its last token, `[N]` in the order given, slate after slate.

    What the sequences of a slate have in common at their start (the prompt) is forwarded once. Rows are
    forwarded sorted by length, in batches of at most `batch_tokens` padded positions.
    """

    def read(batch: Batch) -> Tensor:
        width = batch.tokens.shape[1]
        last = torch.tensor([row * width + end - 1 for row, _, end in batch.at], device=batch.tokens.device)
        scores: Tensor = model(batch.tokens, segments=batch.segments, prefix=batch.prefix, at=last)
        return scores.float()

    return read_slates(
        read,
        slates,
        [min(map(len, slate)) - 1 for slate in slates],
        context=model.config.max_position_embeddings,
        pad_id=pad_id,
        device=next(model.parameters()).device,
        batch_tokens=batch_tokens,
    )


def score_sequences(
    model: ScalarModel, sequences: Sequence[Tokens], pad_id: int, batch_tokens: int = 8192
) -> Tensor:
    """`score_slates` for sequences that have nothing in common."""
    return score_slates(model, [[s] for s in sequences], pad_id, batch_tokens)


class RewardModel:
    """`Reward` by a trained, frozen `ScalarModel`."""

    def __init__(self, model: ScalarModel, pad_id: int) -> None:
        self.model, self.pad_id = model.train(False).requires_grad_(False), pad_id

    @torch.no_grad()
    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        slates = [[r.tokens for r in same] for _, same in groupby(rollouts, key=lambda r: r.prompt_tokens)]
        scores: list[float] = score_slates(self.model, slates, self.pad_id).tolist()
        return scores
