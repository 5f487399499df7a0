"""How our cost grows: with the width, the batch, the context, the number K of ranked answers, the number n of
answers to a prompt, the vocabulary. One thing changes at a time, the rest stays at size S.

    python benchmarks/scaling.py [--axis width,batch,context,k,n,vocabulary,whole] [--rounds 3] [--threads N]

`whole` is `vocabulary` with all logits at once, as one would write it: what the pieces save is between the
two. Prints a table; writes runs/bench/scaling.json and one plot for each axis, runs/bench/scaling-AXIS.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import stage
from bench import HERE, OUT, Worker, helper, value
from case import SIZES
from tables import number

AXES: Mapping[str, tuple[str, str, Sequence[int]]] = {
    "width": ("pretrain", "tok/s", (128, 256, 384, 512)),
    "batch": ("pretrain", "tok/s", (2, 4, 8, 16, 32)),
    "context": ("pretrain", "tok/s", (64, 128, 256, 512)),
    "k": ("reward", "answers/s", (2, 4, 6, 9)),
    "n": ("rollout", "tok/s", (1, 4, 16, 64)),
    "vocabulary": ("vocabulary", "tok/s", (4096, 16384, 50304)),
    "whole": ("vocabulary", "tok/s", (4096, 16384, 50304)),
}
STEPS = {"pretrain": 4, "reward": 4, "rollout": 1, "vocabulary": 2}
PRECISION = {"pretrain": "bf16", "reward": "bf16", "rollout": "fp32", "vocabulary": "bf16"}


def pretrain(pace: Any, settings: dict[str, Any]) -> None:
    shape = SIZES["S"]
    width, context = settings.get("width", shape.width), settings.get("context", shape.context)
    batch = settings.get("batch", 16)
    material = Path(settings["material"])
    recipe = {
        "corpus": material / "corpus",
        "tokenizer": material / "tokenizer",
        "model": {"width": width, "depth": shape.depth, "heads": width // 64, "context": context},
        "tokens": stage.ENDLESS * batch * context,
        "batch": batch,
        "optimiser": stage.optimiser(learning_rate=1e-3),
        "compute": stage.compute(settings),
        "validate_every": stage.ENDLESS,
    }
    stage.run(pace, settings, "pretrain", recipe, batch * context)


def reward(pace: Any, settings: dict[str, Any]) -> None:
    """Slates of K answers; every answer is one unit, whatever pairs it is in."""
    import material as made

    from bloomery.text.chat import Chat
    from bloomery.text.tokenizer import Tokenizer

    k, slates = settings["k"], 8
    material, scratch = Path(settings["material"]), Path(settings["scratch"]) / f"k{settings['k']}"
    scratch.mkdir(parents=True, exist_ok=True)
    chat = Chat(Tokenizer.load(material / "tokenizer"))
    made.write_rankings(scratch, "rankings", k, 64, "reward_k6", SIZES["S"], chat, made.Text())
    recipe = {
        "model": material / "policy",
        "start": material / "reward",
        "rankings": [scratch / "rankings.jsonl"],
        "epochs": stage.ENDLESS,
        "batch": slates,
        "held_out": 1e-9,
        "optimiser": stage.optimiser(learning_rate=1e-4),
        "compute": stage.compute(settings),
    }
    stage.run(pace, settings, "reward", recipe, slates * k)


def rollout(pace: Any, settings: dict[str, Any]) -> None:
    """n answers to each of so many prompts that about 64 answers are drawn; n = 1 has 64 prompts."""
    import rollout as rollouts

    n = settings["n"]

    def asked(step: int) -> list[list[int]]:
        return [prompt for prompt in rollouts.prompts(settings, step)[::n] for _ in range(n)]

    rollouts.sample(pace, rollouts.our_engine(settings), asked)


def vocabulary(pace: Any, settings: dict[str, Any]) -> None:
    """Pretraining steps of a model that knows so many tokens, on tokens drawn at random: its log-probs are
    those of every stage, or, for `whole`, made of all logits at once."""
    import torch
    from torch.nn.functional import cross_entropy

    from bloomery.data.batches import TokenBatch
    from bloomery.models import Llama, LlamaConfig, init
    from bloomery.stages.common import mean_loss
    from bloomery.train import optim, precision

    shape, whole = SIZES["S"], settings.get("whole")
    vocab = whole or settings["vocabulary"]
    autocast = precision.setup(settings["precision"], settings["threads"])
    heads = shape.width // 64
    model = Llama(LlamaConfig.shape(shape.width, shape.depth, heads, vocab, context=shape.context))
    init(model, 0)
    optimizer = optim.adamw(model, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    draws = torch.Generator().manual_seed(0)
    while True:
        pace.start()
        tokens = torch.randint(0, vocab, (16, shape.context), generator=draws)
        mask = torch.ones_like(tokens).bool()
        mask[:, 0] = False
        with autocast():
            if whole:
                logits = model.logits(model(tokens))[:, :-1].float()
                loss = cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            else:
                loss = mean_loss(model, TokenBatch(tokens, mask, torch.ones_like(tokens).int()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        pace.end(tokens.numel(), loss=float(loss.detach()))


def point(axis: str, x: int, arguments: argparse.Namespace) -> tuple[list[float], float]:
    """The rate of every timed round at one value of an axis, and the peak of memory in MB."""
    work, unit, _ = AXES[axis]
    settings = {
        axis: x,
        "size": "S",
        "precision": PRECISION[work],
        "compile": False,
        "threads": arguments.threads,
        "material": str((OUT / "material" / "S").absolute()),
        "scratch": str((OUT / "scratch").absolute()),
    }
    command = [sys.executable, str(HERE / "worker.py"), "scaling", work, json.dumps(settings)]
    worker = Worker(command, arguments.threads, OUT / "logs" / f"scaling-{axis}-{x}.log")
    try:
        worker.answer()
        rounds = [value(worker.round(STEPS[work]), unit) for _ in range(arguments.rounds + 1)]
        return rounds[1:], worker.finish()["peak_mb"]
    finally:
        worker.stop()


def plot(axis: str, found: Mapping[int, Sequence[float]]) -> str:
    """A standalone SVG: medians, with the lowest and highest round as whiskers."""
    from pictures import Panel, picture

    from bloomery.report.plots import Series

    work, unit, _ = AXES[axis]
    rates = list(found.values())
    medians, lowest, highest = ([f(r) for r in rates] for f in (median, min, max))
    series = Series(unit, list(found), medians, "s1", "points", lowest, highest)
    return picture(Panel(f"{work}, {unit}", axis, [series], zero=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add: Callable[..., Any] = parser.add_argument
    add("--axis", default=",".join(AXES), help="which, by comma")
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    if any(AXES[axis][0] != "vocabulary" for axis in arguments.axis.split(",")):
        helper("material", "S", arguments.threads)
    file = OUT / "scaling.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    print(f"load {os.getloadavg()[0]:.2f} before anything ran\n")
    print("| axis | value | median | rounds | peak MB |\n|---|---:|---:|---|---:|")
    for axis in arguments.axis.split(","):
        found, peaks = dict[int, list[float]](), dict[int, float]()
        for x in AXES[axis][2]:
            found[x], peaks[x] = point(axis, x, arguments)
            shown = f"{number(median(found[x]))} {AXES[axis][1]} | {' '.join(map(number, found[x]))}"
            print(f"| {axis} | {x} | {shown} | {peaks[x]:.0f} |", flush=True)
        results[axis] = {str(x): rounds for x, rounds in found.items()}
        results[f"{axis} peak_mb"] = {str(x): peak for x, peak in peaks.items()}
        file.write_text(json.dumps(results, indent=1) + "\n")
        (OUT / f"scaling-{axis}.svg").write_text(plot(axis, found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
