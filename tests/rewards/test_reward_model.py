"""Scores of answers that share one copy of their prompt equal scores of each answer read alone."""

from __future__ import annotations

import pytest
import torch

from bloomery.models.config import LlamaConfig
from bloomery.models.llama import ScalarModel, init
from bloomery.rewards import model as reward_model
from bloomery.rewards.model import RewardModel, score_sequences, score_slates
from bloomery.types import Completion, Message, Prompt, Rollout


@pytest.fixture(scope="module")
def model() -> ScalarModel:
    made = ScalarModel(LlamaConfig.shape(width=32, depth=2, heads=4, kv_heads=2, vocab=50, context=40))
    init(made, 0)
    return made


def alone(model: ScalarModel, sequence: list[int]) -> float:
    with torch.no_grad():
        return float(model(torch.tensor([sequence]))[0, -1])


SLATES = [
    [[7, 8, 9, 10, 11], [7, 8, 9, 20], [7, 8, 9, 10, 30, 31, 32]],
    [[5, 6], [5, 6, 7]],  # one is the beginning of the other
    [[40, 41, 42]],
    [[1, 2], [3, 4]],  # nothing in common
    [[7, *range(10, 30)], [7, *range(20, 44)], [7, 8]],  # together longer than the context
]


@pytest.mark.parametrize("batch_tokens", [1, 30, 8192])
def test_shared_prompts_change_no_score(model: ScalarModel, batch_tokens: int) -> None:
    with torch.no_grad():
        got = score_slates(model, SLATES, pad_id=0, batch_tokens=batch_tokens)
    want = [alone(model, sequence) for slate in SLATES for sequence in slate]
    assert got.tolist() == pytest.approx(want, abs=1e-5)


def test_shared_prompts_change_no_gradient(model: ScalarModel) -> None:
    def gradient(scores: torch.Tensor) -> torch.Tensor:
        weights = torch.arange(1.0, len(scores) + 1)
        grads = torch.autograd.grad((scores * weights).sum(), list(model.parameters()))
        return torch.cat([g.flatten() for g in grads])

    together = gradient(score_slates(model, SLATES, pad_id=0))
    apart = gradient(score_sequences(model, [s for slate in SLATES for s in slate], pad_id=0))
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)


def test_the_pad_id_makes_no_difference(model: ScalarModel) -> None:
    with torch.no_grad():
        torch.testing.assert_close(score_slates(model, SLATES, 0), score_slates(model, SLATES, 49))


def test_nothing_to_score_has_no_scores(model: ScalarModel) -> None:
    assert score_sequences(model, [], pad_id=0).shape == (0,)
    assert RewardModel(model, 0)([]) == []


def test_a_reward_model_scores_prompt_and_answer_together(model: ScalarModel) -> None:
    prompt = Prompt(id="p", messages=(Message(role="user", content="x"),))
    rollouts = [Rollout(prompt, (7, 8), Completion((9, 5), (0.0, 0.0), "stop"), "y")]
    assert RewardModel(model, 0)(rollouts) == pytest.approx([alone(model, [7, 8, 9, 5])], abs=1e-5)


def test_an_answer_that_came_twice_is_read_once_and_has_one_score(
    model: ScalarModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At another place of its row an equal answer's score would differ in the last bit."""
    prompt, read = Prompt(id="p", messages=(Message(role="user", content="x"),)), list[int]()
    real = reward_model.score_slates

    def counted(model: ScalarModel, slates: list[list[tuple[int, ...]]], *rest: int) -> torch.Tensor:
        read.append(sum(map(len, slates)))
        return real(model, slates, *rest)

    monkeypatch.setattr(reward_model, "score_slates", counted)
    said = [(9, 5), (9, 9, 9, 5), (9, 5), (5,), (9, 5), (9, 9, 9, 5)]
    rollouts = [Rollout(prompt, (7, 8), Completion(a, (0.0,) * len(a), "stop"), "y") for a in said]
    other = [Rollout(prompt, (3, 4), Completion((9, 5), (0.0, 0.0), "stop"), "y")]
    scores = RewardModel(model, 0)([*rollouts, *other, *rollouts])
    assert read == [7], "three a prompt, as often as it is asked, and one of the other"
    assert scores[0] == scores[2] == scores[4] == scores[7]
    assert scores[1] == scores[5]
    assert len(set(scores)) == 4
    want = [alone(model, list(r.tokens)) for r in [*rollouts, *other, *rollouts]]
    assert scores == pytest.approx(want, abs=1e-5)
