"""Online DPO: answers and scores as pairs, an update against every answer read by itself, resume, and what is
and is not learned."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from jam import many, starts_with_jam
from torch import Tensor
from torch.nn.functional import logsigmoid

from bloomery.errors import UsageError
from bloomery.lineage import digest_file
from bloomery.models import hub
from bloomery.models.llama import ScalarModel
from bloomery.objectives import preference
from bloomery.stages import prefer_online
from bloomery.stages.common import Optimiser
from bloomery.stages.prefer_online import Learner, PreferOnline, to_slates
from bloomery.text.chat import Chat
from bloomery.train.step import Guard
from bloomery.types import Completion, Prompt, Rollout

SAID = ["jam tea", "red", "milk", "tea", "tea", "tea", "jam", "two", "two"]
SCORES = [2.0, -1.0, 0.5, 0.25, 0.25, 0.25, 1.0, 0.0, 0.0]  # the second prompt's answers are all alike


def rollouts(chat: Chat) -> list[Rollout]:
    """Three answers to each of three prompts; the last was cut off before its end token."""
    made = []
    for n, text in enumerate(SAID):
        prompt = Prompt(id=str(n // 3), messages=tiny.user(("what", "why is that", "one")[n // 3]))
        end = [] if n == 8 else [chat.tokenizer.end_id]
        tokens = (*chat.tokenizer.encode(text), *end)
        completion = Completion(tokens, (-1.0,) * len(tokens), "stop" if end else "length")
        made.append(Rollout(prompt, tuple(chat.prompt(prompt.messages)), completion, text))
    return made


def test_scores_become_pairs_and_ties_none(chat: Chat) -> None:
    slates, metrics = to_slates(rollouts(chat), SCORES, 3)
    third, half = pytest.approx(1 / 3), pytest.approx(1 / 2)
    assert [s.pairs for s in slates] == [
        ((0, 1, third), (0, 2, third), (2, 1, third)),
        ((0, 1, half), (0, 2, half)),
    ]
    assert [s.stray for s in slates] == [0, 0]
    for place, n in enumerate((6, 7, 8)):
        tokens, mask = slates[1].answers[place]
        assert tuple(tokens) == rollouts(chat)[n].tokens
        counted = [t for t, counts in zip(tokens, mask, strict=True) if counts]
        assert tuple(counted) == rollouts(chat)[n].completion.tokens
    assert metrics["frac_reward_zero_std"] == pytest.approx(1 / 3)
    assert metrics["reward"] == pytest.approx(sum(SCORES) / 9)


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_an_update_by_hand(chat: Chat, model_dir: Path, monkeypatch: pytest.MonkeyPatch, loss: str) -> None:
    """All slates in one minibatch, against each answer read by itself."""
    actor, frozen = hub.load(model_dir), tiny.language_model(chat.tokenizer.vocab_size, 5)
    answers, groups = rollouts(chat), {0: [(0, 1), (0, 2), (2, 1)], 6: [(6, 7), (6, 8)]}

    def ratio(n: int) -> Tensor:
        tokens, asked = answers[n].tokens, len(answers[n].prompt_tokens)
        policy, reference = (tiny.logprobs_of(model, tokens)[asked:].sum() for model in (actor, frozen))
        return policy - reference.detach()

    if loss == "dpo":
        worth = [[-logsigmoid(0.1 * (ratio(a) - ratio(b))) for a, b in pairs] for pairs in groups.values()]
    else:
        kl = torch.stack([ratio(n) for n in groups]).mean().clamp(min=0).detach()
        worth = [
            [
                1 - (torch.sigmoid(0.1 * (ratio(a) - kl)) + torch.sigmoid(0.1 * (kl - ratio(b)))) / 2
                for a, b in g
            ]
            for g in groups.values()
        ]
    want = torch.stack([torch.stack(group).mean() for group in worth]).mean()

    found: dict[str, Tensor] = {}

    def apply(optimizer: object, *rest: object, loss: Tensor, **more: object) -> float:
        found.update(objective=loss.detach(), gradient=tiny.held_gradient(actor))
        return 0.0

    monkeypatch.setattr(prefer_online.update, "apply", apply)
    recipe = PreferOnline(
        policy=model_dir, reward=model_dir, prompts=(model_dir,), loss=loss, samples=3, minibatches=1
    )
    optimizer = torch.optim.SGD(actor.parameters())
    bound = preference.losses.bind(loss, {})
    learner = Learner(actor, frozen, bound, optimizer, Guard(), nullcontext, chat.tokenizer.pad_id)
    metrics = prefer_online.improve(recipe, 0, to_slates(answers, SCORES, 3)[0], learner)
    assert metrics["loss"] == pytest.approx(want.item(), abs=1e-5)
    assert found["objective"].item() == pytest.approx(want.item(), abs=1e-5)
    torch.testing.assert_close(found["gradient"], tiny.gradient(want, actor), atol=1e-5, rtol=1e-3)


# ------------------------------------------------------------------------------ the stage

JAM = {"kind": "regex", "settings": {"pattern": "^jam"}}
RATES = Optimiser(learning_rate=0.005, schedule="constant", warmup=0, weight_decay=0.0)


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"prompt": r.prompt[0].content} for r in many(60, seed=2)]
    return tiny.write_lines(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)


@pytest.fixture(scope="module")
def reward_dir(chat: Chat, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reward") / "model"
    model: ScalarModel = tiny.scalar_model(chat.tokenizer.vocab_size, 9)
    hub.save(model, path, tokenizer_dir=tokenizer_dir)
    return path


def train(policy: Path, prompts: Path, out: Path, **changed: Any) -> list[dict[str, Any]]:
    usual = {
        "rewards": (JAM,),
        "steps": 3,
        "prompts_per_step": 6,
        "samples": 3,
        "max_tokens": 3,
        "optimiser": RATES,
        "compute": tiny.TRAINING,
    }
    prefer_online.run(PreferOnline(policy=policy, prompts=(prompts,), **{**usual, **changed}), out)
    rows = tiny.lines(out / "metrics.jsonl")
    return [{n: v for n, v in row.items() if not n.startswith(tiny.CLOCKS)} for row in rows]


def test_a_killed_run_goes_on_to_the_same_bytes(talker_dir: Path, prompts_file: Path, tmp_path: Path) -> None:
    settings = {"steps": 5, "compute": {"threads": 1, "checkpoint_every": 2}}
    make = partial(train, talker_dir, prompts_file, **settings)
    tiny.goes_on_to_the_same_bytes(make, tmp_path, prefer_online, "improve", 4, resumed=2)


# `world`, `on_bad_row`, `prompts`, `graphs` and `rollout_device` are read by what PPO reads them with.
CHANGES: dict[str, dict[str, Any]] = {
    "reference": {"reference": "reference"},
    "reward": {"reward": "reward"},
    "rewards": {"rewards": [JAM, {"kind": "length", "weight": 0.5, "settings": {"most": 1}}]},
    "watch": {"watch": [{"kind": "length", "settings": {"most": 1}}]},
    "lora": {"lora": {"rank": 2}},
    "seed": {"seed": 1},
    "steps": {"steps": 4},
    "prompts_per_step": {"prompts_per_step": 5},
    "samples": {"samples": 2},
    "max_tokens": {"max_tokens": 2},
    "temperature": {"temperature": 0.7},
    "loss": {"loss": "hinge"},
    "loss_settings": {"loss_settings": {"beta": 0.5}},
    "epochs": {"epochs": 2},
    "minibatches": {"minibatches": 1},
    "one_step_off": {"one_step_off": True},
    "missing_eos_penalty": {"missing_eos_penalty": 0.5},
    "score_clip": {"score_clip": 0.3},
    "optimiser": {"optimiser": {"learning_rate": 0.001}},
    "compute": {"compute": {"precision": "bf16", "threads": 1, "checkpoint_every": 0}},
}


def test_every_setting_makes_a_difference(
    talker_dir: Path, model_dir: Path, reward_dir: Path, prompts_file: Path, tmp_path: Path
) -> None:
    elsewhere = {"policy", "prompts", "world", "on_bad_row", "rollout_device", "graphs"}
    assert set(CHANGES) | elsewhere == set(PreferOnline.model_fields)
    named = {"reference": model_dir, "reward": reward_dir}
    outcome = {"usual": train(talker_dir, prompts_file, tmp_path / "usual")}
    for key, change in CHANGES.items():
        settings = {k: named[k] if v == k else v for k, v in change.items()}
        outcome[key] = train(talker_dir, prompts_file, tmp_path / key, **settings)
    assert [a for a in outcome for b in outcome if a < b and outcome[a] == outcome[b]] == []


def test_what_cannot_work_is_said_at_once(talker_dir: Path, prompts_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no reward"):
        train(talker_dir, prompts_file, tmp_path / "out", rewards=())
    with pytest.raises(UsageError, match="did you mean 'simpo'"):
        train(talker_dir, prompts_file, tmp_path / "out", loss="simp")
    with pytest.raises(UsageError, match="there are no prompts of at most"):
        train(talker_dir, prompts_file, tmp_path / "long", max_tokens=63)


def test_a_loss_without_reference_loads_none(
    talker_dir: Path, model_dir: Path, prompts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(talker_dir, prompts_file, tmp_path / "out", loss="simpo", reference=model_dir, steps=1)
    assert "'simpo' does not read a reference" in capsys.readouterr().err


@pytest.mark.parametrize("told", [True, False])
def test_it_learns_what_is_rewarded_and_nothing_from_a_constant(
    chat: Chat, talker_dir: Path, prompts_file: Path, tmp_path: Path, told: bool
) -> None:
    anything = {"kind": "regex", "settings": {"pattern": ""}}
    rows = train(
        talker_dir,
        prompts_file,
        tmp_path / "out",
        rewards=(JAM if told else anything,),
        steps=12,
        prompts_per_step=16,
        samples=6,
        max_tokens=2,
        missing_eos_penalty=0.0,
    )
    says = starts_with_jam(hub.load(tmp_path / "out"), chat)
    if told:
        assert starts_with_jam(hub.load(talker_dir), chat) < 0.2
        assert says > 0.5
        assert rows[-1]["reward"] > rows[0]["reward"]
    else:
        assert [row["frac_reward_zero_std"] for row in rows] == [1.0] * 12
        assert digest_file(tmp_path / "out" / "model.safetensors") == digest_file(
            talker_dir / "model.safetensors"
        )
