"""The first schema: projects, prompts, completions, annotators, assignments, submissions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "project",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("guideline_version", sa.Text),
        sa.Column("overlap", sa.Integer, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
    )
    op.create_table(
        "prompt",
        sa.Column("pk", sa.Integer, primary_key=True),
        sa.Column("project", sa.Text, sa.ForeignKey("project.name"), nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("messages", sa.Text, nullable=False),
        sa.Column("kind", sa.Text),
        sa.Column("gold", sa.Text),
        sa.Column("num_completions", sa.Integer, nullable=False),
        sa.Column("taken", sa.Integer, nullable=False),
        sa.Column("is_open", sa.Boolean, nullable=False),
        sa.UniqueConstraint("project", "id", name="prompt_id_once"),
    )
    op.create_index("prompt_by_digest", "prompt", ["project", "digest"])
    op.create_index("prompt_to_do", "prompt", ["project", "is_open", "pk"])
    op.create_table(
        "completion",
        sa.Column("prompt", sa.Integer, sa.ForeignKey("prompt.pk"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("messages", sa.Text, nullable=False),
        sa.Column("policy_id", sa.Text, nullable=False),
        sa.Column("policy_digest", sa.Text),
        sa.Column("sampling", sa.Text),
        sa.Column("logprob", sa.Text),
    )
    op.create_table(
        "annotator",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("display_name", sa.Text),
        sa.Column("created_at", sa.Text, nullable=False),
    )
    op.create_table(
        "assignment",
        sa.Column("prompt", sa.Integer, sa.ForeignKey("prompt.pk"), primary_key=True),
        sa.Column("annotator", sa.Text, sa.ForeignKey("annotator.id"), primary_key=True),
        sa.Column("project", sa.Text, sa.ForeignKey("project.name"), nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("expires", sa.Double, nullable=False),
    )
    op.create_index("assignment_by_state", "assignment", ["project", "state"])
    op.create_table(
        "submission",
        sa.Column("pk", sa.Integer, primary_key=True),
        sa.Column("project", sa.Text, sa.ForeignKey("project.name"), nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("prompt", sa.Integer, sa.ForeignKey("prompt.pk"), nullable=False),
        sa.Column("annotator", sa.Text, sa.ForeignKey("annotator.id"), nullable=False),
        sa.Column("token", sa.Text),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("ranking", sa.Text),
        sa.Column("ratings", sa.Text),
        sa.Column("correction", sa.Text),
        sa.Column("seconds", sa.Text),
        sa.Column("shown_order", sa.Text),
        sa.Column("prelabel_shown", sa.Boolean, nullable=False),
        sa.Column("guideline_version", sa.Text),
        sa.Column("comment", sa.Text),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.UniqueConstraint("project", "id", name="submission_id_once"),
        sa.UniqueConstraint("project", "token", name="submission_token_once"),
    )
    op.create_index("submission_by_prompt", "submission", ["prompt", "annotator"])
