"""Pieces of rows, checked: strings, messages, prompts, pairs. Every failure names file, line and key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

from bloomery.errors import DataError, nearest
from bloomery.types import Annotator, Candidate, Judgement, Message, Policy, Ranking, Role

Messages = tuple[Message, ...]

ROLES: tuple[str, ...] = get_args(Role)
_SHAREGPT = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_TURN = re.compile(r"\n\n(Human|Assistant):")


class Row(NamedTuple):
    """One line: its columns, and where it stands (as file:line, as name of a source, and as a number)."""

    columns: dict[str, Any]
    where: str
    source: str
    number: int

    @property
    def id(self) -> str:
        """The id that the row brings, or one made of the file's name and the line."""
        given = self.columns.get("id")
        if given is None:
            return f"{self.source}-{self.number}"
        if isinstance(given, bool) or not isinstance(given, str | int) or given == "":
            raise DataError("'id' is neither text nor a whole number", where=self.where, got=repr(given))
        return str(given)


def text(row: Row, key: str) -> str:
    """A column that must hold text. Raises `DataError` where it is missing, empty or something else."""
    if key not in row.columns:
        raise DataError(
            f"column '{key}' is missing{nearest(key, row.columns)}",
            where=row.where,
            got=", ".join(row.columns) or "no columns",
        )
    return filled(row.columns[key], key, row.where)


def optional_text(row: Row, key: str) -> str:
    """Text that may be missing, null or empty."""
    value = row.columns.get(key)
    return _string(value, key, row.where) if value is not None else ""


def message(value: Any, key: str, where: str) -> Message:
    """`{"role", "content", "weight"?}`; other keys only where they are null."""
    if not isinstance(value, dict):
        raise DataError(f"{key} is not a message", where=where, got=_kind(value), expected="{role, content}")
    for name, inner in value.items():
        if name not in ("role", "content", "weight") and inner is not None:
            raise DataError(
                f"{key} has a key '{name}' that is not read{nearest(name, ('role', 'content', 'weight'))}",
                where=where,
                expected="role, content, weight",
            )
    role, weight = value.get("role"), value.get("weight")
    if role not in ROLES:
        hint = nearest(role, ROLES) if isinstance(role, str) else ""
        raise DataError(f"{key} has an unknown role{hint}", where=where, got=role, expected=", ".join(ROLES))
    if weight not in (None, 0, 1) or isinstance(weight, bool | float):
        raise DataError(f"{key}: weight is 0 or 1", where=where, got=repr(weight))
    content = filled(value.get("content"), f"{key}.content", where)
    return Message(role=role, content=content, weight=weight)


def messages(value: Any, key: str, where: str) -> Messages:
    """A list of at least one message."""
    if not isinstance(value, list) or not value:
        raise DataError(f"'{key}' is not a list of messages", where=where, got=_kind(value))
    return tuple(message(item, f"{key}[{i}]", where) for i, item in enumerate(value))


def asked(row: Row) -> Messages:
    """The prompt, which ends with somebody to answer."""
    turns = text_or_messages(row, "prompt", "user")
    if turns[-1].role == "assistant":
        raise DataError("the prompt does not end with somebody to answer", where=row.where)
    return turns


def text_or_messages(row: Row, key: str, role: Role) -> Messages:
    """A column that holds messages, or the text of a single one by `role`."""
    if isinstance(row.columns.get(key), list):
        return messages(row.columns[key], key, row.where)
    return (Message(role=role, content=text(row, key)),)


def sharegpt(value: Any, key: str, where: str) -> Message:
    """`{"from": "human" | "gpt" | "system", "value"}`."""
    if not isinstance(value, dict):
        raise DataError(f"{key} is not a message", where=where, got=_kind(value), expected="{from, value}")
    role = value.get("from")
    if role not in _SHAREGPT:
        raise DataError(f"{key} has an unknown speaker", where=where, got=role, expected=", ".join(_SHAREGPT))
    content = filled(value.get("value"), f"{key}.value", where)
    return Message.model_validate({"role": _SHAREGPT[role], "content": content})


def transcript(row: Row, key: str) -> Messages:
    """Turns of `\\n\\nHuman: ...\\n\\nAssistant: ...`; the spaces around a turn belong to the layout."""
    before, *parts = _TURN.split(text(row, key))
    if before.strip() or not parts:
        raise DataError(f"'{key}' does not start with a turn", where=row.where, got=before[:60])
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = zip(parts[::2], parts[1::2], strict=True)
    return tuple(
        message({"role": roles[who], "content": said.strip()}, f"{key}, turn {i}", row.where)
        for i, (who, said) in enumerate(turns, start=1)
    )


def is_transcript(value: Any) -> bool:
    return isinstance(value, str) and _TURN.match(value) is not None


def shared_prefix(first: Messages, second: Messages) -> int:
    """How many messages two conversations share from the start."""
    count = 0
    while count < min(len(first), len(second)) and first[count] == second[count]:
        count += 1
    return count


def after_prompt(prompt: Messages, answer: Messages) -> Messages:
    """Some tools repeat the prompt at the start of each answer; the answer without it."""
    return answer[len(prompt) :] if answer[: len(prompt)] == prompt else answer


def pair(row: Row, prompt: Messages, chosen: Messages, rejected: Messages) -> Ranking:
    """A preference of one answer over another, as a ranking of two, with the row's `margin` if it has one.

    Raises `DataError` where there is no prompt, an answer does not end with the assistant, both are equal, or
    the margin is no number from 0 on.
    """
    _require_turns(row, prompt, chosen=chosen, rejected=rejected)
    if chosen == rejected:
        raise DataError("chosen and rejected are the same", where=row.where, got=chosen[-1].content)
    margin = row.columns.get("margin")
    if margin is not None and (type(margin) not in (int, float) or margin < 0):
        raise DataError(
            "'margin' does not say by how much the chosen answer is better",
            where=row.where,
            got=repr(margin),
            expected="a number from 0 on, or null",
        )
    return Ranking(
        id=row.id,
        prompt=prompt,
        completions=tuple(Candidate(messages=m, policy=Policy(id="unknown")) for m in (chosen, rejected)),
        ranking=(1, 2),
        margin=margin,
        annotator=Annotator(id="unknown", kind="human"),
        created_at="unknown",
    )


def judgement(row: Row, prompt: Messages, completion: Messages) -> Judgement:
    """An answer with the `label` of its row.

    Raises `DataError` where there is no prompt, the answer does not end with the assistant, and for a label
    that is neither true nor false: 1 and "yes" are not taken for it.
    """
    _require_turns(row, prompt, completion=completion)
    label = row.columns.get("label")
    if not isinstance(label, bool):
        raise DataError(
            "'label' is neither true nor false",
            where=row.where,
            got=_kind(label) if label is None else repr(label),
            expected="true for a desirable answer, false for an undesirable one",
        )
    return Judgement(id=row.id, prompt=prompt, completion=completion, label=label)


def _require_turns(row: Row, prompt: Messages, **answers: Messages) -> None:
    """A prompt that asks, and answers that end with the assistant."""
    if not prompt or prompt[-1].role == "assistant":
        raise DataError(
            "the prompt does not end with somebody to answer",
            where=row.where,
            got=f"a last message by '{prompt[-1].role}'" if prompt else "no message that both answers share",
        )
    for name, answer in answers.items():
        if not answer or answer[-1].role != "assistant":
            raise DataError(f"'{name}' does not end with a message by the assistant", where=row.where)


def require_answer(turns: Sequence[Message], where: str) -> None:
    """Raises `DataError` where a demonstration has no assistant's turn to learn from."""
    if not any(turn.trained for turn in turns):
        raise DataError(
            "nothing in this conversation is trained on",
            where=where,
            got=", ".join(turn.role for turn in turns),
            expected="an assistant's turn whose weight is not 0",
        )


def listed(row: Row, key: str) -> list[Any]:
    """A column that holds a list of at least one entry. Raises `DataError` for anything else."""
    value = row.columns.get(key)
    if not isinstance(value, list) or not value:
        raise DataError(
            f"'{key}' is not a list with an entry for each step", where=row.where, got=_kind(value)
        )
    return value


def filled(value: Any, key: str, where: str) -> str:
    """Text that is more than blanks. Raises `DataError` for anything else."""
    found = _string(value, key, where)
    if not found.strip():
        raise DataError(f"'{key}' is empty", where=where, got=repr(found))
    return found


def _string(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"'{key}' is not text", where=where, got=_kind(value), expected="a string")
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "nothing"}
    if value == []:
        return "an empty list"
    return names.get(type(value), "a number")
