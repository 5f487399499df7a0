"""Compared: digests with hashlib's, a sealed directory with itself after bits are flipped one by one, keys
before and after each thing that must or must not change them, the walked descent with the one laid down."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from bloomery import lineage
from bloomery.errors import ArtifactError
from bloomery.lineage import Lineage, Person
from bloomery.recipe import InputPath, Section
from bloomery.types import Policy, Ranking


class Toy(Section):
    seed: int = 0
    data: tuple[InputPath, ...] = ()


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    out = tmp_path / "sealed"
    (out / "inner").mkdir(parents=True)
    (out / "model.bin").write_bytes(bytes(range(24)))
    (out / "inner" / "notes.txt").write_text("twelve bytes")
    (out / "metrics.jsonl").write_text('{"step": 0}\n')
    lineage.write_manifest(out)
    return out


def run_directory(
    out: Path, content: str, inputs: tuple[Path, ...] = (), people: tuple[Person, ...] = ()
) -> Path:
    """A finished run that made `content` from `inputs`."""
    out.mkdir(parents=True)
    (out / "content.txt").write_text(content)
    record = Lineage(
        stage="toy",
        name=out.name,
        key="k",
        code="c",
        recipe_digest="r",
        seed=0,
        inputs=tuple(lineage.parent(f"input-{i}", path, out) for i, path in enumerate(inputs)),
        people=people,
        created_at="2026-01-01T00:00:00+00:00",
    )
    lineage.write(out, record)
    lineage.write_manifest(out)
    return out


# ---------------------------------------------------------------------------------------------- digests


def test_digests_are_sha256(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"iron")
    assert lineage.digest_bytes(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert lineage.digest_file(path) == lineage.digest_path(path) == hashlib.sha256(b"iron").hexdigest()


def test_a_json_digest_sees_values_and_not_their_order() -> None:
    assert lineage.digest_json({"a": 1, "b": [1, 2]}) == lineage.digest_json({"b": [1, 2], "a": 1})
    assert lineage.digest_json({"a": 1, "b": [1, 2]}) != lineage.digest_json({"a": 1, "b": [2, 1]})
    assert lineage.digest_json({"a": 1}) != lineage.digest_json({"a": "1"})
    with pytest.raises(ValueError, match="Out of range"):
        lineage.digest_json(float("nan"))


def test_what_is_not_there_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file or directory"):
        lineage.digest_path(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match="cannot read"):
        lineage.digest_file(tmp_path)


def test_a_directory_is_its_content_and_not_what_the_run_says_of_itself(sealed: Path, tmp_path: Path) -> None:
    other = shutil.copytree(sealed, tmp_path / "other")
    (other / "metrics.jsonl").write_text('{"step": 0, "seconds": 3}\n')
    (other / "lineage.json").write_text("{}")
    lineage.write_manifest(other)
    assert lineage.digest_path(other) == lineage.digest_path(sealed)
    (other / lineage.MANIFEST).unlink()
    assert lineage.digest_path(other) == lineage.digest_path(sealed)
    (other / "model.bin").rename(other / "model2.bin")
    assert lineage.digest_path(other) != lineage.digest_path(sealed)


def test_a_sealed_directory_that_was_touched_has_no_digest(sealed: Path) -> None:
    (sealed / "inner" / "notes.txt").write_text("twelve bites")
    with pytest.raises(ArtifactError, match=r"inner/notes.txt: content changed"):
        lineage.digest_path(sealed)


def test_the_code_version_sees_the_stages_and_what_is_below_them(tmp_path: Path, monkeypatch) -> None:
    for name in ("lineage.py", "stages/sft.py", "text/chat.jinja", "journey/plan.py", "cli.py", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1")
    monkeypatch.setattr(lineage, "__file__", str(tmp_path / "lineage.py"))
    before = lineage.code_version.__wrapped__()
    for name, matters in (
        ("stages/sft.py", True),
        ("text/chat.jinja", True),
        ("journey/plan.py", False),
        ("cli.py", False),
        ("notes.md", False),
    ):
        (tmp_path / name).write_text("x = 2")
        assert (lineage.code_version.__wrapped__() != before) is matters, name
        before = lineage.code_version.__wrapped__()
    (tmp_path / "stages" / "sft.py").rename(tmp_path / "stages" / "sft2.py")
    assert lineage.code_version.__wrapped__() != before


def test_a_stage_key_changes_with_all_that_matters_and_with_nothing_else(tmp_path: Path, monkeypatch) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text("same")
    two.write_text("same")
    key = lineage.stage_key("sft", Toy(data=(one,)))
    assert key == lineage.stage_key("sft", Toy(data=(two,)))
    assert key != lineage.stage_key("reward", Toy(data=(one,)))
    assert key != lineage.stage_key("sft", Toy(data=(one,), seed=1))
    assert key != lineage.stage_key("sft", Toy(data=(one, two)))
    two.write_text("other")
    assert key != lineage.stage_key("sft", Toy(data=(two,)))
    monkeypatch.setattr(lineage, "code_version", lambda: "another")
    assert key != lineage.stage_key("sft", Toy(data=(one,)))


# --------------------------------------------------------------------------------------------- manifests


def test_a_sealed_directory_verifies(sealed: Path) -> None:
    assert lineage.verify(sealed) == []
    assert lineage.complete(sealed)
    assert set(lineage.read_manifest(sealed)) == {"model.bin", "inner/notes.txt", "metrics.jsonl"}
    assert lineage.read_manifest(sealed)["inner/notes.txt"]["bytes"] == 12


def test_checkpoints_and_hidden_files_are_no_part_of_it(sealed: Path) -> None:
    (sealed / "checkpoint-3").mkdir()
    (sealed / "checkpoint-3" / "x").write_text("x")
    (sealed / ".note").write_text("x")
    assert lineage.verify(sealed) == []


def test_every_flipped_bit_is_found_and_its_file_named(tmp_path: Path) -> None:
    sealed = tmp_path / "sealed"
    (sealed / "b").mkdir(parents=True)
    (sealed / "a").write_bytes(bytes(range(7)))
    (sealed / "b" / "c").write_text("xyz")
    lineage.write_manifest(sealed)
    for path in sorted(p for p in sealed.rglob("*") if p.is_file()):
        whole, name = path.read_bytes(), path.relative_to(sealed).as_posix()
        for bit in range(8 * len(whole))[:: 7 if name == lineage.MANIFEST else 1]:
            at = bit // 8
            path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << bit % 8)]) + whole[at + 1 :])
            problems = lineage.verify(sealed)
            assert len(problems) == 1, (name, bit)
            damaged = "the manifest is damaged" if name == lineage.MANIFEST else "content changed"
            assert f"{name}: {damaged}" in problems[0]
        path.write_bytes(whole)
    assert lineage.verify(sealed) == []


def test_lost_cut_added_and_linked_files_are_named(sealed: Path, tmp_path: Path) -> None:
    (sealed / "model.bin").write_bytes(bytes(range(23)))
    (sealed / "metrics.jsonl").unlink()
    (sealed / "new.txt").write_text("x")
    (tmp_path / "elsewhere").write_text("twelve bytes")
    (sealed / "inner" / "notes.txt").unlink()
    (sealed / "inner" / "notes.txt").symlink_to(tmp_path / "elsewhere")
    assert lineage.verify(sealed) == [
        "metrics.jsonl: missing",
        "new.txt: not in the manifest",
        "inner/notes.txt: is a link",
        "model.bin: 23 bytes, expected 24",
    ]
    assert not lineage.complete(sealed)
    with pytest.raises(ArtifactError, match="holds files, not links"):
        lineage.write_manifest(sealed)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"files": 3}', '{"files": {"a": 1}}\n', "{", "\xff", '{"files": {}}']
)
def test_a_damaged_manifest_is_said_to_be(sealed: Path, text: str) -> None:
    (sealed / lineage.MANIFEST).write_text(text, encoding="latin-1")
    assert "the manifest is damaged" in lineage.verify(sealed)[0]


def test_no_manifest_means_not_complete(tmp_path: Path) -> None:
    assert not lineage.complete(tmp_path)
    assert "not complete" in lineage.verify(tmp_path)[0]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "f.json"
    lineage.write_json(path, {"a": 1})

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        lineage.write_json(path, {"a": 2})
    assert path.read_text() == '{\n "a": 1\n}\n'


# ------------------------------------------------------------------------------------- people, teachers


def person(id: str, **given: int) -> Person:
    return Person(id=id, kind="simulated", rankings=sum(given.values()), given=given)


def test_people_are_counted_by_submitted_ranking() -> None:
    def ranking(who: str, status: str) -> Ranking:
        answer = {"messages": [{"role": "assistant", "content": "x"}], "policy": {"id": "m"}}
        return Ranking.model_validate(
            {
                "id": "r",
                "prompt": [{"role": "user", "content": "x"}],
                "completions": [answer, answer],
                "ranking": [1, 2],
                "annotator": {"id": who, "kind": "simulated"},
                "status": status,
                "created_at": "2026-01-01",
            }
        )

    rankings = [ranking("b", "submitted"), ranking("a", "submitted"), ranking("b", "submitted")]
    rankings.append(ranking("a", "skipped"))
    assert lineage.count_people(rankings, "file") == (person("a", file=1), person("b", file=2))


def test_a_ranking_reached_by_two_ways_counts_once() -> None:
    """A policy of round 1 and a reward model of rounds 1 and 2 are both parents of the policy of round 2."""
    policy = [person("a", first=10), person("b", first=5)]
    reward = [person("a", first=10, second=7), person("c", second=1)]
    assert lineage.union_people([policy, reward]) == (
        person("a", first=10, second=7),
        person("b", first=5),
        person("c", second=1),
    )
    assert lineage.union_people([]) == ()


def test_people_named_without_sources() -> None:
    inherited = [person("a", first=10)]
    named = [{"id": "a", "kind": "simulated", "rankings": 12}, {"id": "b", "kind": "simulated"}]
    made = lineage.own_people(named, inherited, "here", new=True)
    assert lineage.union_people([inherited, made])[0] == person("a", first=10, here=12)
    read = lineage.own_people(named, inherited, "here", new=False)
    assert lineage.union_people([inherited, read]) == (person("a", first=10, here=2), person("b"))


def test_teachers_are_told_apart_by_digest() -> None:
    one, again, two = Policy(id="m", digest="1"), Policy(id="m", digest="1"), Policy(id="m", digest="2")
    assert lineage.union_teachers([[one, two], [again, Policy(id="a")]]) == (Policy(id="a"), one, two)


# ----------------------------------------------------------------------------------------------- descent


def test_a_lineage_is_read_as_it_was_written(tmp_path: Path) -> None:
    out = run_directory(tmp_path / "a", "x", people=(person("p", f=1),))
    assert lineage.read(out).people == (person("p", f=1),)
    assert lineage.of(out / "content.txt") == lineage.of(out) == lineage.read(out)
    assert lineage.of(tmp_path / "elsewhere.txt") is None
    with pytest.raises(ArtifactError, match="cannot read the lineage"):
        lineage.read(tmp_path)
    (out / "lineage.json").write_text('{"stage": "x"}')
    with pytest.raises(ArtifactError, match=r"not a lineage: name: Field required"):
        lineage.read(out)


def test_parents_beside_the_run_are_relative_and_others_absolute(tmp_path: Path) -> None:
    a = run_directory(tmp_path / "stages" / "a", "a")
    raw = tmp_path / "raw.jsonl"
    raw.write_text("raw")
    (tmp_path / "link").symlink_to(a)
    out = tmp_path / "stages" / "b"
    assert lineage.parent("model", tmp_path / "link", out).path == "../a"
    assert lineage.parent("data", a / "content.txt", out).path == "../a/content.txt"
    assert lineage.parent("data", raw, out).path == str(raw.resolve())


def test_the_descent_is_walked_to_the_roots_even_after_a_move(tmp_path: Path) -> None:
    raw = tmp_path / "stages" / "raw.txt"
    raw.parent.mkdir()
    raw.write_text("ore")
    a = run_directory(tmp_path / "stages" / "a", "a", (raw,))
    b = run_directory(tmp_path / "stages" / "b", "b", (a / "content.txt", a))
    run_directory(tmp_path / "stages" / "c", "c", (b, a))
    (tmp_path / "stages").rename(tmp_path / "moved")
    root = lineage.ancestry(tmp_path / "moved" / "c")
    assert [node.path.name for node in lineage.everyone(root)] == ["c", "b", "a", "content.txt", "raw.txt"]
    assert {node.status for node in lineage.everyone(root)} == {"ok"}
    assert root.parents[0].parents[0].parents[0].lineage is None
    assert [node.role for node in root.parents] == ["input-0", "input-1"]
    leaf = root.parents[0].parents[0]
    assert leaf.path.name == "content.txt"
    assert leaf.parents[0].path.name == "raw.txt"


def test_what_is_gone_or_changed_is_said_to_be(tmp_path: Path) -> None:
    a, b = run_directory(tmp_path / "a", "a"), run_directory(tmp_path / "b", "b")
    c = run_directory(tmp_path / "c", "c", (a, b))
    shutil.rmtree(a)
    (b / "content.txt").write_text("B")
    root = lineage.ancestry(c)
    assert [(node.path.name, node.status) for node in root.parents] == [("a", "missing"), ("b", "changed")]
    lineage.write_manifest(b)
    assert lineage.ancestry(c).parents[1].status == "changed"
    assert lineage.ancestry(b).status == "ok"
    (c / "content.txt").write_text("C")
    assert lineage.ancestry(c).status == "changed"
    with pytest.raises(ArtifactError, match="no such artifact"):
        lineage.ancestry(a)


def test_forty_rounds_are_walked_once_each(tmp_path: Path) -> None:
    """Each round has the two rounds before it as parents; without sharing, the walk would take 2^40 steps."""
    rounds = [run_directory(tmp_path / "r0", "0"), run_directory(tmp_path / "r1", "1")]
    for n in range(2, 40):
        rounds.append(run_directory(tmp_path / f"r{n}", str(n), (rounds[-1], rounds[-2])))
    assert len(list(lineage.everyone(lineage.ancestry(rounds[-1])))) == 40
