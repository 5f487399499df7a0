"""The store of judgements. People, simulated annotators and AI annotators use exactly this:

store = Store("feedback.db")
store.create_project("round-1", guideline_version="3h-1", overlap=3)
store.add_prompts("round-1", [Item("q1", messages, candidates)])
store.add_annotator("ada", "human")
while task := store.next_task("round-1", "ada"):
    store.submit(task, ranking=[1, 3, 1])
rankings = list(store.rankings("round-1"))
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import sqlalchemy as sa

from bloomery.errors import BloomeryError, DataError, UsageError
from bloomery.feedback import ledger, rows
from bloomery.feedback import queries as q
from bloomery.feedback.rows import Item, Task
from bloomery.feedback.tables import connect
from bloomery.types import Annotator, AnnotatorKind, Ranking, Rating

__all__ = ["Busy", "Imported", "Item", "Stats", "Store", "Task"]

STATUSES = ("submitted", "skipped", "flagged")


class Busy(BloomeryError):
    """The database is held by another writer for longer than we wait. Nothing was written; try again."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What `import_rankings` did: records new to the store, and records it already held, equal in content."""

    new: int
    already: int


@dataclass(frozen=True, slots=True)
class Stats:
    """Where a project stands. `num_complete` prompts have all the annotators they should have;
    `annotators` maps an id to its counts of submitted, skipped and flagged."""

    num_prompts: int
    num_gold: int
    num_complete: int
    num_leased: int
    num_submitted: int
    num_skipped: int
    num_flagged: int
    annotators: dict[str, dict[str, int]]


class Store:
    """A SQLite file (or, by URL, PostgreSQL) of prompts and what annotators said of them. Thread-safe.

    `clock` returns seconds since 1970; give a fixed one and every byte written is reproducible.
    Errors: `UsageError` for an unknown project, prompt or annotator, `DataError` for a judgement that cannot
    stand, `Busy` when the database stays locked, `ArtifactError` when the file is not a store.
    """

    def __init__(self, url_or_path: str | Path, *, clock: Callable[[], float] = time.time) -> None:
        self._engine = connect(url_or_path)
        self._clock = clock
        self._local = threading.local()
        # Where each annotator's first open prompt was: saves a scan, never decides anything.
        self._hints: dict[tuple[str, str], int] = {}

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def batch(self) -> Iterator[None]:
        """One transaction and one commit for all this thread does inside; an exception undoes it all."""
        with self._writing():
            yield

    # -- setting up ---------------------------------------------------------------------------------------

    def create_project(
        self, name: str, guideline_version: str | None = None, overlap: int = 1, seed: int = 0
    ) -> None:
        """`overlap` annotators rank each prompt. Asking again for an equal project does nothing."""
        rows.checked_name(name, "a project")
        if overlap < 1:
            raise UsageError("overlap is the number of annotators per prompt", got=overlap, expected=">= 1")
        new = {"name": name, "guideline_version": guideline_version, "overlap": overlap, "seed": seed}
        with self._writing() as connection:
            have = connection.execute(q.PROJECT, {"project": name}).mappings().first()
            if have is None:
                connection.execute(q.NEW_PROJECT, {**new, "created_at": self._now()})
            elif any(have[key] != value for key, value in new.items()):
                old = {key: have[key] for key in new}
                raise UsageError(f"project '{name}' is there with other settings", got=new, expected=old)

    def add_prompts(self, project: str, items: Iterable[Item]) -> int:
        """Add prompts with their candidates; returns how many were new. An equal item is not added twice.

        Raises `DataError` when an id is there with another content, or an item cannot be ranked.
        """
        new = 0
        with self._writing() as connection:
            ledger.lock(connection, project)
            settings = ledger.project(connection, project)
            for item in items:
                row = rows.prompt_row(project, item, settings["overlap"])
                have = connection.execute(q.PROMPT, {"project": project, "id": item.id}).mappings().first()
                if have is None:
                    ledger.add_prompt(connection, row, item.candidates)
                    new += 1
                elif any(have[key] != row[key] for key in ("digest", "kind", "gold")):
                    raise DataError(
                        f"prompt '{item.id}' is in project '{project}' with another content",
                        do="give it another id",
                    )
        return new

    def add_annotator(self, id: str, kind: AnnotatorKind, display_name: str | None = None) -> None:
        """Make an annotator known; doing it again with the same kind does nothing."""
        rows.checked_name(id, "an annotator")
        with self._writing() as connection:
            ledger.add_annotator(connection, Annotator(id=id, kind=kind), display_name, self._now())

    # -- working ------------------------------------------------------------------------------------------

    def next_task(self, project: str, annotator: str, lease_seconds: float = 3600.0) -> Task | None:
        """The task the annotator holds, or else a new one, or None when there is nothing left for them.

        A task is held for `lease_seconds`; after that another annotator may get it. Among the first prompts
        still to do the choice is random (seeded), so that annotators meet in all combinations.
        """
        with self._writing() as connection:
            ledger.lock(connection, project)
            settings = ledger.project(connection, project)
            ledger.annotator(connection, annotator)
            now = self._clock()
            pk = ledger.free_stale_leases(connection, settings, annotator, now)
            if pk is not None:
                connection.execute(q.RENEW, {"at": pk, "who": annotator, "until": now + lease_seconds})
            else:
                hint = self._hints.get((project, annotator), 0)
                found = ledger.choose(connection, settings, annotator, hint)
                if found is None:
                    return None
                pk, self._hints[project, annotator] = found
                ledger.lease(connection, settings, annotator, pk, now + lease_seconds)
            return ledger.task(connection, settings, annotator, pk)

    def task(self, project: str, prompt_id: str, annotator: str) -> Task:
        """The task of one annotator and one prompt as it was (or would be) handed out; takes no lease."""
        with self._reading() as connection:
            settings = ledger.project(connection, project)
            ledger.annotator(connection, annotator)
            return ledger.task(connection, settings, annotator, ledger.prompt(connection, project, prompt_id))

    def submit(
        self,
        task: Task,
        ranking: Sequence[int],
        ratings: Sequence[Rating | None] | None = None,
        correction: str | None = None,
        *,
        seconds: float | None = None,
        shown_order: Sequence[int] | None = None,
        prelabel_shown: bool = False,
        comment: str | None = None,
        token: str | None = None,
        created_at: str | None = None,
    ) -> str:
        """Store a judgement of `task` (ranks and ratings in stored order) and return its id.

        The same judgement sent again (a double click, a retry) returns the same id and stores nothing.
        Raises `DataError` if it is not a judgement of K answers, if the annotator judged this prompt
        otherwise before, or if the lease ran out and others have taken the prompt's places.
        """
        return self._record(
            task,
            token,
            status="submitted",
            ranking=tuple(ranking),
            ratings=None if ratings is None else tuple(ratings),
            correction=correction,
            seconds=seconds,
            shown_order=task.shown_order if shown_order is None else tuple(shown_order),
            prelabel_shown=prelabel_shown,
            comment=comment,
            created_at=created_at or self._now(),
        )

    def skip(self, task: Task, comment: str | None = None, *, seconds: float | None = None) -> str:
        """The annotator passes; somebody else gets the prompt. Returns the record's id."""
        return self._set_aside(task, "skipped", comment, seconds)

    def flag(self, task: Task, comment: str | None = None, *, seconds: float | None = None) -> str:
        """The annotator says that something is wrong with the prompt. Returns the record's id."""
        return self._set_aside(task, "flagged", comment, seconds)

    # -- reading ------------------------------------------------------------------------------------------

    def projects(self) -> list[str]:
        with self._reading() as connection:
            return list(connection.execute(q.PROJECTS).scalars())

    def annotators(self) -> list[Annotator]:
        with self._reading() as connection:
            found = connection.execute(q.ANNOTATORS).mappings().all()
        return [Annotator(id=row["id"], kind=row["kind"]) for row in found]

    def prompts(self, project: str) -> Iterator[Item]:
        """Every prompt with its candidates, in the order added."""
        yield from (item for _, item in self._items(project))

    def gold(self, project: str) -> dict[str, tuple[int, ...]]:
        """The gold rankings by `rows.content_key`, as `reliability.report` takes them."""
        return {
            rows.content_key(item.messages, item.candidates): item.gold
            for item in self.prompts(project)
            if item.gold is not None
        }

    def rankings(self, project: str) -> Iterator[Ranking]:
        """Every record of the project, skipped and flagged ones too, in the order stored."""
        items = dict(self._items(project))
        people = {annotator.id: annotator for annotator in self.annotators()}
        after = 0
        while page := self._page(q.SUBMISSIONS, project, after):
            for row in page:
                item = items.get(row["prompt"])
                if item is None or row["annotator"] not in people:
                    return  # written after we began
                yield rows.ranking_from(row, people[row["annotator"]], item.messages, item.candidates)
            after = page[-1]["pk"]

    def import_rankings(self, project: str, rankings: Iterable[Ranking]) -> Imported:
        """Store records made elsewhere; `rankings(project)` gives them back equal and in order.

        Prompts are recognised by content. All or nothing: raises `DataError` if an id is there with another
        content, or an annotator with another kind.
        """
        new = already = 0
        with self._writing() as connection:
            ledger.lock(connection, project)
            settings = ledger.project(connection, project)
            for ranking in rankings:
                if ledger.bring_in(connection, settings, ranking, self._now()):
                    new += 1
                else:
                    already += 1
        return Imported(new, already)

    def stats(self, project: str) -> Stats:
        with self._reading() as connection:
            settings = ledger.project(connection, project)
            prompts = connection.execute(q.PROMPT_COUNTS, {"project": project}).mappings().one()
            full = {"project": project, "overlap": settings["overlap"]}
            num_complete = connection.execute(q.NUM_COMPLETE, full).scalar_one()
            num_leased = len(connection.execute(q.LEASES, {"project": project}).all())
            counts = connection.execute(q.STATUS_COUNTS, {"project": project}).mappings().all()
        annotators: dict[str, dict[str, int]] = {}
        for row in counts:
            one = annotators.setdefault(row["annotator"], dict.fromkeys(STATUSES, 0))
            one[row["status"]] += row["count"]
        total = {status: sum(one[status] for one in annotators.values()) for status in STATUSES}
        return Stats(
            num_prompts=prompts["num_prompts"],
            num_gold=prompts["num_gold"],
            num_complete=num_complete,
            num_leased=num_leased,
            num_submitted=total["submitted"],
            num_skipped=total["skipped"],
            num_flagged=total["flagged"],
            annotators=annotators,
        )

    def backup(self, path: str | Path) -> None:
        """A consistent copy of a SQLite store while it is in use. Raises `UsageError` if `path` exists."""
        if self._engine.dialect.name != "sqlite":
            raise UsageError("backup copies SQLite stores", do="use pg_dump for PostgreSQL")
        if Path(path).exists():
            raise UsageError("there is a file already", where=path, do="choose another name for the backup")
        connection = self._engine.raw_connection()
        try:
            connection.cursor().execute("VACUUM INTO ?", (str(path),))
        finally:
            connection.close()

    # -- inside -------------------------------------------------------------------------------------------

    def _record(self, task: Task, token: str | None, **fields: Any) -> str:
        with self._writing() as connection:
            return ledger.record(connection, task, token, fields)

    def _set_aside(
        self, task: Task, status: Literal["skipped", "flagged"], comment: str | None, seconds: float | None
    ) -> str:
        fields = {"comment": comment, "seconds": seconds, "shown_order": task.shown_order}
        return self._record(task, None, status=status, ranking=None, created_at=self._now(), **fields)

    def _page(self, query: sa.Select[Any], project: str, after: int) -> Sequence[sa.RowMapping]:
        with self._reading() as connection:
            return connection.execute(query, {"project": project, "after": after}).mappings().all()

    def _items(self, project: str) -> Iterator[tuple[int, Item]]:
        after = 0
        with self._reading() as connection:
            ledger.project(connection, project)
        while True:
            with self._reading() as connection:
                page = ledger.items(connection, project, after)
            if not page:
                return
            yield from page
            after = page[-1][0]

    def _now(self) -> str:
        now = datetime.fromtimestamp(self._clock(), UTC)
        return now.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        held: sa.Connection | None = getattr(self._local, "connection", None)
        if held is not None:
            yield held
            return
        with _explained(), self._engine.begin() as connection:
            self._local.connection = connection
            try:
                yield connection
            finally:
                self._local.connection = None

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        held: sa.Connection | None = getattr(self._local, "connection", None)
        if held is not None:
            yield held
            return
        with _explained(), self._engine.connect() as connection:
            connection = connection.execution_options(reading=True)
            with connection.begin():
                yield connection


@contextmanager
def _explained() -> Iterator[None]:
    """The database's errors as ours."""
    try:
        yield
    except (sa.exc.OperationalError, sa.exc.TimeoutError) as error:
        if isinstance(error, sa.exc.OperationalError) and "locked" not in str(error.orig):
            raise
        raise Busy("the feedback store is busy", got=error, do="try again in a moment") from None
    except (sa.exc.DataError, sa.exc.IntegrityError) as error:
        raise DataError("the database refuses this record; nothing was written", got=error.orig) from None
