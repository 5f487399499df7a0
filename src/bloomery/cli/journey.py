"""The journey from raw text to an aligned model: `bloomery run`, and its report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bloomery.cli.show import console, duration, size, table

if TYPE_CHECKING:
    from bloomery.journey.steps import Plan

PANEL = "The whole way"


def add_to(app: typer.Typer) -> None:
    app.command("run", rich_help_panel=PANEL)(run)
    app.command("report", rich_help_panel=PANEL)(report)


def run(
    recipe: Annotated[
        Path | None,
        typer.Argument(help="A YAML recipe; without one, the default journey on the embedded world."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Where everything goes.")] = Path("runs/journey"),
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, over the recipe; may be repeated.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, why, and what it costs; write nothing.")
    ] = False,
    resume: Annotated[
        Literal["auto", "never"],
        typer.Option(help="Use what is there already, or insist on a new directory."),
    ] = "auto",
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Keep stage directories here, shared by several --out.")
    ] = None,
) -> None:
    """Run a journey: each stage once for the same code, settings and inputs; the same command goes on."""
    from bloomery import recipe as recipes
    from bloomery.journey.plan import Journey, make_plan, runs
    from bloomery.journey.run import carry_out

    read = recipes.load(Journey, recipe, settings or [])
    plan, store = make_plan(read, out), cache or out / "stages"
    if dry_run:
        show_plan(plan, out, store)
        return
    done = carry_out(
        plan, out, runs=runs(), recipe_text=recipes.dump(read), store=store, resume=resume, say=_say
    )
    finish(out, sum(record.seconds for record in done))


def show_plan(plan: Plan, out: Path, store: Path) -> None:
    """What would be done and why, and an estimate of what it costs."""
    from bloomery.journey.estimate import estimate, matmul_speed
    from bloomery.journey.run import look

    speed = matmul_speed()
    costs = estimate(plan, speed)
    found = look(plan, out, store)
    rows = [
        (
            row.step.name,
            row.key[:12] if row.key else "",
            row.state,
            "; ".join(row.reasons),
            f"{cost.parameters:,}" if cost.parameters else "",
            size(cost.memory),
            duration(cost.seconds),
            size(cost.disk),
        )
        for row, cost in zip(found, costs, strict=True)
    ]
    headings = ("step", "key", "state", "why", "parameters", "memory", "time", "disk")
    console().print(table(headings, rows, right=headings[4:]))
    left = [cost for row, cost in zip(found, costs, strict=True) if row.state != "cached"]
    memory = max((cost.memory for cost in left), default=0)
    typer.echo(
        f"{len(left)} of {len(found)} steps to do in {out}: about {duration(sum(c.seconds for c in left))}, "
        f"{size(sum(c.disk for c in left))} of disk, {size(memory)} of memory"
    )
    typer.echo(
        f"estimates from shapes and {speed / 1e9:,.0f} GFLOP/s measured here: within a factor of two; "
        "nothing was written"
    )


def finish(out: Path, seconds: float) -> None:
    """The table, the laboratory's findings if there was one, the report, and where to look next."""
    from bloomery.journey import lab, lab_words
    from bloomery.journey.results import collect, print_table
    from bloomery.report import build

    results = collect(out)
    typer.echo()
    print_table(results, console())
    found = lab.collect(out)
    for line in lab_words.lines(found) if found else ():
        typer.echo(line)
    best = next(out / name for name in ("rl", "sft") if (out / name).is_dir())
    typer.echo(f"\nmade in {duration(seconds)}; report: {build(out)}\nnext: bloomery chat {best}")


def report(
    out: Annotated[Path, typer.Argument(help="The directory of a journey.")],
) -> None:
    """Write the journey's report again: one self-contained HTML page."""
    from bloomery.journey.run import read_journal
    from bloomery.report import build

    read_journal(out)
    typer.echo(str(build(out)))


def _say(text: str) -> None:
    typer.secho(text, bold=True, err=True)
