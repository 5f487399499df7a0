"""Files of rankings: records -> file -> store -> file, equal in every field and byte; what a bad line says;
the preference format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from judgements import ranking

from bloomery.errors import DataError, UsageError
from bloomery.feedback.exchange import read_rankings, write_preferences, write_rankings
from bloomery.feedback.pairs import rankings_to_pairs
from bloomery.feedback.store import Store
from bloomery.types import Annotator, Candidate, Message, Policy, Ranking, Rating, Sampling

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)
grades = st.integers(1, 7)
messages = st.lists(
    st.builds(
        Message,
        role=st.sampled_from(["system", "user", "assistant", "tool"]),
        content=texts,
        weight=st.sampled_from([None, 0, 1]),
    ),
    min_size=1,
    max_size=3,
).map(tuple)
candidates = st.builds(
    Candidate,
    messages=messages,
    policy=st.builds(Policy, id=texts, digest=st.none() | texts),
    sampling=st.none() | st.builds(Sampling, temperature=numbers, max_tokens=st.integers(1, 99)),
    logprob=st.none() | numbers,
)
ratings = st.none() | st.builds(Rating, helpful=grades, honest=grades, harmless=grades)


@st.composite
def records(draw: st.DrawFn) -> Ranking:
    k = draw(st.integers(2, 4))
    status = draw(st.sampled_from(["submitted", "skipped", "flagged"]))
    ranks = st.lists(st.integers(1, k), min_size=k, max_size=k).map(tuple)
    given = draw(ranks if status == "submitted" else st.none() | ranks)
    untied = k == 2 and given is not None and given[0] != given[1]
    return Ranking(
        id=draw(st.uuids()).hex,
        prompt=draw(messages),
        completions=tuple(draw(st.lists(candidates, min_size=k, max_size=k))),
        ranking=given,
        ratings=draw(st.none() | st.lists(ratings, min_size=k, max_size=k).map(tuple)),
        margin=draw(st.none() | st.floats(0, 1e9)) if untied else None,
        correction=draw(st.none() | texts),
        annotator=draw(st.sampled_from(ANNOTATORS)),
        seconds=draw(st.none() | st.floats(0, 1e6)),
        shown_order=draw(st.none() | st.permutations(range(k)).map(tuple)),
        prelabel_shown=draw(st.booleans()),
        guideline_version=draw(st.none() | texts),
        comment=draw(st.none() | texts),
        status=status,
        created_at=draw(texts),
    )


ANNOTATORS = [Annotator(id="ada", kind="human"), Annotator(id="sim 1", kind="simulated")]


def unique(found: list[Ranking]) -> bool:
    return len({record.id for record in found}) == len(found)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=st.lists(records(), max_size=4).filter(unique))
def test_nothing_is_lost_between_file_store_and_file(tmp_path: Path, found: list[Ranking]) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert write_rankings(found, one) == len(found)
    with Store("sqlite://") as store:
        store.create_project("p")
        assert store.import_rankings("p", read_rankings(one)).new == len(found)
        assert store.import_rankings("p", read_rankings(one)).already == len(found)
        assert list(store.rankings("p")) == found
        write_rankings(store.rankings("p"), two)
    assert two.read_bytes() == one.read_bytes()


def test_a_minus_zero_is_kept() -> None:
    """SQLite stores the number -0.0 as 0.0, and a greedy answer's log-prob may well be -0.0."""
    one = ranking((1, 2), seconds=-0.0)
    best = one.completions[0].model_copy(update={"logprob": -0.0})
    one = one.model_copy(update={"completions": (best, one.completions[1])})
    with Store("sqlite://") as store:
        store.create_project("p")
        store.import_rankings("p", [one])
        (found,) = store.rankings("p")
    assert found.model_dump_json() == one.model_dump_json()
    assert '"logprob":-0.0' in found.model_dump_json()


def test_more_records_than_a_page(tmp_path: Path) -> None:
    found = [ranking((1, 2), prompt=f"q{n}") for n in range(1001)]
    with Store("sqlite://") as store:
        store.create_project("p")
        store.import_rankings("p", found)
        assert list(store.rankings("p")) == found


def test_the_same_annotator_twice_on_one_prompt_is_kept_twice() -> None:
    first = ranking((1, 2))
    again = first.model_copy(update={"id": "again", "ranking": (2, 1)})
    with Store("sqlite://") as store:
        store.create_project("p")
        store.import_rankings("p", [first, again])
        assert list(store.rankings("p")) == [first, again]
        assert store.stats("p").num_complete == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "x"}', "Field required"),
        ("", "Invalid JSON"),
        ("{", "Invalid JSON"),
        (ranking((1, 2)).model_dump_json().replace("[1,2]", "[1,2,3]"), "3 ranks for 2 completions"),
        (ranking((1, 2)).model_dump_json().replace('"status"', '"statos"'), "Extra inputs"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(ranking((1, 2)).model_dump_json() + "\n" + line + "\n")
    reading = read_rankings(path)
    next(reading)
    with pytest.raises(DataError, match=message) as caught:
        next(reading)
    assert str(caught.value).startswith(f"{path}:2: ")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        list(read_rankings(tmp_path / "none.jsonl"))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write_rankings([ranking((1, 2))], path)
    before = path.read_bytes()

    def broken():
        yield ranking((2, 1))
        raise DataError("half way")

    with pytest.raises(DataError, match="half way"):
        write_rankings(broken(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_preferences_in_the_format_of_trl(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    found = rankings_to_pairs([ranking((2, 1, 2), prompt="wer?", texts=["ä", "b", "c"])])
    assert write_preferences(found.pairs, path) == 2
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {
        "prompt": [{"role": "user", "content": "wer?"}],
        "chosen": [{"role": "assistant", "content": "b"}],
        "rejected": [{"role": "assistant", "content": "ä"}],
    }
    assert lines[1]["rejected"][0]["content"] == "c"
    tied = rankings_to_pairs([ranking((2, 1, 2))], ties=True)
    with pytest.raises(DataError, match="tie"):
        write_preferences(tied.pairs, path)
    assert len(path.read_text().splitlines()) == 2
