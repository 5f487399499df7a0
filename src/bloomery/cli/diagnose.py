"""`bloomery diagnose`: what is healthy about a run and what is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bloomery.cli.show import console
from bloomery.errors import BloomeryError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table as Grid

    from bloomery.journey.diagnose import Checkup, Column, Finding, Table

PANEL = "Looking"
BARS = "▁▂▃▄▅▆▇█"
PLACES = 40
"""Characters of a curve."""
# The curves of a stage that are worth a look, by common name.
SHOWN = {
    "pretrain": ("loss", "val/bpb", "grad_norm"),
    "sft": ("loss", "eval_loss", "grad_norm"),
    "reward": ("loss", "accuracy", "eval_accuracy"),
    "process": ("loss", "accuracy", "eval_accuracy"),
    "prefer": ("loss", "accuracy", "eval_accuracy", "rewards/margins"),
    "ppo": ("reward", "gold/graded_reward", "objective/kl", "entropy", "explained_variance"),
    "grpo": ("reward", "gold/graded_reward", "kl", "entropy", "completions/mean_length"),
    "prefer_online": ("reward", "gold/graded_reward", "loss", "rewards/margins", "completions/mean_length"),
    "rejection": ("reward", "gold/graded_reward", "objective/kl", "loss", "completions/mean_length"),
    "unknown": ("loss", "reward"),
}


def add_to(app: typer.Typer) -> None:
    app.command("diagnose", rich_help_panel=PANEL)(diagnose)


def diagnose(
    run: Annotated[
        Path,
        typer.Argument(
            help="A journey's or a stage's directory, finished or not; or what another program logged: "
            "TRL's output directory or trainer_state.json, or JSON Lines of metrics (OpenRLHF)."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
    curves: Annotated[
        bool, typer.Option("--curves", help="Also draw each stage's curves, yours over normal.")
    ] = False,
) -> None:
    """Say what is healthy and what is not, with the numbers and what to try; exit code 1 where it is not."""
    from bloomery.journey import diagnose as doctor

    try:
        found = doctor.diagnose(run)
    except BloomeryError as error:
        error.exit_code = UsageError.exit_code  # 1 says that the run is not healthy
        raise
    healthy = not any(one.findings for one in found)
    if as_json:
        stages = [_plain(one) for one in found]
        typer.echo(json.dumps({"run": str(run), "healthy": healthy, "stages": stages}, indent=1))
    else:
        _print(found, curves)
    if not healthy:
        raise typer.Exit(1)


def _plain(one: Checkup) -> dict[str, Any]:
    findings = [
        {
            "condition": finding.condition,
            "what": finding.what,
            "evidence": list(finding.evidence),
            "try": list(finding.advice),
            "metric": finding.shown.name if finding.shown else None,
        }
        for finding in one.findings
    ]
    table = one.table
    return {
        "name": table.name,
        "stage": table.stage,
        "status": table.status,
        "rows": table.rows,
        "last_step": table.steps - 1,
        "findings": findings,
    }


def _print(found: list[Checkup], curves: bool) -> None:
    out = console()
    out.print(_summary(found))
    for one in found:
        for finding in one.findings:
            out.print()
            out.print(_finding(one.table, finding))
        if curves:
            for name in SHOWN.get(one.table.stage, ()):
                column = one.table.get(name)
                if column is not None:
                    out.print()
                    out.print(_curves(one.table, column))


def _summary(found: list[Checkup]) -> Grid:
    """A line for each stage."""
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for one in found:
        count = len(one.findings)
        verdict = Text(f"{count} finding{'s' if count > 1 else ''}", "bold red")
        if not count:
            verdict = Text("healthy", "green")
            if one.short:
                verdict.append(" as far as so few rows can tell", "dim")
        if one.table.status == "running":
            verdict.append(" (still running)", "dim")
        rows = Text(f"{one.table.rows:,} rows", justify="right")
        grid.add_row(Text(one.table.name, "bold"), Text(one.table.stage, "cyan"), rows, verdict)
    return grid


def _finding(table: Table, finding: Finding) -> RenderableType:
    """What, evidence, the curve, what to try; the labels stand in a column of their own."""
    from rich.console import Group
    from rich.text import Text

    head = Text.assemble((f"{table.name}: ", "bold"), (finding.condition, "bold red"))
    grid = _labelled()
    grid.add_row("", Text(finding.what))
    for i, line in enumerate(finding.evidence):
        grid.add_row("" if i else "evidence", Text(line))
    if finding.shown is not None and len(finding.shown) > 1:
        _draw(grid, table, finding.shown)
    for i, line in enumerate(finding.advice):
        grid.add_row("" if i else "try", Text(line, "cyan"))
    return Group(head, grid)


def _curves(table: Table, column: Column) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    grid = _labelled()
    _draw(grid, table, column)
    return Group(Text.assemble((f"{table.name}: ", "bold"), column.name), grid)


def _labelled() -> Grid:
    from rich.table import Table as Grid

    grid = Grid(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 2))
    grid.add_column(style="dim", no_wrap=True, min_width=8)
    grid.add_column(overflow="fold")
    return grid


def _draw(grid: Grid, table: Table, column: Column) -> None:
    """Rows with the run's curve and, where the default journey has it, the normal one at the same scale."""
    from rich.text import Text

    from bloomery.journey.diagnose import reference
    from bloomery.journey.diagnose.finding import plain

    yours = reference.resample(column, PLACES)
    ours = table.status != "unknown"
    normal = reference.band(reference.normal(table, column) if ours else [], PLACES)
    drawn = [*yours, *(middle for _, middle, _ in normal)]
    low, high = min(drawn), max(drawn)

    def said(value: float) -> str:  # what is nothing at this scale is called 0
        return plain(value if abs(value) > 1e-4 * (high - low) else 0.0)

    ends = f"  {said(yours[0])} to {said(yours[-1])}"
    grid.add_row("yours", Text.assemble((sparkline(yours, low, high), "dark_orange3"), (ends, "dim")))
    if ours and (why := reference.unlike(table)):
        more = f" ({len(why) - 1} more)" if len(why) > 1 else ""
        grid.add_row("normal", Text(f"not comparable: {why[0]}{more}", "dim"))
    if normal:
        (_, first, _), *_, (least, _, most) = normal
        ends = f"  {said(first)} to {said(least)}" + (f"–{said(most)}" if most > least else "")
        line = sparkline([middle for _, middle, _ in normal], low, high)
        grid.add_row("normal", Text.assemble((line, "green"), (ends, "dim")))


def sparkline(values: list[float], low: float, high: float) -> str:
    """A character for each value, from ▁ at `low` to █ at `high`."""
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in values)
