"""Where an artifact came from: digests, manifests, and the record every run directory carries.

An artifact is a file, or a directory sealed by a MANIFEST.json that lists the sha256 and size of every
file in it. `lineage.json` names its parents by path and digest, so the whole descent of a model can be
walked back to the raw data, the people who judged and the models that taught.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from bloomery.errors import ArtifactError
from bloomery.recipe import Section, input_keys
from bloomery.types import Annotator, Policy, Ranking, Record

MANIFEST = "MANIFEST.json"
LINEAGE = "lineage.json"
# What a run says about itself (dates, timings, paths). Two runs that made the same thing have the same
# digest, although these files differ.
RECORDS = frozenset({LINEAGE, "metrics.jsonl", "trainer_state.json", "README.md", "recipe.yaml"})
# Rooms above the stages cannot change what a stage computes.
_ABOVE_STAGES = frozenset({"journey", "label", "serve", "report", "chat", "chat.py", "cli", "cli.py"})

# ---------------------------------------------------------------------------------------------- digests


def digest_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 of a file's bytes. Raises `ArtifactError` when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError("cannot read this file", where=path, got=error.strerror or error) from None


def digest_json(value: object) -> str:
    """Digest of a JSON value; neither key order nor spacing matters. Raises ValueError on NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return digest_bytes(text.encode())


def digest_path(path: Path) -> str:
    """The digest of an artifact's content.

    A file: of its bytes. A directory: of the names and digests of its files, without a run's own records
    (`RECORDS`) and checkpoints. A sealed directory is verified on the way.

    Raises `ArtifactError` when there is nothing at `path`, or when it no longer matches its manifest.
    """
    if path.is_file():
        return digest_file(path)
    if not path.is_dir():
        raise ArtifactError("there is no such file or directory", where=path)
    if (path / MANIFEST).is_file():
        problems = verify(path)
        if problems:
            raise ArtifactError(
                "this directory no longer matches its manifest",
                where=path,
                got="; ".join(problems),
                do="make it again, or restore the files named",
            )
        files = {name: entry["sha256"] for name, entry in read_manifest(path).items()}
    else:
        files = {name: digest_file(path / name) for name in _files_in(path)}
    return digest_json({name: digest for name, digest in files.items() if name not in RECORDS})


@cache
def code_version() -> str:
    """Digest of the source that can change what a stage computes: floors 0 to 5, with their templates."""
    root = Path(__file__).parent
    files = {
        path.relative_to(root).as_posix(): digest_file(path)
        for path in sorted(root.rglob("*"))
        if path.suffix in (".py", ".jinja") and path.relative_to(root).parts[0] not in _ABOVE_STAGES
    }
    return digest_json(files)


def resolved(recipe: Section) -> dict[str, Any]:
    """The recipe as JSON with every input path replaced by the digest of what lies there."""
    tree: dict[str, Any] = recipe.model_dump(mode="json")
    for (*outer, last), path in input_keys(recipe):
        inner: Any = tree
        for key in outer:
            inner = inner[key]
        inner[last] = digest_path(path)
    return tree


def stage_key(stage: str, recipe: Section) -> str:
    """The cache key of a stage: its name, its settings, the content of its inputs, and the code."""
    return digest_json({"stage": stage, "recipe": resolved(recipe), "code": code_version()})


# --------------------------------------------------------------------------------------------- manifests


def write_manifest(directory: Path) -> None:
    """Seal a directory: sync every file, then write MANIFEST.json in one atomic step."""
    files: dict[str, dict[str, str | int]] = {}
    for name in _files_in(directory):
        path = directory / name
        if path.is_symlink():
            raise ArtifactError("a sealed directory holds files, not links", where=path)
        sync(path)
        files[name] = {"sha256": digest_file(path), "bytes": path.stat().st_size}
    write_text(directory / MANIFEST, _manifest_text(files))


def read_manifest(directory: Path) -> dict[str, dict[str, Any]]:
    """{relative path: {"sha256", "bytes"}}. Raises `ArtifactError` when it is missing or not canonical."""
    path = directory / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
        files = json.loads(text)["files"]
        if _manifest_text(files) != text:
            raise ValueError("not as it was written")
        return {str(name): {"sha256": e["sha256"], "bytes": e["bytes"]} for name, e in files.items()}
    except FileNotFoundError:
        raise ArtifactError("there is no manifest: this directory is not complete", where=path) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError("the manifest is damaged", where=path, got=error) from None


def verify(directory: Path) -> list[str]:
    """Every way a directory differs from its manifest, each naming the file; empty when it is intact."""
    try:
        manifest = read_manifest(directory)
    except ArtifactError as error:
        return [error.text().replace("\n", " ")]
    present = set(_files_in(directory))
    problems = [f"{name}: missing" for name in manifest if name not in present]
    problems += [f"{name}: not in the manifest" for name in sorted(present - set(manifest))]
    for name in sorted(present & set(manifest)):
        path, size = directory / name, manifest[name]["bytes"]
        if path.is_symlink():
            problems.append(f"{name}: is a link")
        elif path.stat().st_size != size:
            problems.append(f"{name}: {path.stat().st_size} bytes, expected {size}")
        elif digest_file(path) != manifest[name]["sha256"]:
            problems.append(f"{name}: content changed")
    return problems


def complete(directory: Path) -> bool:
    """True when a stage directory is sealed and intact."""
    return (directory / MANIFEST).is_file() and not verify(directory)


def _manifest_text(files: Mapping[str, Any]) -> str:
    """The manifest's own digest tells a damaged manifest from a damaged file."""
    return json.dumps({"files": files, "sha256": digest_json(files)}, indent=1, sort_keys=True) + "\n"


def _files_in(directory: Path) -> list[str]:
    """Relative paths of the files that belong to an artifact: no manifest, checkpoints or hidden files."""
    names = (
        path.relative_to(directory) for path in directory.rglob("*") if not path.is_dir() or path.is_symlink()
    )
    return sorted(
        name.as_posix()
        for name in names
        if name.as_posix() != MANIFEST
        and not name.parts[0].startswith("checkpoint-")
        and not any(part.startswith(".") for part in name.parts)
    )


# -------------------------------------------------------------------------------------- writing for keeps


def sync(path: Path) -> None:
    """Ask the disk to hold a file's bytes (or a directory's names) before we go on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: a hidden neighbour, synced, renamed over the name."""
    partial = path.with_name(f".{path.name}.tmp")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync(path.parent)


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


# ----------------------------------------------------------------------------------------------- lineage


class Parent(Record):
    """An input: what it was for, where it lay (relative to the run when beside it), and its digest."""

    role: str
    path: str
    digest: str


class Person(Annotator):
    """Somebody whose judgements shaped an artifact. `given` counts their rankings per source (the digest
    of the file of rankings), so that a union over parents counts no ranking twice."""

    rankings: int = Field(default=0, ge=0)
    given: dict[str, int] = Field(default_factory=dict)


class Lineage(Record):
    """What made an artifact. `people` and `teachers` include those of all its ancestors."""

    stage: str
    name: str
    key: str
    code: str
    recipe_digest: str
    seed: int | None
    inputs: tuple[Parent, ...] = ()
    data: tuple[dict[str, Any], ...] = ()
    people: tuple[Person, ...] = ()
    teachers: tuple[Policy, ...] = ()
    created_at: str


def count_people(rankings: Iterable[Ranking], source: str) -> tuple[Person, ...]:
    """The annotators of submitted rankings, with how many each gave; `source` is the file's digest."""
    counts: dict[tuple[str, str], int] = {}
    for one in rankings:
        if one.status == "submitted":
            who = (one.annotator.id, one.annotator.kind)
            counts[who] = counts.get(who, 0) + 1
    return tuple(
        Person.model_validate({"id": id, "kind": kind, "rankings": n, "given": {source: n}})
        for (id, kind), n in sorted(counts.items())
    )


def union_people(groups: Iterable[Iterable[Person]]) -> tuple[Person, ...]:
    """Everybody once, with their rankings of all sources; a source met twice counts once."""
    merged: dict[tuple[str, str], dict[str, int]] = {}
    for person in (person for group in groups for person in group):
        given = merged.setdefault((person.id, person.kind), {})
        for source, count in person.given.items():
            given[source] = max(count, given.get(source, 0))
    return tuple(
        Person.model_validate({"id": id, "kind": kind, "rankings": sum(given.values()), "given": given})
        for (id, kind), given in sorted(merged.items())
    )


def union_teachers(groups: Iterable[Iterable[Policy]]) -> tuple[Policy, ...]:
    found = {(one.id, one.digest or ""): one for group in groups for one in group}
    return tuple(found[key] for key in sorted(found))


def write(directory: Path, lineage: Lineage) -> None:
    write_json(directory / LINEAGE, lineage.model_dump(mode="json"))


def read(directory: Path) -> Lineage:
    """Raises `ArtifactError` when there is no lineage.json, or it is not one."""
    path = directory / LINEAGE
    try:
        return Lineage.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ArtifactError("cannot read the lineage", where=path, got=error.strerror or error) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"this is not a lineage: {place}: {first['msg']}", where=path) from None


def of(path: Path) -> Lineage | None:
    """The lineage of an artifact: of the directory, or of the run directory a file lies in; None if it
    was not made by a run."""
    directory = path if path.is_dir() else path.parent
    return read(directory) if (directory / LINEAGE).is_file() else None


def parent(role: str, path: Path, out: Path) -> Parent:
    """Describe an input of the run in `out`. Beside the run, the path is relative, so both can be moved."""
    real, home = path.resolve(), out.resolve().parent
    stored = os.path.relpath(real, out.resolve()) if real.is_relative_to(home) else str(real)
    return Parent(role=role, path=Path(stored).as_posix(), digest=digest_path(path))


@dataclass(frozen=True)
class Ancestor:
    """A node of the descent. `status`: "ok" (there, and its digest matches), "missing" or "changed";
    below the last two nothing is known. Shared ancestors are the same object."""

    role: str
    path: Path
    digest: str
    status: Literal["ok", "missing", "changed"]
    lineage: Lineage | None
    parents: tuple[Ancestor, ...]


def ancestry(path: Path) -> Ancestor:
    """Walk an artifact's parents back to the roots. Raises `ArtifactError` when nothing lies at `path`."""
    if not path.exists():
        raise ArtifactError("there is no such artifact", where=path)
    try:
        digest = digest_path(path)
    except ArtifactError:
        return Ancestor("", path, "", "changed", of(path), ())
    return _ancestor("", path.resolve(), digest, {})


def _ancestor(role: str, path: Path, digest: str, seen: dict[tuple[str, Path, str], Ancestor]) -> Ancestor:
    known = (role, path, digest)
    if known not in seen:
        status = _status(path, digest)
        lineage = of(path) if status == "ok" else None
        home = path if path.is_dir() else path.parent
        parents = tuple(
            _ancestor(one.role, (home / one.path).resolve(), one.digest, seen)
            for one in (lineage.inputs if lineage else ())
        )
        seen[known] = Ancestor(role, path, digest, status, lineage, parents)
    return seen[known]


def _status(path: Path, digest: str) -> Literal["ok", "missing", "changed"]:
    if not path.exists():
        return "missing"
    try:
        return "ok" if digest_path(path) == digest else "changed"
    except ArtifactError:
        return "changed"


def everyone(root: Ancestor) -> Iterator[Ancestor]:
    """Every artifact of a descent once, the root first."""
    waiting, seen = [root], set[tuple[Path, str]]()
    while waiting:
        node = waiting.pop(0)
        if (node.path, node.digest) not in seen:
            seen.add((node.path, node.digest))
            yield node
            waiting.extend(node.parents)


def own_people(
    people: Sequence[Person | Mapping[str, Any]], inherited: Sequence[Person], source: str, new: bool
) -> tuple[Person, ...]:
    """The people a stage names, each with what they gave per source.

    A plain {"id", "kind", "rankings"} has no sources. If the stage made the rankings (`new`), all are
    counted under `source`; if it read them, only what goes beyond the inherited ones is.
    """
    known = {(one.id, one.kind): one.rankings for one in inherited}
    found = []
    for entry in people:
        one = entry if isinstance(entry, Person) else Person.model_validate(dict(entry))
        if not one.given:
            count = one.rankings if new else max(0, one.rankings - known.get((one.id, one.kind), 0))
            one = one.model_copy(update={"rankings": count, "given": {source: count} if count else {}})
        found.append(one)
    return tuple(found)
