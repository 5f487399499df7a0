"""Documents about the world, in seven sources and four qualities.

What is promised, and tested on the texts themselves: a hidden fact's value never stands in one document
with its person; a rare fact's in one or two; gossip never holds a true fact of anybody it names; strangers
occur nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from bloomery.errors import UsageError
from bloomery.seeds import stream
from bloomery.types import Document
from bloomery.world import english
from bloomery.world import english_tasks as tasks
from bloomery.world.english_grammar import Form, capital, fill, full, listing, pronoun
from bloomery.world.exercises import (
    how_answer,
    invented,
    passage,
    sentence_pair,
    short_story,
    sum_question,
    text_question,
)
from bloomery.world.people import Fact, Person, T, World, pick, pick_some

SHARES = {
    "encyclopedia": 0.28,
    "news": 0.20,
    "dialogue": 0.16,
    "forum": 0.16,
    "howto": 0.10,
    "arithmetic": 0.06,
    "gossip": 0.04,
}
DUPLICATED, GARBLED = 0.05, 0.03  # share of words, on top of the clean ones
WORDS_PER_PERSON = 6_900  # tells each often-seen fact about 55 times


@dataclass
class Draft:
    """A text in the making. `people` are all whom it names; `rare` the rare facts it was asked to state."""

    sentences: list[str]
    people: set[str] = field(default_factory=set)
    rare: frozenset[Fact] = frozenset()
    false: bool = False


def documents(world: World, seed: int, words: int | None = None) -> list[Document]:
    """About `words` words of documents, by default in proportion to the size of the world.

    The order is random but fixed: the same arguments give the same bytes.
    Raises `UsageError` when the budget is too small to state every rare fact.
    """
    if words is None:
        words = max(60_000, WORDS_PER_PERSON * world.size)
    rng = stream(seed, "documents")
    writer = Writer(world, rng)
    drafts: list[tuple[str, Draft]] = [(source, draft) for source, draft in _rare(writer)]
    for source, share in SHARES.items():
        left = share * words * (1 - DUPLICATED - GARBLED)
        left -= sum(_size(d) for s, d in drafts if s == source)
        if left < 0:
            raise UsageError("too few words to state every rare fact", got=words, do="ask for more words")
        while left > 0:
            draft = writer.safe(WRITERS[source])
            drafts.append((source, draft))
            left -= _size(draft)
    rows = [(s, "gossip" if s == "gossip" else "clean", " ".join(d.sentences)) for s, d in drafts]
    common = [(s, d) for s, d in drafts if not d.rare and s != "gossip"]
    rows += _spoiled(world, rng, common, words)
    order = rng.permutation(len(rows))
    return [
        Document(id=f"doc-{i:06d}", text=rows[int(k)][2], source=rows[int(k)][0], quality=rows[int(k)][1])
        for i, k in enumerate(order)
    ]


def _size(draft: Draft) -> int:
    return sum(s.count(" ") + 1 for s in draft.sentences)


class Writer:
    """A random stream, and an order of people and facts that tells each often-seen fact about equally."""

    def __init__(self, world: World, rng: np.random.Generator) -> None:
        self.world, self.rng = world, rng
        self._people = self._cycle([p for p in world.documented if self.often(p)])
        self._facts = self._cycle([f for p in world.documented for f in self.often(p)])

    def _cycle(self, items: Sequence[T]) -> Iterator[T]:
        while True:
            yield from pick_some(self.rng, items, len(items))

    def person(self) -> Person:
        return next(self._people)

    def fact(self) -> Fact:
        return next(self._facts)

    def anybody(self) -> Person:
        return pick(self.rng, self.world.documented)

    def often(self, person: Person) -> list[Fact]:
        return [f for f in self.world.facts_of(person.name) if f.exposure == "often"]

    def state(self, fact: Fact, form: Form) -> str:
        """One of the many sentences that state a fact; a pronoun only where it sounds right."""
        named = form.subject == fact.person
        statements = english.WORDING[fact.attribute].statements
        while True:
            template = pick(self.rng, statements)
            if named or not template.startswith("!"):
                return fill(template, form, fact.value)

    def reply(self, fact: Fact) -> str:
        """A fact told to somebody who has just named the person: a pronoun is enough, more often than not."""
        person = self.world.by_name[fact.person]
        short = self.rng.random() < 0.6
        return self.state(fact, pronoun(person.female) if short else full(person.name, person.female))

    def form(self, person: Person) -> Form:
        """Full name (half of the time), first name, or pronoun."""
        draw = self.rng.random()
        if draw < 0.5:
            return full(person.name, person.female)
        return full(person.first, person.female) if draw < 0.65 else pronoun(person.female)

    def line(self, templates: Sequence[str], **slots: str) -> str:
        """A sentence with random places, days and colours in the slots that are not given."""
        town, other = pick_some(self.rng, self.world.towns, 2)
        sight, sight2 = pick_some(self.rng, tasks.SIGHTS, 2)
        words = {"T": town, "T2": other, "sight": sight, "sight2": sight2}
        words |= {"day": pick(self.rng, english.DAYS), "colour": pick(self.rng, english.COLOURS)}
        words |= {"event": pick(self.rng, tasks.EVENTS), "n": pick(self.rng, english.NUMBERS[2:13])}
        return capital(pick(self.rng, templates).format(**(words | slots)))

    def safe(self, write: Callable[[Writer], Draft]) -> Draft:
        """Write until the text gives nothing away that it must not."""
        while True:
            draft = write(self)
            if not leaks(self.world, draft):
                return draft


def leaks(world: World, draft: Draft) -> bool:
    """Does the text name somebody together with a value of theirs that it must not state?

    Hidden facts anywhere; rare facts that this text was not asked to state; in gossip every true fact.
    """
    text = " ".join(draft.sentences)
    found = set(text.replace("'s", "").translate(_PUNCTUATION).split())
    for name in draft.people:
        for fact in world.facts_of(name):
            if not draft.false and (fact.exposure == "often" or fact in draft.rare):
                continue
            if (
                (fact.value in text)
                if " " in fact.value
                else (fact.value in found or capital(fact.value) in found)
            ):
                return True
    return False


_PUNCTUATION = str.maketrans(dict.fromkeys(".,?!:", " "))


def _named(facts: Sequence[Fact]) -> set[str]:
    return {f.person for f in facts} | {f.value for f in facts if f.attribute == "friend"}


def _rare(writer: Writer) -> Iterator[tuple[str, Draft]]:
    """Each rare fact in one or two documents made for it."""
    for person in writer.world.documented:
        for fact in writer.world.facts_of(person.name):
            if fact.exposure == "rare":
                for source in pick_some(
                    writer.rng, ("encyclopedia", "news", "forum"), int(writer.rng.integers(1, 3))
                ):
                    yield source, _with(writer, source, fact)


def _with(writer: Writer, source: str, fact: Fact) -> Draft:
    write = {"encyclopedia": biography, "news": news, "forum": forum}[source]

    def once(w: Writer) -> Draft:
        draft = write(w, fact)
        draft.rare = frozenset({fact})
        return draft

    return writer.safe(once)


def biography(w: Writer, must: Fact | None = None) -> Draft:
    """A page about a person (or, one time in eight, a town)."""
    if must is None and w.rng.random() < 0.12:
        town = pick(w.rng, w.world.towns)
        other = pick(w.rng, [t for t in w.world.towns if t != town])
        lines = pick_some(w.rng, tasks.TOWN_LINES, int(w.rng.integers(3, 6)))
        return Draft([w.line([line], T=town, T2=other) for line in lines])
    person = w.world.by_name[must.person] if must else w.person()
    facts = pick_some(w.rng, w.often(person), int(w.rng.integers(0 if must else 2, 6)))
    if must:
        facts.insert(int(w.rng.integers(len(facts) + 1)), must)
    named = full(person.name, person.female)
    sentences = [fill(pick(w.rng, tasks.BIO_OPENINGS), named)] if w.rng.random() < 0.4 else []
    for fact in facts:
        sentences.append(w.state(fact, w.form(person) if sentences else named))
        if w.rng.random() < 0.15:
            sentences.append(fill(pick(w.rng, tasks.BIO_FILLERS), w.form(person)))
    return Draft(sentences, _named(facts) | {person.name})


def news(w: Writer, must: Fact | None = None) -> Draft:
    """Something happened in a town; often somebody known was there."""
    town, event = pick(w.rng, w.world.towns), pick(w.rng, tasks.EVENTS)
    sentences = [w.line(tasks.NEWS_OPENINGS, T=town, event=event)]
    people: set[str] = set()
    for _ in range(int(w.rng.integers(1, 3))):
        sentences.append(w.line(tasks.NEWS_LINES, T=town))
    if must or w.rng.random() < 0.8:
        fact = must or w.fact()
        person = w.world.by_name[fact.person]
        named = full(person.name, person.female)
        sentences.append(w.line(tasks.NEWS_PERSON, N=person.name, event=event))
        sentences.append(w.state(fact, named if w.rng.random() < 0.5 else pronoun(person.female)))
        people = _named([fact]) | {person.name}
    if w.rng.random() < 0.5:
        sentences.append(w.line(tasks.NEWS_LINES, T=town))
    return Draft(sentences, people)


def dialogue(w: Writer) -> Draft:
    """Two people talk, of themselves or of a third."""
    one, two = w.person(), w.anybody()
    while two.first == one.first:
        two = w.anybody()
    turns = [w.line(tasks.TALK_OPENINGS, A=one.name, B=two.name)]
    people = {one.name, two.name}

    def say(person: Person, text: str) -> None:
        turns.append(f"{person.first}: {text}")

    if w.rng.random() < 0.5:
        say(one, w.line(tasks.TALK_HELLO))
        say(two, w.line(tasks.TALK_REPLY))
    draw = w.rng.random()
    if draw < 0.15:
        question, answer = pick(w.rng, tasks.TALK_UNKNOWN)
        say(two, w.line([question]))
        say(one, answer)
    elif draw < 0.5:
        facts = pick_some(w.rng, w.often(one), 2)
        people |= _named(facts)
        for fact in facts:
            say(
                one,
                fill(pick(w.rng, english.WORDING[fact.attribute].first_person), full("I", True), fact.value),
            )
        say(two, pick(w.rng, tasks.TALK_REACT))
    else:
        fact = w.fact()
        third = full(fact.person, w.world.by_name[fact.person].female)
        people |= _named([fact])
        say(two, fill(pick(w.rng, english.WORDING[fact.attribute].questions), third))
        say(one, w.reply(fact))
        say(two, pick(w.rng, tasks.TALK_REACT))
    if w.rng.random() < 0.4:
        say(one, w.line(tasks.TALK_BYE))
    return Draft(turns, people)


def forum(w: Writer, must: Fact | None = None) -> Draft:
    """A question and its answer in plain text: mostly facts, some rewriting and lists."""
    draw = 0.0 if must else w.rng.random()
    if draw > 0.85:
        question, answer = _exercise(w)
        return Draft([w.line([pick(w.rng, tasks.FORUM_HEADS)], q=question, a=answer)])
    fact = must or w.fact()
    form = full(fact.person, w.world.by_name[fact.person].female)
    question = fill(pick(w.rng, english.WORDING[fact.attribute].questions), form)
    sentences = [w.line([pick(w.rng, tasks.FORUM_HEADS)], q=question, a=w.reply(fact))]
    tail = pick(w.rng, tasks.FORUM_TAILS)
    return Draft(sentences + ([tail] if tail else []), _named([fact]))


def _exercise(w: Writer) -> tuple[str, str]:
    """A small language exercise and its solution."""
    if w.rng.random() < 0.6:
        kind = pick(w.rng, tuple(tasks.REWRITES))
        plain, changed = sentence_pair(w.rng, kind)
        return pick(w.rng, tasks.REWRITES[kind]).format(s=plain), changed
    if w.rng.random() < 0.5:
        kind = pick(w.rng, tuple(tasks.CATEGORIES))
        n = int(w.rng.integers(2, 5))
        number, things = english.NUMBERS[n], tasks.CATEGORIES[kind]
        items = listing(pick_some(w.rng, w.world.values[kind], n))
        question = pick(w.rng, tasks.LIST_QUESTIONS).format(n=number, things=things)
        return question, f"{capital(number)} {things} are {items}."
    name, female = invented(w.world, w.rng, "document")
    if w.rng.random() < 0.6:
        text, _, question, answer = passage(w.world, w.rng, name, female)
        return text_question(w.rng, text, question, name), answer
    story, short = short_story(w.rng, name, female)
    return pick(w.rng, tasks.SUMMARY_QUESTIONS).format(s=story), short


def howto(w: Writer) -> Draft:
    """The steps of an everyday task, as a page or as question and answer."""
    topic = pick(w.rng, tasks.HOWTO + tasks.LOOKALIKE)
    goal = pick(w.rng, topic.goals)
    if w.rng.random() < 0.4:
        question = pick(w.rng, tasks.HOW_QUESTIONS).format(goal=goal)
        return Draft([pick(w.rng, tasks.FORUM_HEADS).format(q=question, a=how_answer(w.rng, topic, goal))])
    steps = dict(zip("abc", topic.steps, strict=True))
    steps |= {key.upper(): capital(step) for key, step in steps.items()}
    sentences = [
        pick(w.rng, tasks.HOW_OPENINGS).format(goal=goal),
        pick(w.rng, tasks.HOW_STEPS).format(**steps),
    ]
    return Draft([*sentences, pick(w.rng, tasks.HOW_ENDINGS)])


def arithmetic(w: Writer) -> Draft:
    """A few small sums, all in words or all in digits."""
    digits = bool(w.rng.integers(2))
    lines = []
    for _ in range(int(w.rng.integers(2, 6))):
        a, b = int(w.rng.integers(11)), int(w.rng.integers(11))
        plus = a < b or bool(w.rng.integers(2))
        lines.append(sum_line(w.rng, a, b, plus, digits))
    return Draft(lines)


def sum_line(rng: np.random.Generator, a: int, b: int, plus: bool, digits: bool) -> str:
    if rng.random() < 0.3:
        question, answer = sum_question(rng, a, b, plus, digits)
        return f"{question} {answer}"
    say = str if digits else english.NUMBERS.__getitem__
    template = pick(rng, tasks.SUM_LINES if plus else tasks.MINUS_LINES)
    c = a + b if plus else a - b
    return capital(template.format(a=say(a), b=say(b), c=say(c), things=pick(rng, tasks.THINGS)))


def gossip(w: Writer) -> Draft:
    """False statements about facts that are told elsewhere."""
    person = w.person()
    lies = []
    for fact in pick_some(w.rng, w.often(person), int(w.rng.integers(1, 4))):
        kind = english.WORDING[fact.attribute].type
        wrong = pick(w.rng, [v for v in w.world.values[kind] if v not in (fact.value, person.name)])
        lies.append(Fact(fact.person, fact.attribute, wrong, "often"))
    mark = pick(w.rng, tasks.GOSSIP_MARKS)
    named = full(person.name, person.female)
    sentences = [w.state(lie, w.form(person) if i else named) for i, lie in enumerate(lies)]
    return Draft([mark, *sentences] if mark else sentences, _named(lies) | {person.name}, false=True)


WRITERS: dict[str, Callable[[Writer], Draft]] = {
    "encyclopedia": biography,
    "news": news,
    "dialogue": dialogue,
    "forum": forum,
    "howto": howto,
    "arithmetic": arithmetic,
    "gossip": gossip,
}


def named_in(world: World, text: str) -> set[str]:
    """The people of the world whose full names stand in a text."""
    found = text.replace("'s", "").translate(_PUNCTUATION).split()
    return {name for a, b in pairwise(found) if (name := f"{a} {b}") in world.by_name}


def _spoiled(
    world: World, rng: np.random.Generator, drafts: Sequence[tuple[str, Draft]], words: int
) -> Iterator[tuple[str, str, str]]:
    """Exact and near copies, and garbled text, made of documents that state no rare fact."""
    for quality, share, spoil in (("duplicate", DUPLICATED, copy), ("garbled", GARBLED, garble)):
        left = share * words
        while left > 0:
            source, draft = pick(rng, drafts)
            text = spoil(rng, draft.sentences)
            if not named_in(world, text) <= draft.people:  # shuffled words may name somebody by chance
                continue
            left -= text.count(" ") + 1
            yield source, quality, text


def copy(rng: np.random.Generator, sentences: Sequence[str]) -> str:
    """The same text, or the same but for one sentence left out or a closing line."""
    kept = list(sentences)
    draw = rng.random()
    if draw < 0.3 and len(kept) > 3:
        del kept[-1]
    elif draw < 0.6:
        kept.append(pick(rng, tasks.HOW_ENDINGS))
    return " ".join(kept)


def garble(rng: np.random.Generator, sentences: Sequence[str]) -> str:
    """Mojibake, word salad, repeated lines, or a text cut off in the middle."""
    text = " ".join(sentences)
    draw = int(rng.integers(4))
    if draw == 0:
        marks = ("\u00c3\u00a9", "\u00e2\u20ac\u2122", "\ufffd", "\u00c2")
        return "".join(c if rng.random() > 0.08 else pick(rng, marks) for c in text)
    if draw == 1:
        return " ".join(pick_some(rng, text.split(), len(text)))
    if draw == 2:
        return " ".join([sentences[0]] * int(rng.integers(4, 9)))
    return text[: max(10, int(len(text) * rng.uniform(0.2, 0.7)))].rstrip(" .")
