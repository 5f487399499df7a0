"""Run by alembic: applies the migrations on the connection that `tables.migrate` hands over."""

from __future__ import annotations

from alembic import context

from bloomery.feedback.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
