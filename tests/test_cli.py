"""The command line from outside: quick help without torch, exit codes, errors in plain words, tracebacks only
when asked for, clean pipes; and that the list of stage commands is the registry of stages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bloomery.cli import app, main
from bloomery.cli import data as data_commands
from bloomery.cli.stages import COMMANDS
from bloomery.errors import BloomeryError, UsageError
from bloomery.types import Annotator, Candidate, Message, Policy, Ranking

HEAVY = ("torch", "sqlalchemy", "tokenizers", "numpy", "transformers", "rich.progress")


def run(*words: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "bloomery.cli", *words],
        capture_output=True,
        text=True,
        timeout=120,
        **kwargs,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("words", [["--help"], ["data", "--help"], ["run", "--help"], ["sft", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from bloomery.cli import main; code = main(sys.argv[2:]);"
        "heavy = [m for m in sys.argv[1].split(',') if m in sys.modules];"
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, ",".join(HEAVY), *words], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_help_is_quick() -> None:
    """Processor time, because other tests run beside this one. The promise is 0.4 s on a quiet machine."""
    best = min(_processor_seconds([sys.executable, "-m", "bloomery.cli", "--help"]) for _ in range(3))
    assert best < 0.4


def _processor_seconds(command: list[str]) -> float:
    before = os.times()
    subprocess.run(command, capture_output=True, check=True, timeout=60)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("0.")


def test_every_stage_has_a_command_and_every_command_a_stage() -> None:
    from bloomery.stages import STAGES

    assert sorted(stage for stage, _ in COMMANDS.values()) == list(STAGES)


# --------------------------------------------------------------------------------- errors and exit codes


@pytest.mark.parametrize(
    "words",
    [
        ["frobnicate"],
        ["sft"],
        ["data"],
        ["run", "--resume", "perhaps", "--dry-run"],
        ["run", "--set", "nonsense", "--dry-run"],
        ["run", "no-such-recipe.yaml", "--dry-run"],
        ["ls", "unicorns"],
        ["ls", "stages", "unicorns"],
        ["data", "mix", "x.jsonl", "--to", "y.jsonl", "--weight", "news"],
        ["label", "stats", "nowhere.db"],
    ],
)
def test_wrong_usage_is_2_with_words_on_stderr_only(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if words[:2] == ["data", "mix"]:
        Path("x.jsonl").write_text('{"text": "a"}\n')
    assert main(words) == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    if words != ["data"]:  # a group alone prints its help
        assert said.err.startswith("error: ")
        assert said.out == ""
    assert not list(tmp_path.glob("y*"))


@pytest.mark.parametrize(
    "words",
    [
        ["lineage", "nowhere"],
        ["verify", "nowhere"],
        ["chat", "nowhere"],
        ["report", "."],
        ["data", "inspect", "x"],
    ],
)
def test_failures_are_1(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_a_recipe_with_many_faults_names_them_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("sead: 1\nworld:\n  size: tiny\nsft: {epoch: 3}\n")
    assert main(["run", str(recipe), "--dry-run", "--set", "rounds=many"]) == 2
    said = capsys.readouterr().err
    assert "4 problems" in said
    assert f"{recipe}:1: unknown key 'sead' (did you mean 'seed'?)" in said
    assert f"{recipe}:3: 'world.size'" in said
    assert f"{recipe}:4: unknown key 'sft.epoch' (did you mean 'epochs'?)" in said
    assert "--set rounds=many: 'rounds'" in said


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Make `bloomery ls` raise something."""

    def plant(error: BaseException) -> None:
        def broken(*args: object, **kwargs: object) -> None:
            raise error

        monkeypatch.setattr(app, "app", broken)

    return plant


def test_an_unexpected_error_is_a_bug_in_one_line(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(ValueError("two\nlines"))
    assert main(["ls"]) == 1
    said = capsys.readouterr().err
    assert "this is a bug in bloomery: ValueError: two lines" in said
    assert "--debug" in said
    assert "Traceback" not in said
    assert main(["ls", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (BloomeryError("it broke", where="f:3", do="mend it"), 1, "f:3: it broke\n  do: mend it"),
        (UsageError("no such thing"), 2, "no such thing"),
        (OSError(28, "No space left on device", "model.safetensors"), 1, "model.safetensors: no space left"),
        (MemoryError("8 GB"), 1, "out of memory"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_each_kind_of_error_has_its_words_and_code(
    failing: Callable[[BaseException], None],
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    words: str,
) -> None:
    failing(error)
    assert main(["ls"]) == code
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(("stop", "code"), [(143, 143), (130, 130), (0, 0), (None, 0), ("words", 1)])
def test_exit_codes_of_signals_pass_through(
    failing: Callable[[BaseException], None], stop: int | str | None, code: int
) -> None:
    failing(SystemExit(stop))
    assert main(["ls"]) == code


def test_an_error_cannot_colour_the_terminal(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(BloomeryError("bad row", got="\x1b[31m red \x07"))
    main(["ls"])
    assert "\x1b[31m" not in capsys.readouterr().err


def test_a_closed_pipe_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m bloomery.cli ls formats | head -1",
        capture_output=True,
        text=True,
        shell=True,
        timeout=60,
    )
    assert done.stdout.startswith("format")
    assert done.stderr == ""


def test_output_in_a_pipe_is_plain() -> None:
    done = run("ls", "formats", env={**os.environ, "COLUMNS": "40"})
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert any(
        "annotator, completions, created_at, prompt, ranking" in line for line in done.stdout.split("\n")
    )


# --------------------------------------------------------------------------------------- data and people


def rows(path: Path, *records: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_data_dedupe_mix_convert_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "the smith lights the furnace in the morning and the iron comes in the evening"
    raw = rows(
        tmp_path / "raw.jsonl",
        {"id": "a", "text": text, "source": "news"},
        {"id": "b", "text": text.upper(), "source": "news"},
        {"id": "c", "text": "beans grow in the garden behind the house of the baker", "source": "howto"},
    )
    once, twice, plain = (str(tmp_path / name) for name in ("once.jsonl", "twice.jsonl.gz", "plain.jsonl"))
    assert main(["data", "dedupe", str(raw), "--to", once]) == 0
    assert "2 of 3 documents; left out 1 exact" in capsys.readouterr().out
    assert main(["data", "mix", once, "--to", twice, "--weight", "howto=2"]) == 0
    assert capsys.readouterr().out == "howto: 2\nnews: 1\n"
    assert main(["data", "convert", twice, "--to", plain, "--format", "text"]) == 0
    assert len(Path(plain).read_text().splitlines()) == 3
    assert main(["data", "inspect", once]) == 0
    said = capsys.readouterr().out
    assert "2 documents" in said
    assert "source howto" in said
    assert main(["data", "dedupe", str(raw), "--to", once]) == 1  # never over an old file
    assert "exists already" in capsys.readouterr().err


def test_inspect_counts_right_and_wrong_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = rows(
        tmp_path / "steps.jsonl",
        {"prompt": "Add.", "completions": ["1 + 1 = 2", "2 + 1 = 4"], "labels": [True, False]},
        {"prompt": "Add.", "completions": ["so 3"], "labels": [True]},
    )
    assert main(["data", "inspect", str(path)]) == 0
    said = capsys.readouterr().out
    for part in (
        "2 solutions",
        "steps: right 2, wrong 1",
        "user: Add.",
        "right: 1 + 1 = 2",
        "wrong: 2 + 1 = 4",
    ):
        assert part in said


def test_a_bad_row_is_named_or_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n{"text": 3}\n')
    assert main(["data", "inspect", str(path)]) == 1
    assert f"{path}:2" in capsys.readouterr().err
    assert main(["data", "inspect", str(path), "--on-bad-row", "skip"]) == 0
    assert "1 bad rows skipped" in capsys.readouterr().out


def ranking(number: int, who: str, ranks: tuple[int, ...]) -> Ranking:
    answers = tuple(
        Candidate(messages=(Message(role="assistant", content=text),), policy=Policy(id="m"))
        for text in ("iron", "coal", "ore and slag")
    )
    return Ranking(
        id=f"{who}-{number}",
        prompt=(Message(role="user", content=f"question {number}"),),
        completions=answers,
        ranking=ranks,
        annotator=Annotator(id=who, kind="human"),
        created_at="2026-01-01T00:00:00Z",
    )


def test_answers_judged_alone_are_inspected_and_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, judged, again = (str(tmp_path / f"{name}.jsonl") for name in ("pairs", "judged", "again"))
    Path(pairs).write_text('{"prompt": "Hi", "chosen": "Yes", "rejected": "Never"}\n')
    for source, to in ((pairs, judged), (judged, again)):
        assert main(["data", "convert", source, "--to", to, "--format", "unpaired"]) == 0
    assert Path(again).read_text() == Path(judged).read_text()
    capsys.readouterr()
    assert main(["data", "inspect", judged]) == 0
    shown = capsys.readouterr().out
    for part in ("2 judgements", "undesirable answers", "user: Hi", "desirable: Yes"):
        assert part in shown
    with Path(judged).open("a") as file:
        file.write('{"prompt": "Hi", "completion": "No", "label": 0}\n')
    assert main(["data", "inspect", judged]) == 1
    assert f"{judged}:3: 'label' is neither true nor false" in capsys.readouterr().err


def test_label_import_export_stats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [ranking(i, who, (1, 2, 3) if i % 3 else (1, 1, 2)) for i in range(6) for who in ("ada", "bo")]
    file, store, back = tmp_path / "r.jsonl", str(tmp_path / "f.db"), tmp_path / "back.jsonl"
    file.write_text("".join(one.model_dump_json() + "\n" for one in given))
    assert main(["label", "import", store, str(file)]) == 0
    assert "12 new, 0 already" in capsys.readouterr().out
    assert main(["label", "import", store, str(file)]) == 0
    assert "0 new, 12 already" in capsys.readouterr().out
    assert main(["label", "export", store, "--to", str(back)]) == 0
    assert back.read_bytes() == file.read_bytes()
    assert main(["label", "export", store]) == 0
    assert capsys.readouterr().out == file.read_text()
    assert main(["label", "stats", store]) == 0
    said = capsys.readouterr().out
    assert "6 prompts" in said
    assert "ada" in said
    assert main(["label", "stats", store, "--project", "importd"]) == 2
    assert "did you mean 'imported'" in capsys.readouterr().err
    assert main(["label", "export", store, "--to", str(back)]) == 2  # never over an old file


def test_tokenizer_show_of_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bloomery.text.tokenizer import Tokenizer

    Tokenizer.train(["iron and coal"] * 9, 280).save(tmp_path / "tok")
    assert main(["tokenizer", "show", str(tmp_path / "tok"), "--text", "iron <|end|>"]) == 0
    assert "0 of" in capsys.readouterr().out
    chat = rows(
        tmp_path / "c.jsonl",
        {"messages": [{"role": "user", "content": "iron?"}, {"role": "assistant", "content": "coal"}]},
    )
    assert main(["tokenizer", "show", str(tmp_path / "tok"), str(chat)]) == 0
    assert "<|assistant|>" in capsys.readouterr().out


def test_weights_are_given_as_source_and_number() -> None:
    assert data_commands._weight("a=b=2.5") == ("a=b", 2.5)
    with pytest.raises(UsageError):
        data_commands._weight("news=much")


def test_ls_lists_the_settings_of_a_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "stages", "sft"]) == 0
    said = capsys.readouterr().out
    assert "optimiser.learning_rate" in said
    assert "required" in said
    for what in ("stages", "recipes", "models", "formats", "rules"):
        assert main(["ls", what]) == 0


def test_doctor_looks_and_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for name in ("python", "torch", "threads", "GFLOP/s", "bf16", "CUDA", "disk", "memory", "sqlite"):
        assert name in said


def test_ctrl_c_is_130(tmp_path: Path) -> None:
    """A program that waits for input is stopped as a person would stop it. (What a shell starts in the
    background has the signal ignored, and so would its children.)"""
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from bloomery.cli import main; print('here', flush=True); sys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "tokenizer", "show", str(_tokenizer(tmp_path))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"here\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in said


def _tokenizer(folder: Path) -> Path:
    from bloomery.text.tokenizer import Tokenizer

    Tokenizer.train(["iron"] * 9, 270).save(folder / "tok")
    return folder / "tok"
