"""Batched generation with the very model code that training runs.

Prompts are sorted by length and read in right-padded passes (equal prompts once); then every unfinished row
gets one token a step, and finished rows are dropped from the batch as they pile up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bloomery.errors import UsageError
from bloomery.infer.sampling import Draw, check, sample
from bloomery.models import KVCache, Llama
from bloomery.types import Completion, SamplingParams

# Rows are dropped when at least this fraction of the batch has finished: dropping copies the cache.
DROP_FRACTION = 0.125
# Prompts read in one padded pass; they come sorted by length, so few rows mean little padding.
PREFILL_ROWS = 32


@dataclass(frozen=True, slots=True)
class Step:
    """One token for each row still in the batch: `rows` say which request it is, `done` that it was the last.

    All [N]: rows int64, tokens int64, logprobs float32, done bool. Rows that were done before may recur until
    they are dropped; `live` is False for them.
    """

    rows: Tensor
    tokens: Tensor
    logprobs: Tensor
    done: Tensor
    live: Tensor


class Engine:
    """Generates completions; implements `types.Generate`.

    A completion ends with `stop_id` (kept as its last token), after `max_tokens`, or where prompt and
    completion fill the model's context; the last two give the finish reason "length". The model is used as
    it is at the time of a call, so an engine on a policy in training is never stale.

    A request's uniform draws depend on its seed and step only. Its logits depend on its batch mates through
    the rounding of matrix products (about 1e-6 in float32), so a draw that falls within that distance of a
    boundary between two tokens can come out differently in another batch.
    """

    def __init__(self, model: Llama, *, stop_id: int, pad_id: int, max_batch: int = 256) -> None:
        if max_batch < 1:
            raise UsageError("max_batch must be at least 1", got=max_batch)
        self.model, self.stop_id, self.pad_id, self.max_batch = model, stop_id, pad_id, max_batch

    def __call__(
        self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]
    ) -> list[Completion]:
        """One completion per prompt, in their order. Raises `UsageError` for an empty prompt, one that
        leaves no room in the context, ids beyond the vocabulary, and settings that mean nothing."""
        self._check(prompts, params)
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), tuple(prompts[i])))
        completions: dict[int, Completion] = {}
        for start in range(0, len(order), self.max_batch):
            batch = order[start : start + self.max_batch]
            made = self._batch([prompts[i] for i in batch], [params[i] for i in batch])
            completions.update(zip(batch, made, strict=True))
        return [completions[i] for i in range(len(prompts))]

    def stream(self, prompt: Sequence[int], params: SamplingParams) -> Iterator[int]:
        """The tokens of one completion as they are drawn, the stop token included; the same as in a batch."""
        self._check([prompt], [params])
        for step in self._steps([prompt], [params]):
            yield int(step.tokens[0])

    def _batch(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> list[Completion]:
        steps = list(self._steps(prompts, params))
        size = (len(prompts), len(steps))
        tokens, logprobs = torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.float64)
        lengths = torch.zeros(len(prompts), dtype=torch.int64)
        for column, step in enumerate(steps):
            rows = step.rows[step.live].cpu()
            tokens[rows, column] = step.tokens[step.live].cpu()
            logprobs[rows, column] = step.logprobs[step.live].cpu().double()
            lengths[rows] += 1
        return [
            Completion(tuple(t[:n]), tuple(p[:n]), "stop" if t[n - 1] == self.stop_id else "length")
            for t, p, n in zip(tokens.tolist(), logprobs.tolist(), lengths.tolist(), strict=True)
        ]

    @torch.inference_mode()
    def _steps(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> Iterator[Step]:
        """Prefill, then decode until every row is done."""
        device = next(self.model.parameters()).device
        context = self.model.config.max_position_embeddings
        limits = [min(one.max_tokens, context - len(p)) for p, one in zip(prompts, params, strict=True)]
        limit = torch.tensor(limits, device=device)
        draw = Draw.of(params, device)
        rows = torch.arange(len(prompts), device=device)
        live = torch.ones(len(prompts), dtype=torch.bool, device=device)
        hidden, cache = self._prefill(prompts, min(context, max(map(len, prompts)) + max(limits)))
        for step in range(max(limits)):
            tokens, logprobs = sample(self.model.logits(hidden), draw, step)
            done = (tokens == self.stop_id) | (limit <= step + 1)
            yield Step(rows, tokens, logprobs, done, live)
            live = live & ~done
            remaining = int(live.sum())
            if remaining == 0:
                return
            if remaining <= len(rows) * (1 - DROP_FRACTION):
                keep = live.nonzero().squeeze(1)
                cache.select(keep)
                rows, tokens, limit, live, draw = (
                    rows[keep],
                    tokens[keep],
                    limit[keep],
                    live[keep],
                    draw.select(keep),
                )
            elif remaining < len(rows):
                # A finished row that stays must not run out of the cache: it starts over, unseen.
                cache.trim(cache.lengths.where(live, 0))
            hidden = self.model(tokens[:, None], cache=cache)[:, -1]

    def _prefill(self, prompts: Sequence[Sequence[int]], max_len: int) -> tuple[Tensor, KVCache]:
        """Read the prompts, equal ones once: the hidden state [B, D] of each last token, and the cache."""
        parameter = next(self.model.parameters())
        device = parameter.device
        index = {prompt: i for i, prompt in enumerate(dict.fromkeys(tuple(p) for p in prompts))}
        distinct = list(index)
        cache = KVCache(self.model.config, len(distinct), max_len, dtype=parameter.dtype, device=device)
        ends: list[Tensor] = []
        for start in range(0, len(distinct), PREFILL_ROWS):
            some = distinct[start : start + PREFILL_ROWS]
            lengths, width = torch.tensor([len(p) for p in some], device=device), max(map(len, some))
            padded = torch.tensor([[*p, *([self.pad_id] * (width - len(p)))] for p in some], device=device)
            hidden = self.model(padded, cache=cache.share(start, start + len(some)))
            ends.append(hidden[torch.arange(len(some), device=device), lengths - 1])
        cache.trim(torch.tensor([len(p) for p in distinct], device=device))
        last = torch.cat(ends)
        if len(distinct) < len(prompts):
            rows = torch.tensor([index[tuple(p)] for p in prompts], device=device)
            cache.select(rows)
            last = last[rows]
        return last, cache

    def _check(self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> None:
        if len(prompts) != len(params):
            raise UsageError(
                "one set of sampling parameters per prompt", got=f"{len(params)} for {len(prompts)}"
            )
        config = self.model.config
        for index, (prompt, one) in enumerate(zip(prompts, params, strict=True)):
            check(one)
            if not 0 < len(prompt) < config.max_position_embeddings:
                raise UsageError(
                    f"prompt {index} is empty or leaves no room in the model's context",
                    got=f"{len(prompt)} tokens",
                    expected=f"1 to {config.max_position_embeddings - 1}",
                    do="shorten the prompt",
                )
            if min(prompt) < 0 or max(prompt) >= config.vocab_size:
                raise UsageError(
                    f"prompt {index} holds ids that are not in the vocabulary",
                    got=f"{min(prompt)} to {max(prompt)}",
                    expected=f"0 to {config.vocab_size - 1}",
                    do="use the tokenizer that belongs to the model",
                )
