"""The planted faults of `make mutations` still fit the source, and its runner tells caught from missed.

The faults themselves are planted by `make mutations`, which takes minutes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mutations.__main__ import ROOT, main
from mutations.catalogue import MUTATIONS
from mutations.mutation import Mutation, Stale, planted

HALF = "def half(x: float) -> float:\n    return x / 2\n"
TESTS = """
from bloomery.half import half

def test_of_four():
    assert half(4) == 2

def test_that_always_fails():
    assert half is None
"""


def test_there_are_enough_and_each_has_a_name_of_its_own() -> None:
    assert len(MUTATIONS) >= 30
    assert [name for name, n in Counter(m.name for m in MUTATIONS).items() if n > 1] == []


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_every_fault_fits_the_source_once_and_compiles(mutation: Mutation) -> None:
    source = (ROOT / "src" / "bloomery" / mutation.file).read_text(encoding="utf-8")
    fault = planted(mutation, source)
    assert fault != source
    compile(fault, mutation.file, "exec")
    assert mutation.tests
    for path, _, test in (named.partition("::") for named in mutation.tests):
        assert f"def {test}" in (ROOT / "tests" / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("old", ["x / 3", "x"])
def test_a_text_that_is_gone_or_stands_twice_is_stale(old: str) -> None:
    with pytest.raises(Stale):
        planted(Mutation("stale", "half.py", old, "y", ("test_half.py",)), HALF)


def test_the_runner_tells_killed_from_survived_stale_and_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a project of two lines. Its package is called as ours: the copy must come before the installed."""
    package, tests = tmp_path / "src" / "bloomery", tmp_path / "tests"
    package.mkdir(parents=True)
    tests.mkdir()
    (package / "__init__.py").touch()
    (package / "half.py").write_text(HALF)
    of_four, always = TESTS.split("def test_that")
    (tests / "test_four.py").write_text(of_four)
    (tests / "test_always.py").write_text(always := f"{of_four.split('def')[0]}def test_that{always}")
    made = [
        Mutation("third", "half.py", "x / 2", "x / 3", ("test_four.py",)),
        Mutation("same", "half.py", "x / 2", "x * 0.5", ("test_four.py",)),
        Mutation("gone", "half.py", "x // 2", "x", ("test_four.py",)),
        Mutation("no-import", "half.py", "def half", "def quarter", ("test_four.py",)),
        Mutation("no-proof", "half.py", "x / 2", "x / 4", ("test_always.py",)),
    ]
    assert main(["-j", "2"], made, tmp_path) == 1
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in said[:5]] == [
        ["killed", "third"],
        ["SURVIVED", "same"],
        ["STALE", "gone"],
        ["BROKEN", "no-import"],
        ["killed", "no-proof"],
    ]
    assert said[0].endswith("tests/test_four.py::test_of_four")
    assert said[5].endswith("fails without a fault too: nothing is known of no-proof")
    assert said[6] == "killed 1 of 5"
    assert (package / "half.py").read_text() == HALF
    assert main(["--only", "third"], made, tmp_path) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "killed 1 of 1"


def test_faults_can_be_listed_and_only_known_ones_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--only", MUTATIONS[0].name]) == 0
    assert capsys.readouterr().out.split() == [MUTATIONS[0].name, MUTATIONS[0].file]
    with pytest.raises(SystemExit):
        main(["--only", "no-such-fault"])
