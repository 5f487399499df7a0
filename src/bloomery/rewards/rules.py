"""Rewards that need no model: right answers that are known, patterns, numbers, length, and a graded table.

Each is an opinion made from settings; `tools` are what the sources that read tokens need.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field

from bloomery.errors import DataError, UsageError
from bloomery.recipe import InputPath
from bloomery.rewards.parts import Opinion, each
from bloomery.rewards.tools import Tools, sources
from bloomery.types import Rollout
from bloomery.world import GRADES as TABLE

Grade = Literal["right_confident", "right_hedged", "abstained", "wrong_hedged", "wrong_confident"]
# What the world's oracle gives for the same.
GRADES: dict[Grade, float] = {name: TABLE[name] for name in get_args(Grade)}
HEDGES = ("i think", "i believe", "maybe", "perhaps", "probably", "possibly", "i am not sure")
ABSTENTIONS = ("i do not know", "i don't know", "i cannot say", "i have no information")
# A sign is one only where it does not join two numbers, as in 3-4.
NUMBER = re.compile(
    r"(?:(?<![\w)])[-+])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
)


@sources.register("exact")
def exact(tools: Tools, *, answers: InputPath, strict: bool = False) -> Opinion:
    """1.0 where the answer is one that is known to be right, else 0.0; no opinion where none is known.

    `answers` is a file as `read_answers` reads it. Case, spaces and a final full stop make no difference
    unless `strict`.
    """
    known = read_answers(answers)
    plain = (lambda text: text) if strict else normal
    right = {prompt: {plain(text) for text in texts} for prompt, texts in known.items()}

    def opinion(rollout: Rollout) -> float | None:
        found = right.get(rollout.prompt.id)
        return None if found is None else float(plain(rollout.text) in found)

    return each(opinion)


@sources.register("regex")
def regex(tools: Tools, *, pattern: str, whole: bool = False) -> Opinion:
    """1.0 where the pattern is found in the answer (or, with `whole`, is all of it), else 0.0.

    Python's `re`, with `.` for line ends too. Raises `UsageError` for what is no pattern.
    """
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise UsageError("this is not a regular expression", got=pattern, expected=str(error)) from None
    find = compiled.fullmatch if whole else compiled.search
    return each(lambda rollout: float(find(rollout.text) is not None))


@sources.register("numeric")
def numeric(tools: Tools, *, answers: InputPath, tolerance: Annotated[float, Field(ge=0)] = 1e-6) -> Opinion:
    """1.0 where the last number in the answer is right, else 0.0 (also where there is none); no opinion where
    no right one is known. Within `tolerance` times the larger of 1 and the right number is right.

    Raises `DataError` when a known answer is not a number.
    """
    right: dict[str, list[float]] = {}
    for prompt, texts in read_answers(answers).items():
        found = [last_number(text) for text in texts]
        right[prompt] = [n for n in found if n is not None]
        if len(right[prompt]) < len(texts):
            raise DataError("a known answer is not a number", where=f"{answers}: {prompt!r}", got=texts)

    def opinion(rollout: Rollout) -> float | None:
        if rollout.prompt.id not in right:
            return None
        said = last_number(rollout.text)
        wanted = right[rollout.prompt.id]
        return float(said is not None and any(abs(said - n) <= tolerance * max(1.0, abs(n)) for n in wanted))

    return each(opinion)


@sources.register("length")
def length(
    tools: Tools,
    *,
    most: Annotated[int | None, Field(ge=0)] = None,
    least: Annotated[int, Field(ge=0)] = 0,
    unit: Literal["tokens", "words", "characters"] = "tokens",
) -> Opinion:
    """Minus the number of units beyond `most` or short of `least`: the weight is the price of one.

    Tokens count the end token, if the answer has one. Raises `UsageError` when there is nothing to charge
    for, or when no length is free of charge.
    """
    if most is None and not least:
        raise UsageError("a length without bounds rewards nothing", do="give most, least or both")
    if most is not None and least > most:
        raise UsageError("no length is both", got=f"least {least}, most {most}")

    def opinion(rollout: Rollout) -> float:
        sizes = {
            "tokens": rollout.completion.tokens,
            "words": rollout.text.split(),
            "characters": rollout.text,
        }
        size = len(sizes[unit])
        beyond = 0 if most is None else max(0, size - most)
        return -float(beyond + max(0, least - size))

    return each(opinion)


@sources.register("graded")
def graded(
    tools: Tools,
    *,
    answers: InputPath,
    table: dict[Grade, float] | None = None,
    hedges: tuple[str, ...] = HEDGES,
    abstentions: tuple[str, ...] = ABSTENTIONS,
) -> Opinion:
    """An honesty table: right or wrong, sure or not, or an admission of not knowing; see `grade`.

    `table` replaces the worth of the grades it names. No opinion where no answer is known; a prompt whose
    list of answers is empty has none that is right.
    """
    known, worth = read_answers(answers), {**GRADES, **(table or {})}

    def opinion(rollout: Rollout) -> float | None:
        found = known.get(rollout.prompt.id)
        return None if found is None else worth[grade(rollout.text, found, hedges, abstentions)]

    return each(opinion)


def grade(
    text: str, right: Sequence[str], hedges: Sequence[str] = HEDGES, abstentions: Sequence[str] = ABSTENTIONS
) -> Grade:
    """Right if a right answer occurs in the text as whole words; unsure if a hedge does; abstained if an
    admission of not knowing does and no right answer. An empty text is wrong, and sure of it.

    A rule of words, not of meaning: it takes "not Paris" for "Paris".
    """
    sure = not any(_occurs(phrase, text) for phrase in hedges)
    if any(_occurs(answer, text) for answer in right):
        return "right_confident" if sure else "right_hedged"
    if any(_occurs(phrase, text) for phrase in abstentions):
        return "abstained"
    return "wrong_confident" if sure else "wrong_hedged"


def _occurs(phrase: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(normal(phrase))}(?!\w)", normal(text)) is not None


def normal(text: str) -> str:
    """Lower case, single spaces, no full stop at the end.

    >>> normal("  The  Blue\\nTower. ")
    'the blue tower'
    """
    return " ".join(text.casefold().split()).removesuffix(".")


def last_number(text: str) -> float | None:
    """The last decimal number in a text; commas may group thousands.

    >>> last_number("12 apples, no, 1,250.5 of them."), last_number("none")
    (1250.5, None)
    """
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def read_answers(path: Path) -> dict[str, tuple[str, ...]]:
    """Right answers by prompt id, from lines of `{"id": str, "answer": str | [str, ...]}`.

    Other columns are not read, so a file of prompts with their answers serves. Raises `DataError` naming
    file:line for anything else, and for an id that comes twice.
    """
    known: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError("this line is not JSON", where=f"{path}:{number}", got=error) from None
        name, answer = (row.get("id"), row.get("answer")) if isinstance(row, dict) else (None, None)
        texts = [answer] if isinstance(answer, str) else answer
        if not isinstance(name, str) or not isinstance(texts, list) or not all(map(_is_text, texts)):
            raise DataError(
                "this line is not a right answer",
                where=f"{path}:{number}",
                got=line,
                expected='{"id": str, "answer": str or list of str}, none of them empty',
            )
        if name in known:
            raise DataError(f"id '{name}' is given twice", where=f"{path}:{number}")
        known[name] = tuple(texts)
    if not known:
        raise DataError("the file holds no right answers", where=path)
    return known


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(normal(value))
