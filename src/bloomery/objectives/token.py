"""Log-probs of tokens, and the one reduction. The causal shift happens here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True, slots=True)
class Amounts:
    """Numbers of logits: of a batch that may be kept for the backward pass (of a larger one they are computed
    again), of one product, and worked on at a time."""

    held: int
    piece: int
    block: int


# 16 MiB in fp32 is little enough for memory that is used again, 1 MiB fits a core's own cache.
CPU = Amounts(held=2**26, piece=2**22, block=2**18)
# A GPU has room, and every launch costs as much as a million logits.
GPU = Amounts(held=2**32, piece=2**28, block=2**28)


def amounts(device: torch.device) -> Amounts:
    """What is worth doing at a time on a device."""
    return CPU if device.type == "cpu" else GPU


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-prob of each token given those before it.

    Args:
        logits: `[B, T, V]`; `logits[:, t]` predicts `tokens[:, t + 1]`.
        tokens: `[B, T]` ids.
    Returns:
        `[B, T]` aligned with `tokens`; position 0 has nothing before it and is 0.0.
    """
    rows = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    found = rows.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return torch.cat([found.new_zeros(len(tokens), 1), found], dim=1)


def counted_logprobs(
    hidden: Tensor,
    unembed: Callable[[Tensor], Tensor],
    tokens: Tensor,
    mask: Tensor,
    temperature: float = 1.0,
    *,
    entropy: bool = True,
) -> tuple[Tensor, Tensor]:
    """`token_logprobs` and the entropy, with logits computed only where `mask` counts.

    They are computed in pieces. Of a batch that needs more of them than may be held (see `Amounts`) only one
    piece exists at a time: each is forgotten, and computed again in the backward pass.

    Args:
        hidden: `[B, T, D]` final states, `hidden[:, t]` predicts `tokens[:, t + 1]`; or `[N, D]`, only those
            that are `predicting(mask)`.
        unembed: `[N, D] -> [N, V]`.
        tokens, mask: `[B, T]`; `mask[:, 0]` must be False.
        temperature: of the distribution that is described, which is the one sampled from.
        entropy: leave it at 0.0 where nobody wants it.
    Returns:
        log-probs and entropies (nats, without gradient), both `[B, T]`, 0.0 where the mask is False.
    """
    at = predicting(mask)
    states = hidden if hidden.dim() == 2 else hidden.flatten(0, 1).index_select(0, at)
    ids = tokens.flatten()[at + 1]

    def describe(states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return _chosen(unembed(states), ids, temperature, entropy)

    vocabulary, most = unembed(states[:0]).shape[-1], amounts(hidden.device)
    size = max(1, most.piece // vocabulary)
    again = len(states) * vocabulary > most.held
    pieces = [
        checkpoint(describe, *piece, use_reentrant=False, preserve_rng_state=False)
        if again
        else describe(*piece)
        for piece in zip(states.split(size), ids.split(size), strict=True)
    ]
    chosen, spread = (torch.cat(found) for found in zip(*pieces, strict=True))
    return scatter(chosen, mask), scatter(spread, mask)


def predicting(mask: Tensor) -> Tensor:
    """The positions `[N]`, among the B * T, whose states predict the tokens that `mask` `[B, T]` counts: a
    model asked for only these leaves out of its last layer what nobody reads."""
    row, column = mask[:, 1:].nonzero(as_tuple=True)
    return row * mask.shape[1] + column


def _chosen(logits: Tensor, ids: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, Tensor]:
    """Log-probs of `ids` `[N]` under `softmax(logits / temperature)` `[N, V]`, and entropies, both `[N]`."""
    found: tuple[Tensor, Tensor] = _Chosen.apply(logits, ids, temperature, entropy)  # type: ignore[no-untyped-call]
    return found


class _Chosen(torch.autograd.Function):
    """`_chosen` a few rows at a time, so that its exact numbers stay in the cache and bf16 logits never exist
    in fp32 all at once. For the backward pass it keeps `softmax - onehot`, in the precision of the logits."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, ids: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(logits.dtype, torch.float32)
        chosen = logits.new_zeros(len(ids), dtype=exact)
        spread = torch.zeros_like(chosen)
        slope = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        for rows in _blocks(logits):
            part, id = logits[rows].to(exact), ids[rows, None]
            part = part if temperature == 1.0 else part / temperature
            shares = part.softmax(dim=-1)
            # log sum exp(x) = max x - log max softmax(x): exponentials are taken once.
            total = part.amax(-1) - shares.amax(-1).log()
            chosen[rows] = part.gather(-1, id).squeeze(-1) - total
            if entropy:
                spread[rows] = total - (shares * part).sum(-1)
            if slope is not None:
                slope[rows] = shares.scatter_add_(-1, id, shares.new_full(id.shape, -1.0))
        ctx.save_for_backward(slope)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(spread)
        return chosen, spread

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        out, scale = torch.empty_like(slope), -grad[:, None] / ctx.temperature
        for rows in _blocks(slope):
            out[rows] = slope[rows] * scale[rows]
        return out, None, None, None


def _blocks(x: Tensor) -> Iterator[slice]:
    """Slices of the rows of `x` that are worked on at a time."""
    size = max(1, amounts(x.device).block // x.shape[-1])
    return (slice(start, start + size) for start in range(0, len(x), size))


def scatter(values: Tensor, mask: Tensor) -> Tensor:
    """Put `[N]` values at the N places where `mask[:, 1:]` counts; 0.0 elsewhere. Returns `[B, T]`."""
    out = values.new_zeros(mask.shape[0], mask.shape[1] - 1)
    out = out.masked_scatter(mask[:, 1:], values)
    return torch.cat([out.new_zeros(len(mask), 1), out], dim=1)


def aggregate(x: Tensor, mask: Tensor, denominator: float | Tensor) -> Tensor:
    """Sum of `x` where `mask` counts, over a denominator that the caller knows globally.

    Handing the denominator in (counted tokens of the whole optimizer step, over all micro-batches and
    ranks) is what makes the loss independent of how a batch is split. `where`, not `*`: garbage under
    the mask, NaN included, reaches neither the value nor the gradient.
    """
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device)).sum() / denominator


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """`aggregate` by the mask's own count (at least 1): for metrics, not for losses."""
    return aggregate(x, mask, mask.sum().clamp(min=1))


def last_counted(mask: Tensor) -> Tensor:
    """`[B, T]` True only at the last counted position of each row (nowhere in a row that counts nothing)."""
    later = mask.flip(1).cumsum(1).flip(1)
    return mask & (later == 1)
