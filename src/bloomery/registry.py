"""A named table of interchangeable parts: refuses duplicates, explains a miss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from inspect import signature
from typing import Any, Generic, TypeVar, cast, get_type_hints

from pydantic import ValidationError, create_model

from bloomery.errors import UsageError, nearest
from bloomery.recipe import Section

T = TypeVar("T")


@cache
def settings_of(part: Callable[..., Any]) -> type[Section]:
    """The keyword-only arguments of a function as a section of a recipe: their names, types (with pydantic's
    bounds, if annotated with any) and defaults. One class for each function: making it takes milliseconds."""
    hints = get_type_hints(part, include_extras=True)
    keywords = {n: p for n, p in signature(part).parameters.items() if p.kind is p.KEYWORD_ONLY}
    fields = {n: (hints[n], ... if p.default is p.empty else p.default) for n, p in keywords.items()}
    made: type[Section] = create_model(part.__name__, __base__=Section, **cast(Any, fields))
    return made


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

    def bind(self, name: str, settings: Mapping[str, Any]) -> T:
        """The function called `name` with its keyword-only arguments set: they are what a recipe may say.

        Raises `UsageError` when the name is unknown, and when a setting is unknown, missing or out of range.
        """
        part = cast(Callable[..., Any], self[name])
        schema = settings_of(part)
        try:
            found = schema.model_validate(dict(settings))
        except ValidationError as error:
            one = error.errors()[0]
            key, known = str(one["loc"][-1]), schema.model_fields
            hint = nearest(key, known) if one["type"] == "extra_forbidden" else ""
            raise UsageError(
                f"{self.kind} '{name}': {key}: {one['msg'].lower()}{hint}",
                got=None if one["type"] == "missing" else one["input"],
                expected=f"its settings: {', '.join(known) or '(none)'}",
            ) from None
        return cast(T, partial(part, **{key: getattr(found, key) for key in schema.model_fields}))

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._parts))

    def __len__(self) -> int:
        return len(self._parts)
