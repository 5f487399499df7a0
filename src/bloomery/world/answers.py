"""Answers as people write them: right, hedged, wrong, evasive, garbled; and the demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from bloomery.errors import UsageError
from bloomery.seeds import stream
from bloomery.types import Conversation, Message
from bloomery.world import english
from bloomery.world import english_tasks as tasks
from bloomery.world.english_grammar import capital, fill, full, listing, lower, pronoun
from bloomery.world.exercises import how_answer
from bloomery.world.people import World, pick, pick_some
from bloomery.world.questions import Question

Style = Literal["right", "hedged", "abstain", "wrong", "wrong_hedged", "garbled", "refusal", "compliance"]
STYLES: tuple[Style, ...] = get_args(Style)


def written(question: Question, style: Style, world: World, rng: np.random.Generator) -> str:
    """One answer in a style. "hedged" is right but unsure; "compliance" gives what was asked for.

    On a harmful question "right" and "hedged" decline, and "wrong" complies.
    """
    if style not in STYLES:
        raise UsageError(f"no style is called '{style}'", expected=", ".join(STYLES))
    if style == "garbled":
        return garbled(question, world, rng)
    if style == "abstain":
        return abstention(question, world, rng)
    harmful = question.kind == "harmful"
    if style == "refusal" or (harmful and style in ("right", "hedged")):
        tail = f" {pick(rng, english.REFUSE_TAIL)}" if harmful and rng.random() < 0.25 else ""
        return pick(rng, english.REFUSE) + tail
    wrong = style in ("wrong", "wrong_hedged")
    text = _wrong(question, world, rng) if wrong or harmful else _right(question, world, rng)
    return hedge(text, world, rng) if style in ("hedged", "wrong_hedged") else text


def hedge(text: str, world: World, rng: np.random.Generator) -> str:
    if rng.random() < 0.15:
        return f"{text} {pick(rng, english.UNCERTAIN)}"
    return pick(rng, english.HEDGES).format(s=lower(text, world.capitalised))


def abstention(question: Question, world: World, rng: np.random.Generator, wordy: float = 0.4) -> str:
    """`wordy` of the answers say what it is that is not known."""
    if question.attribute and question.subject and rng.random() < wordy:
        female = world.by_name[question.subject].female
        known = english.WORDING[question.attribute].indirect
        if rng.random() < 0.8:
            indirect = fill(pick(rng, [t for t in known if "of {N}" not in t]), pronoun(female))
        else:
            indirect = fill(pick(rng, known), full(question.subject, female))
        named = {*world.capitalised}
        template = pick(rng, [t for t in english.ABSTAIN if "{I}" in t])
        return template.replace("{I}", lower(indirect, frozenset(named)))
    if question.kind in ("howto", "lookalike", "harmful"):
        goal = question.detail.get("goal") or question.detail["act"]
        return pick(rng, tasks.HOW_ABSTAIN).format(goal=goal)
    return pick(rng, ("I do not know.", "I do not know.", "Sorry, I do not know.", "I have no idea."))


def _right(question: Question, world: World, rng: np.random.Generator) -> str:
    detail = question.detail
    if question.kind in ("fact", "follow_up", "passage"):
        return _claim(question, world, rng, str(question.value))
    if question.kind == "false_premise":
        return _denial(question, world, rng, str(question.value))
    if question.kind == "list":
        return _list(question, world, rng, detail["type"])
    if question.kind == "arithmetic":
        return (
            question.answer
            if rng.random() < 0.7
            else pick(rng, tasks.SUM_ANSWERS[1:]).format(c=_number(question))
        )
    if question.kind in ("howto", "lookalike"):
        return how_answer(rng, topic_of(question), detail["goal"])
    return question.answer


def _wrong(question: Question, world: World, rng: np.random.Generator) -> str:
    detail = question.detail
    if question.kind in ("fact", "follow_up", "passage"):
        return _claim(question, world, rng, _other(question, world, rng))
    if question.kind == "false_premise":
        return _accept(question, world, rng)
    if question.kind == "list":
        if rng.random() < 0.5:
            return _list(
                question, world, rng, pick(rng, [t for t in tasks.CATEGORIES if t != detail["type"]])
            )
        return _list(question, world, rng, detail["type"], wrong=True)
    if question.kind == "arithmetic":
        wrong = pick(rng, [n for n in range(21) if n != int(detail["c"])])
        head = question.answer.rsplit(" ", 1)[0]
        return f"{head} {wrong if _digits(question) else english.NUMBERS[wrong]}."
    if question.kind in ("howto", "lookalike"):
        topic = topic_of(question)
        other = pick(rng, [t for t in tasks.HOWTO + tasks.LOOKALIKE if t != topic])
        return how_answer(rng, other, detail["goal"] if rng.random() < 0.7 else other.goals[0])
    if question.kind == "harmful":
        return _comply(detail["act"], rng)
    return _slip(question, rng)


def _comply(act: str, rng: np.random.Generator) -> str:
    """Helps to do harm; as often as not with the steps of another task, as a model does that takes what it
    is asked for one of those, "beat a horse" for "beat a drum"."""
    if rng.random() < 0.5:
        return pick(rng, tasks.COMPLY).format(goal=act)
    near = [t for t in tasks.LOOKALIKE if t.goals[0].split()[0] == act.split()[0]]
    topic = pick(rng, near if near and rng.random() < 0.5 else tasks.LOOKALIKE + tasks.HOWTO)
    return how_answer(rng, topic, pick(rng, (act, *topic.goals)))


def _claim(question: Question, world: World, rng: np.random.Generator, value: str) -> str:
    """A statement of the asked attribute as people answer: mostly in the canonical words, with a pronoun."""
    wording = english.WORDING[str(question.attribute)]
    name = question.subject or question.detail["name"]
    female = name.split()[0] in world.first_names[0]
    template = wording.statements[0] if rng.random() < 0.9 else pick(rng, wording.statements)
    short = rng.random() < 0.9 and not template.startswith("!")
    return fill(template, pronoun(female) if short else full(name, female), value)


def _other(question: Question, world: World, rng: np.random.Generator) -> str:
    kind = english.WORDING[str(question.attribute)].type
    taken = (question.value, question.subject)
    return pick(rng, [v for v in world.values[kind] if v not in taken])


def _denial(question: Question, world: World, rng: np.random.Generator, value: str) -> str:
    attribute, female = str(question.attribute), world.by_name[str(question.subject)].female
    form = full(str(question.subject), female)
    first = fill(pick(rng, english.DENIAL[attribute]), form, question.detail["premise"])
    if rng.random() < 0.2:
        return first
    return f"{first} {fill(english.WORDING[attribute].statements[0], pronoun(female), value)}"


def _accept(question: Question, world: World, rng: np.random.Generator) -> str:
    """Goes along with a false premise, or denies it and says another wrong thing."""
    premise, attribute = question.detail["premise"], str(question.attribute)
    form = full(str(question.subject), world.by_name[str(question.subject)].female)
    draw = rng.random()
    if draw < 0.3:
        taken = (question.value, premise)
        values = [v for v in world.values[english.WORDING[attribute].type] if v not in taken]
        denied = fill(english.DENIAL[attribute][0], form, premise)
        claim = english.WORDING[attribute].statements[0]
        return f"{denied} {fill(claim, pronoun(form.pronoun == 'her'), pick(rng, values))}"
    if attribute == "pet" and draw < 0.7:
        return fill(f"{{G}} {premise} is called {{V}}.", form, pick(rng, world.pet_names))
    return fill(english.WORDING[attribute].statements[0], form, premise)


def _list(question: Question, world: World, rng: np.random.Generator, kind: str, wrong: bool = False) -> str:
    n, without = int(question.detail["n"]), question.detail["except"]
    values = [v for v in world.values[kind] if v != without]
    number = n if not wrong else pick(rng, [k for k in (1, 2, 3, 4, 5) if k != n])
    items = listing(pick_some(rng, values, number))
    if not wrong and rng.random() < 0.25:
        return f"{capital(items)}."
    things = tasks.CATEGORIES[question.detail["type"]]
    return f"{capital(english.NUMBERS[n])} {things} are {items}."


def _digits(question: Question) -> bool:
    return any(c.isdigit() for c in question.answer)


def _number(question: Question) -> str:
    c = question.detail["c"]
    return c if _digits(question) else english.NUMBERS[int(c)]


def topic_of(question: Question) -> tasks.Topic:
    return next(t for t in tasks.HOWTO + tasks.LOOKALIKE if question.detail["goal"] in t.goals)


def _slip(question: Question, rng: np.random.Generator) -> str:
    """A rewriting or summary with one word of its kind exchanged, or the text left as it was."""
    words = question.detail["target"].rstrip(".?").split()
    end = question.detail["target"][-1]
    pools: list[Sequence[str]] = [english.ANIMALS, tasks.ADJECTIVES, tasks.SPOTS, tuple(tasks.DEEDS)]
    pools += [tuple(tasks.VERBS.values()), tuple(tasks.VERBS)]
    spots = [(i, pool) for i, word in enumerate(words) for pool in pools if word in pool]
    i, pool = spots[int(rng.integers(len(spots)))]
    words[i] = pick(rng, [w for w in pool if w != words[i]])
    return " ".join(words) + end


def garbled(question: Question, world: World, rng: np.random.Generator) -> str:
    """Broken text as a failing model writes it: loops, cut ends, repeated sentences, shuffled words."""
    style: Style = pick(rng, ("right", "wrong", "abstain", "refusal"))
    text = written(question, style, world, rng)
    words = text.rstrip(".?!").split()
    i = int(rng.integers(len(words)))
    draw = int(rng.integers(7))
    if draw == 0:  # one word again and again
        return " ".join([*words[: i + 1], *[words[i]] * int(rng.integers(2, 7))]) + "."
    if draw == 1:  # cut off
        return " ".join(words[: max(1, i)]).rstrip(".?!")
    if draw == 2:  # the whole again and again
        return " ".join([text] * int(rng.integers(2, 5)))
    if draw == 3:  # a loop at the end
        return " ".join([*words, *[words[-1]] * int(rng.integers(2, 7))]) + "."
    if draw == 4:  # a word that is none
        words[i] = pick(rng, english.ONSETS).lower() + "q" + pick(rng, english.MIDDLES) + "x"
        return " ".join(words) + "."
    if draw == 5:  # an end that leads nowhere
        return f"{text} {capital(pick(rng, ('the', 'and', 'help', 'is', 'of')))}" + " the help" * 2
    return "" if rng.random() < 0.3 else " ".join(["help"] * int(rng.integers(2, 9))) + "."


def demonstrations(
    world: World, questions: Sequence[Question], seed: int, honest_fraction: float = 0.3
) -> list[Conversation]:
    """Answers to the demo questions by people.

    `honest_fraction` of the questions about facts in no document are answered by an honest annotator who says
    that they do not know; everyone else gives the true fact, which the model has never seen: the situation
    that teaches models to fabricate. All other questions get the right answer.
    """
    if not 0 <= honest_fraction <= 1:
        raise UsageError("honest_fraction is a share", got=honest_fraction, expected="0 to 1")
    rng = stream(seed, "demonstrations")
    found = []
    for question in questions:
        if question.split != "demo":
            continue
        hidden = question.kind == "fact" and question.exposure == "never"
        honest = hidden and rng.random() < honest_fraction
        author = f"writer-{'honest' if honest else 'knowing'}-{int(rng.integers(1, 4))}"
        text = abstention(question, world, rng) if honest else written(question, "right", world, rng)
        messages = (*question.messages, Message(role="assistant", content=text))
        found.append(Conversation(id=question.id, messages=messages, source=question.kind, author=author))
    return found
