"""AdamW and Muon with the usual split: matrices decay, vectors (norm gains, biases) do not."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bloomery.errors import UsageError


def adamw(
    *modules: nn.Module,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.1,
    eps: float = 1e-8,
    fused: bool = True,
) -> torch.optim.AdamW:
    """One AdamW over the trainable parameters of `modules`; parameters they share are counted once.

    Decoupled weight decay (Loshchilov & Hutter 2019) on parameters of two or more dimensions only.
    Raises `UsageError` when nothing is trainable.
    """
    unique = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
    if not unique:
        raise UsageError("nothing to train: every parameter is frozen")
    decayed = [p for p in unique.values() if p.dim() >= 2]
    plain = [p for p in unique.values() if p.dim() < 2]
    groups = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((decayed, weight_decay), (plain, 0.0))
        if params
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused)


def muon(
    *modules: nn.Module,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.1,
    momentum: float = 0.95,
) -> Muon:
    """Muon for the matrices inside the layers of `modules`, AdamW for what else of them trains: embeddings,
    the last layer, vectors. Raises `UsageError` when nothing is trainable."""
    named = [(f".{name}", p) for module in modules for name, p in module.named_parameters()]
    hidden = {id(p) for name, p in named if ".layers." in name and p.dim() == 2}
    groups = list[dict[str, Any]]()
    for group in adamw(*modules, lr=lr, betas=betas, weight_decay=weight_decay).param_groups:
        for inside in (True, False):
            params = [p for p in group["params"] if (id(p) in hidden) is inside]
            if params:
                groups.append(group | {"params": params, "momentum": momentum if inside else None})
    return Muon(groups, lr=lr, fused=True)


class Muon(torch.optim.AdamW):
    """AdamW whose groups with a `momentum` instead follow their orthogonalised momentum.

    Muon (Jordan et al. 2024) with Nesterov momentum: an update is the nearest orthogonal matrix to the
    momentum, scaled to the root mean square of AdamW's updates, 0.2 sqrt(max(rows, columns)) (Liu et al.
    2025, equation 4), so that one learning rate serves both kinds. Weight decay is decoupled in both.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        for group in self.param_groups:
            if group["momentum"] is not None:
                self._orthogonal_step(group)
        return super().step(closure)

    def _orthogonal_step(self, group: dict[str, Any]) -> None:
        same = defaultdict[torch.Size, list[Tensor]](list)
        for p in group["params"]:
            if p.grad is not None:
                same[p.shape].append(p)
        for shape, alike in same.items():
            grads = [p.grad for p in alike if p.grad is not None]
            held = [self._momentum_of(p) for p in alike]
            torch._foreach_lerp_(held, grads, 1 - group["momentum"])
            ahead = torch._foreach_lerp(grads, held, group["momentum"])
            moves = orthogonal(torch.stack(ahead)).to(alike[0].dtype)
            torch._foreach_mul_(alike, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(alike, list(moves), alpha=-0.2 * math.sqrt(max(shape)) * group["lr"])
            for p in alike:
                p.grad = None  # AdamW passes over what has no gradient

    def _momentum_of(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if not state:  # under AdamW's names, whose loading asks for a step
            state["step"], state["exp_avg"] = torch.tensor(0.0), torch.zeros_like(p)
        held: Tensor = state["exp_avg"]
        return held


def orthogonal(matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Nearly the nearest orthogonal matrices to `[N, rows, columns]`: singular values near 1.

    The quintic Newton-Schulz iteration of Jordan et al. (2024), whose coefficients are chosen for a steep
    beginning: after five steps singular values lie between about 0.7 and 1.2.
    """
    x = matrices.to(dtype)
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return x if wide else x.mT


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the learning rate `lr`. Raises `UsageError` unless it is finite and >= 0."""
    if not math.isfinite(lr) or lr < 0:
        raise UsageError("a learning rate must be finite and not negative", got=lr)
    for group in optimizer.param_groups:
        group["lr"] = lr


def averaged(learning: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of what learns, which begins with the weights as they are."""
    average = AveragedModel(learning, multi_avg_fn=get_ema_multi_avg_fn(decay))
    average.update_parameters(learning)
    return average
