"""How English sentences are put together and taken apart: people as pronouns, capitals, words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


def word_list(text: str) -> tuple[str, ...]:
    return tuple(text.split())


@dataclass(frozen=True)
class Form:
    """A person in a sentence: subject, owner, object, and the pronoun of ownership."""

    subject: str
    owner: str
    object: str
    pronoun: str


def full(name: str, female: bool) -> Form:
    return Form(name, f"{name}'s", name, "her" if female else "his")


def pronoun(female: bool) -> Form:
    return Form("she", "her", "her", "her") if female else Form("he", "his", "him", "his")


def fill(template: str, form: Form, value: str = "") -> str:
    """Put a person and a value into a sentence and begin it with a capital."""
    text = template.lstrip("!")
    for slot, word in (
        ("{N}", form.subject),
        ("{G}", form.owner),
        ("{O}", form.object),
        ("{g}", form.pronoun),
        ("{V}", value),
    ):
        text = text.replace(slot, word)
    return capital(text)


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def lower(text: str, names: frozenset[str] = frozenset()) -> str:
    """The sentence as it stands after a comma: small first letter, unless it begins with a name or I."""
    first = re.split(r"[ ,.']", text, maxsplit=1)[0]
    return text if first in names or first == "I" else text[:1].lower() + text[1:]


def words(text: str) -> list[str]:
    """The words of a text in small letters: letters (with n't) or digits; 's is a word of its own."""
    return re.findall(r"[a-z]+n't|'s|[^\W\d_]+|\d+", text.lower())


def listing(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
