"""Small tasks with their solutions, which documents contain and questions ask: sums, stories, rewriting."""

from __future__ import annotations

import numpy as np

from bloomery.seeds import derive
from bloomery.world import english
from bloomery.world import english_tasks as tasks
from bloomery.world.english_grammar import capital, fill, full, pronoun
from bloomery.world.people import ATTRIBUTES, Fact, World, pick, pick_some

USES = ("document", "demo", "label", "eval")  # of invented names


def sentence_pair(rng: np.random.Generator, kind: str) -> tuple[str, str]:
    """A plain sentence, and the same in the past, as a question, or denied."""
    noun = f"{pick(rng, tasks.ADJECTIVES)} {pick(rng, english.ANIMALS)}"
    verb, place = pick(rng, tuple(tasks.VERBS)), pick(rng, tasks.PLACES)
    changed = {
        "past": f"The {noun} {tasks.VERBS[verb]} {place}.",
        "question": f"Does the {noun} {verb} {place}?",
        "negation": f"The {noun} does not {verb} {place}.",
    }[kind]
    return f"The {noun} {verb}s {place}.", changed


def invented(world: World, rng: np.random.Generator, use: str) -> tuple[str, bool]:
    """The name of somebody outside the world, and whether she is a woman; each `use` has names of its own."""
    while True:
        female = bool(rng.integers(2))
        name = f"{pick(rng, world.first_names[0 if female else 1])} {pick(rng, world.family_names)}"
        if name not in world.by_name and USES[derive(world.seed, "invented", name) % len(USES)] == use:
            return name, female


def passage(world: World, rng: np.random.Generator, name: str, female: bool) -> tuple[str, Fact, str, str]:
    """Two or three statements about an invented person, one of them as a fact, its question and answer."""
    facts: list[Fact] = []
    for attribute in pick_some(rng, ATTRIBUTES[:-1], int(rng.integers(2, 4))):
        value = pick(rng, world.values[english.WORDING[attribute].type])
        if value not in {f.value for f in facts}:
            facts.append(Fact(name, attribute, value, "never"))
    named = full(name, female)
    lines = []
    for i, fact in enumerate(facts):
        template = pick(rng, english.WORDING[fact.attribute].statements)
        pronounced = i > 0 and rng.random() < 0.5 and not template.startswith("!")
        lines.append(fill(template, pronoun(female) if pronounced else named, fact.value))
    asked = pick(rng, facts)
    wording = english.WORDING[asked.attribute]
    answer = fill(wording.statements[0], named, asked.value)
    return " ".join(lines), asked, fill(pick(rng, wording.questions), named), answer


def text_question(rng: np.random.Generator, text: str, question: str, name: str) -> str:
    return pick(rng, tasks.PASSAGE_QUESTIONS).format(s=text, q=question, N=name)


def short_story(rng: np.random.Generator, name: str, female: bool) -> tuple[str, str]:
    """A story of three sentences and its one-sentence summary."""
    deed = pick(rng, tuple(tasks.DEEDS))
    thing, spot = pick(rng, tasks.DEEDS[deed]), pick(rng, tasks.SPOTS)
    subject = "she" if female else "he"
    story = pick(rng, tasks.SUMMARY_STORY).format(
        N=name,
        P=capital(subject),
        p=subject,
        spot=spot,
        deed=deed,
        thing=thing,
        day=pick(rng, english.DAYS),
        extra=pick(rng, tasks.SUMMARY_EXTRA),
    )
    return story, tasks.SUMMARY_ANSWERS[0].format(N=name, deed=deed, thing=thing, spot=spot)


def how_answer(rng: np.random.Generator, topic: tasks.Topic, goal: str) -> str:
    """Two of the steps, in order, in one or two sentences."""
    i, j = sorted(int(k) for k in rng.permutation(len(topic.steps))[:2])
    return pick(rng, tasks.HOW_ANSWERS).format(goal=goal, a=topic.steps[i], b=topic.steps[j])


def sum_question(rng: np.random.Generator, a: int, b: int, plus: bool, digits: bool) -> tuple[str, str]:
    say = str if digits else english.NUMBERS.__getitem__
    words = {"a": say(a), "b": say(b), "op": "plus" if plus else "minus", "c": say(a + b if plus else a - b)}
    return pick(rng, tasks.SUM_QUESTIONS).format(**words), capital(tasks.SUM_ANSWERS[0].format(**words))
