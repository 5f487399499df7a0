"""From raw documents to the ones worth reading: quality rules, deduplication, source weights."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import Field

from bloomery.data.clean import Rules
from bloomery.data.clean import clean as drop_bad
from bloomery.data.convert import write
from bloomery.data.dedupe import dedupe
from bloomery.data.mix import mix
from bloomery.data.sources import OnBadRow, read_documents
from bloomery.recipe import InputPath, Section
from bloomery.stages.common import read_all
from bloomery.train.run import Run
from bloomery.types import Document


class Clean(Section):
    """Drop what is garbled or double, and weigh the sources; counts every document it drops."""

    documents: tuple[InputPath, ...]
    rules: Rules = Rules()
    threshold: float = Field(0.7, gt=0, le=1)
    """Documents that share at least this much of their word 3-grams are duplicates; the first one stays."""
    near: bool = True
    """Look for near duplicates too, not only for equal texts."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Times each source is taken; 1 unless named, 0 leaves it out."""
    on_bad_row: OnBadRow = "error"
    """Stop at a row that cannot be read, or skip and count it."""
    seed: int = 0


def run(recipe: Clean, out: Path) -> None:
    with Run(out, stage="clean", recipe=recipe) as run:
        documents = apart(read_all(read_documents, recipe.documents, recipe.on_bad_row, run.line), run.line)
        good, report = drop_bad(documents, recipe.rules)
        run.line(f"{len(documents) - len(good):,} of {len(documents):,} documents break a rule")
        single, found = dedupe(good, threshold=recipe.threshold, near=recipe.near)
        run.line(f"{found.num_exact:,} are copies and {found.num_near:,} near copies of others")
        known = {d.source for d in single}
        for source in sorted(recipe.weights.keys() - known):
            run.line(f"no document has source '{source}': its weight has no effect")
        mixed = mix(single, {s: w for s, w in recipe.weights.items() if s in known}, recipe.seed)
        write(mixed, out / "documents.jsonl", "document")
        stays = {d.id for d in single}
        for d in good:
            if d.id not in stays:
                cell = (d.source, d.quality or "unknown")
                report.counts[*cell, "kept"] -= 1
                report.counts[*cell, "duplicate"] += 1
        duplicates = {"exact": found.num_exact, "near": found.num_near}
        summary = {**report.to_json(), "duplicates": duplicates, "written": len(mixed)}
        (out / "report.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        run.line(f"kept {len(mixed):,} documents")
        run.finish(
            data=[
                {"source": source, "documents": n}
                for source, n in sorted(Counter(d.source for d in mixed).items())
            ]
        )


def apart(documents: Sequence[Document], say: Callable[[str], None]) -> list[Document]:
    """The documents with ids of their own: of several files' documents called `7`, the second becomes
    `7/2`. Says how many."""
    seen: set[str] = set()
    found: list[Document] = []
    for document in documents:
        name, number = document.id, 1
        while name in seen:
            number += 1
            name = f"{document.id}/{number}"
        seen.add(name)
        found.append(document if number == 1 else document.model_copy(update={"id": name}))
    renamed = sum(a.id != b.id for a, b in zip(documents, found, strict=True))
    if renamed:
        say(f"{renamed:,} documents have the id of another file's and get one of their own")
    return found
