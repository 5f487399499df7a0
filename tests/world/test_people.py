"""The world is compared with a second making of itself, and with the rules its facts must obey."""

from __future__ import annotations

import pytest

from bloomery.errors import UsageError
from bloomery.world import ATTRIBUTES, World
from bloomery.world.english import WORDING
from bloomery.world.people import static_words


def test_a_world_is_a_function_of_seed_and_size(world: World) -> None:
    assert World.make(3, 40) == world == World.from_json(world.to_json())
    assert World.make(4, 40).facts != world.facts
    harsh = World.make(3, 40, {"abstained": -1.0})
    assert World.from_json(harsh.to_json()) == harsh != world
    assert harsh.facts == world.facts
    assert "grades" not in world.to_json()
    assert repr(World.make(3, 40)) == repr(world)


def test_people_have_names_of_their_own_and_strangers_share_parts_of_them(world: World) -> None:
    names = [p.name for p in world.people]
    assert len(set(names)) == len(names) == 5 * 40
    assert len(world.documented) == 40
    assert len(world.strangers) == 160
    firsts = {p.first for p in world.documented}
    assert any(p.first in firsts for p in world.strangers)
    share = sum(p.reserved for p in world.strangers) / len(world.strangers)
    assert 0.3 < share < 0.37
    assert any(p.reserved for p in world.documented)


def test_every_person_has_every_fact_and_values_are_of_the_right_type(world: World) -> None:
    for person in world.people:
        facts = world.facts_of(person.name)
        assert [f.attribute for f in facts] == list(ATTRIBUTES)
        assert all(f.value in world.values[WORDING[f.attribute].type] for f in facts)
        values = {f.attribute: f.value for f in facts}
        assert values["lives_in"] != values["birthplace"]
        assert values["friend"] != person.name
        if not person.documented:
            assert {f.exposure for f in facts} == {"never"}


def test_exposures_come_in_their_shares() -> None:
    world = World.make(0, 160)
    facts = [f for f in world.facts if world.by_name[f.person].documented]
    share = {e: sum(f.exposure == e for f in facts) / len(facts) for e in ("often", "rare", "never")}
    assert share["often"] == pytest.approx(0.65, abs=0.04)
    assert share["rare"] == pytest.approx(0.15, abs=0.04)
    assert share["never"] == pytest.approx(0.20, abs=0.04)


def test_no_word_means_two_things(world: World) -> None:
    kinds = ("town", "pet_name", "animal", "job", "food", "hobby")
    values = [v.lower() for kind in kinds for v in world.values[kind]]
    names = [n.lower() for n in (*world.first_names[0], *world.first_names[1], *world.family_names)]
    assert len(set(values + names)) == len(values) + len(names)
    assert not set(names) & static_words()


def test_the_vocabulary_is_small(world: World) -> None:
    assert len(static_words()) < 1500
    assert all(word.isascii() for word in world.lexicon)


def test_every_attribute_is_told_in_many_ways() -> None:
    for wording in WORDING.values():
        assert len(set(wording.statements)) >= 10
        assert len(set(wording.questions)) >= 6
        start = wording.cloze.replace("{N}", "")
        assert any(s.replace("{N}", "").startswith(start) for s in wording.statements)


def test_a_size_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="size"):
        World.make(0, 3)


def test_describe_counts(world: World) -> None:
    counts = world.describe()
    assert counts["people"] == 40
    assert sum(counts["facts"].values()) == 40 * len(ATTRIBUTES)
