"""Writes docs/cli.md from the program itself: `make docs`. A test checks that the file is up to date."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from bloomery.cli.app import app

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
HEAD = """\
# The command line

Written by `make docs` from the program itself; `bloomery COMMAND --help` says the same.

- Settings come from defaults, then one YAML file, then `--set key=value`. Unknown keys are errors that name
  the nearest key, and all problems are reported at once. `bloomery ls stages sft` lists the keys of a stage.
- Errors go to standard error in plain words: what failed, what was got and expected, where, what to do.
  `--debug`, anywhere on the line, adds the traceback.
- Exit codes: 0 done, 1 failed, 2 wrong usage or recipe, 130 stopped by Ctrl-C, 143 by SIGTERM.
- Progress is a bar on a terminal and plain lines in a pipe, on standard error either way.
"""


def page() -> str:
    return HEAD + "".join(_section(name, command) for name, command in commands(_program(), "bloomery"))


def commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every command with its full name, those of groups included."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _program() -> Any:
    return typer.main.get_command(app)


def _section(name: str, command: Any) -> str:
    rows = [_row(one) for one in command.params if one.name != "help"]
    arguments = " ".join(_argument(one) for one in command.params if one.param_type_name == "argument")
    usage = f"{name} {arguments} [OPTIONS]".replace("  ", " ")
    table = "| name | default | meaning |\n| --- | --- | --- |\n" + "".join(rows) if rows else ""
    return f"\n## {name}\n\n{_plain(command.help)}\n\n```text\n{usage}\n```\n\n{table}"


def _argument(one: Any) -> str:
    name = one.name.upper() + ("..." if one.nargs == -1 else "")
    return name if one.required else f"[{name}]"


def _row(one: Any) -> str:
    name = ", ".join(one.opts) if one.param_type_name == "option" else one.name.upper()
    default = one.default() if callable(one.default) else one.default
    if one.required:
        shown = "required"
    elif default in (None, False, ()) or str(default) == "":
        shown = ""
    else:
        shown = f"`{default}`"
    return f"| `{name}` | {shown} | {_plain(getattr(one, 'help', None))} |\n"


def _plain(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "").strip().replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
