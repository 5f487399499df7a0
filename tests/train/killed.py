"""Train a toy in a child process, kill the child without warning, go on, and compare bytes with a run left in
peace. Run by test_kill.py in a process of its own: one import of torch, many cheap forks.

    python killed.py DIR STRIDE MOST

First a fresh run for every STRIDE-th call that touches the disk, killed just before that call, wherever it
falls; then one run killed at random moments until it gets through, at most MOST times. Prints one line of
JSON: for both, how many kills, how many of them inside a save, and every difference found.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from bloomery import lineage
from bloomery.recipe import Section
from bloomery.train import checkpoint
from bloomery.train.optim import adamw, set_lr
from bloomery.train.run import Run
from bloomery.train.schedule import learning_rate
from bloomery.train.step import apply

CALLS = ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")


class Toy(Section):
    seed: int = 0
    steps: int = 10


def train(out: Path, every: int = 4, pause: float = 0.0) -> None:
    recipe = Toy()
    with Run(out, stage="toy", recipe=recipe, checkpoint_every=every, keep=1) as run:
        torch.manual_seed(recipe.seed)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
        optimizer = adamw(model, lr=0.01)
        run.track(model=model, optimizer=optimizer)
        for step in run.steps(recipe.steps):
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            set_lr(optimizer, learning_rate(step, total=recipe.steps, peak=0.01, warmup=2))
            loss = (model(x) - x).square().mean()
            loss.backward()
            norm = apply(optimizer, 1.0, guard=run.guard, loss=loss)
            run.log(step, {"loss": loss, "grad_norm": norm})
            time.sleep(pause)
        save_file(model.state_dict(), out / "model.safetensors")
        run.finish()


def in_child(work: Callable[[], None]) -> int:
    """Start `work` in a fork with nothing on its stderr; returns the process id."""
    child = os.fork()
    if child == 0:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.__stderr__)
            os._exit(1)
        os._exit(0)
    return child


def killed_before_call(number: int, work: Callable[[], None]) -> None:
    """Do `work`, but die the moment it is about to make its `number`-th call to the disk."""
    count = 0

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def wrapper(*args: object, **settings: object) -> object:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **settings)

        return wrapper

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    work()


def outcome(child: int) -> int:
    """0 for a run that got through, 9 for one that was killed; anything else is a failure."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) * -1


def product(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in ("model.safetensors", "metrics.jsonl", "recipe.yaml")}


def faults(out: Path, whole: dict[str, bytes], label: str) -> list[str]:
    found = [f"{label}: {problem}" for problem in lineage.verify(out)]
    found += [f"{label}: {path.name} is left" for path in out.glob("checkpoint-*")]
    found += [f"{label}: {name} differs" for name, content in product(out).items() if content != whole[name]]
    return found


def by_calls(home: Path, whole: dict[str, bytes], stride: int) -> dict[str, object]:
    kills, inside, found, number = 0, 0, [], 1
    while True:
        out = home / f"call-{number}"
        work = partial(train, out)
        code = outcome(in_child(partial(killed_before_call, number, work)))
        if code == 0:
            break
        kills += 1
        inside += any(out.glob("checkpoint-*.tmp-*")) if out.exists() else 0
        sealed = (out / lineage.MANIFEST).exists()
        if not sealed and outcome(in_child(work)) != 0:
            found.append(f"call {number}: did not go on")
        else:
            checkpoint.clear(out)  # a kill after the seal may leave them: they are no part of it
            found += faults(out, whole, f"call {number}")
        shutil.rmtree(out)
        number += stride
    return {"kills": kills, "inside": inside, "faults": found}


def by_moments(home: Path, whole: dict[str, bytes], most: int) -> dict[str, object]:
    rng, out, kills, inside = random.Random(0), home / "moments", 0, 0
    while kills < most:
        child = in_child(lambda: train(out, every=1, pause=0.002))
        time.sleep(rng.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
        if outcome(child) != 0:
            kills += 1
            inside += any(out.glob("checkpoint-*.tmp-*"))
        elif kills:
            break
        else:  # through before the first kill: that shows nothing
            shutil.rmtree(out)
    if not (out / lineage.MANIFEST).exists() and outcome(in_child(lambda: train(out))) != 0:
        return {"kills": kills, "inside": inside, "faults": ["did not go on"]}
    checkpoint.clear(out)
    return {"kills": kills, "inside": inside, "faults": faults(out, whole, "moments")}


def main() -> None:
    torch.set_num_threads(1)
    home = Path(sys.argv[1])
    train(home / "whole")  # in this process, so that no child has anything left to import
    whole = product(home / "whole")
    calls = by_calls(home, whole, stride=int(sys.argv[2]))
    moments = by_moments(home, whole, most=int(sys.argv[3]))
    print(json.dumps({"calls": calls, "moments": moments}))


if __name__ == "__main__":
    main()
