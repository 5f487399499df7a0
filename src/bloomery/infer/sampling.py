"""Drawing tokens. A draw is a function of the request's seed and the step alone, never of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from bloomery.errors import UsageError
from bloomery.types import SamplingParams


def _signed(value: int) -> int:
    """The same 64 bits as a signed number, which is what torch computes in."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 taken as 64 plain bits."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _splitmix(x: Tensor) -> Tensor:
    """One output of the splitmix64 generator (Steele, Lea and Flood 2014) from the state x, int64 [...]."""
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _MIX[0]
    x = (x ^ _shift(x, 27)) * _MIX[1]
    return x ^ _shift(x, 31)


def uniforms(seeds: Tensor, step: int) -> Tensor:
    """Numbers in [0, 1), float64 [B], for the step-th draw of the requests with `seeds` int64 [B].

    53 bits of splitmix64(splitmix64(seed) + step): equal seeds and steps give equal numbers, whatever else
    is in the batch and in whatever order.
    """
    return _shift(_splitmix(_splitmix(seeds) + step), 11).double() * 2.0**-53


@dataclass(frozen=True, slots=True)
class Draw:
    """Sampling settings of a batch, one entry per row: `temperature` float32 [B], `top_k` int64 [B] (0 is
    off), `top_p` float32 [B] (1 is off), `seeds` int64 [B]. The flags say which rows' work may be skipped."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    seeds: Tensor
    greedy: bool
    mixed: bool
    plain: bool
    filtered: bool

    @classmethod
    def of(cls, params: Sequence[SamplingParams], device: torch.device | str = "cpu") -> Self:
        for one in params:
            check(one)
        cold = [one.temperature == 0 for one in params]
        return cls(
            torch.tensor([one.temperature for one in params], dtype=torch.float32, device=device),
            torch.tensor([one.top_k for one in params], dtype=torch.int64, device=device),
            torch.tensor([one.top_p for one in params], dtype=torch.float32, device=device),
            torch.tensor([_signed(one.seed) for one in params], dtype=torch.int64, device=device),
            greedy=all(cold),
            mixed=any(cold) and not all(cold),
            plain=all(one.temperature in (0, 1) for one in params),
            filtered=any((one.top_k > 0 or one.top_p < 1) and one.temperature > 0 for one in params),
        )

    def select(self, rows: Tensor) -> Draw:
        """The settings of some rows only; the flags stay true of the rest, at worst doing needless work."""
        return Draw(
            self.temperature[rows],
            self.top_k[rows],
            self.top_p[rows],
            self.seeds[rows],
            self.greedy,
            self.mixed,
            self.plain,
            self.filtered,
        )


def check(params: SamplingParams) -> None:
    """Raises `UsageError` for settings that mean nothing."""
    problems = (
        (params.max_tokens < 1, "max_tokens must be at least 1", params.max_tokens),
        (not 0 <= params.temperature < float("inf"), "temperature must be 0 or more", params.temperature),
        (not 0 < params.top_p <= 1, "top_p must be above 0 and at most 1", params.top_p),
        (params.top_k < 0, "top_k must be 0 (off) or more", params.top_k),
    )
    for wrong, what, got in problems:
        if wrong:
            raise UsageError(what, got=got)


def sample(logits: Tensor, draw: Draw, step: int) -> tuple[Tensor, Tensor]:
    """Draw one token per row: logits [B, V] -> (tokens int64 [B], logprobs float32 [B]).

    log-probabilities are those of the distribution drawn from, log softmax(logits / temperature) over the
    tokens that top-k and then top-p keep; for a greedy row those of log softmax(logits).
    """
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    if not draw.plain:
        warm = torch.where(draw.temperature > 0, draw.temperature, 1.0).to(logits.dtype)
        logits = logits / warm[:, None]
    best = logits.argmax(dim=-1) if draw.greedy or draw.mixed else None
    if draw.filtered:
        logits = restrict(logits, draw)
    logprobs = logits.log_softmax(dim=-1)
    if draw.greedy and best is not None:
        tokens = best
    else:
        tokens = inverse_cdf(logprobs, uniforms(draw.seeds, step))
        if best is not None:
            tokens = torch.where(draw.temperature == 0, best, tokens)
    return tokens, logprobs.gather(1, tokens[:, None]).squeeze(1)


def inverse_cdf(logprobs: Tensor, u: Tensor) -> Tensor:
    """The first token whose cumulative probability exceeds u * total: logprobs [B, V], u float64 [B] -> [B].

    Sums in float64. A token of probability 0 is never returned, not even when u * total rounds up to the
    total: the search is held at the first index that reaches it.
    """
    cumulative = logprobs.exp().double().cumsum(dim=-1)
    total = cumulative[:, -1:].contiguous()
    found = torch.searchsorted(cumulative, u[:, None] * total, right=True)
    return torch.minimum(found, torch.searchsorted(cumulative, total)).squeeze(1)


def restrict(logits: Tensor, draw: Draw) -> Tensor:
    """Set to -inf what top-k and then top-p leave out: [B, V] -> [B, V].

    top-k keeps the k largest (equal ones by lower id). top-p keeps the smallest set of largest tokens whose
    probability, renormalised after top-k, reaches p (Holtzman et al. 2019). Greedy rows are left alone.
    """
    rows = ((draw.top_k > 0) | (draw.top_p < 1)) & (draw.temperature > 0)
    if not rows.any():
        return logits
    top_k, top_p = draw.top_k[rows, None], draw.top_p[rows, None]
    ordered, order = logits[rows].sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.shape[1], device=logits.device)
    keep = (rank < top_k) | (top_k == 0)
    probabilities = ordered.masked_fill(~keep, float("-inf")).softmax(dim=-1).double()
    before = probabilities.cumsum(dim=-1) - probabilities
    keep &= (before < top_p) | (top_p >= 1) | (rank == 0)
    kept = torch.empty_like(keep).scatter_(1, order, keep)
    logits = logits.clone()
    logits[rows] = logits[rows].masked_fill(~kept, float("-inf"))
    return logits
