"""Log-probs, the shift and the reduction, against arithmetic by hand and torch's cross-entropy."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from bloomery.objectives.language import bits_per_byte
from bloomery.objectives.token import (
    aggregate,
    before,
    counted_logprobs,
    last_counted,
    scatter,
    token_logprobs,
)


def test_the_logit_at_t_predicts_token_t_plus_one_by_hand() -> None:
    # Two tokens in the vocabulary. After the first token the model says 3 : 1 for token 1.
    logits = torch.tensor([[[0.0, math.log(3)], [5.0, -5.0]]])
    got = token_logprobs(logits, torch.tensor([[0, 1]]))
    assert got.tolist() == [[0.0, pytest.approx(math.log(0.75))]]
    # What the last position predicts is nobody's business: changing it changes nothing.
    logits[0, 1] = 99.0
    assert token_logprobs(logits, torch.tensor([[0, 1]])).tolist() == got.tolist()


def test_sum_equals_torchs_cross_entropy_of_shifted_logits() -> None:
    torch.manual_seed(0)
    logits, tokens = torch.randn(3, 7, 11), torch.randint(11, (3, 7))
    want = cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
    assert -token_logprobs(logits, tokens).sum() == pytest.approx(want.item(), rel=1e-6)


def test_counted_equals_full_where_it_counts_and_is_zero_elsewhere() -> None:
    torch.manual_seed(1)
    hidden, table, tokens = torch.randn(4, 6, 8), torch.randn(13, 8), torch.randint(13, (4, 6))
    mask = torch.rand(4, 6) < 0.5
    mask[:, 0] = False
    logprobs, entropy = counted_logprobs(hidden, lambda h: h @ table.T, tokens, mask)
    full = token_logprobs(hidden @ table.T, tokens)
    torch.testing.assert_close(logprobs, torch.where(mask, full, torch.zeros(())))
    p = torch.softmax(hidden @ table.T, -1)
    want = before(-(p * p.log()).sum(-1))
    torch.testing.assert_close(entropy, torch.where(mask, want, torch.zeros(())))


def test_temperature_describes_the_distribution_sampled_from() -> None:
    torch.manual_seed(2)
    hidden, tokens = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[:, 0] = False
    got, _ = counted_logprobs(hidden, lambda h: h, tokens, mask, temperature=0.5)
    torch.testing.assert_close(got, token_logprobs(hidden * 2, tokens))


def test_garbage_under_the_mask_reaches_neither_value_nor_gradient() -> None:
    x = torch.tensor([[1.0, float("nan"), 3.0]], requires_grad=True)
    mask = torch.tensor([[True, False, True]])
    total = aggregate(x, mask, 2)
    total.backward()
    assert total.item() == 2.0
    assert x.grad is not None
    assert x.grad.tolist() == [[0.5, 0.0, 0.5]]


def test_a_global_denominator_makes_splitting_invisible() -> None:
    torch.manual_seed(3)
    x, mask = torch.randn(6, 5), torch.rand(6, 5) < 0.4
    whole = aggregate(x, mask, mask.sum())
    # Uneven parts, where a mean of means would differ.
    parts = sum(aggregate(x[s], mask[s], mask.sum()) for s in (slice(0, 1), slice(1, 6)))
    assert whole.item() == pytest.approx(float(parts), rel=1e-6)
    means = sum(aggregate(x[s], mask[s], mask[s].sum()) for s in (slice(0, 1), slice(1, 6))) / 2
    assert abs(whole.item() - float(means)) > 1e-3


def test_before_last_counted_and_scatter_by_hand() -> None:
    assert before(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[0.0, 1.0, 2.0]]
    mask = torch.tensor([[False, True, True, False], [False, False, False, False]])
    assert last_counted(mask).tolist() == [[False, False, True, False], [False] * 4]
    assert scatter(torch.tensor([7.0, 8.0]), mask).tolist() == [[0.0, 7.0, 8.0, 0.0], [0.0] * 4]


def test_bits_per_byte_of_a_fair_coin() -> None:
    # Eight fair choices between two tokens of one byte each are eight bits over eight bytes.
    assert bits_per_byte(8 * math.log(2), 8) == pytest.approx(1.0)
