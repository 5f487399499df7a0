"""How far a model has moved from a reference, on its own sampled answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# tokens [B, T] -> hidden [B, T, D]; hidden [N, D] -> logits [N, V]
Trunk = Callable[[Tensor], Tensor]
Unembed = Callable[[Tensor], Tensor]


def token_kl(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(model || reference) in nats at each position, summed over the whole vocabulary.

    Args:
        logits, reference: `[N, V]`.
    Returns:
        `[N]`, never below 0 but for rounding.
    """
    log_p = torch.log_softmax(logits.double(), dim=-1)
    log_q = torch.log_softmax(reference.double(), dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@torch.no_grad()
def kl_per_answer(
    model: tuple[Trunk, Unembed],
    reference: tuple[Trunk, Unembed],
    answers: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    pad_id: int,
    device: torch.device | str = "cpu",
    batch_tokens: int = 8192,
) -> list[float]:
    """The divergence of each answer: exact per-token KLs summed over its tokens, end token included.

    With answers drawn from the model, the mean of this estimates KL(model || reference) of whole answers
    (chain rule), with less noise than summing log-ratios of the drawn tokens (k1).

    Args:
        model, reference: `(trunk, unembed)` of each; both run in evaluation mode by the caller.
        answers: `(prompt ids, completion ids)`, sampled at temperature 1 from `model`.
    Returns:
        One number per answer, in the order given.
    """
    order = sorted(range(len(answers)), key=lambda i: len(answers[i][0]) + len(answers[i][1]))
    found = [0.0] * len(answers)
    start = 0
    while start < len(order):
        end, longest = start + 1, 0
        while end < len(order):
            longest = sum(map(len, answers[order[end]]))
            if (end + 1 - start) * longest > batch_tokens:
                break
            end += 1
        rows = [answers[i] for i in order[start:end]]
        for i, value in zip(order[start:end], _batch_kl(model, reference, rows, pad_id, device), strict=True):
            found[i] = value
        start = end
    return found


def _batch_kl(
    model: tuple[Trunk, Unembed],
    reference: tuple[Trunk, Unembed],
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    pad_id: int,
    device: torch.device | str,
) -> list[float]:
    width = max(len(p) + len(c) for p, c in rows)
    tokens = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (prompt, completion) in enumerate(rows):
        tokens[i, : len(prompt) + len(completion)] = torch.tensor([*prompt, *completion])
        mask[i, len(prompt) : len(prompt) + len(completion)] = True
    tokens, mask = tokens.to(device), mask.to(device)
    counted = mask[:, 1:]
    logits = [unembed(trunk(tokens)[:, :-1][counted]) for trunk, unembed in (model, reference)]
    out = torch.zeros(counted.shape, dtype=torch.float64, device=tokens.device)
    out[counted] = token_kl(*logits)
    sums: list[float] = out.sum(1).tolist()
    return sums
