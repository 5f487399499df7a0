"""What the store does inside one transaction. The locks are the caller's; see `store.Store`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from bloomery.errors import DataError, UsageError, nearest
from bloomery.feedback import queries as q
from bloomery.feedback import rows
from bloomery.feedback.rows import Item, Task
from bloomery.seeds import derive
from bloomery.types import Annotator, Candidate, Ranking

Row = sa.RowMapping


def lock(connection: sa.Connection, name: str) -> None:
    """Keep other writers of this project out; on SQLite `BEGIN IMMEDIATE` did already."""
    if connection.dialect.name != "sqlite":
        connection.execute(q.LOCK, {"project": name})


def project(connection: sa.Connection, name: str) -> Row:
    row = connection.execute(q.PROJECT, {"project": name}).mappings().first()
    if row is None:
        known = list(connection.execute(q.PROJECTS).scalars())
        raise UsageError(
            f"no project is called '{name}'{nearest(name, known)}", expected=", ".join(known) or "(none yet)"
        )
    return row


def annotator(connection: sa.Connection, id: str) -> Annotator:
    row = connection.execute(q.ANNOTATOR, {"who": id}).mappings().first()
    if row is None:
        raise UsageError(f"no annotator is called '{id}'", do="add_annotator first")
    return Annotator(id=row["id"], kind=row["kind"])


def add_annotator(connection: sa.Connection, new: Annotator, display_name: str | None, now: str) -> None:
    have = connection.execute(q.ANNOTATOR, {"who": new.id}).mappings().first()
    if have is None:
        row = {"id": new.id, "kind": new.kind, "display_name": display_name, "created_at": now}
        connection.execute(q.NEW_ANNOTATOR, row)
    elif have["kind"] != new.kind:
        raise DataError(
            f"annotator '{new.id}' is known as another kind",
            got=new.kind,
            expected=have["kind"],
            do="a person, a simulation and a model never share an id",
        )


def add_prompt(connection: sa.Connection, row: dict[str, Any], candidates: Sequence[Candidate]) -> int:
    result = connection.execute(q.NEW_PROMPT, row)
    (pk,) = result.inserted_primary_key or (0,)
    connection.execute(q.NEW_COMPLETIONS, rows.completion_rows(pk, candidates))
    return int(pk)


def items(connection: sa.Connection, name: str, after: int) -> list[tuple[int, Item]]:
    """A page of prompts with their candidates, by row number."""
    page = connection.execute(q.PROMPTS, {"project": name, "after": after}).mappings().all()
    if not page:
        return []
    span = {"project": name, "first": page[0]["pk"], "last": page[-1]["pk"]}
    candidates: dict[int, list[Candidate]] = {}
    for row in connection.execute(q.COMPLETIONS_OF_PAGE, span).mappings():
        candidates.setdefault(row["prompt"], []).append(rows.candidate_from(row))
    return [(row["pk"], rows.item_from(row, tuple(candidates[row["pk"]]))) for row in page]


def free_stale_leases(connection: sa.Connection, settings: Row, who: str, now: float) -> int | None:
    """Let go of what others held too long; returns the prompt that `who` holds, stale or not."""
    mine = None
    for lease in connection.execute(q.LEASES, {"project": settings["name"]}).mappings().all():
        if lease["annotator"] == who:
            mine = int(lease["prompt"])
        elif lease["expires"] <= now:
            connection.execute(q.DROP_LEASE, {"at": lease["prompt"], "who": lease["annotator"]})
            take(connection, settings["overlap"], lease["prompt"], -1)
    return mine


def choose(connection: sa.Connection, settings: Row, who: str, start: int) -> tuple[int, int] | None:
    """A prompt for `who`, and the first one still open to them (below it there is nothing left).

    Looks from row `start` on, then from the beginning, because a prompt passed over may be open again.
    """
    where = {"project": settings["name"], "who": who}
    found = list(connection.execute(q.TO_DO, {**where, "start": start}).scalars())
    if not found and start > 0:
        found = list(connection.execute(q.TO_DO, {**where, "start": 0}).scalars())
    if not found:
        return None
    draw = derive(settings["seed"], "next", who, found[-1], len(found))
    return found[draw % len(found)], found[0]


def lease(connection: sa.Connection, settings: Row, who: str, pk: int, until: float) -> None:
    row = {"prompt": pk, "annotator": who, "project": settings["name"], "state": "leased", "expires": until}
    connection.execute(q.ASSIGN, row)
    take(connection, settings["overlap"], pk, 1)


def take(connection: sa.Connection, overlap: int, pk: int, by: int) -> None:
    connection.execute(q.TAKE, {"at": pk, "by": by, "overlap": overlap})


def task(connection: sa.Connection, settings: Row, who: str, pk: int) -> Task:
    sheet = connection.execute(q.SHEET, {"pk": pk}).mappings().all()
    id = sheet[0]["id"]
    return Task(
        project=settings["name"],
        prompt_id=id,
        annotator=who,
        messages=rows.messages_from(sheet[0]["messages"]),
        completions=tuple(rows.messages_from(row["completion"]) for row in sheet),
        shown_order=rows.shuffled(settings["seed"], id, who, len(sheet)),
        token=f"{settings['name']}/{id}/{who}",
        guideline_version=settings["guideline_version"],
    )


def prompt(connection: sa.Connection, name: str, id: str) -> int:
    """The row number of a prompt."""
    row = connection.execute(q.PROMPT, {"project": name, "id": id}).mappings().first()
    if row is None:
        raise UsageError(f"project '{name}' has no prompt '{id}'")
    return int(row["pk"])


def record(connection: sa.Connection, task: Task, token: str | None, fields: dict[str, Any]) -> str:
    """Store one judgement of `task`; see `Store.submit` for what is refused."""
    lock(connection, task.project)
    place = {"project": task.project, "id": task.prompt_id, "who": task.annotator}
    row = connection.execute(q.DESK, place).mappings().first()
    if row is None:
        raise _unknown(connection, task)
    fields = {"id": task.token, "guideline_version": row["guideline_version"], **fields}
    who = Annotator(id=task.annotator, kind=row["kind"])
    said = rows.judged(row["num_completions"], who, fields)
    new = rows.submission_row(said, task.project, row["pk"], token or task.token)
    earlier = _earlier(connection, new, row["state"], is_own_token=token in (None, task.token))
    if earlier is not None:
        return earlier
    if row["state"] is None and said.status == "submitted" and not row["is_open"]:
        raise DataError(
            "this task is no longer yours: the lease ran out and others have taken its places",
            where=task.token,
            do="take the next task",
        )
    _settle(connection, row["overlap"], new, row["state"])
    return said.id


def bring_in(connection: sa.Connection, settings: Row, said: Ranking, now: str) -> bool:
    """Store a record made elsewhere; False if it is there already. Raises `DataError` on a contradiction."""
    name = settings["name"]
    digest = rows.content_key(said.prompt, said.completions)
    pk = connection.execute(q.PROMPT_BY_DIGEST, {"project": name, "digest": digest}).scalar()
    have = connection.execute(q.SUBMISSION, {"project": name, "id": said.id}).mappings().first()
    if have is not None:
        new = rows.submission_row(said, name, -1 if pk is None else int(pk), have["token"])
        different = [key for key in new if have[key] != new[key]]
        if different:
            raise DataError(
                "a record of this id is in the store with another content",
                where=f"record {said.id!r}",
                got="different " + ", ".join(different),
                do="import into another project, or give the record another id",
            )
        return False
    add_annotator(connection, said.annotator, None, now)
    if pk is None:
        item = Item(f"import-{digest[:16]}", said.prompt, said.completions)
        pk = add_prompt(connection, rows.prompt_row(name, item, settings["overlap"]), said.completions)
    state = connection.execute(q.ASSIGNMENT, {"at": pk, "who": said.annotator.id}).scalar()
    _settle(connection, settings["overlap"], rows.submission_row(said, name, int(pk), None), state)
    return True


def _unknown(connection: sa.Connection, task: Task) -> UsageError:
    project(connection, task.project)
    annotator(connection, task.annotator)
    return UsageError(f"project '{task.project}' has no prompt '{task.prompt_id}'")


def _earlier(
    connection: sa.Connection, new: dict[str, Any], state: str | None, is_own_token: bool
) -> str | None:
    """The id of an equal record sent before, if any. Raises `DataError` if what was sent before differs."""
    if state not in (None, "leased"):
        at = {"at": new["prompt"], "who": new["annotator"]}
        have = connection.execute(q.SUBMISSION_BY_PROMPT, at).mappings().one()
    elif is_own_token:
        return None
    else:
        sent = {"project": new["project"], "token": new["token"]}
        found = connection.execute(q.SUBMISSION_BY_TOKEN, sent).mappings().first()
        if found is None:
            return None
        have = found
    same = ("prompt", "annotator", "status", "ranking", "ratings", "correction")
    different = [key for key in same if have[key] != new[key]]
    if different:
        raise DataError(
            "this prompt was judged by this annotator before, and otherwise",
            where=new["id"],
            got="different " + ", ".join(different),
            do="a judgement is never overwritten",
        )
    return str(have["id"])


def _settle(connection: sa.Connection, overlap: int, new: dict[str, Any], state: str | None) -> None:
    """Insert a submission and square the assignment and the prompt's count with it."""
    connection.execute(q.NEW_SUBMISSION, new)
    pk, who, status = new["prompt"], new["annotator"], new["status"]
    if state is None:
        row = {"prompt": pk, "annotator": who, "project": new["project"], "state": status, "expires": 0.0}
        connection.execute(q.ASSIGN, row)
    elif state != "submitted":
        connection.execute(q.SETTLE, {"at": pk, "who": who, "status": status})
    by = (status == "submitted") - (state == "leased")
    if by and state != "submitted":
        take(connection, overlap, pk, by)
