"""What the harness prints and keeps of its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from case import WORKS


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: medians with the lowest and highest round, the ratio, equality, peaks of memory."""
    lines = [
        "| work | size | precision | peer | unit | ours | theirs | ratio | equal | MB ours / theirs | load |",
        "|---|---|---|---|---|---:|---:|---:|---|---:|---:|",
    ]
    for r in rows:
        lines.append(
            f"| {r['work']} | {r['size']} | {arithmetic(r)} | {r['peer']} | {r['unit']} "
            f"| {spread(r['ours'], r['ours_rounds'])} | {spread(r['theirs'], r['theirs_rounds'])} "
            f"| {r['ratio']:.2f} | {'yes' if r['equal'] else 'NO: ' + r['why']} "
            f"| {r['ours_peak_mb']:,.0f} / {r['theirs_peak_mb']:,.0f} | {load(r)} |"
        )
    return "\n".join(lines)


def arithmetic(row: Mapping[str, Any]) -> str:
    return f"{row['precision']}, compiled" if row.get("compiled") else str(row["precision"])


def load(row: Mapping[str, Any]) -> str:
    """Of the machine, before and after."""
    return " / ".join(f"{row[name]:.1f}" for name in ("load_before", "load_after") if name in row)


def spread(middle: float, rounds: Sequence[float]) -> str:
    return f"{number(middle)} ({number(min(rounds))}-{number(max(rounds))})"


def shares(rows: Sequence[Mapping[str, Any]], limits: Mapping[str, Any]) -> list[str]:
    """How much of the machine's matrix products a rate is, where the work of a unit is known."""
    found = []
    for r in rows:
        peak = limits.get("bf16 GFLOP/s" if r["precision"] == "bf16" else "fp32 medium GFLOP/s")
        if "flops" in r and peak:
            rate, name = r["flops"] / 1e9, f"{r['work']} {r['size']} against {r['peer']}"
            found.append(f"{name}: ours {number(rate)} GFLOP/s, {rate / peak:.0%} of {number(peak)}")
    return found


def number(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def merged(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """New rows take the place of older ones of the same work, size, peer and precision."""

    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return row["work"], row["size"], row["peer"], row["precision"], row.get("compiled", False)

    found = {key(row): row for row in (*old, *new)}
    return sorted(found.values(), key=lambda r: (WORKS.index(r["work"]), key(r)))
