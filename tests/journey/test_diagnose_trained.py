"""Really trained tiny runs: of healthy ones nothing is found; then the same with one thing done wrong."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bloomery.data.convert import write
from bloomery.journey.diagnose import diagnose
from bloomery.models import hub
from bloomery.stages import online, ppo, pretrain, reward, sft
from bloomery.stages.common import Optimiser
from bloomery.stages.ppo import Ppo
from bloomery.stages.pretrain import Pretrain
from bloomery.stages.reward import RewardRecipe
from bloomery.stages.sft import Sft
from bloomery.types import Rollout

_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parent.parent / "stages" / "tiny.py")
assert _spec is not None
assert _spec.loader is not None
tiny: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)
COMPUTE = {"precision": "fp32", "threads": 1, "checkpoint_every": 0}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, a language model, one that answers, a reward model, prompts and text to start from."""
    root = tmp_path_factory.mktemp("place")
    tokenizer = tiny.tokenizer()
    tokenizer.save(root / "tokenizer")
    made = {"model": tiny.language_model(tokenizer.vocab_size, 0, width=32)}
    made["reward"] = tiny.scalar_model(tokenizer.vocab_size, 7)
    for name, model in made.items():
        hub.save(model, root / name, tokenizer_dir=root / "tokenizer")
    tiny.corpus(tokenizer, root / "corpus", num=80)
    questions = talks(root / "talks.jsonl", 150, sense=True)
    asked = [row["messages"][0]["content"] for row in tiny.lines(questions)]
    tiny.write_lines(root / "prompts.jsonl", [{"prompt": text} for text in asked[:40]])
    finetune(root, root / "sft", questions)
    return root


def rates(rate: float, **more: Any) -> Optimiser:
    return Optimiser(learning_rate=rate, schedule="constant", warmup=0, weight_decay=0.0, **more)


def found_in(path: Path) -> list[str]:
    (one,) = diagnose(path)
    return [finding.condition for finding in one.findings]


# ------------------------------------------------------------------------------ fine-tuning


def talks(path: Path, count: int, *, sense: bool) -> Path:
    """Three words are asked and answered: by the first and last of them, or by any two."""
    draw = np.random.default_rng(0)
    rows = []
    for i in range(count):
        asked = [tiny.WORDS[j] for j in draw.integers(0, len(tiny.WORDS), 3)]
        said = (
            [asked[0], asked[2]] if sense else [tiny.WORDS[j] for j in draw.integers(0, len(tiny.WORDS), 2)]
        )
        messages = [
            {"role": "user", "content": " ".join(asked)},
            {"role": "assistant", "content": " " + " ".join(said)},
        ]
        rows.append({"id": str(i), "messages": messages})
    return Path(tiny.write_lines(path, rows))


def finetune(place: Path, out: Path, talks: Path, **changed: Any) -> Path:
    usual = {"batch": 8, "epochs": 3, "held_out": 0.2, "evaluate_every": 10, "optimiser": rates(0.003)}
    settings = {**usual, "compute": COMPUTE, **changed}
    sft.run(Sft(model=place / "model", demonstrations=(talks,), **settings), out)
    return out


def test_healthy_fine_tuning(place: Path) -> None:
    assert found_in(place / "sft") == []


def test_a_learning_rate_a_thousand_times_too_high(place: Path, tmp_path: Path) -> None:
    path = place / "talks.jsonl"
    found = found_in(finetune(place, tmp_path / "out", path, optimiser=rates(3.0, max_norm=1e6)))
    assert found == ["loss-diverging"]


def test_a_learning_rate_that_moves_nothing(place: Path, tmp_path: Path) -> None:
    path = place / "talks.jsonl"
    assert found_in(finetune(place, tmp_path / "out", path, optimiser=rates(3e-9))) == ["loss-not-falling"]


def test_a_schedule_that_ends_at_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A schedule made for half the steps stays at its floor, which is 0."""
    real = Optimiser.schedule_step

    def schedule_step(self: Optimiser, optimizer: Any, step: int, total: int) -> float:
        return real(self, optimizer, min(step, total // 2 - 1), total // 2)

    monkeypatch.setattr(Optimiser, "schedule_step", schedule_step)
    path = place / "talks.jsonl"
    linear = Optimiser(learning_rate=0.003, schedule="linear", warmup=0, floor=0.0, weight_decay=0.0)
    assert "dead-learning-rate" in found_in(finetune(place, tmp_path / "out", path, optimiser=linear))


def test_answers_that_cannot_be_learned_are_learned_by_heart(place: Path, tmp_path: Path) -> None:
    path = talks(tmp_path / "t.jsonl", 40, sense=False)
    found = found_in(finetune(place, tmp_path / "out", path, epochs=20, optimiser=rates(0.01)))
    assert "overfit" in found


def test_a_mask_that_counts_nothing(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over no token is no number; five such updates end the run."""
    real = sft.answer_logprobs

    def answer_logprobs(model: Any, batch: Any) -> Any:
        batch.mask.zero_()
        return real(model, batch)

    monkeypatch.setattr(sft, "answer_logprobs", answer_logprobs)
    finetune(place, tmp_path / "out", place / "talks.jsonl")
    assert "nothing-trained" in found_in(tmp_path / "out")


# ------------------------------------------------------------------------------ pretraining


def read_text(place: Path, out: Path, **changed: Any) -> Path:
    shape = {"width": 16, "depth": 1, "heads": 2, "context": 32, "tied": False}
    usual = {"model": shape, "batch": 4, "tokens": 4 * 32 * 60, "validate_every": 10, "compute": COMPUTE}
    settings = {**usual, "corpus": place / "corpus", "optimiser": rates(0.01), **changed}
    pretrain.run(Pretrain(tokenizer=place / "tokenizer", **settings), out)
    return out


def test_healthy_pretraining(place: Path, tmp_path: Path) -> None:
    assert found_in(read_text(place, tmp_path / "out")) == []


def test_a_few_documents_read_again_and_again(place: Path, tmp_path: Path) -> None:
    """Words in no order: whatever is learned after their frequencies is learned by heart."""
    few = tiny.corpus(tiny.tokenizer(), tmp_path / "corpus", num=30, val_fraction=0.3).path
    shape = {"width": 64, "depth": 1, "heads": 2, "context": 32, "tied": False}
    found = found_in(read_text(place, tmp_path / "out", corpus=few, model=shape, tokens=4 * 32 * 100))
    assert found == ["held-out-bits-rising"]


# ------------------------------------------------------------------------------ the reward model


def judge(place: Path, out: Path, *, sense: bool, count: int = 120, **changed: Any) -> Path:
    """Rankings of three words: earlier in the list of words is better, or nothing is."""
    draw, rankings = np.random.default_rng(1), []
    for i in range(count):
        chosen = draw.choice(len(tiny.WORDS), 3, replace=False)
        asked = " ".join(tiny.WORDS[j] for j in draw.integers(0, len(tiny.WORDS), 4))
        order = np.argsort(np.argsort(chosen)) if sense else draw.permutation(3)
        ranks = tuple(int(rank) + 1 for rank in order)
        rankings.append(tiny.ranking(f"{asked} {i}", [tiny.WORDS[j] for j in chosen], ranks))
    path = out.parent / f"{out.name}.jsonl"
    write(rankings, path, "ranking")
    usual = {"epochs": 3.0, "batch": 6, "held_out": 0.3, "evaluate_every": 5, "optimiser": rates(0.003)}
    settings = {**usual, "compute": COMPUTE, **changed}
    reward.run(RewardRecipe(model=place / "model", rankings=(path,), **settings), out)
    return out


def test_a_healthy_reward_model(place: Path, tmp_path: Path) -> None:
    assert found_in(judge(place, tmp_path / "out", sense=True)) == []


def test_shuffled_labels(place: Path, tmp_path: Path) -> None:
    found = found_in(judge(place, tmp_path / "out", sense=False))
    assert "preference-chance" in found


def test_a_few_rankings_learned_by_heart(place: Path, tmp_path: Path) -> None:
    found = found_in(
        judge(place, tmp_path / "out", sense=False, count=40, epochs=16.0, optimiser=rates(0.01))
    )
    assert "preference-overfit" in found


# ------------------------------------------------------------------------------ reinforcement learning


def reinforce(place: Path, out: Path, **changed: Any) -> Path:
    """Forty prompts of three words, answered by the fine-tuned model."""
    settings: dict[str, Any] = {
        **{"policy": place / "sft", "reference": place / "sft", "reward": place / "reward"},
        **{"prompts": (place / "prompts.jsonl",), "prompts_per_step": 24, "max_tokens": 6, "steps": 10},
        **{"missing_eos_penalty": 0.0, "kl_coef": 0.1, "optimiser": rates(0.001), "critic": rates(0.01)},
        **{"compute": COMPUTE, "target_kl": None},
    }
    ppo.run(Ppo(**{**settings, **changed}), out)
    return out


@pytest.fixture
def rewarded(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Rollout], float]], None]:
    """Let a rule stand in for the reward model."""

    def by(rule: Callable[[Rollout], float]) -> None:
        def score(judge: object, rollouts: Sequence[Rollout], *rest: object) -> list[float]:
            return [rule(rollout) for rollout in rollouts]

        monkeypatch.setattr(online, "score", score)

    return by


def jam(rollout: Rollout) -> float:
    """A word that about one answer in seven holds."""
    return float("jam" in rollout.text)


def test_healthy_reinforcement(place: Path, tmp_path: Path, rewarded: Any) -> None:
    rewarded(jam)
    assert found_in(reinforce(place, tmp_path / "out")) == []


def test_answers_that_never_end(place: Path, tmp_path: Path, rewarded: Any) -> None:
    """A model that was never shown where an answer ends."""
    rewarded(jam)
    assert "eos-never" in found_in(reinforce(place, tmp_path / "out", policy=place / "model", max_tokens=3))


def test_no_leash_and_too_fast(place: Path, tmp_path: Path, rewarded: Any) -> None:
    rewarded(jam)
    found = found_in(reinforce(place, tmp_path / "out", kl_coef=0.0, optimiser=rates(0.02)))
    assert "no-leash" in found


def test_steps_that_are_far_too_large(place: Path, tmp_path: Path, rewarded: Any) -> None:
    rewarded(jam)
    found = found_in(reinforce(place, tmp_path / "out", optimiser=rates(0.03), epochs=4, target_kl=0.01))
    assert "always-stopped-early" in found


def test_every_answer_is_worth_the_same(place: Path, tmp_path: Path, rewarded: Any) -> None:
    rewarded(lambda rollout: 1.0)
    assert "constant-reward" in found_in(reinforce(place, tmp_path / "out"))


def test_a_sampler_that_lies_about_its_log_probs(
    place: Path, tmp_path: Path, rewarded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewarded(jam)
    real = ppo.RolloutBatch.of

    def of(*args: Any) -> Any:
        batch = real(*args)
        batch.old_logprobs[batch.mask] -= 0.05
        return batch

    monkeypatch.setattr(ppo, "RolloutBatch", SimpleNamespace(of=of))
    found = found_in(reinforce(place, tmp_path / "out"))
    assert "sampler-mismatch" in found


def test_a_run_that_stops_in_the_middle(
    place: Path, tmp_path: Path, rewarded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def rule(rollout: Rollout) -> float:
        calls.append(1)
        if len(calls) > 60:
            raise KeyError("the reward is not there")
        return jam(rollout)

    rewarded(rule)
    with pytest.raises(KeyError):
        reinforce(place, tmp_path / "out")
    assert found_in(tmp_path / "out") == ["unfinished"]
