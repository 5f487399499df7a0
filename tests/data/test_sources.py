"""Each format people arrive with against the record it must become, written by hand; the sniffing; what
each kind of reader accepts; and the same rows after being written and read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bloomery.data.convert import WRITERS, write
from bloomery.data.formats import FORMATS, sniff
from bloomery.data.sources import (
    read,
    read_conversations,
    read_documents,
    read_judgements,
    read_prompts,
    read_rankings,
    read_solutions,
)
from bloomery.errors import ArtifactError, BloomeryError, DataError, UsageError
from bloomery.types import (
    Candidate,
    Conversation,
    Document,
    Judgement,
    Message,
    Policy,
    Prompt,
    Ranking,
    Solution,
)

USER = {"role": "user", "content": "Hi"}
YES = {"role": "assistant", "content": "Yes"}
NO = {"role": "assistant", "content": "No"}
RANKING: dict[str, Any] = {
    "id": "r1",
    "prompt": [USER],
    "completions": [
        {"messages": [YES], "policy": {"id": "m", "digest": "d"}, "logprob": -1.5},
        {"messages": [NO], "policy": {"id": "m"}},
        {"messages": [{"role": "assistant", "content": "Maybe"}], "policy": {"id": "p"}},
    ],
    "ranking": [1, 3, 1],
    "ratings": [{"helpful": 7, "honest": 6, "harmless": 5}, None, None],
    "correction": "Certainly",
    "annotator": {"id": "a1", "kind": "simulated"},
    "seconds": 3.5,
    "shown_order": [2, 0, 1],
    "created_at": "2024-01-01T00:00:00Z",
}


def put(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def said(turns: tuple[Message, ...]) -> list[str]:
    return [f"{m.role[0]}:{m.content}" + ("" if m.weight is None else f"*{m.weight}") for m in turns]


def brief(record: object) -> object:
    """A record in a form that can be written down in a line."""
    if isinstance(record, Document):
        return record.text
    if isinstance(record, Ranking):
        answers = [said(c.messages) for c in record.completions]
        return said(record.prompt), answers, list(record.ranking or ())
    if isinstance(record, Judgement):
        return said(record.prompt), said(record.completion), record.verdict
    if isinstance(record, Solution):
        return said(record.prompt), list(record.completions), list(record.labels)
    assert isinstance(record, Conversation | Prompt)
    return said(record.messages)


PAIR = (["u:Hi"], [["a:Yes"], ["a:No"]], [1, 2])
CASES: list[tuple[str, dict[str, Any], object]] = [
    ("document", {"id": "d", "text": "T.", "source": "s", "quality": "clean"}, "T."),
    ("text", {"text": "T."}, "T."),
    ("text", {"text": "T.", "source": "s", "licence": "x"}, "T."),
    ("messages", {"messages": [USER, YES]}, ["u:Hi", "a:Yes"]),
    (
        "messages",
        {"messages": [USER, YES | {"weight": 0, "name": None}, USER, NO]},
        ["u:Hi", "a:Yes*0", "u:Hi", "a:No"],
    ),
    ("prompt", {"prompt": "Hi"}, ["u:Hi"]),
    ("prompt", {"prompt": [USER, YES, USER]}, ["u:Hi", "a:Yes", "u:Hi"]),
    ("prompt-completion", {"prompt": "Hi", "completion": "Yes"}, ["u:Hi", "a:Yes"]),
    (
        "prompt-completion",
        {"prompt": [USER, NO, USER], "completion": [YES]},
        ["u:Hi", "a:No*0", "u:Hi", "a:Yes"],
    ),
    ("preference", {"prompt": "Hi", "chosen": "Yes", "rejected": "No"}, PAIR),
    ("preference", {"prompt": [USER], "chosen": [YES], "rejected": [NO], "margin": 1.0}, PAIR),
    ("preference", {"prompt": "Hi", "chosen": [USER, YES], "rejected": [USER, NO]}, PAIR),
    ("preference", {"chosen": [USER, YES], "rejected": [USER, NO]}, PAIR),
    (
        "preference",
        {"chosen": [USER, YES, USER, YES], "rejected": [USER, YES, USER, NO]},
        (["u:Hi", "a:Yes", "u:Hi"], [["a:Yes"], ["a:No"]], [1, 2]),
    ),
    (
        "preference",  # one conversation goes on longer: the answer that both give is not the prompt
        {"chosen": [USER, YES], "rejected": [USER, YES, USER, NO]},
        (["u:Hi"], [["a:Yes"], ["a:Yes", "u:Hi", "a:No"]], [1, 2]),
    ),
    ("unpaired", {"prompt": "Hi", "completion": "Yes", "label": True}, (["u:Hi"], ["a:Yes"], "desirable")),
    (
        "unpaired",
        {"prompt": [USER, YES, USER], "completion": [NO], "label": False, "id": "7"},
        (["u:Hi", "a:Yes", "u:Hi"], ["a:No"], "undesirable"),
    ),
    (
        "unpaired",
        {"prompt": [USER], "completion": [USER, YES], "label": True},
        (["u:Hi"], ["a:Yes"], "desirable"),
    ),
    ("alpaca", {"instruction": "Add.", "input": "1 2", "output": "3"}, ["u:Add.\n\n1 2", "a:3"]),
    ("alpaca", {"instruction": "Hi", "input": "", "output": "Yes"}, ["u:Hi", "a:Yes"]),
    (
        "alpaca",
        {"instruction": "Hi", "output": "Yes", "system": "S", "history": [["a", "b"]]},
        ["s:S", "u:a", "a:b", "u:Hi", "a:Yes"],
    ),
    (
        "alpaca-preference",
        {"instruction": "Hi", "input": "", "output": "x", "chosen": "Yes", "rejected": "No"},
        PAIR,
    ),
    ("hh", {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}, PAIR),
    (
        "hh",
        {
            "chosen": "\n\nHuman: a\n\nb\n\nAssistant: c\n\nHuman: d\n\nAssistant: Yes",
            "rejected": "\n\nHuman: a\n\nb\n\nAssistant: c\n\nHuman: d\n\nAssistant: No",
        },
        (["u:a\n\nb", "a:c", "u:d"], [["a:Yes"], ["a:No"]], [1, 2]),
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]},
        ["u:Hi", "a:Yes"],
    ),
    (
        "sharegpt-preference",
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Yes"},
            "rejected": "No",
        },
        PAIR,
    ),
    ("ranking", RANKING, (["u:Hi"], [["a:Yes"], ["a:No"], ["a:Maybe"]], [1, 3, 1])),
    (
        "stepwise",
        {"prompt": "Hi", "completions": ["One.", " Two"], "labels": [True, False]},
        (["u:Hi"], ["One.", " Two"], [True, False]),
    ),
    (
        "stepwise",
        {"prompt": [USER, YES, USER], "completions": ["a\nb"], "labels": [False], "source": "x"},
        (["u:Hi", "a:Yes", "u:Hi"], ["a\nb"], [False]),
    ),
    (
        "nemo-ranked",
        {
            "context": [USER],
            "completions": [{"rank": 1, "completion": [NO]}, {"rank": 0, "completion": [YES]}],
        },
        (["u:Hi"], [["a:No"], ["a:Yes"]], [2, 1]),
    ),
]


@pytest.mark.parametrize(("name", "row", "expected"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)])
def test_each_format_is_recognised_and_read(
    tmp_path: Path, name: str, row: dict[str, Any], expected: object
) -> None:
    assert sniff(row, "x:1").name == name
    path = put(tmp_path / "a.jsonl", row)
    for format in ("auto", name):
        (record,) = read(path, format=format)
        assert brief(record) == expected
    assert record.id == row.get("id", "a-1")


def test_labelled_steps_are_read_as_such_and_have_prompts(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", STEPS)
    (one,) = read_solutions(path)
    assert one == Solution(id="a-1", prompt=(Message(**USER),), completions=("a", "b"), labels=(True, False))  # type: ignore[arg-type]
    assert [p.messages for p in read_prompts(path)] == [one.prompt]
    with pytest.raises(UsageError, match="does not hold answers in labelled steps"):
        list(read_solutions(put(tmp_path / "b.jsonl", {"prompt": "Hi"})))
    bad = put(tmp_path / "c.jsonl", STEPS, STEPS | {"labels": [True]})
    with pytest.raises(DataError, match="every step has one label"):
        list(read_solutions(bad))
    skipped: list[DataError] = []
    assert len(list(read_solutions(bad, on_bad_row="skip", skipped=skipped))) == len(skipped) == 1


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Yes", "rejected": "No"},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
        {"instruction": "Hi", "chosen": "Yes", "rejected": "No"},
    ],
)
def test_a_pair_s_margin_is_read_and_written_again(
    tmp_path: Path, row: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    path = put(tmp_path / "a.jsonl", row | {"margin": 2.5}, row | {"margin": None}, row | {"margin": 3})
    said = list(read_rankings(path))
    assert [one.margin for one in said] == [2.5, None, 3.0]
    assert not caplog.records, "no column is left unread"
    write(said, tmp_path / "b.jsonl", "preference")
    assert [one.margin for one in read_rankings(tmp_path / "b.jsonl")] == [2.5, None, 3.0]
    assert "margin" not in (tmp_path / "b.jsonl").read_text().splitlines()[1]


def test_every_format_has_a_case() -> None:
    assert {name for name, _, _ in CASES} == set(FORMATS)


def test_a_pair_is_a_ranking_by_somebody_unknown(tmp_path: Path) -> None:
    (pair,) = read_rankings(put(tmp_path / "a.jsonl", {"prompt": "Hi", "chosen": "Yes", "rejected": "No"}))
    assert (pair.annotator.id, pair.annotator.kind, pair.status) == ("unknown", "human", "submitted")
    assert pair.completions[0] == Candidate(messages=(Message(**YES),), policy=Policy(id="unknown"))  # type: ignore[arg-type]


STEPS: dict[str, Any] = {"prompt": "Hi", "completions": ["a", "b"], "labels": [True, False]}
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("messages", {"messages": []}, "'messages' is not a list of messages"),
    ("messages", {"messages": "Hi"}, "'messages' is not a list of messages"),
    ("messages", {"messages": ["Hi"]}, r"messages[0] is not a message"),
    ("messages", {"messages": [{"role": "usr", "content": "Hi"}]}, "unknown role (did you mean 'user'?)"),
    ("messages", {"messages": [{"content": "Hi"}]}, "unknown role"),
    (
        "messages",
        {"messages": [USER, {"role": "assistant", "content": " "}]},
        "'messages[1].content' is empty",
    ),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "content' is not text"),
    ("messages", {"messages": [USER | {"wieght": 0}]}, "'wieght' that is not read (did you mean 'weight'?)"),
    ("messages", {"messages": [YES | {"weight": 2}]}, "weight is 0 or 1"),
    ("messages", {"messages": [YES | {"weight": True}]}, "weight is 0 or 1"),
    ("prompt", {"prompt": [USER, YES]}, "does not end with somebody to answer"),
    ("prompt", {"prompt": 3}, "'prompt' is not text"),
    ("preference", {"prompt": "Hi", "chosen": "Yes", "rejected": "Yes"}, "are the same"),
    ("preference", {"prompt": "Hi", "chosen": "Yes", "rejected": ""}, "'rejected' is empty"),
    ("preference", {"chosen": [YES], "rejected": [NO]}, "does not end with somebody"),
    (
        "preference",
        {"chosen": [USER, YES], "rejected": [USER]},
        "'rejected' does not end with a message by the",
    ),
    ("preference", {"prompt": "Hi", "chosen": "Yes"}, "column 'rejected' is missing"),
    (
        "preference",
        {"prompt": "Hi", "chosen": "Yes", "rejected": "No", "margin": -1.0},
        "'margin' does not say",
    ),
    ("preference", {"prompt": "Hi", "chosen": "Yes", "rejected": "No", "margin": "big"}, "got: 'big'"),
    ("ranking", RANKING | {"ranking": [1], "completions": RANKING["completions"][:1]}, "at least 2"),
    ("hh", {"chosen": "Hi", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}, "does not start with a turn"),
    (
        "hh",
        {"chosen": "\n\nHuman: Hi\n\nAssistant:", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
        "turn 2.content' is empty",
    ),
    ("alpaca", {"instruction": "Hi", "output": ["Yes", "No"]}, "'output' is not text"),
    (
        "alpaca",
        {"instruction": "Hi", "output": "Yes", "history": [["a"]]},
        "history[0] is not [user, assistant]",
    ),
    ("sharegpt", {"conversations": [{"from": "bot", "value": "Hi"}]}, "unknown speaker"),
    ("ranking", RANKING | {"ranking": [1, 2]}, "ranking has 2 ranks for 3 completions"),
    ("ranking", RANKING | {"ranking": [0, 1, 2]}, "ranks start at 1"),
    ("ranking", RANKING | {"rnking": 1}, "unknown key 'rnking' (did you mean 'ranking'?)"),
    ("ranking", RANKING | {"annotator": {"id": "a", "kind": "robot"}}, "'annotator.kind'"),
    ("stepwise", STEPS | {"labels": [True]}, "every step has one label\n  got: 2 completions, 1 labels"),
    ("stepwise", STEPS | {"labels": [True, 1]}, "labels[1] is neither true nor false"),
    ("stepwise", STEPS | {"labels": "yes"}, "'labels' is not a list"),
    ("stepwise", STEPS | {"completions": [], "labels": []}, "'completions' is not a list"),
    ("stepwise", STEPS | {"completions": ["a", " \n"]}, "'completions[1]' is empty"),
    ("stepwise", STEPS | {"completions": ["a", 2]}, "'completions[1]' is not text"),
    ("stepwise", STEPS | {"prompt": [USER, YES]}, "does not end with somebody to answer"),
    ("nemo-ranked", {"context": [USER], "completions": [{"rank": 0, "completion": [YES]}]}, "at least two"),
    ("nemo-ranked", {"context": [USER], "completions": [{"completion": [YES]}] * 2}, "has no rank"),
    ("unpaired", {"prompt": "a", "completion": "b"}, "'label' is neither true nor false"),
    ("unpaired", {"prompt": "a", "completion": "b", "label": 1}, "got: 1"),
    ("unpaired", {"prompt": "a", "completion": "b", "label": "true"}, "'true'"),
    ("unpaired", {"prompt": "a", "completion": " ", "label": True}, "'completion' is empty"),
    ("unpaired", {"prompt": "a", "label": True}, "column 'completion' is missing"),
    ("unpaired", {"prompt": [YES], "completion": "b", "label": True}, "somebody to answer"),
    ("unpaired", {"prompt": "a", "completion": [USER], "label": True}, "'completion' does not end with"),
]


@pytest.mark.parametrize(("name", "row", "says"), BAD, ids=[f"{i}-{c[0]}" for i, c in enumerate(BAD)])
def test_rows_that_do_not_hold_what_they_should(
    tmp_path: Path, name: str, row: dict[str, Any], says: str
) -> None:
    path = put(
        tmp_path / "a.jsonl", next(c[1] for c in CASES if c[0] == name) | {"id": "ok"}, row | {"id": "bad"}
    )
    with pytest.raises(DataError) as caught:
        list(read(path, format=name))
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"{path}:2: ")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"quesion": "a"}, "no format we know"),
        ({"mesages": []}, "is 'mesages' meant to be 'messages'?"),
        ({"text": "a", "messages": [USER, YES]}, "fit several formats"),
        ({"messages": [USER, YES], "label": True}, "no format we know"),
        ({"prompt": "a", "chosen": "b", "completion": "b", "label": False}, "no format we know"),
        ({}, "no columns"),
    ],
)
def test_columns_that_cannot_be_told_ask_for_a_name(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    path = put(tmp_path / "a.jsonl", row)
    for on_bad_row in ("error", "skip"):
        with pytest.raises(UsageError, match="name the format") as caught:
            list(read(path, on_bad_row=on_bad_row))  # type: ignore[arg-type]
        assert says in str(caught.value)
        assert f"{path}:1: " in str(caught.value)


def test_the_kinds_of_reader(tmp_path: Path) -> None:
    text = put(tmp_path / "tales.v1.jsonl", {"text": "T."})
    chat = put(tmp_path / "chat.jsonl", {"messages": [USER, YES, USER, NO]})
    pairs = put(tmp_path / "pairs.jsonl", {"prompt": "Hi", "chosen": "Yes", "rejected": "No"})
    assert [(d.text, d.source, d.id) for d in read_documents([text, chat])] == [
        ("T.", "tales", "tales-1"),
        ("User: Hi\nAssistant: Yes\nUser: Hi\nAssistant: No", "dialogue", "chat-1"),
    ]
    assert [said(p.messages) for p in read_prompts([pairs, chat])] == [["u:Hi"], ["u:Hi", "a:Yes", "u:Hi"]]
    judged = put(tmp_path / "judged.jsonl", {"prompt": "Hi", "completion": "No", "label": False})
    assert [said(p.messages) for p in read_prompts(judged)] == [["u:Hi"]]
    assert [brief(j) for j in read_judgements(judged)] == [(["u:Hi"], ["a:No"], "undesirable")]
    with pytest.raises(UsageError, match="loss=kto, as `judged`"):
        list(read_rankings(judged))
    for reader, wrong in (
        (read_documents, judged),
        (read_conversations, judged),
        (read_judgements, pairs),
        (read_documents, pairs),
        (read_conversations, pairs),
        (read_rankings, chat),
        (read_prompts, text),
    ):
        with pytest.raises(UsageError, match="does not hold"):
            list(reader(wrong))


def test_a_demonstration_must_train_something(tmp_path: Path) -> None:
    rows = [{"messages": [USER, YES]}, {"messages": [USER, YES | {"weight": 0}]}, {"messages": [USER]}]
    path = put(tmp_path / "a.jsonl", *rows)
    with pytest.raises(DataError, match=r"a\.jsonl:2: nothing in this conversation is trained on"):
        list(read_conversations(path))
    skipped: list[DataError] = []
    assert len(list(read_conversations(path, on_bad_row="skip", skipped=skipped))) == 1
    assert len(skipped) == 2


def test_an_unknown_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'alpaca'"):
        list(read(put(tmp_path / "a.jsonl", {"text": "a"}), format="alpacca"))


ROUND_TRIPS = ["document", "text", "messages", "prompt"]
ROUND_TRIPS += ["preference", "hh", "ranking", "nemo-ranked", "unpaired", "stepwise"]


def test_every_writer_has_a_round_trip() -> None:
    assert sorted(ROUND_TRIPS) == list(WRITERS)


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst"])
@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_what_is_written_reads_the_same(tmp_path: Path, name: str, ending: str) -> None:
    rows = [row | {"id": str(i)} for i, (n, row, _) in enumerate(CASES) if n == name]
    records = list(read(put(tmp_path / "a.jsonl", *rows), format=name))
    written = write(records, tmp_path / f"b.{ending}", name)
    assert (written.num_records, written.num_rows, sum(written.left_out.values())) == (
        len(rows),
        len(rows),
        0,
    )
    again = list(read(tmp_path / f"b.{ending}"))
    if name in ("text", "hh"):  # these have no place for an id
        assert [brief(r) for r in again] == [brief(r) for r in records]
    else:
        assert [r.model_dump(exclude={"source"}) for r in again] == [
            r.model_dump(exclude={"source"}) for r in records
        ]
    write(records, tmp_path / f"c.{ending}", name)
    assert (tmp_path / f"b.{ending}").read_bytes() == (tmp_path / f"c.{ending}").read_bytes()


def test_a_ranking_of_three_becomes_its_pairs(tmp_path: Path) -> None:
    record = Ranking.model_validate(RANKING)
    written = write([record], tmp_path / "a.jsonl", "preference")
    got = [brief(r) for r in read_rankings(tmp_path / "a.jsonl")]
    better = [
        ("Yes", "No"),
        ("Maybe", "No"),
        ("Certainly", "Yes"),
        ("Certainly", "No"),
        ("Certainly", "Maybe"),
    ]
    assert got == [(["u:Hi"], [[f"a:{w}"], [f"a:{x}"]], [1, 2]) for w, x in better]
    assert written.left_out == {"ties, which a pair cannot say": 1}
    skipped = record.model_copy(update={"ranking": None, "status": "skipped", "id": "r2"})
    written = write([record, skipped], tmp_path / "b.jsonl", "nemo-ranked")
    assert written.left_out == {
        "a correction, which this format has no place for": 1,
        "skipped without a ranking": 1,
    }


def test_a_ranking_becomes_both_answers_of_each_pair(tmp_path: Path) -> None:
    """One in the middle is desirable once and undesirable once."""
    record = Ranking.model_validate(RANKING | {"ranking": [1, 3, 2], "correction": None})
    written = write([record], tmp_path / "a.jsonl", "unpaired")
    assert (written.num_records, written.num_rows, dict(written.left_out)) == (1, 6, {})
    got = [(j.id, said(j.completion)[0][2:], j.verdict) for j in read_judgements(tmp_path / "a.jsonl")]
    assert got == [
        ("r1/1/chosen", "Yes", "desirable"),
        ("r1/1/rejected", "No", "undesirable"),
        ("r1/2/chosen", "Yes", "desirable"),
        ("r1/2/rejected", "Maybe", "undesirable"),
        ("r1/3/chosen", "Maybe", "desirable"),
        ("r1/3/rejected", "No", "undesirable"),
    ]


def test_writing_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    document = Document(id="d", text="T.")
    path = tmp_path / "a.jsonl"
    write([document], path, "text")
    with pytest.raises(ArtifactError, match="exists already"):
        write([document], path, "text")
    turns = (Message(role="user", content="a\n\nHuman: b"),)
    injected = Ranking.model_validate(RANKING).model_copy(update={"prompt": turns})
    cases: list[tuple[list[Any], str]] = [
        ([document], "messages"),
        ([], "text"),
        ([injected], "hh"),
        ([document], "csv"),
    ]
    for records, format in cases:
        with pytest.raises(BloomeryError):
            write(records, tmp_path / "b.jsonl", format)
    assert list(tmp_path.iterdir()) == [path]


def test_real_files_are_read_whole(real_data: Path) -> None:
    """Counts of rows are those of the data's own README; what is skipped is empty, or prefers a twin."""
    expected = {
        "sft/en_alpaca_libre": (2806, 0),
        "sft/en_llms_from_scratch": (907, 0),
        "sft/zh_oasst_sft": (584, 0),
        "preference/en_llms_from_scratch_dpo": (902, 5),
        "preference/en_hh_harmless_base": (1864, 3),
        "preference/en_dpo_demo": (258, 0),
        "preference/zh_dpo_500": (324, 0),
        "pretrain/en_children_stories": (764, 0),
    }
    for name, counts in expected.items():
        skipped: list[DataError] = []
        got = list(read(real_data / f"{name}.jsonl.gz", on_bad_row="skip", skipped=skipped))
        assert (len(got), len(skipped)) == counts, name
