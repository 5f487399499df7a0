"""Four public sets of people's preferences, as canonical rankings.

Each reader takes a row as it was published and gives rankings, or raises `DataError`. What a set tells of an
answer's model and of its annotator is kept; what it does not tell is called "unknown".

    hh           Bai et al. 2022: two answers, one chosen; talks of several turns
    finegrained  Wu et al. 2023, QA feedback: four answers, all six pairs compared by one person
    pandalm      Wang et al. 2023: answers of two named models, compared by three people each
    oasst        Köpf et al. 2023, Chinese threads: two to five answers, best first
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from bloomery.data.formats import FORMATS
from bloomery.data.messages import Messages, Row, optional_text, text
from bloomery.data.rows import parse_row, read_lines, text_of
from bloomery.data.sources import stem
from bloomery.errors import DataError
from bloomery.stages.common import is_held_out
from bloomery.stages.slates import prompt_id
from bloomery.types import Annotator, Candidate, Conversation, Message, Policy, Ranking

UNKNOWN = "unknown"
ONE_PAIR = ((1, 1), (1, 2), (2, 1))
"""The ranks of two answers, by the verdict on them."""


@dataclass
class Converted:
    """The rankings of one file, and how many rows or rankings were left out for which reason."""

    rankings: list[Ranking] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def hh(row: Row) -> list[Ranking]:
    """Transcripts, which the package reads by itself."""
    record = FORMATS["hh"].parse(row)
    assert isinstance(record, Ranking)
    return [record]


def finegrained(row: Row) -> list[Ranking]:
    """One ranking of four. Of the passages that the answers were written from, the span errors and the
    corrected answer nothing is read: the passages alone fill most of the contexts of the models trained
    here, and the rest is about the first answer only."""
    answers = [text(row, f"prediction {k}") for k in (1, 2, 3, 4)]
    ranks = ranks_of(_verdicts(row, row.columns.get("preference"), 6), len(answers))
    if ranks is None:
        raise DataError("its six comparisons are no ranking", where=row.where)
    # All four were sampled from one model; their place is what the file tells of where they come from.
    candidates = _answers(answers, [f"sample-{k}" for k in (1, 2, 3, 4)])
    return [_ranking(row.id, (Message(role="user", content=text(row, "question")),), candidates, ranks)]


def pandalm(row: Row) -> list[Ranking]:
    """Three rankings of two; the field of application stands in the comment. An answer may be empty: people
    saw it and judged it."""
    models = text(row, "cmp_key").split("_")
    if len(models) != 2:
        raise DataError("'cmp_key' does not name two models", where=row.where, got=row.columns["cmp_key"])
    people = ("annotator1", "annotator2", "annotator3")
    verdicts = _verdicts(row, [row.columns.get(who) for who in people], len(people))
    answers = _answers([optional_text(row, key) for key in ("response1", "response2")], models)
    about = f"motivation_app: {optional_text(row, 'motivation_app') or UNKNOWN}"
    found = []
    for who, verdict in zip(people, verdicts, strict=True):
        one = _ranking(f"{row.id}/{who}", asked(row), answers, ONE_PAIR[verdict], who)
        found.append(one.model_copy(update={"comment": about}))
    return found


def oasst(row: Row) -> list[Ranking]:
    """One ranking for each turn of a thread that got several answers; `output` lists them best first."""
    answers = row.columns.get("output")
    if not isinstance(answers, list) or len(answers) < 2:
        raise DataError("'output' is not a list of answers", where=row.where, got=repr(answers)[:60])
    if not all(isinstance(said, str) and said.strip() for said in answers):
        raise DataError("one of the answers is empty", where=row.where)
    if len(set(answers)) < len(answers):
        raise DataError("the same answer on two ranks", where=row.where)
    candidates = _answers(answers, [UNKNOWN] * len(answers))
    return [_ranking(row.id, asked(row), candidates, range(1, len(answers) + 1))]


READERS: dict[str, tuple[str, Callable[[Row], list[Ranking]]]] = {
    "hh": ("en_hh_harmless_base.jsonl.gz", hh),
    "finegrained": ("en_finegrained_qa_feedback.jsonl.gz", finegrained),
    "pandalm": ("en_pandalm_human.jsonl.gz", pandalm),
    "oasst": ("zh_oasst_rm.jsonl.gz", oasst),
}


def convert(name: str, path: Path) -> Converted:
    """The rankings of a set's file. Rows that are none are left out and counted; raises `DataError` where no
    row is one."""
    found = Converted()
    for line in read_lines(path):
        where = f"{path}:{line.number}"
        try:
            row = Row(parse_row(text_of(line, path), where), where, stem(path), line.number)
            found.rankings += READERS[name][1](row)
        except DataError as error:
            found.left_out[error.what] += 1
    if not found.rankings:
        raise DataError("no row of the file is a ranking", where=path, got=dict(found.left_out))
    return found


def ranks_of(verdicts: Sequence[int], num: int) -> tuple[int, ...] | None:
    """The ranking of `num` answers in which every pair stands as its verdict says; None where there is none.

    verdicts: of the pairs (0, 1), (0, 2), ..., (1, 2), ...: 1 the first is better, 2 the second, 0 neither.
    If there is such a ranking, wins less losses fall from rank to rank, so one candidate is enough to check.
    """
    lead = [0] * num
    for (i, j), verdict in zip(combinations(range(num), 2), verdicts, strict=True):
        side = (0, 1, -1)[verdict]
        lead[i] += side
        lead[j] -= side
    ranks = tuple(1 + sum(other > own for other in lead) for own in lead)
    said = [(0, 1, 2)[(ranks[j] > ranks[i]) - (ranks[j] < ranks[i])] for i, j in combinations(range(num), 2)]
    return ranks if said == list(verdicts) else None


def without_overlap(found: Converted, held_out: float) -> Converted:
    """Leave out what is to be trained on but starts with the same message as something held out: another
    turn of the same talk would show the model the very answers that it is going to be asked about."""
    closed = {r.prompt[0] for r in found.rankings if is_held_out(prompt_id(r.prompt), held_out)}
    kept = [
        r for r in found.rankings if r.prompt[0] not in closed or is_held_out(prompt_id(r.prompt), held_out)
    ]
    num = len(found.rankings) - len(kept)
    return Converted(kept, found.left_out + Counter({"shares its first message with a held-out one": num}))


def asked(row: Row) -> Messages:
    """The turns before the answer of an instruction, with its input and its history."""
    conversation = FORMATS["alpaca"].parse(row._replace(columns={**row.columns, "output": "an answer"}))
    assert isinstance(conversation, Conversation)
    return conversation.messages[:-1]


def _verdicts(row: Row, value: object, num: int) -> list[int]:
    if not isinstance(value, list) or len(value) != num or any(v not in (0, 1, 2) for v in value):
        raise DataError("not the expected verdicts", where=row.where, got=value, expected=f"{num} of 0, 1, 2")
    return value


def _answers(texts: Sequence[str], policies: Sequence[str]) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(messages=(Message(role="assistant", content=said),), policy=Policy(id=who))
        for said, who in zip(texts, policies, strict=True)
    )


def _ranking(
    name: str, prompt: Messages, answers: Sequence[Candidate], ranks: Sequence[int], who: str = UNKNOWN
) -> Ranking:
    return Ranking(
        id=name,
        prompt=prompt,
        completions=tuple(answers),
        ranking=tuple(ranks),
        annotator=Annotator(id=who, kind="human"),
        created_at=UNKNOWN,
    )
