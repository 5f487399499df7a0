"""What `bloomery ls` lists."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from bloomery.cli.show import table
from bloomery.registry import Registry, settings_of

if TYPE_CHECKING:
    from rich.table import Table


def stages() -> Table:
    from bloomery.cli.stages import where
    from bloomery.stages import STAGES

    return table(
        ("stage", "command", "what it does"), [(name, where(name), STAGES[name].summary) for name in STAGES]
    )


def settings(name: str) -> Table:
    """The keys of a stage's recipe: what a YAML file or --set may hold."""
    from bloomery.stages import STAGES

    return table(("key", "type", "default", "meaning"), list(keys(STAGES[name].recipe)))


def keys(
    schema: type[BaseModel], prefix: str = "", default: Any = None
) -> Iterator[tuple[str, str, str, str]]:
    """(key, type, default, meaning) of every leaf."""
    for name, field in schema.model_fields.items():
        value = (
            getattr(default, name) if default is not None else field.get_default(call_default_factory=True)
        )
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            inner = value if isinstance(value, BaseModel) else None
            yield from keys(field.annotation, f"{prefix}{name}.", inner)
            continue
        shown = "required" if value is PydanticUndefined else _plain(value)
        yield f"{prefix}{name}", _type(field.annotation), shown, " ".join((field.description or "").split())


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _type(annotation: Any) -> str:
    """A type as a reader of YAML thinks of it."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(args[0])
    if origin is typing.Literal:
        return " | ".join(str(a) for a in args)
    if origin is tuple:
        return f"list of {_type(args[0])}"
    if origin is dict:
        return f"{_type(args[0])} -> {_type(args[1])}"
    if args:
        return " | ".join(_type(a) for a in args if a is not type(None))
    return getattr(annotation, "__name__", str(annotation)).replace("PosixPath", "Path").lower()


def recipes() -> Table:
    """The recipes in ./recipes, each with the first line of its header."""
    found = sorted(Path("recipes").glob("*.yaml"))
    rows = [(str(path), _first_line(path)) for path in found]
    return table(("recipe", "what it is"), rows)


def _first_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").split("\n")
    return lines[0].removeprefix("#").strip() if lines[0].startswith("#") else ""


def models() -> Table:
    from bloomery.models.families import families

    return table(
        ("model_type", "classes"),
        [(name, ", ".join(families[name].architectures.values())) for name in families],
    )


def formats() -> Table:
    from bloomery.data.convert import WRITERS
    from bloomery.data.formats import FORMATS

    rows = [
        (
            name,
            ", ".join(sorted(FORMATS[name].needs)) if name in FORMATS else "",
            "yes" if name in WRITERS else "",
        )
        for name in sorted({*FORMATS, *WRITERS})
    ]
    return table(("format", "recognised by the columns", "can be written"), rows)


def rules() -> Table:
    """Cleaning rules in the order they are tried, with the settings they read."""
    from bloomery.data.clean import ORDER

    return table(("cleaning rule",), [(name,) for name in ORDER])


def losses() -> Table:
    """What the `loss` of a stage may name, with the keys of its `loss_settings`."""
    from bloomery.objectives.policy import policy_losses
    from bloomery.objectives.preference import losses as preference_losses
    from bloomery.objectives.reward import ranking_losses, rating_losses

    return _parts(ranking_losses, rating_losses, preference_losses, policy_losses)


def rewards() -> Table:
    """What the `kind` of a reward source may be, with the keys of its `settings`."""
    from bloomery.rewards.sources import sources

    return _parts(sources)


def _parts(*registries: Registry[Any]) -> Table:
    rows = [
        (registry.kind, name, ", ".join(settings_of(registry[name]).model_fields), _summary(registry[name]))
        for registry in registries
        for name in registry
    ]
    return table(("what", "name", "settings", "meaning"), rows)


def _summary(part: Any) -> str:
    return (part.__doc__ or "").strip().split("\n")[0]


LISTS: dict[str, Callable[[], Table]] = {
    "stages": stages,
    "recipes": recipes,
    "models": models,
    "losses": losses,
    "rewards": rewards,
    "formats": formats,
    "rules": rules,
}
