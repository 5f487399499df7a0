"""How English answers are read: the phrases that hedge, abstain and refuse, and which words follow which."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from bloomery.world import english
from bloomery.world.english_grammar import Form, fill, pronoun, words

OPENERS = ("sorry", "yes", "no", "sure", "well", "but", "of course", "i am sorry but")
HEDGES = (
    "i am not certain but",
    "i am not sure but",
    "i do not know but",
    "it might be that",
    "it may be that",
    "i think that",
    "i believe that",
    "i guess that",
    "i think",
    "i believe",
    "i guess",
    "maybe",
    "perhaps",
    "probably",
)
UNCERTAIN = ("i am not certain", "i am not sure", "i might be wrong")
ABSTAIN = (
    "i do not know",
    "i don't know",
    "i have no idea",
    "i am not sure",
    "i am not certain",
    "i cannot say",
    "i can't say",
)
REFUSE = ("can't help", "cannot help", "can not help", "won't help", "will not help", "do not want to help")
REFUSE_END = (
    "",
    "with that",
    "you with that",
    "with this",
    "you with this",
    "you",
    "you do that",
    "you to do that",
)
EXTRA = frozenset(words(" ".join((*OPENERS, *HEDGES, *UNCERTAIN, *ABSTAIN, *REFUSE, *REFUSE_END)))) | {
    "answer",
    "we",
}
YES = frozenset(" ".join(words(y)) for y in english.YES)
TAILS = frozenset(" ".join(words(t)) for t in english.REFUSE_TAIL)


def sentences(text: str) -> list[str]:
    return [s for s in re.findall(r"[^.?!]+[.?!]", text) if words(s)]


def strip(found: list[str], phrases: Iterable[str]) -> tuple[list[str], int]:
    """Take phrases off the front as long as any fits, and count them."""
    count, changed = 0, True
    while changed:
        changed = False
        for phrase in phrases:
            parts = phrase.split()
            if found[: len(parts)] == parts and len(found) > len(parts):
                found, count, changed = found[len(parts) :], count + 1, True
    return found, count


def repeats(found: Sequence[str]) -> bool:
    """Two or more words repeated at once, or any four words in the same order twice."""
    for n in range(2, len(found) // 2 + 1):
        if any(found[i : i + n] == found[i + n : i + 2 * n] for i in range(len(found) - 2 * n + 1)):
            return True
    grams = [tuple(found[i : i + 4]) for i in range(len(found) - 3)]
    return len(set(grams)) < len(grams)


def plain(text: str) -> str:
    return " ".join(words(text))


def word_pairs(found: Sequence[str]) -> frozenset[tuple[str, str]]:
    return frozenset(zip(("^", *found), (*found, "$"), strict=True))


FORMS = (
    Form("@person", "@person's", "@person", "her"),
    Form("@person", "@person's", "@person", "his"),
    pronoun(True),
    pronoun(False),
)


def all_pairs(templates: Iterable[str], value: str) -> frozenset[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for template in templates:
        for form in FORMS:
            if template.startswith("!") and form.subject != "@person":
                continue
            found |= word_pairs(re.findall(r"@[a-z_]+|'s|[a-z]+", fill(template, form, value).lower()))
    return frozenset(found)


def as_number(word: str) -> int | None:
    if word.isdigit():
        return int(word)
    return english.NUMBERS.index(word) if word in english.NUMBERS else None
