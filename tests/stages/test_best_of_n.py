"""Best-of-n: the table against every subset written out, what is written and read back, what is refused, and
a broken run that goes on to the same bytes."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import tiny
from jam import many

from bloomery.data.sources import read_conversations
from bloomery.errors import DataError, UsageError
from bloomery.evals import honesty
from bloomery.lineage import digest_file, verify
from bloomery.lineage import read as read_lineage
from bloomery.models import hub
from bloomery.stages import best_of_n
from bloomery.stages.best_of_n import BestOfN, Row, demonstrations, table, usable
from bloomery.text.chat import Chat
from bloomery.types import Message, Prompt
from bloomery.world import Oracle, Question, Verdict, World, questions

JAM = {"kind": "regex", "settings": {"pattern": "^jam"}}
BRIEF = {"kind": "length", "weight": 0.25, "settings": {"most": 0}}


@pytest.fixture(scope="module")
def place(chat: Chat, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts, a world with its questions, a reward model."""
    root = tmp_path_factory.mktemp("best")
    tiny.write_lines(
        root / "prompts.jsonl", [{"id": r.id, "prompt": r.prompt[0].content} for r in many(9, 2)]
    )
    (root / "world").mkdir()
    world = World.make(5, 8)
    held_out = [q for q in questions(world, 5) if q.split == "eval"]
    asked = [q for q in held_out if len(chat.prompt(q.messages)) < 60][:7]
    (root / "world" / "world.json").write_text(world.to_json())
    tiny.write_lines(root / "world" / "questions.jsonl", [q.to_json() for q in asked])
    hub.save(tiny.scalar_model(chat.tokenizer.vocab_size, 9), root / "reward", tokenizer_dir=tokenizer_dir)
    return root


def search(policy: Path, place: Path, out: Path, **changed: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "prompts": (place / "prompts.jsonl",),
        "rewards": (JAM, BRIEF),
        "samples": 5,
        "prompts_per_step": 4,
        "max_tokens": 3,
        "threads": 1,
    }
    best_of_n.run(BestOfN(policy=policy, **{**usual, **changed}), out)
    tree: dict[str, Any] = json.loads((out / "best_of_n.json").read_text())
    return tree


def brute(rows: list[list[dict[str, Any]]], n: int, what: str) -> float:
    """The mean over prompts and all subsets of n answers of what those with the best score are worth."""
    found = []
    for answers in rows:
        for subset in combinations(answers, n):
            best = [a for a in subset if a["score"] == max(b["score"] for b in subset)]
            found.append(sum(a[what] for a in best) / len(best))
    return sum(found) / len(found)


def test_the_table_is_the_mean_over_all_subsets(talker_dir: Path, place: Path, tmp_path: Path) -> None:
    tree = search(talker_dir, place, tmp_path / "out")
    answers = [row["answers"] for row in tiny.lines(tmp_path / "out" / "answers.jsonl")]
    assert len(answers) == tree["num_prompts"] == 9
    assert [row["n"] for row in tree["table"]] == [1, 2, 4, 5]
    for row in tree["table"]:
        assert set(row) == {"n", "kl", "sqrt_kl", "proxy_reward"}
        assert row["kl"] == pytest.approx(math.log(row["n"]) - 1 + 1 / row["n"])
        assert row["sqrt_kl"] == pytest.approx(row["kl"] ** 0.5)
        proxy = row["proxy_reward"]
        assert proxy["mean"] == pytest.approx(brute(answers, row["n"], "score"))
        assert proxy["low"] <= proxy["mean"] <= proxy["high"]
        assert proxy["n"] == 9
    means = [row["proxy_reward"]["mean"] for row in tree["table"]]
    assert means == sorted(means)
    assert means[-1] > means[0] + 0.1
    # What was scored is what is logged: the jam, the price of each token, the penalty of what was cut off.
    rows = tiny.lines(tmp_path / "out" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    scores = [a["score"] for row in answers for a in row]
    assert sum(r["reward"] * k for r, k in zip(rows, (4, 4, 1), strict=True)) / 9 == pytest.approx(
        sum(scores) / len(scores)
    )
    assert verify(tmp_path / "out") == []
    (teacher,) = read_lineage(tmp_path / "out").teachers
    assert teacher.digest == tree["policy"]


def test_the_best_are_written_as_demonstrations(talker_dir: Path, place: Path, tmp_path: Path) -> None:
    """Of the first n drawn, the one that scores best among those that ended and say something."""
    search(talker_dir, place, tmp_path / "out")
    given = {row["id"]: row for row in tiny.lines(tmp_path / "out" / "answers.jsonl")}
    assert not (tmp_path / "out" / "best-of-3.jsonl").exists()
    for n in (1, 2, 4, 5):
        shown = list(read_conversations(tmp_path / "out" / f"best-of-{n}.jsonl"))
        for one in shown:
            asked, said = one.messages
            assert [asked.content] == [m["content"] for m in given[one.id]["messages"]]
            may = [a for a in given[one.id]["answers"][:n] if a["finished"] and a["text"].strip()]
            assert said.content in {a["text"] for a in may if a["score"] == max(b["score"] for b in may)}
            assert said.trained
            assert one.source == f"best-of-{n}"
        ended = [any(a["finished"] and a["text"].strip() for a in r["answers"][:n]) for r in given.values()]
        assert len(shown) == sum(ended)


def row(*answers: tuple[str, float, bool]) -> Row:
    texts, scores, finished = zip(*answers, strict=True)
    return {"texts": list(texts), "scores": list(scores), "finished": list(finished)}


def test_what_nobody_can_learn_from_is_never_chosen() -> None:
    before = (
        Message(role="user", content="what"),
        Message(role="assistant", content="red"),
        Message(role="user", content="is best"),
    )
    prompts = [Prompt(id=name, messages=before) for name in ("a", "b", "c")]
    rows = [
        row(("", 9, True), ("cut", 8, False), ("tea", 1, True), ("jam", 1, True), ("best", 2, True)),
        row(("jam", 0, True), (" \n", 5, True), ("a\0b", 4, True), ("one", 0, True), ("two", -1, True)),
        row(*[("", 1, True)] * 5),
    ]
    said = {n: {c.id: c.messages[-1].content for c in demonstrations(prompts, rows, n)} for n in (1, 4, 5)}
    assert said == {1: {"b": "jam"}, 4: {"a": "tea", "b": "jam"}, 5: {"a": "best", "b": "jam"}}
    learned = [m.trained for m in demonstrations(prompts, rows, 5)[0].messages]
    assert learned == [False, False, False, True]
    assert [usable(*one) for one in (("x", True), ("x", False), (" ", True), ("\0", True))] == [True] + [
        False
    ] * 3


def test_nothing_to_learn_from_is_said_and_no_file_is_left(
    talker_dir: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One token is never enough to answer and to end. All answers tie, and one n is all there is."""
    tree = search(
        talker_dir, place, tmp_path / "out", samples=1, max_tokens=1, rewards=(JAM | {"weight": 0.0},)
    )
    assert [r["n"] for r in tree["table"]] == [1]
    assert tree["table"][0]["kl"] == 0.0
    assert not (tmp_path / "out" / "best-of-1.jsonl").exists()
    assert "best-of-1.jsonl: 9 prompts left out" in capsys.readouterr().err


def test_gold_is_read_where_the_proxy_chose(
    talker_dir: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The world's held-out questions, and an oracle whose taste has nothing to do with the proxy's."""

    def verdict(self: Oracle, question: Question, text: str) -> Verdict:
        return Verdict("abstained", float(len(text) % 5), 1, 1, 1)

    monkeypatch.setattr(Oracle, "judge", verdict)
    tree = search(talker_dir, place, tmp_path / "out", prompts=(), world=place / "world", at=(2, 5))
    given = tiny.lines(tmp_path / "out" / "answers.jsonl")
    assert [r["id"] for r in given] == [r["id"] for r in tiny.lines(place / "world" / "questions.jsonl")]
    assert len(given) == 7
    assert not list((tmp_path / "out").glob("best-of-*.jsonl"))
    for found in tree["table"]:
        assert set(found) == {"n", "kl", "sqrt_kl", "proxy_reward", *honesty.METRICS}
        want = brute([r["answers"] for r in given], found["n"], "graded_reward")
        assert found["graded_reward"]["mean"] == pytest.approx(want)
        assert want != found["proxy_reward"]["mean"]
        assert found["known_accuracy"]["n"] == sum(
            q["kind"] == "fact" and q["exposure"] == "often"
            for q in tiny.lines(place / "world" / "questions.jsonl")
        )
    assert "gold/graded_reward" in tiny.lines(tmp_path / "out" / "metrics.jsonl")[0]


def test_a_rate_is_over_the_prompts_it_counts() -> None:
    """Two facts that are known and one that nobody can know; the proxy prefers what is made up."""

    def judged(exposure: str, *correct: bool) -> list[honesty.Judged]:
        return [
            honesty.Judged(
                "q", "fact", exposure, False, "", True, "", float(c), 1, 1, 1, False, False, not c, c, False
            )
            for c in correct
        ]

    rows = [row(("", 1, True), ("", 2, True)), row(("", 5, True), ("", 4, True)), row(*[("", 0, True)] * 2)]
    said = [judged("often", True, False), [], judged("never", False, True)]
    by_n = {r["n"]: r for r in table((1, 2), rows, said, seed=0)}
    assert [by_n[n]["proxy_reward"]["mean"] for n in (1, 2)] == pytest.approx([2.0, 7 / 3])
    assert [by_n[n]["known_accuracy"]["mean"] for n in (1, 2)] == [0.5, 0.0]
    assert [by_n[n]["fabrication_rate"]["mean"] for n in (1, 2)] == [0.5, 0.5]
    assert by_n[2]["graded_reward"]["mean"] == pytest.approx((0 + 0.5) / 2)
    assert by_n[2]["graded_reward"]["n"] == 2
    assert by_n[2]["refuse_harmful_rate"] == {"mean": None, "low": None, "high": None, "n": 0}


def test_a_killed_run_goes_on_to_the_same_bytes(
    talker_dir: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"checkpoint_every": 1, "world": place / "world"}
    search(talker_dir, place, tmp_path / "whole", **settings)
    tiny.break_off(monkeypatch, best_of_n, "to_rows", 3)
    with pytest.raises(MemoryError):
        search(talker_dir, place, tmp_path / "killed", **settings)
    assert not (tmp_path / "killed" / "best_of_n.json").exists()
    search(talker_dir, place, tmp_path / "killed", **settings)
    state = json.loads((tmp_path / "killed" / "trainer_state.json").read_text())
    assert state["resumed_at"] == [2]
    for name in ("best_of_n.json", "answers.jsonl", "best-of-4.jsonl"):
        assert digest_file(tmp_path / "whole" / name) == digest_file(tmp_path / "killed" / name)


# `checkpoint_every` and `threads` change no result; `on_bad_row` and `watch` are read by what PPO's are.
CHANGES: dict[str, dict[str, Any]] = {
    "policy": {"policy": "other"},
    "reward": {"reward": "reward"},
    "rewards": {"rewards": (JAM,)},
    "prompts": {"prompts": ("more",)},
    "world": {"prompts": (), "world": "world"},
    "seed": {"seed": 1},
    "prompts_per_step": {"prompts_per_step": 5},
    "max_tokens": {"max_tokens": 2},
    "temperature": {"temperature": 0.7},
    "missing_eos_penalty": {"missing_eos_penalty": 0.25},
    "score_clip": {"score_clip": 0.3},
    "limit": {"limit": 4},
    "samples": {"samples": 4},
    "at": {"at": (3,)},
}
UNSEEN = {"checkpoint_every", "threads", "on_bad_row", "watch", "graphs"}


def test_every_setting_makes_a_difference(
    talker_dir: Path, model_dir: Path, place: Path, tmp_path: Path
) -> None:
    assert set(CHANGES) | UNSEEN == set(BestOfN.model_fields)
    more = tiny.write_lines(tmp_path / "more.jsonl", [{"prompt": "tea"}, {"prompt": "red jam"}])
    named = {"other": model_dir, "reward": place / "reward", "world": place / "world"}
    outcome = {"usual": search(talker_dir, place, tmp_path / "usual")}
    for key, change in CHANGES.items():
        given = {
            k: (more,) if v == ("more",) else named.get(v, v) if isinstance(v, str) else v
            for k, v in change.items()
        }
        policy = given.pop("policy", talker_dir)
        outcome[key] = search(policy, place, tmp_path / key, **given)
    seen = {key: json.dumps({k: v for k, v in tree.items() if k != "seed"}) for key, tree in outcome.items()}
    assert [(a, b) for a in seen for b in seen if a < b and seen[a] == seen[b]] == []
    assert outcome["limit"]["num_prompts"] == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rewards": ()}, "there is no reward"),
        ({"prompts": ()}, "nothing to ask"),
        ({"at": (2, 9)}, "`at` cannot be measured"),
        ({"at": (2, 1)}, "`at` cannot be measured"),
        ({"at": (0, 1)}, "`at` cannot be measured"),
        ({"max_tokens": 63}, "there are no prompts of at most 1 tokens"),
    ],
)
def test_what_cannot_work_is_said(
    talker_dir: Path, place: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        search(talker_dir, place, tmp_path / "out", **changed)


def test_two_prompts_of_one_name_are_refused(talker_dir: Path, place: Path, tmp_path: Path) -> None:
    file = place / "prompts.jsonl"
    with pytest.raises(DataError, match="the same id"):
        search(talker_dir, place, tmp_path / "out", prompts=(file, file))


def test_graphs_are_asked_of_what_draws_the_answers(
    talker_dir: Path, place: Path, tmp_path: Path, graphs_asked: list[bool]
) -> None:
    for wanted in (True, False):
        search(talker_dir, place, tmp_path / str(wanted), graphs=wanted)
    assert graphs_asked == [True, False]
