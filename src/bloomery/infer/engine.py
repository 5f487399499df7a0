"""Generation with the very model code that training runs, many requests at a time.

A step admits whom it can, reads a piece of the prompts of those who came, and gives every running request one
token. A request that has ended leaves at once and the next takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq

import torch

from bloomery.errors import UsageError
from bloomery.infer.sampling import Draw, check, sample
from bloomery.infer.scheduler import Scheduler, Sequence
from bloomery.models import KVCache, Llama
from bloomery.models.packed import pack
from bloomery.types import Completion, FinishReason, SamplingParams


class Engine:
    """Generates completions; implements `types.Generate`.

    `engine(prompts, params)` answers them all. A server calls `submit`, `step` and `cancel` instead, from one
    thread; a `Sequence` belongs to whoever submitted it and the engine forgets it when it has ended.

    A completion ends with `stop_id` or one of the request's own stops (kept as its last token), after
    `max_tokens`, or where prompt and completion fill the model's context; the last two give the finish reason
    "length". The weights are looked at whenever requests come to an engine that has none, so that a call sees
    the policy in training as it is; they must not change while requests are in flight.

    At most `max_batch` requests run at a time, in a cache of at most `cache_tokens` tokens (all contexts full
    if not given); others wait. While some are running, prompts are read at most `chunk` tokens a step.
    Stop strings need `decode`, from token ids to text.

    A request's uniform draws depend on its seed and step only. Its logits depend on its batch mates through
    the rounding of matrix products (about 1e-6 in float32), so a draw that falls within that distance of a
    boundary between two tokens can come out differently in another batch.
    """

    def __init__(
        self,
        model: Llama,
        *,
        stop_id: int,
        pad_id: int,
        max_batch: int = 256,
        cache_tokens: int | None = None,
        chunk: int = 512,
        decode: Callable[[list[int]], str] | None = None,
    ) -> None:
        context = model.config.max_position_embeddings
        cache_tokens = max_batch * context if cache_tokens is None else cache_tokens
        for name, value in (("max_batch", max_batch), ("cache_tokens", cache_tokens), ("chunk", chunk)):
            if value < 1:
                raise UsageError(f"{name} must be at least 1", got=value)
        self.model, self.stop_id, self.pad_id = model, stop_id, pad_id
        self.chunk, self.decode = chunk, decode
        self._scheduler = Scheduler(max_batch, cache_tokens, self._new_cache)
        self._packed: Llama | None = None
        self._draw: tuple[int, Draw] | None = None

    def __call__(self, prompts: Seq[Seq[int]], params: Seq[SamplingParams]) -> list[Completion]:
        """One completion per prompt, in their order. Raises `UsageError` for what `submit` refuses, before
        anything is generated. No memory is kept afterwards."""
        if len(prompts) != len(params):
            raise UsageError(
                "one set of sampling parameters per prompt", got=f"{len(params)} for {len(prompts)}"
            )
        made = [self._sequence(*pair, i) for i, pair in enumerate(zip(prompts, params, strict=True))]
        self._look_again()
        # Prompts of like length are read together with little padding, equal ones once.
        self._scheduler.waiting.extend(sorted(made, key=lambda seq: (-len(seq.prompt), seq.prompt)))
        try:
            while any(seq.finish_reason is None for seq in made):
                self.step()
        finally:
            for seq in made:
                self.cancel(seq)
            self.release()
        return [seq.completion() for seq in made]

    def stream(self, prompt: Seq[int], params: SamplingParams) -> Iterator[int]:
        """The tokens of one completion as they are drawn, the stop token included; the same as in a batch."""
        seq = self.submit(prompt, params)
        given = 0
        try:
            while seq.finish_reason is None:
                self.step()
                yield from seq.tokens[given:]
                given = len(seq.tokens)
        finally:
            self.cancel(seq)

    def submit(self, prompt: Seq[int], params: SamplingParams) -> Sequence:
        """Queue a request. Raises `UsageError` for an empty prompt, one that leaves no room in the context,
        ids beyond the vocabulary, settings that mean nothing, and a request larger than the whole cache."""
        seq = self._sequence(prompt, params)
        self._look_again()
        self._scheduler.waiting.append(seq)
        return seq

    def cancel(self, seq: Sequence) -> None:
        """End a request now, with the reason "cancelled"; its place is free for the next step. One that has
        ended already stays as it is."""
        if seq.finish_reason is None:
            self._scheduler.remove(seq)
            seq.finish_reason = "cancelled"

    @torch.inference_mode()
    def step(self) -> list[Sequence]:
        """Admit, read, and draw one token for each running request: returns those, ended ones among them.
        In the precision of the weights, whatever autocast is on. Raises `UsageError` when the model's logits
        leave nothing to draw."""
        scheduler = self._scheduler
        scheduler.admit()
        with torch.autocast(self._device.type, enabled=False):
            self._read()
            scheduler.follow()
            running = scheduler.rows[: scheduler.running]
            if running:
                self._decode(running)
        for seq in reversed(running):
            if seq.finish_reason is not None:
                scheduler.remove(seq)
        return running

    def release(self) -> None:
        """Give back the cache and the packed weights, unless requests are in flight."""
        if self._scheduler.idle:
            self._scheduler.cache = self._packed = self._draw = None

    def _read(self) -> None:
        """Read up to a chunk of the prompts of the first rows that wait for it."""
        scheduler = self._scheduler
        start = scheduler.running
        if start == len(scheduler.rows):
            return
        budget = self.chunk if start else 4 * self.chunk
        count = max(1, budget // scheduler.rows[start].unread)
        rows = scheduler.rows[start : start + count]
        room = self.model.config.max_position_embeddings - max(seq.cached for seq in rows)
        width = min(max(seq.unread for seq in rows), max(1, budget // len(rows)), room)
        pieces = [seq.prompt[seq.cached : min(seq.cached + width, len(seq.prompt) - 1)] for seq in rows]
        padded = [[*piece, *[self.pad_id] * (width - len(piece))] for piece in pieces]
        cache = scheduler.view(start, start + len(rows), width)
        self._weights()(torch.tensor(padded, device=self._device), cache=cache)
        for seq, piece in zip(rows, pieces, strict=True):
            seq.cached += len(piece)
            if not seq.unread:
                scheduler.promote(seq)

    def _decode(self, running: list[Sequence]) -> None:
        """One more token for every running row."""
        scheduler, model = self._scheduler, self._weights()
        if self._draw is None or self._draw[0] != scheduler.changes:
            self._draw = scheduler.changes, Draw.of([seq.params for seq in running], self._device)
        newest = torch.tensor([[seq.last] for seq in running], device=self._device)
        steps = torch.tensor([len(seq.tokens) for seq in running], device=self._device)
        hidden = model(newest, cache=scheduler.view(0, len(running), 1))[:, -1]
        drawn = (one.tolist() for one in sample(model.logits(hidden), self._draw[1], steps))
        for seq, token, logprob, full in zip(running, *drawn, strict=True):
            seq.cached += 1
            seq.tokens.append(token)
            seq.logprobs.append(logprob)
            seq.full_logprobs.append(full)
            seq.finish_reason = self._reason(seq, token)

    def _reason(self, seq: Sequence, token: int) -> FinishReason | None:
        """Whether the token just drawn was the last."""
        if token in seq.stop_ids:
            return "stop"
        if seq.params.stop and self.decode is not None:
            # Each token spells at least a byte, so no more of them can hold a stop string that just ended.
            reach = max(len(text.encode()) for text in seq.params.stop) + 1
            tail = self.decode(seq.tokens[-reach:])
            if any(text in tail for text in seq.params.stop):
                return "stop"
        return "length" if len(seq.tokens) == seq.limit else None

    @property
    def _device(self) -> torch.device:
        return self.model.model.embed_tokens.weight.device

    def _look_again(self) -> None:
        """Forget the weights unless requests are in flight. Whether they have changed cannot be told: a fused
        optimizer writes them without raising their version counters."""
        if self._scheduler.idle:
            self._packed = None

    def _weights(self) -> Llama:
        """The model laid out for decoding."""
        if self._packed is None:
            self._packed = pack(self.model)
        return self._packed

    def _new_cache(self, rows: int, tokens: int) -> KVCache:
        dtype = self.model.model.embed_tokens.weight.dtype
        return KVCache(self.model.config, rows, tokens, dtype=dtype, device=self._device)

    def _sequence(self, prompt: Seq[int], params: SamplingParams, index: int = 0) -> Sequence:
        check(params)
        context, vocabulary = self.model.config.max_position_embeddings, self.model.config.vocab_size
        if not 0 < len(prompt) < context:
            raise UsageError(
                f"prompt {index} is empty or leaves no room in the model's context",
                got=f"{len(prompt)} tokens",
                expected=f"1 to {context - 1}",
                do="shorten the prompt",
            )
        named = [*prompt, *(token for token, _ in params.logit_bias)]
        if min(named) < 0 or max(named) >= vocabulary:
            raise UsageError(
                f"prompt {index} or its logit_bias holds ids that are not in the vocabulary",
                got=f"{min(named)} to {max(named)}",
                expected=f"0 to {vocabulary - 1}",
                do="use the tokenizer that belongs to the model",
            )
        if params.stop and self.decode is None:
            raise UsageError("stop strings need an engine that can decode", got=params.stop)
        limit = min(params.max_tokens, context - len(prompt))
        seq = Sequence(tuple(prompt), params, limit, frozenset((self.stop_id, *params.stop_ids)))
        if seq.need > self._scheduler.budget:
            raise UsageError(
                f"request {index} can never fit into the cache",
                got=f"{len(prompt)} + {limit} tokens",
                expected=f"at most {self._scheduler.budget + 1}",
                do="shorten the prompt, ask for fewer tokens, or give the engine more cache_tokens",
            )
        return seq
