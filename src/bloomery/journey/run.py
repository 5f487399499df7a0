"""Carry out the steps of a journey, or say what would be carried out.

    OUT/stages/<step>-<key>/    what each step made; never overwritten: other settings give another key
    OUT/<step>                  a link to the directory in use
    OUT/recipe.yaml             the resolved recipe; `bloomery run OUT/recipe.yaml` repeats the journey
    OUT/journey.json            steps, keys, seconds

A step's inputs are written as OUT/<step>/...; before it runs they are replaced by the directories behind
those links, so that what a stage records about its inputs stays true when a link moves on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from bloomery import __version__
from bloomery.errors import ArtifactError, UsageError
from bloomery.journey import cache
from bloomery.journey.steps import Plan, Step
from bloomery.lineage import write_json
from bloomery.recipe import Section, input_paths

RESULTS = ("results.json", "overoptimisation.json", "report.html")
"""Made at the end from all stages; nothing is lost with them, since a cached journey makes them again."""

Run = Callable[[Section, Path], None]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Row:
    """What a dry run says of one step. `key` is None while an input is still to be made."""

    step: Step
    key: str | None
    state: cache.State
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """One finished step: a line of journey.json. `seconds` is what making it took, whenever that was."""

    name: str
    stage: str
    key: str
    directory: str
    seconds: float
    cached: bool


def look(plan: Plan, out: Path, store: Path) -> list[Row]:
    """What `carry_out` would do, step by step. Writes nothing. Raises for inputs that do not exist."""
    out, store = _absolute(out), _absolute(store)
    made: dict[str, Path] = {}
    rows = []
    for step in plan.steps:
        waiting = {
            name
            for name, path in input_paths(step.recipe)
            if (s := _maker(plan, out, path)) and s not in made
        }
        recipe = fill(step.recipe, out, made)
        parts = cache.ingredients(step.stage, recipe, waiting)
        if waiting:
            makers = {_maker(plan, out, path) for name, path in input_paths(step.recipe) if name in waiting}
            last = next(other.name for other in reversed(plan.steps) if other.name in makers)
            known = [line for line in cache.why_not(store, step.name, parts, waiting) if line != "never made"]
            more = f" and {len(makers) - 1} more" if len(makers) > 1 else ""
            reasons = [f"waits for {last}{more}", *known]
            rows.append(Row(step, None, "to do", tuple(reasons)))
            continue
        directory = cache.directory(store, step.name, parts.key)
        state, problems = cache.state(directory)
        if state == "cached":
            made[step.name] = directory
        elif state == "to do":
            problems = cache.why_not(store, step.name, parts)
        elif state == "half done":
            can = cache.can_go_on(directory, look_only=True)
            problems = [f"was interrupted; {'goes on from its last checkpoint' if can else 'starts again'}"]
        rows.append(Row(step, parts.key, state, tuple(problems)))
    return rows


def carry_out(
    plan: Plan,
    out: Path,
    *,
    runs: Mapping[str, Run],
    recipe_text: str,
    store: Path,
    resume: Literal["auto", "never"] = "auto",
    say: Say = print,
) -> list[Done]:
    """Run every step that is not cached; returns one record per step.

    Raises `UsageError` when `out` holds something else, and whatever a stage raises; what is finished by
    then stays, and the same call goes on from there.
    """
    out, store = _absolute(out), _absolute(store)
    look(plan, out, store)  # a missing input file is found now rather than after an hour
    made: dict[str, Path] = {}
    done: list[Done] = []
    with _opened(out, recipe_text, resume, say):
        store.mkdir(parents=True, exist_ok=True)
        cache.unlink_all(out, store)  # OUT shows what these settings made, and nothing else
        for number, step in enumerate(plan.steps, 1):
            label = f"[{number}/{len(plan.steps)}] {step.name}"
            record = _one(step, fill(step.recipe, out, made), store, runs[step.stage], label, say)
            made[step.name] = Path(record.directory)
            for name in (step.name, *(alias for alias, of in plan.aliases.items() if of == step.name)):
                cache.link(out / name, made[step.name])
            done.append(replace(record, directory=os.path.relpath(record.directory, out)))
            _write_journal(out, done)
    return done


def fill(recipe: Section, out: Path, made: Mapping[str, Path]) -> Section:
    """The recipe with every input `OUT/<step>/...` replaced by the directory that step made."""
    tree = recipe.model_dump(mode="json")
    for key, path in input_paths(recipe):
        parts = _inside(path, out)
        if parts and parts[0] in made:
            cache.put(tree, key, str(made[parts[0]].joinpath(*parts[1:])))
    return type(recipe).model_validate(tree)


def _one(step: Step, recipe: Section, store: Path, run: Run, label: str, say: Say) -> Done:
    parts = cache.ingredients(step.stage, recipe)
    directory = cache.directory(store, step.name, parts.key)
    with cache.locked(directory, lambda: say(f"{label}: waiting for another process that makes the same")):
        state, problems = cache.state(directory)
        entry = cache.read_entry(directory) or cache.Entry(step.name, parts)
        if state == "damaged":
            aside = cache.set_aside(directory)
            say(f"{label}: the cached copy is damaged ({problems[0]}); moved to {aside}")
            entry = cache.Entry(step.name, parts)
        if state == "cached":
            say(f"{label}: cached ({entry.seconds:.0f} s when it was made)")
        else:
            goes_on = state == "half done" and cache.can_go_on(directory)
            say(f"{label}{': goes on' if goes_on else ''}")
            start = time.monotonic()
            try:
                run(recipe, directory)
            finally:
                entry.seconds += time.monotonic() - start
                if directory.is_dir():
                    cache.write_entry(directory, entry)
            after, problems = cache.state(directory)
            if after != "cached":
                raise ArtifactError(
                    f"the {step.stage} stage ended without a whole directory",
                    where=directory,
                    got="; ".join(problems) or after,
                )
    return Done(step.name, step.stage, parts.key, str(directory), round(entry.seconds, 3), state == "cached")


@contextmanager
def _opened(out: Path, recipe_text: str, resume: str, say: Say) -> Iterator[None]:
    """Make OUT ready and hold it, refusing a directory that holds something else or is in use."""
    recipe, journal = out / "recipe.yaml", out / "journey.json"
    if out.exists() and not out.is_dir():
        raise UsageError("the output directory is a file", where=out, do="choose another --out")
    if out.is_dir() and any(out.iterdir()):
        if not journal.exists():
            raise UsageError(
                "the output directory is not empty and holds no journey", where=out, do="choose another --out"
            )
        if resume == "never":
            raise UsageError(
                "the output directory holds a journey and --resume never was given",
                where=out,
                do="choose another --out, or leave --resume auto",
            )
    out.mkdir(parents=True, exist_ok=True)
    with cache.locked(journal, lambda: _refuse(out)):
        if recipe.exists() and recipe.read_text(encoding="utf-8") != recipe_text:
            say(f"{out} held a journey with other settings: its stages stay, its links and results give way")
            for name in RESULTS:
                (out / name).unlink(missing_ok=True)
        if not journal.exists():
            _write_journal(out, [])
        recipe.write_text(recipe_text, encoding="utf-8")
        yield


def _refuse(out: Path) -> None:
    raise UsageError(
        "another process runs a journey here", where=out, do="wait for it, or choose another --out"
    )


def _write_journal(out: Path, done: Sequence[Done]) -> None:
    write_json(
        out / "journey.json",
        {
            "bloomery": __version__,
            "steps": [asdict(record) for record in done],
            "seconds": round(sum(record.seconds for record in done), 3),
        },
    )


def read_journal(out: Path) -> list[Done]:
    """Raises `ArtifactError` when `out` holds no journey."""
    path = out / "journey.json"
    try:
        return [Done(**record) for record in json.loads(path.read_text(encoding="utf-8"))["steps"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError("this is not the directory of a journey", where=path, got=error) from None


def _maker(plan: Plan, out: Path, path: Path) -> str | None:
    """The step whose directory `path` lies in, if any."""
    parts = _inside(path, out)
    return parts[0] if parts and any(step.name == parts[0] for step in plan.steps) else None


def _inside(path: Path, out: Path) -> tuple[str, ...]:
    path = _absolute(path)
    return path.relative_to(out).parts if path.is_relative_to(out) else ()


def _absolute(path: Path) -> Path:
    # Not resolve(): the links of OUT are names here, not places.
    return Path(os.path.abspath(path))
