"""Adapters against arithmetic by hand, finite differences and the base they stand on: what they compute, what
learns, and that without them every bit of the base is there."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bloomery.errors import UsageError
from bloomery.infer import Engine
from bloomery.models import Llama, LlamaConfig, ScalarModel, load, lora, save
from bloomery.models.lora import Adapter, Bare, LoraLinear, adapted, attach, fold, without
from bloomery.models.packed import pack
from bloomery.models.rows import TokenRows
from bloomery.objectives.language import nll
from bloomery.objectives.token import aggregate, counted_logprobs
from bloomery.train.optim import adamw
from bloomery.types import SamplingParams

# q and o: 16 -> 16, k and v: 16 -> 8, gate and up: 16 -> 64, down: 64 -> 16
CONFIG = LlamaConfig.shape(16, 2, 4, 40, kv_heads=2, context=64, tied=False)
ALL = Adapter(rank=3, alpha=6.0)
FEW = Adapter(rank=2, alpha=3.0, targets=("q_proj", "v_proj"))


def loud(model: nn.Module, seed: int = 0) -> None:
    """Weights far from zero, also in the adapters, so that each of them tells."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.copy_(noise * 0.2 + (1 if name.endswith("norm.weight") else 0))


def base(kind: Callable[[LlamaConfig], Llama | ScalarModel] = Llama) -> Llama:
    model = kind(CONFIG)
    loud(model)
    return model  # type: ignore[return-value]


def adapters(model: nn.Module, seed: int = 5) -> None:
    """Adapters that do something: B is no longer 0."""
    loud(nn.ParameterList(getattr(layer, n) for layer in adapted(model).values() for n in layer.learns), seed)


def with_adapters(adapter: Adapter = ALL) -> Llama:
    model = base()
    attach(model, adapter)
    adapters(model)
    return model


def tokens(rows: int = 4, length: int = 48) -> Tensor:
    """Rows enough that the fast path of the base lays its weights side by side."""
    return torch.randint(0, 40, (rows, length), generator=torch.Generator().manual_seed(1))


def test_one_layer_by_hand() -> None:
    plain = nn.Linear(2, 2)
    with torch.no_grad():
        plain.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        plain.bias.copy_(torch.tensor([0.5, -0.5]))
    layer = LoraLinear(plain, Adapter(rank=1, alpha=4.0))
    with torch.no_grad():
        layer.lora_A.copy_(torch.tensor([[1.0, -1.0]]))
        layer.lora_B.copy_(torch.tensor([[2.0], [3.0]]))
    x = torch.tensor([1.0, 3.0])
    # W x + b = (7.5, 14.5); A x = -2; (alpha / r) B A x = 4 * (-4, -6)
    assert layer(x).tolist() == [-8.5, -9.5]
    assert layer.whole().tolist() == [[9.0, -6.0], [15.0, -8.0]]
    assert layer.plain()(x).tolist() == [7.5, 14.5]


def test_rows_by_hand() -> None:
    """Of a table of four tokens, 2 and 0 have rows of their own."""
    for table in (nn.Embedding(4, 2), nn.Linear(2, 4, bias=False)):
        with torch.no_grad():
            table.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]))
        rows = TokenRows(table, (2, 0))
        assert rows.rows.tolist() == [[5.0, 6.0], [1.0, 2.0]]
        with torch.no_grad():
            rows.rows.copy_(torch.tensor([[-1.0, 0.0], [0.0, 10.0]]))
        want = [[0.0, 10.0], [3.0, 4.0], [-1.0, 0.0], [7.0, 8.0]]
        assert rows.whole().tolist() == want
        assert rows(torch.tensor([[3, 2], [0, 1]])).tolist() == [[want[3], want[2]], [want[0], want[1]]]
        assert rows.logits(torch.tensor([[1.0, 1.0]])).tolist() == [[10.0, 7.0, -1.0, 15.0]]
        assert rows.plain().weight.tolist()[2] == [5.0, 6.0]


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_tokens_learn_and_the_base_below_them_stays(tied: bool) -> None:
    """Logits and gradients are those of the whole tables; without adapters the base is there to the bit."""
    config, x = replace(CONFIG, tie_word_embeddings=tied), tokens()
    model, plain = Llama(config), Llama(config)
    loud(model), plain.load_state_dict(model.state_dict())
    attach(model, replace(FEW, tokens=(4, 30)))
    torch.testing.assert_close(model.logits(model(x)), plain.logits(plain(x)), atol=1e-5, rtol=0)
    names = {n.rpartition(".")[0] for n, p in model.named_parameters() if p.requires_grad and "rows" in n}
    assert names == {"model.embed_tokens"} | ({"lm_head"} if not tied else set())
    adapters(model)
    twin = deepcopy(model)
    fold(twin)
    assert type(twin.model.embed_tokens) is nn.Embedding
    for one in (model, twin):
        one.logits(one(x)).logsumexp(-1).sum().backward()
    torch.testing.assert_close(model.logits(model(x)), twin.logits(twin(x)), atol=1e-4, rtol=0)
    for name in names:
        mine, theirs = model.get_submodule(name), twin.get_submodule(name)
        torch.testing.assert_close(mine.rows.grad, theirs.weight.grad[[4, 30]], atol=1e-2, rtol=1e-4)
        assert mine.weight.grad is None
    packed = pack(model)
    with torch.no_grad():
        torch.testing.assert_close(packed.logits(packed(x)), model.logits(model(x)), atol=1e-4, rtol=0)
        assert torch.equal(Bare(model).logits(Bare(model)(x)), plain.logits(plain(x)))


def test_rows_are_of_different_tokens_that_there_are() -> None:
    for bad, message in (
        ((3, 3), "different ids"),
        ((-1,), "different ids"),
        ((40,), "not in the vocabulary"),
    ):
        with pytest.raises(UsageError, match=message):
            attach(base(), replace(FEW, tokens=bad))


def test_what_the_product_is_multiplied_by() -> None:
    assert Adapter(rank=4, alpha=8.0).scale == 2.0
    assert Adapter(rank=4, alpha=8.0, rslora=True).scale == 4.0


@pytest.mark.parametrize("kind", [Llama, ScalarModel])
def test_new_adapters_change_nothing(kind: type[Llama]) -> None:
    model, x = base(kind), tokens()
    with torch.no_grad():
        before = model(x)
        attach(model, ALL)
        torch.testing.assert_close(model(x), before, atol=1e-5, rtol=0)
        adapters(model)
        assert (model(x) - before).abs().max() > 0.1


@pytest.mark.parametrize("length", [4, 48])
def test_without_adapters_every_bit_is_the_base_s(length: int) -> None:
    model, x = with_adapters(), tokens(length=length)
    with torch.no_grad():
        want, changed = base()(x), model(x)
        with without(model):
            assert torch.equal(model(x), want)
            assert lora.adapter_of(model) is None
        assert torch.equal(Bare(model)(x), want)
        assert torch.equal(Bare(model).logits(want), base().logits(want))
        assert torch.equal(model(x), changed)
    assert not torch.allclose(changed, want, atol=0.1)


def test_adapters_are_back_after_an_error() -> None:
    model = with_adapters()
    with pytest.raises(ZeroDivisionError), without(model):
        _ = 1 / 0
    assert len(adapted(model)) == 14


def test_the_reference_is_in_the_same_memory_and_follows_a_move() -> None:
    model = with_adapters()
    held = {p.data_ptr() for p in model.parameters()}
    with without(model):
        assert {p.data_ptr() for p in model.parameters()} < held
    model.to(torch.float64)
    with without(model):
        assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_folded_adapters_leave_a_plain_model() -> None:
    model, x = with_adapters(), tokens()
    with torch.no_grad():
        apart = model.logits(model(x))
        state = lora.plain_state(model)
        folded = fold(model)
        torch.testing.assert_close(folded.logits(folded(x)), apart, atol=1e-5, rtol=0)
    assert not adapted(folded)
    assert all(p.requires_grad for p in folded.parameters())
    assert list(folded.state_dict()) == list(base().state_dict())
    assert all(torch.equal(t, state[n]) for n, t in folded.state_dict().items())


def test_gradients_are_finite_differences() -> None:
    model = base()
    attach(model, ALL)
    model.double()
    adapters(model)
    x = tokens(2, 9)
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[:, 0] = False

    def loss() -> Tensor:
        return aggregate(nll(counted_logprobs(model(x), model.logits, x, mask)[0]), mask, 16)

    loss().backward()
    for name in ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"):
        for parameter in (adapted(model)[name].lora_A, adapted(model)[name].lora_B):
            assert parameter.grad is not None
            for index in ((0, 0), (2, 1)):
                values = []
                for step in (1e-5, -2e-5):
                    with torch.no_grad():
                        parameter[index] += step
                    values.append(loss().item())
                with torch.no_grad():
                    parameter[index] += 1e-5
                slope = (values[0] - values[1]) / 2e-5
                assert abs(slope) > 1e-5
                assert parameter.grad[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-9)


# One layer: q and v with rank 2: 2 * (16 + 16) + 2 * (16 + 8) = 112. All with rank 3: q, o 96 each, k, v 72
# each, gate, up, down 3 * (16 + 64) = 240 each: 1056. A scalar head has 16.
@pytest.mark.parametrize(
    ("kind", "adapter", "number"),
    [(Llama, FEW, 2 * 112), (Llama, ALL, 2 * 1056), (ScalarModel, FEW, 2 * 112 + 16)],
)
def test_only_adapters_and_a_scalar_head_learn(kind: type[Llama], adapter: Adapter, number: int) -> None:
    model = base(kind)
    frozen = {name: p.clone() for name, p in model.named_parameters()}
    attach(model, adapter)
    optimizer, x = adamw(model, lr=0.01), tokens()
    losses = []
    for _ in range(5):
        out = model(x)
        loss = (out - 1.0).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    moments = [state["exp_avg"] for state in optimizer.state.values()]
    assert sum(m.numel() for m in moments) == number
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == number
    assert losses == sorted(losses, reverse=True)
    moved = {n for n, p in model.named_parameters() if n in frozen and not torch.equal(p, frozen[n])}
    assert moved == ({"score.weight"} if kind is ScalarModel else set())
    assert all(layer.lora_B.abs().sum() > 0 for layer in adapted(model).values())


def test_a_checkpoint_holds_what_learns_and_loading_it_changes_the_model() -> None:
    model = with_adapters(FEW)
    part = lora.learning(model)
    assert sum(p.numel() for p in part.parameters()) == 2 * 112
    other = base()
    attach(other, FEW, seed=3)
    lora.learning(other).load_state_dict(part.state_dict())
    assert torch.equal(other(tokens()), model(tokens()))
    whole = base()
    assert lora.learning(whole) is whole


def test_the_seed_decides_where_adapters_begin() -> None:
    def drawn(seed: int) -> dict[str, Tensor]:
        model = base()
        attach(model, ALL, seed=seed)
        assert all(layer.lora_B.abs().sum() == 0 for layer in adapted(model).values())
        return {name: layer.lora_A.detach() for name, layer in adapted(model).items()}

    first, again, other = drawn(1), drawn(1), drawn(2)
    for name, a in first.items():
        assert torch.equal(a, again[name])
        assert not torch.equal(a, other[name])
        bound = a.shape[1] ** -0.5
        assert 0.8 * bound < a.abs().max() <= bound
    q = [first[f"model.layers.{n}.self_attn.q_proj"] for n in (0, 1)]
    assert not torch.equal(*q)


def test_a_name_can_be_that_of_one_layer() -> None:
    model = base()
    attach(model, Adapter(rank=1, alpha=1.0, targets=("model.layers.1.mlp.up_proj", "0.self_attn.q_proj")))
    assert list(adapted(model)) == ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"]


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "score", "proj", "norm", "self_attn", ""])
@pytest.mark.parametrize("kind", [Llama, ScalarModel])
def test_what_is_no_layer_of_the_trunk_is_refused(kind: type[Llama], target: str) -> None:
    model = base(kind)
    with pytest.raises(UsageError, match=f"no layer is called '{target}'"):
        attach(model, Adapter(rank=1, alpha=1.0, targets=("q_proj", target)))
    assert not adapted(model)
    assert all(p.requires_grad for p in model.parameters())


def test_errors_say_what_to_do() -> None:
    model = base()
    with pytest.raises(UsageError, match=r"'q_prj' \(did you mean 'q_proj'\?\)"):
        attach(model, Adapter(rank=1, alpha=1.0, targets=("q_prj",)))
    with pytest.raises(UsageError, match=r"did you mean 'model\.layers\.1\.mlp\.up_proj'"):
        attach(model, Adapter(rank=1, alpha=1.0, targets=("model.layers.2.mlp.up_proj",)))
    attach(model, FEW)
    with pytest.raises(UsageError, match="has adapters already"):
        attach(model, FEW)
    with pytest.raises(UsageError, match="rank"):
        Adapter(rank=0, alpha=1.0)
    for alpha in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(UsageError, match="alpha"):
            Adapter(rank=1, alpha=alpha)
    with pytest.raises(UsageError, match="at least one target"):
        Adapter(rank=1, alpha=1.0, targets=())


def test_generation_with_adapters_is_generation_with_folded_weights(tmp_path: Path) -> None:
    model = with_adapters()
    save(model, tmp_path / "whole", merge=True)
    prompts, params = tokens(6, 5).tolist(), [SamplingParams(max_tokens=20, temperature=0)] * 6

    def said(one: Llama) -> list[tuple[int, ...]]:
        return [c.tokens for c in Engine(one, stop_id=-1, pad_id=0)(prompts, params)]

    assert said(model) == said(load(tmp_path / "whole"))
    with without(model):
        assert said(model) == said(base())
    assert said(model) != said(base())


def test_models_on_one_base_share_what_is_frozen_and_equal() -> None:
    """A policy and a scalar model with adapters of their own: what each computes and learns stays its own."""
    policy, critic = with_adapters(), ScalarModel.from_causal(base(), seed=3)
    attach(critic, FEW, seed=1)
    adapters(critic, 7)
    policy.model.norm.weight.data[0] += 1.0  # frozen in both, but no longer equal
    want = critic(tokens()).detach()
    frozen = {n: p for n, p in critic.named_parameters() if not p.requires_grad and n != "model.norm.weight"}
    assert lora.share(critic, policy) == 4 * sum(p.numel() for p in frozen.values())
    assert lora.share(critic, policy) == 0
    held = [weakref.ref(parameter) for parameter in frozen.values()]
    frozen = dict.fromkeys(frozen)  # the names alone
    gc.collect()
    assert not any(one() is not None for one in held), "memory that was said to be free"
    theirs = dict(policy.named_parameters())
    for name, parameter in critic.named_parameters():
        assert (parameter is theirs.get(name)) is (name in frozen), name
    assert torch.equal(critic(tokens()), want)
    with without(critic):
        plain = ScalarModel.from_causal(base(), seed=3)
        assert torch.equal(critic(tokens()), plain(tokens()))
    before = {name: parameter.clone() for name, parameter in policy.named_parameters()}
    optimizer = adamw(critic, lr=0.1)
    critic(tokens()).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(before[name], parameter) for name, parameter in policy.named_parameters())
    assert not torch.equal(critic(tokens()), want)


def test_what_learns_is_never_shared() -> None:
    one, other = base(), base()
    assert lora.share(one, other) == 0
    attach(one, ALL)
    assert lora.share(one, other) == 0
