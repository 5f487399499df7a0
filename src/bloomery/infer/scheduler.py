"""Which request sits in which row of the cache, who waits, and how large the cache is.

Rows 0 to `running` decode; the rows after them are reading their prompts. Rows are kept together: where one
ends, the last of its kind takes its place. A prompt that is already there is not read again: a request with
an equal one follows the row that holds it, and copies its keys and values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from bloomery.models import KVCache
from bloomery.types import Completion, FinishReason, SamplingParams

# The cache is a whole number of pieces of this many tokens long, or as long as the longest request's need.
PIECE = 64


@dataclass(slots=True, eq=False)
class Sequence:
    """A request and what has come of it. `limit` is how many tokens it may draw, `cached` how many of prompt
    and completion the cache holds; the newest token is never among them."""

    prompt: tuple[int, ...]
    params: SamplingParams
    limit: int
    stop_ids: frozenset[int]
    cached: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    full_logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def need(self) -> int:
        """Tokens the cache must be able to hold for this request."""
        return len(self.prompt) + self.limit - 1

    @property
    def unread(self) -> int:
        """Tokens of the prompt to read before decoding, which starts from the prompt's last token."""
        return len(self.prompt) - 1 - self.cached

    @property
    def last(self) -> int:
        return self.tokens[-1] if self.tokens else self.prompt[-1]

    def completion(self) -> Completion:
        """What was drawn, once `finish_reason` is set."""
        assert self.finish_reason is not None, "the sequence has not ended"
        return Completion(
            tuple(self.tokens), tuple(self.logprobs), self.finish_reason, tuple(self.full_logprobs)
        )


class Scheduler:
    """First come, first served. A request is admitted when a row is free and the cache, all rows as long as
    the longest admitted request may become, stays within `budget` tokens; until then it waits.

    `new_cache(rows, tokens)` allocates; `still`, as long as the longest request at once, so that it moves
    seldom. `changes` counts how often the running rows became others.
    """

    def __init__(
        self, max_batch: int, budget: int, new_cache: Callable[[int, int], KVCache], still: bool = False
    ) -> None:
        self.max_batch, self.budget, self.new_cache, self.still = max_batch, budget, new_cache, still
        self.waiting: deque[Sequence] = deque()
        self.following: list[Sequence] = []
        self.rows: list[Sequence] = []
        self.running = 0
        self.changes = 0
        self.cache: KVCache | None = None

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.following or self.rows)

    @property
    def longest(self) -> int:
        """Tokens that the longest admitted request may need: no row of the cache is ever longer."""
        return max((seq.need for seq in (*self.rows, *self.following)), default=0)

    def admit(self) -> None:
        """Let in those who fit: to a row of their own, or after a row with the same prompt."""
        if not self.waiting:
            return
        resident = [*self.rows, *self.following]
        longest = self.longest
        coming: list[Sequence] = []
        while self.waiting and (count := len(resident) + len(coming) + 1) <= self.max_batch:
            longest = max(longest, self.waiting[0].need)
            if count * longest > self.budget:
                break
            coming.append(self.waiting.popleft())
        prompts = {seq.prompt for seq in resident} if coming else set()
        for seq in coming:
            if seq.prompt in prompts and seq.unread:
                self.following.append(seq)
            else:
                self._seat(seq)
            prompts.add(seq.prompt)

    def follow(self) -> None:
        """Seat the followers of prompts that have been read; one whose leader is gone reads for itself."""
        if not self.following:
            return
        read = {seq.prompt: row for row, seq in enumerate(self.rows[: self.running])}
        reading = {seq.prompt for seq in self.rows[self.running :]}
        followers, self.following = self.following, []
        for seq in followers:
            if seq.prompt in reading:
                self.following.append(seq)
                continue
            if seq.prompt in read:
                cache = self._fit(len(self.rows) + 1, len(seq.prompt))
                cache.copy(read[seq.prompt], len(self.rows), seq.unread)
                seq.cached = seq.unread
            else:
                reading.add(seq.prompt)
            self._seat(seq)

    def promote(self, seq: Sequence) -> None:
        """From reading to running."""
        row, first = self.rows.index(seq), self.running
        other = self.rows[first]
        if row != first and (length := max(seq.cached, other.cached)):
            self._fit(len(self.rows), length).swap(row, first, length)
        self.rows[row], self.rows[first] = other, seq
        self.running += 1
        self.changes += 1

    def remove(self, seq: Sequence) -> None:
        """Free the place of a sequence, wherever it is. One that ended by an error may have left NaN there:
        what is masked weighs nothing in attention, but 0 times NaN is NaN."""
        for queue in (self.waiting, self.following):
            if seq in queue:
                queue.remove(seq)
                return
        hole = self.rows.index(seq)
        if seq.finish_reason == "error" and self.cache is not None:
            for part in (*self.cache.keys, *self.cache.values):
                part[hole] = 0
        if hole < self.running:
            self.running -= 1
            self.changes += 1
            self._move(self.running, hole)
            hole = self.running
        self._move(len(self.rows) - 1, hole)
        self.rows.pop()

    def view(self, start: int, stop: int, num: int) -> KVCache:
        """The cache of rows start to stop, with room for `num` more tokens in each. Rows may be free; where
        the cache has fewer, so has the view."""
        lengths = [seq.cached for seq in self.rows[start:stop]]
        cache = self._fit(len(self.rows), max(lengths) + num)
        part = cache.share(start, min(stop, cache.batch))
        part.trim(torch.tensor(lengths + [0] * (part.batch - len(lengths))))
        return part

    def _seat(self, seq: Sequence) -> None:
        self.rows.append(seq)
        if not seq.unread:
            self.promote(seq)

    def _move(self, source: int, target: int) -> None:
        if source != target:
            if self.cache is not None and (length := self.rows[source].cached):
                self.cache.copy(source, target, length)
            self.rows[target] = self.rows[source]

    def _fit(self, rows: int, tokens: int) -> KVCache:
        """The cache, enlarged if need be, or cut when it has become much too long: attention goes over all of
        it. Rows for everybody admitted at once; later by doubling."""
        rows = max(rows, len(self.rows) + len(self.following))
        tokens = max(tokens, *(seq.cached for seq in self.rows))
        cache, most = self.cache, 2 * tokens + PIECE
        if (
            cache is not None
            and rows <= cache.batch
            and tokens <= cache.max_len
            and (self.still or cache.max_len <= most)
        ):
            return cache
        rounded = -(-(tokens + PIECE // 2) // PIECE) * PIECE
        tokens = max(tokens, max(2, self.longest) if self.still else min(self.longest, rounded))
        if cache is None:
            self.cache = cache = self.new_cache(rows, tokens)
            return cache
        more = cache.batch if rows <= cache.batch else min(2 * cache.batch, self.max_batch)
        spare = min(more, self.budget // tokens) if self.waiting or rows > cache.batch else rows
        cache.resize(max(rows, spare), tokens)
        return cache
