"""Real preferences: four published formats against rankings written out by hand, splits that no talk is on
both sides of, and the judges that a reward model is held against. Rows are made up in each set's own schema.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bloomery.data.convert import write
from bloomery.data.sources import read_rankings
from bloomery.errors import ArtifactError, DataError
from bloomery.evals.comparisons import Scored
from bloomery.models import hub
from bloomery.models.config import LlamaConfig
from bloomery.models.llama import Llama, init
from bloomery.stages.common import is_held_out
from bloomery.stages.slates import Slate, prompt_id
from bloomery.text.tokenizer import Tokenizer
from bloomery.types import Annotator, Candidate, Message, Policy, Ranking

FOUR = {"question": "Where?", **{f"prediction {k}": f"Place {k}." for k in (1, 2, 3, 4)}}
JUDGED = {
    "idx": 7,
    "motivation_app": "Gmail",
    "cmp_key": "opt-7b_cerebras-gpt-6.7B",
    "instruction": "Reply.",
    "input": "Can we meet?",
    "response1": "Yes.",
    "response2": "",
}
VOTES = {"annotator1": 0, "annotator2": 1, "annotator3": 2}


@pytest.fixture
def preferences(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("preferences")


@pytest.fixture
def real_reward(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("real_reward")


def rows(tmp_path: Path, *found: dict[str, Any]) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


def said(ranking: Ranking) -> tuple[list[str], list[str], tuple[int, ...] | None]:
    """The prompt's turns, the answers, and the ranks."""
    return [m.content for m in ranking.prompt], [c.text for c in ranking.completions], ranking.ranking


# ------------------------------------------------------------------------------------------- conversion


def test_four_answers_are_one_ranking(preferences: ModuleType, tmp_path: Path) -> None:
    # 2 beats everybody, 1 and 4 are even, 3 is last: pairs 12 13 14 23 24 34
    row = FOUR | {"preference": [2, 1, 0, 1, 1, 2]}
    (one,) = preferences.convert("finegrained", rows(tmp_path, row)).rankings
    assert said(one) == (["Where?"], ["Place 1.", "Place 2.", "Place 3.", "Place 4."], (2, 1, 4, 2))
    assert [c.policy.id for c in one.completions] == ["sample-1", "sample-2", "sample-3", "sample-4"]


def test_comparisons_that_are_no_ranking_are_left_out_and_counted(
    preferences: ModuleType, tmp_path: Path
) -> None:
    circle = FOUR | {"preference": [1, 2, 1, 1, 1, 1]}  # 1 > 2 > 3 > 1
    even_but_not = FOUR | {"preference": [0, 1, 0, 0, 0, 0]}  # 1 = 2 = 3, and yet 1 > 3
    short = FOUR | {"preference": [1, 1, 1]}
    good = FOUR | {"preference": [0, 0, 0, 0, 0, 0]}
    found = preferences.convert("finegrained", rows(tmp_path, circle, even_but_not, short, good))
    assert [r.ranking for r in found.rankings] == [(1, 1, 1, 1)]
    assert found.left_out == {"its six comparisons are no ranking": 2, "not the expected verdicts": 1}


def test_every_ranking_of_four_comes_back_from_its_pairs(preferences: ModuleType) -> None:
    """75 rankings with ties; of the 3^6 sets of verdicts only theirs are accepted."""
    accepted = {verdicts for verdicts in product((0, 1, 2), repeat=6) if preferences.ranks_of(verdicts, 4)}
    rankings = {tuple(1 + sum(b < a for b in r) for a in r) for r in product(range(4), repeat=4)}
    assert len(accepted) == len(rankings) == 75
    assert {preferences.ranks_of(verdicts, 4) for verdicts in accepted} == rankings


def test_three_annotators_are_three_rankings(preferences: ModuleType, tmp_path: Path) -> None:
    found = preferences.convert("pandalm", rows(tmp_path, JUDGED | VOTES)).rankings
    assert [r.annotator.id for r in found] == ["annotator1", "annotator2", "annotator3"]
    assert [said(r) for r in found] == [
        (["Reply.\n\nCan we meet?"], ["Yes.", ""], ranks) for ranks in ((1, 1), (1, 2), (2, 1))
    ]
    assert [c.policy.id for c in found[0].completions] == ["opt-7b", "cerebras-gpt-6.7B"]
    assert {r.comment for r in found} == {"motivation_app: Gmail"}
    assert len({r.id for r in found}) == 3


def test_ranked_answers_of_a_thread(preferences: ModuleType, tmp_path: Path) -> None:
    row = {"instruction": "再见", "input": "", "output": ["好", "行", "不"], "history": [["你好", "你好！"]]}
    twice = row | {"output": ["好", "好"]}
    empty = row | {"output": ["好", " "]}
    found = preferences.convert("oasst", rows(tmp_path, row, twice, empty))
    assert [said(r) for r in found.rankings] == [(["你好", "你好！", "再见"], ["好", "行", "不"], (1, 2, 3))]
    assert [m.role for m in found.rankings[0].prompt] == ["user", "assistant", "user"]
    assert found.left_out == {"the same answer on two ranks": 1, "one of the answers is empty": 1}


def test_transcripts_split_at_the_last_shared_turn(preferences: ModuleType, tmp_path: Path) -> None:
    talk = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Help?\n\nAssistant:"
    row = {"chosen": f"{talk} No.", "rejected": f"{talk} Sure."}
    empty = {"chosen": f"{talk} No.", "rejected": f"{talk} "}
    found = preferences.convert("hh", rows(tmp_path, row, empty))
    assert [said(r) for r in found.rankings] == [(["Hi", "Hello.", "Help?"], ["No.", "Sure."], (1, 2))]
    assert sum(found.left_out.values()) == 1


def test_a_file_of_something_else_is_an_error(preferences: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row of the file is a ranking"):
        preferences.convert("pandalm", rows(tmp_path, FOUR))


def test_what_is_converted_is_in_our_format(preferences: ModuleType, tmp_path: Path) -> None:
    found = preferences.convert("pandalm", rows(tmp_path, JUDGED | VOTES)).rankings
    write(found, tmp_path / "out.jsonl", "ranking")
    assert list(read_rankings(tmp_path / "out.jsonl")) == found


def ranking(*prompt: str, answers: Sequence[str] = ("a", "b"), policies: Sequence[str] = "xy") -> Ranking:
    roles = ("user", "assistant")
    return Ranking(
        id="-".join(prompt),
        prompt=tuple(Message(role=roles[i % 2], content=text) for i, text in enumerate(prompt)),
        completions=tuple(
            Candidate(messages=(Message(role="assistant", content=text),), policy=Policy(id=who))
            for text, who in zip(answers, policies, strict=True)
        ),
        ranking=(1, 2),
        annotator=Annotator(id="unknown", kind="human"),
        created_at="unknown",
    )


def test_no_talk_is_on_both_sides(preferences: ModuleType) -> None:
    talks = [ranking(f"first {i}", *(["yes", "more"] * (turn - 1))) for i in range(40) for turn in (1, 2, 3)]
    found = preferences.without_overlap(preferences.Converted(talks), 0.3)
    sides: dict[str, set[bool]] = {}
    for r in found.rankings:
        sides.setdefault(r.prompt[0].content, set()).add(is_held_out(prompt_id(r.prompt), 0.3))
    assert all(len(both) == 1 for both in sides.values())
    held_out = [r for r in talks if is_held_out(prompt_id(r.prompt), 0.3)]
    assert [r for r in found.rankings if is_held_out(prompt_id(r.prompt), 0.3)] == held_out
    assert 0 < sum(found.left_out.values()) == len(talks) - len(found.rankings)


# ---------------------------------------------------------------------------------------- what is reported


def slate(name: str, texts: Sequence[str], *ranks: Sequence[int]) -> Slate:
    return Slate(name, tuple(texts), ((0,),) * len(texts), tuple(map(tuple, ranks)))


def test_the_share_counts_pairs_and_draws_prompts(real_reward: ModuleType) -> None:
    found = [
        Scored("p", ("a", "b", "c"), ((1, 2, 3),), (3.0, 2.0, 1.0)),  # 3 of 3
        Scored("q", ("a", "b"), ((1, 2), (2, 1), (1, 1)), (1.0, 0.0)),  # 1 of 2, the tie says nothing
        Scored("q", ("a", "c"), ((1, 2),), (1.0, 1.0)),  # equal scores: a half of 1
    ]
    groups = real_reward.right(found)
    assert groups == {"p": [1, 1, 1], "q": [1, 0, 0.5]}
    known = real_reward.share(groups)
    assert known["value"] == pytest.approx(4.5 / 6)
    assert known["num"] == 6
    # Of two prompts, draws with replacement have none, one or both: the interval is what they reach.
    assert (known["low"], known["high"]) == (0.5, 1.0)
    assert real_reward.right(found, unanimous=True) == {"p": [], "q": []}


def test_the_difference_is_paired(real_reward: ModuleType) -> None:
    """Two judges that are right on other prompts half of the time, one a point better on each."""
    judge = {f"p{i}": [float(i % 2), 1.0] for i in range(50)}
    other = {f"p{i}": [float(i % 2), 0.0] for i in range(50)}
    gap = real_reward.share(judge, other)
    assert (gap["value"], gap["low"], gap["high"]) == (0.5, 0.5, 0.5)
    assert real_reward.share({"p": []}) is None


def test_length_prefers_what_won_in_training(real_reward: ModuleType) -> None:
    found = [Scored("p", ("long one", "short"), ((1, 2),), (0.0, 0.0))]
    longer = [slate("t", ("much longer", "brief"), (1, 2))]
    shorter = [slate("t", ("much longer", "brief"), (2, 1))]
    assert real_reward.right(real_reward.by_length(found, longer)) == {"p": [1.0]}
    assert real_reward.right(real_reward.by_length(found, shorter)) == {"p": [0.0]}


def test_the_prior_knows_only_where_an_answer_comes_from(real_reward: ModuleType) -> None:
    rankings = [
        ranking("t", answers=("a", "b"), policies=("good", "bad")),
        ranking("u", answers=("c", "d"), policies=("good", "bad")),
        ranking("v", answers=("e", "f"), policies=("bad", "good")),
        ranking("w", answers=("k", "l"), policies=("good", "bad")).model_copy(update={"ranking": (1, 1)}),
        ranking("p", answers=("g", "h"), policies=("bad", "good")),
        ranking("q", answers=("i", "j"), policies=("good", "new")),
        ranking("q", answers=("i", "j"), policies=("bad", "new")),
    ]
    t, u, v, w, p, q, _ = (prompt_id(r.prompt) for r in rankings)
    # "good" won 2 of 3 (the tie is no comparison, p and q are held out), "bad" 1 of 3; nobody met "new": 1/2.
    training = [slate(name, "--", (1, 2)) for name in (t, u, v, w)]
    found = [Scored(p, ("g", "h"), ((2, 1),), (9.0, 0.0)), Scored(q, ("i", "j"), ((1, 2),), (0.0, 9.0))]
    by_source = real_reward.by_source(found, training, rankings)
    assert [s.scores for s in by_source] == [pytest.approx((1 / 3, 2 / 3)), pytest.approx((1 / 2, 1 / 2))]
    assert real_reward.right(by_source) == {p: [1.0], q: [0.5]}


@pytest.mark.parametrize("card", [{"accuracy": 0.5, "num_pairs": 2}, {"accuracy": 1.0, "num_pairs": 3}])
def test_the_table_says_what_the_report_card_says(real_reward: ModuleType, card: dict[str, Any]) -> None:
    real_reward.check({"p": [1.0, 1.0]}, {"accuracy": 1.0, "num_pairs": 2}, Path("reward"))
    with pytest.raises(ArtifactError, match="do not come out"):
        real_reward.check({"p": [1.0, 1.0]}, card, Path("reward"))


def test_missing_files_are_skipped_with_a_line(
    real_reward: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["real_reward.py", "--data", str(tmp_path), "--out", str(out)])
    assert real_reward.main() == 0
    text = capsys.readouterr().out
    assert text.count(": skipped, ") == 4
    assert "name a directory with --data" in text
    assert not out.exists()


def test_from_files_to_the_table(
    real_reward: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two sets with one line too long for the model and a talk of two turns, and a run that starts tiny."""
    talk = "\n\nHuman: item {}\n\nAssistant:"
    talks = [{"chosen": talk.format(i) + " tea.", "rejected": talk.format(i) + " jam."} for i in range(30)]
    talks.append({"chosen": talk.format("x") + " tea" * 99, "rejected": talk.format("x") + " jam."})
    votes = [JUDGED | VOTES | {"instruction": f"item {i}"} for i in range(30)]
    (tmp_path / "preference").mkdir()
    for name, found in (("hh", talks), ("pandalm", votes)):
        with gzip.open(tmp_path / "preference" / real_reward.preferences.READERS[name][0], "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in found)
    tokenizer = Tokenizer.train(["item jam tea yes reply can we meet"], 300)
    tokenizer.save(tmp_path / "tokenizer")
    config = LlamaConfig.shape(width=16, depth=1, heads=2, vocab=tokenizer.vocab_size, context=96)
    model = Llama(config)
    init(model, 0)
    hub.save(model, tmp_path / "run" / "sft", tokenizer_dir=tmp_path / "tokenizer")
    command = ["real_reward.py", "--data", tmp_path, "--from", tmp_path / "run", "--out", tmp_path / "out"]
    settings = ["--set", "compute.threads=1", "--set", "held_out=0.4", "--set", "compute.precision=fp32"]
    monkeypatch.setattr("sys.argv", [*map(str, command), *settings])
    assert real_reward.main() == 0
    assert "| PandaLM |" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    hh, pandalm = results["sets"]["hh"], results["sets"]["pandalm"]
    assert set(results["seconds"]) == {"reward-hh", "reward-pandalm", "reward-all"}
    assert (hh["rankings"], hh["trained"] + hh["held_out"], hh["beyond_context"]) == (31, 30, 1)
    assert hh["accuracy"]["num"] == hh["held_out"] == hh["held_out_prompts"]
    assert pandalm["trained"] + pandalm["held_out"] == 90
    assert pandalm["accuracy"]["num"] == 2 * pandalm["held_out_prompts"]  # of three verdicts one is a tie
    assert pandalm["agreement"]["between"]["value"] < 0.5
    assert hh["agreement"]["between"] is None
    assert hh["together"]["num"] == hh["accuracy"]["num"]
    page = (tmp_path / "out" / "results.md").read_text()
    assert "- HH harmless: 1 (an answer beyond 96 tokens)\n" in page
    assert "| annotator1, annotator2 |" in page
    assert real_reward.main() == 0
    again = capsys.readouterr().out
    assert again.count("cached") == 3
    assert page in again
