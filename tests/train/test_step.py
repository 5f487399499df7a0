"""Compared: a guarded update with the same one worked by hand and by torch, and the bits of weights and
optimizer state before and after an update that must not happen."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bloomery.errors import BloomeryError
from bloomery.train.optim import adamw
from bloomery.train.step import Guard, apply, apply_all


def bits(model: nn.Module, *optimizers: torch.optim.Optimizer) -> list[Tensor]:
    state = [s for o in optimizers for values in o.state.values() for s in values.values()]
    return [t.detach().clone() for t in (*model.parameters(), *state)]


def same(before: list[Tensor], after: list[Tensor]) -> bool:
    return len(before) == len(after) and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def trained(steps: int = 2) -> tuple[nn.Linear, torch.optim.Optimizer]:
    model = nn.Linear(3, 2)
    optimizer = adamw(model, lr=0.1)
    for _ in range(steps):
        model(torch.ones(1, 3)).square().sum().backward()
        apply(optimizer, 1.0, guard=Guard())
    return model, optimizer


def test_the_global_norm_is_clipped_as_by_hand() -> None:
    """Gradients 3 and 4 have norm 5; clipped to 1 they are 0.6 and 0.8, and SGD at rate 1 subtracts them."""
    a, b = nn.Parameter(torch.tensor([0.0])), nn.Parameter(torch.tensor([0.0]))
    optimizer = torch.optim.SGD([a, b], lr=1.0)
    for max_norm, moved in ((1.0, (0.6, 0.8)), (10.0, (3.0, 4.0)), (None, (3.0, 4.0))):
        a.data.zero_(), b.data.zero_()
        a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
        assert apply(optimizer, max_norm, guard=Guard()) == pytest.approx(5.0)
        assert (-a.item(), -b.item()) == pytest.approx(moved)
        assert a.grad is None
        assert b.grad is None


def test_it_is_torchs_clip_and_step() -> None:
    torch.manual_seed(0)
    models = [nn.Linear(5, 5), nn.Linear(5, 5)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [adamw(model, lr=0.1) for model in models]
    for step in range(5):
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        for model in models:
            model(x).pow(4).sum().backward()
        norm = apply(optimizers[0], 0.5, guard=Guard())
        assert norm == pytest.approx(nn.utils.clip_grad_norm_(models[1].parameters(), 0.5).item())
        optimizers[1].step()
        optimizers[1].zero_grad()
    assert torch.allclose(models[0].weight, models[1].weight, atol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["gradient", "loss", "loss tensor"])
def test_what_is_not_finite_changes_no_bit_and_is_counted(bad: float, place: str) -> None:
    model, optimizer = trained()
    before, guard = bits(model, optimizer), Guard()
    model(torch.ones(1, 3)).sum().backward()
    loss: Tensor | float | None = None
    if place == "gradient":
        model.weight.grad[0, 0] = bad
    else:
        loss = bad if place == "loss" else torch.tensor(bad, requires_grad=True)
    norm = apply(optimizer, 1.0, guard=guard, loss=loss)
    assert math.isfinite(norm) is (place != "gradient")
    assert same(before, bits(model, optimizer))
    assert (guard.skipped, guard.in_a_row) == (1, 1)
    assert all(p.grad is None for p in model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    apply(optimizer, 1.0, guard=guard, loss=1.0)
    assert not same(before, bits(model, optimizer))
    assert (guard.skipped, guard.in_a_row) == (1, 0)


def test_finite_gradients_whose_norm_overflows_are_skipped_too() -> None:
    model, optimizer = trained()
    before = bits(model, optimizer)
    for p in model.parameters():
        p.grad = torch.full_like(p, 3e38)
    assert math.isinf(apply(optimizer, 1.0, guard=Guard()))
    assert same(before, bits(model, optimizer))


def test_each_optimizer_is_clipped_to_its_own_norm() -> None:
    """Gradients 3 and 4: one clipped to 1, the other left alone."""
    pair = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    pair[0].grad, pair[1].grad = torch.tensor([3.0]), torch.tensor([4.0])
    one, two = (torch.optim.SGD([p], lr=1.0) for p in pair)
    assert apply_all([(one, 1.0), (two, 5.0)], guard=Guard()) == pytest.approx([3.0, 4.0])
    assert [-p.item() for p in pair] == pytest.approx([1.0, 4.0])


@pytest.mark.parametrize("bad", [0, 1])
def test_one_bad_optimizer_stops_both_and_each_such_update_counts_once(bad: int) -> None:
    """An actor whose gradient stays bad ends the run, however good its critic's gradients are."""
    pairs = [trained(), trained()]
    before, guard = [bits(*pair) for pair in pairs], Guard(patience=3)

    def update() -> list[float]:
        for model, _ in pairs:
            model(torch.ones(1, 3)).sum().backward()
        pairs[bad][0].bias.grad[0] = math.nan
        return apply_all([(optimizer, 1.0) for _, optimizer in pairs], guard=guard, batch="step 7")

    for turn in (1, 2):
        norms = update()
        assert [math.isnan(norm) for norm in norms] == [which == bad for which in (0, 1)]
        assert (guard.skipped, guard.in_a_row) == (turn, turn)
    with pytest.raises(BloomeryError, match="batch step 7: 3 updates in a row were not finite"):
        update()
    assert all(same(old, bits(*pair)) for old, pair in zip(before, pairs, strict=True))
    assert all(p.grad is None for model, _ in pairs for p in model.parameters())


def test_patience_ends_and_the_batch_is_named() -> None:
    model, optimizer = trained()
    before, guard = bits(model, optimizer), Guard(patience=3)
    for turn in range(3):
        model(torch.ones(1, 3)).sum().backward()
        if turn < 2:
            apply(optimizer, 1.0, guard=guard, loss=math.nan, batch=["a", "b"])
    with pytest.raises(BloomeryError) as caught:
        apply(optimizer, 1.0, guard=guard, loss=math.nan, batch=["doc-7", "doc-9"])
    assert "batch ['doc-7', 'doc-9']: 3 updates in a row were not finite" in str(caught.value)
    assert "loss nan" in str(caught.value)
    assert same(before, bits(model, optimizer))


def test_bad_updates_with_good_ones_between_do_not_end_the_run() -> None:
    model, optimizer = trained()
    guard = Guard(patience=2)
    for turn in range(10):
        model(torch.ones(1, 3)).sum().backward()
        apply(optimizer, 1.0, guard=guard, loss=math.nan if turn % 2 else 0.0)
    assert guard.skipped == 5


def test_no_gradient_at_all_is_an_error() -> None:
    _, optimizer = trained()
    with pytest.raises(BloomeryError, match="no parameter has a gradient"):
        apply(optimizer, 1.0, guard=Guard())
