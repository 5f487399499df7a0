"""Watching changes no bit of what a stage learns; the stop rule ends a run at the step it names and saves the
weights of the step it found best, after a kill in the middle too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from bloomery.errors import UsageError
from bloomery.evals.overoptimisation import Verdict
from bloomery.models import hub
from bloomery.stages import grpo, ppo, prefer_online
from bloomery.stages.common import Optimiser, Training
from bloomery.stages.grpo import Grpo
from bloomery.stages.ppo import Ppo
from bloomery.stages.prefer_online import PreferOnline
from bloomery.stages.stop import Best, StopRule
from bloomery.text.chat import Chat

ASKED = ["red", "what is best", "one two three", "tea"]
STEADY = Optimiser(learning_rate=0.003, schedule="constant", warmup=0, weight_decay=0.0)
WITNESS = {"kind": "length", "name": "held", "settings": {"most": 2}}
RULE = {"watch": "held", "window": 1, "share": 0.0, "patience": 2}


@pytest.fixture(scope="module")
def place(chat: Chat, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts, and two reward models that differ."""
    root = tmp_path_factory.mktemp("stop")
    for seed, name in ((7, "reward"), (8, "other")):
        model = tiny.scalar_model(chat.tokenizer.vocab_size, seed)
        hub.save(model, root / name, tokenizer_dir=tokenizer_dir)
    tiny.write_lines(root / "prompts.jsonl", [{"prompt": text} for text in ASKED])
    return root


@pytest.fixture
def run(place: Path, model_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """Runs PPO, tiny, into a directory of that name."""

    def go(name: str, **changed: Any) -> Path:
        settings = {
            **{"policy": model_dir, "reference": model_dir, "reward": place / "reward"},
            **{"prompts": (place / "prompts.jsonl",), "prompts_per_step": 4, "max_tokens": 4},
            **{"steps": 6, "epochs": 1, "optimiser": STEADY, "critic": STEADY, "compute": tiny.TRAINING},
        }
        ppo.run(Ppo.model_validate({**settings, **changed}), tmp_path / name)
        return tmp_path / name

    return go


def without_clocks(path: Path) -> list[dict[str, Any]]:
    rows = tiny.lines(path / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith(tiny.CLOCKS)} for row in rows]


@pytest.mark.parametrize(("stage", "kind"), [(ppo, Ppo), (grpo, Grpo), (prefer_online, PreferOnline)])
def test_what_is_watched_is_logged_and_teaches_nothing(
    place: Path, model_dir: Path, tmp_path: Path, stage: Any, kind: Any
) -> None:
    other = {"kind": "model", "name": "other", "settings": {"path": place / "other"}}
    settings = {"policy": model_dir, "reference": model_dir, "reward": place / "reward", "steps": 2}
    settings |= {"prompts": (place / "prompts.jsonl",), "prompts_per_step": 4, "max_tokens": 4}
    rows = {}
    for name, watch in (("plain", []), ("watched", [other, WITNESS])):
        recipe = kind.model_validate({**settings, "watch": watch, "compute": tiny.TRAINING})
        stage.run(recipe, tmp_path / name)
        rows[name] = without_clocks(tmp_path / name)
    seen = [{k: v for k, v in row.items() if k.startswith("watch/")} for row in rows["watched"]]
    assert all({"watch/other/mean", "watch/other/std", "watch/held/mean"} <= set(row) for row in seen)
    assert seen[0]["watch/other/mean"] != rows["plain"][0]["rewards/reward_model/mean"]
    assert rows["plain"] == [
        {k: v for k, v in row.items() if not k.startswith("watch/")} for row in rows["watched"]
    ]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in rows]
    assert weights[0] == weights[1]


def test_a_watched_model_says_what_it_would_say_as_the_reward(run: Callable[..., Path], place: Path) -> None:
    same = {"kind": "model", "name": "same", "settings": {"path": place / "reward"}}
    for row in tiny.lines(run("out", watch=[same], steps=2) / "metrics.jsonl"):
        assert row["watch/same/mean"] == row["rewards/reward_model/mean"]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], None]:
    """Lets the rule see a proxy that rises and a witness as it is told."""

    def tell(witness: list[float]) -> None:
        real = Best.look

        def look(self: Best, step: int, metrics: Any, memory: dict[str, Any]) -> bool:
            seen = {"objective/scores": float(step), "watch/held/mean": witness[step]}
            seen["objective/kl"] = float(step)
            return real(self, step, {**metrics, **seen}, memory)

        monkeypatch.setattr(Best, "look", look)

    return tell


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_the_run_ends_and_the_best_steps_weights_are_saved(
    run: Callable[..., Path], told: Any, lora: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = "model.safetensors" if lora is None else "adapter_model.safetensors"
    once = run("once", steps=2, lora=lora)  # the weights that answer at step 2
    told([0.0, 1.0, 3.0, 2.0, 2.0, 9.0])
    stopped = run("stopped", watch=[WITNESS], stop_rule=RULE, lora=lora)
    assert [row["step"] for row in tiny.lines(stopped / "metrics.jsonl")] == [0, 1, 2, 3, 4]
    assert (stopped / weights).read_bytes() == (once / weights).read_bytes()
    assert (
        "step 4: watch/held kept pace with the score until step 2, whose weights are saved"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"budget": 2.5, "window": 1}, "the mean KL of its window was within 2.5 nats until step 2"),
        # The witness was higher at step 0, before half of the budget was spent.
        ({**RULE, "budget": 2.0}, "between 1 and 4 nats watch/held did best beside the score at step 2"),
    ],
)
def test_a_budget_ends_a_run_or_says_where_the_witness_is_heard(
    run: Callable[..., Path], told: Any, rule: Any, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    once = run("once", steps=2)
    told([9.0, 1.0, 3.0, 2.0, 2.0, 9.0])
    stopped = run("stopped", watch=[WITNESS], stop_rule=rule)
    assert len(tiny.lines(stopped / "metrics.jsonl")) < 6
    assert (stopped / "model.safetensors").read_bytes() == (once / "model.safetensors").read_bytes()
    assert f"{reason}, whose weights are saved" in capsys.readouterr().err


def test_a_rule_that_does_not_end_the_run_changes_no_bit(
    run: Callable[..., Path], told: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = run("plain")
    told([0.0, 1.0, 3.0, 2.0, 4.0, 3.0])
    whole = run("whole", watch=[WITNESS], stop_rule=RULE)
    assert (whole / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    assert len(tiny.lines(whole / "metrics.jsonl")) == 6
    assert "did not end this run: the last weights are saved" in capsys.readouterr().err


@pytest.mark.parametrize("call", [3, 4])
def test_a_run_that_broke_off_stops_at_the_same_step_with_the_same_bytes(
    run: Callable[..., Path], told: Any, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Broken off after the best step: its weights come from the checkpoint."""
    told([0.0, 3.0, 1.0, 2.0, 2.0, 2.0])
    how = {"watch": [WITNESS], "stop_rule": RULE, "compute": Training(threads=1, checkpoint_every=1)}
    whole = run("whole", **how)
    with monkeypatch.context() as patch:
        tiny.break_off(patch, ppo, "improve", call)
        with pytest.raises(MemoryError):
            run("broken", **how)
    broken = run("broken", **how)
    assert without_clocks(broken) == without_clocks(whole)
    assert len(without_clocks(whole)) == 4
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_the_log_tells_afterwards_what_the_run_was_told(run: Callable[..., Path]) -> None:
    rule = StopRule(watch="held", window=2, patience=1)
    out = run("out", watch=[WITNESS], stop_rule=rule, steps=12)
    rows = tiny.lines(out / "metrics.jsonl")
    assert len(rows) < 12
    assert rule.of(rows).stop == len(rows) - 1
    assert rule.of(rows[:-1]).stop is None


@pytest.mark.parametrize(
    ("changed", "differs"),
    [
        ({}, False),
        ({"window": 2}, True),
        ({"share": 0.0}, True),
        ({"patience": 3}, True),
        ({"watch": "b"}, True),
        ({"budget": 9.0}, True),
        ({"budget": 1.0}, False),
        ({"budget": 1.0, "watch": None}, True),
    ],
)
def test_every_setting_of_the_rule_counts(changed: dict[str, Any], differs: bool) -> None:
    rows = [
        {"objective/scores": float(i), "objective/kl": i / 2, "watch/a/mean": a, "watch/b/mean": -a}
        for i, a in enumerate([0.0, 4.0, 4.25, 2.0, 3.0, 5.0])
    ]
    usual = Verdict(best=1, stop=3)  # less half of the score: 0, 3.5, 3.25, 0.5, 1, 2.5
    found = StopRule.model_validate({"watch": "a", "window": 1, "patience": 2, **changed}).of(rows)
    assert (found != usual) == differs


def test_settings_that_make_no_sense_are_refused(place: Path) -> None:
    def recipe(**changed: Any) -> Ppo:
        nowhere: dict[str, Any] = {name: Path("x") for name in ("policy", "reference", "reward")}
        return Ppo.model_validate({**nowhere, "prompts": ("x",), **changed})

    with pytest.raises(UsageError, match=r"'hold' is not watched.*'held'"):
        recipe(watch=[WITNESS], stop_rule={"watch": "hold"})
    with pytest.raises(UsageError, match="not watched"):
        recipe(stop_rule={"watch": "held"})
    with pytest.raises(UsageError, match="nothing to go by"):
        recipe(watch=[WITNESS], stop_rule={"window": 3})
    with pytest.raises(UsageError, match="the report card says not to optimise"):
        recipe(stop_rule={"budget": 0.0})
    for name in ("share", "patience"):
        with pytest.raises(UsageError, match=f"stop_rule.{name} changes nothing without a witness"):
            recipe(stop_rule={"budget": 1.0, name: 3})
    assert recipe(stop_rule={"budget": 1.0, "share": 0.5, "window": 3}).stop_rule is not None
    for useless in ({"weight": 2.0}, {"clip": 1.0}):
        with pytest.raises(UsageError, match="'held' is only watched"):
            recipe(watch=[{**WITNESS, **useless}])
