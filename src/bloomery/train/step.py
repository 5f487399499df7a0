"""One guarded update: clip, look, and only then touch the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bloomery.errors import BloomeryError


@dataclass
class Guard:
    """Counts the updates that were skipped because something was not finite. `patience` in a row is a
    broken run, not bad luck. A `Run` owns one (`run.guard`) and keeps it across a resume."""

    patience: int = 5
    skipped: int = 0
    in_a_row: int = 0


def apply(
    optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    parameters: Iterable[nn.Parameter],
    max_norm: float | None,
    *,
    guard: Guard,
    loss: Tensor | float | None = None,
    batch: object = None,
) -> float:
    """Update the weights from the gradients already computed, then clear the gradients.

    The gradients of `parameters`, and of whatever else the optimizers hold, are scaled together to a
    global norm of at most `max_norm` (None: not scaled). Returns the norm before scaling. When the loss or
    the norm is not finite, no optimizer steps: weights and optimizer state keep every bit, `guard` counts
    it, and the norm returned is the non-finite one. After `guard.patience` such steps in a row raises
    `BloomeryError` naming `batch` (whatever identifies the data to the caller: ids, a step).
    """
    several = [optimizers] if isinstance(optimizers, torch.optim.Optimizer) else list(optimizers)
    held = (p for optimizer in several for group in optimizer.param_groups for p in group["params"])
    every = {id(p): p for p in (*parameters, *held)}
    grads = [p.grad for p in every.values() if p.grad is not None]
    if not grads:
        raise BloomeryError("no parameter has a gradient", do="call backward() on the loss before apply()")
    total = torch.nn.utils.get_total_norm(grads)
    norm = float(total)
    value = float(loss.detach()) if isinstance(loss, Tensor) else loss or 0.0
    fine = math.isfinite(norm) and math.isfinite(value)
    if fine:
        if max_norm is not None and norm > max_norm:
            torch._foreach_mul_(grads, max_norm / norm)
        for optimizer in several:
            optimizer.step()
        guard.in_a_row = 0
    for optimizer in several:
        optimizer.zero_grad(set_to_none=True)
    if not fine:
        guard.skipped += 1
        guard.in_a_row += 1
        if guard.in_a_row >= guard.patience:
            raise BloomeryError(
                f"{guard.in_a_row} updates in a row were not finite; the weights are untouched",
                got=f"loss {value if loss is not None else 'not given'}, gradient norm {norm}",
                where=None if batch is None else f"batch {batch}",
                do="lower the learning rate, or look at the data of the batch named",
            )
    return norm


def norm_of(loss: Tensor, model: nn.Module) -> float:
    """The gradient norm one term of a loss would have by itself; leaves the graph and `.grad` as they are."""
    learning = [p for p in model.parameters() if p.requires_grad]
    parts = torch.autograd.grad(loss, learning, retain_graph=True, allow_unused=True)
    return float(torch.sqrt(sum((g.square().sum() for g in parts if g is not None), torch.zeros(()))))
