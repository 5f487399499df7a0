"""Training a part of a model."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from bloomery.errors import UsageError, nearest


def train_only(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze all parameters but those whose name a pattern fits, like `model.layers.3.*` or `*norm.weight`.
    No patterns: all are trained. Raises `UsageError` for a pattern that no name fits."""
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(f"no parameter is called '{pattern}'{nearest(pattern, names)}", where="train")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not patterns or any(fnmatchcase(name, pattern) for pattern in patterns))
