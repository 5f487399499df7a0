"""What cleaning rules look at: a text's words, lines, sentences and kinds of characters, counted once."""

from __future__ import annotations

import re
import unicodedata
from functools import cached_property

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]")
_SENTENCE_END = re.compile(r"(?<=[.!?。！？…])\s+|(?<=[。！？])|\n\s*\n")
_ENDS = tuple(".!?…。！？")
_CLOSERS = "\"'”’»)]}*_`」』）】"
_COMMON = frozenset(".,;:!?'\"()-–—…“”‘’「」『』。，、；：！？（）《》〈〉【】·%$€£°&/+=*×÷−")
# UTF-8 that was read as Latin-1 or Windows-1252: a lead byte's letter and what its second byte became.
_MOJIBAKE = re.compile(
    "\ufffd|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|â€[\x80-\xbf™œ\u009d˜¦“”\u0161]?|[ÃÂ][\u0080-\u00bf©ƒ‚„…†‡ˆ‰Š‹Œ]|ï»¿"
)
_OPEN, _CLOSE = "([{（【「『", ")]}）】」』"


class Page:
    """One document's text, measured lazily."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def words(self) -> list[str]:
        return _WORD.findall(self.text.casefold())

    @cached_property
    def num_unspaced(self) -> int:
        """Characters of scripts that put no spaces between words."""
        return len(_UNSPACED.findall(self.text))

    @property
    def unspaced(self) -> bool:
        return self.num_unspaced > 0.3 * max(1, self.num_visible)

    @property
    def num_words(self) -> int:
        """Words, or characters where a script has no spaces."""
        return self.num_unspaced if self.unspaced else len(self.words)

    @cached_property
    def lines(self) -> list[str]:
        return [line.strip() for line in self.text.split("\n") if line.strip()]

    @cached_property
    def paragraphs(self) -> list[str]:
        return [part.strip() for part in re.split(r"\n\s*\n", self.text) if part.strip()]

    @cached_property
    def sentences(self) -> list[str]:
        return [part.strip() for part in _SENTENCE_END.split(self.text) if part and part.strip()]

    @cached_property
    def num_visible(self) -> int:
        return sum(not c.isspace() for c in self.text)

    @cached_property
    def num_symbols(self) -> int:
        return sum(not (c.isalnum() or c.isspace() or c in _COMMON or _is_mark(c)) for c in self.text)

    @cached_property
    def num_cased(self) -> int:
        return sum(c.islower() or c.isupper() for c in self.text)

    @cached_property
    def num_capitals(self) -> int:
        return sum(c.isupper() for c in self.text)

    @cached_property
    def num_mojibake(self) -> int:
        """Occurrences, not characters: one in a short text is enough to tell."""
        return len(_MOJIBAKE.findall(self.text))

    @cached_property
    def num_open_brackets(self) -> int:
        """Brackets without a partner; emoticons and lists such as `a)` are why a few may be allowed."""
        waiting: list[str] = []
        lonely = 0
        for c in self.text:
            if c in _OPEN:
                waiting.append(_CLOSE[_OPEN.index(c)])
            elif c in _CLOSE:
                if waiting and waiting[-1] == c:
                    waiting.pop()
                else:
                    lonely += 1
        return lonely + len(waiting)

    @staticmethod
    def ends_sentence(text: str) -> bool:
        return text.rstrip().rstrip(_CLOSERS + " ").endswith(_ENDS)


def _is_mark(c: str) -> bool:
    return unicodedata.category(c).startswith("M")
