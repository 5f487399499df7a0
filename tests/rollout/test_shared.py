"""Rows that answer the same prompts: what is read behind one copy of each is what each row gives alone."""

from __future__ import annotations

import pytest
import torch

from bloomery.models.llama import Llama
from bloomery.objectives.token import counted_logprobs
from bloomery.rollout.shared import shared_pieces

# Tokens, how many of them are the prompt, and which prompt that is.
EXAMPLES = [
    *(([7, 8, 9, *answer], 3, 0) for answer in ([10, 11], [20], [10, 30, 31, 32])),
    *(([5, 6, 5, 6, 5, *answer], 5, 1) for answer in ([7], [7, 7])),
    ([3, 40, 41, 42], 1, 2),
    *(([7, 11, *answer], 2, 3) for answer in (range(10, 30), range(20, 44), [8])),  # longer than a row
]


@pytest.mark.parametrize("batch_tokens", [1, 30, 8192])
def test_rows_read_behind_shared_prompts_are_what_they_are_alone(
    loud_llama: Llama, batch_tokens: int
) -> None:
    """Log-probs, entropies and gradients, each token's where it stood; rows of one prompt need not be
    neighbours, one may count nothing, and another may count its first token but one."""
    order = [3, 0, 8, 5, 1, 7, 2, 4, 6]
    width = max(len(ids) for ids, _, _ in EXAMPLES)
    tokens, mask = torch.zeros(10, width, dtype=torch.long), torch.zeros(10, width, dtype=torch.bool)
    for row, chosen in enumerate(order):
        ids, first, _ = EXAMPLES[chosen]
        tokens[row, : len(ids)], mask[row, first : len(ids)] = torch.tensor(ids), True
    mask[0, 4] = False
    numbers = [*(EXAMPLES[chosen][2] for chosen in order), 99]
    want = counted_logprobs(loud_llama(tokens), loud_llama.logits, tokens, mask, 0.7)
    got = [torch.zeros(10, width), torch.zeros(10, width)]
    seen: list[int] = []
    for piece in shared_pieces(tokens, mask, numbers, context=40, batch_tokens=batch_tokens):
        seen += piece.rows.tolist()
        for whole, part in zip(got, piece.read(loud_llama, 0.7), strict=True):
            whole[piece.rows] = part
    assert sorted(seen) == list(range(10))
    torch.testing.assert_close(got[0], want[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got[1], want[1], atol=1e-4, rtol=1e-4)
    weights = torch.arange(1.0, mask.numel() + 1).view_as(mask)
    slopes = [
        torch.autograd.grad((x * weights).sum(), list(loud_llama.parameters())) for x in (got[0], want[0])
    ]
    for mine, plain in zip(*slopes, strict=True):
        torch.testing.assert_close(mine, plain, atol=2e-2, rtol=1e-4)


def test_a_prompt_is_forwarded_once_for_all_its_answers(loud_llama: Llama) -> None:
    tokens = torch.tensor([[7, 8, 9, 1], [7, 8, 9, 2], [5, 6, 3, 4]])
    mask = torch.tensor([[False, False, False, True]] * 2 + [[False, False, True, True]])
    (piece,) = shared_pieces(tokens, mask, [0, 0, 1], context=40)
    assert sorted(piece.batch.tokens.tolist()) == [[5, 6, 3, 4, 0], [7, 8, 9, 1, 2]]
