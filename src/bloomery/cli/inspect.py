"""What `bloomery data inspect` says of a file or a directory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bloomery.chat import visible
from bloomery.cli.show import size, table
from bloomery.errors import ArtifactError, DataError, UsageError, clip
from bloomery.types import Conversation, Document, Judgement, Prompt, Ranking, Solution

if TYPE_CHECKING:
    from rich.console import RenderableType


def describe(path: Path, on_bad_row: Literal["error", "skip"] = "error") -> Iterator[RenderableType]:
    """Something to print for each thing worth knowing. Raises what the readers raise, and `UsageError` for a
    directory that holds no data."""
    if (path / "world.json").is_file():
        yield from _world(path)
    elif (path / "index.json").is_file():
        yield from _corpus(path)
    elif path.is_dir():
        raise UsageError(
            "this directory holds no world and no tokenised text", where=path, do="name a data file"
        )
    elif not path.exists():
        raise ArtifactError("there is no such file", where=path)
    else:
        yield from _file(path, on_bad_row)


def _file(path: Path, on_bad_row: Literal["error", "skip"]) -> Iterator[RenderableType]:
    from bloomery.data.sources import read

    skipped: list[DataError] = []
    records = list(read(path, on_bad_row=on_bad_row, skipped=skipped))
    kind = type(records[0]).__name__.lower()
    yield f"{path}: {len(records):,} {kind}s, {size(path.stat().st_size)} on disk"
    if skipped:
        yield f"  {len(skipped):,} bad rows skipped; the first: {visible(str(skipped[0]))}"
    groups: dict[str, list[int]] = {}
    for record in records:
        for name, length in _measures(record):
            groups.setdefault(name, []).append(length)
    rows = [(name, f"{len(found):,}", *_spread(found)) for name, found in sorted(groups.items())]
    yield table(
        ("", "count", "shortest", "median", "longest", "characters"),
        rows,
        right=("count", "shortest", "median", "longest", "characters"),
    )
    yield from _kinds(records)
    yield from (f"  {line}" for line in _example(records[0]))


def _measures(record: object) -> Iterator[tuple[str, int]]:
    """(group, characters) of the texts of a record."""
    if isinstance(record, Document):
        yield f"source {record.source}" + (f", {record.quality}" if record.quality else ""), len(record.text)
    elif isinstance(record, Conversation | Prompt):
        for message in record.messages:
            yield f"{message.role}" + (" (context only)" if message.weight == 0 else ""), len(message.content)
    elif isinstance(record, Ranking):
        for message in record.prompt:
            yield f"prompt: {message.role}", len(message.content)
        for completion in record.completions:
            yield "completions", len(completion.text)
    elif isinstance(record, Judgement):
        for message in record.prompt:
            yield f"prompt: {message.role}", len(message.content)
        yield f"{record.verdict} answers", sum(len(message.content) for message in record.completion)
    elif isinstance(record, Solution):
        for message in record.prompt:
            yield f"prompt: {message.role}", len(message.content)
        for step in record.completions:
            yield "steps", len(step)


def _kinds(records: Sequence[object]) -> Iterator[RenderableType]:
    counts: dict[str, Counter[str]] = {}
    for record in records:
        if isinstance(record, Ranking):
            counts.setdefault("answers ranked together", Counter())[str(len(record.completions))] += 1
            counts.setdefault("annotators", Counter())[record.annotator.kind] += 1
            counts.setdefault("status", Counter())[record.status] += 1
        elif isinstance(record, Solution):
            counts.setdefault("steps", Counter()).update("right" if k else "wrong" for k in record.labels)
        elif isinstance(record, Prompt) and record.kind:
            counts.setdefault("kinds", Counter())[record.kind] += 1
        elif isinstance(record, Conversation) and record.author:
            counts.setdefault("authors", Counter())[record.author] += 1
    for name, found in counts.items():
        yield f"  {name}: " + ", ".join(f"{key} {count:,}" for key, count in found.most_common(12))


def _spread(lengths: list[int]) -> tuple[str, str, str, str]:
    ordered = sorted(lengths)
    return (
        f"{ordered[0]:,}",
        f"{ordered[len(ordered) // 2]:,}",
        f"{ordered[-1]:,}",
        f"{sum(ordered):,}",
    )


def _example(record: object) -> Iterator[str]:
    if isinstance(record, Document):
        yield f"the first: {clip(visible(record.text), 200)}"
    elif isinstance(record, Conversation | Prompt):
        for message in record.messages[:4]:
            yield f"{message.role}: {clip(visible(message.content), 200)}"
    elif isinstance(record, Ranking):
        yield f"{record.prompt[-1].role}: {clip(visible(record.prompt[-1].content), 200)}"
        for rank, completion in sorted(
            zip(record.ranking or (), record.completions, strict=False), key=lambda p: p[0]
        ):
            yield f"  {rank}. {clip(visible(completion.text), 160)}"
    elif isinstance(record, Judgement):
        yield f"{record.prompt[-1].role}: {clip(visible(record.prompt[-1].content), 200)}"
        yield f"  {record.verdict}: {clip(visible(record.completion[-1].content), 160)}"
    elif isinstance(record, Solution):
        yield f"{record.prompt[-1].role}: {clip(visible(record.prompt[-1].content), 200)}"
        for right, step in zip(record.labels, record.completions, strict=True):
            yield f"  {'right' if right else 'wrong'}: {clip(visible(step), 160)}"


def _world(path: Path) -> Iterator[RenderableType]:
    from bloomery.world import read_world

    world = read_world(path)
    yield f"{path}: the embedded world"
    yield table(("", ""), list(_leaves(world.describe())))
    for name in ("documents.jsonl", "demonstrations.jsonl", "prompts.jsonl"):
        if (path / name).is_file():
            yield from _file(path / name, "error")
    yield from _questions(path / "questions.jsonl")


def _questions(path: Path) -> Iterator[RenderableType]:
    if not path.is_file():
        return
    counts: Counter[tuple[str, str]] = Counter()
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line:
            row = json.loads(line)
            kind = f"{row['kind']} ({row['exposure']})" if row.get("exposure") else row["kind"]
            counts[kind, row["split"]] += 1
    splits = sorted({split for _, split in counts})
    rows = [
        (kind, *(f"{counts[kind, s]:,}" for s in splits)) for kind in sorted({kind for kind, _ in counts})
    ]
    yield f"{path}: {sum(counts.values()):,} questions"
    yield table(("kind", *splits), rows, right=splits)


def _leaves(tree: dict[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield f"{prefix}{key}", ", ".join(f"{name} {count}" for name, count in value.items())
        else:
            yield f"{prefix}{key}", str(value)


def _corpus(path: Path) -> Iterator[RenderableType]:
    from bloomery.data.shards import Corpus

    corpus = Corpus.open(path)
    rows = [
        (split, shard.source, f"{shard.num_documents:,}", f"{shard.num_tokens:,}")
        for split in ("train", "val")
        for shard in corpus.split(split)
    ]
    yield f"{path}: {corpus.num_tokens:,} tokens of text"
    yield table(("split", "source", "documents", "tokens"), rows, right=("documents", "tokens"))
