"""The process reward: a score read at the end of every step of an answer, and one number made of these.

What a step is, is said here once, for training and for rewards: what stands between separators. It ends at
the token that completes its separator, because only there it is known that it does not go on (`3` may become
`34`); the last step ends at the answer's last token, which is the end of the turn unless it was cut off. What
is blank is no step.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bloomery.models.llama import ScalarModel
from bloomery.models.slates import Batch, Tokens, batched, read_batches
from bloomery.rewards.model import read_once
from bloomery.text.tokenizer import Tokenizer
from bloomery.types import Rollout


@dataclass(frozen=True, slots=True)
class Stepped:
    """A prompt of `prompt` tokens and an answer to it; `ends` are the places of the steps' last tokens, of
    which there is at least one.

    For the prompt `7 8` and the answer `a \\n b <end>` with separator `\\n`:

        tokens   7  8  a  \\n  b  <end>        prompt 2, ends (3, 5)
    """

    tokens: Tokens
    prompt: int
    ends: tuple[int, ...]


def step_ends(answer: Tokens, tokenizer: Tokenizer, separator: str) -> list[int]:
    """The place in an answer's tokens of the last token of each step, rising; two steps that end in one token
    have the same. Empty where the answer is blank."""

    def complete(upto: int) -> int:
        """Separators that stand whole in the answer's first tokens."""
        return tokenizer.decode(answer[:upto]).count(separator)

    *parts, last = tokenizer.decode(answer).split(separator)
    tokens = range(len(answer) + 1)
    ends = [bisect_left(tokens, n, key=complete) - 1 for n, part in enumerate(parts, 1) if part.strip()]
    return [*ends, len(answer) - 1] if last.strip() else ends


def step_scores(
    model: ScalarModel, batches: Iterable[Batch], answers: Sequence[Stepped]
) -> tuple[Tensor, Tensor]:
    """The score at the end of each step of answers that were laid out in batches.

    Returns:
        scores and mask, both `[N, S]` for N answers of at most S steps, in the order given; the mask is True
        where an answer has a step, and what scores hold elsewhere means nothing.
    """
    counts = torch.tensor([len(a.ends) for a in answers])
    widest = int(counts.max())

    def read(batch: Batch) -> Tensor:
        width, at = batch.tokens.shape[1], list[int]()
        for place, (row, first, _) in zip(batch.places, batch.at, strict=True):
            start = row * width + first - int(batch.prefix[row])
            ends = [start + end for end in answers[place].ends]
            at += ends + [ends[-1]] * (widest - len(ends))
        where = torch.tensor(at, device=batch.tokens.device)
        scores: Tensor = model(batch.tokens, segments=batch.segments, prefix=batch.prefix, at=where)
        return scores.float().view(-1, widest)

    scores = read_batches(read, batches, next(model.parameters()).device)
    return scores, (torch.arange(widest) < counts[:, None]).to(scores.device)


def read_steps(
    model: ScalarModel, slates: Sequence[Sequence[Stepped]], pad_id: int, batch_tokens: int = 8192
) -> tuple[Tensor, Tensor]:
    """`step_scores` of slates of answers, in order; the answers of a slate have one prompt, which
    is forwarded once."""
    batches = batched(
        [[a.tokens for a in slate] for slate in slates],
        [slate[0].prompt for slate in slates],
        context=model.config.max_position_embeddings,
        pad_id=pad_id,
        batch_tokens=batch_tokens,
    )
    return step_scores(model, batches, [a for slate in slates for a in slate])


class ProcessReward:
    """The pooled steps of an answer by a trained, frozen `ScalarModel`; no opinion of one without a step.

    `pool` is one of `objectives.process.step_rewards`. `metrics` has the mean number of `steps`.
    """

    def __init__(
        self,
        model: ScalarModel,
        tokenizer: Tokenizer,
        pool: Callable[[Tensor, Tensor], Tensor],
        separator: str = "\n",
    ) -> None:
        self.model, self.tokenizer = model.train(False).requires_grad_(False), tokenizer
        self.pool, self.separator = pool, separator
        self.metrics: dict[str, float] = {}

    @torch.no_grad()
    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        found = [self._stepped(r) for r in rollouts]
        self.metrics = {"steps": sum(len(a.ends) for a in found) / max(1, len(found))}
        some = [a for a in found if a.ends]
        if not some:
            return [None] * len(found)
        pooled = iter(read_once(some, [a.tokens[: a.prompt] for a in some], self._pooled))
        return [next(pooled) if a.ends else None for a in found]

    def _pooled(self, slates: Sequence[Sequence[Stepped]]) -> Tensor:
        return self.pool(*read_steps(self.model, slates, self.tokenizer.pad_id))

    def _stepped(self, rollout: Rollout) -> Stepped:
        start = len(rollout.prompt_tokens)
        # Two steps that end in one token are read once.
        ends = dict.fromkeys(step_ends(rollout.completion.tokens, self.tokenizer, self.separator))
        return Stepped(rollout.tokens, start, tuple(start + end for end in ends))
