"""AdamW with the usual split: matrices decay, vectors (norm gains, biases) do not."""

from __future__ import annotations

import math

import torch
from torch import nn
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
