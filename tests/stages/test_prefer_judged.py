"""Preferences from answers that were judged alone: beside rankings and without them, against every answer
read by itself and against the same answers as pairs; what is logged and refused, resume, what is learned."""

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
from jam import many, starts_with_jam
from torch import Tensor

from bloomery.data.convert import write
from bloomery.data.sources import read_judgements
from bloomery.errors import DataError, UsageError
from bloomery.lineage import digest_file
from bloomery.models import hub
from bloomery.models.llama import Llama
from bloomery.objectives import preference
from bloomery.stages import prefer
from bloomery.stages.common import Optimiser
from bloomery.stages.prefer import Prefer
from bloomery.stages.preferences import Slate, make_slates, with_strays
from bloomery.text.chat import Chat
from bloomery.types import Judgement, Message, Ranking

RATES = Optimiser(learning_rate=0.005, schedule="constant", warmup=0, weight_decay=0.0)
SETTINGS = {"beta": 0.3, "desirable": 2.0, "undesirable": 3.0}
PAIRED = [
    tiny.ranking("what is best", ("red", "blue"), (1, 2)),
    tiny.ranking("one", ("red red red red", "two"), (2, 1)),
    tiny.ranking("two three", ("milk", "jam jam"), (1, 2)),
]


def judged(question: str, answer: str, label: bool) -> Judgement:
    said = (Message(role="assistant", content=answer),)
    return Judgement(id=f"{question}/{answer}", prompt=tiny.user(question), completion=said, label=label)


ALONE = [
    judged("what is best", "red", False),  # somebody ranked it first
    judged("what is best", "plum", True),
    judged("tea", "milk milk", False),
    judged("milk", "tea", True),
    judged("red", "one two three", False),
]


def slates_of(rankings: Sequence[Ranking], alone: Sequence[Judgement], chat: Chat) -> list[Slate]:
    return with_strays(make_slates(rankings, chat, True, pytest.fail, alone), 64)


def step_of(
    model: Llama, slates: Sequence[Slate], reference: Tensor, batch_tokens: int = 8192
) -> tuple[float, Tensor, dict[str, float]]:
    """Objective, gradient and metrics of one step."""
    groups = prefer.laid_out(slates, 64, 0, batch_tokens)
    loss, alone = preference.losses.bind("kto", SETTINGS), preference.single("kto", SETTINGS)
    model.zero_grad()
    objective, metrics = prefer.backward(model, slates, groups, reference, loss, nullcontext, alone)
    return float(objective), tiny.held_gradient(model), metrics


def some_reference(slates: Sequence[Slate]) -> Tensor:
    return torch.linspace(-30.0, -20.0, sum(len(s.answers) for s in slates))


@pytest.fixture
def model(chat: Chat) -> Llama:
    return tiny.language_model(chat.tokenizer.vocab_size, 3)


# ------------------------------------------------------------------------------ a step


def test_what_was_ranked_and_what_was_judged_of_a_prompt_are_one_slate(chat: Chat) -> None:
    slates = make_slates(PAIRED, chat, True, pytest.fail, ALONE)
    assert [(len(s.answers), s.pairs, s.judged) for s in slates] == [
        (3, ((0, 1, 1.0),), ((0, False), (2, True))),
        (2, ((0, 1, 1.0),), ()),
        (2, ((0, 1, 1.0),), ()),
        (1, (), ((0, False),)),
        (1, (), ((0, True),)),
        (1, (), ((0, False),)),
    ]
    shown = with_strays(slates, 64)
    assert [s.learnt for s in shown] == [s.answers for s in slates]  # the answers that show the KL are not


@pytest.mark.parametrize("batch_tokens", [8192, 1])
def test_a_step_by_hand(chat: Chat, model: Llama, batch_tokens: int) -> None:
    """The mean over answers, each read by itself; a prompt after the other it is the same."""
    slates = slates_of(PAIRED, ALONE, chat)
    reference = some_reference(slates)
    logps = [tiny.logprobs_of(model, t)[torch.tensor(m)].sum() for s in slates for t, m in s.answers]
    starts = np.cumsum([0, *(len(s.answers) for s in slates)])
    strays = [start + s.stray for s, start in zip(slates, starts, strict=False) if s.stray is not None]
    moved = torch.stack([logps[i] - reference[i] for i in strays]).mean().clamp(min=0).detach()
    good = [start + c for s, start in zip(slates, starts, strict=False) for c, _, _ in s.pairs]
    bad = [start + r for s, start in zip(slates, starts, strict=False) for _, r, _ in s.pairs]
    for s, start in zip(slates, starts, strict=False):
        for place, label in s.judged:
            (good if label else bad).append(start + place)
    worth = [2.0 * (1 - torch.sigmoid(0.3 * (logps[i] - reference[i] - moved))) for i in good]
    worth += [3.0 * (1 - torch.sigmoid(0.3 * (moved - logps[i] + reference[i]))) for i in bad]
    assert (len(good), len(bad)) == (5, 6)
    assert float(moved) > 0
    want = torch.stack(worth).mean()

    objective, gradient, metrics = step_of(model, slates, reference, batch_tokens)
    assert objective == pytest.approx(want.item(), abs=1e-5)
    torch.testing.assert_close(gradient, tiny.gradient(want, model), atol=1e-5, rtol=1e-3)
    sides = {"chosen": good, "rejected": bad}
    logps = [x.detach() for x in logps]
    ratio = [float(x - r) for x, r in zip(logps, reference, strict=True)]
    rewards = {side: 0.3 * np.mean([ratio[i] for i in of]) for side, of in sides.items()}
    won = [float(ratio[g] > ratio[b]) for g, b in zip(good[:3], bad[:3], strict=True)]
    assert metrics == {
        "loss": pytest.approx(want.item(), abs=1e-5),
        "kl": pytest.approx(float(moved), rel=1e-4),
        "rewards/margins": pytest.approx(rewards["chosen"] - rewards["rejected"], abs=1e-4),
        "rewards/accuracies": pytest.approx(np.mean(won)),
        **{f"rewards/{side}": pytest.approx(value, abs=1e-4) for side, value in rewards.items()},
        **{
            f"logps/{side}": pytest.approx(np.mean([float(logps[i]) for i in of]), rel=1e-4)
            for side, of in sides.items()
        },
    }


def test_pairs_given_as_single_answers_are_the_same_step(chat: Chat, model: Llama, tmp_path: Path) -> None:
    write(PAIRED, tmp_path / "alone.jsonl", "unpaired")
    pairs = slates_of(PAIRED, (), chat)
    alone = slates_of((), list(read_judgements(tmp_path / "alone.jsonl")), chat)
    mixed = slates_of(PAIRED[:1], list(read_judgements(tmp_path / "alone.jsonl"))[2:], chat)
    assert [s.answers for s in alone] == [s.answers for s in pairs] == [s.answers for s in mixed]
    reference = some_reference(pairs)
    want, slope, logged = step_of(model, pairs, reference)
    assert float(slope.norm()) > 0.01
    for slates in (alone, mixed):
        objective, gradient, metrics = step_of(model, slates, reference)
        assert objective == pytest.approx(want, abs=1e-6)
        torch.testing.assert_close(gradient, slope, atol=1e-6, rtol=1e-5)
        shared = {name: value for name, value in logged.items() if name != "rewards/accuracies"}
        assert {name: metrics[name] for name in shared} == pytest.approx(shared, abs=1e-5)
    assert "rewards/accuracies" in logged
    assert "rewards/accuracies" not in step_of(model, alone, reference)[2]


@pytest.mark.parametrize("label", [True, False])
def test_of_one_kind_only_that_half_is_learnt_and_logged(chat: Chat, model: Llama, label: bool) -> None:
    slates = slates_of((), [j.model_copy(update={"label": label}) for j in ALONE], chat)
    _, gradient, metrics = step_of(model, slates, some_reference(slates))
    side = "chosen" if label else "rejected"
    assert set(metrics) == {"loss", "kl", f"rewards/{side}", f"logps/{side}"}
    with torch.no_grad():
        for parameter, slope in zip(model.parameters(), torch.split(gradient, sizes(model)), strict=True):
            parameter -= 1e-4 * slope.view_as(parameter)
    after = step_of(model, slates, some_reference(slates))[2][f"logps/{side}"]
    assert (after > metrics[f"logps/{side}"]) is label


def sizes(model: Llama) -> list[int]:
    return [p.numel() for p in model.parameters()]


# ------------------------------------------------------------------------------ the stage


def train(model: Path, out: Path, **changed: Any) -> list[dict[str, Any]]:
    usual = {"loss": "kto", "batch": 8, "held_out": 0.0, "optimiser": RATES, "compute": tiny.TRAINING}
    prefer.run(Prefer(model=model, **{**usual, **changed}), out)
    return tiny.lines(out / "metrics.jsonl")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("said")
    write(PAIRED, place / "rankings.jsonl", "ranking")
    write(ALONE, place / "judged.jsonl", "unpaired")
    return {name: place / f"{name}.jsonl" for name in ("rankings", "judged")}


def test_every_setting_makes_a_difference(model_dir: Path, files: dict[str, Path], tmp_path: Path) -> None:
    alone, both = {"judged": (files["judged"],)}, {name: (path,) for name, path in files.items()}
    changes: dict[str, dict[str, Any]] = {
        "judged": alone,
        "rankings": {"rankings": (files["rankings"],)},
        "both": both,
        **{key: {**alone, "loss_settings": {key: 0.5}} for key in ("desirable", "undesirable")},
    }
    outcome = {key: train(model_dir, tmp_path / key, batch=2, **change) for key, change in changes.items()}
    assert [(a, b) for a in outcome for b in outcome if a < b and outcome[a] == outcome[b]] == []


def test_what_is_said_and_logged(
    model_dir: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = files["judged"]
    rows = train(model_dir, tmp_path / "out", judged=(file,), held_out=0.4, epochs=3)
    said = capsys.readouterr().err
    assert "answers judged alone: 2 desirable, 3 undesirable" in said
    assert "every answer is" not in said
    assert rows[0]["loss"] == pytest.approx(0.5, abs=1e-5)  # at the reference half of each weight
    assert "eval_loss" in rows[-1]
    assert not {"rewards/accuracies", "eval_rewards/accuracies"} & rows[-1].keys()
    lineage = json.loads((tmp_path / "out" / "lineage.json").read_text())
    assert str(file) in json.dumps(lineage)

    one = tiny.write_lines(tmp_path / "one.jsonl", [j.model_dump() | {"label": True} for j in ALONE])
    train(model_dir, tmp_path / "one", judged=(one,))
    assert "every answer is desirable" in capsys.readouterr().err
    train(model_dir, tmp_path / "beside", judged=(one,), rankings=(files["rankings"],))
    assert "every answer is" not in capsys.readouterr().err


@pytest.mark.parametrize("loss", [name for name in preference.losses if name not in preference.singles])
def test_a_loss_that_compares_refuses_answers_that_stand_alone(
    model_dir: Path, files: dict[str, Path], tmp_path: Path, loss: str
) -> None:
    with pytest.raises(UsageError, match=f"'{loss}' compares two answers(.|\n)*choose loss=kto"):
        train(
            model_dir, tmp_path / "out", loss=loss, judged=(files["judged"],), rankings=(files["rankings"],)
        )
    assert not (tmp_path / "out").exists()


def test_files_of_the_wrong_kind_and_none_at_all_are_refused(
    model_dir: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="or `judged` and loss=kto"):
        train(model_dir, tmp_path / "none")
    with pytest.raises(UsageError, match=r"judged\.jsonl:1: (.|\n)*loss=kto, as `judged`"):
        train(model_dir, tmp_path / "a", rankings=(files["judged"],), loss="dpo")
    with pytest.raises(UsageError, match=r"rankings\.jsonl:1: (.|\n)*judged alone"):
        train(model_dir, tmp_path / "b", judged=(files["rankings"],))


def test_bad_rows_stop_the_run_or_are_counted(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = [j.model_dump() for j in ALONE]
    rows[2]["label"] = "no"
    file = tiny.write_lines(tmp_path / "judged.jsonl", rows)
    with pytest.raises(DataError, match=r"judged\.jsonl:3: 'label' is neither true nor false"):
        train(model_dir, tmp_path / "stopped", judged=(file,))
    train(model_dir, tmp_path / "out", judged=(file,), on_bad_row="skip")
    said = capsys.readouterr().err
    assert "skipped 1 bad rows of 5" in said
    assert "2 desirable, 2 undesirable" in said


def test_killed_and_gone_on_with_it_gives_the_same_bytes(
    model_dir: Path, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        **{name: (path,) for name, path in files.items()},
        "batch": 2,
        "epochs": 3,
        "compute": {"threads": 1, "checkpoint_every": 2},
        "optimiser": {"learning_rate": 0.003, "warmup": 2},
    }
    train(model_dir, tmp_path / "whole", **settings)
    tiny.break_off(monkeypatch, prefer.update, "apply", 6)
    with pytest.raises(MemoryError):
        train(model_dir, tmp_path / "killed", **settings)
    train(model_dir, tmp_path / "killed", **settings)
    for name in ("model.safetensors", "metrics.jsonl"):
        assert digest_file(tmp_path / "whole" / name) == digest_file(tmp_path / "killed" / name)
    assert json.loads((tmp_path / "killed" / "trainer_state.json").read_text())["resumed_at"] == [4]


# ------------------------------------------------------------------------------ does it learn


def one_each(shuffled: bool) -> list[Judgement]:
    """Of each prompt one answer, a third of them good: those that begin with jam, or any."""
    draw, said = np.random.default_rng(0), list[Judgement]()
    for r in many(300, seed=2):
        k = int(draw.integers(3))
        good = bool(draw.integers(3) == 0) if shuffled else r.ranking is not None and r.ranking[k] == 1
        completion = r.completions[k].messages
        said.append(Judgement(id=r.id, prompt=r.prompt, completion=completion, label=good))
    return said


@pytest.mark.parametrize("shuffled", [False, True])
def test_it_learns_what_was_called_desirable(
    chat: Chat, talker_dir: Path, tmp_path: Path, shuffled: bool
) -> None:
    file = tmp_path / "judged.jsonl"
    write(one_each(shuffled), file, "unpaired")
    balance = {"desirable": 2.0}
    train(talker_dir, tmp_path / "out", judged=(file,), batch=12, epochs=2, loss_settings=balance)
    says = starts_with_jam(hub.load(tmp_path / "out"), chat)
    assert starts_with_jam(hub.load(talker_dir), chat) < 0.2
    assert says < 0.25 if shuffled else says > 0.5
