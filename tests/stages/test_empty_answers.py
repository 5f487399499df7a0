"""A policy that ends at once, and prompts without room for an answer, in every stage that asks a policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from bloomery.models import hub
from bloomery.models.llama import Llama
from bloomery.stages import grpo, online, ppo, prefer_online, rejection
from bloomery.stages.common import Optimiser
from bloomery.text.chat import Chat
from bloomery.types import Completion, Rollout

FAST = Optimiser(learning_rate=0.01, schedule="constant", warmup=0, weight_decay=0.0)
STAGES: dict[str, tuple[Callable[..., Any], Any, dict[str, Any]]] = {
    "ppo": (ppo.run, ppo.Ppo, {"critic": FAST, "kl_coef": 0.1}),
    "grpo": (grpo.run, grpo.Grpo, {"samples": 3}),
    "rloo": (
        grpo.run,
        grpo.Grpo,
        {"samples": 3, "advantage": "rloo", "loss": "reinforce", "kl_in": "reward"},
    ),
    "prefer_online": (prefer_online.run, prefer_online.PreferOnline, {"samples": 3}),
    "rejection": (rejection.run, rejection.Rejection, {"samples": 3}),
}


@pytest.fixture
def go(
    chat: Chat, model_dir: Path, tokenizer_dir: Path, tmp_path: Path
) -> Callable[..., list[dict[str, Any]]]:
    hub.save(
        tiny.scalar_model(chat.tokenizer.vocab_size, 7), tmp_path / "reward", tokenizer_dir=tokenizer_dir
    )
    asked = ["red", "what is best", "tea", " ".join(["one"] * 70)]
    prompts = tiny.write_lines(tmp_path / "prompts.jsonl", [{"prompt": text} for text in asked])

    def run(name: str) -> list[dict[str, Any]]:
        carry_out, recipe, own = STAGES[name]
        settings = {
            **{"policy": model_dir, "reward": tmp_path / "reward", "prompts": (prompts,)},
            **{"prompts_per_step": 3, "max_tokens": 4, "steps": 2, "epochs": 1},
            **{"optimiser": FAST, "compute": tiny.TRAINING},
            **({} if name == "rejection" else {"reference": model_dir}),
        }
        carry_out(recipe.model_validate(settings | own), tmp_path / "out")
        rows: list[dict[str, Any]] = tiny.lines(tmp_path / "out" / "metrics.jsonl")
        return rows

    return run


def weights(path: Path) -> dict[str, torch.Tensor]:
    model: Llama = hub.load(path)
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", STAGES)
def test_answers_that_end_at_once(
    go: Callable[..., list[dict[str, Any]]],
    chat: Chat,
    model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    """The end token alone is learned from, so that an empty answer becomes likelier or less likely; where all
    answers to a prompt are the same, or are not to be imitated, no bit of the policy changes."""
    real = online.ask

    def ask(*args: Any, **rest: Any) -> Sequence[Rollout]:
        nothing = Completion((chat.tokenizer.end_id,), (-1.0,), "stop")
        return [replace(rollout, completion=nothing, text="") for rollout in real(*args, **rest)]

    monkeypatch.setattr(online, "ask", ask)
    rows = go(name)
    assert "left out 1 of 4 prompts longer than 60 tokens" in capsys.readouterr().err
    assert len(rows) == 2
    for row in rows:
        assert row["completions/mean_length"] == row["completions/max_length"] == 1.0
        assert row.get("frac_reward_zero_std", 1.0) == 1.0
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))
    before, after = weights(model_dir), weights(tmp_path / "out")
    moved = any(not torch.equal(value, after[key]) for key, value in before.items())
    assert moved == (name == "ppo")
