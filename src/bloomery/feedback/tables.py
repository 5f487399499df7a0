"""The tables of the feedback store, and how a database is opened. Changes of schema go into `migrations/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
)

from bloomery.errors import ArtifactError, UsageError

metadata = sa.MetaData()


class Exact(sa.TypeDecorator[float]):
    """A float as its shortest decimal text: SQLite would turn -0.0 into 0.0."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else repr(float(value))

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> float | None:
        return None if value is None else float(value)


project = Table(
    "project",
    metadata,
    Column("name", Text, primary_key=True),
    Column("guideline_version", Text),
    Column("overlap", Integer, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("created_at", Text, nullable=False),
)

# `taken` counts submissions and leases; `is_open` says that one more annotator may have the prompt.
prompt = Table(
    "prompt",
    metadata,
    Column("pk", Integer, primary_key=True),
    Column("project", Text, ForeignKey("project.name"), nullable=False),
    Column("id", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("messages", Text, nullable=False),
    Column("kind", Text),
    Column("gold", Text),
    Column("num_completions", Integer, nullable=False),
    Column("taken", Integer, nullable=False),
    Column("is_open", Boolean, nullable=False),
    UniqueConstraint("project", "id", name="prompt_id_once"),
    Index("prompt_by_digest", "project", "digest"),
    Index("prompt_to_do", "project", "is_open", "pk"),
)

completion = Table(
    "completion",
    metadata,
    Column("prompt", Integer, ForeignKey("prompt.pk"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("messages", Text, nullable=False),
    Column("policy_id", Text, nullable=False),
    Column("policy_digest", Text),
    Column("sampling", Text),
    Column("logprob", Exact),
)

annotator = Table(
    "annotator",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("display_name", Text),
    Column("created_at", Text, nullable=False),
)

# One row for each prompt an annotator holds (state "leased") or has finished with (the status given).
assignment = Table(
    "assignment",
    metadata,
    Column("prompt", Integer, ForeignKey("prompt.pk"), primary_key=True),
    Column("annotator", Text, ForeignKey("annotator.id"), primary_key=True),
    Column("project", Text, ForeignKey("project.name"), nullable=False),
    Column("state", Text, nullable=False),
    Column("expires", Double, nullable=False),
    Index("assignment_by_state", "project", "state"),
)

submission = Table(
    "submission",
    metadata,
    Column("pk", Integer, primary_key=True),
    Column("project", Text, ForeignKey("project.name"), nullable=False),
    Column("id", Text, nullable=False),
    Column("prompt", Integer, ForeignKey("prompt.pk"), nullable=False),
    Column("annotator", Text, ForeignKey("annotator.id"), nullable=False),
    Column("token", Text),
    Column("status", Text, nullable=False),
    Column("ranking", Text),
    Column("ratings", Text),
    Column("correction", Text),
    Column("seconds", Exact),
    Column("shown_order", Text),
    Column("prelabel_shown", Boolean, nullable=False),
    Column("guideline_version", Text),
    Column("comment", Text),
    Column("created_at", Text, nullable=False),
    Column("margin", Exact),
    UniqueConstraint("project", "id", name="submission_id_once"),
    UniqueConstraint("project", "token", name="submission_token_once"),
    Index("submission_by_prompt", "prompt", "annotator"),
)


def connect(url_or_path: str | Path) -> sa.Engine:
    """An engine on a migrated database. A path, or a URL such as `postgresql+psycopg://user@host/name`.

    SQLite is opened as RELIABILITY asks: write-ahead log, synced commits, foreign keys, one connection,
    and `BEGIN IMMEDIATE`, because a deferred transaction that turns into a write hands out a task twice.
    Raises `UsageError` for a bad URL or missing folder, `ArtifactError` if the file is no store of ours.
    """
    text = str(url_or_path)
    if "://" not in text:
        if not Path(text).parent.is_dir():
            raise UsageError("there is no such folder for the store", got=text, do="create the folder first")
        text = f"sqlite:///{text}"
    try:
        url = sa.make_url(text)
        engine = _sqlite(url) if url.get_backend_name() == "sqlite" else sa.create_engine(url)
    except (sa.exc.ArgumentError, ImportError) as error:
        raise UsageError(
            "cannot use this database URL",
            got=text,
            expected="a path, or for example postgresql+psycopg://user@host/name",
            do=f"check the URL and that its driver is installed ({error})",
        ) from None
    try:
        with engine.begin() as connection:
            migrate(connection)
    except sa.exc.DBAPIError as error:
        engine.dispose()
        raise ArtifactError(
            "cannot open the feedback store",
            where=url.render_as_string(hide_password=True),
            got=error.orig,
            expected="a database made by this program, or an empty place to make one",
        ) from None
    return engine


def _sqlite(url: sa.URL) -> sa.Engine:
    engine = sa.create_engine(
        url,
        poolclass=sa.QueuePool,
        pool_size=1,
        max_overflow=0,
        pool_timeout=60,
        connect_args={"check_same_thread": False, "timeout": 30},
    )

    @sa.event.listens_for(engine, "connect")
    def settings(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def migrate(connection: sa.Connection) -> None:
    """Bring the database to the newest schema; a no-op (and no write) when it is there already.

    Raises `ArtifactError` when a newer version of the program wrote the database.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    script = ScriptDirectory.from_config(config)
    have, head = MigrationContext.configure(connection).get_current_revision(), script.get_current_head()
    if have == head:
        return
    if have is not None and have not in {revision.revision for revision in script.walk_revisions()}:
        raise ArtifactError(
            "the feedback store is newer than this program",
            got=f"schema {have}",
            expected=f"schema {head} or older",
            do="upgrade bloomery",
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
