"""The feedback store from the command line: import, export, stats; and the simulated annotators."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bloomery.cli import stages
from bloomery.cli.show import console, table
from bloomery.errors import UsageError, nearest

if TYPE_CHECKING:
    from bloomery.feedback.store import Store
    from bloomery.feedback.verdicts import Interval
    from bloomery.types import Ranking

Database = Annotated[str, typer.Argument(help="A SQLite file, or the URL of a database.")]
Project = Annotated[str | None, typer.Option("--project", help="Needed where the store holds several.")]


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(help="People's judgements: the feedback store.", no_args_is_help=True)
    group.command("import")(bring_in)
    group.command("export")(export)
    group.command("stats")(stats)
    stages.add_to(group, "label")
    app.add_typer(group, name="label", rich_help_panel="Data and people")


def bring_in(
    database: Annotated[str, typer.Argument(help="A SQLite file (made if it is not there), or a URL.")],
    files: Annotated[list[Path], typer.Argument(help="Rankings or preference pairs, JSON Lines.")],
    project: Annotated[str, typer.Option("--project", help="Made if it is not there.")] = "imported",
) -> None:
    """Put rankings from files into the store; what is there already is left as it is."""
    from bloomery.data.sources import read_rankings
    from bloomery.feedback.store import Store

    rankings = list(read_rankings(files))
    with Store(database) as store:
        if project not in store.projects():
            store.create_project(project)
        done = store.import_rankings(project, rankings)
    typer.echo(f"{project}: {done.new} new, {done.already} already there")


def export(
    database: Database,
    project: Project = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="A new file; standard output when not given.")
    ] = None,
) -> None:
    """Write the rankings of a project as canonical JSON Lines, without loss."""
    with _open(database) as store:
        lines = (ranking.model_dump_json() + "\n" for ranking in store.rankings(_project(store, project)))
        if to is None:
            sys.stdout.writelines(lines)
            return
        try:
            with to.open("x", encoding="utf-8") as file:
                file.writelines(lines)
        except FileExistsError:
            raise UsageError("there is a file already", where=to, do="choose another --to") from None


def stats(database: Database, project: Project = None) -> None:
    """Where a project stands: prompts, judgements, agreement, and each annotator's habits."""
    with _open(database) as store:
        name = _project(store, project)
        found, rankings = store.stats(name), list(store.rankings(name))
        gold = store.gold(name)
    out = console()
    out.print(
        f"{name}: {found.num_prompts} prompts ({found.num_gold} gold), {found.num_complete} complete, "
        f"{found.num_submitted} submitted, {found.num_skipped} skipped, {found.num_flagged} flagged"
    )
    if found.num_submitted:
        show_agreement(rankings, gold)


def show_agreement(rankings: list[Ranking], gold: dict[str, tuple[int, ...]]) -> None:
    """Agreement between annotators, and what each is like."""
    from bloomery.feedback.agreement import agreement
    from bloomery.feedback.reliability import report

    out, together = console(), agreement(rankings)
    out.print(
        f"agreement of two annotators on a pair: {_interval(together.between)}; of one with the majority of "
        f"others: {_interval(together.majority)} ({together.num_overlapping} prompts ranked more than once)"
    )
    alphas = ", ".join(f"{name} {_number(value)}" for name, value in together.alpha.items())
    out.print(f"Krippendorff's alpha: {alphas}")
    headings = (
        "annotator",
        "kind",
        "rankings",
        "agrees",
        "gold",
        "ties",
        "first side",
        "long side",
        "leniency",
        "seconds",
        "flags",
    )
    rows = [
        (
            one.annotator,
            one.kind,
            one.num_rankings,
            _number(one.agreement.value if one.agreement else None),
            _number(one.gold.value if one.gold else None),
            _number(one.tie_rate),
            _number(one.position.chance if one.position else None),
            _number(one.length.chance if one.length else None),
            _number(one.leniency),
            _number(one.median_seconds),
            "; ".join(one.flags),
        )
        for one in report(rankings, gold)
    ]
    out.print(table(headings, rows, right=headings[2:10]))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _interval(found: Interval | None) -> str:
    return "unknown" if found is None else f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _open(database: str) -> Store:
    """A store that must be there already."""
    from bloomery.feedback.store import Store

    if "://" not in database and not Path(database).is_file():
        raise UsageError("there is no such store", where=database, do="bloomery label import makes one")
    return Store(database)


def _project(store: Store, wanted: str | None) -> str:
    names = store.projects()
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted is None:
        raise UsageError(
            "which project?", expected=", ".join(names) or "(the store is empty)", do="give --project"
        )
    if wanted not in names:
        raise UsageError(
            f"no project is called '{wanted}'{nearest(wanted, names)}", expected=", ".join(names)
        )
    return wanted
