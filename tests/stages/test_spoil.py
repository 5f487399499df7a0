"""Fewer and worse rankings: which are kept, which are turned over, and what stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny

from bloomery import lineage
from bloomery.data.convert import write
from bloomery.data.sources import read_rankings
from bloomery.errors import UsageError
from bloomery.stages import spoil
from bloomery.stages.common import is_held_out
from bloomery.stages.slates import prompt_id
from bloomery.stages.spoil import Spoil, turned_over
from bloomery.types import Ranking, Rating

MANY = [
    tiny.ranking(f"what is {n}", ["red", "blue", "tea"], [1, 3, 1], who)
    for n in range(200)
    for who in ("ada", "bob")
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spoil") / "rankings.jsonl"
    write(MANY, path, "ranking")
    return path


def run(file: Path, out: Path, **changed: Any) -> list[Ranking]:
    spoil.run(Spoil.model_validate({"rankings": (file,), **changed}), out)
    return list(read_rankings(out / "rankings.jsonl"))


def prompts(rankings: list[Ranking], held_out: bool = False) -> set[str]:
    ids = {prompt_id(r.prompt) for r in rankings}
    return {i for i in ids if is_held_out(i, 0.1) == held_out}


def test_by_default_nothing_changes(file: Path, tmp_path: Path) -> None:
    assert run(file, tmp_path / "out") == MANY
    assert (tmp_path / "out" / "rankings.jsonl").read_bytes() == file.read_bytes()


def test_a_share_is_of_prompts_and_parts_have_none_in_common(file: Path, tmp_path: Path) -> None:
    every, aside = prompts(MANY), prompts(MANY, held_out=True)
    assert aside
    parts = [run(file, tmp_path / str(n), share=0.25, part=n) for n in range(4)]
    for one in parts:
        assert len(prompts(one)) == pytest.approx(len(every) / 4, abs=1)
        assert prompts(one, held_out=True) == aside  # report cards are measured on the same comparisons
        assert len(one) == 2 * (len(prompts(one)) + len(aside))  # both annotators of each prompt
        assert one == [r for r in MANY if r in one]  # in the order they came
    assert set().union(*map(prompts, parts)) == every
    assert sum(len(prompts(one)) for one in parts) == len(every)
    assert prompts(run(file, tmp_path / "less", share=0.1)) < prompts(parts[0])
    assert prompts(run(file, tmp_path / "other", share=0.25, seed=1)) != prompts(parts[0])


def test_turned_over_rankings_are_as_many_as_said_and_never_held_out(file: Path, tmp_path: Path) -> None:
    found = run(file, tmp_path / "out", flipped=0.3)
    changed = [r for r, was in zip(found, MANY, strict=True) if r != was]
    free = [r for r in MANY if not is_held_out(prompt_id(r.prompt), 0.1)]
    assert len(changed) == round(0.3 * len(free))
    assert all(r.ranking == (2, 1, 2) for r in changed)
    assert not any(is_held_out(prompt_id(r.prompt), 0.1) for r in changed)
    assert {r.annotator.id for r in changed} == {"ada", "bob"}
    every = run(file, tmp_path / "all", flipped=1.0, held_out=0.0)
    assert all(r.ranking == (2, 1, 2) for r in every)
    assert run(file, tmp_path / "seed", flipped=0.3, seed=1) != found


@pytest.mark.parametrize(
    ("ranks", "turned"),
    [([1, 2, 3, 4], (4, 3, 2, 1)), ([1, 1, 3], (2, 2, 1)), ([2, 1, 2], (1, 3, 1)), ([1, 1], (1, 1))],
)
def test_ranks_turned_over_by_hand(ranks: list[int], turned: tuple[int, ...]) -> None:
    rating = Rating(helpful=7, honest=7, harmless=7)
    was = tiny.ranking(
        "what", [str(n) for n in range(len(ranks))], ranks, correction="tea", ratings=[rating] * len(ranks)
    )
    found = turned_over(was)
    assert (found.ranking, found.correction, found.ratings) == (turned, None, None)
    if ranks != [2, 1, 2]:  # a gap in the ranks is closed
        assert turned_over(found).ranking == was.ranking


def test_a_skipped_task_stays_one() -> None:
    skipped = tiny.ranking("what", ["red", "tea"], None, status="skipped")
    assert turned_over(skipped).ranking is None


def test_people_are_counted_once(file: Path, tmp_path: Path) -> None:
    run(file, tmp_path / "first", flipped=0.5)
    run(tmp_path / "first" / "rankings.jsonl", tmp_path / "second", share=0.5)
    for name in ("first", "second"):
        people = lineage.read(tmp_path / name).people
        assert {one.id: one.rankings for one in people} == {"ada": 200, "bob": 200}


def test_what_cannot_be_had_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"part 2 of shares of 0\.4"):
        Spoil(rankings=(file,), share=0.4, part=2)
    with pytest.raises(UsageError, match="no prompt is left"):
        run(file, tmp_path / "out", share=0.001)
