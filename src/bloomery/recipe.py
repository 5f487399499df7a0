"""Recipes: typed, frozen settings. Defaults, then one YAML file, then `--set key=value`; nothing else.

Every problem of a recipe is reported at once, each with file:line, the key, what was got, what was
expected, and the nearest known key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

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

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes and on as true, and pydantic would read true as 1."""
        kind = cls.model_fields[info.field_name or ""].annotation
        kinds = {kind, *getattr(kind, "__args__", ())}
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise ValueError("input should be a number")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _over_default(cls, value: Any, info: ValidationInfo) -> Any:
        """A section that is given in part is laid over the default of its field, which may differ from the
        defaults of its type: one setting of an optimiser does not reset the others."""
        return _laid_over(cls.model_fields[info.field_name or ""].default, value)


def _laid_over(default: Any, value: Any) -> Any:
    if not isinstance(default, Section) or not isinstance(value, Mapping):
        return value
    given = {key: _laid_over(getattr(default, str(key), None), inner) for key, inner in value.items()}
    return {**default.model_dump(), **given}


class Input:
    """Marks a path field as an input artifact: its content, not its name, decides whether a stage reruns."""


InputPath = Annotated[Path, Input()]

S = TypeVar("S", bound=Section)

MAX_DEPTH = 50


def load(schema: type[S], path: Path | None = None, overrides: Sequence[str] = ()) -> S:
    """Read a recipe. Raises `RecipeError` listing every problem, `UsageError` when there is no such file."""
    tree: dict[str, Any] = {}
    lines: dict[tuple[str, ...], int] = {}
    problems: list[str] = []
    if path is not None:
        tree, lines = _read_yaml(path, problems)
    origin: dict[tuple[str, ...], str] = {}
    for text in overrides:
        keys, value = _parse_override(text)
        _put(tree, keys, value, text, problems)
        origin[keys] = f"--set {text}"
    try:
        recipe = schema.model_validate(tree)
    except ValidationError as error:
        problems += [_explain(schema, tree, dict(one), path, lines, origin) for one in error.errors()]
    if problems:
        raise RecipeError(problems)
    return recipe


def dump(recipe: Section) -> str:
    """The resolved recipe as YAML, every default written out; `load` of it gives an equal recipe."""
    tree = recipe.model_dump(mode="json")
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=110)
    if yaml.safe_load(text) == tree:
        return text
    # YAML folds some exotic line breaks (U+0085, U+2028) when they are written plainly.
    return yaml.safe_dump(tree, sort_keys=False, width=110)


def input_paths(recipe: BaseModel) -> Iterator[tuple[str, Path]]:
    """Every non-empty field marked `InputPath`, as (name, path); a name reads `sources[0].path`."""
    for keys, path in input_keys(recipe):
        name = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
        yield name.removeprefix("."), path


def input_keys(recipe: BaseModel) -> Iterator[tuple[tuple[str | int, ...], Path]]:
    """The same with the keys that lead to the path, through sections, lists and mappings alike."""
    for name, field in type(recipe).model_fields.items():
        marked = _is_input(field.annotation, field.metadata)
        yield from _inputs_in(getattr(recipe, name), (name,), marked)


def _inputs_in(
    value: Any, keys: tuple[str | int, ...], marked: bool
) -> Iterator[tuple[tuple[str | int, ...], Path]]:
    if isinstance(value, BaseModel):
        yield from (((*keys, *inner), path) for inner, path in input_keys(value))
    elif isinstance(value, Path) and marked:
        yield keys, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _inputs_in(item, (*keys, key), marked)
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from _inputs_in(item, (*keys, index), marked)


def _is_input(annotation: Any, metadata: Sequence[Any]) -> bool:
    if any(isinstance(mark, Input) for mark in metadata):
        return True
    marks = getattr(annotation, "__metadata__", ())
    return any(isinstance(mark, Input) for mark in marks) or any(
        _is_input(arg, ()) for arg in getattr(annotation, "__args__", ())
    )


def _read_yaml(path: Path, problems: list[str]) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            "cannot read the recipe", where=path, got=error, do="name a YAML file in UTF-8"
        ) from None
    try:
        _check_events(text, path)
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
    _walk_lines(node, (), lines, path, problems)
    return tree, lines


def _check_events(text: str, path: Path) -> None:
    """Refuse what a recipe has no use for and what can make a small file cost a great deal: aliases (which
    may refer to themselves, or multiply) and absurd depth."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = f"{path}:{event.start_mark.line + 1}" if event.start_mark else path
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise UsageError("this recipe is nested too deeply", where=where, expected=f"{MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            raise UsageError(
                "a recipe has no aliases", where=where, got=f"*{event.anchor}", do="write the value out"
            )


def _walk_lines(
    node: Any, keys: tuple[str, ...], lines: dict[tuple[str, ...], int], path: Path, problems: list[str]
) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*keys, str(key.value))
            line = key.start_mark.line + 1
            if here in lines:
                twice = f"'{'.'.join(here)}' is given twice (first on line {lines[here]})"
                problems.append(f"{path}:{line}: {twice}")
            lines[here] = line
            _walk_lines(value, here, lines, path, problems)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*keys, str(index))] = value.start_mark.line + 1
            _walk_lines(value, (*keys, str(index)), lines, path, problems)


def _parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError("--set takes key=value", got=text, expected="for example --set ppo.steps=100")
    try:
        return tuple(key.strip().split(".")), yaml.safe_load(value) if value else ""
    except (yaml.YAMLError, RecursionError):
        return tuple(key.strip().split(".")), value


def _put(tree: dict[str, Any], keys: tuple[str, ...], value: Any, text: str, problems: list[str]) -> None:
    for depth, key in enumerate(keys[:-1]):
        if tree.get(key) is None:  # a section that is off, as saved recipes write it, is begun
            tree[key] = {}
        inner = tree[key]
        if not isinstance(inner, dict):
            name = ".".join(keys[: depth + 1])
            problems.append(f"--set {text}: '{name}' is a value, not a section (got {clip(repr(inner), 80)})")
            return
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
    if where is None and keys not in lines:
        where = next((text for key, text in origin.items() if key[: len(keys)] == keys), None)
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
        message = error["msg"].removeprefix("Value error, ")
        text = f"'{name}': {message[:1].lower()}{message[1:]} (got {got})"
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
