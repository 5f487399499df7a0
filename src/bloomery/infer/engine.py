"""Generation with the very model code that training runs, many requests at a time.

A step admits whom it can, reads a piece of the prompts of those who came, and gives every running request one
token. A request that has ended leaves at once and the next takes its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq

import torch

from bloomery.errors import UsageError
from bloomery.infer import memory
from bloomery.infer.capture import Record, Steps, rounded
from bloomery.infer.sampling import Draw, NothingToDraw, check, sample
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

    At most `max_batch` requests run at a time, in a cache of at most `cache_tokens` tokens; others wait. If
    that is not given, half of the memory that is free when requests come to an engine that has none may be
    taken (`memory.budget`), at most all contexts full. While some are running, prompts are read at most
    `chunk` tokens a step. Stop strings need `decode`, from token ids to text.

    With `products` matrix products and the cache have that precision, as in a forward under autocast to it:
    give what training has, and the log-probs agree with the trainer's. Else they have that of the weights,
    whatever autocast is on. With `record` (`capture.cuda_graph` on a GPU) decoding is recorded and replayed,
    some rows more than run, in a cache as long as the longest request: equal to rounding.

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
        products: torch.dtype | None = None,
        record: Record | None = None,
    ) -> None:
        context = model.config.max_position_embeddings
        most = max_batch * context if cache_tokens is None else cache_tokens
        for name, value in (("max_batch", max_batch), ("cache_tokens", most), ("chunk", chunk)):
            if value < 1:
                raise UsageError(f"{name} must be at least 1", got=value)
        self.model, self.stop_id, self.pad_id = model, stop_id, pad_id
        self.chunk, self.decode, self.products, self.record = chunk, decode, products, record
        self._measured = cache_tokens is None
        self._scheduler = Scheduler(max_batch, most, self._new_cache, still=record is not None)
        self._packed: Llama | None = None
        self._steps: Steps | None = None
        self._draw: tuple[int, Draw] | None = None

    def __call__(self, prompts: Seq[Seq[int]], params: Seq[SamplingParams]) -> list[Completion]:
        """One completion per prompt, in their order. Raises `UsageError` for what `submit` refuses, before
        anything is generated, and for requests that cannot go on (see `step`). No memory is kept
        afterwards."""
        if len(prompts) != len(params):
            raise UsageError(
                "one set of sampling parameters per prompt", got=f"{len(params)} for {len(prompts)}"
            )
        self._look_again()
        made = [self._sequence(*pair, i) for i, pair in enumerate(zip(prompts, params, strict=True))]
        # Prompts of like length are read together with little padding, equal ones once.
        self._scheduler.waiting.extend(sorted(made, key=lambda seq: (-len(seq.prompt), seq.prompt)))
        try:
            while any(seq.finish_reason is None for seq in made):
                self._step_for(made)
        finally:
            for seq in made:
                self.cancel(seq)
            self.release()
        return [seq.completion() for seq in made]

    def stream(self, prompt: Seq[int], params: SamplingParams) -> Iterator[int]:
        """The tokens of one completion as they are drawn, the stop token included; the same as in a batch.
        Raises `UsageError` as a call does."""
        seq = self.submit(prompt, params)
        given = 0
        try:
            while seq.finish_reason is None:
                self._step_for([seq])
                yield from seq.tokens[given:]
                given = len(seq.tokens)
        finally:
            self.cancel(seq)

    def submit(self, prompt: Seq[int], params: SamplingParams) -> Sequence:
        """Queue a request. Raises `UsageError` for an empty prompt, one that leaves no room in the context,
        ids beyond the vocabulary, settings that mean nothing, and a request larger than the whole cache."""
        self._look_again()
        seq = self._sequence(prompt, params)
        self._scheduler.waiting.append(seq)
        return seq

    @torch.inference_mode()
    def cancel(self, seq: Sequence) -> None:
        """End a request now, with the reason "cancelled"; its place is free for the next step. One that has
        ended already stays as it is."""
        if seq.finish_reason is None:
            self._scheduler.remove(seq)
            seq.finish_reason = "cancelled"

    def _step_for(self, made: list[Sequence]) -> None:
        """A step for those who want all of `made` or nothing."""
        if any(seq.finish_reason == "error" for seq in self.step()):
            failed = [i for i, seq in enumerate(made) if seq.finish_reason == "error"]
            if failed:
                raise UsageError(
                    f"request {failed[0]} cannot go on: its logits are NaN, infinite or all banned",
                    got=f"nothing to draw for {len(failed)} of {len(made)} requests",
                    do="look for a diverged training run, or a logit_bias that leaves no token",
                )

    @torch.inference_mode()
    def step(self) -> list[Sequence]:
        """Admit, read, and draw one token for each running request: returns those, ended ones among them.
        A request whose logits leave nothing to draw (NaN, infinite, all banned) ends with the reason "error",
        and no other is touched."""
        scheduler = self._scheduler
        scheduler.admit()
        on = self.products is not None
        # A cast that torch keeps would be gone when a recording that reads it is replayed.
        with torch.autocast(self._device.type, dtype=self.products, enabled=on, cache_enabled=False):
            failed = self._read()
            scheduler.follow()
            running = scheduler.rows[: scheduler.running]
            if running:
                self._decode(running)
        for seq in reversed(running):
            if seq.finish_reason is not None:
                scheduler.remove(seq)
        return failed + running

    def release(self) -> None:
        """Give back the cache and the packed weights, unless requests are in flight."""
        if self._scheduler.idle:
            self._scheduler.cache = self._packed = self._steps = self._draw = None

    def _read(self) -> list[Sequence]:
        """Read up to a chunk of the prompts of the first rows that wait for it; returns those that cannot be
        read on."""
        scheduler = self._scheduler
        start = scheduler.running
        if start == len(scheduler.rows):
            return []
        budget = self.chunk if start else 4 * self.chunk
        count = max(1, budget // scheduler.rows[start].unread)
        rows = scheduler.rows[start : start + count]
        # All read on by the same width: one that has read much must not lengthen the cache beyond any need.
        room = scheduler.longest - max(seq.cached for seq in rows)
        width = min(max(seq.unread for seq in rows), max(1, budget // len(rows)), room)
        pieces = [seq.prompt[seq.cached : min(seq.cached + width, len(seq.prompt) - 1)] for seq in rows]
        padded = [[*piece, *[self.pad_id] * (width - len(piece))] for piece in pieces]
        cache = scheduler.view(start, start + len(rows), width)
        hidden = self._weights()(torch.tensor(padded, device=self._device), cache=cache)
        for seq, piece, sound in zip(rows, pieces, hidden.isfinite().flatten(1).all(1).tolist(), strict=True):
            seq.cached += len(piece)
            seq.finish_reason = None if sound else "error"
        failed = [seq for seq in rows if seq.finish_reason == "error"]
        for seq in reversed(failed):
            scheduler.remove(seq)
        for seq in rows:
            if not seq.unread and seq not in failed:
                scheduler.promote(seq)
        return failed

    def _decode(self, running: list[Sequence]) -> None:
        """One more token for every running row."""
        scheduler = self._scheduler
        if self._draw is None or self._draw[0] != scheduler.changes:
            self._draw = scheduler.changes, Draw.of([seq.params for seq in running], self._device)
        steps = torch.tensor([len(seq.tokens) for seq in running], device=self._device)
        logits = self._logits(running)
        try:
            drawn = sample(logits, self._draw[1], steps)
        except NothingToDraw as error:
            for row in error.rows:
                running[row].finish_reason = "error"
            left = [row for row, seq in enumerate(running) if seq.finish_reason is None]
            if not left:
                return
            running = [running[row] for row in left]
            draw = Draw.of([seq.params for seq in running], self._device)
            drawn = sample(logits[left], draw, steps[left])
        for seq, token, logprob, full in zip(running, *(one.tolist() for one in drawn), strict=True):
            seq.cached += 1
            seq.tokens.append(token)
            seq.logprobs.append(logprob)
            seq.full_logprobs.append(full)
            seq.finish_reason = self._reason(seq, token)

    def _logits(self, running: list[Sequence]) -> torch.Tensor:
        """Those of the next token of every running row [R, V]. A recording takes rows beyond them along: what
        it writes there, after the tokens they hold, is written over by what comes next."""
        scheduler, model, rows = self._scheduler, self._weights(), len(running)
        newest = [[seq.last] for seq in running]
        if self.record is None:
            view = scheduler.view(0, rows, 1)
            return model.logits(model(torch.tensor(newest, device=self._device), cache=view)[:, -1])
        if self._steps is None:
            self._steps = Steps(model, self.record)
        view = scheduler.view(0, rounded(rows), 1)
        newest += [[self.pad_id]] * (view.batch - rows)
        return self._steps(torch.tensor(newest, device=self._device), view)[:rows]

    def _reason(self, seq: Sequence, token: int) -> FinishReason | None:
        """Whether the token just drawn was the last."""
        if token in seq.stop_ids:
            return "stop"
        if seq.params.stop and self.decode is not None and ends(seq.params.stop, seq.tokens, self.decode):
            return "stop"
        return "length" if len(seq.tokens) == seq.limit else None

    @property
    def _device(self) -> torch.device:
        return self.model.model.embed_tokens.weight.device

    @property
    def _dtype(self) -> torch.dtype:
        return self.products or self.model.model.embed_tokens.weight.dtype

    def _look_again(self) -> None:
        """Unless requests are in flight, see how much memory is free, and forget the weights. Whether they
        have changed cannot be told: a fused optimizer writes them without raising their version counters."""
        if self._scheduler.idle:
            if self._measured and (free := memory.free(self._device)) is not None:
                config, cache = self.model.config, self._scheduler.cache
                tokens = free // memory.token_bytes(config, self._dtype)
                tokens += 0 if cache is None else cache.batch * cache.max_len
                context = config.max_position_embeddings
                self._scheduler.budget = memory.budget(tokens, context, self._scheduler.max_batch * context)
            self._packed = self._steps = None

    def _weights(self) -> Llama:
        """The model laid out for decoding."""
        if self._packed is None:
            self._packed = pack(self.model, self.products)
        return self._packed

    def _new_cache(self, rows: int, tokens: int) -> KVCache:
        return KVCache(self.model.config, rows, tokens, dtype=self._dtype, device=self._device)

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
        if sum(value == -math.inf for _, value in params.logit_bias) == vocabulary:
            raise UsageError(f"the logit_bias of prompt {index} bans every token", do="leave one to draw")
        limit = min(params.max_tokens, context - len(prompt))
        seq = Sequence(tuple(prompt), params, limit, frozenset((self.stop_id, *params.stop_ids)))
        if seq.need > self._scheduler.budget:
            raise UsageError(
                f"request {index} can never fit into the cache",
                got=f"{len(prompt)} + {limit} tokens",
                expected=f"at most {self._scheduler.budget + 1}",
                do="shorten the prompt, ask for fewer tokens, or "
                + ("free memory" if self._measured else "give the engine more cache_tokens"),
            )
        return seq


def ends(stops: Seq[str], tokens: list[int], decode: Callable[[list[int]], str]) -> bool:
    """Whether one of the stop strings ends in the last of the tokens, given that none did before.

    Looks back until the tokens before the last spell enough, as some spell nothing (control ids) and some a
    part of a character. Cutting between the bytes of a character makes at most three marks at either end.
    """
    enough = max(len(text) for text in stops) + 6
    reach = enough
    while True:
        tail = decode(tokens[-reach:])
        if any(text in tail for text in stops):
            return True
        if reach >= len(tokens) or len(decode(tokens[-reach:-1])) >= enough:
            return False
        reach *= 2
