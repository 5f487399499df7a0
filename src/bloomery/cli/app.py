"""The `bloomery` program: its commands, and the one place where an error becomes words and an exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage or recipe, 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from bloomery import __version__
from bloomery.cli import data, diagnose, journey, label, look, models, stages
from bloomery.errors import BloomeryError

app = typer.Typer(
    name="bloomery",
    help="Raw text to an aligned chat model, and what every step did.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
journey.add_to(app)
stages.add_to(app)
data.add_to(app)
label.add_to(app)
models.add_to(app)
look.add_to(app)
diagnose.add_to(app)


@app.callback()
def program(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    # --debug is read by main(), so that it may stand anywhere; here it is only documented.
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; nothing but an exit code ever leaves."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"] if debug else words
    if words == ["--version"]:
        typer.echo(__version__)
        return 0
    try:
        code = app(args=words, prog_name="bloomery", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1 if stop.code else 0
    except (KeyboardInterrupt, typer.Abort):
        return explain("stopped; the same command goes on from here where it can", 130)
    except BrokenPipeError:
        # Somebody closed the pipe (`| head`). Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if debug:
            traceback.print_exc()
        return explain(*describe(error))


def describe(error: Exception) -> tuple[str, int]:
    """An error in plain words, and the exit code it deserves."""
    if isinstance(error, BloomeryError):
        return error.text(), error.exit_code
    if hasattr(error, "format_message"):  # typer's own: a wrong option, a missing argument
        command = getattr(getattr(error, "ctx", None), "command_path", "bloomery")
        text = error.format_message().strip()
        if not text:  # a group called without a command has printed its help
            return "", 2
        return f"{text[:1].lower()}{text[1:]}\n  do: {command} --help", 2
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror.lower()}", 1
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return f"out of memory: {error}\n  do: a smaller batch, or more micro_batches", 1
    last = traceback.extract_tb(error.__traceback__)[-1]
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return (
        f"this is a bug in bloomery: {what}\n"
        f"  where: {Path(last.filename).name}:{last.lineno}\n"
        "  do: run it again with --debug and report what it prints",
        1,
    )


def explain(text: str, code: int) -> int:
    if text:
        from bloomery.chat import visible

        typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
        typer.echo(visible(text), err=True)
    return code
