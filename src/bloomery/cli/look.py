"""Commands that look and change nothing: lineage, verify, ls, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bloomery.cli.show import console, size, table
from bloomery.errors import ArtifactError, UsageError, nearest

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

    from bloomery.lineage import Ancestor

PANEL = "Looking"


def add_to(app: typer.Typer) -> None:
    for command in (lineage, verify, ls, doctor):
        app.command(rich_help_panel=PANEL)(command)


def lineage(
    path: Annotated[Path, typer.Argument(help="A model, a stage directory or a file in one.")],
) -> None:
    """Where an artifact came from: stages, data, people and models, back to the roots."""
    from rich.tree import Tree

    from bloomery.lineage import ancestry, of

    root = ancestry(path)
    tree = Tree(_node(root))
    _grow(tree, root, set())
    out = console()
    out.print(tree)
    record = of(path)
    if record is None:
        return
    if record.people:
        out.print(
            table(
                ("person", "kind", "rankings"),
                [(p.id, p.kind, p.rankings) for p in record.people],
                right=("rankings",),
            )
        )
    if record.teachers:
        rows = [(t.id, (t.digest or "")[:12]) for t in record.teachers]
        out.print(table(("taught by", "digest"), rows))


def _grow(tree: Tree, node: Ancestor, seen: set[tuple[str, str]]) -> None:
    for parent in node.parents:
        known = (str(parent.path), parent.digest)
        again = known in seen and bool(parent.parents)
        branch = tree.add(_node(parent, again))
        if not again:
            seen.add(known)
            _grow(branch, parent, seen)


def _node(node: Ancestor, again: bool = False) -> Text:
    from rich.text import Text

    text = Text()
    if node.role:
        text.append(f"{node.role}: ", "dim")
    text.append(_short(node.path), "bold")
    if node.lineage is not None and node.path.is_dir():
        text.append(f"  {node.lineage.stage}", "cyan")
    text.append(f"  {node.digest[:12]}", "dim")
    if node.status != "ok":
        text.append(f"  {node.status}", "bold red")
    if again:
        text.append("  (shown above)", "dim")
    return text


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def verify(
    path: Annotated[Path, typer.Argument(help="A stage directory, or the directory of a journey.")],
) -> None:
    """Check every file against its manifest, and every input against what the lineage says."""
    from bloomery.lineage import LINEAGE, MANIFEST, ancestry, everyone, read_manifest
    from bloomery.lineage import verify as problems_of

    if (path / "journey.json").is_file():
        from bloomery.journey.run import read_journal

        directories = [(path / record.directory).resolve() for record in read_journal(path)]
    elif path.is_dir():
        directories = [path]
    else:
        raise ArtifactError("there is no such directory", where=path)
    if not directories:
        raise ArtifactError("no stage of this journey is finished", where=path)
    bad: list[str] = []
    files = num_bytes = 0
    for directory in directories:
        found = problems_of(directory)
        bad += [f"{_short(directory)}/{line}" for line in found]
        if not found:
            entries = read_manifest(directory).values()
            files, num_bytes = files + len(entries), num_bytes + sum(e["bytes"] for e in entries)
        if (directory / LINEAGE).is_file() and (directory / MANIFEST).is_file():
            for node in list(everyone(ancestry(directory)))[1:]:
                if node.status == "changed":
                    bad.append(f"{_short(node.path)}: changed since {_short(directory)} was made from it")
                elif node.status == "missing":
                    typer.echo(
                        f"note: {_short(node.path)}, an input of {_short(directory)}, is not there", err=True
                    )
    if bad:
        raise ArtifactError(
            "not intact\n" + "\n".join(f"  {line}" for line in dict.fromkeys(bad)), where=path
        )
    what = f"{len(directories)} stage{'s' if len(directories) != 1 else ''}, {files} files, {size(num_bytes)}"
    typer.echo(f"{path}: intact ({what})")


def doctor() -> None:
    """What this machine has, how fast it is, and what to do about what is missing."""
    from rich.text import Text

    from bloomery.cli.health import examine

    marks = {True: Text("ok", "green"), False: Text("look", "bold yellow")}
    rows = [(marks[c.good], c.name, c.found, c.advice) for c in examine()]
    console().print(table(("", "what", "found", "what to do"), rows))


def ls(
    what: Annotated[
        str, typer.Argument(help="stages, recipes, models, losses, rewards or tasks.")
    ] = "stages",
    name: Annotated[str | None, typer.Argument(help="With stages: the settings of this stage.")] = None,
) -> None:
    """List what there is to choose from; `bloomery ls stages sft` lists the settings of a stage."""
    from bloomery.cli import catalogue

    if what not in catalogue.LISTS:
        raise UsageError(
            f"nothing called '{what}' to list{nearest(what, catalogue.LISTS)}",
            expected=", ".join(catalogue.LISTS),
        )
    if name is not None:
        if what != "stages":
            raise UsageError("only stages have settings to list", got=f"ls {what} {name}")
        console().print(catalogue.settings(name))
        return
    console().print(catalogue.LISTS[what]())
