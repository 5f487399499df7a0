"""Drawing tokens. A draw is a function of the request's seed and the step alone, never of the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from bloomery.errors import UsageError
from bloomery.types import SamplingParams

# Probabilities are summed in blocks of this many tokens, and only one block of a row is searched.
BLOCK = 64
# What float32 can hold, and a temperature by which any sane logit can be divided within it.
LARGEST, COLDEST = torch.finfo(torch.float32).max, 1e-30
# Tokens looked at first when a filter needs the largest; times 8 until they hold enough probability.
HEAD = 64


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


def uniforms(seeds: Tensor, steps: Tensor | int) -> Tensor:
    """Numbers in [0, 1), float64 [B], for the draws number `steps` (int64 [B]) of requests with `seeds` [B].

    53 bits of splitmix64(splitmix64(seed) + step): equal seeds and steps give equal numbers, whatever else
    is in the batch and in whatever order.
    """
    return _shift(_splitmix(_splitmix(seeds) + steps), 11).double() * 2.0**-53


class NothingToDraw(UsageError):
    """`rows` of a batch whose logits are NaN or infinite, or that have every token banned."""

    def __init__(self, rows: list[int]) -> None:
        super().__init__(
            "the model's logits leave no token to draw: they are NaN, infinite or all banned",
            got=f"in rows {rows}",
            do="look for a diverged training run, or a logit_bias that bans every token",
        )
        self.rows = rows


@dataclass(frozen=True, slots=True)
class Draw:
    """Sampling settings of a batch, one entry per row, as [B] tensors: `temperature`, `top_p`, `min_p`
    float32, `top_k` and `seeds` int64. `bias` is None or (rows, ids, values), each [N]. The flags say what
    work every row can do without."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seeds: Tensor
    bias: tuple[Tensor, Tensor, Tensor] | None
    greedy: bool
    mixed: bool
    plain: bool
    filtered: bool

    @classmethod
    def of(cls, params: Sequence[SamplingParams], device: torch.device | str = "cpu") -> Self:
        """The settings are taken as they are; `check` refuses those that mean nothing."""
        numbers = [(one.temperature, one.top_p, one.min_p) for one in params]
        temperature, top_p, min_p = torch.tensor(numbers, dtype=torch.float32, device=device).unbind(1)
        counts = [(one.top_k, _signed(one.seed)) for one in params]
        top_k, seeds = torch.tensor(counts, dtype=torch.int64, device=device).unbind(1)
        biased = [(row, *pair) for row, one in enumerate(params) for pair in one.logit_bias]
        cold = [one.temperature == 0 for one in params]
        return cls(
            temperature,
            top_k,
            top_p,
            min_p,
            seeds,
            _bias(biased, device) if biased else None,
            greedy=all(cold),
            mixed=any(cold) and not all(cold),
            plain=all(one.temperature in (0, 1) for one in params),
            filtered=any(_filters(one) for one in params),
        )


def _filters(one: SamplingParams) -> bool:
    return one.temperature > 0 and (one.top_k > 0 or one.top_p < 1 or one.min_p > 0)


def _bias(
    biased: Sequence[tuple[int, int, float]], device: torch.device | str
) -> tuple[Tensor, Tensor, Tensor]:
    rows, ids, values = zip(*biased, strict=True)
    return (
        torch.tensor(rows, device=device),
        torch.tensor(ids, device=device),
        torch.tensor(values, dtype=torch.float32, device=device),
    )


def check(params: SamplingParams) -> None:
    """Raises `UsageError` for settings that mean nothing."""
    biases = [value for _, value in params.logit_bias]
    ids = [token for token, _ in params.logit_bias]
    problems = (
        (params.max_tokens < 1, "max_tokens must be at least 1", params.max_tokens),
        (
            params.temperature != 0 and not COLDEST <= params.temperature <= LARGEST,
            f"temperature must be 0 (greedy), or {COLDEST} or more and finite",
            params.temperature,
        ),
        (not 0 < params.top_p <= 1, "top_p must be above 0 and at most 1", params.top_p),
        (not 0 <= params.min_p <= 1, "min_p must be 0 (off) to 1", params.min_p),
        (params.top_k < 0, "top_k must be 0 (off) or more", params.top_k),
        (
            not all(abs(b) <= LARGEST or b == -math.inf for b in biases),
            "logit_bias must be finite, or -inf to ban a token",
            biases,
        ),
        (len(set(ids)) < len(ids), "logit_bias names a token twice", ids),
        ("" in params.stop, "a stop string must not be empty", params.stop),
    )
    for wrong, what, got in problems:
        if wrong:
            raise UsageError(what, got=got)


def sample(logits: Tensor, draw: Draw, steps: Tensor | int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one token per row: logits [B, V], steps int64 [B] -> (tokens int64, logprobs, full_logprobs), [B].

    `logprobs` are those of the distribution drawn from: log softmax((logits + bias) / temperature) over what
    the filters keep, for a greedy row of log softmax(logits + bias). `full_logprobs` are those of
    log softmax(logits). Both have the logits' precision, and at least float32. Raises `NothingToDraw` for
    rows with NaN or infinite logits, or a ban on every token.
    """
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    own = logits
    if draw.bias is not None:
        rows, ids, values = draw.bias
        logits = logits.index_put((rows, ids), values.to(logits.dtype), accumulate=True)
    best = logits.argmax(dim=-1) if draw.greedy or draw.mixed else None
    if not draw.plain:
        warm = torch.where(draw.temperature > 0, draw.temperature, 1.0).to(logits.dtype)
        logits = logits / warm[:, None]
    if draw.filtered:
        logits = restrict(logits, draw)
    top = logits.amax(dim=-1, keepdim=True)
    sound = top.isfinite()
    if not sound.all():
        raise NothingToDraw((~sound.squeeze(1)).nonzero().flatten().tolist())
    weights = (logits - top).exp_()
    if draw.greedy and best is not None:
        tokens, total = best, weights.sum(dim=-1, dtype=torch.float64)
    else:
        tokens, total = inverse_cdf(weights, uniforms(draw.seeds, steps))
        if best is not None:
            tokens = torch.where(draw.temperature == 0, best, tokens)
    chosen = tokens[:, None]
    logprobs = (logits.gather(1, chosen) - top).squeeze(1) - total.log().to(logits.dtype)
    if logits is own:
        return tokens, logprobs, logprobs
    return tokens, logprobs, own.gather(1, chosen).squeeze(1) - own.logsumexp(dim=-1)


def inverse_cdf(weights: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The first token whose cumulative weight exceeds u * total, and the total.

    weights [B, V] >= 0, u float64 [B] in [0, 1] -> tokens int64 [B], total float64 [B]. Sums in float64, over
    blocks first: one block of each row is then summed token by token. A token of weight 0 is never returned,
    not even when u * total rounds up to the total: both searches are held at the first index that reaches it.
    """
    rows, vocabulary = weights.shape
    if vocabulary % BLOCK:
        weights = F.pad(weights, (0, BLOCK - vocabulary % BLOCK))
    blocks = weights.view(rows, -1, BLOCK)
    ends = F.pad(blocks.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1), (1, 0))
    total = ends[:, -1:].contiguous()
    target = u[:, None] * total
    block = _first_above(ends[:, 1:].contiguous(), target, total)
    inside = blocks[torch.arange(rows, device=weights.device), block.squeeze(1)].double().cumsum(dim=-1)
    token = _first_above(inside, target - ends.gather(1, block), inside[:, -1:].contiguous())
    return (block * BLOCK + token).squeeze(1), total.squeeze(1)


def _first_above(cumulative: Tensor, target: Tensor, total: Tensor) -> Tensor:
    """The first index [B, 1] of each row of `cumulative` [B, N] that is above `target` [B, 1], or else the
    first that reaches `total` [B, 1]."""
    found = torch.searchsorted(cumulative, target, right=True)
    return torch.minimum(found, torch.searchsorted(cumulative, total))


def restrict(logits: Tensor, draw: Draw) -> Tensor:
    """Set to -inf what top-k, then top-p, then min-p leave out: [B, V] -> [B, V]. Greedy rows are left alone.

    top-k keeps the k largest. top-p keeps the smallest set of largest tokens whose probability, renormalised
    after top-k, reaches p (Holtzman et al. 2019). Equal tokens go by lower id. min-p keeps what is at least
    min_p times as probable as the likeliest (Nguyen et al. 2024).
    """
    warm = draw.temperature > 0
    ranked = ((draw.top_k > 0) | (draw.top_p < 1)) & warm
    out = logits
    if ranked.any():
        out = logits.clone()
        out[ranked] = _nucleus(logits[ranked], draw.top_k[ranked, None], draw.top_p[ranked, None])
    floor = (draw.min_p.to(logits.dtype).log() + logits.amax(dim=-1))[:, None]
    return out.masked_fill((out < floor) & warm[:, None], float("-inf"))


def _nucleus(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """top-k and then top-p of every row: logits [N, V], top_k and top_p [N, 1] -> [N, V]."""
    vocabulary = logits.shape[1]
    limit = torch.where(top_k > 0, top_k, vocabulary)
    size = min(vocabulary, max(HEAD, int(top_k.max())))
    log_total = logits.logsumexp(dim=-1, keepdim=True)
    while True:
        head = logits.topk(size, dim=-1).values
        rank = torch.arange(size, device=logits.device)
        candidates = rank < limit
        mass = (head - log_total).exp().double() * candidates
        if size == vocabulary or ((limit <= size) | (mass.sum(dim=-1, keepdim=True) >= top_p)).all():
            break
        size = min(vocabulary, size * 8)
    whole = torch.where(limit <= size, mass.sum(dim=-1, keepdim=True), 1.0)
    before = mass.cumsum(dim=-1) - mass
    kept = candidates & ((before < top_p * whole) | (top_p >= 1) | (rank == 0))
    count = kept.sum(dim=-1, keepdim=True)
    # A row with top-k off and top-p 1 is not ranked at all, so a count short of the vocabulary is a filter's.
    least = head.gather(1, count - 1)
    keep = logits >= least
    tied = keep.sum(dim=-1) != count.squeeze(1)
    if tied.any():
        some, bound = logits[tied], least[tied]
        above, equal = some > bound, some == bound
        room = count[tied] - above.sum(dim=-1, keepdim=True)
        keep[tied] = above | (equal & (equal.cumsum(dim=-1) <= room))
    return logits.masked_fill(~keep, float("-inf"))
