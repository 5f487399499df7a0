"""Rules on texts whose reward is plain to see, the empty one among them, and files of right answers that are
none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from invented import rollout

from bloomery.errors import DataError, UsageError
from bloomery.rewards.rules import grade, last_number, read_answers
from bloomery.rewards.tools import Tools, sources

TOOLS: Any = Tools(None, torch.device("cpu"))  # type: ignore[arg-type]


def opinion(
    kind: str, text: str, *, prompt: str = "p", tokens: tuple[int, ...] = (9, 5), **settings: Any
) -> Any:
    (found,) = sources.bind(kind, settings)(TOOLS)([rollout(text, prompt, tokens)])
    return found


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    rows = [
        {"id": "p", "answer": ["The blue tower", "A tower"], "question": "not read"},
        {"id": "n", "answer": "1,250"},
        {"id": "none", "answer": []},
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("text", "plain", "strict"),
    [
        ("The blue tower", 1.0, 1.0),
        (" the  BLUE\ntower. ", 1.0, 0.0),
        ("A tower", 1.0, 1.0),
        ("The blue tower stands.", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_exact(answers: Path, text: str, plain: float, strict: float) -> None:
    assert opinion("exact", text, answers=answers) == plain
    assert opinion("exact", text, answers=answers, strict=True) == strict
    assert opinion("exact", text, prompt="unknown", answers=answers) is None


@pytest.mark.parametrize(
    ("pattern", "whole", "text", "want"),
    [
        (r"\bjam\b", False, "red jam now", 1.0),
        (r"\bjam\b", False, "jammed", 0.0),
        (r"jam", True, "jam", 1.0),
        (r"jam", True, "jam.", 0.0),
        (r"a.b", False, "a\nb", 1.0),
        (r"jam", False, "", 0.0),
        (r"", True, "", 1.0),
    ],
)
def test_regex(pattern: str, whole: bool, text: str, want: float) -> None:
    assert opinion("regex", text, pattern=pattern, whole=whole) == want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("It is 1250.", 1.0),
        ("7 of 10, so 1,250.0 in all", 1.0),
        ("1250 is more than 3", 0.0),  # the last one counts
        ("-1250", 0.0),
        ("1251", 0.0),
        ("no idea", 0.0),
        ("", 0.0),
    ],
)
def test_numeric(answers: Path, text: str, want: float, tmp_path: Path) -> None:
    path = tmp_path / "numbers.jsonl"
    path.write_text('{"id": "n", "answer": "1,250"}\n')
    assert opinion("numeric", text, prompt="n", answers=path) == want
    assert opinion("numeric", text, prompt="p", answers=path) is None
    near = opinion("numeric", "1251", prompt="n", answers=path, tolerance=0.001)
    assert near == 1.0
    with pytest.raises(DataError, match="a known answer is not a number"):
        opinion("numeric", text, answers=answers)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("a 3 b -4.5", -4.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("12,34", 34.0),
        ("v2", 2.0),
        ("+7.", 7.0),
        ("x", None),
    ],
)
def test_the_last_number(text: str, want: float | None) -> None:
    assert last_number(text) == want


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        ({"most": 5}, 0.0),
        ({"most": 1}, -2.0),
        ({"least": 7}, -4.0),
        ({"least": 3, "most": 3}, 0.0),
        ({"most": 2, "unit": "words"}, 0.0),
        ({"most": 1, "unit": "words"}, -1.0),
        ({"most": 0, "unit": "characters"}, -7.0),
    ],
)
def test_length(settings: dict[str, Any], want: float) -> None:
    assert opinion("length", "red jam", tokens=(9, 6, 5), **settings) == want


def test_an_empty_answer_is_as_long_as_it_is() -> None:
    assert opinion("length", "", tokens=(5,), most=0) == -1.0
    assert opinion("length", "", tokens=(), least=2) == -2.0
    assert opinion("length", "", tokens=(5,), least=2, unit="words") == -2.0


@pytest.mark.parametrize(
    ("text", "want", "worth"),
    [
        ("It is the blue tower.", "right_confident", 1.0),
        ("I think it is the blue tower.", "right_hedged", 0.5),
        ("I do not know.", "abstained", 0.0),
        ("I do not know, but maybe the blue tower.", "right_hedged", 0.5),
        ("Perhaps the red one.", "wrong_hedged", -1.0),
        ("The blue towers.", "wrong_confident", -2.0),  # whole words
        ("", "wrong_confident", -2.0),
    ],
)
def test_graded(answers: Path, text: str, want: str, worth: float) -> None:
    assert grade(text, ["The blue tower", "A tower"]) == want
    assert opinion("graded", text, answers=answers) == worth
    assert opinion("graded", text, prompt="unknown", answers=answers) is None
    table = {"wrong_confident": -9.0}
    assert opinion("graded", text, answers=answers, table=table) == (-9.0 if want in table else worth)


def test_what_nobody_can_know_and_words_of_your_own(answers: Path) -> None:
    assert opinion("graded", "The blue tower.", prompt="none", answers=answers) == -2.0
    assert opinion("graded", "I do not know.", prompt="none", answers=answers) == 0.0
    said = "Beats me."
    assert opinion("graded", said, answers=answers) == -2.0
    assert opinion("graded", said, answers=answers, abstentions=["beats me"]) == 0.0
    assert opinion("graded", "A tower, methinks.", answers=answers, hedges=["methinks"]) == 0.5
    with pytest.raises(UsageError, match="table"):
        opinion("graded", said, answers=answers, table={"rigth_hedged": 1.0})


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("regex", {"pattern": "("}, "not a regular expression"),
        ("regex", {}, "pattern: field required"),
        ("length", {}, "without bounds"),
        ("length", {"least": 3, "most": 2}, "no length is both"),
        ("length", {"most": -1}, "greater than or equal to 0"),
        ("length", {"most": 3, "unit": "pages"}, "unit"),
    ],
)
def test_settings_that_mean_nothing_are_refused(kind: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        opinion(kind, "x", **settings)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "p", "answer": "x"}\n{"id": "p", "answer": "y"}', r"answers:2: id 'p' is given twice"),
        ('{"id": "p"}', r"answers:1: this line is not a right answer"),
        ('{"id": 3, "answer": "x"}', "not a right answer"),
        ('{"id": "p", "answer": [" . "]}', "not a right answer"),
        ("[]", "not a right answer"),
        ("{", r"answers:1: this line is not JSON"),
        ("\n", "holds no right answers"),
    ],
)
def test_files_that_hold_no_right_answers(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "answers"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        read_answers(path)
