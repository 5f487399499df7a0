"""Identities of the decoder: packed = unpacked, cached = uncached, padding and the future do not reach a
token, fresh weights have the spread they should."""

from __future__ import annotations

import math

import pytest
import torch

from bloomery.errors import UsageError
from bloomery.models import KVCache, LlamaConfig, ScalarModel, build, init
from bloomery.models.layers import Block, attend, by_products, products
from bloomery.models.llama import segment_mask, segment_positions

CONFIG = LlamaConfig.shape(32, 2, 4, 50, kv_heads=2, context=64)


@pytest.fixture(scope="module")
def model():
    """Random weights large enough for wrong positions and masks to show."""
    made = build(CONFIG)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return made


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(6, 50, shape, generator=torch.Generator().manual_seed(seed))


def test_positions_and_mask_by_hand() -> None:
    segments = torch.tensor([[1, 1, 2, 2, 0]])
    assert segment_positions(segments).tolist() == [[0, 1, 0, 1, 0]]
    assert segment_mask(segments)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]


def test_packed_equals_unpacked(model) -> None:
    lengths = (7, 1, 12)
    documents = [tokens(1, n, seed=n) for n in lengths]
    packed = torch.cat([*documents, torch.zeros(1, 4, dtype=torch.int64)], dim=1)
    segments = torch.tensor([[1] * 7 + [2] + [3] * 12 + [0] * 4])
    hidden = model(packed, segments=segments)
    assert torch.isfinite(hidden).all(), "padding must not make NaN"
    alone = torch.cat([model(document) for document in documents], dim=1)
    torch.testing.assert_close(hidden[:, :20], alone, atol=1e-5, rtol=0)


def test_long_packed_rows_equal_unpacked_ones() -> None:
    """Past the length at which attention changes from two products to the fused kernel."""
    config = LlamaConfig.shape(16, 1, 2, 50, context=512)
    made = build(config)
    init(made, 0)
    documents = [tokens(1, n, seed=n) for n in (90, 200)]
    segments = torch.tensor([[1] * 90 + [2] * 200 + [0] * 10])
    hidden = made(torch.cat([*documents, tokens(1, 10)], dim=1), segments=segments)
    assert torch.isfinite(hidden).all()
    alone = torch.cat([made(document) for document in documents], dim=1)
    torch.testing.assert_close(hidden[:, :290], alone, atol=1e-5, rtol=0)


def test_both_ways_of_attending_are_equal() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 20, 8, generator=generator)
    k, v = (torch.randn(2, 2, 20, 8, generator=generator) for _ in range(2))
    assert by_products(20, 20, q.device)
    assert not by_products(20, 600, q.device)
    bias = torch.zeros(20, 20).masked_fill(torch.ones(20, 20).triu(1) > 0, float("-inf"))
    products, fused = attend(q, k, v, bias), attend(q, k, v, None)
    torch.testing.assert_close(products, fused, atol=1e-6, rtol=0)
    padded = [torch.cat((x, torch.zeros(2, 2, 580, 8)), dim=2) for x in (k, v)]  # 600 keys: the fused kernel
    wide = torch.cat((bias, torch.full((20, 580), float("-inf"))), dim=1)
    torch.testing.assert_close(attend(q, *padded, wide), fused, atol=1e-6, rtol=0)


def test_a_row_of_padding_only_is_finite_and_has_finite_gradients(model) -> None:
    segments = torch.tensor([[1, 1, 1], [0, 0, 0]])
    hidden = model(tokens(2, 3), segments=segments)
    hidden[0].sum().backward()
    assert torch.isfinite(hidden).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.zero_grad()


def test_neither_padding_nor_the_future_reaches_a_token(model) -> None:
    x = tokens(1, 12)
    changed = x.clone()
    changed[:, 8:] = 0
    torch.testing.assert_close(model(x)[:, :8], model(changed)[:, :8], atol=1e-6, rtol=0)
    assert not torch.allclose(model(x)[:, 8:], model(changed)[:, 8:])


def test_positions_matter_and_can_be_given(model) -> None:
    x = tokens(2, 6)
    given = torch.arange(6).expand(2, 6)
    torch.testing.assert_close(model(x, positions=given), model(x), atol=1e-6, rtol=0)
    # Rotary attention sees differences of positions only.
    torch.testing.assert_close(model(x, positions=given + 9), model(x), atol=1e-5, rtol=0)
    assert not torch.allclose(model(x, positions=given * 2), model(x), atol=1e-3)


def test_cached_equals_uncached_for_rows_of_different_lengths(model) -> None:
    x, lengths = tokens(3, 20), torch.tensor([9, 4, 1])
    expected = model(x)
    padded = x[:, :9].clone()
    for row, length in enumerate(lengths.tolist()):
        padded[row, length:] = 0
    cache = KVCache(CONFIG, 3, 30)
    hidden = model(padded, cache=cache)
    cache.trim(lengths)
    last = torch.arange(3), lengths - 1
    torch.testing.assert_close(hidden[last], expected[last], atol=1e-5, rtol=0)
    at = lengths.clone()
    for chunk in (1, 1, 3, 1, 5):  # one token at a time, and several
        new = torch.stack([x[row, i : i + chunk] for row, i in enumerate(at.tolist())])
        hidden = model(new, cache=cache)
        for row, i in enumerate(at.tolist()):
            torch.testing.assert_close(hidden[row], expected[row, i : i + chunk], atol=1e-5, rtol=0)
        at += chunk
    assert cache.lengths.tolist() == at.tolist()


def test_rows_read_in_parts_of_one_cache(model) -> None:
    x = tokens(3, 8)
    cache = KVCache(CONFIG, 3, 10)
    model(x[:2, :7], cache=cache.share(0, 2))
    model(x[2:, :4], cache=cache.share(2, 3))
    cache.trim(torch.tensor([7, 7, 4]))
    new = torch.stack((x[0, 7], x[1, 7], x[2, 4]))[:, None]
    expected = torch.stack((*model(x)[:2, 7], model(x)[2, 4]))
    torch.testing.assert_close(model(new, cache=cache)[:, 0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("bias", [False, True])
def test_several_products_at_once_are_each_layers_own(bias: bool) -> None:
    """Values and gradients of 3 layers of 4, 2 and 6 outputs: from 12 rows on they are one product."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(5, n, bias=bias) for n in (4, 2, 6)]
    for rows in (11, 12):
        x = torch.randn(1, rows, 5, requires_grad=True)
        found = products(x, *layers)
        assert (found[0].untyped_storage().data_ptr() == found[1].untyped_storage().data_ptr()) == (
            rows == 12
        )
        want = [layer(x) for layer in layers]
        every = [x, *(p for layer in layers for p in layer.parameters())]
        got, expected = (torch.autograd.grad(sum(y.sin().sum() for y in ys), every) for ys in (found, want))
        for a, b in zip([*found, *got], [*want, *expected], strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_a_layer_that_is_more_than_linear_is_called_itself() -> None:
    class Adapted(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    plain, adapted = torch.nn.Linear(3, 2), Adapted(3, 2)
    x = torch.ones(20, 3)
    assert torch.equal(
        products(x, plain, adapted)[1], torch.nn.functional.linear(x, adapted.weight, adapted.bias) + 1
    )


def test_recomputed_layers_change_no_bit_of_the_gradients(model, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = Block.forward
    monkeypatch.setattr(Block, "forward", lambda *args: (calls.append(1), real(*args))[1])
    found, counts = [], []
    for recompute in (False, True):
        monkeypatch.setattr(model.model, "recompute", recompute, raising=False)
        calls.clear()
        loss = model(tokens(2, 9), segments=torch.tensor([[1] * 5 + [2] * 4] * 2)).square().mean()
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
        counts.append(len(calls))
    assert counts == [2, 4]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with torch.no_grad():
        calls.clear()
        model(tokens(2, 9))
    assert len(calls) == 2  # nothing to compute again where nothing goes back


@pytest.mark.parametrize("recompute", [False, True])
def test_positions_asked_for_are_those_of_the_whole(recompute: bool) -> None:
    """Scores and their gradients; in any order, some twice, packed and not."""
    made = ScalarModel(CONFIG)
    init(made, 0)
    made.model.recompute = recompute
    x, at = tokens(3, 11), torch.tensor([32, 0, 12, 13, 12])
    weight = torch.tensor([1.0, -2.0, 3.0, 0.5, 4.0])
    for segments in (None, torch.tensor([[1] * 4 + [2] * 7] * 3)):
        some, whole = made(x, segments=segments, at=at), made(x, segments=segments).flatten()[at]
        torch.testing.assert_close(some, whole, atol=1e-6, rtol=1e-5)
        slopes = [torch.autograd.grad((y * weight).sum(), list(made.parameters())) for y in (some, whole)]
        for a, b in zip(*slopes, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_bf16_products_with_fp32_weights_and_residuals() -> None:
    """Near what fp32 gives, in the gradients too, which are fp32; what the products read is cast before."""
    made = build(LlamaConfig.shape(32, 2, 4, 50, kv_heads=2, context=64))
    init(made, 0)
    x, found = tokens(4, 30), []
    entered: list[torch.dtype] = []
    made.model.layers[1].register_forward_pre_hook(lambda _, given: entered.append(given[0].dtype))
    made.model.layers[1].mlp.register_forward_pre_hook(lambda _, given: entered.append(given[0].dtype))
    for kind in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == torch.bfloat16):
            hidden = made(x)
            loss = torch.logsumexp(made.logits(hidden).float(), -1).mean()
        assert hidden.dtype == kind
        grads = torch.autograd.grad(loss, list(made.parameters()))
        assert all(g.dtype == torch.float32 for g in grads)
        found.append((loss, torch.cat([g.flatten() for g in grads])))
    assert entered == [torch.float32, torch.float32, torch.float32, torch.bfloat16]
    (exact, slope), (near, near_slope) = found
    assert near.item() == pytest.approx(exact.item(), abs=5e-3)
    assert torch.cosine_similarity(slope, near_slope, dim=0) > 0.999


def test_gradients_flow_through_a_cache_free_single_token(model) -> None:
    model(tokens(2, 1)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.zero_grad()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda m: m(tokens(1, 65)),
        lambda m: m(tokens(1, 4), cache=KVCache(CONFIG, 1, 3)),
        lambda m: m(tokens(1, 4), cache=KVCache(CONFIG, 1, 8), segments=torch.ones(1, 4)),
    ],
    ids=["context", "cache is full", "segments and cache"],
)
def test_what_cannot_be_computed_is_refused(model, wrong) -> None:
    with pytest.raises(UsageError):
        wrong(model)


@pytest.mark.parametrize("tied", [True, False])
def test_num_parameters_counts_them(tied: bool) -> None:
    config = LlamaConfig.shape(48, 3, 6, 70, kv_heads=3, tied=tied)
    assert sum(p.numel() for p in build(config).parameters()) == config.num_parameters()


def test_init_is_a_function_of_the_seed_with_the_spread_of_gpt2() -> None:
    config = LlamaConfig.shape(128, 4, 4, 300)
    one, same, other = build(config), build(config), build(config)
    for made, seed in ((one, 1), (same, 1), (other, 2)):
        torch.manual_seed(seed * 17)  # the global stream has no say
        init(made, seed)
    for (name, a), b, c in zip(one.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        if name.endswith("norm.weight"):
            assert torch.equal(a, torch.ones_like(a))
            continue
        assert not torch.equal(a, c)
        residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        assert a.std().item() == pytest.approx(0.02 / math.sqrt(8) if residual else 0.02, rel=0.05)


def test_a_scalar_model_copies_the_trunk_and_reads_every_position(model) -> None:
    scalar = ScalarModel.from_causal(model, seed=3)
    x = tokens(2, 10)
    assert scalar(x).shape == (2, 10)
    torch.testing.assert_close(scalar(x), model(x) @ scalar.score.weight[0])
    assert scalar.score.weight.std().item() == pytest.approx(33**-0.5, rel=0.4)
    scalar.shift.fill_(2.5)
    torch.testing.assert_close(scalar(x), model(x) @ scalar.score.weight[0] + 2.5)
    with torch.no_grad():
        scalar.model.norm.weight.add_(1)
    assert not torch.equal(scalar.model.norm.weight, model.model.norm.weight), "a copy, not a share"
    assert torch.equal(
        ScalarModel.from_causal(model, seed=3).score.weight,
        ScalarModel.from_causal(model, seed=3).score.weight,
    )


def test_bfloat16_stays_near_float32(model) -> None:
    x = tokens(2, 30)
    half = build(CONFIG)
    half.load_state_dict(model.state_dict())
    half.to(torch.bfloat16)
    exact, near = model(x), half(x).float()
    assert (exact - near).norm() / exact.norm() < 0.03
