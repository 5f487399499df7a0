"""What the texts say, found by searching them, is compared with what the facts' exposures promise.

The search knows nothing of how documents are written: a fact counts as told wherever a person's full name
and the value stand in one document.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import pytest

from bloomery.errors import UsageError
from bloomery.types import Document
from bloomery.world import Fact, World, documents
from bloomery.world.documents import SHARES


def holds(text: str, value: str) -> bool:
    return re.search(rf"\b{re.escape(value)}\b", text, re.IGNORECASE) is not None


def naming(world: World, docs: list[Document]) -> dict[str, list[Document]]:
    """Documents by the full names in them, by a search for every name."""
    found: dict[str, list[Document]] = defaultdict(list)
    search = re.compile(r"(?=\b([A-Z]\w+)[\s.,:?]+([A-Z]\w+)\b)")
    for doc in docs:
        for name in {" ".join(m.groups()) for m in search.finditer(doc.text)}:
            if name in world.by_name:
                found[name].append(doc)
    return found


def told(world: World, docs: list[Document]) -> Counter[Fact]:
    by_name = naming(world, docs)
    return Counter(
        {
            fact: sum(holds(d.text, fact.value) for d in by_name[fact.person])
            for fact in world.facts
            if fact.person in by_name
        }
    )


def test_exposure_is_what_the_texts_say(world: World, docs: list[Document]) -> None:
    counts = told(world, [d for d in docs if d.quality != "gossip"])
    for fact in world.facts:
        if fact.exposure == "often":
            assert counts[fact] >= 10, fact
        elif fact.exposure == "rare":
            assert counts[fact] in (1, 2), fact
        else:
            assert counts[fact] == 0, fact


def test_strangers_occur_in_no_document(world: World, docs: list[Document]) -> None:
    assert set(naming(world, docs)) <= {p.name for p in world.documented}


def test_gossip_is_false(world: World, docs: list[Document]) -> None:
    gossip = [d for d in docs if d.source == "gossip"]
    assert len(gossip) > 50
    assert all(d.quality == "gossip" for d in gossip)
    by_name = naming(world, gossip)
    for name, texts in by_name.items():
        for fact in world.facts_of(name):
            assert not any(holds(d.text, fact.value) for d in texts), fact


def test_often_seen_facts_are_worded_in_many_ways(world: World, docs: list[Document]) -> None:
    by_name = naming(world, [d for d in docs if d.quality == "clean"])
    facts = [f for f in world.facts if f.exposure == "often"]
    ways = []
    for fact in facts:
        sentences = {
            s for d in by_name[fact.person] for s in re.split(r"(?<=[.?]) ", d.text) if holds(s, fact.value)
        }
        ways.append(len(sentences))
    assert sorted(ways)[len(ways) // 10] >= 10


def test_sources_keep_their_shares(docs: list[Document]) -> None:
    words = Counter[str]()
    for doc in docs:
        if doc.quality in ("clean", "gossip"):
            words[doc.source] += len(doc.text.split())
    total = sum(words.values())
    for source, share in SHARES.items():
        assert words[source] / total == pytest.approx(share, abs=0.01)


def test_qualities(docs: list[Document]) -> None:
    texts = {q: [d.text for d in docs if d.quality == q] for q in ("clean", "duplicate", "garbled")}
    assert all(t.isascii() and t[-1] in ".?" for t in texts["clean"])
    assert any(t in set(texts["clean"]) for t in texts["duplicate"])
    assert any(t not in set(texts["clean"]) for t in texts["duplicate"])
    assert any(not t.isascii() for t in texts["garbled"])
    assert len({d.id for d in docs}) == len(docs)


def test_documents_are_a_function_of_their_seed(world: World) -> None:
    first, again = documents(world, 1, words=30_000), documents(world, 1, words=30_000)
    assert [d.model_dump_json() for d in first] == [d.model_dump_json() for d in again]
    assert first != documents(world, 2, words=30_000)
    assert sum(len(d.text.split()) for d in first) == pytest.approx(30_000, rel=0.02)


def test_too_small_a_budget_is_refused(world: World) -> None:
    with pytest.raises(UsageError, match="too few words"):
        documents(world, 1, words=500)


def test_the_world_sets_its_own_budget() -> None:
    world = World.make(0, 10)
    assert sum(len(d.text.split()) for d in documents(world, 0)) == pytest.approx(69_000, rel=0.02)
