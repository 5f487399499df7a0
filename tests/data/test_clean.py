"""Each cleaning rule on a text that breaks it and on one that just does not; the report's counts; and the
whole set measured on the embedded world, whose documents say how good they are, and on real stories."""

from __future__ import annotations

import inspect
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from bloomery.data.clean import KEPT, ORDER, RULES, Rules, clean, reason_to_drop
from bloomery.data.sources import read_documents
from bloomery.errors import UsageError
from bloomery.types import Document
from bloomery.world import World, documents

FINE = "Mira lives in a small house near the lake. She has a cat. The cat sleeps all day."
BROKEN: dict[str, list[str]] = {
    "too_short": ["Well, no.", "", "好。"],
    "too_long": ["word " * 100_001 + "."],
    "mojibake": [
        "The cafÃ© was closed.",
        "He said â€œhelloâ€\x9d to them.",
        "A str\ufffdnge day it was.",
        "A \x07 bell rang.",
    ],
    "symbols": ["Look at this #### @@@@ ~~~~ now.", "<b><i>bold</i></b> <u>text</u> here."],
    "mean_word_length": [
        "A b c d e f g h.",
        "Antidisestablishmentarianism counterrevolutionaries incomprehensibilities.",
    ],
    "shouting": ["BUY THIS NOW, it is cheap."],
    "disordered": ["the sat Mira. on house cat? the lake near."],
    "unfinished": ["Mira lives in a small house near the", "Mira lives in a house,", "One, two, three"],
    "repeated_lines": ["The same old line.\nThe same old line.\nAnother line here."],
    "repeated_paragraphs": ["Said once.\n\nSaid once.\n\nOne.\nTwo.\nThree.\nFour.\nFive.\nSix."],
    "repeated_sentences": ["The cat sat. The cat sat. The cat sat. The dog ran."],
    "repeated_ngrams": [
        "He said that one two three four five, one two three four five, one two three four five, yes."
    ],
    "stutter": ["I can help help help help help you."],
    "brackets": ["A text (with [some brackets that never end."],
    "boilerplate": ["Please enable JavaScript to read this page."],
}
FINE_TEXTS = [
    FINE,
    "3 plus 4 is 7. 12 minus 5 is 7.",
    "Ann: No! No, no, no.\nBen: (quietly) Why not?",
    "How to wash a pan:\n1. Fill it with water.\n2. Add soap.\n3. Rinse it.",
    'The lady asked, "Is it far?" He smiled (a little).',
    "Il était une fois une fée. Ça va très bien à Évian.",
    "从前有一座山。山里有一座庙。庙里有一个老和尚。",
    "I don't know. It's 5 o'clock; the café isn't open…",
]


@pytest.mark.parametrize("name", ORDER)
def test_each_rule_drops_what_it_is_for_and_can_be_set(name: str) -> None:
    if name == "line_ends":  # off unless asked for
        text = "This line has no end at all\nNor has this one here either.\nand again a line without end."
        assert reason_to_drop(text, Rules(disabled=("disordered",), min_ended_lines=0.9)) == name
        assert reason_to_drop(text, Rules(disabled=("disordered",))) is None
        return
    for text in BROKEN[name]:
        assert reason_to_drop(text, Rules()) == name
        if len(text) < 1000:
            assert reason_to_drop(text, Rules(disabled=(name,))) != name


def test_every_rule_is_documented_by_its_threshold() -> None:
    described = inspect.getsource(Rules)
    assert all(f'"""{name}: ' in described for name in RULES)
    assert sorted(ORDER) == list(RULES)


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("min_words", 100, "too_short"),
        ("max_words", 10, "too_long"),
        ("max_mojibake", -1.0, "mojibake"),
        ("max_symbols", -1.0, "symbols"),
        ("min_mean_word", 9.0, "mean_word_length"),
        ("max_mean_word", 2.5, "mean_word_length"),
        ("max_capitals", 0.0, "shouting"),
        ("max_lower_starts", -1.0, "disordered"),
        ("min_ended_lines", 1.1, "line_ends"),
        ("max_repeated_lines", -1.0, "repeated_lines"),
        ("max_repeated_paragraphs", -1.0, "repeated_paragraphs"),
        ("max_repeated_sentences", -1.0, "repeated_sentences"),
        ("max_repeated_ngrams", -1.0, "repeated_ngrams"),
        ("max_stutter", 0, "stutter"),
        ("max_open_brackets", -1, "brackets"),
        ("boilerplate", ("small house",), "boilerplate"),
    ],
)
def test_every_threshold_is_read(setting: str, value: object, reason: str) -> None:
    assert reason_to_drop(FINE, Rules()) is None
    assert reason_to_drop(FINE, Rules.model_validate({setting: value})) == reason
    assert reason_to_drop("No end", Rules(unfinished=False, min_words=1)) is None


@pytest.mark.parametrize("text", FINE_TEXTS)
def test_ordinary_short_texts_stay(text: str) -> None:
    assert reason_to_drop(text, Rules()) is None


def test_the_report_counts_reasons_by_source_and_quality() -> None:
    given = [
        Document(id="1", text=FINE, source="a", quality="clean"),
        Document(id="2", text="Well, no.", source="a", quality="garbled"),
        Document(id="3", text=FINE + " And then", source="b"),
        Document(id="4", text=FINE, source="b"),
    ]
    kept, report = clean(iter(given))
    assert kept == [given[0], given[3]]
    assert report.to_json() == {
        "read": 4,
        "kept": 2,
        "reasons": {"too_short": 1, "unfinished": 1},
        "sources": {
            "a": {"clean": {"kept": 1}, "garbled": {"too_short": 1}},
            "b": {"unknown": {"kept": 1, "unfinished": 1}},
        },
    }


def test_an_unknown_rule_cannot_be_disabled() -> None:
    with pytest.raises(UsageError, match="did you mean 'stutter'"):
        clean([Document(id="1", text=FINE)], Rules(disabled=("sttuter",)))


def test_most_garbled_documents_of_the_world_go_and_clean_ones_stay() -> None:
    made = documents(World.make(seed=3, size=16), 3)
    _, report = clean(made)
    counts: Counter[tuple[str, bool]] = Counter()
    for (_, quality, reason), count in report.counts.items():
        counts[quality, reason == KEPT] += count
    recall = counts["garbled", False] / (counts["garbled", True] + counts["garbled", False])
    precision = counts["garbled", False] / sum(n for (_, kept), n in counts.items() if not kept)
    stay = counts["clean", True] / (counts["clean", True] + counts["clean", False])
    assert counts["garbled", True] + counts["garbled", False] > 50
    assert recall > 0.95
    assert precision > 0.9
    assert stay > 0.99


@pytest.mark.parametrize(("name", "share"), [("tinystories", 0.97), ("en_children_stories", 0.9)])
def test_most_real_stories_stay(real_data: Path, name: str, share: float) -> None:
    _, report = clean(islice(read_documents(real_data / "pretrain" / f"{name}.jsonl.gz"), 700))
    assert report.num_read == 700
    assert report.num_kept >= share * report.num_read
