"""PPO's curves, round after round on one axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bloomery.report.html import Html
from bloomery.report.normal import normal, why_not
from bloomery.report.plots import Number, Series, line_plot, smooth
from bloomery.report.sections import figure
from bloomery.report.view import Rows, View, column


@dataclass(frozen=True)
class Rounds:
    """The rounds that logged something, end to end: (number, rows, where it begins on the joined axis)."""

    view: View
    parts: tuple[tuple[int, Rows, float], ...]

    @classmethod
    def of(cls, view: View) -> Rounds:
        parts, start = list[tuple[int, Rows, float]](), 0.0
        for number in view.rounds:
            if rows := view.metrics(f"ppo-{number}"):
                parts.append((number, rows, start))
                start += max(row["step"] for row in rows) + 1
        return cls(view, tuple(parts))

    def logs(self, key: str) -> bool:
        return any(key in row for _, rows, _ in self.parts for row in rows)

    def curve(self, key: str, name: str, colour: str, look: str) -> list[Series]:
        """The values, or where `look` is "line" their average, with a gap where a round begins."""
        xs: list[float] = []
        ys: list[Number] = []
        for _, rows, start in self.parts:
            x, y = column(rows, key)
            if xs and x:
                xs.append(start)
                ys.append(None)
            xs += [start + at for at in x]
            ys += smooth(y, max(1, len(x) // 10)) if look == "line" else y
        return [Series(name, xs, ys, colour, look)] if xs else []

    def normal(self, key: str, colour: str) -> list[Series]:
        found = [normal(self.view, f"ppo-{n}", key, colour, start=start) for n, _, start in self.parts]
        return [series for one in found for series in one]

    def figure(
        self,
        title: str,
        unit: str,
        keys: Sequence[tuple[str, str, str]],
        caption: str,
        *,
        zero: bool = False,
        bands: int = 2,
    ) -> Html:
        """`keys`: (metric, name, colour) of each curve; what is normal is drawn for the first `bands`."""
        series = [band for key, _, colour in keys[:bands] for band in self.normal(key, colour)]
        for key, name, colour in keys:
            series += [s for look in ("faint", "line") for s in self.curve(key, name, colour, look)]
        marks = [(start, f"round {number}") for number, _, start in self.parts]
        plot = line_plot(
            series,
            x_label="PPO step",
            marks=marks if len(marks) > 1 else (),
            zero=zero,
            describe=title,
        )
        return figure(
            title, unit, plot, caption + why_not(self.view, *(f"ppo-{n}" for n, _, _ in self.parts))
        )
