"""The formats people arrive with, each a function from a row to one of our records.

A format is recognised by its columns. Columns it does not name are not read; a column that would change the
meaning (`kto_tag` beside a conversation) says that the row is in no format we know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import ValidationError

from bloomery.data.messages import (
    Messages,
    Row,
    after_prompt,
    asked,
    filled,
    is_transcript,
    judgement,
    listed,
    message,
    messages,
    optional_text,
    pair,
    shared_prefix,
    sharegpt,
    text,
    text_or_messages,
    transcript,
)
from bloomery.errors import DataError, UsageError, clip, nearest
from bloomery.registry import Registry
from bloomery.types import (
    Annotator,
    Candidate,
    Conversation,
    Document,
    Judgement,
    Message,
    Policy,
    Prompt,
    Ranking,
    Record,
    Solution,
)

AnyRecord = Document | Conversation | Prompt | Ranking | Judgement | Solution
R = TypeVar("R", bound=Record)
Parse = Callable[[Row], AnyRecord]


@dataclass(frozen=True)
class Format:
    """`needs` are the columns it is recognised by; any of `never_with` says that it is something else."""

    name: str
    parse: Parse
    needs: frozenset[str]
    reads: frozenset[str]
    never_with: frozenset[str]
    says: Callable[[dict[str, Any]], bool]

    def fits(self, columns: dict[str, Any]) -> bool:
        keys = columns.keys()
        return self.needs <= keys and not (self.never_with & keys) and self.says(columns)


FORMATS: Registry[Format] = Registry("data format")


def _format(
    name: str,
    needs: str,
    also: str = "",
    *,
    never_with: str = "",
    says: Callable[[dict[str, Any]], bool] = lambda columns: True,
) -> Callable[[Parse], Parse]:
    def put(parse: Parse) -> Parse:
        required = frozenset(needs.split())
        reads = required | frozenset(also.split()) | {"id"}
        FORMATS.register(name)(Format(name, parse, required, reads, frozenset(never_with.split()), says))
        return parse

    return put


def sniff(columns: dict[str, Any], where: str) -> Format:
    """The one format that these columns are in. Raises `UsageError` where it is none, or more than one."""
    fitting = [FORMATS[name] for name in FORMATS if FORMATS[name].fits(columns)]
    best = [f for f in fitting if not any(f.needs < other.needs for other in fitting)]
    if len(best) == 1:
        return best[0]
    raise UsageError(
        "the columns fit several formats"
        if best
        else f"the columns are in no format we know{_typo(columns)}",
        where=where,
        got=", ".join(columns) or "no columns",
        expected=" or ".join(f.name for f in best) or "the columns of one of: " + ", ".join(FORMATS),
        do="name the format",
    )


def _typo(columns: dict[str, Any]) -> str:
    known = {column for name in FORMATS for column in FORMATS[name].needs}
    close = [
        (column, get_close_matches(column, known - columns.keys(), n=1, cutoff=0.85)) for column in columns
    ]
    return next((f" (is '{column}' meant to be '{match[0]}'?)" for column, match in close if match), "")


@_format(
    "document",
    "id text source",
    "quality",
    says=lambda columns: columns.keys() <= Document.model_fields.keys(),
)
def _document(row: Row) -> Document:
    return _record(Document, row)


@_format("text", "text")
def _text(row: Row) -> Document:
    return Document(id=row.id, text=text(row, "text"), source=row.source)


@_format(
    "messages", "messages", "source author", never_with="label kto_tag completion chosen rejected prompt"
)
def _messages(row: Row) -> Conversation:
    turns = messages(row.columns.get("messages"), "messages", row.where)
    source, author = (optional_text(row, key) or None for key in ("source", "author"))
    return Conversation(id=row.id, messages=turns, source=source, author=author)


@_format("prompt", "prompt", "kind", never_with="label labels completion completions chosen rejected")
def _prompt(row: Row) -> Prompt:
    return Prompt(id=row.id, messages=asked(row), kind=optional_text(row, "kind") or None)


@_format("prompt-completion", "prompt completion", never_with="label chosen rejected")
def _prompt_completion(row: Row) -> Conversation:
    turns = text_or_messages(row, "prompt", "user")
    answer = after_prompt(turns, text_or_messages(row, "completion", "assistant"))
    unlearned = tuple(t.model_copy(update={"weight": 0}) if t.trained else t for t in turns)
    return Conversation(id=row.id, messages=unlearned + answer)


@_format("unpaired", "prompt completion label", never_with="chosen rejected")
def _unpaired(row: Row) -> Judgement:
    prompt = text_or_messages(row, "prompt", "user")
    return judgement(row, prompt, after_prompt(prompt, text_or_messages(row, "completion", "assistant")))


@_format(
    "preference",
    "chosen rejected",
    "prompt margin",
    never_with="instruction conversations",
    says=lambda columns: "prompt" in columns or not is_transcript(columns["chosen"]),
)
def _preference(row: Row) -> Ranking:
    if "prompt" in row.columns:
        prompt = text_or_messages(row, "prompt", "user")
        answers = (text_or_messages(row, key, "assistant") for key in ("chosen", "rejected"))
        chosen, rejected = (after_prompt(prompt, answer) for answer in answers)
        return pair(row, prompt, chosen, rejected)
    chosen, rejected = (messages(row.columns.get(k), k, row.where) for k in ("chosen", "rejected"))
    return _implicit(row, chosen, rejected)


@_format(
    "hh",
    "chosen rejected",
    "margin",
    never_with="prompt instruction conversations",
    says=lambda columns: is_transcript(columns["chosen"]),
)
def _hh(row: Row) -> Ranking:
    return _implicit(row, transcript(row, "chosen"), transcript(row, "rejected"))


@_format("alpaca", "instruction output", "input system history", never_with="chosen rejected label kto_tag")
def _alpaca(row: Row) -> Conversation:
    answer = Message(role="assistant", content=text(row, "output"))
    return Conversation(id=row.id, messages=(*_alpaca_prompt(row), answer))


@_format("alpaca-preference", "instruction chosen rejected", "input system history output margin")
def _alpaca_preference(row: Row) -> Ranking:
    chosen, rejected = ((Message(role="assistant", content=text(row, k)),) for k in ("chosen", "rejected"))
    return pair(row, _alpaca_prompt(row), chosen, rejected)


@_format("sharegpt", "conversations", "system", never_with="chosen rejected label kto_tag")
def _sharegpt(row: Row) -> Conversation:
    return Conversation(id=row.id, messages=_sharegpt_turns(row))


@_format("sharegpt-preference", "conversations chosen rejected", "system margin")
def _sharegpt_preference(row: Row) -> Ranking:
    return pair(row, _sharegpt_turns(row), _sharegpt_answer(row, "chosen"), _sharegpt_answer(row, "rejected"))


@_format("ranking", "prompt completions ranking annotator created_at", " ".join(Ranking.model_fields))
def _ranking(row: Row) -> Ranking:
    return _record(Ranking, row)


@_format("stepwise", "prompt completions labels", never_with="ranking chosen rejected")
def _stepwise(row: Row) -> Solution:
    steps, labels = (listed(row, key) for key in ("completions", "labels"))
    if len(steps) != len(labels):
        got = f"{len(steps)} completions, {len(labels)} labels"
        raise DataError("every step has one label", where=row.where, got=got)
    for i, label in enumerate(labels):
        if not isinstance(label, bool):
            raise DataError(f"labels[{i}] is neither true nor false", where=row.where, got=repr(label))
    said = tuple(filled(step, f"completions[{i}]", row.where) for i, step in enumerate(steps))
    return Solution(id=row.id, prompt=asked(row), completions=said, labels=tuple(labels))


@_format("nemo-ranked", "context completions", "task_name")
def _nemo(row: Row) -> Ranking:
    """NeMo's ranks start at 0 for the best."""
    prompt = messages(row.columns.get("context"), "context", row.where)
    entries = row.columns.get("completions")
    if not isinstance(entries, list) or len(entries) < 2:
        raise DataError("'completions' is not a list of at least two answers", where=row.where)
    answers: list[Messages] = []
    ranks: list[int] = []
    for i, entry in enumerate(entries):
        rank = entry.get("rank") if isinstance(entry, dict) else None
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 0:
            raise DataError(f"completions[{i}] has no rank", where=row.where, got=rank, expected="0, 1, ...")
        answers.append(messages(entry.get("completion"), f"completions[{i}].completion", row.where))
        ranks.append(rank + 1)
    return Ranking(
        id=row.id,
        prompt=prompt,
        completions=tuple(Candidate(messages=m, policy=Policy(id="unknown")) for m in answers),
        ranking=tuple(ranks),
        annotator=Annotator(id="unknown", kind="human"),
        created_at="unknown",
    )


def _implicit(row: Row, chosen: Messages, rejected: Messages) -> Ranking:
    """The prompt is what both conversations start with."""
    shared = shared_prefix(chosen, rejected)
    while shared and chosen[shared - 1].role == "assistant":
        shared -= 1
    return pair(row, chosen[:shared], chosen[shared:], rejected[shared:])


def _alpaca_prompt(row: Row) -> Messages:
    turns: list[Message] = []
    if system := optional_text(row, "system"):
        turns.append(Message(role="system", content=system))
    for i, past in enumerate(row.columns.get("history") or ()):
        if not isinstance(past, list) or len(past) != 2:
            raise DataError(f"history[{i}] is not [user, assistant]", where=row.where)
        for role, content in zip(("user", "assistant"), past, strict=True):
            turns.append(message({"role": role, "content": content}, f"history[{i}]", row.where))
    parts = [text(row, "instruction"), optional_text(row, "input")]
    turns.append(Message(role="user", content="\n\n".join(part for part in parts if part)))
    return tuple(turns)


def _sharegpt_answer(row: Row, key: str) -> Messages:
    value = row.columns.get(key)
    if isinstance(value, str):
        return (Message(role="assistant", content=text(row, key)),)
    return (sharegpt(value, key, row.where),)


def _sharegpt_turns(row: Row) -> Messages:
    turns = row.columns.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise DataError("'conversations' is not a list of messages", where=row.where)
    said = tuple(sharegpt(turn, f"conversations[{i}]", row.where) for i, turn in enumerate(turns))
    system = optional_text(row, "system")
    return (Message(role="system", content=system), *said) if system else said


def _record(kind: type[R], row: Row) -> R:
    """A row that is one of our own records, key for key."""
    try:
        return kind.model_validate({"id": row.id, **row.columns})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise DataError(
                f"unknown key '{key}'{nearest(key, kind.model_fields)}", where=row.where
            ) from None
        said = first["msg"].removeprefix("Value error, ")
        if first["type"] == "too_short":
            raise DataError(
                f"'{key}' holds too few",
                where=row.where,
                got=first["ctx"]["actual_length"],
                expected=f"at least {first['ctx']['min_length']}",
            ) from None
        raise DataError(
            f"'{key}': {said[:1].lower()}{said[1:]}" if key else said,
            where=row.where,
            got=clip(repr(first["input"]), 80) if key else None,
        ) from None
