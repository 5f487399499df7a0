"""Whom a stage's data came from, for its lineage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bloomery import lineage
from bloomery.types import Candidate, Conversation, Policy, Ranking


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


def writers(shown: Iterable[tuple[Path, Sequence[Conversation]]]) -> list[dict[str, object]]:
    """Who wrote the demonstrations of some files, as people: a file does not say of what kind they are. One
    that a run made has its people in that run's lineage, so they are not named again."""
    brought = [c.author for path, several in shown if lineage.of(path) is None for c in several]
    return [{"id": who, "kind": "human"} for who in sorted({who for who in brought if who})]
