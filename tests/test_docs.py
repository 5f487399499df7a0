"""The documents against the program: code blocks run, transcripts name real commands and options, links
resolve, and docs/cli.md is what the program says. The convention is in CONTRIBUTING.md.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bloomery.errors import UsageError
from bloomery.journey.settings import Journey
from bloomery.recipe import load

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")]
)
RUN, TRANSCRIPT, FIGURE = {"bash", "python"}, {"console"}, {"", "text", "json", "yaml", "jinja"}


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    found, start, language, lines = list[Block](), 0, "", list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").split("\n"), 1):
        if line.lstrip().startswith("```"):
            if start:
                found.append(Block(page, start, language, "\n".join(lines) + "\n"))
                start = 0
            else:
                start, language, lines = number, line.strip().removeprefix("```"), []
        elif start:
            lines.append(line)
    assert not start, f"{page}:{start}: a block is not closed"
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]
RUNNABLE = [page for page in PAGES if any(block.language in RUN for block in blocks(page))]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", RUNNABLE, ids=name)
def test_code_blocks_run(page: Path, tmp_path: Path) -> None:
    """In order, in one empty directory, as a reader would go down the page."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for block in blocks(page):
        if block.language in RUN:
            command = (
                ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
            )
            done = subprocess.run(
                [*command, block.text],
                cwd=tmp_path,
                env={**os.environ, "PATH": path},
                capture_output=True,
                text=True,
                timeout=240,
            )
            assert done.returncode == 0, f"{page}:{block.line}\n{done.stdout}\n{done.stderr}"


def program() -> Any:
    import typer.main

    from bloomery.cli.app import app

    return typer.main.get_command(app)


def problem(line: str) -> str | None:
    """What is wrong with a `$ ...` line of a transcript, if anything."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    for end in ("|", "<", ">", "&&", ";"):
        words = words[: words.index(end)] if end in words else words
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
        wrong = [word for word in words[1:] if "=" not in word and word not in targets]
        return f"no make target {wrong}" if wrong else None
    if words[0].removeprefix(".venv/bin/") != "bloomery":
        return f"cannot check {words[0]}"
    command, rest = program(), words[1:]
    while hasattr(command, "commands"):
        if not rest or rest[0] not in command.commands:
            return f"no command {rest[:1]}"
        command, rest = command.commands[rest[0]], rest[1:]
    options = {option for one in command.params for option in one.opts} | {"--help", "--debug"}
    wrong = [word for word in rest if word.startswith("--") and word.split("=")[0] not in options]
    if wrong:
        return f"no option {wrong}"
    if command.name == "run":
        settings = [value for option, value in pairwise(rest) if option == "--set"]
        try:
            load(Journey, overrides=settings)
        except UsageError as error:
            return str(error)
    return None


@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if block.language in TRANSCRIPT],
    ids=lambda block: f"{name(block.page)}:{block.line}",
)
def test_transcripts_name_real_commands(block: Block) -> None:
    lines = [line.removeprefix("$ ") for line in block.text.split("\n") if line.startswith("$ ")]
    assert lines, f"{block.page}:{block.line}: a transcript without a command"
    for line in lines:
        assert problem(line) is None, f"{block.page}:{block.line}: {line}: {problem(line)}"


@pytest.mark.parametrize(
    "line",
    [
        "bloomery fly",
        "bloomery run --dry",
        "bloomery data melt x",
        "make gold",
        "bloomery run --set sed=1",
        "curl example.org",
        "bloomery",
    ],
)
def test_planted_wrong_transcripts_are_found(line: str) -> None:
    assert problem(line) is not None


def test_every_block_says_what_it_is() -> None:
    strange = [
        f"{name(b.page)}:{b.line}: {b.language}"
        for b in BLOCKS
        if b.language not in RUN | TRANSCRIPT | FIGURE
    ]
    assert not strange


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_resolve(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    local = [link.partition("#") for link in links if not re.match(r"[a-z]+:", link)]
    assert [path for path, _, _ in local if path and not (page.parent / path).exists()] == []
    for path, _, anchor in local:
        target = page.parent / path if path else page
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page}: {path}#{anchor}"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_cli_docs", ROOT / "dev" / "write_cli_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_commands_is_up_to_date() -> None:
    module = writer()
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run `make docs`"


def test_every_command_says_what_it_does() -> None:
    module = writer()
    for path, command in module.commands(program(), "bloomery"):
        assert command.help, path
        for one in command.params:
            assert getattr(one, "help", None), f"{path}: {one.name}"


ALGORITHMS = sorted(ROOT.glob("docs/algorithms/*.md"))


def reading_list(page: Path) -> list[Path]:
    """The files that a page about an algorithm says it takes to understand it."""
    _, _, rest = page.read_text(encoding="utf-8").partition("\n## Reading list\n")
    items = re.findall(r"^\d+\. \[[^\]]*\]\(([^)]+)\)", rest.partition("\n## ")[0], re.M)
    return [(page.parent / item).resolve() for item in items]


@pytest.mark.parametrize("page", ALGORITHMS, ids=name)
def test_an_algorithm_is_understood_from_five_files_and_700_lines(page: Path) -> None:
    files = reading_list(page)
    assert 1 <= len(files) <= 5
    assert len(set(files)) == len(files)
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert sum(lines.values()) <= 700, lines


def test_the_architecture_names_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = {
        path.name
        for path in (ROOT / "src" / "bloomery").iterdir()
        if path.is_dir() and (path / "__init__.py").exists()
    }
    assert [room for room in sorted(rooms) if not re.search(rf"\b{room}\b", text)] == []
