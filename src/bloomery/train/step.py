"""One guarded update: clip, look, and only then touch the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    optimizer: torch.optim.Optimizer,
    max_norm: float | None,
    *,
    guard: Guard,
    loss: Tensor | float | None = None,
    batch: object = None,
) -> float:
    """`apply_all` for one optimizer: the norm of its gradients before scaling."""
    return apply_all([(optimizer, max_norm)], guard=guard, loss=loss, batch=batch)[0]


def apply_all(
    optimizers: Sequence[tuple[torch.optim.Optimizer, float | None]],
    *,
    guard: Guard,
    loss: Tensor | float | None = None,
    batch: object = None,
) -> list[float]:
    """Update the weights from the gradients already computed, then clear the gradients.

    Each optimizer's gradients are scaled to a global norm of at most the number beside it (None: not
    scaled). Returns the norms before scaling. When the loss or one of the norms is not finite, no optimizer
    steps: weights and optimizer state keep every bit, and `guard` counts it. After `guard.patience` such
    updates in a row raises `BloomeryError` naming `batch` (whatever identifies the data to the caller: ids, a
    step).
    """
    norms = list[float]()
    for optimizer, max_norm in optimizers:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not grads:
            raise BloomeryError(
                "no parameter has a gradient", do="call backward() on the loss before the update"
            )
        norms.append(float(torch.nn.utils.get_total_norm(grads)))
        if max_norm is not None and max_norm < norms[-1] < math.inf:
            torch._foreach_mul_(grads, max_norm / norms[-1])
    value = float(loss.detach()) if isinstance(loss, Tensor) else loss or 0.0
    fine = all(math.isfinite(number) for number in (*norms, value))
    for optimizer, _ in optimizers:
        if fine:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if fine:
        guard.in_a_row = 0
        return norms
    guard.skipped += 1
    guard.in_a_row += 1
    if guard.in_a_row >= guard.patience:
        raise BloomeryError(
            f"{guard.in_a_row} updates in a row were not finite; the weights are untouched",
            got=f"loss {'not given' if loss is None else value}, gradient norm {', '.join(map(str, norms))}",
            where=None if batch is None else f"batch {batch}",
            do="lower the learning rate, or look at the data of the batch named",
        )
    return norms


def norm_of(loss: Tensor, model: nn.Module) -> float:
    """The gradient norm one term of a loss would have by itself; leaves the graph and `.grad` as they are."""
    learning = [p for p in model.parameters() if p.requires_grad]
    parts = torch.autograd.grad(loss, learning, retain_graph=True, allow_unused=True)
    return float(torch.sqrt(sum((g.square().sum() for g in parts if g is not None), torch.zeros(()))))
