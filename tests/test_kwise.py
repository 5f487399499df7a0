"""K-wise against pairwise: both are given the same pairs, and told apart on the same slates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import ModuleType

import pytest

from bloomery.stages.common import is_held_out
from bloomery.stages.slates import Slate, make_slates, prompt_id
from bloomery.text.chat import Chat
from bloomery.types import Annotator, Candidate, Message, Policy, Ranking, ranked_pairs
from stages.tiny import tokenizer


@pytest.fixture
def kwise(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("kwise")


def ranking(question: str, who: str, ranks: tuple[int, ...], correction: str | None = None) -> Ranking:
    answers = ("red tea", "blue", "jam jam jam", "milk")[: len(ranks)]
    return Ranking(
        id=f"{question}/{who}",
        prompt=(Message(role="user", content=question),),
        completions=tuple(
            Candidate(messages=(Message(role="assistant", content=a),), policy=Policy(id="sft"))
            for a in answers
        ),
        ranking=ranks,
        correction=correction,
        annotator=Annotator(id=who, kind="simulated"),
        created_at="2026-01-01T00:00:00Z",
    )


def question(held_out: bool) -> str:
    return next(
        q
        for q in (f"what is best {n}" for n in range(1000))
        if is_held_out(prompt_id((Message(role="user", content=q),)), 0.1) is held_out
    )


def votes(rankings: list[Ranking]) -> Counter[tuple[str, str, bool]]:
    """Winner, loser and whether it is a tie, of every pair of every ranking, corrections included."""
    found: Counter[tuple[str, str, bool]] = Counter()
    for r in rankings:
        texts, ranks = [c.text for c in r.completions], list(r.ranking or ())
        if r.correction:
            texts, ranks = [*texts, r.correction], [*ranks, 0]
        found.update((texts[w], texts[loser], tie) for w, loser, tie in ranked_pairs(ranks))
    return found


def test_a_ranking_taken_apart_says_the_same_of_every_pair(kwise: ModuleType) -> None:
    whole = [
        ranking(question(False), "ann", (2, 4, 2, 1)),
        ranking(question(False), "bob", (1, 2, 3), correction="green tea"),
    ]
    apart = list(kwise.as_pairs(whole))
    assert votes(apart) == votes(whole)
    assert [len(r.completions) for r in apart] == [2] * (6 + 6)
    assert {r.ranking for r in apart} == {(1, 2), (2, 1), (1, 1)}
    assert len({r.id for r in apart}) == len(apart)
    assert [r.annotator.id for r in apart] == ["ann"] * 6 + ["bob"] * 6


def test_what_is_held_out_stays_whole(kwise: ModuleType) -> None:
    held = ranking(question(True), "ann", (1, 2, 3, 4), correction="green tea")
    assert list(kwise.as_pairs([held])) == [held]


def test_two_annotators_of_a_pair_share_its_forward_passes(kwise: ModuleType) -> None:
    """K (K - 1) answers forwarded instead of K, whoever ranked them."""
    q = question(False)
    rankings = [ranking(q, "ann", (1, 2, 3, 4)), ranking(q, "bob", (2, 1, 4, 3))]
    chat = Chat(tokenizer())
    whole = make_slates(rankings, chat, True)
    apart = make_slates(kwise.as_pairs(rankings), chat, True)
    assert kwise.work(whole)["answers forwarded"] == 4
    assert kwise.work(apart)["answers forwarded"] == 4 * 3
    assert sum(len(s.ranks) for s in apart) == 2 * 6


def test_a_prompt_counts_once_for_each_slate(kwise: ModuleType) -> None:
    """Shared 1 2 3; own tokens 2 + 1 + 3. The last token is never shared: 5 and 5 count apart."""
    slates = [
        Slate("a", ("", "", ""), ((1, 2, 3, 4, 5), (1, 2, 3, 6), (1, 2, 3, 7, 8, 9)), ((1, 2, 3),)),
        Slate("b", ("", ""), ((1, 5), (1, 5)), ((1, 2),)),
    ]
    assert kwise.work(slates) == {"answers forwarded": 5, "tokens": 3 + 6 + 1 + 2}


def test_both_sides_take_equally_many_steps(kwise: ModuleType) -> None:
    assert kwise.same_steps(2160, 2160) == kwise.BATCH
    assert kwise.same_steps(2160 * 15, 2160) == kwise.BATCH * 15
    assert kwise.same_steps(1, 100) == 1


def test_the_lead_is_paired_and_draws_whole_slates(kwise: ModuleType) -> None:
    """Ten pairs: one more right in the first slate, one fewer in the third, two more in the fourth."""
    first = [[1, 1, 0], [], [0.0, 1], [1, 1, 1, 1, 0.5]]
    second = [[1, 0, 0], [], [1.0, 1], [1, 0, 1, 0, 0.5]]
    found = kwise.lead(first, second)
    assert found["mean"] == pytest.approx((1 - 1 + 2) / 10)
    assert -0.5 <= found["low"] < found["mean"] < found["high"] <= 0.4
    same = kwise.lead(first, first)
    assert (same["mean"], same["low"], same["high"]) == (0, 0, 0)
    with pytest.raises(ValueError, match="shorter"):
        kwise.lead(first, second[:-1])


def test_the_section_names_both_sides_and_their_ratio(kwise: ModuleType) -> None:
    rate = {"mean": 0.75, "low": 0.7, "high": 0.8}
    side = {"held out": rate, "where annotators agree": rate, "in training": 0.85}
    row = {
        "seed": 3,
        "sides": {
            "K-wise": side | {"answers forwarded": 1000, "tokens": 50_000, "seconds": 60.0},
            "pairwise": side | {"answers forwarded": 5000, "tokens": 150_000, "seconds": 240.0},
        },
        "lead": {"mean": 0.01, "low": -0.02, "high": 0.04},
    }
    text = kwise.section([row], "commit abc, one machine")
    assert "`python benchmarks/kwise.py runs/seeds/seed-*`, commit abc, one machine." in text
    rates = "0.750 [0.700, 0.800] | 0.750 [0.700, 0.800] | 0.850"
    assert f"| 3 | K-wise | {rates} | 1,000 | 50,000 | 60 |" in text
    assert f"| 3 | pairwise | {rates} | 5,000 | 150,000 | 240 |" in text
    assert "| 3 | +0.010 [-0.020, +0.040] | 1 : 5.0 | 1 : 3.0 | 1 : 4.0 |" in text
    head = next(line for line in text.splitlines() if line.startswith("| seed | trained"))
    assert {line.count("|") for line in text.splitlines() if "wise | 0" in line} == {head.count("|")}
