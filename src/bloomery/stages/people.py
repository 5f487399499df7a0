"""Whom a stage's data came from, for its lineage."""

from __future__ import annotations

from collections.abc import Iterable

from bloomery.types import Candidate, Policy, Ranking


def authors(candidates: Iterable[Candidate]) -> list[Policy]:
    """Who wrote the answers, each once."""
    found = {(c.policy.id, c.policy.digest): c.policy for c in candidates}
    return [found[key] for key in sorted(found, key=str)]


def count_people(rankings: Iterable[Ranking]) -> list[dict[str, object]]:
    """The annotators, and how many rankings each gave."""
    counts: dict[tuple[str, str], int] = {}
    for r in rankings:
        counts[r.annotator.id, r.annotator.kind] = counts.get((r.annotator.id, r.annotator.kind), 0) + 1
    return [{"id": who, "kind": kind, "rankings": n} for (who, kind), n in sorted(counts.items())]
