"""Between the nouns of `types` and the rows of `tables`: no query is decided here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import RowMapping

from bloomery.errors import DataError, UsageError
from bloomery.seeds import stream
from bloomery.types import Annotator, Candidate, Message, Policy, Ranking, Rating, Sampling

_MESSAGES: TypeAdapter[tuple[Message, ...]] = TypeAdapter(tuple[Message, ...])
_RATINGS: TypeAdapter[tuple[Rating | None, ...]] = TypeAdapter(tuple[Rating | None, ...])
_CANDIDATES: TypeAdapter[tuple[Candidate, ...]] = TypeAdapter(tuple[Candidate, ...])
_BLANK = (Candidate(messages=(Message(role="assistant", content=""),), policy=Policy(id="-")),)


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt to be ranked: K >= 2 candidates, and for a gold item the ranks they ought to get."""

    id: str
    messages: tuple[Message, ...]
    candidates: tuple[Candidate, ...]
    kind: str | None = None
    gold: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """What an annotator gets to see: no policy, no gold, no kind.

    `completions` are in stored order, the order that `ranking[k]` and `ratings[k]` of `submit` refer to;
    a screen shows `completions[i] for i in shown_order`. `token` makes `submit` idempotent.
    """

    project: str
    prompt_id: str
    annotator: str
    messages: tuple[Message, ...]
    completions: tuple[tuple[Message, ...], ...]
    shown_order: tuple[int, ...]
    token: str
    guideline_version: str | None

    @property
    def texts(self) -> list[str]:
        """The K answers as text, in stored order."""
        return [messages[-1].content for messages in self.completions]

    def stored_order(self, shown: Sequence[Any]) -> tuple[Any, ...]:
        """Turn values given in the order of the screen into stored order.

        With shown_order (2, 0, 1), what was said of the first answer on the screen belongs to completion 2.
        """
        if len(shown) != len(self.shown_order):
            raise DataError("one value per answer", got=len(shown), expected=len(self.shown_order))
        said = dict(zip(self.shown_order, shown, strict=True))
        return tuple(said[k] for k in range(len(shown)))


def content_key(prompt: Sequence[Message], completions: Sequence[Candidate]) -> str:
    """Names a prompt together with its K completions by content (sha256): rankings of one thing share it."""
    digest = hashlib.sha256(_MESSAGES.dump_json(tuple(prompt)))
    digest.update(_CANDIDATES.dump_json(tuple(completions)))
    return digest.hexdigest()


def messages_json(messages: Sequence[Message]) -> str:
    return _MESSAGES.dump_json(tuple(messages)).decode()


def messages_from(text: str) -> tuple[Message, ...]:
    return _MESSAGES.validate_json(text)


def prompt_row(project: str, item: Item, overlap: int) -> dict[str, Any]:
    """Raises `DataError` when the item could never be ranked."""
    k = len(item.candidates)
    if k < 2 or not item.messages or not item.id:
        raise DataError(
            "this prompt cannot be ranked",
            where=f"prompt {item.id!r}",
            got=f"{k} completions, {len(item.messages)} messages",
            expected="an id, at least 2 completions and 1 message",
        )
    if item.gold is not None and (len(item.gold) != k or min(item.gold) < 1):
        raise DataError(
            "not a gold ranking", where=f"prompt {item.id!r}", got=item.gold, expected=f"{k} ranks"
        )
    return {
        "project": project,
        "id": item.id,
        "digest": content_key(item.messages, item.candidates),
        "messages": messages_json(item.messages),
        "kind": item.kind,
        "gold": json_or_none(item.gold),
        "num_completions": k,
        "taken": 0,
        "is_open": item.gold is not None or overlap > 0,
    }


def completion_rows(prompt_pk: int, candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": prompt_pk,
            "number": number,
            "messages": messages_json(candidate.messages),
            "policy_id": candidate.policy.id,
            "policy_digest": candidate.policy.digest,
            "sampling": None if candidate.sampling is None else candidate.sampling.model_dump_json(),
            "logprob": candidate.logprob,
        }
        for number, candidate in enumerate(candidates)
    ]


def candidate_from(row: RowMapping) -> Candidate:
    sampling = row["sampling"]
    return Candidate(
        messages=messages_from(row["messages"]),
        policy=Policy(id=row["policy_id"], digest=row["policy_digest"]),
        sampling=None if sampling is None else Sampling.model_validate_json(sampling),
        logprob=row["logprob"],
    )


def item_from(row: RowMapping, candidates: tuple[Candidate, ...]) -> Item:
    return Item(
        row["id"], messages_from(row["messages"]), candidates, row["kind"], tuple_or_none(row["gold"])
    )


def judged(k: int, annotator: Annotator, fields: Mapping[str, Any]) -> Ranking:
    """The submission `fields` as a record of K blank completions, so that the rules of `Ranking` are the only
    rules. Raises `DataError` saying which was broken."""
    if (correction := fields.get("correction")) is not None and not correction.strip():
        raise DataError("a correction is an answer", got=repr(correction), do="leave it out if there is none")
    try:
        return Ranking(prompt=_BLANK[0].messages, completions=_BLANK * k, annotator=annotator, **fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(
            "this is no judgement of the task",
            got=f"{place}: {first['input']!r}" if place else fields.get("ranking"),
            expected=first["msg"].removeprefix("Value error, "),
            where=fields["id"],
        ) from None


def submission_row(ranking: Ranking, project: str, prompt_pk: int, token: str | None) -> dict[str, Any]:
    return {
        "project": project,
        "id": ranking.id,
        "prompt": prompt_pk,
        "annotator": ranking.annotator.id,
        "token": token,
        "status": ranking.status,
        "ranking": json_or_none(ranking.ranking),
        "ratings": None if ranking.ratings is None else _RATINGS.dump_json(ranking.ratings).decode(),
        "margin": ranking.margin,
        "correction": ranking.correction,
        "seconds": ranking.seconds,
        "shown_order": json_or_none(ranking.shown_order),
        "prelabel_shown": ranking.prelabel_shown,
        "guideline_version": ranking.guideline_version,
        "comment": ranking.comment,
        "created_at": ranking.created_at,
    }


def ranking_from(
    row: RowMapping,
    annotator: Annotator,
    prompt: tuple[Message, ...],
    completions: tuple[Candidate, ...],
) -> Ranking:
    return Ranking(
        id=row["id"],
        prompt=prompt,
        completions=completions,
        ranking=tuple_or_none(row["ranking"]),
        ratings=None if row["ratings"] is None else _RATINGS.validate_json(row["ratings"]),
        margin=row["margin"],
        correction=row["correction"],
        annotator=annotator,
        seconds=row["seconds"],
        shown_order=tuple_or_none(row["shown_order"]),
        prelabel_shown=row["prelabel_shown"],
        guideline_version=row["guideline_version"],
        comment=row["comment"],
        status=row["status"],
        created_at=row["created_at"],
    )


def shuffled(seed: int, prompt_id: str, annotator: str, k: int) -> tuple[int, ...]:
    """The order an annotator sees the K answers in; stateless, so that a reload shows the same."""
    return tuple(int(i) for i in stream(seed, "shown", prompt_id, annotator).permutation(k))


def checked_name(name: str, what: str) -> str:
    """A name becomes a part of `project/prompt/annotator`, so it holds no slash. Raises `UsageError`."""
    if not name.strip() or "/" in name or not name.isprintable():
        raise UsageError(f"not a name for {what}", got=repr(name), expected="printable text without '/'")
    return name


def json_or_none(numbers: Sequence[int] | None) -> str | None:
    return None if numbers is None else json.dumps(list(numbers))


def tuple_or_none(text: str | None) -> tuple[int, ...] | None:
    return None if text is None else tuple(json.loads(text))
