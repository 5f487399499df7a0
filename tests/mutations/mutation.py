"""One planted fault: put into a copy of the source, and what the tests say to it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import pytest

# Processes are forked from one that has imported what takes longest and none of our own modules.
FORKS = get_context("forkserver")
HEAVY = ["numpy", "pydantic", "tokenizers", "torch", "torch._dynamo", "safetensors.torch"]
HEAVY += ["pytest", "hypothesis", "anyio.pytest_plugin", "xdist.plugin"]
# pytest warns that it cannot rewrite the assertions of plugins that are imported already; they need none.
WORDS = ("-p", "no:cacheprovider", "--tb=no", "-W", "ignore::pytest.PytestAssertRewriteWarning")


class Stale(Exception):
    """The text to replace is not there exactly once: the code has moved on, and the fault must too."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """`old` stands exactly once in `file`, relative to src/bloomery; `new` takes its place. `tests`, relative
    to tests, are the files that must notice, or single tests in them (`file::test`)."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


class Outcome(NamedTuple):
    """`by` is the first test that failed, without its parameters, or what else there is to say."""

    what: Literal["killed", "SURVIVED", "STALE", "BROKEN"]
    by: str = ""


class Tested(NamedTuple):
    """pytest's exit status, the tests that failed, each once without its parameters, and its last line."""

    status: int
    failed: list[str]
    said: str


def planted(mutation: Mutation, text: str) -> str:
    """The text with the fault in it. Raises `Stale`."""
    if (found := text.count(mutation.old)) != 1:
        raise Stale(f"{mutation.file} holds the text to replace {found} times")
    return text.replace(mutation.old, mutation.new)


def attempt(mutation: Mutation, root: Path) -> Outcome:
    """Plant the fault in a copy of `root`/src and run its tests, up to the first that fails.

    The checkout is only read. Tests that could not even be collected have noticed nothing: "BROKEN".
    """
    with TemporaryDirectory(prefix="mutation-") as home:
        source = Path(home) / "src"
        shutil.copytree(root / "src", source)
        file = source / "bloomery" / mutation.file
        try:
            file.write_text(planted(mutation, file.read_text(encoding="utf-8")), encoding="utf-8")
        except Stale as why:
            return Outcome("STALE", str(why))
        for compiled in file.parent.glob(f"__pycache__/{file.stem}.*"):
            compiled.unlink()
        found = _tested(["-x", *(f"tests/{path}" for path in mutation.tests)], root, source, Path(home))
    if found.status == pytest.ExitCode.TESTS_FAILED and found.failed:
        return Outcome("killed", found.failed[0])
    return Outcome("SURVIVED") if found.status == pytest.ExitCode.OK else Outcome("BROKEN", found.said)


def failing(tests: Iterable[str], root: Path) -> list[str]:
    """Those of the tests that fail on the source as it is: they prove nothing about any fault."""
    with TemporaryDirectory(prefix="mutation-") as home:
        return _tested(sorted(tests), root, root / "src", Path(home)).failed


def _tested(words: Sequence[str], root: Path, source: Path, home: Path) -> Tested:
    """What pytest finds in a process of its own, in which `source` holds the package; `home` is scratch."""
    here, there = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_test, args=(there, words, root, source, home))
    process.start()
    there.close()
    try:
        found: Tested = here.recv()
    except EOFError:
        found = Tested(-1, [], "the process died")
    process.join()
    return found


def _test(answer: Connection, words: Sequence[str], root: Path, source: Path, home: Path) -> None:
    """The process: before everything else on the path, for itself and those it starts, comes `source`."""
    sys.path.insert(0, str(source))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")]).rstrip(
        os.pathsep
    )
    os.chdir(root)
    log, failures = home / "log", _Failures()
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    status = pytest.main([*words, *WORDS, f"--basetemp={home / 'tmp'}"], plugins=[failures])
    sys.stdout.flush()
    lines = log.read_text(errors="replace").split("\n")
    answer.send(Tested(int(status), list(failures.names), next(filter(str.strip, reversed(lines)), "")))


class _Failures:
    """A plugin of pytest that remembers which tests failed."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.names[report.nodeid.split("[")[0]] = None
