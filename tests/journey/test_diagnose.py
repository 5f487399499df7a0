"""Each condition against a run with its disease planted just beyond the threshold and just short of it, and
against real healthy runs; our, TRL's and OpenRLHF's files read alike; what the command prints and returns."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import sick
import yaml
from sick import Run

from bloomery.cli import main
from bloomery.errors import BloomeryError, UsageError
from bloomery.journey import diagnose as doctor
from bloomery.journey.diagnose import CONDITIONS, Table, reference
from bloomery.journey.diagnose.finding import Finding, condition, plain
from bloomery.journey.diagnose.table import LOOKED_AT, Column, columns_of, common_name
from bloomery.stages import STAGES

ROOT = Path(__file__).parent.parent.parent
HEALTHY = sorted({(step, c.seed) for step in reference.steps() for c in reference.read_step(step)})


def found_in(path: Path) -> list[str]:
    return [finding.condition for one in doctor.diagnose(path) for finding in one.findings]


# ------------------------------------------------------------------------------ healthy runs


@pytest.mark.parametrize(("step", "seed"), HEALTHY)
def test_nothing_is_found_in_real_runs(step: str, seed: int, tmp_path: Path) -> None:
    assert found_in(sick.default(step, seed).write(tmp_path / step)) == []


@pytest.mark.parametrize(("name", "seed"), sick.methods())
def test_nothing_is_found_in_real_runs_of_other_methods(name: str, seed: int, tmp_path: Path) -> None:
    assert found_in(sick.method(name, seed).write(tmp_path / name)) == []


def test_what_learns_has_healthy_runs_of_three_seeds() -> None:
    names = {"dpo", "robust-dpo", "kto", "online-dpo", "grpo", "rloo", "rejection", "process"}
    assert set(sick.methods()) == {(name, seed) for name in names for seed in (0, 1, 2)}
    assert set(HEALTHY) == {(step, seed) for step in reference.SECTIONS for seed in (0, 1, 2)}


@pytest.mark.parametrize("make", [sick.grpo, sick.prefer, sick.robust])
def test_nothing_is_found_in_made_up_healthy_runs(make: Callable[[], Run], tmp_path: Path) -> None:
    assert found_in(make().write(tmp_path / "run")) == []


# ------------------------------------------------------------------------------ planted diseases


@dataclass(frozen=True)
class Case:
    """`plant(run, sick)` makes the condition fire and nothing else; `plant(run, well)` makes nothing fire."""

    condition: str
    make: Callable[[], Run]
    plant: Callable[[Run, float], None]
    sick: float
    well: float


def base() -> Run:
    return sick.default("base")


def sft() -> Run:
    return sick.default("sft")


def reward() -> Run:
    return sick.default("reward-1")


def ppo() -> Run:
    return sick.default("ppo-1")


def last_rows(run: Run, name: str, count: float, value: float | None) -> None:
    for row in [row for row in run.rows if name in row][-int(count) :]:
        row[name] = value


def grows(name: str) -> Callable[[Run, float], None]:
    return lambda run, factor: run.grow(name, factor)


def times(name: str, start: float = 0.0) -> Callable[[Run, float], None]:
    return lambda run, factor: run.change(name, lambda old, at: old * factor, start)


def always(name: str, start: float = 0.0) -> Callable[[Run, float], None]:
    return lambda run, value: run.change(name, lambda old, at: value, start)


def shifts(name: str) -> Callable[[Run, float], None]:
    return lambda run, by: run.change(name, lambda old, at: old + by * min(1.0, (at - 0.6) / 0.2), 0.6)


def not_finite(run: Run, value: float) -> None:
    run.rows[30]["lr"] = value


def skipped(run: Run, count: float) -> None:
    run.state["skipped_updates"] = int(count)


def unsealed(run: Run, yes: float) -> None:
    run.sealed = not yes


def frozen(run: Run, count: float) -> None:
    last_rows(run, "loss", count, 0.25)


def loss_of_zero(run: Run, norm: float) -> None:
    """On policy, without a divergence, GRPO's loss is 0 in every row; it is stuck only if its gradient is."""
    run.change("loss", lambda old, at: 0.0)
    run.change("grad_norm", lambda old, at: norm or old)


def flat_loss(run: Run, end: float) -> None:
    run.change("loss", lambda old, at: 1.5 * (1 + (end - 1) * at) + 0.01 * (old - 0.5))


def below_zero(run: Run, share: float) -> None:
    """From -0.5 down by a share of 0.5."""
    run.change("loss", lambda old, at: -0.5 * (1 + share * at) + 0.0001 * old)


def bump(run: Run, row: int, by: float) -> None:
    run.rows[row]["loss"] += by


def exploded(run: Run, factor: float) -> None:
    """Healthy in its first row, at a height of its own from the second on; the slow fall is no comfort."""
    run.change("loss", lambda old, at: 5.0 if at == 0 else 5.0 * factor * (1.3 - 0.3 * at))


def spike(run: Run, factor: float) -> None:
    run.rows[70]["train/loss"] *= factor


def one_step_without_tokens(run: Run, yes: float) -> None:
    run.rows[10]["num_tokens"] = 0 if yes else 1


def zero_loss(run: Run, share: float) -> None:
    for i, row in enumerate(run.rows):
        row["loss"] *= i % 10 >= 10 * share


def accuracy_lost(run: Run, by: float) -> None:
    best = max(row["eval_accuracy"] for row in run.rows if "eval_accuracy" in row)
    [row for row in run.rows if "eval_accuracy" in row][-1]["eval_accuracy"] = best - by


def card(half: float, **usual: float) -> Callable[[Run, float], None]:
    """A report card whose interval of accuracy is `half` wide on either side."""

    def put(run: Run, low: float) -> None:
        run.card = {"accuracy": low + half, "low": low, **usual}

    return put


def spread(run: Run, width: float) -> None:
    run.change("max_reward", lambda old, at: old + width * min(1.0, (at - 0.5) / 0.3), 0.5)


def loose(run: Run, coefficient: float) -> None:
    run.change("objective/kl_coef", lambda old, at: coefficient)
    run.change("objective/kl", lambda old, at: 1.2 * at)


def per_answer_only(run: Run, kl: float) -> None:
    for row in run.rows:
        for name in ("objective/kl_k1", "completions/mean_length"):
            row.pop(name, None)
    run.change("objective/kl", lambda old, at: kl * at)


def per_token_from_length(run: Run, kl: float) -> None:
    for row in run.rows:
        row.pop("objective/kl_k1", None)
    run.change("objective/kl", lambda old, at: 9 * kl)
    run.change("completions/mean_length", lambda old, at: 9.0)


def wide_ratio(run: Run, variance: float) -> None:
    run.change("val/ratio_var", lambda old, at: variance, 0.7)


def stops(run: Run, share: float) -> None:
    for i, row in enumerate(run.rows):
        row["policy/stopped_early"] = float(i < share * len(run.rows))


def in_fp32(run: Run, difference: float) -> None:
    run.settings["compute"] = {"precision": "fp32"}
    run.change("sampling/sampling_logp_difference/mean", lambda old, at: difference)


def flat_critic(run: Run, explained: float) -> None:
    run.change("loss/value_avg", lambda old, at: 2.0 + 0.01 * old)
    run.change("explained_variance", lambda old, at: explained)


def rising_critic_loss_alone(run: Run, rise: float) -> None:
    for row in run.rows:
        del row["explained_variance"]
    run.change("loss/value_avg", lambda old, at: 2.0 + rise * at + 0.05 * old)


def gradients(run: Run, text: float) -> None:
    run.add("grad_norm/ptx", lambda at: text)
    run.add("grad_norm/ppo", lambda at: 1.0)


def gold_falls(run: Run, by: float) -> None:
    run.add(
        "gold/graded_reward", lambda at: 0.1 * (at * 39 % 2) + (at if at < 0.5 else 0.5 - by * (at - 0.5))
    )


def watched_falls(run: Run, by: float) -> None:
    """A judge that does not mind stands first, and so do two spreads that fall without meaning anything."""
    for name, drop in (("calm", 0.0), ("held-out", by)):
        run.add(
            f"watch/{name}/mean",
            lambda at, drop=drop: 0.1 * (at * 39 % 2) + (at if at < 0.5 else 0.5 - drop * (at - 0.5)),
        )
        run.add(f"watch/{name}/std", lambda at: 2.0 - at)
        run.add(f"watch/{name}/disagreement", lambda at: 1.0 - at)


def noisy_constant_score(run: Run, noise: float) -> None:
    run.change("objective/scores", lambda old, at: 0.5 + noise * old)


def ends(run: Run, count: float) -> None:
    for row in run.rows:
        del row["completions/clipped_ratio"]
    run.change("val/num_eos_tokens", lambda old, at: count, 0.5)


CASES = [
    Case("not-finite", base, not_finite, nan, 0.002),
    Case("not-finite", base, not_finite, -inf, 0.002),
    Case("not-finite", base, skipped, 1, 0),
    Case("unfinished", base, unsealed, 1, 0),
    Case("frozen", sft, frozen, 10, 9),
    Case("frozen", sick.grpo, loss_of_zero, 0.4, 0.0),
    Case("dead-learning-rate", sft, lambda run, n: last_rows(run, "learning_rate", n, 0.0), 10, 9),
    Case("dead-learning-rate", ppo, lambda run, n: last_rows(run, "lr", n, 0.0), 40, 3),
    Case("gradient-exploding", ppo, grows("grad_norm"), 13, 7),
    Case("gradient-vanishing", base, times("grad_norm"), 1e-6, 1e-5),
    Case("gradient-always-clipped", sft, times("grad_norm"), 20, 9),
    Case(
        "throughput-collapse",
        ppo,
        lambda run, n: run.add("rollout/tok_per_sec", lambda at: 3000 if at < 0.6 else 3000 / n),
        3.2,
        2.8,
    ),
    Case("throughput-collapse", sick.grpo, times("step_time", 0.6), 3.2, 2.8),
    Case("loss-not-falling", sft, flat_loss, 0.99, 0.97),
    Case("loss-diverging", base, grows("train/loss"), 1.7, 1.3),
    Case("loss-diverging", sft, exploded, 2.2, 1.8),
    Case("loss-spikes", base, spike, 2.5, 1.3),
    Case("loss-diverging", sick.robust, shifts("loss"), 1.2, 0.3),
    Case("loss-not-falling", sick.robust, below_zero, 0.01, 0.05),
    Case("loss-spikes", sick.robust, lambda run, by: bump(run, 57, by), 3.0, 0.5),
    Case("overfit", sick.robust, shifts("eval_loss"), 0.5, 0.1),
    Case("overfit", sft, grows("eval_loss"), 1.3, 1.01),
    Case("overfit", sick.prefer, grows("eval_loss"), 1.6, 1.1),
    Case("held-out-bits-rising", base, grows("val/bpb"), 1.2, 1.1),
    Case("nothing-trained", sft, one_step_without_tokens, 1, 0),
    Case("nothing-trained", sick.prefer, zero_loss, 0.6, 0.4),
    Case("forgets-text", sft, grows("loss/replay"), 1.4, 1.2),
    Case("preference-overfit", reward, accuracy_lost, 0.035, 0.025),
    Case("preference-overfit", reward, shifts("accuracy"), 0.2, 0.1),
    Case("preference-chance", reward, card(0.06, length_baseline=0.3), 0.495, 0.505),
    Case("preference-chance", reward, card(0.01, length_baseline=0.3), 0.535, 0.545),
    Case("preference-chance", sick.prefer, always("eval_rewards/accuracies"), 0.54, 0.56),
    Case("reward-length-only", reward, card(0.04, length_baseline=0.62), 0.61, 0.63),
    Case("reward-scale", reward, spread, 80, 10),
    Case("chosen-falls", sick.prefer, grows("logps/chosen"), 1.35, 1.2),
    Case("kl-negative", ppo, always("objective/kl"), -0.06, -0.04),
    Case("kl-exploding", ppo, always("objective/kl_k1", 0.5), 1.1, 0.9),
    Case("kl-exploding", ppo, per_token_from_length, 1.1, 0.9),
    Case("kl-exploding", ppo, per_answer_only, 60, 50),
    Case("kl-exploding", sick.grpo, always("kl", 0.5), 1.1, 0.9),
    Case("no-leash", ppo, loose, 0.0, 0.01),
    Case("ratio-off", ppo, lambda run, by: run.change("val/ratio", lambda old, at: 1 + by, 0.8), 0.11, 0.09),
    Case("ratio-off", ppo, lambda run, by: run.change("val/ratio", lambda old, at: 1 - by, 0.8), 0.11, 0.09),
    Case("ratio-off", ppo, wide_ratio, 0.6, 0.4),
    Case("ratio-off", ppo, lambda run, n: last_rows(run, "val/ratio", n, 1.5), 4, 3),
    Case("clip-fraction-high", ppo, always("policy/clipfrac_avg", 0.75), 0.32, 0.28),
    Case("clip-fraction-high", sick.grpo, always("clip_ratio/region_mean", 0.75), 0.32, 0.28),
    Case("always-stopped-early", ppo, stops, 0.91, 0.85),
    Case("sampler-mismatch", ppo, always("sampling/sampling_logp_difference/mean"), 0.021, 0.019),
    Case("sampler-mismatch", ppo, in_fp32, 0.0011, 0.0009),
    Case("value-loss-not-falling", ppo, flat_critic, 0.25, 0.35),
    Case("value-loss-not-falling", ppo, rising_critic_loss_alone, 1.0, -0.02),
    Case("explained-variance-negative", ppo, always("explained_variance", 0.5), -0.01, 0.01),
    Case("ptx-drowns-policy", ppo, gradients, 21, 19),
    Case("over-optimised", ppo, gold_falls, 1.0, 0.05),
    Case("over-optimised", ppo, watched_falls, 1.0, 0.05),
    Case("reward-falling", ppo, shifts("objective/scores"), -1.0, -0.3),
    Case("constant-reward", ppo, noisy_constant_score, 0.0, 0.01),
    Case("constant-reward", sick.grpo, times("reward_std"), 0.0, 0.01),
    Case("zero-variance-groups", sick.grpo, always("frac_reward_zero_std", 0.5), 0.82, 0.78),
    Case("entropy-collapse", ppo, grows("policy/entropy_avg"), 0.2, 0.4),
    Case("entropy-explosion", ppo, grows("policy/entropy_avg"), 4.5, 3.0),
    Case("length-growth", ppo, grows("completions/mean_length"), 1.7, 1.4),
    Case("length-collapse", ppo, grows("completions/mean_length"), 0.45, 0.6),
    Case("eos-never", ppo, ends, 0, 1),
    Case("eos-never", ppo, always("completions/clipped_ratio", 0.5), 0.96, 0.1),
    Case("answers-cut-off", ppo, always("completions/clipped_ratio", 0.5), 0.31, 0.29),
    Case("answers-cut-off", ppo, always("completions/clipped_ratio", 0.5), 0.94, 0.2),
]


@pytest.mark.parametrize(("calm", "falls"), [("a", "b"), ("b", "a")])
def test_of_several_judges_the_worst_is_named(calm: str, falls: str) -> None:
    """One falls by 0.2, the other by 1.0, with the same noise; both are clear."""
    rows = [
        (
            i,
            {"objective/scores": i + 0.1 * (i % 2)}
            | {
                f"watch/{name}/mean": 0.01 * (i % 2) - max(0, i - 20) * drop / 40
                for name, drop in ((calm, 0.2), (falls, 1.0))
            },
        )
        for i in range(60)
    ]
    (finding,) = doctor.examine(Table(name="x", stage="ppo", rows=60, columns=columns_of(rows))).findings
    assert finding.condition == "over-optimised"
    assert finding.shown is not None
    assert finding.shown.name == f"watch/{falls}/mean"


@pytest.mark.parametrize("case", CASES, ids=[f"{i}-{c.condition}" for i, c in enumerate(CASES)])
def test_a_planted_disease_is_found_and_a_lesser_one_is_not(case: Case, tmp_path: Path) -> None:
    well, ill = case.make(), case.make()
    case.plant(well, case.well)
    assert found_in(well.write(tmp_path / "well")) == []
    case.plant(ill, case.sick)
    (one,) = doctor.diagnose(ill.write(tmp_path / "ill"))
    assert [finding.condition for finding in one.findings] == [case.condition]
    (finding,) = one.findings
    assert finding.what.endswith(".")
    assert any(character.isdigit() for line in finding.evidence for character in line) or not ill.sealed
    assert finding.advice
    assert "nan" not in "".join(finding.evidence)


EVALUATED = {"over-optimised": ("proxy_reward", "graded_reward"), "alignment-tax": ()}


def evaluation(proxy: float, gold: float, bits: float) -> dict[str, Any]:
    def cell(mean: float) -> dict[str, float]:
        return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05}

    sampled = {"proxy_reward": cell(proxy), "graded_reward": cell(gold)}
    return {"sampled": sampled, "greedy": sampled, "bpb": {"all": cell(bits)}}


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (evaluation(0.6, 0.3, 0.27), []),
        (evaluation(0.6, 0.14, 0.27), ["over-optimised"]),
        (evaluation(0.6, 0.16, 0.27), []),
        (evaluation(0.05, 0.1, 0.27), []),
        (evaluation(0.6, 0.3, 0.28), ["alignment-tax"]),
    ],
)
def test_evaluations_of_a_journey_say_what_curves_do_not(
    after: dict[str, Any], expected: list[str], tmp_path: Path
) -> None:
    out = journey(tmp_path / "out", after)
    assert found_in(out) == expected


def journey(out: Path, after: dict[str, Any]) -> Path:
    """A journey of which the second step of PPO is being made."""
    steps = []
    for name, run in (
        ("sft", sft()),
        ("evaluate-sft", Run("evaluate", [], card=evaluation(0.1, 0.2, 0.25))),
        ("ppo-1", ppo()),
        ("evaluate-rl-1", Run("evaluate", [], card=after)),
    ):
        directory = f"stages/{name}-0123456789ab"
        run.write(out / directory)
        steps.append({"name": name, "stage": run.stage, "directory": directory})
    rest = {"key": "0123456789ab", "seconds": 1.0, "cached": False}
    (out / "journey.json").write_text(json.dumps({"steps": [{**step, **rest} for step in steps]}))
    return out


def test_a_step_that_a_journey_did_not_finish_is_found(tmp_path: Path) -> None:
    out = journey(tmp_path / "out", evaluation(0.6, 0.3, 0.27))
    run = ppo()
    run.rows, run.sealed = run.rows[:7], False
    run.write(out / "stages" / "ppo-2-0123456789ab")
    again = sft()  # an old attempt at a step that is finished by now is nobody's concern
    again.sealed = False
    again.write(out / "stages" / "sft-ba9876543210")
    found = doctor.diagnose(out)
    assert [one.table.name for one in found] == ["sft", "ppo-1", "ppo-2"]
    assert [len(one.findings) for one in found] == [0, 0, 1]
    assert found[2].findings[0].condition == "unfinished"
    assert found[2].short
    assert not found[0].short


def test_a_run_that_is_still_at_work_is_not_called_unfinished(tmp_path: Path) -> None:
    run = sft()
    run.sealed = False
    path = run.write(tmp_path / "run")
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        (one,) = doctor.diagnose(path)
    finally:
        os.close(handle)
    assert (one.table.status, one.findings) == ("running", ())
    assert found_in(path) == ["unfinished"]


def test_every_condition_has_a_disease() -> None:
    assert {case.condition for case in CASES} | set(EVALUATED) == set(CONDITIONS)
    assert len(CONDITIONS) >= 40


def test_every_condition_says_what_it_looks_for_and_names_stages_that_exist() -> None:
    known = {"unknown", *STAGES}
    for name in CONDITIONS:
        one = CONDITIONS[name]
        assert (one.look.__doc__ or "").strip().endswith("."), name
        assert set(one.stages) <= known, name


def test_conditions_of_other_stages_are_not_asked() -> None:
    asked: list[str] = []

    def look(table: Table) -> Finding | None:
        asked.append(table.stage)
        return None

    condition("only for a test", "ppo")(look)
    try:
        for stage in ("sft", "ppo", "pretrain"):
            doctor.examine(Table("x", stage))
    finally:
        CONDITIONS._parts.pop("only for a test")
    assert asked == ["ppo"]


def test_nothing_is_said_of_a_run_that_is_too_short(tmp_path: Path) -> None:
    """Nine rows of a disease that fills every row."""
    run = ppo()
    run.rows = run.rows[:9]
    run.change("objective/kl", lambda old, at: -1.0)
    run.change("policy/entropy_avg", lambda old, at: 1 - at)
    assert found_in(run.write(tmp_path / "run")) == []


# ------------------------------------------------------------------------------ what others log


def trainer_state(path: Path, run: Run, **more: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    summary = {"train_loss": 0.4, "train_runtime": 12.0, "total_flos": 1e12, "step": 99}
    tree = {"log_history": [*run.rows, summary], "global_step": 99, **more}
    (path / "trainer_state.json").write_text(json.dumps(tree))  # NaN as transformers writes it
    return path


def test_a_trainer_state_of_trl(tmp_path: Path) -> None:
    (one,) = doctor.diagnose(trainer_state(tmp_path / "sft", sft()))
    assert (one.table.stage, one.table.status, one.findings) == ("sft", "unknown", ())
    ill = sft()
    ill.grow("eval_loss", 1.3)
    ill.rows[40]["grad_norm"] = nan
    assert found_in(trainer_state(tmp_path / "ill", ill)) == ["not-finite", "overfit"]
    history = tmp_path / "history.json"
    history.write_text(json.dumps(ill.rows))
    assert found_in(history) == ["not-finite", "overfit"]
    for make, stage in ((sick.grpo, "grpo"), (sick.prefer, "prefer"), (ppo, "ppo"), (reward, "reward")):
        (one,) = doctor.diagnose(trainer_state(tmp_path / stage, make()) / "trainer_state.json")
        assert (one.table.name, one.table.stage, one.findings) == (stage, stage, ())


def test_the_newest_checkpoint_of_a_trl_directory(tmp_path: Path) -> None:
    ill = sick.grpo()
    ill.change("kl", lambda old, at: 3.0)
    trainer_state(tmp_path / "out" / "checkpoint-9", sick.grpo())
    trainer_state(tmp_path / "out" / "checkpoint-10", ill)
    assert found_in(tmp_path / "out") == ["kl-exploding"]
    trainer_state(tmp_path / "out", sick.grpo())
    assert found_in(tmp_path / "out") == []


OPENRLHF = {
    "objective/scores": "reward",
    "objective/kl_k1": "kl",
    "loss/value_avg": "critic_loss",
    "loss/policy_avg": "policy_loss",
    "completions/mean_length": "response_length",
    "policy/clipfrac_avg": "ppo_clip_ratio",
    "policy/approxkl_avg": "ppo_kl",
    "lr": "actor_lr",
}


def test_lines_of_openrlhf(tmp_path: Path) -> None:
    """With the prefixes its loggers add; each disease is found under its other name."""

    def logged(run: Run) -> list[dict[str, Any]]:
        return [
            {"train/global_step": row["step"], **{f"train/{new}": row[old] for old, new in OPENRLHF.items()}}
            for row in run.rows
        ]

    path = sick.lines(tmp_path / "log.jsonl", logged(ppo()))
    (one,) = doctor.diagnose(path)
    assert (one.table.name, one.table.stage, one.table.rows, one.findings) == ("log", "ppo", 40, ())
    assert one.table.steps == 40
    for name, plant, value in (
        ("kl-exploding", always("objective/kl_k1"), 2.0),
        ("length-growth", grows("completions/mean_length"), 2.0),
        ("clip-fraction-high", always("policy/clipfrac_avg"), 0.5),
        ("reward-falling", shifts("objective/scores"), -2.0),
        ("dead-learning-rate", always("lr"), 0.0),
        ("value-loss-not-falling", grows("loss/value_avg"), 20.0),
    ):
        run = ppo()
        plant(run, value)
        assert found_in(sick.lines(tmp_path / "log.jsonl", logged(run))) == [name]
        assert found_in(tmp_path) == [name], "the one file of a directory"


def test_a_reward_model_of_openrlhf(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for i in range(40):
        at, wave = i / 40, 0.01 * (i % 3)
        train = {"loss": 0.7 - 0.3 * at + wave, "acc": 0.55 + 0.25 * at + wave, "chosen_reward": at}
        rows.append({"train/global_step": i, **{f"train/{k}": v for k, v in train.items()}})
        if i % 10 == 9:
            rows.append({"eval/global_step": i, "eval/eval_loss": 0.6, "eval/acc_mean": 0.72 - 0.1 * at})
    (one,) = doctor.diagnose(sick.lines(tmp_path / "rm.jsonl", rows))
    assert one.table.stage == "reward"
    assert [f.condition for f in one.findings] == ["preference-overfit"]
    assert "train/acc" in one.findings[0].evidence[1], "evidence uses the names of the file"


@pytest.mark.parametrize(
    ("logged", "common"),
    [
        ("train/loss", "loss"),
        ("train/bpb", "bpb"),
        ("val/bpb", "val/bpb"),
        ("eval/eval_loss", "eval_loss"),
        ("eval/eval gpt_loss", "eval_loss"),
        ("train/gpt_loss", "loss"),
        ("eval/acc_mean", "eval_accuracy"),
        ("train/actor_lr", "learning_rate"),
        ("policy/entropy_avg", "entropy"),
        ("anything", "anything"),
    ],
)
def test_names_of_the_same_quantity(logged: str, common: str) -> None:
    assert common_name(logged) == common


def test_columns() -> None:
    rows = [
        (0, {"loss": 1.0, "note": "text", "done": True, "list": [1]}),
        (1, {"loss": None, "lr": "NaN"}),
        (3, {"loss": 2, "train/loss": 9.0}),
    ]
    found = columns_of(rows)
    assert found == {
        "loss": Column("loss", (0, 3), (1.0, 2.0), (1,)),
        "learning_rate": Column("lr", (), (), (1,)),
    }


def test_parts_of_a_column() -> None:
    column = Column("x", tuple(range(10)), tuple(float(i) for i in range(10)))
    assert (column.head, column.tail) == (0.5, 8.5)
    assert column.fifths()[1] == (2.5, 0.5)
    # from 0.5 to 8.5; each of the two means has a standard error of 0.5
    assert column.moved() == pytest.approx(8 / 0.5**0.5)
    assert Column("x", (0,), (3.0,)).part(0.8, 1.0) == (3.0,)
    assert Column("x", (0, 1), (2.0, 2.0)).moved() == 0.0
    assert Column("x", (0, 1), (2.0, 1.0)).moved() == -inf


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.6392, "0.639"),
        (12.34, "12.3"),
        (4512.0, "4,512"),
        (999.4, "999"),
        (-999.7, "-1,000"),
        (3.2e-7, "3.2e-07"),
    ],
)
def test_numbers_in_sentences(value: float, text: str) -> None:
    assert plain(value) == text


def test_what_cannot_be_diagnosed_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "two").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / "two" / name).write_text('{"step": 0, "loss": 1.0}\n')
    (tmp_path / "none.jsonl").write_text("")
    for path in (tmp_path / "nowhere", tmp_path / "empty", tmp_path / "two", tmp_path / "none.jsonl"):
        with pytest.raises(UsageError):
            doctor.diagnose(path)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "lo\n')
    with pytest.raises(BloomeryError, match=r"bad\.jsonl:2"):
        doctor.diagnose(bad)
    bad.write_text("[1]\n")
    with pytest.raises(BloomeryError, match=r"bad\.jsonl:1"):
        doctor.diagnose(bad)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(BloomeryError, match="log_history"):
        doctor.diagnose(tmp_path / "state.json")


def test_a_last_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    path = sick.lines(tmp_path / "m.jsonl", sft().rows)
    with path.open("a") as file:
        file.write('{"step": 10000, "loss": 1e9')
    (one,) = doctor.diagnose(path)
    assert (one.table.rows, one.findings) == (len(sft().rows), ())


def test_a_last_line_without_a_newline_counts_where_it_is_whole(tmp_path: Path) -> None:
    path = sick.lines(tmp_path / "m.jsonl", sft().rows)
    path.write_text(path.read_text().rstrip("\n"))
    assert doctor.diagnose(path)[0].table.rows == len(sft().rows)


def test_columns_that_nobody_looks_at_are_not_called_healthy(tmp_path: Path) -> None:
    path = sick.lines(tmp_path / "m.jsonl", [{"step": i, "foo": 1.0, "bar": "x"} for i in range(20)])
    with pytest.raises(UsageError, match="no metric in this file") as refused:
        doctor.diagnose(path)
    assert "got: foo" in str(refused.value)


def test_every_column_that_a_condition_asks_for_is_known() -> None:
    asked = set[str]()

    class Nosy(dict[str, Column]):
        def __contains__(self, name: object) -> bool:
            asked.add(str(name))
            return super().__contains__(name)

    makes = (base, sft, reward, ppo, sick.grpo, sick.prefer)
    runs = [columns_of((row["step"], row) for row in make().rows) for make in makes]
    for stage in ("pretrain", "sft", "reward", "process", "prefer", "ppo", "grpo", "rejection", "unknown"):
        for columns in ({}, *runs):
            doctor.examine(Table("run", stage, 60, Nosy(columns)))
    assert len(asked) > 30
    assert asked - {"timing/step_total", "objective/scores_std"} <= LOOKED_AT


def test_numbers_written_as_text_are_numbers(tmp_path: Path) -> None:
    rows = [{name: str(v) if name != "step" else v for name, v in row.items()} for row in sft().rows]
    (one,) = doctor.diagnose(sick.lines(tmp_path / "m.jsonl", rows))
    (plain_one,) = doctor.diagnose(sick.lines(tmp_path / "n.jsonl", sft().rows))
    assert one.table.columns == plain_one.table.columns


def test_online_kto_s_divergence_is_of_whole_answers() -> None:
    def table(kl: float) -> Table:
        values = {"kl": kl, "completions/mean_length": 20.0, "reward": 1.0, "loss": 0.5}
        draw = [(i, {name: v * (1 + 0.01 * (i % 3)) for name, v in values.items()}) for i in range(40)]
        return Table("run", "prefer_online", 40, columns_of(draw))

    assert "kl-exploding" not in {one.condition for one in doctor.examine(table(15.0)).findings}
    assert "kl-exploding" in {one.condition for one in doctor.examine(table(25.0)).findings}


def test_process_reward_models_are_looked_at_as_well() -> None:
    def table(loss: Callable[[float], float], held_out: float) -> Table:
        rows = []
        for i in range(60):
            accuracy = {"accuracy": 0.6 + 0.3 * i / 59, "eval_accuracy": 0.85 - held_out * i / 59}
            rows.append((i, {"loss": loss(i / 59), **accuracy}))
        return Table("judge", "process", 60, columns_of(rows))

    def found(one: Table) -> set[str]:
        return {finding.condition for finding in doctor.examine(one).findings}

    assert found(table(lambda at: 0.7 - 0.4 * at, 0.0)) == set()
    assert "loss-diverging" in found(table(lambda at: 0.3 + 2 * at, 0.0))
    assert found(table(lambda at: 0.7 - 0.4 * at, 0.2)) == {"preference-overfit"}


# ------------------------------------------------------------------------------ reference curves


def test_reference_curves_are_small_and_of_three_seeds() -> None:
    assert set(reference.steps()) >= {"base", "sft", "reward-1", "ppo-1", "reward-2", "ppo-2"}
    assert {seed for _, seed in HEALTHY} == {0, 1, 2}
    data = ROOT / "src" / "bloomery" / "journey" / "reference"
    assert sum(path.stat().st_size for path in data.iterdir()) < 500_000


def test_normal_is_of_the_same_step_or_of_the_same_stage() -> None:
    kl = Column("objective/kl", (0,), (0.0,))
    assert reference.normal(Table("ppo-2", "ppo"), kl) == reference.curves("ppo-2", "objective/kl")
    assert reference.normal(Table("ppo-7", "ppo"), kl) == reference.curves("ppo-2", "objective/kl")
    assert reference.normal(Table("mine", "ppo"), kl) == reference.curves("ppo-1", "objective/kl")
    assert reference.normal(Table("mine", "grpo"), kl) == []
    loss = Column("loss", (0,), (0.0,))
    assert reference.normal(Table("x", "pretrain"), loss) == reference.curves("base", "train/loss") != []


def test_resampling_and_the_band_by_hand() -> None:
    column = Column("x", (0, 1, 2, 7), (1.0, 3.0, 5.0, 9.0))
    assert reference.resample(column, 4) == [2.0, 5.0, 5.0, 9.0]  # steps 0-1, 2-3, 4-5 (nearest: 2), 6-7
    other = replace(column, values=(2.0, 2.0, 2.0, 2.0))
    found = [reference.Curve(0, column), reference.Curve(1, other), reference.Curve(2, other)]
    assert reference.band(found, 2) == [(2.0, 2.0, 3.0), (2.0, 2.0, 9.0)]


def test_a_long_curve_is_thinned_and_rounded() -> None:
    column = Column("loss", tuple(range(1001)), tuple(1 / 3 + i for i in range(1001)))
    other = Column("timing/generation", (0,), (1.0,))
    (line,) = reference.lines(5, [column, other])
    assert (line["seed"], line["metric"], len(line["steps"])) == (5, "loss", 100)
    assert (line["steps"][0], line["steps"][-1], line["values"][0]) == (0, 1000, 0.3333)


def test_the_script_makes_the_files_and_refuses_a_sick_journey(tmp_path: Path) -> None:
    out = journey(tmp_path / "out", evaluation(0.6, 0.3, 0.27))
    (out / "recipe.yaml").write_text("seed: 4\nrounds: 1\n")
    command = [sys.executable, str(ROOT / "benchmarks" / "reference_curves.py"), str(out), "--out"]
    done = subprocess.run([*command, str(tmp_path / "made")], capture_output=True, text=True, check=True)
    assert "sft.jsonl: 8 curves" in done.stdout
    assert {path.name for path in (tmp_path / "made").iterdir()} == {
        "sft.jsonl",
        "ppo-1.jsonl",
        "recipe.yaml",
    }
    assert yaml.safe_load((tmp_path / "made" / "recipe.yaml").read_text()) == {"rounds": 1}
    first = json.loads((tmp_path / "made" / "sft.jsonl").read_text().split("\n")[0])
    assert first["seed"] == 4
    ill = journey(tmp_path / "ill", evaluation(0.6, -0.3, 0.27))
    (ill / "recipe.yaml").write_text("seed: 4\n")
    done = subprocess.run(
        [*command[:2], str(ill), "--out", str(tmp_path / "none")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, (tmp_path / "none").exists()) == (1, False)
    assert "ppo-1: over-optimised" in done.stdout


# ------------------------------------------------------------------------------ the command


def test_the_command_on_a_healthy_and_a_sick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    well = sft().write(tmp_path / "well")
    assert main(["diagnose", str(well)]) == 0
    said = capsys.readouterr().out
    assert "healthy" in said
    assert "\x1b" not in said
    run = sft()
    run.settings["epochs"] = 5.0
    run.grow("eval_loss", 1.3)
    ill = run.write(tmp_path / "ill")
    assert main(["diagnose", str(ill)]) == 1
    said = capsys.readouterr().out
    for word in (
        "1 finding",
        "ill: overfit",
        "eval_loss 0.",
        "evidence",
        "try",
        "epochs is 5.0",
        "yours",
        "normal",
    ):
        assert word in said
    assert main(["diagnose", str(tmp_path / "nowhere")]) == 2
    assert "no such run" in capsys.readouterr().err
    (tmp_path / "broken.jsonl").write_text('{"loss": 1.0}\n{"loss"\n')
    assert main(["diagnose", str(tmp_path / "broken.jsonl"), "--json"]) == 2, "1 is for what is not healthy"
    assert "broken.jsonl:2" in capsys.readouterr().err
    assert main(["diagnose", str(well), "--curves"]) == 0
    assert capsys.readouterr().out.count("normal") == 3


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ppo()
    run.change("completions/clipped_ratio", lambda old, at: 0.5)
    assert main(["diagnose", str(run.write(tmp_path / "run")), "--json"]) == 1
    tree = json.loads(capsys.readouterr().out)
    assert tree["healthy"] is False
    (stage,) = tree["stages"]
    assert (stage["name"], stage["stage"], stage["status"], stage["rows"]) == ("run", "ppo", "finished", 40)
    (finding,) = stage["findings"]
    assert finding["condition"] == "answers-cut-off"
    assert finding["evidence"] == ["completions/clipped_ratio 0.5 in the last fifth, 0.5 in the first"]
    assert finding["metric"] == "completions/clipped_ratio"
    assert finding["try"]
    assert main(["diagnose", str(sft().write(tmp_path / "well")), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["healthy"] is True


def test_torch_is_not_needed(tmp_path: Path) -> None:
    path = ppo().write(tmp_path / "run")
    code = (
        "import sys; from bloomery.cli import main; "
        "code = main(sys.argv[1:]); sys.exit(3 if 'torch' in sys.modules else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "diagnose", str(path), "--curves"], capture_output=True
    )
    assert done.returncode == 0


def test_the_page_explains_every_condition() -> None:
    page = (ROOT / "docs" / "diagnose.md").read_text(encoding="utf-8")
    assert [name for name in CONDITIONS if f"`{name}`" not in page] == []
