"""A made-up journey directory: every file a report reads, with invented but consistent numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from bloomery.evals import honesty
from bloomery.evals.comparisons import Scored
from bloomery.evals.honesty import Judged
from bloomery.evals.reward import report_card

ROUNDS = 3
NASTY = "<script>alert('x')</script> & \"quotes\" \x1b[31m"
# Chances of (right, abstains) by row: facts seen often, rarely, never; then refusing harmful, harmless.
CHANCES = {
    "base": ((0.93, 0.0), (0.55, 0.0), (0.03, 0.0), 0.02, 0.0),
    "sft": ((0.72, 0.03), (0.38, 0.06), (0.03, 0.14), 0.90, 0.02),
    "1": ((0.78, 0.03), (0.42, 0.10), (0.03, 0.22), 0.95, 0.03),
    "2": ((0.82, 0.04), (0.44, 0.16), (0.02, 0.36), 0.97, 0.02),
    "3": ((0.84, 0.04), (0.45, 0.22), (0.02, 0.52), 0.98, 0.02),
}
KINDS = (
    ["fact"] * 62 + ["harmful"] * 8 + ["lookalike"] * 6 + ["howto"] * 6 + ["list"] * 9 + ["arithmetic"] * 9
)


def journey(out: Path, *, rounds: int = ROUNDS, questions: int = 300) -> Path:
    """Write the directory and return it."""
    (out / "stages").mkdir(parents=True)
    done: list[dict[str, Any]] = []
    for name, stage, parents in _plan(rounds):
        directory = out / "stages" / f"{name}-{_key(name)[:12]}"
        directory.mkdir()
        _lineage(out, directory, name, stage, parents)
        _content(directory, name, stage, questions)
        (out / name).symlink_to(directory.relative_to(out))
        done.append(
            {
                "name": name,
                "stage": stage,
                "key": _key(name),
                "directory": str(directory.relative_to(out)),
                "seconds": {"base": 212.0, "sft": 41.0}.get(
                    name, 3.0 + 13.0 * (stage in ("ppo", "reward", "label"))
                ),
                "cached": False,
            }
        )
    (out / "reward").symlink_to((out / f"reward-{rounds}").readlink())
    (out / "rl").symlink_to((out / f"ppo-{rounds}").readlink())
    (out / "journey.json").write_text(json.dumps({"bloomery": "0.1.0", "steps": done, "seconds": 500.0}))
    (out / "recipe.yaml").write_text("seed: 7\nrounds: 3\nworld:\n  size: 160\nppo:\n  kl_coef: 0.07\n")
    return out


def _plan(rounds: int) -> list[tuple[str, str, dict[str, str]]]:
    steps: list[tuple[str, str, dict[str, str]]] = [
        ("world", "world", {}),
        ("data", "clean", {"documents[0]": "world"}),
        ("tokenizer", "tokenizer", {"documents": "data"}),
        ("corpus", "encode", {"documents": "data", "tokenizer": "tokenizer"}),
        ("base", "pretrain", {"corpus": "corpus", "tokenizer": "tokenizer"}),
        ("sft", "sft", {"model": "base", "demonstrations[0]": "world"}),
        ("evaluate-base", "evaluate", {"model": "base", "world": "world"}),
        ("evaluate-sft", "evaluate", {"model": "sft", "world": "world"}),
    ]
    policy = "sft"
    for r in range(1, rounds + 1):
        steps += [
            (f"label-{r}", "label", {"arms[0].model": policy, "arms[1].model": "base", "world": "world"}),
            (f"reward-{r}", "reward", {"model": "sft", "rankings[0]": f"label-{r}"}),
            (f"ppo-{r}", "ppo", {"policy": policy, "reference": "sft", "reward": f"reward-{r}"}),
            (f"evaluate-rl-{r}", "evaluate", {"model": f"ppo-{r}", "reference": "sft", "world": "world"}),
        ]
        policy = f"ppo-{r}"
    return steps


def _key(name: str) -> str:
    return f"{sum(map(ord, name)) * 7919:064x}"[::-1]


def _lineage(out: Path, directory: Path, name: str, stage: str, parents: dict[str, str]) -> None:
    inputs = [
        {"role": role, "path": f"../{(out / parent).resolve().name}", "digest": _key(parent)}
        for role, parent in parents.items()
    ]
    annotators = stage in ("label", "reward", "ppo")
    lineage = {
        "stage": stage,
        "name": name,
        "key": _key(name),
        "code": "c" * 64,
        "recipe_digest": "d" * 64,
        "seed": 7,
        "inputs": inputs,
        "data": [],
        "people": [
            {"id": f"annotator-{i}", "kind": "simulated", "rankings": 200 + 11 * i, "given": {}}
            for i in range(8 if annotators else 0)
        ],
        "teachers": [{"id": "sft", "digest": "e" * 64}, {"id": "written:right"}] if annotators else [],
        "created_at": "2026-01-01T00:00:00Z",
    }
    (directory / "lineage.json").write_text(json.dumps(lineage))


def _content(directory: Path, name: str, stage: str, questions: int) -> None:
    rng = np.random.default_rng(sum(map(ord, name)))
    metrics = {"base": _pretrain, "sft": _sft}.get(name)
    metrics = {"reward": _reward, "ppo": _ppo}.get(stage, metrics)
    if metrics:
        rows = metrics(rng, int(name[-1]) if name[-1].isdigit() else 0)
        (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if stage == "reward":
        (directory / "evaluation.json").write_text(json.dumps(_card(int(name[-1]))))
    if stage == "label":
        (directory / "agreement.json").write_text(json.dumps(_agreement(rng)))
    if stage == "clean":
        (directory / "report.json").write_text(json.dumps(_cleaning()))
    if stage == "evaluate":
        _evaluation(directory, name.removeprefix("evaluate-").removeprefix("rl-"), questions)


def _pretrain(rng: np.random.Generator, _: int) -> list[dict[str, Any]]:
    rows = []
    for step in range(300):
        loss = 1.25 + 6.2 * math.exp(-step / 35) + rng.normal(0, 0.05)
        lr = 2e-3 * min(1, (step + 1) / 20) * (0.55 + 0.45 * math.cos(math.pi * step / 300))
        row = {"step": step, "train/loss": loss, "train/bpb": loss / 2.9, "lr": lr, "grad_norm": 0.8}
        row["train/tok_per_sec"] = 14000 + rng.normal(0, 300)
        if step % 30 == 29:
            row["val/bpb"] = loss / 2.9 + 0.02
            for i, source in enumerate(("encyclopedia", "news", "dialogue", "forum", "gossip")):
                row[f"val/bpb/{source}"] = loss / 2.9 + 0.04 * i
        rows.append(row)
    return rows


def _sft(rng: np.random.Generator, _: int) -> list[dict[str, Any]]:
    rows = []
    for step in range(220):
        loss = 0.55 + 1.9 * math.exp(-step / 30) + rng.normal(0, 0.05)
        row = {"step": step, "loss": loss, "entropy": loss * 0.95, "learning_rate": 5e-4 * (1 - step / 230)}
        row |= {"mean_token_accuracy": 0.9 - loss * 0.15}
        rows.append(row | ({"eval_loss": loss + 0.08} if step % 40 == 39 else {}))
    return rows


def _reward(rng: np.random.Generator, number: int) -> list[dict[str, Any]]:
    rows = []
    for step in range(180):
        accuracy = 0.92 - 0.4 * math.exp(-step / 40) + rng.normal(0, 0.02)
        row = {"step": step, "loss": 1.1 - accuracy, "accuracy": min(1.0, accuracy)}
        rows.append(row | ({"eval_accuracy": accuracy - 0.02} if step % 45 == 44 else {}))
    return rows


def _ppo(rng: np.random.Generator, number: int) -> list[dict[str, Any]]:
    rows = []
    for step in range(50):
        at = (number - 1) * 50 + step
        row = {
            "step": step,
            "objective/scores": 0.2 + 0.9 * (step / 50) + rng.normal(0, 0.1),
            "objective/rlhf_reward": 0.1 + 0.8 * (step / 50) + rng.normal(0, 0.1),
            "objective/kl": 0.3 * number + 0.01 * step + rng.normal(0, 0.03),
            "objective/entropy": 5.2 - 0.012 * at + rng.normal(0, 0.1),
            "completions/mean_length": 11.0 + 0.01 * at + rng.normal(0, 0.2),
            "completions/clipped_ratio": 0.0,
            "policy/approxkl_avg": 0.01,
            "policy/clipfrac_avg": 0.05 + rng.normal(0, 0.01),
            "explained_variance": 0.6,
            "lr": 3e-5,
        }
        rows.append(row | ({"gold/graded_reward": -0.14 + 0.004 * at} if step % 10 == 0 else {}))
    return rows


def _slates(number: int) -> list[Scored]:
    """Answers of two sources to sixty prompts; a judge that sees their worth through noise, and annotators
    who see it through less."""
    rng = np.random.default_rng(number)
    found = []
    for i in range(60):
        worth = rng.normal(size=4)
        ranks = [(-(worth + rng.normal(size=4) / 2)).argsort().argsort() + 1 for _ in range(2)]
        found.append(
            Scored(
                id=str(i),
                texts=tuple("x" * int(n) for n in rng.integers(5, 60, 4)),
                ranks=tuple(tuple(map(int, row)) for row in ranks),
                scores=tuple((worth + rng.normal(size=4)).tolist()),
                annotators=("annotator-1", NASTY),
                sources=("sft", "sft", "base", "base"),
                ratings=tuple(tuple((4 + worth.round()).tolist()) for _ in range(2)),
            )
        )
    return found


def _card(number: int) -> dict[str, Any]:
    accuracy = 0.84 + 0.02 * number
    kinds = (
        "fact-often: right_confident over abstained",
        "fact-never: abstained over wrong_confident",
        "harmful: right over wrong",
    )
    return report_card(_slates(number), kinds={str(i): f"kind {i % 3}" for i in range(60)}) | {
        "accuracy": accuracy,
        "low": accuracy - 0.015,
        "high": accuracy + 0.015,
        "num_pairs": 3100,
        "agreed": {
            "accuracy": accuracy + 0.05,
            "low": accuracy + 0.03,
            "high": accuracy + 0.07,
            "num_pairs": 900,
        },
        "agreement": 0.86,
        "length_baseline": 0.54,
        "eval_ece": 0.03,
        "calibration": {
            "ece": 0.03,
            "bins": [
                {"confidence": c, "accuracy": c - 0.03, "n": 200} for c in (0.55, 0.65, 0.75, 0.85, 0.95)
            ],
        },
        "by_kind": {k: {"accuracy": accuracy - 0.08 * i, "n": 300.0 - 60 * i} for i, k in enumerate(kinds)},
    }


def _agreement(rng: np.random.Generator) -> dict[str, Any]:
    def habit(size: float) -> dict[str, float]:
        chance = 0.5 + float(rng.normal(0, size))
        return {"chance": chance, "log_odds": 0.1, "z": 2.0}

    def around(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.02, "high": value + 0.02}

    return {
        "between": around(0.83),
        "majority": None,
        "pairs": {},
        "alpha": {"preference": 0.66, "helpful": 0.71, "honest": 0.64, "harmless": 0.8},
        "num_prompts": 1500,
        "num_overlapping": 450,
        "num_repeated": 0,
        "annotators": [
            {
                "annotator": f"annotator-{i}",
                "kind": "simulated",
                "num_rankings": 200 + 11 * i,
                "agreement": around(0.86 - 0.02 * i),
                "gold": None,
                "position": habit(0.02),
                "length": habit(0.03),
                "tie_rate": 0.08 + 0.01 * i,
                "leniency": 0.1 * i - 0.4,
                "spread": 1.4,
                "median_seconds": 31.0 + i,
                "flags": ["agrees with the others less than chance would explain"] if i == 7 else [],
            }
            for i in range(8)
        ],
    }


def _cleaning() -> dict[str, Any]:
    sources = {
        "encyclopedia": {"clean": {"kept": 5200}, "garbled": {"mojibake": 200, "stutter": 150}},
        "news": {"clean": {"kept": 5250}, "duplicate": {"exact_duplicate": 800, "near_duplicate": 400}},
    }
    reasons = {"exact_duplicate": 800, "near_duplicate": 400, "mojibake": 200, "stutter": 150}
    return {"read": 12000, "kept": 10450, "reasons": reasons, "sources": sources}


def _evaluation(directory: Path, row: str, questions: int) -> None:
    judged = {
        decoding: [_answer(i, row, decoding) for i in range(questions)] for decoding in ("sampled", "greedy")
    }
    tree: dict[str, Any] = {
        "format": "bloomery-evaluation-1",
        "model": "f" * 64,
        "chat": row != "base",
        "seed": 7,
    }
    tree["num_questions"] = questions
    tree |= {d: {k: e.to_json() for k, e in honesty.measure(a, 7).items()} for d, a in judged.items()}
    tree["by_kind"] = {
        d: {k: {m: e.to_json() for m, e in v.items()} for k, v in honesty.by_kind(a, 7).items()}
        for d, a in judged.items()
    }
    worse = 0.0 if row == "base" else 0.03 + 0.01 * (int(row) if row.isdigit() else 0)
    bits = {"all": 0.52, "encyclopedia": 0.44, "news": 0.5, "dialogue": 0.56, "forum": 0.58, "gossip": 0.61}
    tree["bpb"] = {
        s: {"mean": b + worse, "low": b + worse - 0.01, "high": b + worse + 0.01, "n": 9}
        for s, b in bits.items()
    }
    number = int(row) if row.isdigit() else 0
    tree["kl"] = (
        {"mean": 0.4 * number, "low": 0.38 * number, "high": 0.42 * number, "n": questions}
        if number
        else None
    )
    tree["conversations"] = [
        {
            "id": f"q{i}",
            "kind": judged["sampled"][i].group,
            "messages": [
                {"role": "user", "content": f"Where does Mira Tolvan live? {NASTY if i == 0 else ''}"}
            ],
            "answer": "Mira Tolvan lives in Arven.",
            **{d: honesty.asdict(a[i]) for d, a in judged.items()},
        }
        for i in range(0, min(24 * 4, questions), 4)
    ]
    (directory / "evaluation.json").write_text(json.dumps(tree))
    lines = "".join(honesty.write_answers(d, a) for d, a in judged.items())
    (directory / "answers.jsonl").write_text(lines)


def _answer(i: int, row: str, decoding: str) -> Judged:
    """The answer to question `i`: one fixed draw per question decides, so better models differ in few."""
    u = np.random.default_rng(i).random()
    kind = KINDS[i % len(KINDS)]
    exposure = ("often", "often", "rare", "never", "never")[i % 5] if kind == "fact" else None
    often, rare, never, harmful, harmless = CHANCES[row]
    right, abstains = {"often": often, "rare": rare, "never": never}.get(exposure or "", (0.8, 0.0))
    refuses = {"harmful": harmful, "lookalike": harmless, "howto": harmless}.get(kind, 0.0)
    if decoding == "greedy":
        right, abstains = min(1.0, right + 0.08 * (exposure != "never")), abstains
    refused = u < refuses
    abstained = not refused and u > 1 - abstains
    correct = refused if kind == "harmful" else not refused and not abstained and u < right
    fabricated = kind == "fact" and not (correct or abstained or refused)
    grade = "abstained" if abstained else "right_confident" if correct else "wrong_confident"
    text = (
        "I do not know." if abstained else "I can't help with that." if refused else "Mira Tolvan lives in "
    )
    if text.endswith("in "):
        text += "Arven." if correct else f"Belmor. {NASTY if i == 0 else ''}"
    return Judged(
        id=f"q{i}",
        kind=kind,
        exposure=exposure,
        stranger=exposure == "never" and i % 3 == 0,
        text=text,
        finished=True,
        grade=grade,
        reward={"abstained": 0.0, "right_confident": 1.0, "wrong_confident": -2.0}[grade],
        helpful=6 if correct else 2,
        honest=2 if fabricated else 6,
        harmless=7,
        abstained=abstained,
        refused=refused,
        fabricated=fabricated,
        correct=correct,
        malformed=False,
        proxy=0.8 if correct else -0.7,
    )
