"""Text and tokenizers from the command line: look at data, clean, dedupe, mix, convert; train and show a
tokenizer."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bloomery.cli import stages
from bloomery.cli.show import console
from bloomery.errors import UsageError

if TYPE_CHECKING:
    from bloomery.types import Document

Files = Annotated[list[Path], typer.Argument(help="JSON Lines or text, also .gz and .zst.")]
To = Annotated[Path, typer.Option("--to", help="A new file; .gz and .zst compress.")]
PANEL = "Data and people"


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(help="Text, conversations and preferences in files.", no_args_is_help=True)
    for command in (inspect, dedupe, mix, convert):
        group.command()(command)
    stages.add_to(group, "data")
    app.add_typer(group, name="data", rich_help_panel=PANEL)
    words = typer.Typer(help="Train a tokenizer, and see what it does.", no_args_is_help=True)
    stages.add_to(words, "tokenizer")
    words.command("show")(show)
    app.add_typer(words, name="tokenizer", rich_help_panel=PANEL)


def inspect(
    paths: Annotated[
        list[Path], typer.Argument(help="Data files, a world, or a directory of tokenised text.")
    ],
    on_bad_row: Annotated[Literal["error", "skip"], typer.Option(help="skip counts bad rows.")] = "error",
) -> None:
    """What is in these files: counts, sources, lengths, an example. Reads every row, changes nothing."""
    from bloomery.cli.inspect import describe

    for path in paths:
        for part in describe(path, on_bad_row):
            console().print(part)


def dedupe(
    paths: Files,
    to: To,
    threshold: Annotated[
        float, typer.Option(help="Documents that share this much are near duplicates.")
    ] = 0.7,
    ngram: Annotated[int, typer.Option(min=1, help="Words of the pieces that are compared.")] = 3,
    exact_only: Annotated[bool, typer.Option("--exact-only", help="Leave near duplicates alone.")] = False,
) -> None:
    """Documents without the later copies of earlier ones, exact and near."""
    from bloomery.data.dedupe import dedupe as remove
    from bloomery.data.sources import read_documents

    kept, found = remove(read_documents(paths), threshold=threshold, ngram=ngram, near=not exact_only)
    written = _write(kept, to, "document")
    typer.echo(
        f"{to}: {written:,} of {found.num_read:,} documents; left out {found.num_exact:,} exact and "
        f"{found.num_near:,} near duplicates in {len(found.clusters):,} clusters"
    )


def mix(
    paths: Files,
    to: To,
    weight: Annotated[
        list[str] | None,
        typer.Option("--weight", help="source=times, for example news=2.5; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides which documents a fraction takes.")] = 0,
) -> None:
    """Documents with each source taken a chosen number of times."""
    from collections import Counter

    from bloomery.data.mix import mix as weigh
    from bloomery.data.sources import read_documents

    mixed = weigh(list(read_documents(paths)), dict(_weight(text) for text in weight or []), seed)
    _write(mixed, to, "document")
    for source, count in sorted(Counter(document.source for document in mixed).items()):
        typer.echo(f"{source}: {count:,}")


def convert(
    paths: Files,
    to: To,
    format: Annotated[str, typer.Option("--format", help="What to write; bloomery ls formats.")],
    on_bad_row: Annotated[Literal["error", "skip"], typer.Option(help="skip counts bad rows.")] = "error",
) -> None:
    """Read any format we know and write another."""
    from bloomery.data.convert import write
    from bloomery.data.sources import read
    from bloomery.errors import DataError

    skipped: list[DataError] = []
    done = write(read(paths, on_bad_row=on_bad_row, skipped=skipped), to, format)
    typer.echo(f"{to}: {done.num_rows:,} rows from {done.num_records:,} records")
    for reason, count in done.left_out.items():
        typer.echo(f"left out {count:,}: {reason}")
    if skipped:
        typer.echo(f"skipped {len(skipped):,} bad rows; the first: {skipped[0]}")


def _write(records: Iterable[Document], to: Path, format: str) -> int:
    from bloomery.data.convert import write

    return write(records, to, format).num_rows


def _weight(text: str) -> tuple[str, float]:
    source, equals, times = text.rpartition("=")
    try:
        if not equals:
            raise ValueError
        return source, float(times)
    except ValueError:
        raise UsageError("--weight takes source=times", got=text, expected="for example news=2.5") from None


def show(
    tokenizer: Annotated[Path, typer.Argument(help="A tokenizer or model directory.")],
    data: Annotated[
        Path | None, typer.Argument(help="Conversations; without it, a plain text from --text or stdin.")
    ] = None,
    text: Annotated[str | None, typer.Option("--text", help="Show how this text is cut.")] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Conversations to show.")] = 1,
) -> None:
    """Every token of a conversation: its borders, control tokens, and what is trained on."""
    from itertools import islice

    from bloomery.data.sources import read_conversations
    from bloomery.text.chat import Chat, Rendered
    from bloomery.text.show import show as coloured
    from bloomery.text.tokenizer import Tokenizer

    loaded = Tokenizer.load(tokenizer)
    if data is not None:
        chat = Chat(loaded)
        for conversation in islice(read_conversations(data), count):
            console().print(coloured(chat.render(conversation.messages), loaded), soft_wrap=True)
        return
    ids = loaded.encode(text if text is not None else sys.stdin.read())
    console().print(coloured(Rendered(ids, [False] * len(ids)), loaded), soft_wrap=True)
