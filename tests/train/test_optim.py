"""Compared: which parameters shrink under decay with which should, and schedules with values by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bloomery.errors import UsageError
from bloomery.train.optim import Muon, adamw, muon, orthogonal, set_lr
from bloomery.train.schedule import learning_rate


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(2, 2))
        self.gain = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)


def test_decay_shrinks_matrices_and_leaves_vectors_alone() -> None:
    """With zero gradients AdamW's only move is p -= lr * decay * p: 1 - 0.5 * 0.1 = 0.95."""
    block = Block()
    optimizer = adamw(block, lr=0.5, weight_decay=0.1)
    for p in (block.matrix, block.gain):
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.allclose(block.matrix, torch.full((2, 2), 0.95))
    assert torch.equal(block.gain, torch.ones(2))


def test_frozen_parameters_are_left_out_and_shared_ones_come_once() -> None:
    block = Block()
    optimizer = adamw(block, nn.ModuleList([block]), lr=1e-3)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(block.matrix), id(block.gain)]


def test_it_is_torch_adamw() -> None:
    """Ten steps against torch's own, unfused, with the groups written out."""
    blocks = [Block(), Block()]
    ours = adamw(blocks[0], lr=0.01, betas=(0.8, 0.9), weight_decay=0.2)
    groups = [
        {"params": [blocks[1].matrix], "weight_decay": 0.2},
        {"params": [blocks[1].gain], "weight_decay": 0},
    ]
    theirs = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.9), eps=1e-8)
    for step in range(10):
        for block, optimizer in zip(blocks, (ours, theirs), strict=True):
            optimizer.zero_grad()
            (block.matrix.sin().sum() * step + block.gain.square().sum()).backward()
            optimizer.step()
    assert torch.allclose(blocks[0].matrix, blocks[1].matrix, atol=1e-6)
    assert torch.allclose(blocks[0].gain, blocks[1].gain, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_orthogonal_moves_singular_values_by_the_published_polynomial(shape: tuple[int, int]) -> None:
    """3.4445 s - 4.775 s^3 + 2.0315 s^5, five times, on the matrix over its Frobenius norm; the singular
    vectors stay. In float64, so that nothing else can hide; in bf16 the values end where the paper says."""
    given = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(given, full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True)
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(orthogonal(given, dtype=torch.float64), u * s[:, None] @ vh)
    values = torch.linalg.svdvals(orthogonal(given).double())
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3


class Net(nn.Module):
    """One embedding, two layers, one of them with a tall and a wide matrix, and a last layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(7, 6)
        self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 6))])
        self.head = nn.Linear(6, 3, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = x + layer(x).tanh()
        found: torch.Tensor = self.head(x)
        return found


def steps_of(net: Net, *optimizers: torch.optim.Optimizer, num: int) -> None:
    ids = torch.arange(7)
    for step in range(num):
        net(ids)[:, step % 3].logsumexp(0).backward()
        for optimizer in optimizers:
            optimizer.step()
        net.zero_grad()


def test_muon_is_torchs_muon_inside_the_layers_and_adamw_elsewhere() -> None:
    """Against torch's own two optimizers; theirs computes in bf16, one matrix at a time."""
    ours, theirs = Net(), Net()
    one = muon(ours, lr=0.01, weight_decay=0.3)
    inside = [p for p in theirs.layers.parameters() if p.dim() == 2]
    vectors = [p for p in theirs.parameters() if p.dim() < 2]
    rest = [theirs.embed.weight, theirs.head.weight]
    pair = (
        torch.optim.Muon(inside, lr=0.01, weight_decay=0.3, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [{"params": rest, "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}],
            lr=0.01,
            betas=(0.9, 0.95),
        ),
    )
    steps_of(ours, one, num=6)
    steps_of(theirs, *pair, num=6)
    begun = list(Net().parameters())
    for (name, mine), other, start in zip(ours.named_parameters(), theirs.parameters(), begun, strict=True):
        apart, moved = (float((x - y).detach().norm()) for x, y in ((mine, other), (other, start)))
        assert apart < 0.03 * moved, name


def test_muon_goes_on_from_its_state_bit_for_bit() -> None:
    whole, broken, again = Net(), Net(), Net()
    steps_of(whole, muon(whole, lr=0.01), num=6)
    first = muon(broken, lr=0.01)
    steps_of(broken, first, num=3)
    again.load_state_dict(broken.state_dict())
    second = muon(again, lr=0.5)
    second.load_state_dict(first.state_dict())
    # The gradients of a run depend on its step's number: three more are those of steps 3 to 5.
    steps_of(again, second, num=3)
    for mine, other in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_what_muon_holds() -> None:
    net = Net()
    net.layers[0].weight.requires_grad_(False)
    optimizer = muon(net, lr=0.02)
    assert isinstance(optimizer, Muon)
    held = {g["momentum"]: g["params"] for g in optimizer.param_groups if g["weight_decay"]}
    assert [p.shape for p in held[0.95]] == [(10, 6), (6, 10)]
    assert [p.shape for p in held[None]] == [(7, 6), (3, 6)]
    set_lr(optimizer, 0.5)
    assert {g["lr"] for g in optimizer.param_groups} == {0.5}
    before = [p.clone() for p in net.parameters()]
    optimizer.step()  # without gradients nothing moves
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(UsageError, match="every parameter is frozen"):
        adamw(nn.Linear(2, 2).requires_grad_(False), lr=1e-3)


def test_set_lr_reaches_every_group_and_refuses_nonsense() -> None:
    optimizer = adamw(Block(), lr=1e-3)
    set_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
    for bad in (math.nan, math.inf, -1e-3):
        with pytest.raises(UsageError, match="finite and not negative"):
            set_lr(optimizer, bad)


def rates(kind: str, total: int, **settings: float) -> list[float]:
    return [learning_rate(s, total=total, kind=kind, **settings) for s in range(total)]  # type: ignore[arg-type]


def test_schedules_by_hand() -> None:
    assert rates("constant", 4, peak=8.0, warmup=2) == [4.0, 8.0, 8.0, 8.0]
    assert rates("linear", 6, peak=8.0, warmup=2, floor=0.0) == [4.0, 8.0, 6.0, 4.0, 2.0, 0.0]
    assert rates("linear", 6, peak=8.0, warmup=2, floor=0.5) == [4.0, 8.0, 7.0, 6.0, 5.0, 4.0]
    assert rates("wsd", 10, peak=8.0, warmup=1, floor=0.0, decay_fraction=0.4) == [8.0] * 6 + [
        6.0,
        4.0,
        2.0,
        0.0,
    ]
    # cosine after no warmup: floor + (1 - floor) * (1 + cos(pi n / 4)) / 2 for n = 1..4, floor 0
    half = math.sqrt(0.5)
    assert rates("cosine", 4, peak=2.0, floor=0.0) == pytest.approx([1 + half, 1.0, 1 - half, 0.0])


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd"])
def test_the_ends_are_the_peak_and_the_floor(kind: str) -> None:
    found = rates(kind, 50, peak=3.0, warmup=10, floor=0.1)
    assert found[9] == max(found) == 3.0
    assert found[-1] == pytest.approx(0.3)
    assert found[10:] == sorted(found[10:], reverse=True)
    assert found[:10] == sorted(found[:10])


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd", "constant"])
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 1), (2, 2), (3, 5)])
def test_runs_too_short_for_their_warmup_still_have_rates(kind: str, total: int, warmup: int) -> None:
    assert all(0 < rate <= 1.0 for rate in rates(kind, total, peak=1.0, warmup=warmup))


def test_what_no_schedule_has() -> None:
    with pytest.raises(UsageError, match="no schedule is called 'cosin'"):
        rates("cosin", 3, peak=1.0)
    for step in (-1, 3):
        with pytest.raises(UsageError, match="no such step"):
            learning_rate(step, total=3, peak=1.0)
