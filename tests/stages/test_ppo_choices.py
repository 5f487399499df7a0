"""What PPO may be told besides: a leash that is steered or part of the loss, rewards and scores on another
scale, a price of length, averaged weights. Each by hand over a tiny run, and each makes a difference."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from bloomery.errors import UsageError
from bloomery.models import hub
from bloomery.rollout.batch import RolloutBatch
from bloomery.stages import grpo, ppo
from bloomery.stages.common import Optimiser, Training
from bloomery.stages.grpo import Grpo
from bloomery.stages.ppo import Ppo
from bloomery.text.chat import Chat

ASKED = ["red", "what is best", "one two three", "tea"]
FAST = Optimiser(learning_rate=0.01, schedule="constant", warmup=0, weight_decay=0.0)
LENGTH = {"kind": "length", "weight": 0.25, "settings": {"most": 0}}
Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def place(chat: Chat, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts and a reward model beside the policy."""
    root = tmp_path_factory.mktemp("choices")
    hub.save(tiny.scalar_model(chat.tokenizer.vocab_size, 7), root / "reward", tokenizer_dir=tokenizer_dir)
    tiny.write_lines(root / "prompts.jsonl", [{"prompt": text} for text in ASKED])
    return root


@pytest.fixture
def run(place: Path, model_dir: Path, tmp_path: Path) -> Run:
    """Runs PPO, tiny, into a directory; its rows without what measures time."""

    def go(out: Path | str, **changed: Any) -> list[dict[str, Any]]:
        settings = {
            **{"policy": model_dir, "reference": model_dir, "reward": place / "reward"},
            **{"prompts": (place / "prompts.jsonl",), "prompts_per_step": 4, "max_tokens": 4},
            **{"steps": 3, "epochs": 1, "optimiser": FAST, "critic": FAST, "compute": tiny.TRAINING},
        }
        ppo.run(Ppo.model_validate({**settings, **changed}), tmp_path / out)
        rows = tiny.lines(tmp_path / out / "metrics.jsonl")
        return [{name: v for name, v in row.items() if not name.startswith(tiny.CLOCKS)} for row in rows]

    return go


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The scores of each step's answers, what is learned from instead, and the answers' lengths."""
    seen, real = list[tuple[Tensor, Tensor, Tensor]](), ppo.look_back

    def look_back(recipe: Ppo, batch: RolloutBatch, scores: Tensor, worth: Tensor, *rest: Any) -> Any:
        seen.append((scores, worth, batch.mask.sum(1)))
        return real(recipe, batch, scores, worth, *rest)

    monkeypatch.setattr(ppo, "look_back", look_back)
    return seen


# ------------------------------------------------------------------------------ the leash


@pytest.mark.parametrize("kl_in", ["reward", "loss"])
def test_the_coefficient_is_steered_towards_its_target_and_charged(run: Run, kl_in: str) -> None:
    tight = {"steps": 5, "kl_coef": 0.01, "kl_estimator": "k2", "kl_in": kl_in}
    rows = run("steered", kl_target=1e-3, **tight)
    for now, then in pairwise(rows):
        error = min(max(now["objective/kl"] / 1e-3 - 1, -0.2), 0.2)
        assert then["objective/kl_coef"] == pytest.approx(now["objective/kl_coef"] * (1 + 0.1 * error))
    assert len({row["objective/kl_coef"] for row in rows}) > 3
    fixed = run("fixed", **tight)
    assert {row["objective/kl_coef"] for row in fixed} == {0.01}
    # After one update both are at the same place, and the same divergence costs what it costs by then.
    assert rows[1]["objective/kl"] == fixed[1]["objective/kl"]
    dearer = rows[1]["objective/kl_coef"] / 0.01
    assert dearer != 1
    costs = [one[1]["objective/non_score_reward"] for one in (rows, fixed)]
    assert costs[0] == pytest.approx(costs[1] * dearer)
    assert rows[2]["objective/kl"] != fixed[2]["objective/kl"]


@pytest.mark.parametrize("kl_in", ["reward", "loss"])
def test_the_leash_holds_wherever_it_is(run: Run, kl_in: str) -> None:
    far = []
    for coef in (0.0, 2.0):
        rows = run(f"{coef}", steps=8, prompts_per_step=16, kl_in=kl_in, kl_coef=coef)
        far.append(np.mean([row["objective/kl_k3"] for row in rows[4:]]))
    assert far[1] < 0.7 * far[0]


def test_what_changes_nothing_is_said(place: Path, model_dir: Path) -> None:
    usual: dict[str, Any] = {"policy": model_dir, "reward": place / "reward", "prompts": (place,)}
    stages = ((partial(Ppo, reference=model_dir), ppo.without_effect), (Grpo, grpo.without_effect))
    for recipe, said in stages:
        make: Any = partial(recipe, **usual)
        check: Any = said
        assert check(make()) == check(make(kl_in="reward", kl_estimator="k1")) == []
        assert "k1 in the loss" in check(make(kl_in="loss", kl_estimator="k1"))[0]
        assert "kl_estimator" in check(make(kl_coef=0.0, kl_estimator="k2"))[0]
    make = partial(Ppo, reference=model_dir, **usual)
    assert "without each other" in ppo.without_effect(make(ptx_coef=1.0))[0]
    assert ppo.without_effect(make(ptx_coef=1.0, corpus=place)) == []
    assert "without each other" in ppo.without_effect(make(corpus=place))[0]


def test_what_makes_no_sense_is_refused(run: Run) -> None:
    witness = {"watch": [LENGTH | {"weight": 1.0}], "stop_rule": {"watch": "length"}}
    for changed, message in (
        ({"kl_target": 6.0, "kl_coef": 0.0}, "kl_target steers kl_coef"),
        ({"kl_estimator": "k4"}, "no KL estimator is called 'k4'"),
        ({"ema": 0.9, **witness}, "ema and stop_rule both"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            run("out", **changed)


# ------------------------------------------------------------------------------ scores


def test_scores_are_normalised_by_all_that_was_seen(run: Run, judged: list[Any]) -> None:
    rows = run("out", normalise_scores=True, steps=3)
    for step, (scores, worth, _) in enumerate(judged):
        every = np.concatenate([one[0].double().numpy() for one in judged[: step + 1]])
        by_hand = (scores.double().numpy() - every.mean()) / np.sqrt(every.var() + 1e-8)
        assert worth.tolist() == pytest.approx(by_hand, abs=1e-5)
        assert rows[step]["objective/scores"] == pytest.approx(float(scores.mean()))
        learned = rows[step]["objective/rlhf_reward"] - rows[step]["objective/non_score_reward"]
        assert learned == pytest.approx(float(worth.mean()), abs=1e-5)
    assert float(judged[2][1].mean()) != pytest.approx(0.0, abs=1e-3)  # its own step's mean it has not


def test_scores_are_left_alone_otherwise(run: Run, judged: list[Any]) -> None:
    run("out", steps=2)
    assert all(torch.equal(scores, worth) for scores, worth, _ in judged)


def test_a_price_of_length_is_taken_from_the_score_token_by_token(run: Run, judged: list[Any]) -> None:
    """The length source, at 0.25 a token, end token included: the score less 0.25 times the length."""
    long = {"steps": 1, "prompts_per_step": 32, "max_tokens": 24}
    run("plain", **long)
    run("priced", **long, rewards=[LENGTH])
    (plain, _, lengths), (priced, _, same) = judged
    assert torch.equal(lengths, same)
    assert len(set(lengths.tolist())) > 1
    torch.testing.assert_close(priced, plain - 0.25 * lengths, atol=1e-6, rtol=0)


# ------------------------------------------------------------------------------ averaged weights


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_the_average_of_the_weights_is_saved_and_changes_no_answer(
    run: Run, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: Any
) -> None:
    plain = run("plain", lora=lora)
    weights, real = list[Tensor](), ppo.improve

    def improve(recipe: Ppo, step: int, experience: Any, learner: ppo.Learner, corpus: Any) -> Any:
        if not weights:
            weights.append(tiny.weights(learner.actor))
        found = real(recipe, step, experience, learner, corpus)
        weights.append(tiny.weights(learner.actor))
        return found

    monkeypatch.setattr(ppo, "improve", improve)
    assert run("mean", lora=lora, ema=0.75) == plain
    want = weights[0]
    for after in weights[1:]:
        want = 0.75 * want + 0.25 * after
    saved, last = (tiny.weights(hub.load(tmp_path / name, merge=False)) for name in ("mean", "plain"))
    torch.testing.assert_close(saved, want, atol=1e-6, rtol=0)
    assert torch.equal(last, weights[-1])
    assert (saved - last).abs().max() > 1e-3


# ------------------------------------------------------------------------------ all of it


def test_a_run_that_broke_off_goes_on_to_the_same_bytes_with_all_of_it(run: Run, tmp_path: Path) -> None:
    """The coefficient, the moments of the scores and the average go on from the checkpoint."""
    settings = {
        **{"steps": 5, "kl_target": 0.05, "normalise_scores": True, "whiten_rewards": True, "ema": 0.75},
        "compute": Training(threads=1, checkpoint_every=2),
    }
    tiny.goes_on_to_the_same_bytes(partial(run, **settings), tmp_path, ppo, "improve", 4, resumed=2)
    rows = tiny.lines(tmp_path / "whole" / "metrics.jsonl")
    assert len({row["objective/kl_coef"] for row in rows}) == 5


def test_every_choice_makes_a_difference(run: Run, tmp_path: Path) -> None:
    choices: dict[str, dict[str, Any]] = {
        "usual": {},
        "kl_in": {"kl_in": "loss"},
        "kl_estimator": {"kl_estimator": "k2"},
        "kl_target": {"kl_target": 0.01},
        "normalise_scores": {"normalise_scores": True},
        "whiten_rewards": {"whiten_rewards": True},
        "ema": {"ema": 0.5},
        "ema 0.9": {"ema": 0.9},
    }
    for name, changed in choices.items():
        run(name, **changed)
    assert len({(tmp_path / name / "model.safetensors").read_bytes() for name in choices}) == len(choices)
