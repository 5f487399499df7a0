"""Cleaning: small named rules after C4, Gopher and FineWeb; a report says what each of them dropped.

C4: Raffel et al. 2020, section 2.2. Gopher: Rae et al. 2021, appendix A.1. FineWeb: Penedo et al. 2024.
Their thresholds are for web pages; ours are for short texts too, and every one can be set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from bloomery.data.page import Page
from bloomery.recipe import Section
from bloomery.registry import Registry
from bloomery.types import Document

KEPT = "kept"


class Rules(Section):
    """Thresholds. A document is dropped for the first rule it breaks, in the order of this list."""

    disabled: tuple[str, ...] = ()
    """Names of rules to leave out."""
    min_words: int = 3
    """too_short: fewer words than this."""
    max_words: int = 100_000
    """too_long: more words than this (Gopher)."""
    max_mojibake: float = 0.005
    """mojibake: share of characters that are replacement characters, controls, or UTF-8 read as Latin-1."""
    max_symbols: float = 0.15
    """symbols: share of visible characters that are neither letters, digits nor common punctuation."""
    min_mean_word: float = 2.0
    """mean_word_length: mean letters of a word, at least (Gopher: 3). Not for scripts without spaces."""
    max_mean_word: float = 10.0
    """mean_word_length: at most (Gopher)."""
    max_capitals: float = 0.5
    """shouting: share of cased letters that are capitals."""
    max_lower_starts: float = 0.3
    """disordered: share of sentences that start in lower case in a text that has capitals."""
    min_ended_lines: float = 0.0
    """line_ends: share of lines of five words or more that end with punctuation (C4, FineWeb: 0.12)."""
    unfinished: bool = True
    """unfinished: the text's last character ends no sentence."""
    max_repeated_lines: float = 0.3
    """repeated_lines: share of lines that occurred before (Gopher)."""
    max_repeated_paragraphs: float = 0.3
    """repeated_paragraphs: the same for paragraphs (Gopher)."""
    max_repeated_sentences: float = 0.3
    """repeated_sentences: the same for sentences, in texts of at least three."""
    max_repeated_ngrams: float = 0.5
    """repeated_ngrams: share of words inside 5-grams that occurred before (Gopher: 0.15 of characters)."""
    max_stutter: int = 4
    """stutter: the same word more often than this in a row."""
    max_open_brackets: int = 1
    """brackets: more brackets than this that do not close or were not opened."""
    boilerplate: tuple[str, ...] = ("lorem ipsum", "enable javascript", "accept cookies")
    """boilerplate: a text that holds one of these (C4)."""


Rule = Callable[[Page, Rules], bool]
RULES: Registry[Rule] = Registry("cleaning rule")
ORDER: list[str] = []


def _rule(rule: Rule) -> Rule:
    """Registers a function under its own name, after those above it."""
    ORDER.append(rule.__name__)
    return RULES.register(rule.__name__)(rule)


@dataclass
class Report:
    """How many documents of each (source, quality) each reason dropped; "kept" counts those that stay."""

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    @property
    def num_read(self) -> int:
        return sum(self.counts.values())

    @property
    def num_kept(self) -> int:
        return self.by_reason()[KEPT]

    def by_reason(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for (_, _, reason), count in self.counts.items():
            total[reason] += count
        return total

    def to_json(self) -> dict[str, Any]:
        """{"read", "kept", "reasons": {reason: n}, "sources": {source: {quality: {reason: n}}}}"""
        sources: dict[str, dict[str, dict[str, int]]] = {}
        for (source, quality, reason), count in sorted(self.counts.items()):
            sources.setdefault(source, {}).setdefault(quality, {})[reason] = count
        reasons = {reason: count for reason, count in sorted(self.by_reason().items()) if reason != KEPT}
        return {"read": self.num_read, "kept": self.num_kept, "reasons": reasons, "sources": sources}


def clean(documents: Iterable[Document], rules: Rules | None = None) -> tuple[list[Document], Report]:
    """The documents that break no rule, in order, and the counts. Texts are dropped whole, never changed.

    Raises `UsageError` for a name in `disabled` that no rule has.
    """
    rules = rules or Rules()
    kept: list[Document] = []
    report = Report()
    for document in documents:
        reason = reason_to_drop(document.text, rules)
        report.counts[document.source, document.quality or "unknown", reason or KEPT] += 1
        if reason is None:
            kept.append(document)
    return kept, report


def reason_to_drop(text: str, rules: Rules) -> str | None:
    """The name of the first rule that a text breaks, or None."""
    for name in rules.disabled:
        RULES[name]
    page = Page(text)
    return next((name for name in ORDER if name not in rules.disabled and RULES[name](page, rules)), None)


@_rule
def too_short(page: Page, rules: Rules) -> bool:
    return page.num_words < rules.min_words


@_rule
def too_long(page: Page, rules: Rules) -> bool:
    return page.num_words > rules.max_words


@_rule
def mojibake(page: Page, rules: Rules) -> bool:
    return page.num_mojibake > rules.max_mojibake * len(page.text)


@_rule
def symbols(page: Page, rules: Rules) -> bool:
    return page.num_symbols > rules.max_symbols * page.num_visible


@_rule
def mean_word_length(page: Page, rules: Rules) -> bool:
    if page.unspaced or not page.words:
        return False
    mean = sum(map(len, page.words)) / len(page.words)
    return not rules.min_mean_word <= mean <= rules.max_mean_word


@_rule
def shouting(page: Page, rules: Rules) -> bool:
    return page.num_capitals > rules.max_capitals * page.num_cased


@_rule
def disordered(page: Page, rules: Rules) -> bool:
    starts = [s[0] for s in page.sentences if s[0].isalpha()]
    return page.num_capitals > 0 and sum(c.islower() for c in starts) > rules.max_lower_starts * len(starts)


@_rule
def line_ends(page: Page, rules: Rules) -> bool:
    long = [line for line in page.lines if len(line.split()) >= 5]
    return sum(map(page.ends_sentence, long)) < rules.min_ended_lines * len(long)


@_rule
def unfinished(page: Page, rules: Rules) -> bool:
    return rules.unfinished and not page.ends_sentence(page.text)


@_rule
def repeated_lines(page: Page, rules: Rules) -> bool:
    return _repeats(page.lines) > rules.max_repeated_lines * len(page.lines)


@_rule
def repeated_paragraphs(page: Page, rules: Rules) -> bool:
    return _repeats(page.paragraphs) > rules.max_repeated_paragraphs * len(page.paragraphs)


@_rule
def repeated_sentences(page: Page, rules: Rules) -> bool:
    count = len(page.sentences)
    return count >= 3 and _repeats(page.sentences) > rules.max_repeated_sentences * count


@_rule
def repeated_ngrams(page: Page, rules: Rules) -> bool:
    words, inside, seen = page.words, set[int](), set[tuple[str, ...]]()
    for i in range(len(words) - 4):
        gram = tuple(words[i : i + 5])
        if gram in seen:
            inside.update(range(i, i + 5))
        seen.add(gram)
    return len(inside) > rules.max_repeated_ngrams * len(words)


@_rule
def stutter(page: Page, rules: Rules) -> bool:
    run = 1
    for before, word in zip(page.words, page.words[1:], strict=False):
        run = run + 1 if word == before and not word.isdigit() else 1
        if run > rules.max_stutter:
            return True
    return False


@_rule
def brackets(page: Page, rules: Rules) -> bool:
    return page.num_open_brackets > rules.max_open_brackets


@_rule
def boilerplate(page: Page, rules: Rules) -> bool:
    lowered = page.text.casefold()
    return any(phrase in lowered for phrase in rules.boilerplate)


def _repeats(parts: list[str]) -> int:
    return len(parts) - len(set(parts))
