"""PPO against the same numbers worked out one answer and one token at a time: log-probs, rewards, advantages,
both losses, the joint gradient with pretraining. Then what must make no difference, and does it learn."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from bloomery.data.batches import pack_documents
from bloomery.data.shards import Corpus
from bloomery.errors import DataError, UsageError
from bloomery.infer.engine import Engine
from bloomery.models import hub
from bloomery.models.llama import Llama, ScalarModel
from bloomery.rewards.parts import Combined
from bloomery.rollout.batch import RolloutBatch, in_pieces
from bloomery.rollout.sample import ask
from bloomery.stages import online, ppo, world
from bloomery.stages.common import Optimiser, Training
from bloomery.stages.ppo import Experience, Learner, Ppo
from bloomery.stages.world import WorldRecipe
from bloomery.text.chat import Chat
from bloomery.train import precision
from bloomery.train.step import Guard
from bloomery.types import Completion, Prompt, Rollout
from bloomery.world import Oracle, Question, read_questions

SAID = [(1, "stop"), (5, "length"), (3, "stop"), (6, "stop"), (2, "length"), (4, "stop")]
ASKED = ["red", "what is best", "one two three", "tea", "blue jam", "is plum red"]
SCORES = [1.5, -0.5, 0.25, 2.0, -1.0, 0.75]


def recipe(**changed: Any) -> Ppo:
    nowhere: dict[str, Any] = {name: Path("nowhere") for name in ("policy", "reference", "reward")}
    nowhere["prompts"] = (Path("nowhere"),)
    usual = {"temperature": 0.7, "kl_coef": 0.3, "gamma": 0.9, "lam": 0.8, "target_kl": None}
    return Ppo(**{**nowhere, **usual, "compute": tiny.TRAINING, **changed})


@dataclass(frozen=True)
class Scene:
    """Answers the actor could have sampled, with their true log-probs, and everything that looks at them."""

    chat: Chat
    actor: Llama
    reference: Llama
    critic: ScalarModel
    rollouts: list[Rollout]

    def look_back(self, settings: Ppo) -> tuple[Experience, dict[str, float]]:
        scores = torch.tensor(SCORES[: len(self.rollouts)])
        batch = RolloutBatch.of(self.rollouts, self.chat.tokenizer.pad_id)
        return ppo.look_back(settings, batch, scores, scores, self.learner(settings), settings.kl_coef)

    def learner(self, settings: Ppo) -> Learner:
        optimizers = settings.optimiser.over(self.actor), settings.critic.over(self.critic)
        context = precision.setup(settings.compute.precision, 1)
        return Learner(self.actor, self.critic, self.reference, *optimizers, Guard(), context)

    def loss(self, settings: Ppo, experience: Experience) -> tuple[Tensor, Tensor, dict[str, float]]:
        rows = torch.arange(len(self.rollouts))
        return losses(settings, experience, rows, self.learner(settings))


def losses(
    settings: Ppo, experience: Experience, rows: Tensor, learner: Learner
) -> tuple[Tensor, Tensor, dict[str, float]]:
    actor, told = ppo.actor_loss_of(settings, experience, rows, learner)
    critic, judged = ppo.critic_loss_of(settings, experience, rows, learner)
    return actor, critic, told | judged


@pytest.fixture
def scene(chat: Chat) -> Scene:
    vocab, draw = chat.tokenizer.vocab_size, np.random.default_rng(0)
    actor, reference = tiny.language_model(vocab, 1), tiny.language_model(vocab, 2)
    rollouts = []
    for text, (length, finish) in zip(ASKED, SAID, strict=True):
        prompt = chat.prompt(tiny.user(text))
        said = [int(t) for t in draw.integers(6, vocab, length)]
        if finish == "stop":
            said[-1] = chat.tokenizer.end_id
        logprobs = tiny.logprobs_of(actor, prompt + said, 0.7)[len(prompt) :].tolist()
        completion = Completion(tuple(said), tuple(logprobs), finish)  # type: ignore[arg-type]
        asked = Prompt(id=text, messages=tiny.user(text))
        rollouts.append(Rollout(asked, tuple(prompt), completion, chat.tokenizer.decode(said)))
    return Scene(chat, actor, reference, tiny.scalar_model(vocab, 3), rollouts)


@pytest.fixture(scope="module")
def corpus(chat: Chat, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return tiny.corpus(chat.tokenizer, tmp_path_factory.mktemp("ppo") / "corpus")


def move(model: torch.nn.Module, seed: int, far: float = 0.02) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += far * torch.randn(parameter.shape, generator=generator)


# ------------------------------------------------------------------------------ the policy that sampled


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_trainer_and_sampler_agree_on_every_log_prob(chat: Chat, scene: Scene, temperature: float) -> None:
    """Exactly the rule of one forward: at unchanged weights the ratio is 1 and nothing has moved."""
    ids = torch.randint(6, chat.tokenizer.vocab_size, (1, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # a logit of about 2.5 for the end token, so that answers end at different lengths
        usual = scene.actor(ids)[0].mean(0)
        scene.actor.lm_head.weight[chat.tokenizer.end_id] = 2.5 * temperature * usual / usual.square().sum()
    prompts = [Prompt(id=f"{text}{i}", messages=tiny.user(text)) for text in ASKED for i in range(4)]
    engine = Engine(scene.actor, stop_id=chat.tokenizer.end_id, pad_id=chat.tokenizer.pad_id)
    rollouts = ask(engine, chat, prompts, max_tokens=8, temperature=temperature, seed=5)
    assert {r.completion.finish_reason for r in rollouts} == {"stop", "length"}
    assert len({len(r.completion.tokens) for r in rollouts}) > 3
    for one in rollouts:
        again = tiny.logprobs_of(scene.actor, one.tokens, temperature)[len(one.prompt_tokens) :]
        assert list(one.completion.logprobs) == pytest.approx(again.tolist(), abs=1e-5)

    settings = recipe(temperature=temperature)
    itself = replace(scene, rollouts=rollouts, reference=scene.actor)
    batch = RolloutBatch.of(rollouts, chat.tokenizer.pad_id)
    scores = torch.zeros(len(rollouts))
    learner = itself.learner(settings)
    experience, metrics = ppo.look_back(settings, batch, scores, scores, learner, settings.kl_coef)
    for name in ("objective/kl", "objective/kl_k1", "objective/kl_k3", "objective/non_score_reward"):
        assert metrics[name] == pytest.approx(0.0, abs=1e-4)
    _, _, metrics = itself.loss(settings, experience)
    assert metrics["val/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["policy/approxkl_avg"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["policy/clipfrac_avg"] == 0.0


def test_in_bf16_the_trainer_s_own_numbers_make_the_first_ratio_one(scene: Scene) -> None:
    """Sampler and trainer round differently, so what was sampled is read again; results stay near fp32's."""
    settings = recipe(compute=Training(precision="bf16", threads=1))
    learner, scores = scene.learner(settings), torch.tensor(SCORES)
    batch = RolloutBatch.of(scene.rollouts, scene.chat.tokenizer.pad_id)
    batch, agreement = online.checked(batch, scene.actor, 0.7, learner.context, 1e-4)
    assert agreement["sampling/recomputed"] == 1.0
    assert agreement["sampling/sampling_logp_difference/max"] > 1e-3
    experience, looked = ppo.look_back(settings, batch, scores, scores, learner, settings.kl_coef)
    assert experience.advantages.dtype == experience.old_values.dtype == torch.float32
    metrics = losses(settings, experience, torch.arange(6), learner)[2]
    assert metrics["val/ratio"] == pytest.approx(1.0, abs=1e-3)
    exact = scene.look_back(recipe())[1]
    assert looked["objective/kl"] == pytest.approx(exact["objective/kl"], rel=0.05)
    assert looked["explained_variance"] == pytest.approx(exact["explained_variance"], rel=0.1)


def own(rollout: Rollout, values: Tensor) -> list[float]:
    """The part of a `[T]` tensor that belongs to the completion."""
    found: list[float] = values[len(rollout.prompt_tokens) :].tolist()
    return found


ESTIMATES: dict[str, Callable[[float], float]] = {
    "k1": lambda d: d,
    "k2": lambda d: d * d / 2,
    "k3": lambda d: math.exp(-d) - 1 + d,
}


def rewards_by_hand(scene: Scene, settings: Ppo) -> list[list[float]]:
    """For each answer the rewards of its tokens, by the definitions."""
    price = ESTIMATES[settings.kl_estimator or "k1"]
    rewards = []
    for one, score in zip(scene.rollouts, SCORES, strict=True):
        reference = own(one, tiny.logprobs_of(scene.reference, one.tokens, settings.temperature))
        ratio = [p - q for p, q in zip(one.completion.logprobs, reference, strict=True)]
        rewards.append([-settings.kl_coef * price(d) * (settings.kl_in == "reward") for d in ratio])
        rewards[-1][-1] += score
    if settings.whiten_rewards:
        every = np.array([r for row in rewards for r in row])
        mean, spread = every.mean(), math.sqrt(every.var() + 1e-8)
        rewards = [[(r - mean) / spread + mean for r in row] for row in rewards]
    return rewards


def by_hand(scene: Scene, settings: Ppo) -> list[dict[str, list[float]]]:
    """For each answer its log-ratios, values, advantages and returns, by the definitions."""
    table = []
    for one, rewards in zip(scene.rollouts, rewards_by_hand(scene, settings), strict=True):
        reference = own(one, tiny.logprobs_of(scene.reference, one.tokens, settings.temperature))
        ratio = [p - q for p, q in zip(one.completion.logprobs, reference, strict=True)]
        # The value that belongs to a token is what the critic says before the token is there.
        values = tiny.scores_of(scene.critic, one.tokens)[len(one.prompt_tokens) - 1 : -1].tolist()
        after = [*values[1:], 0.0]
        errors = [r + settings.gamma * n - v for r, n, v in zip(rewards, after, values, strict=True)]
        decay = settings.gamma * settings.lam
        advantages = [
            sum(decay ** (k - t) * errors[k] for k in range(t, len(errors))) for t in range(len(errors))
        ]
        returns = [a + v for a, v in zip(advantages, values, strict=True)]
        table.append({"ratio": ratio, "values": values, "advantages": advantages, "returns": returns})
    return table


def test_the_leash_is_the_sum_of_the_log_ratios(scene: Scene) -> None:
    settings = recipe()
    _, metrics = scene.look_back(settings)
    sums = [sum(row["ratio"]) for row in by_hand(scene, settings)]
    kl = sum(sums) / len(sums)
    assert abs(kl) > 1.0
    assert metrics["objective/kl"] == pytest.approx(kl, rel=1e-4)
    assert metrics["objective/non_score_reward"] == pytest.approx(-0.3 * kl, rel=1e-4)
    assert metrics["objective/scores"] == pytest.approx(sum(SCORES) / 6)
    assert metrics["objective/rlhf_reward"] == pytest.approx(sum(SCORES) / 6 - 0.3 * kl, rel=1e-4)
    tokens = [r for row in by_hand(scene, settings) for r in row["ratio"]]
    assert metrics["objective/kl_k1"] == pytest.approx(sum(tokens) / len(tokens), rel=1e-4)
    k3 = sum(math.exp(-r) - 1 + r for r in tokens) / len(tokens)
    assert metrics["objective/kl_k3"] == pytest.approx(k3, rel=1e-3)
    surprise = [-sum(r.completion.logprobs) for r in scene.rollouts]
    assert metrics["objective/entropy"] == pytest.approx(sum(surprise) / len(surprise), rel=1e-5)
    answers = online.of_answers(scene.rollouts)
    assert answers["num_tokens"] == 21
    assert answers["completions/clipped_ratio"] == pytest.approx(2 / 6)
    assert answers["completions/mean_length"] == pytest.approx(21 / 6)
    assert (answers["completions/min_length"], answers["completions/max_length"]) == (1, 6)


CHOICES: list[dict[str, Any]] = [
    {},
    {"kl_estimator": "k2"},
    {"kl_estimator": "k3"},
    {"kl_in": "loss"},
    {"kl_in": "loss", "kl_estimator": "k2"},
    {"whiten_rewards": True},
]


@pytest.mark.parametrize("changed", CHOICES, ids=str)
def test_advantages_and_returns_by_hand(scene: Scene, changed: dict[str, Any]) -> None:
    settings = recipe(**changed)
    experience, metrics = scene.look_back(settings)
    table = by_hand(scene, settings)
    every = np.array([a for row in table for a in row["advantages"]])
    mean, spread = every.mean(), math.sqrt(every.var() + 1e-8)
    for row, (one, want) in enumerate(zip(scene.rollouts, table, strict=True)):
        where = experience.batch.mask[row]
        assert where.sum() == len(one.completion.tokens)
        white = [(a - mean) / spread for a in want["advantages"]]
        assert experience.advantages[row][where].tolist() == pytest.approx(white, abs=1e-4)
        assert experience.returns[row][where].tolist() == pytest.approx(want["returns"], abs=1e-4, rel=1e-4)
        assert experience.old_values[row][where].tolist() == pytest.approx(want["values"], abs=1e-4)
    for tensor in (experience.advantages, experience.returns, experience.old_values):
        assert (tensor[~experience.batch.mask] == 0).all()
    values, returns = (np.array([x for row in table for x in row[name]]) for name in ("values", "returns"))
    explained = 1 - (returns - values).var() / returns.var()
    assert metrics["explained_variance"] == pytest.approx(explained, rel=1e-3)
    price = ESTIMATES[settings.kl_estimator or ("k3" if settings.kl_in == "loss" else "k1")]
    cost = -0.3 * sum(price(d) for row in table for d in row["ratio"]) / 6
    assert metrics["objective/non_score_reward"] == pytest.approx(cost, rel=1e-4)


def test_what_is_learned_from_may_differ_from_the_score_that_is_logged(scene: Scene) -> None:
    settings, batch = recipe(), RolloutBatch.of(scene.rollouts, scene.chat.tokenizer.pad_id)
    scores, worth = torch.tensor(SCORES), torch.tensor([3.0, 1.0, -2.0, 0.0, 5.0, -1.0])
    learner = scene.learner(settings)
    found, metrics = ppo.look_back(settings, batch, scores, worth, learner, 0.3)
    wanted, usual = ppo.look_back(settings, batch, worth, worth, learner, 0.3)
    torch.testing.assert_close(found.advantages, wanted.advantages, rtol=0, atol=0)
    assert metrics == usual | {"objective/scores": pytest.approx(sum(SCORES) / 6)}
    assert usual["objective/scores"] == 1.0


# ------------------------------------------------------------------------------ the update


@pytest.mark.parametrize("changed", CHOICES[2:5], ids=str)
def test_both_losses_by_hand_after_the_weights_have_moved(scene: Scene, changed: dict[str, Any]) -> None:
    settings = recipe(clip=0.1, value_clip=0.15, **changed)
    price = ESTIMATES[settings.kl_estimator or "k3"]
    experience, _ = scene.look_back(settings)
    move(scene.actor, 4)
    move(scene.critic, 5)
    actor_loss, critic_loss, metrics = scene.loss(settings, experience)
    policy, clipped, ratios, squares, value_clipped = [], [], [], [], []
    for row, one in enumerate(scene.rollouts):
        where = experience.batch.mask[row]
        new = own(one, tiny.logprobs_of(scene.actor, one.tokens, 0.7))
        reference = own(one, tiny.logprobs_of(scene.reference, one.tokens, 0.7))
        leash = [0.3 * price(p - q) * (settings.kl_in == "loss") for p, q in zip(new, reference, strict=True)]
        values = tiny.scores_of(scene.critic, one.tokens)[len(one.prompt_tokens) - 1 : -1].tolist()
        lists = (
            t[row][where].tolist() for t in (experience.advantages, experience.old_values, experience.returns)
        )
        said = one.completion.logprobs
        for p, q, cost, v, a, old, wanted in zip(new, said, leash, values, *lists, strict=True):
            ratio = math.exp(p - q)
            near = min(max(ratio, 0.9), 1.1)
            ratios.append(ratio)
            policy.append(max(-a * ratio, -a * near) + cost)
            clipped.append(-a * near > -a * ratio)
            held = old + min(max(v - old, -0.15), 0.15)
            squares.append(0.5 * max((v - wanted) ** 2, (held - wanted) ** 2))
            value_clipped.append((held - wanted) ** 2 > (v - wanted) ** 2)
    assert 0 < sum(clipped) < len(clipped)
    assert 0 < sum(value_clipped) < len(value_clipped)
    mean: Callable[[Sequence[float]], float] = lambda x: sum(x) / len(x)
    assert actor_loss.item() == pytest.approx(mean(policy), abs=1e-4, rel=1e-4)
    assert critic_loss.item() == pytest.approx(mean(squares), rel=1e-4)
    assert metrics["val/ratio"] == pytest.approx(mean(ratios), rel=1e-4)
    assert metrics["val/ratio_var"] == pytest.approx(np.var(ratios), rel=1e-3)
    assert metrics["policy/clipfrac_avg"] == pytest.approx(mean(clipped))
    assert metrics["val/clipfrac_avg"] == pytest.approx(mean(value_clipped))
    kl = mean([r - 1 - math.log(r) for r in ratios])
    assert metrics["policy/approxkl_avg"] == pytest.approx(kl, rel=1e-3)


def test_neither_loss_touches_the_other_model(scene: Scene) -> None:
    settings = recipe()
    actor_loss, critic_loss, _ = scene.loss(settings, scene.look_back(settings)[0])
    actor_loss.backward(retain_graph=True)
    assert all(p.grad is None for p in scene.critic.parameters())
    before = tiny.held_gradient(scene.actor)
    assert before.abs().max() > 0
    critic_loss.backward()
    torch.testing.assert_close(tiny.held_gradient(scene.actor), before, rtol=0, atol=0)
    assert tiny.held_gradient(scene.critic).abs().max() > 0
    assert all(p.grad is None for p in scene.reference.parameters())


@pytest.mark.parametrize("row", [0, 1, 3])
def test_every_token_of_an_answer_is_trained_its_end_included(scene: Scene, row: int) -> None:
    """Gradient reaches exactly the states in which a token of the answer was chosen: the last of them is the
    one that chose the end token, and the state after the end token is nobody's."""
    one = replace(scene, rollouts=[scene.rollouts[row]])
    settings = recipe()
    experience, _ = one.look_back(settings)
    states: list[tuple[Tensor, Tensor]] = []

    def keep(model: object, args: object, how: dict[str, Tensor], out: Tensor) -> None:
        out.retain_grad()
        states.append((how["at"], out))

    models = (scene.actor, scene.critic.model)
    handles = [model.register_forward_hook(keep, with_kwargs=True) for model in models]
    actor_loss, critic_loss, _ = one.loss(settings, experience)
    (actor_loss + critic_loss).backward()
    for handle in handles:
        handle.remove()
    start, end = len(one.rollouts[0].prompt_tokens), len(one.rollouts[0].tokens)
    for at, state in states:
        assert state.grad is not None
        assert bool((state.grad.abs().sum(-1) > 0).all())
        assert at.tolist() == list(range(start - 1, end - 1))


def applied(monkeypatch: pytest.MonkeyPatch, then: Callable[[torch.optim.Optimizer], None]) -> None:
    """Call `then` in the place of every optimizer step."""

    def spy(optimizers: Sequence[tuple[torch.optim.Optimizer, float]], **kwargs: object) -> list[float]:
        for optimizer, _ in optimizers:
            then(optimizer)
            optimizer.zero_grad(set_to_none=True)
        return [1.0] * len(optimizers)

    monkeypatch.setattr(ppo.update, "apply_all", spy)


@pytest.mark.parametrize("step", [0, 3])
def test_one_backward_gives_the_ppo_gradient_plus_the_coefficient_times_the_pretraining_gradient(
    scene: Scene, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """In float64, so that no term can hide in another's rounding."""
    settings = recipe(ptx_coef=2.5, ptx_batch=3, ptx_length=24, epochs=1, minibatches=1)
    experience, _ = scene.look_back(settings)
    move(scene.actor, 4)
    scene.actor.double()
    actor_loss, critic_loss, _ = scene.loss(settings, experience)
    batch = pack_documents(corpus, "train", batch_size=3, length=24, seed=0, step=step)
    ptx = tiny.plain_text_loss(scene.actor, batch)
    g_ppo, g_ptx = tiny.gradient(actor_loss, scene.actor), tiny.gradient(ptx, scene.actor)
    g_value = tiny.gradient(critic_loss, scene.critic)
    held: list[Tensor] = []
    models = iter((scene.actor, scene.critic))
    applied(monkeypatch, lambda _: held.append(tiny.held_gradient(next(models))))
    metrics = ppo.improve(settings, step, experience, scene.learner(settings), corpus)
    assert held[0].dtype == torch.float64
    assert min(g_ppo.norm(), g_ptx.norm()) > 0.1
    torch.testing.assert_close(held[0], g_ppo + 2.5 * g_ptx, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(held[1], g_value, atol=1e-5, rtol=1e-4)
    assert metrics["loss/ptx_avg"] == pytest.approx(ptx.item(), rel=1e-4)
    assert metrics["grad_norm/ppo"] == pytest.approx(g_ppo.norm().item(), rel=1e-3)
    assert metrics["grad_norm/ptx"] == pytest.approx(2.5 * g_ptx.norm().item(), rel=1e-3)


def test_every_minibatch_reads_other_text(
    scene: Scene, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe(ptx_coef=1.0, ptx_batch=2, ptx_length=24, epochs=2, minibatches=3)
    experience, _ = scene.look_back(settings)
    drawn: list[int] = []
    real = ppo.text_loss

    def spy(model: Llama, corpus: Corpus, *, step: int, **rest: Any) -> Tensor:
        drawn.append(step)
        return real(model, corpus, step=step, **rest)

    monkeypatch.setattr(ppo, "text_loss", spy)
    for step in range(2):
        ppo.improve(settings, step, experience, scene.learner(settings), corpus)
    assert drawn == list(range(12))


def test_every_pass_goes_once_over_all_rollouts(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = recipe(epochs=3, minibatches=4)
    experience, _ = scene.look_back(settings)
    seen: list[list[int]] = []
    real = ppo.actor_loss_of

    def spy(recipe: Ppo, experience: Experience, rows: Tensor, learner: Learner) -> Any:
        seen.append(rows.tolist())
        return real(recipe, experience, rows, learner)

    monkeypatch.setattr(ppo, "actor_loss_of", spy)
    metrics = ppo.improve(settings, 0, experience, scene.learner(settings), None)
    assert len(seen) == 9  # six rollouts in four parts are three of two
    passes = [[row for rows in seen[i : i + 3] for row in rows] for i in (0, 3, 6)]
    assert all(sorted(one) == list(range(6)) for one in passes)
    assert passes[0] != passes[1]
    assert metrics["policy/stopped_early"] == 0.0
    assert "loss/ptx_avg" not in metrics


def test_target_kl_ends_the_passes_before_another_step(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    # With so wide a clip nothing is ever clipped: what stops the passes is the distance.
    settings = recipe(
        epochs=3, minibatches=2, target_kl=1e-7, clip=50.0, optimiser=Optimiser(learning_rate=0.01)
    )
    experience, _ = scene.look_back(settings)
    real, states = ppo.update.apply_all, list[tuple[Tensor, Tensor]]()

    def spy(*args: Any, **kwargs: Any) -> list[float]:
        norms = real(*args, **kwargs)
        states.append((tiny.weights(scene.actor), tiny.weights(scene.critic)))
        return norms

    monkeypatch.setattr(ppo.update, "apply_all", spy)
    start = tiny.weights(scene.actor)
    metrics = ppo.improve(settings, 0, experience, scene.learner(settings), None)
    assert metrics["policy/stopped_early"] == 1.0
    assert len(states) == 1  # one step of actor and critic, then no more
    assert not torch.equal(states[-1][0], start)
    assert torch.equal(states[-1][0], tiny.weights(scene.actor))
    assert torch.equal(states[-1][1], tiny.weights(scene.critic))
    assert all(p.grad is None for m in (scene.actor, scene.critic) for p in m.parameters())
    assert metrics["policy/approxkl_avg"] < 1e-7  # the mean over the steps that were taken

    states.clear()
    far = settings.model_copy(update={"target_kl": 1e9})
    assert ppo.improve(far, 0, experience, scene.learner(far), None)["policy/stopped_early"] == 0.0
    assert len(states) == 6


# ------------------------------------------------------------------------------ what makes no difference


def test_what_stands_in_the_padding_makes_no_difference(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe()
    clean, clean_metrics = scene.look_back(settings)
    real, draw = RolloutBatch.of, torch.Generator().manual_seed(0)

    def littered(rollouts: Sequence[Rollout], *args: Any) -> RolloutBatch:
        batch = real(rollouts, *args)
        lengths = torch.tensor([len(r.tokens) for r in rollouts])
        padding = torch.arange(batch.tokens.shape[1]) >= lengths[:, None]
        litter = torch.randint(6, 300, batch.tokens.shape, generator=draw)
        return replace(batch, tokens=torch.where(padding, litter, batch.tokens))

    monkeypatch.setattr(ppo.RolloutBatch, "of", staticmethod(littered))
    dirty, metrics = scene.look_back(settings)
    assert not torch.equal(dirty.batch.tokens, clean.batch.tokens)
    assert metrics == pytest.approx(clean_metrics, abs=1e-5)
    mask = clean.batch.mask
    dirty.advantages[~mask] = dirty.old_values[~mask] = dirty.returns[~mask] = 1e6
    dirty.batch.old_logprobs[~mask] = -1e6
    move(scene.actor, 4)
    for got, want, model in zip(
        scene.loss(settings, dirty), scene.loss(settings, clean), (scene.actor, scene.critic), strict=False
    ):
        assert got.item() == pytest.approx(want.item(), abs=1e-5)
        torch.testing.assert_close(
            tiny.gradient(got, model), tiny.gradient(want, model), atol=1e-5, rtol=1e-4
        )


def test_how_rollouts_are_cut_into_pieces_makes_no_difference(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe()
    results = []
    for budget in (1, 10_000):
        monkeypatch.setattr(ppo, "in_pieces", partial(in_pieces, budget=budget))
        experience, looked = scene.look_back(settings)
        actor_loss, critic_loss, metrics = scene.loss(settings, experience)
        grads = tiny.gradient(actor_loss, scene.actor), tiny.gradient(critic_loss, scene.critic)
        results.append((looked | metrics, *grads))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(results[0][2], results[1][2], atol=1e-5, rtol=1e-4)


def test_minibatches_are_means_over_their_own_tokens(scene: Scene) -> None:
    """Weighed by its tokens, a minibatch's loss is its share of the whole; being trimmed changes nothing."""
    settings = recipe()
    experience, _ = scene.look_back(settings)
    move(scene.actor, 4)
    learner = scene.learner(settings)
    whole = losses(settings, experience, torch.arange(6), learner)
    parts = [torch.tensor([0, 4]), torch.tensor([5, 2]), torch.tensor([3, 1])]
    for term in range(2):
        total = 0.0
        for rows in parts:
            loss = losses(settings, experience, rows, learner)[term]
            total += loss.item() * int(experience.batch.mask[rows].sum())
        assert total / 21 == pytest.approx(whole[term].item(), abs=1e-5)


# ------------------------------------------------------------------------------ scores


class Judge:
    """Says a fixed score for each answer."""

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        return self.scores


def test_scores_are_clipped_and_only_a_cut_off_answer_pays(scene: Scene) -> None:
    # finish reasons: stop, length, stop, stop, length, stop
    judge: Any = Judge(5.0, 5.0, -5.0, 0.5, -5.0, 2.0)
    clipped = recipe(score_clip=2.0, missing_eos_penalty=1.5)
    assert online.score(judge, scene.rollouts, clipped) == [2.0, 0.5, -2.0, 0.5, -3.5, 2.0]
    free = recipe(missing_eos_penalty=1.0)
    assert online.score(judge, scene.rollouts, free) == [5.0, 4.0, -5.0, 0.5, -6.0, 2.0]
    none = recipe(missing_eos_penalty=0.0)
    assert online.score(judge, scene.rollouts, none) == judge.scores


# ------------------------------------------------------------------------------ the whole stage


@pytest.fixture(scope="module")
def place(chat: Chat, tokenizer_dir: Path, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts and a reward model beside the policy."""
    root = tmp_path_factory.mktemp("ppo-stage")
    hub.save(tiny.scalar_model(chat.tokenizer.vocab_size, 7), root / "reward", tokenizer_dir=tokenizer_dir)
    tiny.write_lines(root / "prompts.jsonl", [{"prompt": text} for text in ASKED])
    return root


def run(place: Path, model: Path, out: Path, **changed: Any) -> list[dict[str, Any]]:
    settings = {"policy": model, "reference": model, "reward": place / "reward"}
    small = {
        "prompts": (place / "prompts.jsonl",),
        "prompts_per_step": 8,
        "max_tokens": 6,
        "compute": tiny.TRAINING,
    }
    ppo.run(Ppo(**{**settings, **small, **changed}), out)
    return tiny.lines(out / "metrics.jsonl")


def test_the_oracle_s_grade_is_logged_and_teaches_nothing(
    place: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run(WorldRecipe(seed=1, size=8), tmp_path / "world")
    asked = [q for q in read_questions(tmp_path / "world") if len(q.messages) == 1][:8]
    tiny.write_lines(
        tmp_path / "prompts.jsonl",
        [{"id": q.id, "prompt": [{"role": "user", "content": q.text}]} for q in asked],
    )
    changed = {"prompts": (tmp_path / "prompts.jsonl",), "steps": 2, "prompts_per_step": 4}
    graded: list[tuple[str, str]] = []

    def judge(self: Oracle, question: Question, text: str) -> Any:
        graded.append((question.id, text))
        return SimpleNamespace(reward=float(len(graded)))

    monkeypatch.setattr(Oracle, "judge", judge)
    seen = run(place, model_dir, tmp_path / "seen", world=tmp_path / "world", **changed)
    unseen = run(place, model_dir, tmp_path / "unseen", **changed)
    assert [row["gold/graded_reward"] for row in seen] == [2.5, 6.5]  # means of 1..4 and 5..8
    assert {who for who, _ in graded} <= {q.id for q in asked}
    assert not any("gold/graded_reward" in row for row in unseen)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("seen", "unseen")]
    assert weights[0] == weights[1]


def test_the_judge_and_the_reference_never_move_and_the_critic_starts_as_the_judge(
    place: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = Optimiser(learning_rate=0.01, schedule="constant", warmup=0)
    seen: dict[str, torch.nn.Module] = {}
    at_first: list[Tensor] = []
    real_score, real_look_back = online.score, ppo.look_back

    def score(judge: Combined, *rest: Any) -> list[float]:
        opinion: Any = judge.part("reward_model").opinion
        seen["judge"] = opinion.model
        return real_score(judge, *rest)

    def look_back(
        recipe: Ppo, batch: RolloutBatch, scores: Tensor, worth: Tensor, learner: Learner, kl_coef: float
    ) -> Any:
        at_first.append(tiny.weights(learner.critic))
        assert isinstance(learner.reference, Llama)
        seen.update(critic=learner.critic, reference=learner.reference)
        return real_look_back(recipe, batch, scores, worth, learner, kl_coef)

    monkeypatch.setattr(online, "score", score)
    monkeypatch.setattr(ppo, "look_back", look_back)
    rows = run(place, model_dir, tmp_path / "out", steps=2, optimiser=fast, critic=fast)
    judge = tiny.weights(hub.load(place / "reward", "scalar"))
    policy = tiny.weights(hub.load(model_dir))
    assert torch.equal(tiny.weights(seen["judge"]), judge)
    assert torch.equal(tiny.weights(seen["reference"]), policy)
    assert torch.equal(at_first[0], judge)
    assert not torch.equal(tiny.weights(seen["critic"]), judge)
    assert not torch.equal(tiny.weights(hub.load(tmp_path / "out")), policy)
    assert rows[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert abs(rows[1]["objective/kl"]) > 1e-3
    assert rows[0]["episode"] == 8
    assert all(row["val/num_eos_tokens"] == 8 * (1 - row["completions/clipped_ratio"]) for row in rows)
    assert all(row["eps"] == pytest.approx(8 / row["timing/step_total"]) for row in rows)
    assert all(row["sampling/sampling_logp_difference/max"] < 1e-5 for row in rows)


def test_more_parts_of_the_reward_add_up_and_one_without_weight_changes_no_bit(
    place: Path, model_dir: Path, tmp_path: Path
) -> None:
    def part(weight: float) -> dict[str, Any]:
        return {"kind": "length", "name": "brevity", "weight": weight, "settings": {"most": 2}}

    runs, weights = {}, {}
    for name, rewards in {"plain": [], "silent": [part(0.0)], "loud": [part(0.5)]}.items():
        (runs[name],) = run(place, model_dir, tmp_path / name, steps=1, rewards=rewards)
        weights[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert weights["plain"] == weights["silent"] != weights["loud"]
    assert runs["plain"]["rewards/reward_model/mean"] == runs["loud"]["rewards/reward_model/mean"]
    assert runs["silent"]["objective/scores"] == runs["plain"]["objective/scores"]
    brevity = runs["loud"]["rewards/brevity/mean"]
    assert brevity < 0
    assert runs["loud"]["objective/scores"] == pytest.approx(
        runs["plain"]["objective/scores"] + 0.5 * brevity, abs=1e-5
    )


def test_every_step_draws_other_answers(
    place: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same prompt, of a policy that stands still."""
    drawn: list[list[tuple[int, ...]]] = []
    real = online.ask

    def asked(*args: Any, **settings: Any) -> list[Rollout]:
        rollouts = real(*args, **settings)
        drawn.append([r.completion.tokens for r in rollouts])
        return rollouts

    monkeypatch.setattr(online, "ask", asked)
    prompts = (tiny.write_lines(tmp_path / "prompts.jsonl", [{"prompt": "tea"}]),)
    still = Optimiser(learning_rate=1e-12, schedule="constant", warmup=0)
    run(place, model_dir, tmp_path / "out", steps=2, prompts=prompts, optimiser=still)
    assert len(set(drawn[0])) > 1
    assert drawn[0] != drawn[1]


def test_policy_and_critic_each_learn_at_their_own_rate(
    place: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learners: list[Learner] = []
    real = ppo.improve

    def improve(recipe: Ppo, step: int, experience: Experience, learner: Learner, *rest: Any) -> Any:
        learners.append(learner)
        return real(recipe, step, experience, learner, *rest)

    monkeypatch.setattr(ppo, "improve", improve)
    rates = {"schedule": "constant", "warmup": 0}
    slow = Optimiser(learning_rate=0.001, weight_decay=0.25, **rates)
    fast = Optimiser(learning_rate=0.01, weight_decay=0.5, **rates)
    (row,) = run(place, model_dir, tmp_path / "out", steps=1, optimiser=slow, critic=fast)
    found = [one.param_groups[0] for one in (learners[0].optimizer, learners[0].critic_optimizer)]
    assert [(one["lr"], one["weight_decay"]) for one in found] == [(0.001, 0.25), (0.01, 0.5)]
    assert row["lr"] == 0.001


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_that_broke_off_goes_on_to_the_same_bytes(
    place: Path, model_dir: Path, corpus: Corpus, tmp_path: Path, threads: int
) -> None:
    """Broken off in the fourth of five steps, against a run left in peace: policy, critic, both optimizers,
    prompts, draws, minibatches and pretraining text go on as if nothing had been; with two threads, on which
    policy and critic work at once, too."""
    fast = Optimiser(learning_rate=0.01, schedule="cosine", warmup=1)
    text = {"corpus": corpus.path, "ptx_coef": 1.0, "ptx_batch": 2, "ptx_length": 16}
    settings: dict[str, Any] = {
        "steps": 5,
        "target_kl": None,
        "optimiser": fast,
        "critic": fast,
        "compute": Training(threads=threads, checkpoint_every=2),
        **text,
    }
    make = partial(run, place, model_dir, **settings)
    tiny.goes_on_to_the_same_bytes(make, tmp_path, ppo, "improve", 4, resumed=2)


def test_ptx_needs_a_corpus_and_a_coefficient(
    place: Path, model_dir: Path, corpus: Corpus, tmp_path: Path
) -> None:
    once = {"corpus": corpus.path, "ptx_batch": 2, "steps": 1, "epochs": 1, "minibatches": 1}
    (row,) = run(place, model_dir, tmp_path / "a", ptx_coef=1.0, **once)
    # Rows as long as the model's context, when nothing else is said.
    batch = pack_documents(corpus, "train", batch_size=2, length=64, seed=0, step=0)
    assert row["loss/ptx_avg"] == pytest.approx(
        tiny.plain_text_loss(hub.load(model_dir), batch).item(), abs=1e-5
    )
    assert "loss/ptx_avg" not in run(place, model_dir, tmp_path / "b", ptx_coef=0.0, **once)[0]


def test_prompts_that_leave_no_room_are_left_out_and_counted(chat: Chat) -> None:
    said: list[str] = []
    prompts = [Prompt(id=str(n), messages=tiny.user(" red" * n)) for n in range(1, 9)]
    # <|user|> ... <|end|> <|assistant|>: three tokens more than words
    assert [p.id for p in online.fitting(prompts, chat, 12, 4, said.append)] == ["1", "2", "3", "4", "5"]
    assert said == ["left out 3 of 8 prompts longer than 8 tokens"]
    assert online.fitting(prompts, chat, 15, 4, said.append) == prompts
    assert len(said) == 1
    with pytest.raises(UsageError, match="no prompts of at most 3 tokens"):
        online.fitting(prompts, chat, 7, 4, said.append)
    with pytest.raises(UsageError, match="max_tokens leaves no room") as refused:
        online.fitting(prompts, chat, 64, 64, said.append)
    assert "less than the model's context, 64 tokens" in str(refused.value)


class Fixed:
    """A reward whose opinion is given."""

    def __init__(self, values: list[float]) -> None:
        self.values, self.metrics = values, dict[str, float]()

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        return self.values


@pytest.mark.parametrize("value", [1e20, -2e18])
def test_a_score_whose_square_is_no_number_is_refused_and_says_how_to_cut_it(value: float) -> None:
    asked = Prompt(id="p7", messages=tiny.user("red"))
    said = [Rollout(asked, (1, 2), Completion((3,), (-0.5,), "stop"), "blue")]
    with pytest.raises(DataError, match="too large to learn from") as refused:
        online.score(Fixed([value]), said, recipe())
    assert "prompt 'p7'" in str(refused.value)
    assert "score_clip" in str(refused.value)
    assert online.score(Fixed([value]), said, recipe(score_clip=5.0)) == [math.copysign(5.0, value)]
    assert online.score(Fixed([1e17]), said, recipe()) == [1e17]


def share_of_high_ids(model: Llama, chat: Chat, vocab: int) -> float:
    """How much of what the model says is in the upper half of the vocabulary: sampled by a plain loop that
    shares no code with the engine."""
    generator, high, total = torch.Generator().manual_seed(9), 0, 0
    with torch.no_grad():
        for text in ASKED:
            rows = torch.tensor([chat.prompt(tiny.user(text))] * 20)
            for _ in range(6):
                chances = model.logits(model(rows))[:, -1].softmax(-1)
                said = torch.multinomial(chances, 1, generator=generator)
                high, total = high + int((said >= vocab // 2).sum()), total + len(said)
                rows = torch.cat([rows, said], dim=1)
    return high / total


@pytest.mark.parametrize("rewarded", [True, False])
def test_it_learns_what_is_rewarded_and_nothing_where_reward_is_chance(
    place: Path, model_dir: Path, chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rewarded: bool
) -> None:
    vocab, draw = chat.tokenizer.vocab_size, np.random.default_rng(0)

    def rule(judge: object, rollouts: Sequence[Rollout], recipe: Ppo) -> list[float]:
        if not rewarded:
            return [float(x) for x in draw.normal(size=len(rollouts))]
        return [float(np.mean([t >= vocab // 2 for t in r.completion.tokens])) for r in rollouts]

    monkeypatch.setattr(online, "score", rule)
    before = share_of_high_ids(hub.load(model_dir), chat, vocab)
    rates = Optimiser(learning_rate=0.01, schedule="constant", warmup=0, weight_decay=0.0)
    rows = run(
        place,
        model_dir,
        tmp_path / "out",
        steps=20,
        prompts_per_step=32,
        kl_coef=0.01,
        optimiser=rates,
        critic=rates,
    )
    after = share_of_high_ids(hub.load(tmp_path / "out"), chat, vocab)
    assert 0.3 < before < 0.7
    if rewarded:
        assert after > before + 0.25
        assert rows[-1]["objective/scores"] > rows[0]["objective/scores"] + 0.2
    else:
        assert abs(after - before) < 0.15
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["skipped_updates"] == 0
