"""Recomputed and compiled layers in the stages that learn from their own answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from bloomery.models import hub, llama
from bloomery.recipe import Section
from bloomery.stages import grpo, ppo, prefer_online, rejection
from bloomery.stages.common import Optimiser
from bloomery.stages.grpo import Grpo
from bloomery.stages.ppo import Ppo
from bloomery.stages.prefer_online import PreferOnline
from bloomery.stages.rejection import Rejection
from bloomery.text.chat import Chat

FAST = Optimiser(learning_rate=0.01, schedule="constant", warmup=0, weight_decay=0.0)
STAGES: dict[str, tuple[Any, type[Section], dict[str, Any]]] = {
    "ppo": (ppo, Ppo, {"critic": FAST}),
    "grpo": (grpo, Grpo, {"samples": 2}),
    "rejection": (rejection, Rejection, {"samples": 2, "epochs": 1}),
    "prefer_online": (prefer_online, PreferOnline, {}),
}


@pytest.fixture(scope="module")
def place(chat: Chat, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts and a reward model."""
    root = tmp_path_factory.mktemp("rl-compute")
    hub.save(tiny.scalar_model(chat.tokenizer.vocab_size, 7), root / "reward", tokenizer_dir=tokenizer_dir)
    tiny.write_lines(root / "prompts.jsonl", [{"prompt": text} for text in ("red", "one two three", "tea")])
    return root


def train(stage: str, place: Path, policy: Path, out: Path, **changed: Any) -> list[dict[str, Any]]:
    module, recipe, own = STAGES[stage]
    usual = {"policy": policy, "reference": policy, "reward": place / "reward", "optimiser": FAST}
    usual |= {"prompts": (place / "prompts.jsonl",), "prompts_per_step": 3, "max_tokens": 4, "steps": 2}
    module.run(recipe.model_validate({**usual, **own, **changed}), out)
    return tiny.lines(out / "metrics.jsonl")


@pytest.mark.parametrize("stage", STAGES)
def test_recomputing_changes_no_bit(
    stage: str, place: Path, talker_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, seen = llama.checkpoint, list[str]()
    monkeypatch.setattr(llama, "checkpoint", lambda *a, **k: (seen.append(name), plain(*a, **k))[1])
    for name in ("usual", "again"):
        compute = tiny.TRAINING.model_copy(update={"recompute": name == "again"})
        train(stage, place, talker_dir, tmp_path / name, compute=compute)
    assert tiny.weight_files(tmp_path / "usual") == tiny.weight_files(tmp_path / "again")
    assert set(seen) == {"again"}


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo's own, which it hides from its users
@pytest.mark.parametrize(
    ("stage", "changed"),
    [
        ("ppo", {"lora": {"rank": 2}, "one_step_off": True}),
        ("grpo", {"lora": {"rank": 2}}),
        ("rejection", {}),
        ("prefer_online", {}),
    ],
    ids=STAGES,
)
def test_compiling_changes_no_result_and_is_timed(
    stage: str,
    changed: dict[str, Any],
    place: Path,
    talker_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.compiler.reset()  # what another test compiled would not be compiled again
    real, compiled = torch.nn.Module.compile, list[torch.nn.Module]()
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self: (compiled.append(self), real(self, backend="aot_eager"))[1]
    )
    rows, learned = {}, {}
    for name in ("usual", "compiled"):
        compute = tiny.TRAINING.model_copy(update={"compile": name == "compiled"})
        rows[name] = train(stage, place, talker_dir, tmp_path / name, compute=compute, **changed)
        learned[name] = hub.load(tmp_path / name)
    assert len(compiled) == (2 if stage == "ppo" else 1)  # one layer each; the critic learns too
    assert all(("timing/compile" in row) == (name == "compiled") for name in rows for row in rows[name])
    assert rows["compiled"][0]["timing/compile"] > 0
    for one, other in zip(learned["usual"].parameters(), learned["compiled"].parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_graphs_are_asked_of_what_draws_the_answers(
    stage: str, place: Path, talker_dir: Path, tmp_path: Path, graphs_asked: list[bool]
) -> None:
    for wanted in (True, False):
        train(stage, place, talker_dir, tmp_path / str(wanted), steps=1, graphs=wanted)
    assert graphs_asked == [True, False]
