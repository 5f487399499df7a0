"""Records to files that other tools read. What a format cannot hold is counted, never lost in silence."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import zstandard

from bloomery.data.formats import AnyRecord
from bloomery.data.messages import Messages
from bloomery.errors import ArtifactError, DataError, UsageError
from bloomery.registry import Registry
from bloomery.types import Conversation, Document, Judgement, Message, Prompt, Ranking, Solution, ranked_pairs

Columns = dict[str, Any]
R = TypeVar("R", Document, Conversation, Prompt, Ranking, Judgement, Solution)
Writer = Callable[[AnyRecord, Counter[str]], Iterator[Columns]]

WRITERS: Registry[Writer] = Registry("data format that can be written")


@dataclass(frozen=True)
class Written:
    """What became of the records: rows in the file, and by reason what the format could not hold."""

    num_records: int
    num_rows: int
    left_out: Counter[str] = field(default_factory=Counter)


def write(records: Iterable[AnyRecord], path: Path, format: str) -> Written:
    """Write records as JSON Lines (`.gz` and `.zst` by the file's ending), whole or not at all.

    Raises `ArtifactError` where the file exists, `UsageError` for a record that the format is not for,
    `DataError` for one it cannot spell, and where there is no record.
    """
    path = Path(path)
    if path.exists():
        raise ArtifactError("this file exists already", where=path, do="name another one")
    writer = WRITERS[format]
    left_out: Counter[str] = Counter()
    num_records = num_rows = 0
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with _open(temporary, path.suffix) as file:
            for record in records:
                num_records += 1
                for row in writer(record, left_out):
                    num_rows += 1
                    file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
        if not num_rows:
            raise DataError("there is nothing to write", where=path, got=dict(left_out) or "no records")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return Written(num_records, num_rows, left_out)


@WRITERS.register("document")
def _document(record: AnyRecord, left_out: Counter[str]) -> Iterator[Columns]:
    yield _expect(record, Document, "document").model_dump(mode="json", exclude_none=True)


@WRITERS.register("text")
def _text(record: AnyRecord, left_out: Counter[str]) -> Iterator[Columns]:
    yield {"text": _expect(record, Document, "text").text}


@WRITERS.register("messages")
def _messages(record: AnyRecord, left_out: Counter[str]) -> Iterator[Columns]:
    given = _expect(record, Conversation, "messages").model_dump(mode="json", exclude_none=True)
    yield {"messages": given.pop("messages"), **given}


@WRITERS.register("prompt")
def _prompt(record: AnyRecord, left_out: Counter[str]) -> Iterator[Columns]:
    given = _expect(record, Prompt, "prompt").model_dump(mode="json", exclude_none=True)
    yield {"prompt": given.pop("messages"), **given}


@WRITERS.register("ranking")
def _ranking(record: AnyRecord, left_out: Counter[str]) -> Iterator[Columns]:
    """The canonical record: every field, lossless."""
    yield _expect(record, Ranking, "ranking").model_dump(mode="json")


@WRITERS.register("preference")
def _preference(record: AnyRecord, left_out: Counter[str]) -> Iterator[Columns]:
    ranking = _expect(record, Ranking, "preference")
    for number, (winner, loser) in enumerate(_pairs(ranking, left_out), start=1):
        yield {
            "id": f"{ranking.id}/{number}" if len(ranking.completions) > 2 else ranking.id,
            "prompt": _plain(ranking.prompt),
            "chosen": _plain(winner),
            "rejected": _plain(loser),
            **({} if ranking.margin is None else {"margin": ranking.margin}),
        }


@WRITERS.register("unpaired")
def _unpaired(record: AnyRecord, left_out: Counter[str]) -> Iterator[Columns]:
    """A ranking becomes both answers of each of its pairs: one in the middle is desirable and undesirable."""
    if isinstance(record, Ranking):
        for number, pair in enumerate(_pairs(record, left_out), start=1):
            for label, answer in zip((True, False), pair, strict=True):
                name = f"{record.id}/{number}/{'chosen' if label else 'rejected'}"
                yield _judged(Judgement(id=name, prompt=record.prompt, completion=answer, label=label))
    else:
        yield _judged(_expect(record, Judgement, "unpaired"))


def _judged(judgement: Judgement) -> Columns:
    return judgement.model_dump(mode="json", exclude_none=True)


@WRITERS.register("hh")
def _hh(record: AnyRecord, left_out: Counter[str]) -> Iterator[Columns]:
    ranking = _expect(record, Ranking, "hh")
    for winner, loser in _pairs(ranking, left_out):
        yield {
            "chosen": _transcript(ranking.prompt + winner, ranking.id),
            "rejected": _transcript(ranking.prompt + loser, ranking.id),
        }


@WRITERS.register("stepwise")
def _stepwise(record: AnyRecord, left_out: Counter[str]) -> Iterator[Columns]:
    yield _expect(record, Solution, "stepwise").model_dump(mode="json", exclude_none=True)


@WRITERS.register("nemo-ranked")
def _nemo(record: AnyRecord, left_out: Counter[str]) -> Iterator[Columns]:
    """NeMo's ranks start at 0 for the best."""
    ranking = _expect(record, Ranking, "nemo-ranked")
    if ranking.ranking is None:
        left_out[f"{ranking.status} without a ranking"] += 1
        return
    if ranking.correction is not None:
        left_out["a correction, which this format has no place for"] += 1
    yield {
        "id": ranking.id,
        "context": _plain(ranking.prompt),
        "completions": [
            {"rank": rank - 1, "completion": _plain(candidate.messages)}
            for rank, candidate in zip(ranking.ranking, ranking.completions, strict=True)
        ],
        "task_name": "bloomery",
    }


def _pairs(ranking: Ranking, left_out: Counter[str]) -> Iterator[tuple[Messages, Messages]]:
    """(better, worse) answers of a ranking; a correction is better than every answer."""
    if ranking.ranking is None:
        left_out[f"{ranking.status} without a ranking"] += 1
        return
    answers = [candidate.messages for candidate in ranking.completions]
    for winner, loser, tie in ranked_pairs(ranking.ranking):
        if tie:
            left_out["ties, which a pair cannot say"] += 1
        else:
            yield answers[winner], answers[loser]
    if ranking.correction is not None:
        best = (Message(role="assistant", content=ranking.correction),)
        yield from ((best, answer) for answer in answers)


def _transcript(turns: Messages, name: str) -> str:
    speakers = {"user": "Human", "assistant": "Assistant"}
    for turn in turns:
        if turn.role not in speakers or "\n\nHuman:" in turn.content or "\n\nAssistant:" in turn.content:
            raise DataError(
                f"record '{name}' cannot be a transcript",
                got=f"a turn by '{turn.role}'"
                if turn.role not in speakers
                else "a speaker's name inside a turn",
                expected="turns by user and assistant",
                do="write format preference",
            )
    return "".join(f"\n\n{speakers[turn.role]}: {turn.content}" for turn in turns)


def _plain(turns: Messages) -> list[Columns]:
    return [turn.model_dump(mode="json", exclude_none=True) for turn in turns]


def _expect(record: AnyRecord, kind: type[R], format: str) -> R:
    if not isinstance(record, kind):
        raise UsageError(
            f"format {format} is not for this kind of record",
            got=f"{type(record).__name__.lower()} '{record.id}'",
            expected=kind.__name__.lower(),
        )
    return record


@contextmanager
def _open(path: Path, suffix: str) -> Iterator[IO[bytes]]:
    """A file that compresses by the ending it will have; equal rows give equal bytes."""
    with path.open("wb") as plain:
        if suffix == ".gz":
            with gzip.GzipFile(filename="", fileobj=plain, mode="wb", mtime=0) as packed:
                yield cast(IO[bytes], packed)
        elif suffix == ".zst":
            with zstandard.ZstdCompressor().stream_writer(plain, closefd=False) as stream:
                yield cast(IO[bytes], stream)
        else:
            yield plain
