"""Comparisons and their groupings by hand; rules that know less and have not seen what they judge."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from bloomery.evals.comparisons import (
    FOLDS,
    Comparison,
    Scored,
    by_length,
    by_margin,
    by_prompt,
    by_rated,
    comparisons,
    given_sources,
    grouped,
    judged_by_source,
    lead,
    rate,
    rivals,
    wins_of_sources,
)
from bloomery.seeds import derive

NAN = math.nan
# Ada prefers b to a to c and rated only a and b; Bob calls a and b a tie and did not see c.
SLATE = Scored(
    "p",
    ("aaaa", "b", "cc"),
    ((2, 1, 3), (1, 1, 0)),
    (1.0, 0.5, -2.0),
    annotators=("ada", "bob"),
    sources=("old", "new", "old"),
    ratings=((2.0, 5.0, NAN), (NAN, NAN, NAN)),
)


def one(gap: float = 1.0, prompt: str = "p", **rest: object) -> Comparison:
    fields: dict[str, object] = {"annotator": "ada", "longer": 0, "rated": NAN, "sources": ("x", "y")}
    return Comparison(prompt=prompt, gap=gap, **(fields | rest))  # type: ignore[arg-type]


def test_a_comparison_is_seen_from_the_preferred_answer() -> None:
    found = sorted(comparisons([SLATE]), key=lambda c: c.gap)
    assert [(c.prompt, c.annotator) for c in found] == [("p", "ada")] * 3
    assert [c.gap for c in found] == [-0.5, 2.5, 3.0]  # b over a, b over c, a over c
    assert [c.longer for c in found] == [-3, -1, 2]
    assert [c.sources for c in found] == [("new", "old"), ("new", "old"), ("old", "old")]
    assert found[0].rated == 3.0
    assert math.isnan(found[1].rated)
    assert [c.right for c in found] == [0.0, 1.0, 1.0]
    assert one(gap=0.0).right == 0.5
    bare = replace(SLATE, annotators=(), sources=(), ratings=())
    assert {(c.annotator, c.sources) for c in comparisons([bare])} == {("unknown", ("unknown", "unknown"))}


def test_a_group_counts_every_name_of_a_comparison() -> None:
    found = [one(1, sources=("x", "y")), one(-1, sources=("y", "z")), one(1, sources=("z", "z"))]
    rows = {row["name"]: row for row in grouped(found, lambda c: sorted(set(c.sources)))}
    assert {name: (row["accuracy"], row["num_pairs"]) for name, row in rows.items()} == {
        "x": (1.0, 1),
        "y": (0.5, 2),
        "z": (0.5, 2),
    }
    assert all(row["low"] <= row["accuracy"] <= row["high"] for row in rows.values())


def test_margins_are_bands_of_the_distance_of_scores() -> None:
    found = [one(gap, prompt=str(gap)) for gap in (0.1, -0.2, 0.3, -0.4, 0.5, 0.6, -0.7, 0.8, 0.9, 1.0)]
    rows = by_margin(found, bands=2)
    assert [row["num_pairs"] for row in rows] == [5, 5]
    assert [row["accuracy"] for row in rows] == [pytest.approx(0.6), pytest.approx(0.8)]
    assert [row["mean"] for row in rows] == [pytest.approx(0.3), pytest.approx(0.8)]
    assert rows[0]["name"] == "0.10 to 0.50"
    # Many equal distances make fewer bands, none of them empty, and nothing is lost.
    assert [row["num_pairs"] for row in by_margin([one(0.0)] * 5 + [one(1.0)] * 5, bands=5)] == [5, 5]
    assert by_margin([]) == []


def test_rated_differences_by_hand() -> None:
    found = [one(rated=r) for r in (-1.0, 0.0, 1.0000001, 1.5, 2.0, 3.5, NAN)]
    assert [(row["name"], row["num_pairs"]) for row in by_rated(found)] == [
        ("rated lower", 1),
        ("rated the same", 1),
        ("higher by up to 1", 1),
        ("by 1 to 2", 2),
        ("by more than 3", 1),
    ]


def test_length_tells_the_shorter_from_the_longer() -> None:
    found = [
        one(-1, longer=-9),
        one(-1, longer=-2),
        one(longer=0),
        one(longer=2),
        one(longer=3),
        one(longer=9),
    ]
    rows = [(row["name"], row["accuracy"], row["num_pairs"]) for row in by_length(found)]
    assert rows == [
        ("shorter by more than 3", 0.0, 1),
        ("shorter by up to 3", 0.0, 1),
        ("of the same length", 1.0, 1),
        ("longer by up to 3", 1.0, 2),
        ("longer by more than 3", 1.0, 1),
    ]


def test_the_lead_is_paired() -> None:
    """Two judges that err on the same prompts: each is uncertain, their difference is not."""
    ours = {str(i): [float(i % 2), 1.0] for i in range(40)}
    theirs = {str(i): [float(i % 2), 0.0] for i in range(40)}
    found = lead(ours, theirs)
    assert (found["mean"], found["low"], found["high"]) == (0.5, 0.5, 0.5)
    assert rate(ours)["high"] - rate(ours)["low"] > 0.1
    assert rate({}) == {"accuracy": None, "low": None, "high": None, "num_pairs": 0}


def test_who_only_knows_the_sources_knows_nothing_given_them() -> None:
    """x beats y in 9 of 10, and a judge always prefers x: right in 90 %, in exactly half given the sources.
    One that knows each case is right in all."""
    prior = [one(1, str(i)) for i in range(9)] + [one(-1, "9", sources=("y", "x"))]
    assert rate(by_prompt(prior))["accuracy"] == 0.9
    assert given_sources(prior)["accuracy"] == pytest.approx(0.5)
    knows = [replace(c, gap=1.0) for c in prior]
    assert given_sources(knows)["accuracy"] == pytest.approx(1.0)
    # Two answers of one source weigh 1 each: here 2 pairs of the first kind's weight 0.9 + 0.9.
    same = [one(-1, "s", sources=("x", "x"))]
    assert given_sources([*knows, *same])["accuracy"] == pytest.approx(1.8 / 2.8)
    assert given_sources([one()])["accuracy"] is None, (
        "x never lost to y: nothing is known beyond the sources"
    )


def two(
    id: str, ranks: tuple[int, int], sources: tuple[str, str], texts: tuple[str, str] = ("a", "b")
) -> Scored:
    return Scored(id, tuple(texts), (ranks,), (0.0, 0.0), ("ada",), sources)


def test_the_prior_is_the_share_that_a_source_won() -> None:
    training = [two("1", (1, 2), ("x", "y")), two("2", (1, 2), ("x", "z")), two("3", (2, 1), ("x", "y"))]
    assert wins_of_sources(training) == {"x": pytest.approx(2 / 3), "y": 0.5, "z": 0.0}
    (judged,) = judged_by_source([two("4", (1, 2), ("z", "new"))], training)
    assert judged.scores == (0.0, 0.5)
    (unknown,) = judged_by_source([replace(judged, sources=())], training)
    assert unknown.scores == (0.5, 0.5)


def test_rules_learn_from_training_alone_or_from_other_prompts() -> None:
    """In training the shorter answer and source y win, in what is held out the longer one and x."""
    texts = ("long", "s")
    training = [two(f"t{i}", (2, 1), ("x", "y"), texts) for i in range(5)]
    held_out = [two(f"h{i}", (1, 2), ("x", "y"), texts) for i in range(40)]
    learnt = rivals(held_out, training)
    assert {s.scores[0] < s.scores[1] for name in learnt for s in learnt[name]} == {True}
    crossed = rivals(held_out, [])
    assert {s.scores[0] > s.scores[1] for name in crossed for s in crossed[name]} == {True}
    assert [s.id for s in crossed["prior"]] == [s.id for s in held_out]


def test_a_cross_fitted_rule_has_not_seen_what_it_judges() -> None:
    """Every prompt has two sources of its own: whoever had seen it would know who wins."""
    held_out = [two(f"h{i}", (1, 2), (f"x{i}", f"y{i}")) for i in range(40)]
    assert {s.scores for s in rivals(held_out, [])["prior"]} == {(0.5, 0.5)}
    # The same prompt twice is in one fold.
    again = [two("same", (1, 2), ("x", "y")), two("same", (1, 2), ("x", "y"))]
    assert {s.scores for s in rivals(again, [])["prior"]} == {(0.5, 0.5)}
    assert len({derive(0, "fold", s.id) % FOLDS for s in held_out}) == FOLDS
