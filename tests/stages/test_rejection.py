"""Rejection sampling: which answers are kept, an update against every answer read by itself, what earlier
steps leave, resume, and what is and is not learned."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from jam import many, starts_with_jam
from torch import Tensor

from bloomery.data.batches import pack_documents
from bloomery.errors import UsageError
from bloomery.lineage import digest_file
from bloomery.models import hub, peft
from bloomery.models.llama import Llama
from bloomery.objectives.search import keepers
from bloomery.recipe import load
from bloomery.stages import online, rejection
from bloomery.stages.common import Optimiser
from bloomery.stages.prefer_online import example
from bloomery.stages.rejection import Learner, Rejection
from bloomery.text.chat import Chat
from bloomery.train.step import Guard
from bloomery.types import Completion, Prompt, Rollout
from bloomery.world import Oracle, World, questions

# Three answers to each of three prompts: (text, whether it ended, what it scores).
SAID = [
    [("jam tea", True, 2.0), ("red", True, -1.0), ("milk milk milk", False, 3.0)],
    [("tea", True, 0.5), ("", True, 9.0), ("two", True, 0.5)],
    [("one", True, 7.0), ("blue", True, 7.0), ("red", True, 7.0)],
]


@pytest.fixture(scope="module")
def rollouts(chat: Chat) -> list[Rollout]:
    made = []
    for n, answers in enumerate(SAID):
        prompt = Prompt(id=str(n), messages=tiny.user(("what", "why is that", "one")[n]))
        for text, ended, _ in answers:
            tokens = (*chat.tokenizer.encode(text), *([chat.tokenizer.end_id] if ended else []))
            said = Completion(tokens, (-1.5,) * len(tokens), "stop" if ended else "length")
            made.append(Rollout(prompt, tuple(chat.prompt(prompt.messages)), said, text))
    return made


SCORES = [score for answers in SAID for _, _, score in answers]


def recipe(**changed: Any) -> Rejection:
    usual: dict[str, Any] = {"policy": "p", "reward": "r", "prompts": ("q",), "samples": 3}
    return Rejection(**{**usual, **changed})


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        ({}, [0, 3]),  # the cut off and the empty one score most, and nobody is to learn them
        ({"skip_constant": False}, [0, 3, 6]),
        ({"keep_settings": {"count": 2}}, [0, 1, 3, 5]),
        ({"keep": "above", "keep_settings": {"threshold": 0.4}}, [0, 3, 5]),
        ({"keep": "above", "keep_settings": {"threshold": 6.5}}, []),
        ({"keep": "above", "keep_settings": {"threshold": 6.5}, "skip_constant": False}, [6, 7, 8]),
        ({"keep": "top", "keep_settings": {"share": 0.25}}, [0]),
        ({"keep": "above", "keep_settings": {"threshold": 1.0}, "samples": 1}, [0, 6, 7, 8]),
    ],
)
def test_which_answers_are_kept(rollouts: list[Rollout], changed: dict[str, Any], kept: list[int]) -> None:
    chosen, metrics = rejection.choose(recipe(**changed), rollouts, SCORES)
    assert [i for i, one in enumerate(chosen) if one] == kept
    assert metrics["kept/num"] == len(kept)
    assert metrics["kept/num_prompts"] == len({i // changed.get("samples", 3) for i in kept})
    assert metrics["completions/unusable_ratio"] == pytest.approx(2 / 9)
    assert metrics["frac_reward_zero_std"] == pytest.approx(0 if changed.get("samples") == 1 else 1 / 3)
    assert metrics["reward"] == pytest.approx(np.mean(SCORES))
    assert metrics["reward_std"] == pytest.approx(np.std(SCORES))
    if kept:
        assert metrics["kept/reward"] == pytest.approx(np.mean([SCORES[i] for i in kept]))
    else:
        assert "kept/reward" not in metrics


def test_steps_leave_what_they_kept_for_those_that_come() -> None:
    def learned(step: int, earlier: int, state: dict[str, Any]) -> list[int]:
        shown = rejection.remember(state, [((step,), [True])] * (step != 1), earlier)
        state.update(json.loads(json.dumps(state)))  # as a checkpoint keeps it
        return [tokens[0] for tokens, _ in shown]

    for earlier, want in ((0, [[0], [], [2], [3]]), (1, [[0], [0], [2], [2, 3]]), (9, [[0], [0], [0, 2]])):
        state: dict[str, Any] = {}
        assert [learned(step, earlier, state) for step in range(len(want))] == want


def learner_of(actor: Llama, chat: Chat, corpus: Any = None) -> Learner:
    optimizer = torch.optim.SGD(actor.parameters(), lr=0.1)
    return Learner(actor, corpus, optimizer, Guard(), nullcontext, chat.tokenizer.pad_id)


def test_an_update_by_hand(
    chat: Chat, model_dir: Path, tmp_path: Path, rollouts: list[Rollout], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fine-tuning on what was sampled, its end token included, beside pretraining text: against every answer
    read by itself. Cut into parts of two answers, it is the same. The second update of a run."""
    actor, corpus = hub.load(model_dir), tiny.corpus(chat.tokenizer, tmp_path / "corpus")
    chosen = [rollouts[i] for i in (0, 3, 7)]
    nats, counted = [], 0
    for r in chosen:
        nats.append(-tiny.logprobs_of(actor, r.tokens)[len(r.prompt_tokens) :].sum())
        counted += len(r.completion.tokens)
    loss = torch.stack(nats).sum() / counted
    batch = pack_documents(corpus, "train", batch_size=3, length=20, seed=2, step=1)
    text = tiny.plain_text_loss(actor, batch)
    want = loss + 0.25 * text

    found: dict[str, Any] = {}

    def apply(*args: object, loss: float, **rest: object) -> float:
        found.update(objective=loss, gradient=tiny.held_gradient(actor))
        return 1.0

    monkeypatch.setattr(rejection.update, "apply", apply)
    replay = {"coef": 0.25, "batch": 3, "length": 20}
    settings = recipe(seed=2, replay=replay, epochs=1, minibatches=1)
    for size in (64, 2):
        monkeypatch.setattr(rejection, "ROWS", size)
        actor.zero_grad()
        metrics = rejection.improve(
            settings, 1, [example(r) for r in chosen], learner_of(actor, chat, corpus)
        )
        assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-5)
        assert metrics["loss/replay"] == pytest.approx(text.item(), abs=1e-5)
        assert metrics["kept/num_tokens"] == counted
        assert found["objective"] == pytest.approx(want.item(), abs=1e-5)
        torch.testing.assert_close(found["gradient"], tiny.gradient(want, actor), atol=1e-5, rtol=1e-3)


def test_every_pass_goes_once_over_what_is_kept(
    chat: Chat, model_dir: Path, rollouts: list[Rollout], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = Optimiser(learning_rate=0.1, schedule="linear", warmup=0, floor=0.0)
    settings = recipe(epochs=2, minibatches=2, steps=2, optimiser=rates)
    seen: list[tuple[int, list[int]]] = []

    def imitate(recipe: object, number: int, shown: list[Any], learner: Learner) -> Any:
        seen.append((number, [len(tokens) for tokens, _ in shown]))
        return {"loss": 1.0}, 1.0

    monkeypatch.setattr(rejection, "imitate", imitate)
    monkeypatch.setattr(rejection.update, "apply", lambda *args, **rest: 1.0)
    learner = learner_of(hub.load(model_dir), chat)
    shown = [([1] * n, [False] + [True] * (n - 1)) for n in (2, 3, 4, 5)]
    first, last = (rejection.improve(settings, step, shown, learner) for step in (0, 1))
    assert [number for number, _ in seen] == [0, 1, 2, 3, 4, 5, 6, 7]
    passes = [[*seen[i][1], *seen[i + 1][1]] for i in (0, 2, 4, 6)]
    assert all(sorted(one) == [2, 3, 4, 5] for one in passes)
    assert len({tuple(one) for one in passes}) > 1
    # The rate falls over all updates of the run, from 1 to 0.
    assert first["learning_rate"] == pytest.approx(0.1 * np.mean([1 - i / 7 for i in range(4)]), abs=0.01)
    assert last["learning_rate"] < first["learning_rate"]
    assert rejection.improve(settings, 0, [], learner) == {}


def test_divergence_is_read_off_the_first_answer_to_each_prompt(
    chat: Chat, model_dir: Path, rollouts: list[Rollout]
) -> None:
    actor, reference = hub.load(model_dir), tiny.language_model(chat.tokenizer.vocab_size, 5)
    away: list[Tensor] = []
    for r in rollouts[::3]:
        away.append(-1.5 - tiny.logprobs_of(reference, r.tokens, 0.7)[len(r.prompt_tokens) :].detach())
    found = rejection.moved(recipe(temperature=0.7), rollouts, reference, learner_of(actor, chat))
    assert found["objective/kl"] == pytest.approx(
        float(torch.stack([a.sum() for a in away]).mean()), rel=1e-4
    )
    each = torch.cat(away)
    assert found["kl"] == pytest.approx(float(((-each).exp() - 1 + each).mean()), rel=1e-4)


# ------------------------------------------------------------------------------ the stage

JAM = {"kind": "regex", "settings": {"pattern": "^jam"}}
RATES = Optimiser(learning_rate=0.01, schedule="constant", warmup=0, weight_decay=0.0)


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"prompt": r.prompt[0].content} for r in many(60, seed=2)]
    return tiny.write_lines(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)


def train(policy: Path, prompts: Path, out: Path, **changed: Any) -> list[dict[str, Any]]:
    usual: dict[str, Any] = {
        "rewards": (JAM, {"kind": "length", "weight": 0.25, "settings": {"most": 0}}),
        "steps": 2,
        "prompts_per_step": 5,
        "samples": 4,
        "epochs": 1,
        "minibatches": 2,
        "max_tokens": 4,
        "optimiser": RATES,
        "compute": tiny.TRAINING,
    }
    rejection.run(Rejection(policy=policy, prompts=(prompts,), **{**usual, **changed}), out)
    rows = tiny.lines(out / "metrics.jsonl")
    return [{n: v for n, v in row.items() if not n.startswith(tiny.CLOCKS)} for row in rows]


def test_a_killed_run_goes_on_to_the_same_bytes(talker_dir: Path, prompts_file: Path, tmp_path: Path) -> None:
    """What earlier steps kept is part of the checkpoint."""
    settings = {"steps": 4, "earlier": 2, "compute": {"threads": 1, "checkpoint_every": 1}}
    make = partial(train, talker_dir, prompts_file, **settings)
    tiny.goes_on_to_the_same_bytes(make, tmp_path, rejection, "imitate", 6, resumed=2)


# What is not here is read by what PPO reads it with.
CHANGES: dict[str, dict[str, Any]] = {
    "reference": {"reference": "model"},
    "reward": {"reward": "reward"},
    "rewards": {"rewards": [{"kind": "length", "weight": 0.5, "settings": {"most": 1}}]},
    "lora": {"lora": {"rank": 2}},
    "seed": {"seed": 1},
    "steps": {"steps": 3},
    "prompts_per_step": {"prompts_per_step": 4},
    "samples": {"samples": 3},
    "keep": {"keep": "top", "keep_settings": {"share": 0.5}},
    "keep_settings": {"keep_settings": {"count": 2}},
    "skip_constant": {"skip_constant": False, "keep": "above", "keep_settings": {"threshold": -9}},
    "above": {"keep": "above", "keep_settings": {"threshold": -9}},
    "earlier": {"earlier": 1},
    "corpus": {"corpus": "corpus"},
    "replay": {"corpus": "corpus", "replay": {"coef": 0.5}},
    "max_tokens": {"max_tokens": 3},
    "temperature": {"temperature": 0.7},
    "epochs": {"epochs": 2},
    "minibatches": {"minibatches": 1},
    "one_step_off": {"one_step_off": True},
    "missing_eos_penalty": {"missing_eos_penalty": 0.5},
    "score_clip": {"score_clip": 0.3},
    "optimiser": {"optimiser": {"learning_rate": 0.001}},
    "compute": {"compute": {"precision": "bf16", "threads": 1, "checkpoint_every": 0}},
}


def test_every_setting_makes_a_difference(
    chat: Chat, talker_dir: Path, model_dir: Path, tokenizer_dir: Path, prompts_file: Path, tmp_path: Path
) -> None:
    elsewhere = {"policy", "prompts", "world", "watch", "on_bad_row", "rollout_device", "graphs"}
    assert (set(CHANGES) - {"above"}) | elsewhere == set(Rejection.model_fields)
    reward = tmp_path / "reward"
    hub.save(tiny.scalar_model(chat.tokenizer.vocab_size, 9), reward, tokenizer_dir=tokenizer_dir)
    corpus = tiny.corpus(chat.tokenizer, tmp_path / "corpus").path
    named = {"model": model_dir, "reward": reward, "corpus": corpus}
    outcome = {"usual": train(talker_dir, prompts_file, tmp_path / "usual")}
    for key, change in CHANGES.items():
        settings = {k: named[v] if isinstance(v, str) and k != "keep" else v for k, v in change.items()}
        outcome[key] = train(talker_dir, prompts_file, tmp_path / "out" / key, **settings)
    assert [(a, b) for a in outcome for b in outcome if a < b and outcome[a] == outcome[b]] == []
    assert peft.is_adapter(tmp_path / "out" / "lora")
    assert outcome["lora"][0]["objective/kl"] == pytest.approx(0.0, abs=1e-4)


def test_names_and_settings_are_tried_before_anything_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("policy: a\nreward: b\nprompts: [c]\n")
    for settings, message in (
        (["keep=bets"], "no way to keep answers is called 'bets'.*'best'"),
        (["keep=above"], "'above': threshold: field required"),
        (["keep_settings.cuont=2"], "did you mean 'count'"),
        (["samples=1"], "nothing would be rejected"),
        (["samples=4", "keep_settings.count=4"], "nothing would be rejected"),
        (["reward=null"], "there is no reward"),
    ):
        with pytest.raises(UsageError, match=message):
            load(Rejection, path, settings)
    assert load(Rejection, path, ["samples=1", "keep=top", "keep_settings.share=0.2"]).samples == 1


def test_the_recipe_s_help_names_every_way_to_keep() -> None:
    said = Rejection.model_fields["keep"].description or ""
    assert set(re.findall(r"\w+", said.partition(": ")[2].replace(" or ", ", "))) == set(keepers)


def test_where_nothing_is_kept_nothing_is_learned_and_it_is_said(
    talker_dir: Path, prompts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    never = {"keep": "above", "keep_settings": {"threshold": 99.0}}
    rows = train(talker_dir, prompts_file, tmp_path / "out", **never)
    assert "step 1: no answer is kept" in capsys.readouterr().err
    assert [row["kept/num"] for row in rows] == [0.0, 0.0]
    assert not any("loss" in row or "kept/reward" in row for row in rows)
    assert digest_file(tmp_path / "out" / "model.safetensors") == digest_file(
        talker_dir / "model.safetensors"
    )


def test_the_oracle_s_grade_is_logged_and_teaches_nothing(
    chat: Chat, talker_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all answers, and of those that are kept: here the oracle likes what is long."""
    world = World.make(5, 8)
    asked = [q for q in questions(world, 5) if len(chat.prompt(q.messages)) < 56 and len(q.messages) == 1][:6]
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "world.json").write_text(world.to_json())
    tiny.write_lines(tmp_path / "world" / "questions.jsonl", [q.to_json() for q in asked])
    file = tiny.write_lines(tmp_path / "prompts.jsonl", [{"id": q.id, "prompt": q.text} for q in asked])
    monkeypatch.setattr(Oracle, "judge", lambda self, question, text: SimpleNamespace(reward=len(text)))
    seen = train(talker_dir, file, tmp_path / "seen", world=tmp_path / "world")
    unseen = train(talker_dir, file, tmp_path / "unseen")
    assert all("gold/graded_reward" in row and "kept/graded_reward" in row for row in seen)
    assert seen[0]["gold/graded_reward"] != seen[0]["kept/graded_reward"]
    assert not any("graded_reward" in name for row in unseen for name in row)
    assert digest_file(tmp_path / "seen" / "model.safetensors") == digest_file(
        tmp_path / "unseen" / "model.safetensors"
    )


LEARN: dict[str, Any] = {
    "rewards": (JAM,),
    "steps": 3,
    "prompts_per_step": 30,
    "samples": 8,
    "epochs": 3,
    "minibatches": 2,
    "missing_eos_penalty": 0.0,
}


@pytest.mark.parametrize("keep", [("best", {}), ("above", {"threshold": 0.5}), ("top", {"share": 0.1})])
def test_it_learns_what_is_rewarded(
    chat: Chat, talker_dir: Path, prompts_file: Path, tmp_path: Path, keep: tuple[str, dict[str, float]]
) -> None:
    rows = train(talker_dir, prompts_file, tmp_path / "out", keep=keep[0], keep_settings=keep[1], **LEARN)
    assert starts_with_jam(hub.load(talker_dir), chat) < 0.2
    assert starts_with_jam(hub.load(tmp_path / "out"), chat) > 0.6
    assert rows[-1]["reward"] > rows[0]["reward"] + 0.2
    assert rows[-1]["objective/kl"] > rows[0]["objective/kl"] + 0.1


def test_a_constant_reward_changes_no_bit(talker_dir: Path, prompts_file: Path, tmp_path: Path) -> None:
    anything = ({"kind": "regex", "settings": {"pattern": ""}},)
    rows = train(talker_dir, prompts_file, tmp_path / "out", rewards=anything, missing_eos_penalty=0.0)
    assert [row["frac_reward_zero_std"] for row in rows] == [1.0, 1.0]
    assert digest_file(tmp_path / "out" / "model.safetensors") == digest_file(
        talker_dir / "model.safetensors"
    )


def test_a_reward_that_is_chance_teaches_no_direction(
    chat: Chat, talker_dir: Path, prompts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(0)
    monkeypatch.setattr(
        online, "score", lambda judge, rollouts, recipe: draw.normal(size=len(rollouts)).tolist()
    )
    train(talker_dir, prompts_file, tmp_path / "out", **LEARN)
    before, after = (starts_with_jam(hub.load(path), chat) for path in (talker_dir, tmp_path / "out"))
    assert abs(after - before) < 0.15
