"""The one exception family. An error says what failed, what was got and expected, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BloomeryError(Exception):
    """A failure that a person can act on; the command line prints it without a traceback.

    `what` failed; `got` and `expected` are values or descriptions; `where` is a `file:line[:column]`
    or a path; `do` tells the reader what to try. Exit code 1.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        got: object = None,
        expected: object = None,
        where: object = None,
        do: str | None = None,
    ) -> None:
        self.what, self.got, self.expected, self.where, self.do = what, got, expected, where, do
        super().__init__(self.text())

    def text(self) -> str:
        lines = [self.what if self.where is None else f"{self.where}: {self.what}"]
        for label, value in (("got", self.got), ("expected", self.expected), ("do", self.do)):
            if value is not None:
                lines.append(f"  {label}: {clip(str(value))}")
        return "\n".join(lines)


class UsageError(BloomeryError):
    """A command, recipe or setting that cannot be used as written. Exit code 2."""

    exit_code = 2


class DataError(BloomeryError):
    """A row, record or file that does not hold what it should; `where` is file:line[:column]."""


class ArtifactError(BloomeryError):
    """A model, checkpoint or run directory that is missing, damaged or not what it says it is."""


class RecipeError(UsageError):
    """Everything wrong with a recipe, found in one pass: one line per problem."""

    def __init__(self, problems: list[str]) -> None:
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        super().__init__(
            f"the recipe cannot be used ({count})\n" + "\n".join(f"  {line}" for line in problems)
        )
        self.problems = problems


def clip(text: str, limit: int = 400) -> str:
    """Keep an error readable when the offending value is huge."""
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
