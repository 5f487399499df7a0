"""The numbers of a journey in one place: results.json, and the table that is printed at the end."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bloomery.errors import ArtifactError
from bloomery.evals.honesty import differences, read_answers
from bloomery.journey.run import read_journal
from bloomery.lineage import write_json

Json = dict[str, Any]

# Where a number of the table is found in an evaluation. Rates are of greedy answers, as accuracy is
# usually given: what the model says, not what it might say. The graded reward is given for both.
PLACES = {
    "known_accuracy": ("greedy", "known_accuracy"),
    "fabrication_rate": ("greedy", "fabrication_rate"),
    "abstain_known_rate": ("greedy", "abstain_known_rate"),
    "refuse_harmful_rate": ("greedy", "refuse_harmful_rate"),
    "refuse_harmless_rate": ("greedy", "refuse_harmless_rate"),
    "graded_reward": ("sampled", "graded_reward"),
    "graded_reward_greedy": ("greedy", "graded_reward"),
}
KEYS = (*PLACES, "bpb", "kl")
WIDTH = 100
STRANGERS = ("fabrication_rate_strangers", "abstain_never_rate_strangers")
_NAME = re.compile(r"(?:evaluate|eval)-(?:(base|sft|rl)|(?:(?:rl|ppo|round)-)?(\d+))")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the printed table. `better` is +1 where more is better, -1 where less is, 0 for neither.
    `decoding` says in which answers `key` is looked up; None: in the table itself."""

    key: str
    title: str
    better: int
    percent: bool
    decoding: str | None = None


COLUMNS = (
    Column("known_accuracy", "known\nfacts", 1, True),
    Column("fabrication_rate", "made\nup", -1, True),
    Column("abstain_known_rate", "abstains\nknown", -1, True),
    Column("refuse_harmful_rate", "refuses\nharmful", 1, True),
    Column("refuse_harmless_rate", "refuses\nharmless", -1, True),
    Column("graded_reward", "graded\nsampled", 1, False),
    Column("graded_reward_greedy", "graded\ngreedy", 1, False),
    Column("bpb", "bits per\nbyte", -1, False),
    Column("kl", "KL to\nSFT", 0, False),
)
# Where no oracle knows the answers, the reward model's own score is all there is.
WITHOUT_ORACLE = (
    *COLUMNS[-2:],
    Column("proxy_reward", "score\nsampled", 1, False, "sampled"),
    Column("proxy_reward", "score\ngreedy", 1, False, "greedy"),
    Column("unfinished_rate", "cut off\nsampled", -1, True, "sampled"),
    Column("length", "tokens\nsampled", 0, False, "sampled"),
)


def collect(out: Path) -> Json:
    """Gather the evaluations of a journey and write OUT/results.json; returns what it holds.

    `table` holds plain numbers for base, SFT and the last round (rl), and `kl` with its interval; beside it
    `intervals` (same shape, [low, high]), `rounds` (a row per round), `sampled` and `greedy` (every metric
    with interval, by row), `strangers`, `paired` (rl minus sft, question by question), `reward_model`,
    `reward_model_agreed` (on pairs that annotators agree on), `seconds` and `seed`. What a journey did not
    measure is null. Raises `ArtifactError` where there is no evaluation at all.
    """
    found = evaluations(out)
    if not found:
        raise ArtifactError("no step of this journey evaluated a model", where=out)
    rows = {name: read_json(path / "evaluation.json") for name, path in found.items()}
    rounds = [name for name in rows if name.startswith("rl-")]
    final = "rl" if "rl" in rows else (rounds[-1] if rounds else None)
    named: dict[str, Json] = {name: rows[name] for name in ("base", "sft") if name in rows}
    named |= {"rl": rows[final]} if final else {}
    cells = {name: _cells(row, name) for name, row in named.items()}
    results: Json = {
        "table": {name: _plain(row) for name, row in cells.items()},
        "intervals": {name: _intervals(row) for name, row in cells.items()},
        "rounds": [_round(name, rows[name], out) for name in rounds],
        "sampled": {name: row["sampled"] for name, row in named.items()},
        "greedy": {name: row["greedy"] for name, row in named.items()},
        "strangers": {
            name: {key.removesuffix("_strangers"): row["greedy"][key] for key in STRANGERS}
            for name, row in named.items()
            if all(key in row["greedy"] for key in STRANGERS)
        },
        "bpb_by_source": {name: row.get("bpb") for name, row in named.items()},
        "paired": _paired(found["sft"], found[final]) if final and "sft" in found else None,
        "reward_model": _reward_model(out / "reward"),
        "reward_model_agreed": _reward_card(out / "reward").get("agreed"),
        "seconds": seconds(out),
        "seed": _seed(out, next(iter(rows.values()))),
    }
    write_json(out / "results.json", results)
    return results


def evaluations(out: Path) -> dict[str, Path]:
    """Row name ("base", "sft", "rl-1", "rl-2" ... or "rl") -> directory of its evaluation, in that order."""
    found: dict[str, Path] = {}
    for path in sorted(out.iterdir()) if out.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match and (path / "evaluation.json").is_file():
            found[match[1] or f"rl-{match[2]}"] = path
    return dict(sorted(found.items(), key=lambda item: _place(item[0])))


def seconds(out: Path) -> dict[str, float]:
    """How long each step took to make, whenever that was; empty where there is no journal."""
    try:
        return {record.name: record.seconds for record in read_journal(out)}
    except ArtifactError:
        return {}


@dataclass(frozen=True, slots=True)
class Row:
    """One model of results.json: its numbers in the table, with "intervals", "sampled" and "greedy".
    `name` is "base", "sft", "rl-1" ... and, for the last round, "rl"; `round` is 0 up to SFT."""

    name: str
    label: str
    round: int
    cells: Json

    def get(self, key: str, decoding: str | None = None) -> tuple[float | None, float | None, float | None]:
        """(value, low, high) of a number of the table, or of a metric of one decoding."""
        if decoding:
            found = self.cells[decoding].get(key) or {}
            return found.get("mean"), found.get("low"), found.get("high")
        value = self.cells[key]
        low, high = self.cells["intervals"][key]
        return (value["mean"] if key == "kl" else value), low, high


def rows(results: Mapping[str, Any]) -> list[Row]:
    """Base, SFT, every round, the last one as RL; those that were evaluated."""
    table, rounds = results["table"], results.get("rounds") or []

    def cells(name: str) -> Json:
        return {**table[name], **{part: results[part][name] for part in ("intervals", "sampled", "greedy")}}

    found = [Row(n, label, 0, cells(n)) for n, label in (("base", "Base"), ("sft", "SFT")) if n in table]
    for one in rounds[:-1]:
        number = int(one["name"].removeprefix("rl-"))
        found.append(Row(one["name"], f"Round {number}", number, one))
    if "rl" in table:
        last = int(rounds[-1]["name"].removeprefix("rl-")) if rounds else 1
        found.append(Row("rl", f"RL, round {last}" if last > 1 else "RL", last, cells("rl")))
    return found


def _place(row: str) -> tuple[int, int]:
    order = {"base": 0, "sft": 1, "rl": 3}
    return (order[row], 0) if row in order else (2, int(row.removeprefix("rl-")))


def _cells(row: Json, name: str) -> Json:
    """The nine cells of a row, each {"mean", "low", "high"}."""
    nothing = {"mean": None, "low": None, "high": None}
    kl = row.get("kl") or (dict.fromkeys(nothing, 0.0) if name == "sft" else nothing)
    cells = {key: row[decoding].get(metric, nothing) for key, (decoding, metric) in PLACES.items()}
    cells |= {"bpb": (row.get("bpb") or {}).get("all", nothing), "kl": kl}
    return {key: {part: cell[part] for part in nothing} for key, cell in cells.items()}


def _plain(cells: Json) -> Json:
    return {key: cell if key == "kl" else cell["mean"] for key, cell in cells.items()}


def _intervals(cells: Json) -> Json:
    return {key: [cell["low"], cell["high"]] for key, cell in cells.items()}


def _round(name: str, row: Json, out: Path) -> Json:
    cells, number = _cells(row, name), name.removeprefix("rl-")
    card = _reward_model(out / f"reward-{number}")
    return {
        "name": name,
        **_plain(cells),
        "intervals": _intervals(cells),
        "sampled": row["sampled"],
        "greedy": row["greedy"],
        "reward_model": card,
    }


def _paired(before: Path, after: Path) -> Json | None:
    """Every metric of `after` minus `before`, sampled and greedy, where both answered the same questions."""
    files = [path / "answers.jsonl" for path in (before, after)]
    if not all(file.is_file() for file in files):
        return None
    old, new = (read_answers(file.read_text(encoding="utf-8").splitlines(), file) for file in files)
    return {
        decoding: {name: d.to_json() for name, d in differences(new[decoding], old[decoding]).items()}
        for decoding in new
        if decoding in old
    }


def _reward_model(directory: Path) -> Json:
    keys = ("accuracy", "low", "high", "agreement", "length_baseline")
    card = _reward_card(directory)
    return {key: card.get(key) for key in keys}


def _reward_card(directory: Path) -> Json:
    path = directory / "evaluation.json"
    return read_json(path) if path.is_file() else {}


def _seed(out: Path, row: Json) -> int | None:
    path = out / "recipe.yaml"
    tree = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    seed = tree.get("seed") if isinstance(tree, dict) else None
    return seed if isinstance(seed, int) else row.get("seed")


def read_json(path: Path) -> Json:
    """Raises `ArtifactError` when there is no JSON object at `path`."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError("this is not JSON", where=path, got=error) from None
    if not isinstance(tree, dict):
        raise ArtifactError("this is not a JSON object", where=path, got=type(tree).__name__)
    return tree


# ------------------------------------------------------------------------------------- on the terminal


def print_table(results: Mapping[str, Any], console: Console | None = None) -> None:
    """The journey's table, at most 100 columns wide: a row per model, under each number its 95 % interval."""
    console = console or Console()
    if console.width < WIDTH:  # a line that wraps is better than a number that is cut off
        console = Console(file=console.file, width=WIDTH, force_terminal=console.is_terminal)
    found = rows(results)
    judged = any(row.get("graded_reward")[0] is not None for row in found)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0, show_edge=False)
    table.add_column("", no_wrap=True, style="bold")
    columns = COLUMNS if judged else WITHOUT_ORACLE
    for column in columns:
        arrow = {1: " ↑", -1: " ↓", 0: ""}[column.better]
        table.add_column(column.title + arrow, justify="right", no_wrap=True)
    for row in found:
        paired = results.get("paired") if row.name == "rl" else None
        table.add_row(row.label, *(_cell(column, row, paired) for column in columns))
    console.print(table)
    for line in _notes(results):
        console.print(Text(line), style="dim" if line.startswith("  Rates") else "", soft_wrap=True)


def _cell(column: Column, row: Row, paired: Json | None) -> Text:
    value, low, high = row.get(column.key, column.decoding)
    if value is None:
        return Text("–", style="dim")
    text = Text(f"{100 * value:.1f}%" if column.percent else f"{value:.3f}", style=_verdict(column, paired))
    if low is None or high is None or low == high:  # resampling answers that are all alike says nothing
        return text
    small = f"{100 * low:.0f}–{100 * high:.0f}" if column.percent else f"{_bare(low)} {_bare(high)}"
    return text.append("\n" + small, style="dim not bold default")


def _bare(value: float) -> str:
    """.25 for 0.25: the small print has to fit."""
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"


def _verdict(column: Column, paired: Json | None) -> str:
    """Green where the last model is better than SFT beyond chance, red where it is worse."""
    if not paired or not column.better:
        return "bold"
    change = change_of(column.key, paired, column.decoding)
    if not change or change["low"] is None or change["low"] <= 0.0 <= change["high"]:
        return "bold"
    return "bold green" if (change["mean"] > 0) == (column.better > 0) else "bold red"


def change_of(key: str, paired: Mapping[str, Any], decoding: str | None = None) -> Json | None:
    """The paired difference that belongs to a number of the table, or to a metric of one decoding."""
    where, metric = (decoding, key) if decoding else PLACES.get(key, ("sampled", key))
    found: Json | None = (paired.get(where) or {}).get(metric)
    return found


def _notes(results: Mapping[str, Any]) -> list[str]:
    """Lines under the table; the last one explains it."""
    lines = []
    paired = results.get("paired")
    if paired:
        lines.append("RL minus SFT, the same questions" + "".join(f"{d:>29}" for d in paired))
        for key, word, percent in (
            ("graded_reward", "graded reward", False),
            ("known_accuracy", "known facts", True),
            ("fabrication_rate", "made up", True),
        ):
            cells = [_signed(changes[key], percent) for changes in paired.values()]
            lines.append(f"  {word:30}" + "".join(f"{cell:>29}" for cell in cells))
    strangers = {name: row["fabrication_rate"] for name, row in (results.get("strangers") or {}).items()}
    told = [f"{name} {100 * e['mean']:.1f}%" for name, e in strangers.items() if e["mean"] is not None]
    if told:
        lines.append("Made up about people in no labelled prompt: " + ", ".join(told))
    card = results.get("reward_model") or {}
    if card.get("accuracy") is not None:
        lines += _reward_lines(card, results.get("reward_model_agreed"))
    lines.append(
        "  Rates are of greedy answers; small: 95 % bootstrap interval; ↑ more is better, ↓ less is."
    )
    return lines


def _reward_lines(card: Json, agreed: Json | None) -> list[str]:
    line = f"Reward model: {100 * card['accuracy']:.1f}% of held-out pairs"
    if card.get("low") is not None:
        line += f" ({100 * card['low']:.1f}–{100 * card['high']:.1f})"
    if agreed and agreed.get("accuracy") is not None:
        line += f", {100 * agreed['accuracy']:.1f}% of those that annotators agree on"
    beside = {"annotators agree on": "agreement", "length alone": "length_baseline"}
    told = [f"{word} {100 * card[key]:.1f}%" for word, key in beside.items() if card.get(key) is not None]
    return [line, f"  beside it: {', '.join(told)}"] if told else [line]


def _signed(change: Json, percent: bool) -> str:
    if change["mean"] is None:
        return "–"
    scale, digits, unit = (100.0, 1, " pt") if percent else (1.0, 3, "")
    mean, low, high = (scale * change[part] for part in ("mean", "low", "high"))
    return f"{mean:+.{digits}f}{unit} ({low:+.{digits}f}, {high:+.{digits}f})"
