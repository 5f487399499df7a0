"""Compared: training that was saved and restored with training that went on, bit for bit; a checkpoint after
each kind of damage with the one a reader then takes; a directory before and after a save that failed."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bloomery.errors import ArtifactError
from bloomery.lineage import verify
from bloomery.train import checkpoint
from bloomery.train.optim import adamw
from bloomery.train.step import Guard, apply


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("shift", torch.tensor(0.25))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.mix(self.embed(tokens))) + self.shift


def fresh(seed: int = 0) -> tuple[Tied, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Tied()
    return model, adamw(model, lr=0.01)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        tokens = torch.randint(7, (3, 5), generator=torch.Generator().manual_seed(step))
        model(tokens).square().mean().backward()
        apply(optimizer, 1.0, guard=Guard())


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    moments = {f"{i}/{k}": v for i, s in optimizer.state_dict()["state"].items() for k, v in s.items()}
    return {k: v.clone() for k, v in (model.state_dict() | moments).items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def saved(directory: Path, steps: tuple[int, ...] = (2, 4)) -> tuple[Tied, torch.optim.Optimizer]:
    """A run with a checkpoint after each of `steps`."""
    model, optimizer = fresh()
    done = 0
    for step in steps:
        train(model, optimizer, range(done, step))
        checkpoint.save(directory, step, {"model": model}, {"optimizer": optimizer}, {"note": [step, None]})
        done = step
    return model, optimizer


def test_ten_steps_are_five_and_a_restore_and_five(tmp_path: Path) -> None:
    model, optimizer = fresh()
    train(model, optimizer, range(5))
    group = optimizer.param_groups[0]
    group["lr"] = 0.1 + 0.2
    checkpoint.save(tmp_path, 5, {"model": model}, {"optimizer": optimizer}, {"kl_coef": 0.1, "names": ["a"]})
    again, its_optimizer = fresh(seed=1)
    found = checkpoint.restore(tmp_path, {"model": again}, {"optimizer": its_optimizer}, print)
    assert found is not None
    assert (found.step, found.state) == (5, {"kl_coef": 0.1, "names": ["a"]})
    assert equal(everything(model, optimizer), everything(again, its_optimizer))
    assert again.head.weight is again.embed.weight
    settings = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    assert settings == [{k: v for k, v in g.items() if k != "params"} for g in its_optimizer.param_groups]
    assert isinstance(its_optimizer.param_groups[0]["betas"], tuple)
    train(model, optimizer, range(5, 10))
    train(again, its_optimizer, range(5, 10))
    assert equal(everything(model, optimizer), everything(again, its_optimizer))


def test_leaving_the_optimizer_out_would_be_seen() -> None:
    """The comparison above can fail: without the moments the ten steps end elsewhere."""
    model, optimizer = fresh()
    train(model, optimizer, range(5))
    again, _ = fresh(seed=1)
    again.load_state_dict(model.state_dict())
    train(model, optimizer, range(5, 10))
    train(again, adamw(again, lr=0.01), range(5, 10))
    assert not torch.equal(model.embed.weight, again.embed.weight)


def test_several_parts_and_a_tensor_kept_once(tmp_path: Path) -> None:
    (actor, one), (critic, two) = fresh(1), fresh(2)
    train(actor, one, range(3))
    parts = {"actor": actor, "critic": critic}
    path = checkpoint.save(tmp_path, 1, parts, {"actor_optimizer": one, "critic_optimizer": two}, {})
    (a, oa), (c, oc) = fresh(3), fresh(4)
    optimizers = {"actor_optimizer": oa, "critic_optimizer": oc}
    assert checkpoint.restore(tmp_path, {"actor": a, "critic": c}, optimizers, print)
    assert equal(everything(actor, one), everything(a, oa))
    assert equal(everything(critic, two), everything(c, oc))
    floats = sum(p.numel() for p in actor.parameters()) + 1
    assert 4 * floats < (path / "actor.safetensors").stat().st_size < 4 * floats + 600


def test_the_newest_stay_and_the_rest_go(tmp_path: Path) -> None:
    saved(tmp_path, (1, 2, 9, 10))
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-9"]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-10", "checkpoint-9"}
    model, optimizer = saved(tmp_path, (10,))
    again = fresh(1)
    assert checkpoint.restore(tmp_path, {"model": again[0]}, {"optimizer": again[1]}, print)
    assert equal(everything(model, optimizer), everything(*again))


def test_a_checkpoint_gets_its_name_only_when_it_is_whole(tmp_path: Path, monkeypatch) -> None:
    renamed, rename = [], Path.rename

    def watched(self: Path, target: Path) -> Path:
        renamed.append((target.name, verify(self)))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watched)
    saved(tmp_path)
    assert renamed == [("checkpoint-2", []), ("checkpoint-4", [])]


def test_nothing_saved_is_nothing_restored(tmp_path: Path) -> None:
    model, optimizer = fresh()
    assert checkpoint.restore(tmp_path, {"model": model}, {"optimizer": optimizer}, print) is None


def test_leftovers_are_removed_and_never_read(tmp_path: Path) -> None:
    saved(tmp_path, (2,))
    (tmp_path / "checkpoint-2").rename(tmp_path / "checkpoint-2.tmp-abcd")
    assert checkpoint.checkpoints(tmp_path) == []
    assert checkpoint.clear_leftovers(tmp_path) == ["checkpoint-2.tmp-abcd"]
    assert list(tmp_path.iterdir()) == []


def damage(path: Path, rng: random.Random) -> str:
    """Flip a bit, cut the end off, delete or empty one file; returns its name."""
    file = rng.choice(sorted(path.iterdir()))
    whole = file.read_bytes()
    kind = rng.choice(["flip", "flip", "cut", "delete", "grow"])
    if kind == "flip":
        at = rng.randrange(len(whole))
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
    elif kind == "cut":
        file.write_bytes(whole[: rng.randrange(len(whole))])
    elif kind == "grow":
        file.write_bytes(whole + b"\0")
    else:
        file.unlink()
    return file.name


def test_every_damage_is_found_named_and_fallen_back_from(tmp_path: Path) -> None:
    saved(tmp_path)
    newest = tmp_path / "checkpoint-4"
    whole = {file.name: file.read_bytes() for file in newest.iterdir()}
    rng = random.Random(0)
    for _ in range(150):
        name, told = damage(newest, rng), []
        found = checkpoint.newest_valid(tmp_path, told.append)
        assert found == tmp_path / "checkpoint-2"
        assert len(told) == 1
        assert "checkpoint-4 is damaged" in told[0]
        assert name in told[0]
        for restored, content in whole.items():
            (newest / restored).write_bytes(content)
    assert checkpoint.newest_valid(tmp_path, print) == newest


def test_when_all_are_damaged_each_is_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    saved(tmp_path)
    for path in checkpoint.checkpoints(tmp_path):
        (path / "model.safetensors").unlink()
    model, optimizer = fresh(5)
    before, told = everything(model, optimizer), []
    assert checkpoint.restore(tmp_path, {"model": model}, {"optimizer": optimizer}, told.append) is None
    assert [text.split()[0] for text in told] == ["checkpoint-4", "checkpoint-2"]
    assert equal(before, everything(model, optimizer))


def test_a_checkpoint_of_something_else_is_refused_and_nothing_changed(tmp_path: Path) -> None:
    saved(tmp_path)
    model, optimizer = fresh(1)
    other = nn.Linear(3, 3)
    wider = Tied()
    wider.mix = nn.Linear(4, 4, bias=False)
    frozen = Tied()
    frozen.mix.requires_grad_(False)
    before = everything(model, optimizer)
    for modules, optimizers, complaint in (
        ({"model": model}, {}, "other parts than the run tracks"),
        ({"model": model, "critic": other}, {"optimizer": optimizer}, "other parts than the run tracks"),
        ({"model": other}, {"optimizer": optimizer}, "tensor 'bias' does not fit"),
        ({"model": wider}, {"optimizer": optimizer}, r"tensor 'mix.bias' does not fit"),
        ({"model": model}, {"optimizer": adamw(frozen, lr=1.0)}, "for other parameters"),
        (
            {"model": model},
            {"optimizer": adamw(nn.ModuleList([other, Tied()]), lr=1.0)},
            "for other parameters",
        ),
    ):
        with pytest.raises(ArtifactError, match=complaint):
            checkpoint.restore(tmp_path, modules, optimizers, print)
    assert equal(before, everything(model, optimizer))


@pytest.mark.parametrize("call", ["save_file", "write_json", "write_manifest", "sync"])
def test_a_full_disk_leaves_the_earlier_one_and_says_what_is_needed(
    tmp_path: Path, monkeypatch, call: str
) -> None:
    model, optimizer = saved(tmp_path, (2,))
    before = {file.name: file.read_bytes() for file in (tmp_path / "checkpoint-2").iterdir()}

    def full(*args: object, **settings: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, call, full)
    with pytest.raises(ArtifactError) as caught:
        checkpoint.save(tmp_path, 4, {"model": model}, {"optimizer": optimizer}, {})
    # 7 * 4 + 4 * 4 + 4 weights and a buffer; two moments and a step count for each of three parameters
    need = 4 * (48 + 1) + 4 * (2 * 48 + 3)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'checkpoint-4'}: the checkpoint could not be written")
    assert "No space left on device" in text
    assert f"room for {need} bytes" in text
    monkeypatch.undo()
    assert {file.name: file.read_bytes() for file in (tmp_path / "checkpoint-2").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir() if "tmp" in p.name] == []


def test_no_file_of_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    saved(tmp_path, (2,))
    for file in (tmp_path / "checkpoint-2").iterdir():
        assert file.suffix in (".safetensors", ".json")
