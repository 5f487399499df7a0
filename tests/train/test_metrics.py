"""Compared: metrics.jsonl with lines written by hand, its reading with its writing, what a person sees."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path

import pytest
import torch

from bloomery.errors import DataError
from bloomery.train import metrics
from bloomery.train.metrics import Bar, Lines, MetricsWriter, clock, progress, read_metrics, shown


def test_one_line_a_step_there_at_once(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "m.jsonl")
    writer.write(
        0, {"loss": torch.tensor(0.5, requires_grad=True), "n": 3, "note": "é", "ok": True, "no": None}
    )
    text = '{"step": 0, "loss": 0.5, "n": 3, "note": "é", "ok": true, "no": null}\n'
    assert (tmp_path / "m.jsonl").read_text() == text
    writer.close()


def test_what_is_not_finite_is_null_and_counted(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "m.jsonl")
    writer.write(1, {"a": math.nan, "b": torch.tensor(-math.inf), "c": 1.5})
    writer.write(2, {"a": math.inf})
    writer.close()
    assert writer.non_finite == 3
    assert read_metrics(tmp_path / "m.jsonl") == [
        {"step": 1, "a": None, "b": None, "c": 1.5},
        {"step": 2, "a": None},
    ]


def test_opening_again_keeps_as_many_lines_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    for start, lines, steps in ((0, 0, 5), (3, 3, 2), (0, 0, 1)):
        writer = MetricsWriter(path, lines)
        for step in range(start, start + steps):
            writer.write(step, {"loss": step * 1.0})
        writer.close()
        assert [row["step"] for row in read_metrics(path)] == list(range(start + steps))
    path.write_bytes(b'{"step": 0}\n{"step": 1, "lo')
    writer = MetricsWriter(path, 1)
    writer.write(1, {})
    writer.close()
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'


def test_a_file_shorter_than_asked_is_admitted(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"step": 0}\n')
    writer = MetricsWriter(tmp_path / "m.jsonl", 5)
    writer.close()
    assert writer.lines == 1


def test_reading_leaves_out_a_line_still_being_written_and_names_a_bad_one(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 0}\n{"step": 1, "los')
    assert read_metrics(path) == [{"step": 0}]
    for bad in ("{", "[]", '{"loss": 1}', '{"step": "x"}', ""):
        path.write_text(f'{{"step": 0}}\n{bad}\n')
        with pytest.raises(DataError) as caught:
            read_metrics(path)
        assert str(caught.value).startswith(f"{path}:2: ")
    with pytest.raises(DataError, match="cannot read the metrics"):
        read_metrics(tmp_path / "none")


def test_the_few_worth_a_glance() -> None:
    row = {"step": 3, "train/loss": 1.23456, "lr": 1, "train/tok_per_sec": 12345.6, "accuracy": None}
    assert shown(row) == [("loss", "1.235"), ("tok/s", "12,346")]
    assert shown({"objective/scores": -0.5, "objective/kl": 1}) == [("score", "-0.500"), ("kl", "1.000")]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3661, "1:01:01")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_lines_come_first_every_few_seconds_and_last(capsys, monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    lines = Lines("sft", every=5.0)
    lines.start(total=12, done=2)
    for done in range(3, 13):
        now[0] += 2
        lines.update(done, {"loss": 2.0})
    lines.stop()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "sft: 3/12  loss 2.000  eta 0:18",
        "sft: 6/12  loss 2.000  eta 0:12",
        "sft: 9/12  loss 2.000  eta 0:06",
        "sft: 12/12  loss 2.000  took 0:20",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_and_a_pipe_gets_lines(monkeypatch) -> None:
    assert isinstance(progress("sft"), Lines)
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    bar = progress("sft")
    assert isinstance(bar, Bar)
    bar.line("before [the] loop")
    bar.start(total=4, done=1)
    bar.update(2, {"loss": 1.5, "train/tok_per_sec": 9000})
    bar.line("in it")
    bar.update(4, {"loss": 1.25})
    bar.stop()
    seen = screen.getvalue()
    for text in ("sft: before [the] loop", "sft: in it", "4/4", "1.250"):
        assert text in seen
