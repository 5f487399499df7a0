"""Sampling against splitmix64's published numbers, hand-worked distributions, corners, and frequencies."""

from __future__ import annotations

import math

import pytest
import torch

from bloomery.errors import UsageError
from bloomery.infer.sampling import (
    COLDEST,
    Draw,
    NothingToDraw,
    _splitmix,
    check,
    inverse_cdf,
    restrict,
    sample,
    uniforms,
)
from bloomery.types import SamplingParams

P = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])


def draw(*params: SamplingParams) -> Draw:
    return Draw.of(params)


def kept(logits: torch.Tensor, **settings: float) -> list[int]:
    out = restrict(logits[None], draw(SamplingParams(**settings)))  # type: ignore[arg-type]
    return torch.isfinite(out[0]).nonzero().flatten().tolist()


def test_splitmix64_gives_its_published_outputs() -> None:
    # The first three outputs of splitmix64 seeded with 0 (the state grows by the golden gamma each time).
    gamma, state, outputs = 0x9E3779B97F4A7C15, 0, []
    for _ in range(3):
        outputs.append(int(_splitmix(torch.tensor([state - (state >> 63 << 64)]))[0]) % 2**64)
        state = (state + gamma) % 2**64
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_uniforms_depend_on_seed_and_step_alone() -> None:
    seeds = torch.tensor([3, -7, 3, 2**62, 0])
    u = uniforms(seeds, 5)
    assert u[0] == u[2]
    assert len(set(u.tolist())) == 4
    assert torch.equal(uniforms(seeds.flip(0), 5).flip(0), u)
    assert torch.equal(uniforms(seeds[3:4], 5), u[3:4])
    assert not torch.equal(uniforms(seeds, 6), u)


def test_uniforms_are_uniform_over_seeds_and_over_steps() -> None:
    over_seeds = uniforms(torch.arange(20_000), 0)
    over_steps = torch.stack([uniforms(torch.tensor([1]), step)[0] for step in range(2_000)])
    for u in (over_seeds, over_steps):
        assert ((u >= 0) & (u < 1)).all()
        counts = torch.histc(u, bins=20, min=0, max=1)
        expected = len(u) / 20
        assert ((counts - expected) ** 2 / expected).sum() < 43.8  # chi-square, 19 degrees, p = 0.001


def test_python_seeds_of_any_size_are_taken() -> None:
    params = [SamplingParams(seed=s) for s in (-1, 2**64 - 1, 2**63, 12345678901234567890123)]
    seeds = draw(*params).seeds.tolist()
    assert seeds[0] == seeds[1] == -1
    assert seeds[2] == -(2**63)


def test_inverse_cdf_by_hand() -> None:
    u = torch.tensor([0.0, 0.0999, 0.1001, 0.4999, 0.5001, 0.5499, 0.5501, 0.8499, 0.8501, 1 - 2.0**-53])
    for scale in (1.0, 3.0):
        got, total = inverse_cdf(scale * P.expand(len(u), 5), u.double())
        assert got.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert total.tolist() == pytest.approx([scale] * len(u), abs=1e-6)


@pytest.mark.parametrize("vocabulary", [64, 200, 256])
def test_inverse_cdf_over_many_blocks_is_that_of_one_sum(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(300, vocabulary, generator=generator, dtype=torch.float64)
    weights *= torch.rand(300, vocabulary, generator=generator) < 0.2
    weights[:, 5] = 1.0
    u = torch.rand(300, generator=generator, dtype=torch.float64)
    expected = torch.searchsorted(weights.cumsum(-1), u[:, None] * weights.sum(-1, keepdim=True), right=True)
    tokens, total = inverse_cdf(weights, u)
    assert torch.equal(tokens, expected.squeeze(1))
    torch.testing.assert_close(total, weights.sum(-1))
    # At the far end, where rounding may carry the search past all tokens, the last possible one is drawn.
    last = (weights > 0).double().cumsum(-1).argmax(-1)
    assert torch.equal(inverse_cdf(weights, torch.ones(300, dtype=torch.float64))[0], last)


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    weights = torch.tensor([[0, 0.5, 0, 0.5, 0, 0]])
    for u, token in ((0.0, 1), (0.5 - 1e-9, 1), (0.5 + 1e-9, 3), (1 - 2.0**-53, 3)):
        assert inverse_cdf(weights, torch.tensor([u], dtype=torch.float64))[0].item() == token
    # u * total may round up to the total itself: still the last token with any probability.
    assert inverse_cdf(weights, torch.ones(1, dtype=torch.float64))[0].item() == 3


def test_top_k_and_top_p_by_hand() -> None:
    logits = P.log()
    assert kept(logits, top_k=2) == [1, 3]
    assert kept(logits, top_k=9) == [0, 1, 2, 3, 4]
    assert kept(logits, top_p=0.39) == [1]
    assert kept(logits, top_p=0.41) == [1, 3]
    assert kept(logits, top_p=0.71) == [1, 3, 4]
    assert kept(logits, top_p=1e-9) == [1]
    # After top-k 3 the probabilities are 8/17, 6/17 and 3/17: 0.5 needs two of them.
    assert kept(logits, top_k=3, top_p=0.46) == [1]
    assert kept(logits, top_k=3, top_p=0.5) == [1, 3]
    assert kept(torch.zeros(4), top_k=2) == [0, 1], "equal logits: the lower ids"
    assert kept(torch.zeros(400), top_k=3) == [0, 1, 2]
    assert kept(torch.tensor([0.0, 1.0, 1.0, 1.0]), top_p=0.5) == [1, 2]


def test_min_p_by_hand() -> None:
    logits = P.log()
    assert kept(logits, min_p=0.3) == [1, 3, 4]
    assert kept(logits, min_p=0.38) == [1, 3]
    assert kept(logits, min_p=1.0) == [1]
    assert kept(logits, min_p=0.3, top_k=2) == [1, 3]
    assert kept(logits, min_p=0.3, temperature=1e-3, top_k=0) == [1, 3, 4], "restrict is given warm logits"


@pytest.mark.parametrize("spread", [0.01, 0.3, 4.0])
@pytest.mark.parametrize("top_p", [0.3, 0.95, 0.9999])
def test_top_p_without_sorting_keeps_what_sorting_keeps(spread: float, top_p: float) -> None:
    """Over 1000 tokens, flat to peaked, so that the head that is looked at first suffices or does not."""
    logits = spread * torch.randn(8, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = restrict(logits, draw(*[SamplingParams(top_p=top_p, top_k=k) for k in (0, 700, 30, 1) * 2]))
    for row, k in zip(range(8), (1000, 700, 30, 1) * 2, strict=True):
        probabilities, ids = logits[row].softmax(-1).sort(descending=True, stable=True)
        probabilities = probabilities[:k] / probabilities[:k].sum()
        count = int((probabilities.cumsum(0) - probabilities < top_p - 1e-12).sum())
        assert torch.isfinite(out[row]).nonzero().flatten().tolist() == sorted(ids[:count].tolist())


def test_each_row_has_its_own_settings() -> None:
    logits = P.log().expand(5, 5).contiguous()
    settings = [
        SamplingParams(),
        SamplingParams(top_k=1),
        SamplingParams(temperature=0),
        SamplingParams(temperature=0, top_k=1),
        SamplingParams(temperature=2.0, top_p=0.01),
    ]
    tokens, logprobs, full = sample(logits, draw(*settings), 0)
    assert full.tolist() == pytest.approx(P.log()[tokens].tolist(), abs=1e-6)
    assert tokens[1:].tolist() == [1, 1, 1, 1]
    assert logprobs[0].item() == pytest.approx(math.log(P[tokens[0]]), abs=1e-6)
    # Only one token was left to draw: log 1. A greedy token keeps the model's own probability.
    assert logprobs[1:].tolist() == pytest.approx([0, math.log(0.4), math.log(0.4), 0], abs=1e-6)
    for row, one in enumerate(settings):
        alone = sample(logits[row : row + 1], draw(one), 0)
        assert (alone[0].item(), alone[1].item()) == (tokens[row].item(), logprobs[row].item())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.1, 0.4, 0.05, 0.3, 0.15]),
        ({"temperature": 0.5}, [0.01, 0.16, 0.0025, 0.09, 0.0225]),
        ({"top_k": 2}, [0, 0.4, 0, 0.3, 0]),
        ({"temperature": 0.5, "top_p": 0.9}, [0, 0.16, 0, 0.09, 0.0225]),
        ({"min_p": 0.3}, [0, 0.4, 0, 0.3, 0.15]),
        ({"temperature": 0.5, "min_p": 0.3}, [0, 0.16, 0, 0.09, 0]),
        ({"logit_bias": ((0, math.log(4)), (3, float("-inf")))}, [0.4, 0.4, 0.05, 0, 0.15]),
        ({"logit_bias": ((0, math.log(4)),), "temperature": 0.5}, [0.16, 0.16, 0.0025, 0.09, 0.0225]),
        ({"logit_bias": ((0, math.log(4)),), "top_k": 2}, [0.4, 0.4, 0, 0, 0]),
    ],
)
def test_frequencies_and_logprobs_are_those_of_the_distribution(settings, expected) -> None:
    n = 20_000
    params = [SamplingParams(**settings, seed=s) for s in range(n)]
    tokens, logprobs, full = sample(P.log().expand(n, 5).contiguous(), draw(*params), 3)
    expected = torch.tensor(expected) / sum(expected)
    frequency = torch.bincount(tokens, minlength=5) / n
    spread = (expected * (1 - expected) / n).sqrt()
    assert ((frequency - expected).abs() <= 4 * spread).all()
    torch.testing.assert_close(logprobs.exp(), expected[tokens], atol=1e-6, rtol=0)
    torch.testing.assert_close(full.exp(), P[tokens], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", 1e-39),
        ("temperature", 1e39),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", 1.5),
        ("logit_bias", ((3, float("nan")),)),
        ("logit_bias", ((3, float("inf")),)),
        ("logit_bias", ((3, 1e39),)),
        ("logit_bias", ((3, -1e39),)),
        ("logit_bias", ((3, 1.0), (3, 2.0))),
        ("stop", ("",)),
    ],
)
def test_settings_that_mean_nothing_are_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name):
        check(SamplingParams(**{name: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_error(bad: float, temperature: float) -> None:
    logits = P.log().expand(2, 5).clone()
    logits[1, 2] = bad
    with pytest.raises(NothingToDraw, match="diverged") as error:
        sample(logits, draw(*[SamplingParams(temperature=temperature)] * 2), 0)
    assert error.value.rows == [1]


def test_the_coldest_temperature_draws_what_greedy_does() -> None:
    cold = draw(SamplingParams(temperature=COLDEST))
    token, logprob, _ = sample(1e6 * P.log()[None], cold, 0)
    assert (token.item(), logprob.item()) == (1, 0.0)


def test_a_bias_that_bans_every_token_is_an_error() -> None:
    banned = tuple((token, float("-inf")) for token in range(5))
    with pytest.raises(UsageError, match="banned"):
        sample(P.log()[None], draw(SamplingParams(logit_bias=banned)), 0)


def test_each_row_draws_its_own_step() -> None:
    seeds = torch.tensor([4, 4, 9])
    u = uniforms(seeds, torch.tensor([0, 7, 7]))
    assert u.tolist() == [uniforms(seeds[i : i + 1], s).item() for i, s in enumerate((0, 7, 7))]
