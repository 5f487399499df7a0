"""Whose directory is it? A run claims an empty one, goes on with its own, and leaves all others alone."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bloomery import lineage
from bloomery.errors import ArtifactError
from bloomery.lineage import Lineage
from bloomery.recipe import Section, dump
from bloomery.train import checkpoint

Inputs = Mapping[str, Path | Sequence[Path] | None]


def identity(out: Path, stage: str, recipe: Section, inputs: Inputs) -> Lineage:
    """Who a run is before it has done anything: stage, settings, code, inputs, and who shaped those.

    Raises `ArtifactError` when an input is missing or damaged.
    """
    settings, code = lineage.resolved(recipe), lineage.code_version()
    paths = [
        (role if isinstance(value, Path) else f"{role}[{i}]", path)
        for role, value in inputs.items()
        if value is not None
        for i, path in enumerate([value] if isinstance(value, Path) else value)
    ]
    before = [one for _, path in paths if (one := lineage.of(path)) is not None]
    return Lineage(
        stage=stage,
        name=out.resolve().name,
        key=lineage.digest_json({"stage": stage, "recipe": settings, "code": code}),
        code=code,
        recipe_digest=lineage.digest_json(settings),
        seed=getattr(recipe, "seed", None),
        inputs=tuple(lineage.parent(role, path, out) for role, path in paths),
        people=lineage.union_people(one.people for one in before),
        teachers=lineage.union_teachers(one.teachers for one in before),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def lock(out: Path) -> int:
    """Make the directory if need be and hold it for this process; returns the handle to close.

    The system lets go of the lock when the process ends, however it ends.
    """
    if out.exists() and not out.is_dir():
        raise ArtifactError("the output directory is a file", where=out, do="choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    handle = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ArtifactError(
            "another process is working in this directory",
            where=out,
            do="wait for it, or choose another --out",
        ) from None
    except OSError:
        # Some network file systems have no locks; there, one process per directory is up to the user.
        pass
    return handle


def claim(out: Path, record: Lineage, recipe: Section, anew: bool, say: Callable[[str], None]) -> None:
    """Take the directory for the run `record`, or refuse with `ArtifactError`; write who we are into it.

    An unfinished run of the same stage, settings and inputs is ours. `anew`: it is forgotten.
    """
    if (out / lineage.MANIFEST).exists():
        raise ArtifactError(
            "this directory already holds a finished run",
            where=out,
            do="choose another --out, or delete the directory",
        )
    if (out / lineage.LINEAGE).exists():
        _same_run(out, lineage.read(out), record, say)
        checkpoint.clear_leftovers(out)
        if anew or not checkpoint.checkpoints(out):
            _empty(out)
    elif any(not path.name.startswith(".") for path in out.iterdir()):
        raise ArtifactError(
            "the output directory is not empty and holds no run of ours",
            where=out,
            got=", ".join(sorted(path.name for path in out.iterdir())[:5]),
            do="choose another --out",
        )
    lineage.write(out, record)
    lineage.write_text(out / "recipe.yaml", dump(recipe))


def _same_run(out: Path, old: Lineage, new: Lineage, say: Callable[[str], None]) -> None:
    def what(one: Lineage) -> dict[str, object]:
        inputs = {parent.role: parent.digest for parent in one.inputs}
        return {"stage": one.stage, "recipe": one.recipe_digest, "inputs": inputs}

    different = [name for name in what(old) if what(old)[name] != what(new)[name]]
    if different:
        raise ArtifactError(
            f"this directory holds an unfinished run of another {' and other '.join(different)}",
            where=out,
            do="choose another --out, or repeat the recipe.yaml that lies there",
        )
    if old.code != new.code:
        say("the code has changed since this run began: the result may differ from an unbroken run")


def discard(out: Path) -> None:
    """Forget what an unfinished run has done so far: everything in its directory but who it is.

    Raises `ArtifactError` when the run is finished or under way; does nothing when there is none.
    """
    if (out / lineage.MANIFEST).exists():
        raise ArtifactError("this run is finished", where=out, do="delete the directory yourself")
    if (out / lineage.LINEAGE).exists():
        handle = lock(out)
        try:
            _empty(out)
        finally:
            os.close(handle)


def _empty(out: Path) -> None:
    checkpoint.clear(out)
    for path in out.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != lineage.LINEAGE:
            path.unlink()
