"""The migrations from an empty database against the tables in code, and databases of other versions."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from bloomery.errors import ArtifactError
from bloomery.feedback.tables import connect, metadata


def test_the_migrations_make_the_tables_of_the_code(tmp_path: Path) -> None:
    engine = connect(tmp_path / "f.db")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_a_difference_would_be_seen(tmp_path: Path) -> None:
    engine = connect(tmp_path / "f.db")
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE prompt DROP COLUMN kind")
        assert compare_metadata(MigrationContext.configure(connection), metadata) != []
    engine.dispose()


def test_opening_again_writes_nothing(tmp_path: Path) -> None:
    connect(tmp_path / "f.db").dispose()
    before = (tmp_path / "f.db").read_bytes()
    connect(tmp_path / "f.db").dispose()
    assert (tmp_path / "f.db").read_bytes() == before


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    engine = connect(tmp_path / "f.db")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(ArtifactError, match="newer than this program"):
        connect(tmp_path / "f.db")
