"""Log-probs of tokens, and the one reduction. The causal shift happens here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


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
) -> tuple[Tensor, Tensor]:
    """`token_logprobs` and the entropy, with logits computed only where `mask` counts.

    Args:
        hidden: `[B, T, D]` final states; `hidden[:, t]` predicts `tokens[:, t + 1]`.
        unembed: `[N, D] -> [N, V]`.
        tokens, mask: `[B, T]`; `mask[:, 0]` must be False.
        temperature: of the distribution that is described, which is the one sampled from.
    Returns:
        log-probs and entropies (nats), both `[B, T]`, 0.0 where the mask is False.
    """
    counted = mask[:, 1:]
    logits = unembed(hidden[:, :-1][counted]).float()
    rows = torch.log_softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)
    chosen = rows.gather(-1, tokens[:, 1:][counted][:, None]).squeeze(-1)
    entropy = -(rows.detach().exp() * rows.detach()).sum(-1)
    return scatter(chosen, mask), scatter(entropy, mask)


def scatter(values: Tensor, mask: Tensor) -> Tensor:
    """Put `[N]` values at the N places where `mask[:, 1:]` counts; 0.0 elsewhere. Returns `[B, T]`."""
    out = values.new_zeros(mask.shape[0], mask.shape[1] - 1)
    out = out.masked_scatter(mask[:, 1:], values)
    return torch.cat([out.new_zeros(len(mask), 1), out], dim=1)


def before(scores: Tensor) -> Tensor:
    """Align a per-state scalar with the token produced next: `[B, T]` where entry `t` was at `t - 1`.

    A critic's output at position `t - 1` is the value of the state in which token `t` is chosen.
    Position 0, which nothing chooses, is 0.0.
    """
    return torch.cat([scores.new_zeros(len(scores), 1), scores[:, :-1]], dim=1)


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
