"""Log-probs, the shift and the reduction, against arithmetic by hand and torch's cross-entropy."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from bloomery.objectives import token
from bloomery.objectives.language import bits_per_byte
from bloomery.objectives.token import (
    aggregate,
    counted_logprobs,
    last_counted,
    predicting,
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


def later(x: torch.Tensor) -> torch.Tensor:
    """What each state says, `[B, T]`, put where the token is that it chose."""
    return torch.cat([x.new_zeros(len(x), 1), x[:, :-1]], 1)


def test_counted_equals_full_where_it_counts_and_is_zero_elsewhere() -> None:
    torch.manual_seed(1)
    hidden, table, tokens = torch.randn(4, 6, 8), torch.randn(13, 8), torch.randint(13, (4, 6))
    mask = torch.rand(4, 6) < 0.5
    mask[:, 0] = False
    logprobs, entropy = counted_logprobs(hidden, lambda h: h @ table.T, tokens, mask)
    full = token_logprobs(hidden @ table.T, tokens)
    torch.testing.assert_close(logprobs, torch.where(mask, full, torch.zeros(())))
    p = torch.softmax(hidden @ table.T, -1)
    want = later(-(p * p.log()).sum(-1))
    torch.testing.assert_close(entropy, torch.where(mask, want, torch.zeros(())))


def test_temperature_describes_the_distribution_sampled_from() -> None:
    torch.manual_seed(2)
    hidden, tokens = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[:, 0] = False
    got, _ = counted_logprobs(hidden, lambda h: h, tokens, mask, temperature=0.5)
    torch.testing.assert_close(got, token_logprobs(hidden * 2, tokens))


def plainly(hidden, table, tokens, mask, temperature):
    """Log-probs and entropies `[B, T]` with every logit at once and torch's own derivatives."""
    rows = torch.log_softmax(hidden @ table.T / temperature, -1)
    chosen = rows[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
    zero = chosen.new_zeros(len(tokens), 1)
    chosen = torch.where(mask, torch.cat([zero, chosen], 1), 0.0)
    return chosen, torch.where(mask, later(-(rows.exp() * rows).sum(-1)), 0.0)


@pytest.fixture
def material():
    """Float64 states and embeddings, 17 counted tokens, and what one step downstream makes of log-probs."""
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(4, 9, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    table = torch.randn(11, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(11, (4, 9), generator=generator)
    mask = torch.rand(4, 9, generator=generator) < 0.6
    mask[:, 0] = False
    weight = torch.randn(4, 9, generator=generator, dtype=torch.float64)
    return hidden, table, tokens, mask, weight


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    ("held", "piece", "block"), [(10**6,) * 3, (10**6, 10**6, 22), (10**6, 33, 22), (100, 33, 22), (1, 1, 1)]
)
def test_neither_pieces_nor_blocks_change_value_entropy_or_gradient(
    material, monkeypatch: pytest.MonkeyPatch, temperature: float, held: int, piece: int, block: int
) -> None:
    """Against torch's derivatives of all logits at once."""
    hidden, table, tokens, mask, weight = material
    monkeypatch.setattr(token, "CPU", token.Amounts(held, piece, block))
    sizes: list[int] = []

    def unembed(states: torch.Tensor) -> torch.Tensor:
        sizes.append(len(states))
        return states @ table.T

    got = counted_logprobs(hidden, unembed, tokens, mask, temperature)
    want = plainly(hidden, table, tokens, mask, temperature)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    assert not got[1].requires_grad
    slopes = [torch.autograd.grad((x[0] * weight).sin().sum(), (hidden, table)) for x in (got, want)]
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b)
    counted = int(mask.sum())
    assert max(sizes) == min(counted, max(1, piece // 11))
    kept = held > 11 * counted
    assert sum(sizes) == (1 if kept else 2) * counted  # what was forgotten is computed again


def test_on_a_gpu_few_launches_do_the_work() -> None:
    """A step of 64 x 1024 tokens over 50,304 words; `meta` stands for whatever is not a CPU."""
    logits = torch.empty(64 * 1024, 50304, dtype=torch.bfloat16, device="meta")
    on_gpu, on_cpu = token.amounts(logits.device), token.amounts(torch.device("cpu"))
    assert len(list(token._blocks(logits))) == -(-len(logits) // (on_gpu.block // 50304)) < 20
    assert on_gpu.held > logits.numel() > on_gpu.piece
    assert (on_cpu.held, on_cpu.piece, on_cpu.block) == (2**26, 2**22, 2**18)


def test_the_slope_by_finite_differences(material) -> None:
    hidden, table, tokens, mask, _ = material
    assert torch.autograd.gradcheck(
        lambda h, w: counted_logprobs(h, lambda s: s @ w.T, tokens, mask, 1.3)[0], (hidden, table)
    )


def test_a_graph_that_is_kept_gives_the_same_slope_twice(material) -> None:
    hidden, table, tokens, mask, weight = material
    loss = (counted_logprobs(hidden, lambda s: s @ table.T, tokens, mask)[0] * weight).sum()
    first = torch.autograd.grad(loss, (hidden, table), retain_graph=True)
    again = torch.autograd.grad(loss, (hidden, table))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_entropy_is_left_out_where_nobody_wants_it(material) -> None:
    hidden, table, tokens, mask, _ = material
    both = [counted_logprobs(hidden, lambda s: s @ table.T, tokens, mask, entropy=e) for e in (True, False)]
    assert torch.equal(both[0][0], both[1][0])
    assert both[0][1].any()
    assert not both[1][1].any()


def test_bf16_logits_keep_the_slope_of_a_sure_token() -> None:
    """A token of probability 0.9997 has slope -0.0003. Kept as 1 less a rounded probability that would be
    0 or -0.004; kept as a difference it is right to a part in 256."""
    logits = torch.tensor([[8.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    hidden = torch.stack([logits, logits], dim=1)
    mask = torch.tensor([[False, True]])
    chosen, _ = counted_logprobs(hidden, lambda s: s, torch.tensor([[0, 0]]), mask)
    assert chosen.dtype == torch.float32
    (slope,) = torch.autograd.grad(chosen.sum(), logits)
    sure = torch.softmax(torch.tensor([8.0, 0.0]), 0)
    torch.testing.assert_close(slope[0].float(), torch.tensor([sure[1], -sure[1]]), rtol=2**-8, atol=0)


def test_no_counted_token_is_no_trouble(material) -> None:
    hidden, table, tokens, mask, _ = material
    chosen, spread = counted_logprobs(hidden, lambda s: s @ table.T, tokens, torch.zeros_like(mask))
    assert not chosen.any()
    assert not spread.any()
    assert not torch.autograd.grad(chosen.sum(), hidden)[0].any()


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


def test_predicting_last_counted_and_scatter_by_hand() -> None:
    mask = torch.tensor([[False, True, True, False], [False, False, False, False]])
    assert last_counted(mask).tolist() == [[False, False, True, False], [False] * 4]
    assert scatter(torch.tensor([7.0, 8.0]), mask).tolist() == [[0.0, 7.0, 8.0, 0.0], [0.0] * 4]
    mask = torch.tensor([[False, True, True, False], [False, False, False, True]])
    assert predicting(mask).tolist() == [0, 1, 6]


def test_states_alone_give_what_all_of_them_give() -> None:
    torch.manual_seed(5)
    hidden, table, tokens = torch.randn(3, 6, 8), torch.randn(13, 8), torch.randint(13, (3, 6))
    mask = torch.rand(3, 6) < 0.5
    mask[:, 0] = False
    all_of_them = counted_logprobs(hidden, lambda h: h @ table.T, tokens, mask)
    states = hidden.flatten(0, 1)[predicting(mask)]
    alone = counted_logprobs(states, lambda h: h @ table.T, tokens, mask)
    assert all(torch.equal(a, b) for a, b in zip(all_of_them, alone, strict=True))


def test_bits_per_byte_of_a_fair_coin() -> None:
    # Eight fair choices between two tokens of one byte each are eight bits over eight bytes.
    assert bits_per_byte(8 * math.log(2), 8) == pytest.approx(1.0)
