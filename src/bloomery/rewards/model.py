"""The learned reward: a frozen reward model's score at the last token of prompt + answer."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import chain, groupby
from typing import TypeVar

import torch
from torch import Tensor

from bloomery.models.llama import ScalarModel
from bloomery.models.slates import Batch, Group, Tokens, batched, in_groups, read_batches
from bloomery.types import Rollout

A = TypeVar("A", bound=Hashable)


def score_groups(
    slates: Sequence[Sequence[Tokens]], *, context: int, pad_id: int, batch_tokens: int
) -> list[Group]:
    """`in_groups` for `score_slates`."""
    return in_groups(slates, _shared(slates), context=context, pad_id=pad_id, batch_tokens=batch_tokens)


def _shared(slates: Sequence[Sequence[Tokens]]) -> list[int]:
    """How many tokens each slate's sequences may share: not the last of any, where its score is read."""
    return [min(map(len, slate)) - 1 for slate in slates]


def score_slates(
    model: ScalarModel,
    slates: Sequence[Sequence[Tokens]],
    pad_id: int,
    batch_tokens: int = 8192,
) -> Tensor:
    """The score of each token sequence at its last token, `[N]` in the order given, slate after slate.

    What the sequences of a slate have in common at their start (the prompt) is forwarded once. Rows are
    forwarded sorted by length, in batches of at most `batch_tokens` padded positions.
    """
    context = model.config.max_position_embeddings
    return score_batches(
        model, batched(slates, _shared(slates), context=context, pad_id=pad_id, batch_tokens=batch_tokens)
    )


def score_batches(model: ScalarModel, batches: Iterable[Batch]) -> Tensor:
    """`score_slates` of what was laid out before."""

    def read(batch: Batch) -> Tensor:
        width = batch.tokens.shape[1]
        last = torch.tensor([row * width + end - 1 for row, _, end in batch.at], device=batch.tokens.device)
        scores: Tensor = model(batch.tokens, segments=batch.segments, prefix=batch.prefix, at=last)
        return scores.float()

    return read_batches(read, batches, next(model.parameters()).device)


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
        answers, prompts = [r.tokens for r in rollouts], [r.prompt_tokens for r in rollouts]
        return read_once(answers, prompts, lambda slates: score_slates(self.model, slates, self.pad_id))


def read_once(
    answers: Sequence[A], prompts: Sequence[Tokens], read: Callable[[Sequence[Sequence[A]]], Tensor]
) -> list[float]:
    """Scores of answers by `read`, which gets them in slates of neighbours to one prompt, equal ones once.
    An answer holds its prompt's tokens, so that equal ones are answers to the same prompt.

    An answer's place in a row moves the last bit of its score. Equal answers are not to differ by such a
    rounding, which group advantages and pairs would magnify.
    """
    together = groupby(zip(prompts, answers, strict=True), key=lambda pair: pair[0])
    slates = [list(dict.fromkeys(answer for _, answer in same)) for _, same in together]
    found = dict(zip(chain.from_iterable(slates), read(slates).tolist(), strict=True))
    return [found[answer] for answer in answers]
