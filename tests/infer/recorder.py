"""What a CUDA graph does, on a CPU: operations are recorded with the tensors they were given, and done again
on the same memory, whatever Python would do by now."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a graph cannot wait for a number"
        assert func is not torch.ops.aten.nonzero.default, "a graph cannot wait for a shape"
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def again(self) -> None:
        for func, args, kwargs, out in self.calls:
            written = any(told.alias_info and told.alias_info.is_write for told in func._schema.returns)
            if written:
                func(*args, **kwargs)
            elif not memory(pieces(out)) <= memory(args):  # else a view, of what the others write
                for old, new in zip(pieces(out), pieces(func(*args, **kwargs)), strict=True):
                    old.copy_(new)


def pieces(out: Any) -> list[Tensor]:
    return [out] if isinstance(out, Tensor) else list(out)


def memory(given: Iterable[Any]) -> set[int]:
    """Whose memory these are: a cast promises a copy or a view, and only this tells which."""
    return {one.untyped_storage().data_ptr() for one in given if isinstance(one, Tensor)}


def recorded(work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """The result, which is no number before the first replay, and the replay."""
    with Recorder() as recorder:
        result = work()
    return result.fill_(float("nan")), recorder.again
