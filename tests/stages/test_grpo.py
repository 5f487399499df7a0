"""GRPO against the same numbers worked out one answer and one token at a time: divergence, rewards,
advantages, the loss and its gradient. Then what must make no difference, a kill, and does it learn."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from bloomery.errors import UsageError
from bloomery.infer.engine import Engine
from bloomery.models import hub
from bloomery.models.llama import Llama
from bloomery.objectives.group import advantage_estimators
from bloomery.objectives.policy import policy_losses
from bloomery.recipe import load
from bloomery.rollout.batch import RolloutBatch
from bloomery.rollout.sample import ask
from bloomery.rollout.shared import shared_pieces
from bloomery.stages import grpo, online, world
from bloomery.stages.common import Optimiser, Training
from bloomery.stages.grpo import Experience, Grpo, Learner
from bloomery.stages.world import WorldRecipe
from bloomery.text.chat import Chat
from bloomery.train import precision
from bloomery.train.step import Guard
from bloomery.types import Completion, Prompt, Rollout
from bloomery.world import Oracle, Question, read_questions

# Three answers to each of two prompts.
ASKED = ["what is best", "is plum red"]
SAID = [(1, "stop"), (5, "length"), (3, "stop"), (6, "stop"), (2, "length"), (4, "stop")]
SCORES = [1.5, -0.5, 0.25, 2.0, -1.0, 0.75]
KL = 0.3


def recipe(**changed: Any) -> Grpo:
    nowhere: dict[str, Any] = {"policy": Path("nowhere"), "reward": Path("nowhere")}
    nowhere["prompts"] = (Path("nowhere"),)
    usual = {"temperature": 0.7, "samples": 3, "kl_coef": KL, "max_tokens": 6, "target_kl": None}
    return Grpo(**{**nowhere, **usual, "compute": tiny.TRAINING, **changed})


@dataclass(frozen=True)
class Scene:
    """Answers the actor could have sampled, with their true log-probs, and everything that looks at them."""

    chat: Chat
    actor: Llama
    reference: Llama
    rollouts: list[Rollout]

    @property
    def batch(self) -> RolloutBatch:
        return RolloutBatch.of(self.rollouts, self.chat.tokenizer.pad_id)

    def learner(self, settings: Grpo) -> Learner:
        context = precision.setup(settings.compute.precision, 1)
        reference = self.reference if settings.kl_coef > 0 else None
        return Learner(self.actor, reference, settings.optimiser.over(self.actor), Guard(), context)

    def checked(self, settings: Grpo, batch: RolloutBatch) -> tuple[RolloutBatch, dict[str, float]]:
        context = self.learner(settings).context
        return online.checked(batch, self.actor, settings.temperature, context, settings.sampler_tolerance)

    def look_back(self, settings: Grpo) -> tuple[Experience, dict[str, float]]:
        learner = self.learner(settings)
        return grpo.look_back(settings, self.batch, torch.tensor(SCORES), learner, settings.kl_coef)

    def backward(
        self, settings: Grpo, experience: Experience, rows: Sequence[int] = range(6)
    ) -> tuple[dict[str, float], Tensor]:
        """The metrics and the gradient of one minibatch."""
        metrics = grpo.backward(settings, experience, torch.tensor(rows), self.learner(settings))
        gradient = tiny.held_gradient(self.actor)
        self.actor.zero_grad(set_to_none=True)
        return metrics, gradient


@pytest.fixture
def scene(chat: Chat) -> Scene:
    vocab, draw = chat.tokenizer.vocab_size, np.random.default_rng(0)
    actor, reference = tiny.language_model(vocab, 1), tiny.language_model(vocab, 2)
    rollouts = []
    for number, (length, finish) in enumerate(SAID):
        asked = Prompt(id=f"{number // 3}", messages=tiny.user(ASKED[number // 3]))
        prompt, said = chat.prompt(asked.messages), [int(t) for t in draw.integers(6, vocab, length)]
        if finish == "stop":
            said[-1] = chat.tokenizer.end_id
        logprobs = tiny.logprobs_of(actor, prompt + said, 0.7)[len(prompt) :].tolist()
        completion = Completion(tuple(said), tuple(logprobs), finish)  # type: ignore[arg-type]
        rollouts.append(Rollout(asked, tuple(prompt), completion, chat.tokenizer.decode(said)))
    return Scene(chat, actor, reference, rollouts)


def move(model: torch.nn.Module, seed: int, far: float = 0.02) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += far * torch.randn(parameter.shape, generator=generator)


def own(rollout: Rollout, model: Llama) -> Tensor:
    """The log-probs of an answer's tokens under a model, at the temperature they were sampled with."""
    return tiny.logprobs_of(model, rollout.tokens, 0.7)[len(rollout.prompt_tokens) :]


# ------------------------------------------------------------------------------ before the update


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_trainer_and_sampler_agree_and_the_sampler_s_numbers_are_used(
    chat: Chat, scene: Scene, temperature: float
) -> None:
    prompts = [Prompt(id=text, messages=tiny.user(text)) for text in ASKED for _ in range(6)]
    engine = Engine(scene.actor, stop_id=chat.tokenizer.end_id, pad_id=chat.tokenizer.pad_id)
    rollouts = ask(engine, chat, prompts, max_tokens=8, temperature=temperature, seed=5)
    batch = RolloutBatch.of(rollouts, chat.tokenizer.pad_id)
    settings = recipe(temperature=temperature)
    same, metrics = scene.checked(settings, batch)
    assert same is batch
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-5
    assert metrics["sampling/recomputed"] == 0.0


def test_where_they_do_not_agree_the_trainer_s_numbers_are_used(scene: Scene) -> None:
    settings, batch = recipe(sampler_tolerance=0.4), scene.batch
    off = replace(batch, old_logprobs=torch.where(batch.mask, batch.old_logprobs - 0.5, 0.0))
    for settings, wanted in ((recipe(sampler_tolerance=0.6), off), (recipe(sampler_tolerance=0.4), batch)):
        got, metrics = scene.checked(settings, off)
        torch.testing.assert_close(got.old_logprobs, wanted.old_logprobs, atol=1e-5, rtol=0)
        assert metrics["sampling/recomputed"] == float(wanted is batch)
        for name in ("mean", "max"):
            assert metrics[f"sampling/sampling_logp_difference/{name}"] == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("row", range(6))
def test_of_few_answers_every_one_is_checked(scene: Scene, row: int) -> None:
    settings, off = recipe(), scene.batch
    off.old_logprobs[row] -= torch.where(off.mask[row], 0.5, 0.0)
    assert scene.checked(settings, off)[1]["sampling/recomputed"] == 1.0


def test_one_token_that_differs_is_enough(scene: Scene) -> None:
    """However near the others bring the mean."""
    off = scene.batch
    row, token = off.mask.nonzero()[-1].tolist()
    off.old_logprobs[row, token] -= 0.5
    _, metrics = scene.checked(recipe(sampler_tolerance=0.1), off)
    assert metrics["sampling/sampling_logp_difference/mean"] < 0.1
    assert metrics["sampling/recomputed"] == 1.0


def test_in_bf16_the_trainer_s_own_numbers_make_the_first_ratio_one(scene: Scene) -> None:
    settings = recipe(compute=Training(precision="bf16", threads=1))
    batch, metrics = scene.checked(settings, scene.batch)
    assert metrics["sampling/recomputed"] == 1.0
    assert metrics["sampling/sampling_logp_difference/max"] > 1e-3
    experience = Experience(batch, None, torch.ones_like(batch.old_logprobs), 0.0)
    assert scene.backward(settings, experience)[0]["val/ratio"] == pytest.approx(1.0, abs=1e-3)


def ratios(scene: Scene) -> list[list[float]]:
    """log pi - log pi_ref of every token, at the weights that sampled."""
    return [
        (torch.tensor(one.completion.logprobs) - own(one, scene.reference).detach()).tolist()
        for one in scene.rollouts
    ]


def test_divergence_in_the_loss_leaves_rewards_alone(scene: Scene) -> None:
    experience, metrics = scene.look_back(recipe(advantage="dr_grpo"))
    means = [sum(SCORES[:3]) / 3, sum(SCORES[3:]) / 3]
    for row, score in enumerate(SCORES):
        got = experience.advantages[row]
        assert got[experience.batch.mask[row]].tolist() == pytest.approx(
            [score - means[row // 3]] * SAID[row][0], abs=1e-6
        )
        assert (got[~experience.batch.mask[row]] == 0).all()
    found = ratios(scene)
    flat = [d for row in found for d in row]
    assert metrics["objective/kl"] == pytest.approx(sum(map(sum, found)) / 6, rel=1e-4)
    assert metrics["kl"] == pytest.approx(np.mean([math.exp(-d) - 1 + d for d in flat]), rel=1e-4)
    assert metrics["objective/kl_coef"] == KL
    assert metrics["reward"] == pytest.approx(np.mean(SCORES))
    assert metrics["reward_std"] == pytest.approx(np.std(SCORES))
    assert metrics["frac_reward_zero_std"] == 0.0


@pytest.mark.parametrize(
    ("estimator", "rule"),
    [
        (None, lambda d: d),
        ("k1", lambda d: d),
        ("k2", lambda d: d * d / 2),
        ("k3", lambda d: math.exp(-d) - 1 + d),
    ],
)
def test_divergence_in_the_reward_is_taken_from_the_score(
    scene: Scene, estimator: str | None, rule: Callable[[float], float]
) -> None:
    settings = recipe(advantage="rloo", kl_in="reward", kl_estimator=estimator)
    experience, _ = scene.look_back(settings)
    paid = [s - KL * sum(rule(d) for d in row) for s, row in zip(SCORES, ratios(scene), strict=True)]
    for row, mine in enumerate(paid):
        others = [p for i, p in enumerate(paid) if i // 3 == row // 3 and i != row]
        want = mine - sum(others) / 2
        assert experience.advantages[row][experience.batch.mask[row]].tolist() == pytest.approx(
            [want] * SAID[row][0], abs=1e-4
        )


def test_groups_that_score_the_same_are_counted_and_teach_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("test_grpo.SCORES", [0.1, 0.1, 0.1, *SCORES[3:]])
    experience, metrics = scene.look_back(recipe())
    assert metrics["frac_reward_zero_std"] == 0.5
    assert (experience.advantages[:3] == 0).all()
    _, charged = scene.look_back(recipe(advantage="rloo", kl_in="reward"))
    assert charged["frac_reward_zero_std"] == 0.5, "of what is said of answers, whatever the leash costs"
    _, gradient = scene.backward(recipe(kl_coef=0.0), replace(experience, kl_coef=0.0), [0, 1, 2])
    assert (gradient == 0).all()


def test_a_score_that_is_no_number_changes_no_weight(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_grpo.SCORES", [math.nan, *SCORES[1:]])
    settings = recipe(minibatches=1)
    learner, before = scene.learner(settings), tiny.weights(scene.actor)
    experience, metrics = scene.look_back(settings)
    assert math.isnan(metrics["reward"])
    grpo.improve(settings, 0, experience, learner)
    assert learner.guard.skipped == 1
    assert torch.equal(tiny.weights(scene.actor), before)


# ------------------------------------------------------------------------------ the update


def by_hand(scene: Scene, settings: Grpo, experience: Experience) -> Tensor:
    """The loss with the default names, summed answer by answer and token by token."""
    total, every = torch.zeros(()), sum(length for length, _ in SAID)
    for row, one in enumerate(scene.rollouts):
        new, reference = own(one, scene.actor), own(one, scene.reference).detach()
        advantage = experience.advantages[row][experience.batch.mask[row]][0].item()
        summed = torch.zeros(())
        for p, q, old in zip(new, reference, one.completion.logprobs, strict=True):
            ratio = (p - old).exp()
            term = -torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.1) * advantage)
            if settings.kl_in == "loss":
                term = term + KL * ((q - p).exp() - 1 - (q - p))
            summed = summed + term
        length = len(new)
        share = {"token": 1 / every, "sequence": 1 / (6 * length), "constant": 1 / (6 * settings.max_tokens)}
        total = total + share[settings.averaging] * summed
    return total


@pytest.mark.parametrize("averaging", ["token", "sequence", "constant"])
@pytest.mark.parametrize("kl_in", ["loss", "reward"])
@pytest.mark.parametrize("budget", [1, 24, 10_000])
def test_loss_and_gradient_by_hand_however_they_are_cut_into_pieces(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, averaging: str, kl_in: str, budget: int
) -> None:
    settings = recipe(averaging=averaging, kl_in=kl_in, loss_settings={"clip": 0.1})
    experience, _ = scene.look_back(settings)
    move(scene.actor, 4)
    want = by_hand(scene, settings, experience)
    monkeypatch.setattr(grpo, "shared_pieces", partial(shared_pieces, batch_tokens=budget))
    metrics, gradient = scene.backward(settings, experience)
    assert metrics["loss"] == pytest.approx(want.item(), abs=1e-5)
    torch.testing.assert_close(gradient, tiny.gradient(want, scene.actor), atol=1e-5, rtol=1e-4)


def test_rows_go_to_where_the_rollouts_are(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minibatches are drawn on the CPU; `meta` stands for a GPU, whose indices no CPU tensor takes."""
    settings = recipe()
    experience, _ = scene.look_back(settings)
    asked = list[Tensor]()

    def loss_of(*given: Any) -> tuple[Tensor, dict[str, float]]:
        asked.append(given[3])
        return torch.zeros((), device="meta", requires_grad=True), {"loss": 0.0}

    batch = RolloutBatch(
        *(x.to("meta") for x in (scene.batch.tokens, scene.batch.mask, scene.batch.old_logprobs))
    )
    monkeypatch.setattr(grpo, "loss_of", loss_of)
    piece = SimpleNamespace(rows=torch.arange(2, device="meta"))
    monkeypatch.setattr(grpo, "by_prompt", lambda *given: [piece])
    grpo.backward(
        settings, replace(experience, batch=batch), torch.tensor([3, 1, 2]), scene.learner(settings)
    )
    assert asked[0].device.type == "meta"
    assert asked[0].shape == (2,)


def test_metrics_of_an_update_by_hand(scene: Scene) -> None:
    settings = recipe(loss_settings={"clip": 0.1})
    experience, _ = scene.look_back(settings)
    move(scene.actor, 4)
    metrics, _ = scene.backward(settings, experience)
    found, clipped, entropies = [], [], []
    for row, one in enumerate(scene.rollouts):
        start = len(one.prompt_tokens)
        advantage = experience.advantages[row][start].item()
        ratio = (own(one, scene.actor).detach() - torch.tensor(one.completion.logprobs)).exp().tolist()
        found += ratio
        clipped += [r > 1.1 if advantage > 0 else r < 0.9 for r in ratio]
        logits = scene.actor.logits(scene.actor(torch.tensor([list(one.tokens)])))[0, start - 1 : -1] / 0.7
        entropies += torch.distributions.Categorical(logits=logits).entropy().tolist()
    assert 0 < sum(clipped) < len(clipped)
    assert metrics["clip_ratio/region_mean"] == pytest.approx(np.mean(clipped))
    assert metrics["val/ratio"] == pytest.approx(np.mean(found), rel=1e-4)
    assert metrics["policy/approxkl_avg"] == pytest.approx(
        np.mean([r - 1 - math.log(r) for r in found]), rel=1e-3
    )
    assert metrics["entropy"] == pytest.approx(np.mean(entropies), rel=1e-4)


@pytest.mark.parametrize("name", list(policy_losses))
def test_the_loss_is_the_one_that_is_named(scene: Scene, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    settings = recipe(loss=name, kl_coef=0.0)
    experience, _ = scene.look_back(settings)
    move(scene.actor, 4)
    rows = [
        torch.nn.functional.pad(own(r, scene.actor), (0, 6 - len(own(r, scene.actor))))
        for r in scene.rollouts
    ]
    mask = torch.arange(6) < torch.tensor([[length] for length, _ in SAID])
    old = torch.stack(
        [
            torch.tensor([*r.completion.logprobs, *[0.0] * (6 - m)])
            for r, (m, _) in zip(scene.rollouts, SAID, strict=True)
        ]
    )
    advantages = torch.stack(
        [
            row[where][:1].expand(6)
            for row, where in zip(experience.advantages, experience.batch.mask, strict=True)
        ]
    )
    losses, _ = policy_losses[name](torch.stack(rows), old, advantages, mask)
    assert scene.backward(settings, experience)[0]["loss"] == pytest.approx(
        losses[mask].mean().item(), abs=1e-5
    )


@pytest.mark.parametrize("row", [0, 1, 3])
def test_every_token_of_an_answer_is_trained_its_end_included(scene: Scene, row: int) -> None:
    """Gradient reaches exactly the states in which a token of the answer was chosen."""
    settings = recipe(kl_coef=0.0, loss="reinforce")
    experience, _ = scene.look_back(settings)
    states: list[tuple[list[int], Tensor]] = []

    def keep(model: object, args: object, how: dict[str, Tensor], out: Tensor) -> None:
        out.retain_grad()
        states.append((how["at"].tolist(), out))

    handle = scene.actor.register_forward_hook(keep, with_kwargs=True)
    scene.backward(settings, experience, [row])
    handle.remove()
    ((at, state),) = states
    assert state.grad is not None
    assert bool((state.grad.abs().sum(-1) > 0).all())
    start, end = len(scene.rollouts[row].prompt_tokens), len(scene.rollouts[row].tokens)
    assert at == list(range(start - 1, end - 1))


def test_what_stands_in_the_padding_makes_no_difference(scene: Scene) -> None:
    settings = recipe()
    experience, clean_metrics = scene.look_back(settings)
    clean, mask = experience.batch, experience.batch.mask
    lengths = torch.tensor([len(r.tokens) for r in scene.rollouts])
    padding = torch.arange(mask.shape[1]) >= lengths[:, None]
    litter = torch.randint(6, 300, mask.shape, generator=torch.Generator().manual_seed(0))
    tokens = torch.where(padding, litter, clean.tokens)
    old = torch.where(mask, clean.old_logprobs, -1e6)
    learner = scene.learner(settings)
    dirty, metrics = grpo.look_back(
        settings, replace(clean, tokens=tokens, old_logprobs=old), torch.tensor(SCORES), learner, KL
    )
    assert metrics == pytest.approx(clean_metrics, abs=1e-5)
    assert dirty.reference_logprobs is not None
    dirty.advantages[~mask] = dirty.reference_logprobs[~mask] = 1e6
    move(scene.actor, 4)
    for got, want in zip(scene.backward(settings, dirty), scene.backward(settings, experience), strict=True):
        if isinstance(got, Tensor):
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
        else:
            assert got == pytest.approx(want, abs=1e-5)


def test_every_pass_goes_once_over_all_rollouts(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = recipe(epochs=3, minibatches=4)
    experience, _ = scene.look_back(settings)
    seen: list[list[int]] = []
    real = grpo.backward

    def spy(recipe: Grpo, experience: Experience, rows: Tensor, learner: Learner) -> dict[str, float]:
        seen.append(rows.tolist())
        return real(recipe, experience, rows, learner)

    monkeypatch.setattr(grpo, "backward", spy)
    metrics = grpo.improve(settings, 0, experience, scene.learner(settings))
    assert len(seen) == 9  # six answers in four parts are three of two
    passes = [[row for rows in seen[i : i + 3] for row in rows] for i in (0, 3, 6)]
    assert all(sorted(one) == list(range(6)) for one in passes)
    assert passes[0] != passes[1]
    assert metrics["policy/stopped_early"] == 0.0


def test_target_kl_ends_the_passes_before_another_step(scene: Scene) -> None:
    far = {"loss_settings": {"clip": 50.0}, "optimiser": Optimiser(learning_rate=0.01)}
    settings = recipe(epochs=3, minibatches=2, target_kl=1e-7, **far)
    experience, _ = scene.look_back(settings)
    learner, start = scene.learner(settings), tiny.weights(scene.actor)
    metrics = grpo.improve(settings, 0, experience, learner)
    assert metrics["policy/stopped_early"] == 1.0
    assert metrics["policy/approxkl_avg"] < 1e-7  # the mean over the steps that were taken
    steps = {int(state["step"]) for state in learner.optimizer.state.values()}
    assert steps == {1}
    assert not torch.equal(tiny.weights(scene.actor), start)
    assert all(p.grad is None for p in scene.actor.parameters())
    learner = scene.learner(settings)
    relaxed = settings.model_copy(update={"target_kl": 1e9})
    assert grpo.improve(relaxed, 0, experience, learner)["policy/stopped_early"] == 0.0
    assert {int(state["step"]) for state in learner.optimizer.state.values()} == {6}


# ------------------------------------------------------------------------------ the recipe


def test_names_and_settings_are_tried_before_anything_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("policy: a\nreward: b\nprompts: [c]\n")
    for setting, message in (
        ("loss=pop", "no policy loss is called 'pop'.*'ppo'"),
        ("advantage=grop", "no advantage is called 'grop'.*'grpo'"),
        ("kl_estimator=k4", "no KL estimator is called 'k4'"),
        ("loss_settings.clipp=0.3", "'ppo': clipp: .*did you mean 'clip'"),
        ("loss_settings.clip=0", "'ppo': clip: .*greater than 0"),
        ("advantage_settings.eps=-1", "'grpo': eps: .*greater than or equal to 0"),
        ("samples=1", "compares answers to one prompt"),
        ("averaging=mean", "averaging"),
    ):
        with pytest.raises(UsageError, match=message):
            load(Grpo, path, [setting])
    with pytest.raises(UsageError, match="there is no reward"):
        recipe(reward=None)
    with pytest.raises(UsageError, match="kl_target"):
        load(Grpo, path, ["kl_coef=0", "kl_target=6"])
    assert load(Grpo, path, ["samples=1", "advantage=reinforce++"]).samples == 1


def test_the_recipe_s_help_names_everything_there_is() -> None:
    for key, registry in (("advantage", advantage_estimators), ("loss", policy_losses)):
        said = Grpo.model_fields[key].description or ""
        assert set(re.findall(r"[\w+]+", said.partition(": ")[2].replace(" or ", ", "))) == set(registry)


def test_what_changes_nothing_is_said() -> None:
    assert grpo.without_effect(recipe()) == []
    assert "reference" in grpo.without_effect(recipe(kl_coef=0.0, reference=Path("x")))[0]
    assert "k1 in the loss" in grpo.without_effect(recipe(kl_estimator="k1"))[0]
    assert grpo.without_effect(recipe(kl_estimator="k1", kl_in="reward")) == []


# ------------------------------------------------------------------------------ the whole stage


@pytest.fixture(scope="module")
def place(chat: Chat, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts and a reward model beside the policy."""
    root = tmp_path_factory.mktemp("grpo-stage")
    hub.save(tiny.scalar_model(chat.tokenizer.vocab_size, 7), root / "reward", tokenizer_dir=tokenizer_dir)
    tiny.write_lines(
        root / "prompts.jsonl", [{"prompt": text} for text in (*ASKED, "red", "tea", "blue jam")]
    )
    return root


FAST = Optimiser(learning_rate=0.01, schedule="constant", warmup=0, weight_decay=0.0)


def run(place: Path, model: Path, out: Path, **changed: Any) -> list[dict[str, Any]]:
    settings = {"policy": model, "reward": place / "reward", "prompts": (place / "prompts.jsonl",)}
    small = {"prompts_per_step": 3, "samples": 4, "max_tokens": 6, "steps": 2, "compute": tiny.TRAINING}
    grpo.run(Grpo(**{**settings, **small, **changed}), out)
    return tiny.lines(out / "metrics.jsonl")


def test_neither_reward_model_nor_reference_moves_and_only_the_policy_is_saved(
    place: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Path, torch.nn.Module]] = []
    real = hub.load
    monkeypatch.setattr(
        grpo.hub,
        "load",
        lambda path, *how, **named: seen.append((path, real(path, *how, **named))) or seen[-1][1],
    )
    rows = run(place, model_dir, tmp_path / "out", optimiser=FAST)
    actor, judge, reference = (model for _, model in seen)
    assert [path for path, _ in seen] == [model_dir, place / "reward", model_dir]
    assert torch.equal(tiny.weights(reference), tiny.weights(real(model_dir)))
    assert torch.equal(tiny.weights(judge), tiny.weights(real(place / "reward", "scalar")))
    assert torch.equal(tiny.weights(actor), tiny.weights(real(tmp_path / "out")))
    assert not torch.equal(tiny.weights(actor), tiny.weights(reference))
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert rows[1]["kl"] > 1e-3
    assert [row["episode"] for row in rows] == [12, 24]
    assert all(row["sampling/sampling_logp_difference/max"] < 1e-5 for row in rows)
    wanted = (
        "reward reward_std frac_reward_zero_std completions/mean_length completions/min_length "
        "completions/max_length completions/clipped_ratio kl entropy clip_ratio/region_mean eps "
        "rewards/reward_model/mean rewards/reward_model/std loss grad_norm learning_rate num_tokens "
        "timing/generation timing/scoring timing/training timing/step_total rollout/tok_per_sec"
    )
    assert set(wanted.split()) <= set(rows[0])


def test_other_rewards_instead_of_a_reward_model(place: Path, model_dir: Path, tmp_path: Path) -> None:
    lengths = ({"kind": "length", "weight": -0.5, "name": "short", "settings": {"most": 2}},)
    rows = run(place, model_dir, tmp_path / "out", reward=None, rewards=lengths, missing_eos_penalty=0.0)
    assert not any(name.startswith("rewards/reward_model") for name in rows[0])
    assert rows[0]["rewards/short/mean"] != 0.0
    assert rows[0]["reward"] == pytest.approx(-0.5 * rows[0]["rewards/short/mean"])


def test_a_policy_that_learns_by_adapters_is_its_own_reference(
    place: Path, model_dir: Path, tmp_path: Path
) -> None:
    """The same numbers as with a second copy of the model, which then stays where it was."""
    shutil.copytree(model_dir, tmp_path / "copy")
    settings: dict[str, Any] = {"lora": {"rank": 4}, "optimiser": FAST, "steps": 3, "kl_coef": 0.5}
    alone = run(place, model_dir, tmp_path / "alone", **settings)
    beside = run(place, model_dir, tmp_path / "beside", reference=tmp_path / "copy", **settings)
    assert alone[-1]["kl"] > 1e-4
    for one, other in zip(alone, beside, strict=True):
        for name in ("kl", "loss", "grad_norm", "reward"):
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6)


def test_without_a_leash_no_reference_is_loaded(
    place: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Path] = []
    real = hub.load
    monkeypatch.setattr(
        grpo.hub, "load", lambda path, *how, **named: loaded.append(path) or real(path, *how, **named)
    )
    rows = run(place, model_dir, tmp_path / "out", kl_coef=0.0, reference=tmp_path, steps=1)
    assert loaded == [model_dir, place / "reward"]
    assert not {"kl", "objective/kl", "objective/kl_coef"} & set(rows[0])


def test_answers_to_a_prompt_stand_together_and_each_prompt_is_asked_in_turn(
    place: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    real = online.ask

    def spy(engine: Any, chat: Any, prompts: Sequence[Prompt], **rest: Any) -> list[Rollout]:
        asked.append([p.messages[0].content for p in prompts])
        return real(engine, chat, prompts, **rest)

    monkeypatch.setattr(online, "ask", spy)
    run(place, model_dir, tmp_path / "out", prompts_per_step=5, samples=2)
    for step in asked:
        assert step[0::2] == step[1::2]
        assert len(set(step)) == 5


def test_the_coefficient_is_steered_towards_its_target(place: Path, model_dir: Path, tmp_path: Path) -> None:
    tight = {"optimiser": FAST, "steps": 4, "kl_coef": 0.01}
    rows = run(place, model_dir, tmp_path / "out", kl_target=1e-3, **tight)
    for now, then in pairwise(rows):
        error = min(max(now["objective/kl"] / 1e-3 - 1, -0.2), 0.2)
        assert then["objective/kl_coef"] == pytest.approx(now["objective/kl_coef"] * (1 + 0.1 * error))
    assert rows[-1]["objective/kl_coef"] != 0.01
    assert {row["objective/kl_coef"] for row in run(place, model_dir, tmp_path / "fixed", **tight)} == {0.01}


def test_the_oracle_s_grade_is_logged_and_teaches_nothing(
    place: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run(WorldRecipe(seed=1, size=8), tmp_path / "world")
    asked = [q for q in read_questions(tmp_path / "world") if len(q.messages) == 1][:8]
    tiny.write_lines(
        tmp_path / "prompts.jsonl",
        [{"id": q.id, "prompt": [{"role": "user", "content": q.text}]} for q in asked],
    )
    changed = {"prompts": (tmp_path / "prompts.jsonl",), "prompts_per_step": 2, "samples": 2}
    graded: list[str] = []

    def judge(self: Oracle, question: Question, text: str) -> Any:
        graded.append(question.id)
        return SimpleNamespace(reward=float(len(graded)))

    monkeypatch.setattr(Oracle, "judge", judge)
    seen = run(place, model_dir, tmp_path / "seen", world=tmp_path / "world", **changed)
    unseen = run(place, model_dir, tmp_path / "unseen", **changed)
    assert [row["gold/graded_reward"] for row in seen] == [2.5, 6.5]  # means of 1..4 and 5..8
    assert not any("gold/graded_reward" in row for row in unseen)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("seen", "unseen")]
    assert weights[0] == weights[1]


def test_killed_and_gone_on_with_it_gives_the_same_bytes(
    place: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 in the middle of the sixth of eight steps; the leash is steered, which is state of its own."""
    settings: dict[str, Any] = {
        "steps": 8,
        "epochs": 2,
        "kl_target": 0.05,
        "optimiser": Optimiser(learning_rate=0.005, schedule="cosine", warmup=2),
        "compute": Training(threads=1, checkpoint_every=2),
    }
    whole = run(place, model_dir, tmp_path / "whole", **settings)
    child = os.fork()
    if child == 0:
        real = grpo.improve

        def dies(recipe: Grpo, step: int, *rest: Any) -> dict[str, float]:
            if step == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(recipe, step, *rest)

        grpo.improve = dies
        try:
            run(place, model_dir, tmp_path / "killed", **settings)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    gone_on = run(place, model_dir, tmp_path / "killed", **settings)
    state = json.loads((tmp_path / "killed" / "trainer_state.json").read_text())
    assert state["resumed_at"] == [4]
    for name in ("model.safetensors", "recipe.yaml"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    for one, other in zip(whole, gone_on, strict=True):
        assert one.keys() == other.keys()
        assert all(one[name] == other[name] for name in one if not name.startswith(tiny.CLOCKS))


# ------------------------------------------------------------------------------ does it learn


def share_of_high_ids(model: Llama, chat: Chat, vocab: int) -> float:
    """How much of what the model says is in the upper half of the vocabulary: sampled by a plain loop that
    shares no code with the engine."""
    generator, high, total = torch.Generator().manual_seed(9), 0, 0
    with torch.no_grad():
        for text in (*ASKED, "red", "tea", "blue jam"):
            rows = torch.tensor([chat.prompt(tiny.user(text))] * 20)
            for _ in range(6):
                chances = model.logits(model(rows))[:, -1].softmax(-1)
                said = torch.multinomial(chances, 1, generator=generator)
                high, total = high + int((said >= vocab // 2).sum()), total + len(said)
                rows = torch.cat([rows, said], dim=1)
    return high / total


NAMED = [
    {},
    {"advantage": "dr_grpo", "averaging": "constant", "steps": 20},
    {"advantage": "rloo", "loss": "reinforce", "kl_in": "reward", "minibatches": 1, "steps": 24},
    {"advantage": "reinforce++", "samples": 1, "prompts_per_step": 32, "kl_in": "reward"},
    {"advantage": "reinforce++_baseline", "loss": "cispo", "steps": 20},
    {"loss": "gspo", "averaging": "sequence", "loss_settings": {"clip": 0.1, "clip_higher": 0.1}},
]


@pytest.mark.parametrize("named", NAMED, ids=lambda n: "-".join(str(v) for v in n.values()) or "default")
def test_it_learns_what_is_rewarded(
    place: Path,
    model_dir: Path,
    chat: Chat,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    named: dict[str, Any],
) -> None:
    vocab = chat.tokenizer.vocab_size

    def rule(judge: object, rollouts: Sequence[Rollout], recipe: object) -> list[float]:
        return [float(np.mean([t >= vocab // 2 for t in r.completion.tokens])) for r in rollouts]

    monkeypatch.setattr(online, "score", rule)
    before = share_of_high_ids(hub.load(model_dir), chat, vocab)
    usual: dict[str, Any] = {
        "steps": 12,
        "prompts_per_step": 5,
        "samples": 8,
        "kl_coef": 0.01,
        "optimiser": FAST,
    }
    run(place, model_dir, tmp_path / "out", **{**usual, **named})
    after = share_of_high_ids(hub.load(tmp_path / "out"), chat, vocab)
    assert 0.3 < before < 0.7
    assert after > before + 0.2


@pytest.mark.parametrize("advantage", list(advantage_estimators))
def test_a_reward_that_never_changes_teaches_nothing(
    place: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, advantage: str
) -> None:
    """To the bit: without a leash there is then no gradient at all."""
    monkeypatch.setattr(online, "score", lambda judge, rollouts, recipe: [0.7] * len(rollouts))
    rows = run(place, model_dir, tmp_path / "out", advantage=advantage, kl_coef=0.0, optimiser=FAST)
    assert torch.equal(tiny.weights(hub.load(tmp_path / "out")), tiny.weights(hub.load(model_dir)))
    assert all(row["frac_reward_zero_std"] == 1.0 and row["grad_norm"] == 0.0 for row in rows)


def test_a_reward_that_is_chance_teaches_no_direction(
    place: Path, model_dir: Path, chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocab, draw = chat.tokenizer.vocab_size, np.random.default_rng(0)
    monkeypatch.setattr(
        online, "score", lambda judge, rollouts, recipe: draw.normal(size=len(rollouts)).tolist()
    )
    before = share_of_high_ids(hub.load(model_dir), chat, vocab)
    run(
        place,
        model_dir,
        tmp_path / "out",
        steps=12,
        prompts_per_step=5,
        samples=8,
        kl_coef=0.01,
        optimiser=FAST,
    )
    after = share_of_high_ids(hub.load(tmp_path / "out"), chat, vocab)
    assert abs(after - before) < 0.15


def test_scores_are_clipped_and_only_a_cut_off_answer_pays(scene: Scene) -> None:
    # finish reasons: stop, length, stop, stop, length, stop
    judge: Any = lambda rollouts: [5.0, 5.0, -5.0, 0.5, -5.0, 2.0]
    clipped = recipe(score_clip=2.0, missing_eos_penalty=1.5)
    assert online.score(judge, scene.rollouts, clipped) == [2.0, 0.5, -2.0, 0.5, -3.5, 2.0]
