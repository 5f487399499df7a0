"""The process stage: the first step against each answer read by itself, by cross-entropy in two classes; what
is refused or left out aloud; that every setting matters; does it learn, with shuffled labels as the null."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from bloomery.cli import main
from bloomery.errors import DataError, UsageError
from bloomery.models import hub
from bloomery.models.llama import ScalarModel
from bloomery.rewards.process import ProcessReward
from bloomery.stages import best_of_n, grpo, ppo, process
from bloomery.stages.best_of_n import BestOfN
from bloomery.stages.common import Lora, Optimiser, is_held_out
from bloomery.stages.grpo import Grpo
from bloomery.stages.ppo import Ppo
from bloomery.stages.process import ProcessRecipe
from bloomery.stages.slates import prompt_id
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.types import Solution

Said = tuple[str, tuple[str, ...], tuple[bool, ...]]
RATES = Optimiser(learning_rate=0.01, schedule="constant", warmup=0, weight_decay=0.0)
SAID: list[Said] = [
    ("what is best", (" plum jam", " tea", " one two"), (True, False, True)),
    ("one", (" two",), (False,)),
    ("two three", (" red red red", " blue", " green", " milk"), (True, True, True, False)),
    ("what is best", (" jam", " plum"), (False, False)),
    ("tea", (" tea tea", " tea"), (True, True)),
]


def save(said: Sequence[Said], path: Path) -> Path:
    return tiny.write_lines(
        path,
        [{"id": f"s{i}", "prompt": q, "completions": c, "labels": r} for i, (q, c, r) in enumerate(said)],
    )


def solution(said: Said) -> Solution:
    return Solution(id="s", prompt=tiny.user(said[0]), completions=said[1], labels=said[2])


def train(model: Path, files: Sequence[Path], out: Path, **changed: Any) -> list[dict[str, Any]]:
    usual = {"batch": 5, "epochs": 1, "held_out": 1e-4, "optimiser": RATES, "compute": tiny.TRAINING}
    process.run(ProcessRecipe(model=model, solutions=tuple(files), **{**usual, **changed}), out)
    return tiny.lines(out / "metrics.jsonl")


def card(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "evaluation.json").read_text())
    return found


def spelled(tokenizer: Tokenizer, said: Said, separator: str = "\n") -> tuple[list[int], list[int]]:
    """Tokens and the class of each, written out: <|user|> prompt <|end|> <|assistant|> step \\n step <|end|>;
    -100 where no step ends, which is at the separators and the last token."""
    asked, steps, right = said
    tokens = [tokenizer.id("<|user|>"), *tokenizer.encode(asked), tokenizer.end_id]
    tokens.append(tokenizer.id("<|assistant|>"))
    labels = [-100] * len(tokens)
    for step, label in zip(steps, right, strict=True):
        own = tokenizer.encode(step)
        tokens += [*own, *tokenizer.encode(separator)]
        labels += [-100] * len(own) + [int(label)]
    tokens[-1] = tokenizer.end_id
    return tokens, labels


def plain_loss(model: ScalarModel, tokenizer: Tokenizer, said: Sequence[Said]) -> tuple[Tensor, float]:
    """Cross-entropy in two classes, their logits 0 and the score, over the ends of all steps of all answers;
    and the share that the larger logit gets right."""
    found = [spelled(tokenizer, one) for one in said]
    scores = torch.cat([tiny.scores_of(model, tokens) for tokens, _ in found])
    labels = torch.tensor([label for _, labels in found for label in labels])
    logits = torch.stack([torch.zeros_like(scores), scores], dim=1)
    hits = (logits.argmax(1) == labels)[labels >= 0]
    return F.cross_entropy(logits, labels, ignore_index=-100), float(hits.float().mean())


@pytest.mark.parametrize("batch_tokens", [8192, 1])
def test_the_first_step_by_hand(
    chat: Chat, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_tokens: int
) -> None:
    """All answers in one step, whole or one by one: 1 to 4 steps each, so a mean of means would differ."""
    start = ScalarModel.from_causal(hub.load(model_dir), seed=4)
    want, accuracy = plain_loss(start, chat.tokenizer, SAID)
    found: dict[str, Any] = {}
    real = process.backward

    def backward(model: ScalarModel, *rest: Any) -> dict[str, float]:
        found.update(metrics=real(model, *rest), gradient=tiny.held_gradient(model), parts=len(rest[1]))
        return dict(found["metrics"])

    monkeypatch.setattr(process, "backward", backward)
    train(
        model_dir, [save(SAID, tmp_path / "said.jsonl")], tmp_path / "out", seed=4, batch_tokens=batch_tokens
    )
    assert found["parts"] == (1 if batch_tokens > 1 else 5)
    assert found["metrics"]["loss"] == pytest.approx(want.item(), abs=1e-5)
    assert found["metrics"]["accuracy"] == pytest.approx(accuracy)
    assert found["metrics"]["num_steps"] == 12
    assert found["metrics"]["right_steps"] == pytest.approx(7 / 12)
    torch.testing.assert_close(found["gradient"], tiny.gradient(want, start), atol=1e-5, rtol=1e-4)


def test_where_the_labels_are(chat: Chat) -> None:
    for said in SAID:
        tokens, labels = spelled(chat.tokenizer, said)
        found = process.labelled(solution(said), chat, "\n")
        assert list(found.tokens) == tokens
        assert found.ends == tuple(i for i, label in enumerate(labels) if label >= 0)
        assert tokens[: found.prompt] == chat.prompt(tiny.user(said[0]))
        assert found.asked == prompt_id(tiny.user(said[0]))


def test_what_the_separator_cannot_divide_is_refused(chat: Chat) -> None:
    two_lines = solution(("one", ("two\nthree", "tea"), (True, False)))
    with pytest.raises(DataError, match="the separator is in a step of this answer") as error:
        process.labelled(two_lines, chat, "\n")
    assert "answer 's'" in str(error.value)
    assert process.labelled(two_lines, chat, ";").labels == (True, False)
    with pytest.raises(
        DataError, match="the separator is in a step"
    ):  # "tea;" and ";;" may end at two places
        process.labelled(solution(("one", ("tea;", "jam"), (True, True))), chat, ";;")
    marks = Chat(Tokenizer.train(["+;+;+"] * 20, 300))
    with pytest.raises(DataError, match="two steps of this answer end in one token"):
        process.labelled(solution(("+", ("+", "+", "+"), (True, True, True))), marks, ";")


def test_answers_beyond_the_context_are_left_out_aloud(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long: Said = ("tea", tuple(" red" for _ in range(40)), (True,) * 40)
    train(model_dir, [save([*SAID, long], tmp_path / "said.jsonl")], tmp_path / "out")
    out = capsys.readouterr()
    assert "left out 1 of 6 answers in steps longer than 64 tokens" in out.out + out.err
    with pytest.raises(UsageError, match="no answers in steps of at most 64 tokens"):
        train(model_dir, [save([long], tmp_path / "long.jsonl")], tmp_path / "none")
    with pytest.raises(UsageError, match="there is no step to train on"):
        train(model_dir, [save(SAID, tmp_path / "said.jsonl")], tmp_path / "few", held_out=0.999)


def test_bad_rows_stop_it_or_are_skipped(model_dir: Path, tmp_path: Path) -> None:
    file = save([*SAID, ("tea", ("a", "b"), (True,))], tmp_path / "said.jsonl")
    with pytest.raises(DataError, match="every step has one label") as error:
        train(model_dir, [file], tmp_path / "out")
    assert f"{file}:6" in str(error.value)
    assert train(model_dir, [file], tmp_path / "skipped", on_bad_row="skip")[0]["num_steps"] == 12


def test_whole_prompts_are_held_out(chat: Chat) -> None:
    answers = [process.labelled(solution(said), chat, "\n") for said in SAID]
    share = 0.4
    training, held_out = process.split(answers, 64, share, print)
    assert {a.asked for a in held_out} == {a.asked for a in answers if is_held_out(a.asked, share)}
    assert len(training) + len(held_out) == len(answers)
    assert held_out
    assert not {a.asked for a in held_out} & {a.asked for a in training}


# ------------------------------------------------------------------------------ settings

CHANGES: list[tuple[str, Any]] = [
    ("separator", " ; "),
    ("lora", Lora(rank=2)),
    ("seed", 1),
    ("epochs", 2.0),
    ("batch", 3),
    ("held_out", 0.7),
    ("evaluate_every", 1),
    ("optimiser", RATES.model_copy(update={"learning_rate": 0.001})),
    ("solutions", ()),
]


@pytest.fixture(scope="module")
def usual(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    root = tmp_path_factory.mktemp("usual")
    rows = train(model_dir, [save(SAID, root / "said.jsonl")], root / "out", held_out=0.4, epochs=4)
    return root, rows


@pytest.mark.parametrize(("key", "value"), CHANGES, ids=[key for key, _ in CHANGES])
def test_every_setting_matters(
    model_dir: Path, tmp_path: Path, usual: tuple[Path, list[dict[str, Any]]], key: str, value: Any
) -> None:
    root, rows = usual
    files, changed = [root / "said.jsonl"], {"held_out": 0.4, "epochs": 4, key: value}
    if key == "solutions":
        files, changed = [*files, save(SAID[:1], tmp_path / "more.jsonl")], {"held_out": 0.4, "epochs": 4}
    again = train(model_dir, files, tmp_path / "out", **changed)
    clean = [
        [{n: v for n, v in r.items() if not n.startswith(tiny.CLOCKS)} for r in one] for one in (rows, again)
    ]
    assert clean[0] != clean[1]


def test_recomputing_changes_no_bit(
    model_dir: Path, tmp_path: Path, usual: tuple[Path, list[dict[str, Any]]]
) -> None:
    compute = tiny.TRAINING.model_copy(update={"recompute": True})
    train(model_dir, [usual[0] / "said.jsonl"], tmp_path, held_out=0.4, epochs=4, compute=compute)
    assert tiny.weight_files(tmp_path) == tiny.weight_files(usual[0] / "out")


@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_a_broken_run_goes_on_to_the_same_bytes(model_dir: Path, tmp_path: Path, lora: Lora | None) -> None:
    file = save(SAID, tmp_path / "said.jsonl")
    compute = tiny.TRAINING.model_copy(update={"checkpoint_every": 2})
    settings = {"batch": 2, "epochs": 3, "held_out": 0.4, "compute": compute, "lora": lora}
    tiny.goes_on_to_the_same_bytes(
        lambda out: train(model_dir, [file], out, **settings), tmp_path, process, "backward", 4, 2
    )


def test_parts_of_a_step_leave_the_gradient_of_the_whole(chat: Chat) -> None:
    model = tiny.scalar_model(chat.tokenizer.vocab_size, 3)
    answers = [process.labelled(solution(said), chat, "\n") for said in SAID]
    found = []
    for batch_tokens in (8192, 1):
        groups = process.laid_out(answers, 64, chat.tokenizer.pad_id, batch_tokens)
        metrics = process.backward(model, answers, groups, nullcontext)
        found.append([tiny.held_gradient(model), torch.tensor(list(metrics.values()))])
        model.zero_grad()
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)


# ------------------------------------------------------------------------------ does it learn

WORDS = [word for word in tiny.WORDS if word != "plum"]


def many(num: int, seed: int, shuffled: bool = False) -> list[Said]:
    """Answers of 2 to 4 steps of one or two words; a step that speaks of plums is wrong."""
    draw = np.random.default_rng(seed)
    said = []
    for _ in range(num):
        asked = " ".join(WORDS[i] for i in draw.integers(0, len(WORDS), 3))
        steps = [[WORDS[i] for i in draw.integers(0, len(WORDS), draw.integers(1, 3))] for _ in range(4)]
        for step in steps:
            if draw.random() < 0.3:
                step[draw.integers(0, len(step))] = "plum"
        steps = steps[: draw.integers(2, 5)]
        said.append((asked, tuple(" " + " ".join(s) for s in steps), tuple("plum" not in s for s in steps)))
    if shuffled:
        labels = draw.permutation([right for _, _, own in said for right in own]).tolist()
        said = [(asked, steps, tuple(labels.pop() for _ in steps)) for asked, steps, _ in said]
    return said


def test_it_learns_which_steps_are_right_and_nothing_from_shuffled_labels(
    chat: Chat, model_dir: Path, tmp_path: Path
) -> None:
    cards, fresh = {}, many(60, seed=7)
    for name in ("told", "shuffled"):
        file = save(many(300, seed=3, shuffled=name == "shuffled"), tmp_path / f"{name}.jsonl")
        train(model_dir, [file], tmp_path / name, batch=32, epochs=6, held_out=0.2)
        cards[name] = card(tmp_path / name)
    told, null = cards["told"], cards["shuffled"]
    assert told["num_steps"] == told["step_accuracy"]["n"] > 150
    assert told["lead"]["low"] > 0.15
    assert told["first_wrong"]["low"] > 0.7
    assert null["lead"]["low"] <= 0.02
    assert null["lead"]["mean"] < 0.05
    accuracies = {}
    for name in cards:
        model = hub.load(tmp_path / name, "scalar")
        with torch.no_grad():
            accuracies[name] = plain_loss(model, chat.tokenizer, fresh)[1]
    base = np.mean([right for _, _, own in fresh for right in own])
    assert accuracies["told"] > base + 0.15
    assert accuracies["shuffled"] < base + 0.05


# ------------------------------------------------------------------------------ what it is for


@pytest.fixture(scope="module")
def judge_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("judge")
    train(model_dir, [save(SAID, root / "said.jsonl")], root / "out")
    return root / "out"


@pytest.mark.parametrize("stage", ["ppo", "grpo", "best_of_n"])
def test_stages_are_rewarded_by_its_steps(
    chat: Chat, model_dir: Path, judge_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    asked = tiny.write_lines(tmp_path / "prompts.jsonl", [{"prompt": word} for word in tiny.WORDS])
    given = {
        "policy": model_dir,
        "prompts": (asked,),
        "prompts_per_step": 4,
        "max_tokens": 6,
        "rewards": [{"kind": "process", "settings": {"path": str(judge_dir), "pooling": "minimum"}}],
    }
    seen: list[tuple[int, list[float | None]]] = []
    real = ProcessReward.__call__

    def call(self: ProcessReward, rollouts: Any) -> Any:
        seen.append((len(rollouts), real(self, rollouts)))
        return seen[-1][1]

    monkeypatch.setattr(ProcessReward, "__call__", call)
    out = tmp_path / "out"
    if stage == "ppo":
        ppo.run(
            Ppo.model_validate(
                {**given, "reference": model_dir, "reward": judge_dir, "steps": 1, "compute": tiny.TRAINING}
            ),
            out,
        )
    elif stage == "grpo":
        grpo.run(Grpo.model_validate({**given, "samples": 2, "steps": 1, "compute": tiny.TRAINING}), out)
    else:
        best_of_n.run(BestOfN.model_validate({**given, "samples": 2, "threads": 1}), out)
    assert seen
    assert all(0 < p < 1 for _, said in seen for p in said if p is not None)
    assert any(p is not None for _, said in seen for p in said)
    assert "rewards/process/steps" in tiny.lines(out / "metrics.jsonl")[0]


def test_the_command(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = save(SAID, tmp_path / "said.jsonl")
    words = ["process-reward", "--out", str(tmp_path / "out"), "--set", f"model={model_dir}"]
    words += ["--set", f"solutions=[{file}]", "--set", "epochs=1", "--set", "held_out=0.4"]
    assert main([*words, "--set", "compute.threads=1", "--set", "compute.precision=fp32"]) == 0
    assert str(tmp_path / "out") in capsys.readouterr().out
    assert card(tmp_path / "out")["num_answers"] > 0
    assert isinstance(hub.load(tmp_path / "out", "scalar"), ScalarModel)
