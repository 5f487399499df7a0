"""A named table of interchangeable parts: refuses duplicates, explains a miss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from bloomery.errors import UsageError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """`@losses.register("dpo")` puts a part in; `losses["dpo"]` takes it out.

    Raises `UsageError` when a name is taken twice, and when a name is unknown (naming the nearest one).
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        def put(part: T) -> T:
            if name in self._parts:
                raise UsageError(f"{self.kind} '{name}' is registered twice", do="choose another name")
            self._parts[name] = part
            return part

        return put

    def __getitem__(self, name: str) -> T:
        if name not in self._parts:
            raise UsageError(
                f"no {self.kind} is called '{name}'{nearest(name, self._parts)}",
                expected=", ".join(self) or "(none)",
            )
        return self._parts[name]

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._parts))

    def __len__(self) -> int:
        return len(self._parts)
