"""Pretraining: our stage against transformers' Llama and nanoGPT, tokens a second.

transformers gets our weights, rows and optimizer settings, so its losses must be ours step by step. nanoGPT
is another architecture of the same width, depth and vocabulary on the same rows, trained by its own loop's
steps: it must learn as much as ours does, which is all two architectures can be asked.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import stage
from case import SIZES, Case, Shape, Side, steps_agree

BATCH, RATE, DECAY = 16, 1e-3, 0.1
COMPARED = 6  # steps whose losses are compared
ALIKE = 0.25  # nats between two architectures after as many steps


def cases(shape: Shape, precision: str | None) -> list[Case]:
    steps = 12 if shape.width <= 256 else 4
    found = list[Case]()
    for work, kind, apart in (("pretrain", "bf16", 0.03), ("pretrain_fp32", "fp32", 0.002)):
        plain = Case(
            *(work, "nanoGPT", "tok/s", steps, "ours", "nanogpt", learns_alike, kind), checkout="nanoGPT"
        )
        found += [
            Case(work, "transformers", "tok/s", steps, "ours", "transformers", agree(apart), kind),
            plain,
            replace(plain, peer="nanoGPT, compiled", compiled=True),
        ]
    return found


def agree(apart: float) -> Callable[[Side, Side], str]:
    return steps_agree("train/loss", apart, COMPARED)


def learns_alike(ours: Side, theirs: Side) -> str:
    """Both start at the same loss, both fall, and neither is far ahead where the shorter one ends."""
    a, b = ours.facts["train/loss"], theirs.facts["train/loss"]
    last = min(len(a), len(b)) - 1
    if abs(a[0] - b[0]) > ALIKE:
        return f"first losses are {a[0]:.3f} and {b[0]:.3f}"
    if not (a[last] < a[0] and b[last] < b[0]):
        return f"a loss does not fall: {a[0]:.3f} to {a[last]:.3f}, {b[0]:.3f} to {b[last]:.3f}"
    if a[last] > b[last] + ALIKE:
        return f"after {last + 1} steps ours is at {a[last]:.3f} and theirs at {b[last]:.3f}"
    return ""


def ours(pace: Any, settings: dict[str, Any]) -> None:
    material, shape = Path(settings["material"]), SIZES[settings["size"]]
    batch = settings.get("batch", BATCH)
    pace.tell(flops=flops_per_token(shape))
    recipe = {
        "corpus": material / "corpus",
        "tokenizer": material / "tokenizer",
        "model": {
            "width": shape.width,
            "depth": shape.depth,
            "heads": shape.heads,
            "context": shape.context,
        },
        "tokens": stage.ENDLESS * batch * shape.context,
        "batch": batch,
        "optimiser": stage.optimiser(learning_rate=RATE, weight_decay=DECAY),
        "compute": stage.compute(settings),
        "validate_every": stage.ENDLESS,
    }
    stage.run(pace, settings, "pretrain", recipe, batch * shape.context, "train/loss")


def flops_per_token(shape: Shape) -> float:
    """Of matrix products, forward and backward: 6 for each weight that multiplies, and causal attention
    (Chowdhery et al. 2022, appendix B, halved since the upper triangle need not be computed)."""
    inner = -(-8 * shape.width // 3 // 32) * 32
    weights = shape.depth * (4 * shape.width**2 + 3 * shape.width * inner) + shape.width * shape.vocab
    return 6.0 * weights + 6.0 * shape.depth * shape.width * shape.context


def transformers(pace: Any, settings: dict[str, Any]) -> None:
    """The plain loop of its documentation: loss from labels, fused AdamW, gradients clipped."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(settings["threads"])
    base = str(Path(settings["material"]) / "base")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.train()
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), fused=True)

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = model(input_ids=rows, labels=rows, use_cache=False).loss
        return loss

    train(pace, settings, loss_of, model, optimizer)


def nanogpt(pace: Any, settings: dict[str, Any]) -> None:
    """Its model and its optimizer, stepped as its train.py does; compiled where the row says so."""
    sys.path.insert(0, settings["checkout"])
    import torch
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    shape = SIZES[settings["size"]]
    model = GPT(
        GPTConfig(
            block_size=shape.context,
            vocab_size=shape.vocab,
            n_layer=shape.depth,
            n_head=shape.heads,
            n_embd=shape.width,
            dropout=0.0,
            bias=False,
        )
    )
    model.train()
    optimizer = model.configure_optimizers(DECAY, RATE, (0.9, 0.95), "cpu")

    called = torch.compile(model) if settings["peer_compiled"] else model

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = called(rows[:, :-1], rows[:, 1:].contiguous())[1]
        return loss

    train(pace, settings, loss_of, model, optimizer)


def train(
    pace: Any, settings: dict[str, Any], loss_of: Callable[[Any], Any], model: Any, optimizer: Any
) -> None:
    """A peer's loop over the rows that our stage reads, in the same order."""
    import torch

    for rows in batches(settings):
        pace.start()
        with autocast(settings["precision"]):
            loss = loss_of(rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        pace.end(rows.numel(), **{"train/loss": loss.item()})


def batches(settings: dict[str, Any]) -> Iterator[Any]:
    import numpy as np
    import torch

    rows = torch.from_numpy(np.load(Path(settings["material"]) / "rows.npy")).long()
    while True:
        yield from rows


def autocast(precision: str) -> AbstractContextManager[Any]:
    import torch

    return torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
