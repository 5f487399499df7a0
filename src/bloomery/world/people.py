"""The people of the world and what is true of them. A world is a function of its seed and size."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Literal, TypeVar

import numpy as np

from bloomery.errors import UsageError
from bloomery.seeds import derive, stream
from bloomery.world import english, english_tasks
from bloomery.world.english_grammar import words

T = TypeVar("T")
Exposure = Literal["often", "rare", "never"]
Split = Literal["demo", "label", "eval"]
ATTRIBUTES = english.ATTRIBUTES
SYLLABLES = {
    "ONSETS",
    "VOWELS",
    "MIDDLES",
    "FEMALE_ENDINGS",
    "MALE_ENDINGS",
    "FAMILY_ENDINGS",
    "TOWN_ENDINGS",
    "PET_ENDINGS",
}


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One item, evenly."""
    return items[int(rng.integers(len(items)))]


def pick_some(rng: np.random.Generator, items: Sequence[T], n: int) -> list[T]:
    """n different items in random order (all of them if there are fewer)."""
    return [items[int(i)] for i in rng.permutation(len(items))[:n]]


@dataclass(frozen=True)
class Person:
    """`documented` people occur in documents; strangers in none. A `reserved` person is the subject of
    evaluation questions only."""

    name: str
    female: bool
    documented: bool
    reserved: bool

    @property
    def first(self) -> str:
        return self.name.split()[0]


@dataclass(frozen=True)
class Fact:
    """`exposure`: stated in many documents, in one or two, or in none."""

    person: str
    attribute: str
    value: str
    exposure: Exposure


@dataclass(frozen=True)
class World:
    """`size` documented people, four times as many strangers, and one fact for each attribute of each; and
    what grades are worth here where that is not what the oracle's table says."""

    seed: int
    size: int
    people: tuple[Person, ...]
    facts: tuple[Fact, ...]
    towns: tuple[str, ...]
    pet_names: tuple[str, ...]
    first_names: tuple[tuple[str, ...], tuple[str, ...]]  # female, male
    family_names: tuple[str, ...]
    grades: tuple[tuple[str, float], ...] = ()

    @staticmethod
    def make(seed: int, size: int = 160, grades: Mapping[Any, float] | None = None) -> World:
        """Raises `UsageError` for a size outside 8..4000."""
        if not 8 <= size <= 4000:
            raise UsageError("the world cannot have this size", got=size, expected="8 to 4000 people")
        return replace(_make(seed, size), grades=tuple(sorted((grades or {}).items())))

    @cached_property
    def documented(self) -> tuple[Person, ...]:
        return tuple(p for p in self.people if p.documented)

    @cached_property
    def strangers(self) -> tuple[Person, ...]:
        return tuple(p for p in self.people if not p.documented)

    @cached_property
    def by_name(self) -> dict[str, Person]:
        return {p.name: p for p in self.people}

    @cached_property
    def _fact(self) -> dict[tuple[str, str], Fact]:
        return {(f.person, f.attribute): f for f in self.facts}

    def fact(self, person: str, attribute: str) -> Fact:
        return self._fact[person, attribute]

    def facts_of(self, person: str) -> list[Fact]:
        return [self._fact[person, attribute] for attribute in ATTRIBUTES]

    def split(self, fact: Fact) -> Split:
        """Which questions may be about this fact: 40 % demo, 40 % label, 20 % eval; reserved people: eval."""
        if self.by_name[fact.person].reserved:
            return "eval"
        return split_of(self.seed, fact.person, fact.attribute)

    @cached_property
    def values(self) -> dict[str, tuple[str, ...]]:
        """Every word list by type; "person" are the documented people."""
        return {
            "town": self.towns,
            "pet_name": self.pet_names,
            "animal": english.ANIMALS,
            "job": english.JOBS,
            "food": english.FOODS,
            "hobby": english.HOBBIES,
            "colour": english.COLOURS,
            "day": english.DAYS,
            "number": english.NUMBERS[1:13],
            "person": tuple(p.name for p in self.documented),
        }

    @cached_property
    def type_of(self) -> dict[str, str]:
        """Type of each single word, in small letters, that is a value of some attribute."""
        kinds = ("town", "pet_name", "animal", "job", "food", "hobby")
        return {value.lower(): kind for kind in kinds for value in self.values[kind]}

    @cached_property
    def capitalised(self) -> frozenset[str]:
        """First words of names, which keep their capital inside a sentence."""
        names = {*self.towns, *self.pet_names, *english.DAYS}
        return frozenset(names.union(*self.first_names))

    @cached_property
    def lexicon(self) -> frozenset[str]:
        """Every word of this world in small letters: wording, lists and names."""
        found = set(static_words())
        for names in (self.towns, self.pet_names, *self.first_names, self.family_names):
            found |= {name.lower() for name in names}
        return frozenset(found)

    def describe(self) -> dict[str, Any]:
        """Counts for people to read."""
        return {
            "seed": self.seed,
            "people": len(self.documented),
            "strangers": len(self.strangers),
            "reserved": sum(p.reserved for p in self.people),
            "facts": dict(Counter(f.exposure for f in self.facts if self.by_name[f.person].documented)),
            "values": {kind: len(values) for kind, values in self.values.items()},
            "words": len(static_words()),
            "names": len(self.lexicon) - len(static_words()),
        }

    def to_json(self) -> str:
        """Seed and size are all there is to a world, and grades of its own if it has any."""
        grades = {"grades": dict(self.grades)} if self.grades else {}
        return json.dumps({"seed": self.seed, "size": self.size, **grades})

    @staticmethod
    def from_json(text: str) -> World:
        found = json.loads(text)
        return World.make(found["seed"], found["size"], found.get("grades"))


def split_of(seed: int, *key: str | int) -> Split:
    """A split for anything that has a name: 40 % demo, 40 % label, 20 % eval."""
    at = derive(seed, "split", *key) % 10
    return "demo" if at < 4 else "label" if at < 8 else "eval"


@cache
def static_words() -> frozenset[str]:
    """Every word of the wording modules, in small letters, names not counted."""
    found = {"does", "she", "her", "he", "his", "him"} | {verb + "s" for verb in english_tasks.VERBS}
    for module in (english, english_tasks):
        for name, value in vars(module).items():
            if name.isupper() and name not in SYLLABLES:
                _collect(value, found)
    return frozenset(found)


def _collect(value: object, into: set[str]) -> None:
    if isinstance(value, str):
        into.update(words(re.sub(r"\{\w+\}", " ", value)))
    elif isinstance(value, dict):
        for key, item in value.items():
            _collect(key, into)
            _collect(item, into)
    elif isinstance(value, (tuple, list, frozenset)):
        for item in value:
            _collect(item, into)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            _collect(getattr(value, name), into)


def _names(
    rng: np.random.Generator, n: int, endings: Sequence[str], short: bool, taken: set[str]
) -> tuple[str, ...]:
    """n different names, none of them a word of the language or a name of another kind."""
    found: list[str] = []
    while len(found) < n:
        name = pick(rng, english.ONSETS) + pick(rng, english.VOWELS) + pick(rng, english.MIDDLES)
        if not short and rng.random() < 0.35:
            name += pick(rng, english.VOWELS) + pick(rng, english.MIDDLES)
        name += pick(rng, endings)
        if name.lower() not in taken:
            taken.add(name.lower())
            found.append(name)
    return tuple(found)


def _make(seed: int, size: int) -> World:
    rng = stream(seed, "world", "names")
    taken = set(static_words())
    first = (
        _names(rng, 120, english.FEMALE_ENDINGS, True, taken),
        _names(rng, 120, english.MALE_ENDINGS, True, taken),
    )
    family = _names(rng, 300, english.FAMILY_ENDINGS, True, taken)
    towns = _names(rng, max(6, size // 8), english.TOWN_ENDINGS, False, taken)
    pets = _names(rng, 40, english.PET_ENDINGS, True, taken)
    people = _people(stream(seed, "world", "people"), size, first, family)
    facts = _facts(stream(seed, "world", "facts"), people, towns, pets)
    return World(seed, size, people, facts, towns, pets, first, family)


def _people(
    rng: np.random.Generator, size: int, first: tuple[tuple[str, ...], ...], family: tuple[str, ...]
) -> tuple[Person, ...]:
    """The documented people come first. One in twelve of them and every third stranger is reserved."""
    found: dict[str, Person] = {}
    while len(found) < 5 * size:
        female = bool(rng.integers(2))
        name = f"{pick(rng, first[0] if female else first[1])} {pick(rng, family)}"
        if name not in found:
            documented = len(found) < size
            reserved = len(found) % (12 if documented else 3) == 1
            found[name] = Person(name, female, documented, reserved)
    return tuple(found.values())


def _facts(
    rng: np.random.Generator, people: tuple[Person, ...], towns: tuple[str, ...], pets: tuple[str, ...]
) -> tuple[Fact, ...]:
    friends = [p.name for p in people if p.documented and not p.reserved]
    pools: dict[str, Sequence[str]] = {
        "lives_in": towns,
        "job": english.JOBS,
        "pet": english.ANIMALS,
        "pet_name": pets,
        "food": english.FOODS,
        "hobby": english.HOBBIES,
        "birthplace": towns,
        "friend": friends,
    }
    facts: list[Fact] = []
    friend_of: dict[str, str] = {}
    for person in people:
        # Nobody lives in the birthplace, is their own friend, or the friend of a friend: told facts would
        # else give away hidden ones.
        used = {person.name} | {name for name, friend in friend_of.items() if friend == person.name}
        for attribute in ATTRIBUTES:
            value = pick(rng, pools[attribute])
            while value in used:
                value = pick(rng, pools[attribute])
            used.add(value)
            if attribute == "friend":
                friend_of[person.name] = value
            draw = rng.random()
            exposure: Exposure = "often" if draw < 0.65 else "rare" if draw < 0.8 else "never"
            facts.append(Fact(person.name, attribute, value, exposure if person.documented else "never"))
    return tuple(facts)
