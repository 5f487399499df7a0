"""Duplicates against exhaustive comparison: every exact one, at least 95 % of near ones, no false one; and
the overlap of training and evaluation."""

from __future__ import annotations

import numpy as np
import pytest

from bloomery.data.dedupe import BANDS, ROWS, dedupe, jaccard, overlap, refuse_overlap, shingles, signatures
from bloomery.data.mix import mix
from bloomery.errors import DataError, UsageError
from bloomery.types import Conversation, Document, Message, Prompt

WORDS = [
    f"{a}{b}" for a in ("ka", "lo", "mi", "nu", "re") for b in ("ba", "de", "fi", "go", "hu", "ta", "so")
]


def texts(rng: np.random.Generator, count: int, length: int) -> list[str]:
    return [" ".join(rng.choice(WORDS, size=length)) for _ in range(count)]


def changed(rng: np.random.Generator, text: str, count: int) -> str:
    words = text.split()
    for i in rng.choice(len(words), size=count, replace=False):
        words[i] = "other"
    return " ".join(words)


def numbered(texts: list[str], first: int = 0) -> list[Document]:
    return [Document(id=str(i), text=text) for i, text in enumerate(texts, start=first)]


def test_jaccard_by_hand() -> None:
    a, b = shingles("one two three four five", 3), shingles("one two three four six", 3)
    assert (len(a), len(b)) == (3, 3)
    assert jaccard(a, b) == 2 / 4  # {123, 234, 345} and {123, 234, 346}
    assert jaccard(shingles("One  TWO\nthree", 3), shingles("one two three", 3)) == 1
    assert jaccard(shingles("one", 3), shingles("one two", 3)) == 0
    assert len(shingles("山里有座庙", 3)) == 3
    assert jaccard(shingles("3 + 4 = 7.", 3), shingles("3 - 4 = 7.", 3)) < 0.5


def test_signatures_agree_as_often_as_sets_do() -> None:
    """The share of equal minima is an unbiased estimate of the similarity."""
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(40):
        first = texts(rng, 1, 80)[0]
        pair = [shingles(t, 3) for t in (first, changed(rng, first, int(rng.integers(1, 20))))]
        a, b = signatures(pair)
        errors.append(float((a == b).mean()) - jaccard(*pair))
    assert a.shape == (BANDS * ROWS,)
    assert abs(np.mean(errors)) < 0.02
    assert np.std(errors) < 0.06  # sqrt(s (1 - s) / 125) <= 0.045


def test_near_duplicates_are_found_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    originals = texts(rng, 200, 60)
    copies = [changed(rng, text, int(rng.integers(1, 6))) for text in originals]
    sims = [jaccard(shingles(a, 3), shingles(b, 3)) for a, b in zip(originals, copies, strict=True)]
    near = {str(200 + i) for i, s in enumerate(sims) if s >= 0.7}
    assert 80 < len(near) < 200
    kept, report = dedupe(numbered(originals) + numbered(copies, 200), threshold=0.7)
    dropped = {str(i) for i in range(400)} - {d.id for d in kept}
    assert dropped <= near  # each candidate was compared exactly
    assert len(dropped) >= 0.95 * len(near)
    assert report.clusters == {str(int(i) - 200): [i] for i in sorted(dropped, key=int)}
    assert (report.num_read, report.num_exact, report.num_near) == (400, 0, len(dropped))


def test_exact_duplicates_are_all_found_and_the_first_is_kept() -> None:
    given = ["A cat sat.", "a  CAT\nsat.", "A dog sat.", "A cat sat.", "ﬁne", "fine", "A cat sat!"]
    kept, report = dedupe(numbered(given))
    assert [d.text for d in kept] == ["A cat sat.", "A dog sat.", "ﬁne", "A cat sat!"]
    assert report.clusters == {"0": ["1", "3"], "4": ["5"]}
    assert (report.num_exact, report.num_near) == (3, 0)
    kept, report = dedupe(numbered([FIRST, FIRST + " Indeed.", FIRST]), near=False)
    assert [d.id for d in kept] == ["0", "1"]


FIRST = "Mira lives in a small house near the lake and she has a cat that sleeps all day."


def test_copies_of_a_dropped_copy_join_its_cluster() -> None:
    _, report = dedupe(numbered([FIRST, FIRST + " Indeed.", FIRST + " Indeed."]))
    assert report.clusters == {"0": ["1", "2"]}
    assert (report.num_exact, report.num_near) == (1, 1)


def test_it_is_the_same_every_time_and_settings_matter() -> None:
    rng = np.random.default_rng(2)
    given = numbered([t for text in texts(rng, 30, 40) for t in (text, changed(rng, text, 2))])
    assert dedupe(given) == dedupe(iter(given))
    assert len(dedupe(given, threshold=0.95)[0]) == 60 > len(dedupe(given)[0])
    assert dedupe(given, ngram=1)[1].num_near >= dedupe(given, ngram=6)[1].num_near
    for bad in ({"threshold": 0.0}, {"threshold": 1.1}, {"ngram": 0}):
        with pytest.raises(UsageError):
            dedupe(given, **bad)  # type: ignore[arg-type]


def test_overlap_of_training_and_evaluation() -> None:
    def ask(id: str, text: str) -> Prompt:
        return Prompt(id=id, messages=(Message(role="user", content=text),))

    answered = Conversation(
        id="t2",
        messages=(Message(role="user", content="Where is Mira?"), Message(role="assistant", content="Here.")),
    )
    train = [ask("t1", "Who is Ann?"), answered]
    evaluation = [ask("e1", "where is  mira"), ask("e2", "Where is Ben?"), ask("e3", "WHO IS ANN")]
    assert overlap(train, evaluation) == [("e1", "t2"), ("e3", "t1")]
    with pytest.raises(DataError, match="2 of the evaluation's prompts"):
        refuse_overlap(train, evaluation)
    refuse_overlap(train, evaluation[1:2])


def test_mixing_takes_each_source_as_often_as_asked() -> None:
    given = [Document(id=f"{source}{i}", text="t", source=source) for i in range(10) for source in "abc"]
    mixed = mix(given, {"a": 2.5, "b": 0}, seed=1)
    ids = [d.id for d in mixed]
    assert len(set(ids)) == len(ids)
    assert [i for i in ids if "c" in i] == [f"c{i}" for i in range(10)]
    assert not any("b" in i for i in ids)
    copies = [i.split("#")[1] for i in ids if "#" in i]
    assert (copies.count("2"), copies.count("3"), len(ids)) == (10, 5, 35)
    assert mixed == mix(given, {"a": 2.5, "b": 0}, seed=1) != mix(given, {"a": 2.5, "b": 0}, seed=2)
    assert mix(given, {}, seed=1) == given
    with pytest.raises(UsageError, match="no document has source 'd'"):
        mix(given, {"d": 1}, seed=1)
    with pytest.raises(UsageError, match="number of times"):
        mix(given, {"a": -1}, seed=1)
