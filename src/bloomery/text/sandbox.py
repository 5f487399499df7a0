"""Chat templates come with models from anywhere, and a template is a program. Ours runs in Jinja's sandbox
(no attribute of Python's own, nothing to import) and on a budget: every loop turn, call, filter, operation
on texts and piece of output is charged by the size of what it may build, before it is built."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bloomery.errors import UsageError

MAX_TEMPLATE = 2**18
BUDGET = 10**8
_CALL, _TURN, _ITEM = 2000, 500, 200  # what a call, a turn of a loop, an item of a list cost, in characters


class Generation(Extension):
    """Lets `{% generation %}` of Hugging Face templates through; our mask comes from spans instead."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja as Hugging Face sets it up, with a budget of `BUDGET` characters of work for each rendering."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[Generation, "jinja2.ext.loopcontrols"],
            finalize=self._charged,
        )
        self._here = threading.local()
        self.filters = {name: self._guarded(f) for name, f in self.filters.items() if name != "format"}
        self.filters |= {"counted turns": self._turns, "charged": self._charged, "tojson": _to_json}
        self.globals = {name: self.globals[name] for name in ("range", "dict", "namespace")}
        self.globals["raise_exception"] = _raise

    def render(self, template: jinja2.Template, **values: Any) -> str:
        self._here.left = BUDGET
        return template.render(**values)

    def charge(self, cost: int) -> None:
        self._here.left = getattr(self._here, "left", BUDGET) - cost
        if self._here.left < 0:
            raise SecurityError("the chat template does more work than any conversation needs")

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.charge(_CALL + _cost([getattr(function, "__self__", None), *args, *kwargs.values()]))
        return super().call(context, function, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is not None:
            raise SecurityError("a chat template has no use for str.format")
        return None

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise SecurityError(f"a chat template has no use for '{operator}' here")
        if isinstance(left, str | list | tuple) or isinstance(right, str | list | tuple):
            self.charge(_cost([left, right]) if operator == "*" else _size(left) + _size(right))
        elif isinstance(left, int) and isinstance(right, int) and max(abs(left), abs(right)) > 2**63:
            raise SecurityError("a number in the chat template is too large")
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, "counted turns", [], [], None, None, lineno=loop.lineno)
        for join in list(tree.find_all(nodes.Concat)):
            join.nodes = [nodes.Filter(n, "charged", [], [], None, None, lineno=n.lineno) for n in join.nodes]
        return tree

    def _turns(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.charge(_TURN)
            yield value

    def _charged(self, value: Any) -> Any:
        self.charge(_size(value))
        return value

    def _guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.charge(_CALL + _cost([*args, *kwargs.values()]))
            return function(*args, **kwargs)

        return call


def compile_template(source: str) -> Callable[..., str]:
    """A function from a template's variables to its text. Raises `UsageError` where it is not Jinja."""
    if len(source) > MAX_TEMPLATE:
        raise UsageError(
            "the chat template is too long", got=f"{len(source)} characters", expected=MAX_TEMPLATE
        )
    sandbox = Sandbox()
    try:
        template = sandbox.from_string(source)
    except (jinja2.TemplateError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        where = f"chat template:{line}" if line else None
        raise UsageError("the chat template is not Jinja", where=where, got=error or "too deep") from None
    return functools.partial(sandbox.render, template)


def _size(value: Any) -> int:
    """About how many characters a value may become."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, list | tuple | set):
        return sum(_size(inner) + _ITEM for inner in value)
    if isinstance(value, dict):
        return sum(_size(inner) + len(str(key)) + _ITEM for key, inner in value.items())
    if isinstance(value, int):
        return min(abs(value), 2**63) if not isinstance(value, bool) else 1
    return len(value) if hasattr(value, "__len__") else 1


def _cost(values: Iterable[Any]) -> int:
    """What a call can build of its arguments: replacing, joining and repeating multiply the two largest."""
    sizes = sorted((_size(value) for value in values), reverse=True)
    return (sizes[0] if sizes else 0) * max(1, sizes[1] if len(sizes) > 1 else 1)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
