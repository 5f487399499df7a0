"""Rankings as files: the canonical JSON Lines, read and written without loss, and preference pairs.

`write_rankings(read_rankings(file))` gives the same bytes back for a file written here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from bloomery.errors import DataError, UsageError
from bloomery.feedback.pairs import Pair
from bloomery.types import Ranking

T = TypeVar("T")


def write_rankings(rankings: Iterable[Ranking], path: str | Path) -> int:
    """One canonical record a line, every field written out. Returns the count; replaces an old file whole."""
    return _write(rankings, Path(path), Ranking.model_dump_json)


def read_rankings(path: str | Path) -> Iterator[Ranking]:
    """Records of a canonical file. Raises `DataError` naming file:line, `UsageError` if there is no file."""
    if not Path(path).is_file():
        raise UsageError("there is no such file of rankings", where=path)
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield Ranking.model_validate_json(line)
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(str(part) for part in first["loc"])
                raise DataError(
                    "this line is not a canonical ranking",
                    where=f"{path}:{number}",
                    got=line[:200].decode(errors="replace") if not place else f"{place}: {first['input']!r}",
                    expected=first["msg"].removeprefix("Value error, "),
                ) from None


def write_preferences(pairs: Iterable[Pair], path: str | Path) -> int:
    """TRL's conversational preference format: `prompt`, `chosen`, `rejected`, each a list of messages.

    A tie has no chosen side: raises `DataError` if one is among the pairs, so that nothing is lost unseen.
    """
    return _write(pairs, Path(path), _preference)


def _preference(pair: Pair) -> str:
    if pair.tie:
        raise DataError(
            "a tie cannot be written as chosen and rejected",
            where=f"ranking {pair.ranking_id!r}",
            do="leave ties out first: [p for p in pairs if not p.tie]",
        )
    sides = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    row = {side: [{"role": m.role, "content": m.content} for m in said] for side, said in sides.items()}
    return json.dumps(row, ensure_ascii=False)


def _write(records: Iterable[T], path: Path, line: Callable[[T], str]) -> int:
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    count = 0
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            for record in records:
                file.write(line(record) + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return count
