"""results.json, key by key against the promised shape and numbers put in by hand; and the printed table."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bloomery.errors import ArtifactError
from bloomery.evals import honesty
from bloomery.evals.honesty import Judged
from bloomery.journey import results

RIGHT = Judged(
    "0", "fact", "often", False, "A.", True, "right_confident", 1.0, 7, 7, 7, *[False] * 3, True, False
)
WRONG = replace(RIGHT, grade="wrong_confident", reward=-2.0, correct=False, fabricated=True)
TABLE_KEYS = {
    "known_accuracy",
    "fabrication_rate",
    "abstain_known_rate",
    "refuse_harmful_rate",
    "refuse_harmless_rate",
    "graded_reward",
    "graded_reward_greedy",
    "bpb",
    "kl",
}


def around(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 10}


def evaluation(out: Path, step: str, right: int, kl: float | None) -> None:
    """Ten answers to ten questions, the first `right` of them right when greedy; sampled ones one fewer."""
    directory = out / step
    directory.mkdir()
    greedy = [replace(RIGHT if i < right else WRONG, id=str(i)) for i in range(10)]
    sampled = [replace(RIGHT if i < right - 1 else WRONG, id=str(i)) for i in range(10)]
    tree: dict[str, Any] = {"seed": 3, "bpb": {"all": around(1.5)}, "kl": None if kl is None else around(kl)}
    for name, answers in (("sampled", sampled), ("greedy", greedy)):
        tree[name] = {key: e.to_json() for key, e in honesty.measure(answers, 0).items()}
    (directory / "evaluation.json").write_text(json.dumps(tree))
    lines = honesty.write_answers("sampled", sampled) + honesty.write_answers("greedy", greedy)
    (directory / "answers.jsonl").write_text(lines)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    evaluation(tmp_path, "evaluate-base", 2, None)
    evaluation(tmp_path, "evaluate-sft", 5, None)
    for number, right in ((1, 6), (2, 7), (10, 9)):
        evaluation(tmp_path, f"evaluate-rl-{number}", right, float(number))
        (tmp_path / f"reward-{number}").mkdir()
        card = {
            "accuracy": 0.8,
            "low": 0.7,
            "high": 0.9,
            "agreement": 0.85,
            "length_baseline": 0.5,
            "agreed": {"accuracy": 0.95},
        }
        (tmp_path / f"reward-{number}" / "evaluation.json").write_text(json.dumps(card))
    (tmp_path / "reward").symlink_to("reward-10")
    (tmp_path / "recipe.yaml").write_text("seed: 11\n")
    step = {
        "name": "base",
        "stage": "pretrain",
        "key": "k",
        "directory": "base",
        "seconds": 12.5,
        "cached": True,
    }
    (tmp_path / "journey.json").write_text(json.dumps({"steps": [step]}))
    return tmp_path


def test_the_promised_shape_exactly(out: Path) -> None:
    got = results.collect(out)
    assert json.loads((out / "results.json").read_text()) == got
    assert list(got["table"]) == ["base", "sft", "rl"]
    for row in got["table"].values():
        assert set(row) == TABLE_KEYS
        assert set(row["kl"]) == {"mean", "low", "high"}
        assert all(v is None or isinstance(v, float) for key, v in row.items() if key != "kl")
    assert got["reward_model"] == {
        "accuracy": 0.8, "low": 0.7, "high": 0.9, "agreement": 0.85, "length_baseline": 0.5
    }  # fmt: skip
    assert got["reward_model_agreed"] == {"accuracy": 0.95}
    assert "80.0% of held-out pairs (70.0–90.0), 95.0% of those that annotators agree on" in "\n".join(
        results._notes(got)
    )
    assert got["seconds"] == {"base": 12.5}
    assert got["seed"] == 11


def test_numbers_come_from_the_right_place(out: Path) -> None:
    got = results.collect(out)
    table = got["table"]
    assert [table[row]["known_accuracy"] for row in ("base", "sft", "rl")] == [0.2, 0.5, 0.9]
    assert table["sft"]["graded_reward"] == pytest.approx(0.4 * 1 + 0.6 * -2)
    assert table["sft"]["graded_reward_greedy"] == pytest.approx(0.5 * 1 + 0.5 * -2)
    assert table["base"]["kl"]["mean"] is None
    assert table["sft"]["kl"] == {"mean": 0.0, "low": 0.0, "high": 0.0}, "SFT is at no distance from itself"
    assert table["rl"]["kl"]["mean"] == 10.0
    assert got["intervals"]["rl"]["bpb"] == [1.4, 1.6]
    assert table["rl"]["refuse_harmful_rate"] is None, "nothing harmful was asked"


def test_rounds_are_in_the_order_of_their_numbers(out: Path) -> None:
    got = results.collect(out)
    assert [row["name"] for row in got["rounds"]] == ["rl-1", "rl-2", "rl-10"]
    assert [row["known_accuracy"] for row in got["rounds"]] == [0.6, 0.7, 0.9]
    assert got["rounds"][0]["reward_model"]["accuracy"] == 0.8
    assert [row.label for row in results.rows(got)] == ["Base", "SFT", "Round 1", "Round 2", "RL, round 10"]
    assert [row.round for row in results.rows(got)] == [0, 0, 1, 2, 10]


def test_paired_difference_is_rl_minus_sft(out: Path) -> None:
    paired = results.collect(out)["paired"]
    assert paired["sampled"]["known_accuracy"]["mean"] == pytest.approx(0.4)
    assert paired["greedy"]["known_accuracy"]["mean"] == pytest.approx(0.4)
    assert paired["sampled"]["graded_reward"]["low"] > 0.0


def test_parts_of_a_journey(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no step"):
        results.collect(tmp_path)
    evaluation(tmp_path, "evaluate-base", 4, None)
    got = results.collect(tmp_path)
    assert list(got["table"]) == ["base"]
    assert got["paired"] is None
    assert got["seed"] == 3
    assert got["reward_model"]["accuracy"] is None


def test_damaged_evaluation_is_named(out: Path) -> None:
    (out / "evaluate-sft" / "evaluation.json").write_text('{"a": ')
    with pytest.raises(ArtifactError, match="evaluate-sft"):
        results.collect(out)


def printed(got: dict[str, Any], width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    results.print_table(got, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_table_fits_a_hundred_columns_and_says_all(out: Path) -> None:
    got = results.collect(out)
    text = printed(got)
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    assert printed(got, width=60) == text, "a narrow terminal wraps, it does not cut numbers"
    for piece in ("Base", "SFT", "Round 1", "RL, round 10", "90.0%", "KL", "↓", "+40.0 pt", "80.0%"):
        assert piece in text


def test_colour_only_beyond_chance(out: Path) -> None:
    """Green and red are said of the paired difference, by the direction that is better."""
    known, made_up = results.COLUMNS[0], results.COLUMNS[1]
    up, down, unsure = ({"greedy": {"known_accuracy": c, "fabrication_rate": c}} for c in (
        {"mean": 0.2, "low": 0.1, "high": 0.3}, {"mean": -0.2, "low": -0.3, "high": -0.1},
        {"mean": 0.1, "low": -0.1, "high": 0.3},
    ))  # fmt: skip
    assert results._verdict(known, up) == results._verdict(made_up, down) == "bold green"
    assert results._verdict(known, down) == results._verdict(made_up, up) == "bold red"
    assert results._verdict(known, unsure) == results._verdict(known, None) == "bold"


def test_without_an_oracle(tmp_path: Path) -> None:
    for step in ("evaluate-sft", "evaluate-rl-1"):
        (tmp_path / step).mkdir()
        metrics = {"unfinished_rate": around(0.2), "length": around(30.0), "proxy_reward": around(1.25)}
        tree = {"seed": 0, "sampled": metrics, "greedy": metrics, "bpb": None, "kl": around(0.7)}
        (tmp_path / step / "evaluation.json").write_text(json.dumps(tree))
    got = results.collect(tmp_path)
    assert set(got["table"]["rl"]) == TABLE_KEYS
    assert got["table"]["rl"]["graded_reward"] is None
    assert "1.250" in printed(got)
    assert "harmful" not in printed(got)
