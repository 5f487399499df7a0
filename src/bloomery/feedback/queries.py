"""Every statement the store runs, built once. Parameters are named; `pk` is a prompt's row number."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import bindparam as p

from bloomery.feedback.tables import annotator, assignment, completion, project, prompt, submission

WINDOW = 16
PAGE = 1000

PROJECT = sa.select(project).where(project.c.name == p("project"))
LOCK = sa.select(project.c.name).where(project.c.name == p("project")).with_for_update()
PROJECTS = sa.select(project.c.name).order_by(project.c.name)
NEW_PROJECT = sa.insert(project)

ANNOTATOR = sa.select(annotator.c.id, annotator.c.kind).where(annotator.c.id == p("who"))
ANNOTATORS = sa.select(annotator.c.id, annotator.c.kind)
NEW_ANNOTATOR = sa.insert(annotator)

PROMPT = sa.select(prompt).where(prompt.c.project == p("project"), prompt.c.id == p("id"))
PROMPT_BY_DIGEST = (
    sa.select(prompt.c.pk)
    .where(prompt.c.project == p("project"), prompt.c.digest == p("digest"))
    .order_by(prompt.c.pk)
    .limit(1)
)
PROMPTS = (
    sa.select(prompt)
    .where(prompt.c.project == p("project"), prompt.c.pk > p("after"))
    .order_by(prompt.c.pk)
    .limit(PAGE)
)
NEW_PROMPT = sa.insert(prompt)
NEW_COMPLETIONS = sa.insert(completion)
SHEET = (
    sa.select(prompt.c.id, prompt.c.messages, completion.c.messages.label("completion"))
    .join(completion, completion.c.prompt == prompt.c.pk)
    .where(prompt.c.pk == p("pk"))
    .order_by(completion.c.number)
)
COMPLETIONS_OF_PAGE = (
    sa.select(completion)
    .where(
        completion.c.prompt >= p("first"),
        completion.c.prompt <= p("last"),
        completion.c.prompt.in_(sa.select(prompt.c.pk).where(prompt.c.project == p("project"))),
    )
    .order_by(completion.c.prompt, completion.c.number)
)

# `by` is +1 when somebody takes the prompt and -1 when they let go of it; a gold prompt is never full.
TAKE = (
    sa.update(prompt)
    .where(prompt.c.pk == p("at"))
    .values(
        taken=prompt.c.taken + p("by"),
        is_open=sa.or_(prompt.c.gold.is_not(None), prompt.c.taken + p("by") < p("overlap")),
    )
)
TO_DO = (
    sa.select(prompt.c.pk)
    .where(
        prompt.c.project == p("project"),
        prompt.c.is_open == sa.true(),
        prompt.c.pk >= p("start"),
        ~sa.exists().where(assignment.c.prompt == prompt.c.pk, assignment.c.annotator == p("who")),
    )
    .order_by(prompt.c.pk)
    .limit(WINDOW)
)

LEASES = sa.select(assignment.c.prompt, assignment.c.annotator, assignment.c.expires).where(
    assignment.c.project == p("project"), assignment.c.state == "leased"
)
_HELD = sa.and_(assignment.c.prompt == p("at"), assignment.c.annotator == p("who"))
ASSIGNMENT = sa.select(assignment.c.state).where(_HELD)
ASSIGN = sa.insert(assignment)
RENEW = sa.update(assignment).where(_HELD).values(expires=p("until"))
SETTLE = sa.update(assignment).where(_HELD).values(state=p("status"))
DROP_LEASE = sa.delete(assignment).where(_HELD)

# One row saying all that decides about a submission of an annotator for a prompt.
DESK = (
    sa.select(
        prompt.c.pk,
        prompt.c.num_completions,
        prompt.c.is_open,
        project.c.overlap,
        project.c.guideline_version,
        annotator.c.kind,
        assignment.c.state,
    )
    .join(project, project.c.name == prompt.c.project)
    .join(annotator, annotator.c.id == p("who"))
    .outerjoin(
        assignment, sa.and_(assignment.c.prompt == prompt.c.pk, assignment.c.annotator == annotator.c.id)
    )
    .where(prompt.c.project == p("project"), prompt.c.id == p("id"))
)

NEW_SUBMISSION = sa.insert(submission)
SUBMISSION = sa.select(submission).where(submission.c.project == p("project"), submission.c.id == p("id"))
SUBMISSION_BY_TOKEN = sa.select(submission).where(
    submission.c.project == p("project"), submission.c.token == p("token")
)
SUBMISSION_BY_PROMPT = (
    sa.select(submission)
    .where(submission.c.prompt == p("at"), submission.c.annotator == p("who"))
    .order_by(submission.c.pk.desc())
    .limit(1)
)
SUBMISSIONS = (
    sa.select(submission)
    .where(submission.c.project == p("project"), submission.c.pk > p("after"))
    .order_by(submission.c.pk)
    .limit(PAGE)
)

PROMPT_COUNTS = (
    sa.select(
        sa.func.count().label("num_prompts"),
        sa.func.count(prompt.c.gold).label("num_gold"),
    )
    .select_from(prompt)
    .where(prompt.c.project == p("project"))
)
_SUBMITTED = (
    sa.select(assignment.c.prompt)
    .where(assignment.c.project == p("project"), assignment.c.state == "submitted")
    .group_by(assignment.c.prompt)
    .having(sa.func.count() >= p("overlap"))
)
NUM_COMPLETE = sa.select(sa.func.count()).select_from(_SUBMITTED.subquery())
STATUS_COUNTS = (
    sa.select(submission.c.annotator, submission.c.status, sa.func.count().label("count"))
    .where(submission.c.project == p("project"))
    .group_by(submission.c.annotator, submission.c.status)
    .order_by(submission.c.annotator)
)
