"""The README.md of a run directory: what it is, from what, by whom, how good, and its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bloomery.lineage import Lineage, Person


def card(
    record: Lineage,
    steps: int,
    summary: str,
    metrics: Mapping[str, float | None],
    limits: Sequence[str],
) -> str:
    """A model card in Markdown. Numbers only as given: nothing is estimated here."""
    return "\n".join(
        [
            *("---", "tags:", "- bloomery", f"- {record.stage}", "---", ""),
            *(f"# {record.name}", "", summary.strip() or f"The result of the stage `{record.stage}`.", ""),
            f"Made by the stage `{record.stage}`"
            + (f" in {steps:,} steps" if steps else "")
            + (f" with seed {record.seed}" if record.seed is not None else "")
            + f", begun {record.created_at}. `recipe.yaml` repeats it; `lineage.json` holds the digests.",
            "",
            *_section("Made from", _table(("role", "path", "digest"), _inputs(record))),
            *_section("Data", [f"- {_words(one)}" for one in record.data]),
            *_section("People who shaped it", _people(record.people)),
            *_section(
                "Models that shaped it", [f"- {one.id} {_short(one.digest)}" for one in record.teachers]
            ),
            *_section("Numbers", _table(("metric", "value"), _values(metrics))),
            *_section("Limits", [f"- {one}" for one in limits] or ["None were written down for this run."]),
        ]
    )


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *lines, ""] if lines else []


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _inputs(record: Lineage) -> list[tuple[str, str, str]]:
    return [(one.role, f"`{one.path}`", _short(one.digest)) for one in record.inputs]


def _values(metrics: Mapping[str, float | None]) -> list[tuple[str, str]]:
    return [(name, "not finite" if value is None else f"{value:.6g}") for name, value in metrics.items()]


def _people(people: Sequence[Person]) -> list[str]:
    if not people:
        return []
    total = sum(person.rankings for person in people)
    rows = [(person.id, person.kind, f"{person.rankings:,}") for person in people[:50]]
    rest = [f"... and {len(people) - 50} more in `lineage.json`"] if len(people) > 50 else []
    head = f"{len(people):,} {'person' if len(people) == 1 else 'people'}, {total:,} rankings."
    return [head, "", *_table(("id", "kind", "rankings"), rows), *rest]


def _words(entry: Mapping[str, object]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in entry.items())


def _short(digest: str | None) -> str:
    return f"`{digest[:12]}`" if digest else "(no digest)"
