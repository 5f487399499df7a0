"""One step off: against the same loop with every version of the policy kept by hand, whatever is slow, broken
off or adapted; and that the two things do happen at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch

from bloomery.errors import UsageError
from bloomery.infer.engine import Engine
from bloomery.models import hub
from bloomery.models.llama import Llama
from bloomery.models.lora import Adapter, attach
from bloomery.stages import ahead, grpo, ppo
from bloomery.stages.ahead import Ahead
from bloomery.stages.common import Optimiser, Training
from bloomery.stages.grpo import Grpo
from bloomery.stages.online import Laps
from bloomery.stages.ppo import Ppo
from bloomery.text.chat import Chat

ASKED = ["red", "what is best", "one two three", "tea"]
FAST = Optimiser(learning_rate=0.01, schedule="constant", warmup=0, weight_decay=0.0)
TWO = Training(threads=2, checkpoint_every=0)
LENGTH = {"kind": "length", "settings": {"most": 0}}
Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def place(chat: Chat, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts and a reward model beside the policy."""
    root = tmp_path_factory.mktemp("ahead")
    hub.save(tiny.scalar_model(chat.tokenizer.vocab_size, 7), root / "reward", tokenizer_dir=tokenizer_dir)
    tiny.write_lines(root / "prompts.jsonl", [{"prompt": text} for text in ASKED])
    return root


@pytest.fixture(params=[ppo, grpo], ids=["ppo", "grpo"])
def stage(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


only_ppo = pytest.mark.parametrize("stage", [ppo], indirect=True, ids=["ppo"])


@pytest.fixture
def run(stage: ModuleType, place: Path, model_dir: Path, tmp_path: Path) -> Run:
    """Runs the stage, tiny and one step off, into a directory; its rows without what measures time."""

    def go(out: Path | str, **changed: Any) -> list[dict[str, Any]]:
        settings: dict[str, Any] = {
            **{"policy": model_dir, "reference": model_dir, "reward": place / "reward"},
            **{"prompts": (place / "prompts.jsonl",), "prompts_per_step": 4, "max_tokens": 4},
            **{"steps": 3, "epochs": 1, "target_kl": None, "optimiser": FAST, "compute": tiny.TRAINING},
            **{"one_step_off": True},
            **({"critic": FAST} if stage is ppo else {"samples": 3}),
        }
        recipe = Ppo if stage is ppo else Grpo
        stage.run(recipe.model_validate({**settings, **changed}), tmp_path / out)
        rows = tiny.lines(tmp_path / out / "metrics.jsonl")
        return [{name: v for name, v in row.items() if not name.startswith(tiny.CLOCKS)} for row in rows]

    return go


def without_staleness(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: v for name, v in row.items() if name != "sampling/staleness"} for row in rows]


def by_hand(self: Ahead, step: int) -> tuple[Any, Llama, Laps]:
    """Whom a plain loop would ask: it keeps a copy of the policy at every step; the last but one answers."""
    laps = Laps()
    versions: list[Llama] = self.__dict__.setdefault("versions", [])
    actor = self.policy
    versions.append(deepcopy(actor))
    who = versions[max(0, step - 1)]
    self.engine = Engine(who, stop_id=self.engine.stop_id, pad_id=self.engine.pad_id)
    rollouts = self.ask(step, self.samples)
    laps.end("generation")
    return rollouts, who, laps


# ------------------------------------------------------------------------------ what is computed


@pytest.mark.parametrize(
    "changed",
    [{}, {"lora": {"rank": 4}, "kl_coef": 0.5, "epochs": 2, "kl_in": "loss"}],
    ids=["whole", "adapters"],
)
def test_each_step_learns_from_what_the_policy_said_a_step_before(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    rows = run("ahead", **changed)
    assert [row["sampling/staleness"] for row in rows] == [0.0, 1.0, 1.0]
    usual = run("usual", one_step_off=False, **changed)
    assert not any("sampling/staleness" in row for row in usual)
    assert without_staleness(rows)[0] == usual[0]
    assert without_staleness(rows)[1] != usual[1]
    monkeypatch.setattr(Ahead, "newest", by_hand)
    assert run("hand", one_step_off=False, **changed) == without_staleness(rows)
    assert (
        tiny.weight_files(tmp_path / "ahead")
        == tiny.weight_files(tmp_path / "hand")
        != tiny.weight_files(tmp_path / "usual")
    )


def test_ratios_are_those_of_the_policy_as_it_is_and_as_it_answered(run: Run) -> None:
    """With one update a step they are 1 on policy. Who answered is who is held against the sampler; and where
    the two are said to differ, it is read again, not the policy that has learned since."""
    one = {"minibatches": 1}
    usual = run("usual", one_step_off=False, **one)
    assert all(row["policy/approxkl_avg"] < 1e-8 for row in usual)
    rows, again = run("ahead", **one), run("again", sampler_tolerance=0.0, **one)
    assert rows[0]["policy/approxkl_avg"] < 1e-8
    for row, other in zip(rows[1:], again[1:], strict=True):
        assert row["policy/approxkl_avg"] > 1e-4
        assert abs(row["val/ratio"] - 1) > 1e-4
        assert row["sampling/sampling_logp_difference/max"] < 1e-5
        assert (row["sampling/recomputed"], other["sampling/recomputed"]) == (0.0, 1.0)
        assert other["policy/approxkl_avg"] == pytest.approx(row["policy/approxkl_avg"], rel=1e-2)


def test_a_run_that_broke_off_goes_on_to_the_same_bytes(run: Run, stage: ModuleType, tmp_path: Path) -> None:
    """While answers are drawn, which are drawn again. GRPO's policy has adapters and is asked elsewhere."""
    settings: dict[str, Any] = {"steps": 5, "compute": Training(threads=2, checkpoint_every=2)}
    if stage is grpo:
        settings |= {"lora": {"rank": 4}, "rollout_device": "cpu"}
    tiny.goes_on_to_the_same_bytes(partial(run, **settings), tmp_path, stage, "improve", 4, resumed=2)
    rows = tiny.lines(tmp_path / "broken" / "metrics.jsonl")
    assert [row["sampling/staleness"] for row in rows] == [0.0, 1.0, 1.0, 1.0, 1.0]


@only_ppo
def test_the_best_weights_are_those_that_answered_best(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before, kept = list[torch.Tensor](), dict[int, torch.Tensor]()
    learn, look = ppo.improve, ppo.Best.look

    def improve(recipe: Ppo, step: int, experience: Any, learner: ppo.Learner, corpus: Any) -> Any:
        before.append(tiny.weights(learner.actor))
        return learn(recipe, step, experience, learner, corpus)

    def looked(self: ppo.Best, step: int, *rest: Any) -> bool:
        ends = look(self, step, *rest)
        kept[step] = tiny.weights(self.kept)
        return ends

    monkeypatch.setattr(ppo, "improve", improve)
    monkeypatch.setattr(ppo.Best, "look", looked)
    rule = {"watch": [LENGTH], "stop_rule": {"watch": "length", "window": 1, "patience": 9}}
    rows = run("out", steps=5, max_tokens=8, **rule)
    seen = [row["watch/length/mean"] for row in rows]
    best = [max(range(step + 1), key=seen.__getitem__) for step in range(5)]
    assert max(best) > 0  # else nothing that was learned was ever kept
    assert all(torch.equal(kept[step], before[max(0, best[step] - 1)]) for step in range(5))


# ------------------------------------------------------------------------------ at once


def slow(monkeypatch: pytest.MonkeyPatch, where: Any, name: str) -> None:
    """Lets a function take longer than all else in a step."""
    real = getattr(where, name)

    def late(*args: Any) -> Any:
        time.sleep(0.1)
        return real(*args)

    monkeypatch.setattr(where, name, late)


def test_whichever_is_slow_the_bits_are_the_same(run: Run, stage: ModuleType, tmp_path: Path) -> None:
    rows = dict[str, Any]()
    for name, where in (("_draw", Ahead), ("improve", stage)):
        with pytest.MonkeyPatch.context() as patch:
            slow(patch, where, name)
            rows[name] = run(name, compute=TWO)
    assert rows["_draw"] == rows["improve"]
    assert tiny.weight_files(tmp_path / "_draw") == tiny.weight_files(tmp_path / "improve")
    assert torch.get_num_threads() == 2


def test_answers_are_drawn_while_the_policy_learns(
    run: Run, stage: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for the other, in all steps but the last, after which there is nothing to draw."""
    meet, drawn = threading.Barrier(2), list[int]()
    learn, draw = stage.improve, Ahead._draw

    def improve(recipe: Any, step: int, *rest: Any) -> Any:
        if step < 2:
            meet.wait(20)
        return learn(recipe, step, *rest)

    def _draw(self: Ahead, step: int) -> Any:
        drawn.append(step)
        if step > 0:
            meet.wait(20)
        return draw(self, step)

    monkeypatch.setattr(stage, "improve", improve)
    monkeypatch.setattr(Ahead, "_draw", _draw)
    run("out", compute=TWO)
    assert drawn == [0, 1, 2]


@only_ppo
def test_policy_and_critic_learn_at_once_while_answers_are_drawn(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three things at once: the critic does not wait for a helper that draws answers."""
    learned = threading.Event()
    judge, draw = ppo.critic_loss_of, Ahead._draw

    def critic_loss_of(*args: Any) -> Any:
        learned.set()
        return judge(*args)

    def _draw(self: Ahead, step: int) -> Any:
        assert step == 0 or learned.wait(20)
        learned.clear()
        return draw(self, step)

    monkeypatch.setattr(ppo, "critic_loss_of", critic_loss_of)
    monkeypatch.setattr(Ahead, "_draw", _draw)
    run("out", compute=Training(threads=4, checkpoint_every=0))
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("threads", [1, 2])
def test_what_goes_wrong_while_drawing_ends_the_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    real = Ahead.ask

    def ask(self: Ahead, step: int, samples: int = 1) -> Any:
        if step == 2:
            raise UsageError("no more paper")
        return real(self, step, samples)

    monkeypatch.setattr(Ahead, "ask", ask)
    with pytest.raises(UsageError, match="no more paper"):
        run("out", compute=Training(threads=threads, checkpoint_every=0))
    assert not (tmp_path / "out" / "MANIFEST.json").exists()
    assert len(tiny.lines(tmp_path / "out" / "metrics.jsonl")) == 1
    assert torch.get_num_threads() == threads


# ------------------------------------------------------------------------------ elsewhere


@only_ppo
def test_a_device_of_its_own_changes_no_bit(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it is the one there is. Answers come from another copy, what they are held against does not."""
    real, asked = Ahead._draw, list[bool]()

    def _draw(self: Ahead, step: int) -> Any:
        asked.append(self.engine.model is self.policy)
        return real(self, step)

    monkeypatch.setattr(Ahead, "_draw", _draw)
    assert run("there", rollout_device="cpu") == run("here")
    assert asked == [False] * 3 + [True] * 3
    assert tiny.weight_files(tmp_path / "there") == tiny.weight_files(tmp_path / "here")


@only_ppo
def test_what_makes_no_sense_is_refused(run: Run) -> None:
    with pytest.raises(UsageError, match="rollout_device changes nothing by itself"):
        run("out", one_step_off=False, rollout_device="cpu")
    with pytest.raises(UsageError, match="rollout_device=nowhere"):
        run("out", rollout_device="nowhere")
    with pytest.raises(UsageError, match="graphs do not go with one_step_off"):
        run("out", graphs=True)


def test_a_twin_shares_what_is_frozen_and_nothing_else(chat: Chat) -> None:
    for adapters in (True, False):
        model = tiny.language_model(chat.tokenizer.vocab_size, 0)
        if adapters:
            attach(model, Adapter(rank=2, alpha=4.0))
        copy, part = ahead.twin(model)
        for (name, own), other in zip(model.named_parameters(), copy.parameters(), strict=True):
            assert (own is other) == (adapters and "lora" not in name)
            assert own.requires_grad == (not adapters or "lora" in name)
            assert not other.requires_grad
        learns = {id(p) for p in part.parameters()}
        assert learns == {id(p) for n, p in copy.named_parameters() if not adapters or "lora" in n}
        apart, _ = ahead.twin(model, torch.device("cpu"))
        assert not {id(p) for p in model.parameters()} & {id(p) for p in apart.parameters()}
