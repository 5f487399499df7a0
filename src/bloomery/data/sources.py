"""Files to records: `read` recognises each file's format, the `read_*` functions ask for a kind of record.

A bad row is an error that names file:line; with `on_bad_row="skip"` it is counted, reported once per file
through `logging`, and left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal, TypeVar

from bloomery.data.formats import FORMATS, AnyRecord, Format, sniff
from bloomery.data.messages import Row, require_answer
from bloomery.data.rows import parse_row, read_lines, text_of
from bloomery.errors import DataError, UsageError
from bloomery.types import Conversation, Document, Judgement, Message, Prompt, Ranking, Solution

log = logging.getLogger("bloomery.data")

OnBadRow = Literal["error", "skip"]
Paths = Path | Sequence[Path]
T = TypeVar("T", bound=AnyRecord)


def read(
    paths: Paths,
    *,
    format: str = "auto",
    on_bad_row: OnBadRow = "error",
    skipped: list[DataError] | None = None,
    separator: str | None = "",
    max_bytes: int | None = None,
) -> Iterator[AnyRecord]:
    """The records of one or several JSONL or text files (also `.gz`, `.zst`), in order, streamed.

    format: a name in `FORMATS`, or "auto" to recognise it by the columns of each file's first row.
    skipped: with `on_bad_row="skip"`, the errors of the rows that were left out are appended here; when not
        given, a warning counts them.
    separator: in text files, the line between documents (a blank one by default); None: each line is one.
    max_bytes: what a compressed file may unfold to; see `rows.read_lines`.

    Raises `DataError` for a bad row (unless skipped), a duplicate id, and a file that cannot be read or
    holds no row; `UsageError` for columns whose format cannot be told.
    """
    for path in _each(paths):
        yield from _read_file(
            path, lambda record, where: record, format, on_bad_row, skipped, separator, max_bytes
        )


def read_documents(
    paths: Paths,
    *,
    format: str = "auto",
    on_bad_row: OnBadRow = "error",
    skipped: list[DataError] | None = None,
    separator: str | None = "",
) -> Iterator[Document]:
    """Pretraining text. A file whose rows do not name their source is a source by its own name; a
    conversation becomes a document with one line a turn: `User: ...`, `Assistant: ...`."""
    for path in _each(paths):
        yield from _read_file(path, _as_document, format, on_bad_row, skipped, separator)


def read_conversations(
    paths: Paths,
    *,
    format: str = "auto",
    on_bad_row: OnBadRow = "error",
    skipped: list[DataError] | None = None,
) -> Iterator[Conversation]:
    """Demonstrations. One without an assistant's turn to learn from is a bad row."""
    for path in _each(paths):
        yield from _read_file(path, _as_demonstration, format, on_bad_row, skipped)


def read_prompts(
    paths: Paths,
    *,
    format: str = "auto",
    on_bad_row: OnBadRow = "error",
    skipped: list[DataError] | None = None,
) -> Iterator[Prompt]:
    """Prompts: given as such, those of rankings, judgements and labelled steps, or conversations up to their
    last answer."""
    for path in _each(paths):
        yield from _read_file(path, _as_prompt, format, on_bad_row, skipped)


def read_rankings(
    paths: Paths,
    *,
    format: str = "auto",
    on_bad_row: OnBadRow = "error",
    skipped: list[DataError] | None = None,
) -> Iterator[Ranking]:
    """Rankings of K >= 2 answers; a preference pair is a ranking of two."""
    for path in _each(paths):
        yield from _read_file(path, _as_ranking, format, on_bad_row, skipped)


def read_judgements(
    paths: Paths,
    *,
    format: str = "auto",
    on_bad_row: OnBadRow = "error",
    skipped: list[DataError] | None = None,
) -> Iterator[Judgement]:
    """Answers that were called desirable or undesirable, each by itself."""
    for path in _each(paths):
        yield from _read_file(path, _as_judgement, format, on_bad_row, skipped)


def read_solutions(
    paths: Paths,
    *,
    format: str = "auto",
    on_bad_row: OnBadRow = "error",
    skipped: list[DataError] | None = None,
) -> Iterator[Solution]:
    """Answers in steps, each step labelled right or wrong."""
    for path in _each(paths):
        yield from _read_file(path, _as_solution, format, on_bad_row, skipped)


def dialogue(messages: Sequence[Message]) -> str:
    """A conversation as plain text for pretraining."""
    return "\n".join(f"{message.role.capitalize()}: {message.content}" for message in messages)


def stem(path: Path) -> str:
    """The name of a file without its endings: "tinystories" of "data/tinystories.jsonl.gz"."""
    return path.name.split(".")[0] or path.name


def _each(paths: Paths) -> Iterator[Path]:
    return (Path(path) for path in ([paths] if isinstance(paths, Path | str) else paths))


def _as_document(record: AnyRecord, where: str) -> Document:
    if isinstance(record, Document):
        return record
    if isinstance(record, Conversation):
        return Document(id=record.id, text=dialogue(record.messages), source=record.source or "dialogue")
    raise _other(record, where, "documents", "text, document, messages, alpaca, sharegpt")


def _as_demonstration(record: AnyRecord, where: str) -> Conversation:
    if not isinstance(record, Conversation):
        raise _other(record, where, "demonstrations", "messages, prompt-completion, alpaca, sharegpt")
    require_answer(record.messages, where)
    return record


def _as_prompt(record: AnyRecord, where: str) -> Prompt:
    if isinstance(record, Prompt):
        return record
    if isinstance(record, Ranking | Judgement | Solution):
        return Prompt(id=record.id, messages=record.prompt)
    if isinstance(record, Document):
        raise _other(record, where, "prompts", "prompt, or any with somebody to answer")
    roles = [message.role for message in record.messages]
    end = len(roles) - roles[::-1].index("assistant") - 1 if "assistant" in roles else len(roles)
    if end == 0 or roles[end - 1] == "assistant":
        raise DataError("this conversation asks nothing", where=where, got=", ".join(roles))
    return Prompt(id=record.id, messages=record.messages[:end])


def _as_ranking(record: AnyRecord, where: str) -> Ranking:
    if isinstance(record, Judgement):
        raise _other(
            record,
            where,
            "rankings",
            "ranking, preference, hh",
            do="learn from answers that were judged alone by `bloomery prefer` with loss=kto, as `judged`",
        )
    if not isinstance(record, Ranking):
        raise _other(record, where, "rankings", "ranking, preference, hh, nemo-ranked, alpaca-preference")
    return record


def _as_judgement(record: AnyRecord, where: str) -> Judgement:
    if not isinstance(record, Judgement):
        raise _other(record, where, "answers that were judged alone", "unpaired")
    return record


def _as_solution(record: AnyRecord, where: str) -> Solution:
    if not isinstance(record, Solution):
        raise _other(record, where, "answers in labelled steps", "stepwise")
    return record


def _other(
    record: AnyRecord, where: str, wanted: str, formats: str, do: str = "name another file, or its format"
) -> UsageError:
    return UsageError(
        f"this file does not hold {wanted}",
        where=where,
        got=f"a {type(record).__name__.lower()}",
        expected=f"a file in a format such as {formats}",
        do=do,
    )


def _read_file(
    path: Path,
    turn_into: Callable[[AnyRecord, str], T],
    format: str,
    on_bad_row: OnBadRow,
    skipped: list[DataError] | None,
    separator: str | None = "",
    max_bytes: int | None = None,
) -> Iterator[T]:
    if ".txt" in path.suffixes:
        results = _text_documents(path, separator, max_bytes)
    else:
        results = _rows(path, format, max_bytes)
    seen: dict[str, str] = {}
    problems: list[DataError] = []
    num_read = 0
    for where, result in results:
        try:
            record = turn_into(_checked(result, where, seen), where)
        except DataError as error:
            problems.append(error)
            if on_bad_row == "error":
                raise
            continue
        num_read += 1
        yield record
    if skipped is not None:
        skipped += problems
    elif problems:
        log.warning("%s: skipped %d rows; the first: %s", path, len(problems), problems[0])
    if not num_read:
        raise DataError(
            "the file holds no rows", where=path, got=f"{len(problems)} bad rows" if problems else None
        )


def _checked(result: AnyRecord | DataError, where: str, seen: dict[str, str]) -> AnyRecord:
    if isinstance(result, DataError):
        raise result
    if result.id in seen:
        raise DataError(
            f"id '{result.id}' is given twice",
            where=where,
            got=f"first at {seen[result.id]}",
            do="give every row an id of its own",
        )
    seen[result.id] = where
    return result


def _rows(path: Path, format: str, max_bytes: int | None) -> Iterator[tuple[str, AnyRecord | DataError]]:
    chosen: Format | None = None if format == "auto" else FORMATS[format]
    for line in read_lines(path, max_bytes=max_bytes):
        where = f"{path}:{line.number}"
        try:
            text = text_of(line, path)
            if not text.strip():
                continue
            row = Row(parse_row(text, where), where, stem(path), line.number)
            if chosen is None:
                chosen = sniff(row.columns, where)
                unread = row.columns.keys() - chosen.reads
                log.info("%s: read as %s; columns not read: %s", path, chosen.name, sorted(unread) or "none")
            yield where, chosen.parse(row)
        except DataError as error:
            yield where, error


def _text_documents(
    path: Path, separator: str | None, max_bytes: int | None
) -> Iterator[tuple[str, AnyRecord | DataError]]:
    """Runs of lines between separators; a line that cannot be read makes its whole document bad."""
    lines: list[str] = []
    problem: DataError | None = None
    first = 1
    for line in chain(read_lines(path, max_bytes=max_bytes), [None]):
        try:
            text = None if line is None else text_of(line, path)
        except DataError as error:
            problem = problem or error
            if separator is not None:
                continue
            text = ""
        if text is not None and text.strip() != separator:
            lines.append(text)
            if separator is not None:
                continue
        where = f"{path}:{first}"
        if problem is not None:
            yield where, problem
        elif any(text.strip() for text in lines):
            document = "\n".join(lines).strip("\n")
            yield where, Document(id=f"{stem(path)}-{first}", text=document, source=stem(path))
        lines, problem = [], None
        first = line.number + 1 if line is not None else 0
