"""Reading back what a world stage wrote."""

from __future__ import annotations

import json
from pathlib import Path

from bloomery.errors import ArtifactError, DataError
from bloomery.world.people import World
from bloomery.world.questions import Question


def read_world(path: Path) -> World:
    """The world in a directory. Raises `ArtifactError` when there is none."""
    return World.from_json(_text(path / "world.json"))


def read_questions(path: Path) -> list[Question]:
    """The questions of a file, or of a world's directory, in order.

    Raises `ArtifactError` when there is no such file, `DataError` naming the line of a bad question.
    """
    path = path / "questions.jsonl" if path.is_dir() else path
    found: list[Question] = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        try:
            if line:
                found.append(Question.from_json(json.loads(line)))
        except (DataError, ValueError, TypeError) as error:
            raise DataError("this line is no question", where=f"{path}:{number}", got=error) from None
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(
            "cannot read this", where=path, got=error, do="name the directory of a world stage"
        ) from None
