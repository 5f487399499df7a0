"""Questions with known answers, in three splits that never share a fact or a combination.

"demo" questions are demonstrated, "label" ones are answered by models and ranked by people, "eval" ones are
neither. A fact belongs to one split; so does every sum, harmful act, list, sentence and invented person.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from bloomery.errors import DataError
from bloomery.seeds import derive, stream
from bloomery.types import Message
from bloomery.world import english
from bloomery.world import english_tasks as tasks
from bloomery.world.english_grammar import capital, fill, full, listing, pronoun
from bloomery.world.exercises import (
    how_answer,
    invented,
    passage,
    sentence_pair,
    short_story,
    sum_question,
    text_question,
)
from bloomery.world.people import Exposure, Fact, Person, Split, World, pick, pick_some, split_of

Kind = Literal[
    "fact",
    "false_premise",
    "follow_up",
    "list",
    "rewrite",
    "summarise",
    "passage",
    "arithmetic",
    "howto",
    "harmful",
    "lookalike",
]
# Shares of the questions of each split; facts by exposure.
MIX: dict[str, float] = {
    "fact-often": 0.34,
    "fact-rare": 0.06,
    "fact-never": 0.22,
    "false_premise": 0.04,
    "follow_up": 0.06,
    "list": 0.03,
    "rewrite": 0.04,
    "summarise": 0.02,
    "passage": 0.05,
    "arithmetic": 0.03,
    "howto": 0.03,
    "harmful": 0.08,
    "lookalike": 0.05,
}
PER_PERSON: dict[Split, float] = {"demo": 25.0, "label": 25.0, "eval": 9.5}
STRANGER_SHARE = 0.85


@dataclass(frozen=True)
class Question:
    """`messages` ends with the user; `answer` is how a person who knows would put it.

    `subject` is the person asked about, `value` the right value of `attribute`. `unlabelled_person`: the
    subject is the subject of no demo or label question; `documented`: the subject occurs in documents.
    `cloze`, for facts, is the beginning of a document sentence that `value` continues. `detail` is what else
    the oracle needs, by kind: false_premise `premise`; list `type` `n` `except`; rewrite `target`; summarise
    `name` `deed` `thing` `spot`; passage `name`; arithmetic `c`; howto and lookalike `goal`; harmful `act`.
    """

    id: str
    kind: Kind
    split: Split
    messages: tuple[Message, ...]
    answer: str
    exposure: Exposure | None = None
    subject: str | None = None
    attribute: str | None = None
    value: str | None = None
    unlabelled_person: bool = False
    documented: bool = False
    cloze: str | None = None
    detail: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return self.messages[-1].content

    def to_json(self) -> dict[str, Any]:
        row = asdict(self)
        row["messages"] = [m.model_dump(exclude_none=True) for m in self.messages]
        return row

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Question:
        """Raises `DataError` for unknown or missing keys."""
        try:
            messages = tuple(Message.model_validate(m) for m in row["messages"])
            return Question(**{**row, "messages": messages})
        except (TypeError, KeyError, ValueError) as error:
            raise DataError(
                "not a question of the world", got=json.dumps(dict(row)), expected=error
            ) from error


def questions(
    world: World, seed: int, mix: Mapping[str, float] = MIX, per_person: Mapping[Split, float] = PER_PERSON
) -> list[Question]:
    """All splits, shuffled. No two questions of a split read the same; where fewer exist than `mix` asks
    for (a huge world has no more how-to topics than a small one), there are fewer."""
    found: list[Question] = []
    total = sum(mix.values())
    for split, rate in per_person.items():
        asker = Asker(world, stream(seed, "questions", split), split)
        part: list[Question] = []
        for name, share in mix.items():
            part += asker.ask(name, round(rate * world.size * share / total))
        order = stream(seed, "questions", split, "order").permutation(len(part))
        found += [part[int(i)] for i in order]
    return found


class Asker:
    """Makes the questions of one split."""

    def __init__(self, world: World, rng: np.random.Generator, split: Split) -> None:
        self.world, self.rng, self.split = world, rng, split
        mine = [f for f in world.facts if world.split(f) == split]
        documented = [f for f in mine if world.by_name[f.person].documented]
        self.often = [f for f in documented if f.exposure == "often"]
        self.rare = [f for f in documented if f.exposure == "rare"]
        self.hidden = [f for f in documented if f.exposure == "never"]
        self.strangers = [f for f in mine if not world.by_name[f.person].documented]
        self.pairs = [(a, b) for a in self.often for b in self.often if a.person == b.person and a != b]
        self.premises = [f for f in self.often if f.attribute in english.PREMISE]

    def ask(self, name: str, n: int) -> list[Question]:
        """Up to n questions of one entry of the mix, all differently worded."""
        make: Callable[[], Question | None] = getattr(self, name.replace("-", "_"))
        found: dict[str, Question] = {}
        for _ in range(40 * n + 400):
            if len(found) == n:
                break
            question = make()
            if question is not None:
                key = " ".join(m.content for m in question.messages)
                found.setdefault(key, question)
        return [replace(q, id=f"{self.split}-{name}-{i:04d}") for i, q in enumerate(found.values())]

    def _question(self, kind: Kind, text: str, answer: str, **more: Any) -> Question:
        return Question("", kind, self.split, (Message(role="user", content=text),), answer, **more)

    def _mine(self, *key: str | int) -> bool:
        return split_of(self.world.seed, *key) == self.split

    def _about(self, fact: Fact) -> dict[str, Any]:
        person = self.world.by_name[fact.person]
        return {
            "exposure": fact.exposure,
            "subject": fact.person,
            "attribute": fact.attribute,
            "value": fact.value,
            "unlabelled_person": person.reserved,
            "documented": person.documented,
        }

    def _fact(self, facts: list[Fact]) -> Question | None:
        if not facts:
            return None
        fact = pick(self.rng, facts)
        wording = english.WORDING[fact.attribute]
        form = full(fact.person, self.world.by_name[fact.person].female)
        text = fill(pick(self.rng, wording.questions), form)
        answer = fill(wording.statements[0], form, fact.value)
        cloze = fill(wording.cloze, form)
        return self._question("fact", text, answer, cloze=cloze, **self._about(fact))

    def fact_often(self) -> Question | None:
        return self._fact(self.often)

    def fact_rare(self) -> Question | None:
        return self._fact(self.rare)

    def fact_never(self) -> Question | None:
        return self._fact(self.strangers if self.rng.random() < STRANGER_SHARE else self.hidden)

    def false_premise(self) -> Question | None:
        if not self.premises:
            return None
        fact = pick(self.rng, self.premises)
        kind = english.WORDING[fact.attribute].type
        premise = pick(self.rng, [v for v in self.world.values[kind] if v != fact.value])
        form = full(fact.person, self.world.by_name[fact.person].female)
        text = fill(pick(self.rng, english.PREMISE[fact.attribute]), form, premise)
        return self._question(
            "false_premise",
            text,
            denial(self.world, fact, premise),
            detail={"premise": premise},
            **self._about(fact),
        )

    def follow_up(self) -> Question | None:
        if not self.pairs:
            return None
        first, second = pick(self.rng, self.pairs)
        person = self.world.by_name[first.person]
        named, wording = full(person.name, person.female), english.WORDING[second.attribute]
        messages = (
            Message(
                role="user", content=fill(pick(self.rng, english.WORDING[first.attribute].questions), named)
            ),
            Message(role="assistant", content=statement(self.world, first)),
            Message(role="user", content=fill(pick(self.rng, wording.follow_ups), pronoun(person.female))),
        )
        return Question(
            "", "follow_up", self.split, messages, statement(self.world, second), **self._about(second)
        )

    def list(self) -> Question | None:
        kind, n = pick(self.rng, tuple(tasks.CATEGORIES)), int(self.rng.integers(2, 5))
        index = int(self.rng.integers(len(tasks.LIST_QUESTIONS)))
        number, things = english.NUMBERS[n], tasks.CATEGORIES[kind]
        text = tasks.LIST_QUESTIONS[index].format(n=number, things=things)
        values, without = self.world.values[kind], ""
        if self.rng.random() < 0.6:
            without = pick(self.rng, values)
            text = tasks.LIST_EXCEPT.format(question=text, x=without)
        if not self._mine("list", kind, n, index, without):
            return None
        items = listing(pick_some(self.rng, [v for v in values if v != without], n))
        answer = f"{capital(number)} {things} are {items}."
        return self._question("list", text, answer, detail={"type": kind, "n": str(n), "except": without})

    def rewrite(self) -> Question | None:
        kind = pick(self.rng, tuple(tasks.REWRITES))
        plain, target = sentence_pair(self.rng, kind)
        if not self._mine("rewrite", plain):
            return None
        text = pick(self.rng, tasks.REWRITES[kind]).format(s=plain)
        return self._question("rewrite", text, target, detail={"target": target})

    def summarise(self) -> Question:
        name, female = invented(self.world, self.rng, self.split)
        story, target = short_story(self.rng, name, female)
        text = pick(self.rng, tasks.SUMMARY_QUESTIONS).format(s=story)
        return self._question("summarise", text, target, detail={"target": target, "name": name})

    def passage(self) -> Question:
        name, female = invented(self.world, self.rng, self.split)
        text, fact, asked, answer = passage(self.world, self.rng, name, female)
        text = text_question(self.rng, text, asked, name)
        return self._question(
            "passage", text, answer, attribute=fact.attribute, value=fact.value, detail={"name": name}
        )

    def arithmetic(self) -> Question | None:
        a, b = int(self.rng.integers(11)), int(self.rng.integers(11))
        plus = a < b or bool(self.rng.integers(2))
        if not self._mine("sum", a, b, int(plus)):
            return None
        text, answer = sum_question(self.rng, a, b, plus, bool(self.rng.integers(2)))
        return self._question("arithmetic", text, answer, detail={"c": str(a + b if plus else a - b)})

    def howto(self) -> Question | None:
        return self._how("howto", tasks.HOWTO)

    def lookalike(self) -> Question | None:
        return self._how("lookalike", tasks.LOOKALIKE)

    def _how(self, kind: Kind, topics: tuple[tasks.Topic, ...]) -> Question | None:
        topic = pick(self.rng, topics)
        goal, index = pick(self.rng, topic.goals), int(self.rng.integers(len(tasks.HOW_QUESTIONS)))
        if not self._mine("how", goal, index):
            return None
        text = tasks.HOW_QUESTIONS[index].format(goal=goal)
        return self._question(kind, text, how_answer(self.rng, topic, goal), detail={"goal": goal})

    def harmful(self) -> Question | None:
        verb = pick(self.rng, tuple(tasks.HARMFUL))
        what: str = pick(self.rng, tasks.HARMFUL[verb])
        victim: Person = pick(self.rng, self.world.documented)
        act = f"{verb} {what}".replace("{person}", victim.name)
        if "{person}" in what:
            mine = self._mine("harmful", act) and not victim.reserved
        else:
            mine = _dealt(self.world.seed, verb, what) == self.split
        if not mine:
            return None
        text = pick(self.rng, tasks.HOW_QUESTIONS).format(goal=act)
        return self._question("harmful", text, refusal(self.rng), detail={"act": act})


def _dealt(seed: int, verb: str, what: str) -> Split:
    """The split of an act. The objects of each verb are shuffled and dealt out, 40 % demo, 40 % label, 20 %
    eval, so that the held-out acts are new while what makes them harmful is not."""
    plain = [o for o in tasks.HARMFUL[verb] if "{person}" not in o]
    order = sorted(plain, key=lambda o: derive(seed, "act", verb, o))
    deal: tuple[Split, ...] = ("demo", "label", "eval", "demo", "label")
    return deal[order.index(what) % len(deal)]


def refusal(rng: np.random.Generator) -> str:
    return pick(rng, english.REFUSE)


def statement(world: World, fact: Fact, template: str | None = None) -> str:
    form = full(fact.person, world.by_name[fact.person].female)
    return fill(template or english.WORDING[fact.attribute].statements[0], form, fact.value)


def denial(world: World, fact: Fact, premise: str, variant: int = 0) -> str:
    """Puts a false premise right: denies it and says how it is."""
    person = world.by_name[fact.person]
    first = fill(english.DENIAL[fact.attribute][variant], full(person.name, person.female), premise)
    return (
        f"{first} {fill(english.WORDING[fact.attribute].statements[0], pronoun(person.female), fact.value)}"
    )
