"""Recipes: typed, frozen settings. Defaults, then one YAML file, then `--set key=value`; nothing else.

Every problem of a recipe is reported at once, each with file:line, the key, what was got, what was
expected, and the nearest known key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from bloomery.errors import RecipeError, UsageError, clip, nearest


class Section(BaseModel):
    """A recipe or a part of one. Field docstrings become help and documentation."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class Input:
    """Marks a path field as an input artifact: its content, not its name, decides whether a stage reruns."""


InputPath = Annotated[Path, Input()]

S = TypeVar("S", bound=Section)


def load(schema: type[S], path: Path | None = None, overrides: Sequence[str] = ()) -> S:
    """Read a recipe. Raises `RecipeError` listing every problem, `UsageError` when there is no such file."""
    tree: dict[str, Any] = {}
    lines: dict[tuple[str, ...], int] = {}
    if path is not None:
        tree, lines = _read_yaml(path)
    origin: dict[tuple[str, ...], str] = {}
    for text in overrides:
        keys, value = _parse_override(text)
        _put(tree, keys, value, text)
        origin[keys] = f"--set {text}"
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        problems = [_explain(schema, tree, dict(one), path, lines, origin) for one in error.errors()]
        raise RecipeError(problems) from None


def dump(recipe: Section) -> str:
    """The resolved recipe as YAML, every default written out; `load` of it gives an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def input_paths(recipe: BaseModel, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """Every non-empty field marked `InputPath`, as (dotted key, path); lists of inputs are numbered."""
    for name, field in type(recipe).model_fields.items():
        value, key = getattr(recipe, name), f"{prefix}{name}"
        if isinstance(value, BaseModel):
            yield from input_paths(value, f"{key}.")
        elif isinstance(value, Path) and _is_input(field.annotation, field.metadata):
            yield key, value
        elif isinstance(value, tuple | list):
            marked = _is_input(field.annotation, field.metadata)
            for i, item in enumerate(value):
                if isinstance(item, BaseModel):
                    yield from input_paths(item, f"{key}[{i}].")
                elif marked and isinstance(item, Path):
                    yield f"{key}[{i}]", item


def _is_input(annotation: Any, metadata: Sequence[Any]) -> bool:
    if any(isinstance(mark, Input) for mark in metadata):
        return True
    marks = getattr(annotation, "__metadata__", ())
    return any(isinstance(mark, Input) for mark in marks) or any(
        _is_input(arg, ()) for arg in getattr(annotation, "__args__", ())
    )


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            "cannot read the recipe", where=path, got=error, do="name a YAML file in UTF-8"
        ) from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else path
        raise UsageError("this is not YAML", where=where, got=getattr(error, "problem", error)) from None
    if tree is None:
        return {}, {}
    if not isinstance(tree, dict):
        raise UsageError(
            "a recipe is a mapping of keys to values", where=f"{path}:1", got=type(tree).__name__
        )
    lines: dict[tuple[str, ...], int] = {}
    _walk_lines(node, (), lines, path)
    return tree, lines


def _walk_lines(node: Any, keys: tuple[str, ...], lines: dict[tuple[str, ...], int], path: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*keys, str(key.value))
            if here in lines:
                raise UsageError(
                    f"key '{'.'.join(here)}' is given twice",
                    where=f"{path}:{key.start_mark.line + 1}",
                    got=f"also on line {lines[here]}",
                )
            lines[here] = key.start_mark.line + 1
            _walk_lines(value, here, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*keys, str(index))] = value.start_mark.line + 1
            _walk_lines(value, (*keys, str(index)), lines, path)


def _parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError("--set takes key=value", got=text, expected="for example --set ppo.steps=100")
    try:
        return tuple(key.strip().split(".")), yaml.safe_load(value) if value else ""
    except yaml.YAMLError:
        return tuple(key.strip().split(".")), value


def _put(tree: dict[str, Any], keys: tuple[str, ...], value: Any, text: str) -> None:
    for depth, key in enumerate(keys[:-1]):
        inner = tree.setdefault(key, {})
        if not isinstance(inner, dict):
            raise UsageError(
                f"--set {text}: '{'.'.join(keys[: depth + 1])}' is a value, not a section", got=inner
            )
        tree = inner
    tree[keys[-1]] = value


def _explain(
    schema: type[BaseModel],
    tree: Mapping[str, Any],
    error: Mapping[str, Any],
    path: Path | None,
    lines: Mapping[tuple[str, ...], int],
    origin: Mapping[tuple[str, ...], str],
) -> str:
    keys = tuple(str(part) for part in error["loc"] if str(part) in _keys_along(tree, error["loc"]))
    full = tuple(str(part) for part in error["loc"])
    keys = keys or full
    where = next((origin[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in origin), None)
    if where is None and path is not None:
        line = next((lines[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in lines), 1)
        where = f"{path}:{line}"
    name = ".".join(keys)
    if error["type"] == "extra_forbidden":
        known = _known_keys(schema, full[:-1])
        hint = nearest(full[-1], known)
        expected = "" if hint else f"; known keys: {', '.join(sorted(known))}"
        text = f"unknown key '{name}'{hint}{expected}"
    elif error["type"] == "missing":
        text = f"'{'.'.join(full)}' is required"
    else:
        got = clip(repr(error["input"]), 80)
        text = f"'{name}': {error['msg'][:1].lower()}{error['msg'][1:]} (got {got})"
    return f"{where}: {text}" if where else text


def _keys_along(tree: Any, loc: Sequence[Any]) -> set[str]:
    """The parts of a pydantic location that are keys of the tree (not tags of a union)."""
    found: set[str] = set()
    for part in loc:
        if isinstance(tree, Mapping) and part in tree:
            tree = tree[part]
        elif isinstance(tree, list) and isinstance(part, int) and part < len(tree):
            tree = tree[part]
        else:
            continue
        found.add(str(part))
    return found


def _known_keys(schema: type[BaseModel], keys: Sequence[str]) -> set[str]:
    for key in keys:
        field = schema.model_fields.get(key)
        inner = _section_of(field.annotation) if field else None
        if inner is None:
            continue
        schema = inner
    return set(schema.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for arg in getattr(annotation, "__args__", ()):
        inner = _section_of(arg)
        if inner is not None:
            return inner
    return None
