"""The report card of a finished reward model: the same as its own stage's, several models as one, what it was
trained on is not judged, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from rich.text import Text

from bloomery.cli import main
from bloomery.cli.card import tables
from bloomery.errors import UsageError
from bloomery.models import hub
from bloomery.models.llama import ScalarModel
from bloomery.stages import evaluate_reward, reward
from bloomery.stages.evaluate_reward import EvaluateReward
from bloomery.stages.reward import RewardRecipe
from bloomery.stages.slates import prompt_id
from bloomery.text.tokenizer import Tokenizer
from bloomery.types import Ranking

KEYS = (
    "accuracy",
    "low",
    "high",
    "num_pairs",
    "agreed",
    "ceiling",
    "baselines",
    "groups",
    "by_kind",
    "verdict",
)


def said(num: int, seed: int = 0) -> list[Ranking]:
    draw = np.random.default_rng(seed)
    found = []
    for i in range(num):
        words = [tiny.WORDS[int(w)] for w in draw.integers(0, len(tiny.WORDS), 6)]
        answers = (
            f"{words[0]} jam",
            words[1],
            f"{words[2]} {words[3]} tea",
            f"plum {words[4]} {words[5]} red",
        )
        question = (
            f"what is {' '.join(tiny.WORDS[(i // b) % 10] for b in (1, 10))} {'best ' * (seed + 1)}".strip()
        )
        for who in ("ada", "bob"):
            ranks = [int(n) for n in draw.permutation(4) + 1]
            found.append(tiny.ranking(question, answers, ranks, who))
    return found


def save(rankings: list[Ranking], path: Path) -> Path:
    return tiny.write_lines(path, [r.model_dump(mode="json") for r in rankings])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SFT model, rankings with gold, a reward model that was trained on them, and one that was not."""
    root = tmp_path_factory.mktemp("card")
    tokenizer = tiny.tokenizer()
    tokenizer.save(root / "tokenizer")
    hub.save(tiny.language_model(tokenizer.vocab_size, 0), root / "sft", tokenizer_dir=root / "tokenizer")
    hub.save(tiny.scalar_model(tokenizer.vocab_size, 3), root / "other", tokenizer_dir=root / "tokenizer")
    rankings = said(40)
    save(rankings, root / "rankings.jsonl")
    save(said(12, seed=1), root / "fresh.jsonl")
    rows = [{"prompt": prompt_id(r.prompt), "kind": "taste", "grades": {}} for r in rankings]
    tiny.write_lines(root / "gold.jsonl", rows)
    recipe = RewardRecipe(
        model=root / "sft",
        rankings=(root / "rankings.jsonl",),
        gold=(root / "gold.jsonl",),
        epochs=0.4,
        held_out=0.3,
        compute=tiny.TRAINING.model_copy(update={"precision": "fp32"}),
    )
    reward.run(recipe, root / "reward")
    return root


def card(place: Path, out: Path, **settings: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "models": (place / "reward",),
        "rankings": (place / "rankings.jsonl",),
        "threads": 1,
    }
    evaluate_reward.run(EvaluateReward(**(given | settings)), out)
    tree: dict[str, Any] = json.loads((out / "evaluation.json").read_text())
    return tree


def test_it_is_the_card_of_the_reward_stage(place: Path, tmp_path: Path) -> None:
    """The default judges what the stage held out, and learns its baselines from what it was trained on."""
    found = card(place, tmp_path / "out", gold=(place / "gold.jsonl",))
    own = json.loads((place / "reward" / "evaluation.json").read_text())
    assert found["held_out"] == 0.3
    assert 0 < found["num_slates"] < 40
    assert {key: found[key] for key in KEYS} == {key: own[key] for key in KEYS}
    assert [row["name"] for row in found["groups"]["category"]] == ["taste"]
    assert [row["name"] for row in found["groups"]["annotator"]] == ["ada", "bob"]
    assert [row["name"] for row in found["groups"]["source"]] == ["sft"]


def test_what_it_was_trained_on_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="trained on some of these"):
        card(place, tmp_path / "out", held_out=0.5)
    assert (
        card(place, tmp_path / "less", held_out=0.1)["num_slates"]
        < card(place, tmp_path / "own")["num_slates"]
    )
    moved = save(said(40), tmp_path / "the-same-under-another-name.jsonl")
    with pytest.raises(UsageError, match="trained on some of these"):
        card(place, tmp_path / "moved", rankings=(moved,), held_out=1.0)


def test_rankings_it_never_saw_are_judged_whole(place: Path, tmp_path: Path) -> None:
    found = card(place, tmp_path / "fresh", rankings=(place / "fresh.jsonl",))
    assert (found["held_out"], found["num_slates"]) == (1.0, 12)
    other = card(place, tmp_path / "other", models=(place / "other",))
    assert (other["held_out"], other["num_slates"]) == (1.0, 40)
    with pytest.raises(UsageError, match="no comparison is held out"):
        card(place, tmp_path / "none", rankings=(place / "fresh.jsonl",), held_out=0.001)


def test_several_models_are_one(place: Path, tmp_path: Path) -> None:
    models = (place / "reward", place / "other")
    fresh = {"rankings": (place / "fresh.jsonl",)}
    alone = [card(place, tmp_path / f"{i}", models=(m,), **fresh) for i, m in enumerate(models)]
    means = [one["distribution"]["mean"] for one in alone]
    assert means[0] != pytest.approx(means[1], abs=1e-3)
    mean = card(place, tmp_path / "mean", models=models, **fresh)
    assert mean["distribution"]["mean"] == pytest.approx(sum(means) / 2, abs=1e-5)
    assert mean["disagreement"] > 0
    assert alone[0]["disagreement"] is None
    lowest = card(place, tmp_path / "minimum", models=models, pool="minimum", **fresh)
    assert lowest["distribution"]["mean"] < mean["distribution"]["mean"]


def test_settings_that_change_the_card(place: Path, tmp_path: Path) -> None:
    rankings = said(12, seed=1)
    rankings[0] = rankings[0].model_copy(update={"correction": "jam jam jam"})
    file = save(rankings, tmp_path / "rankings.jsonl")
    prompts = [
        {"id": str(i), "prompt": r.prompt[0].content, "kind": "odd"} for i, r in enumerate(rankings[::2])
    ]
    kinds = tiny.write_lines(tmp_path / "prompts.jsonl", prompts[1::2])
    with_it = card(place, tmp_path / "with", rankings=(file,), prompts=(kinds,), batch_tokens=64)
    without = card(place, tmp_path / "without", rankings=(file,), use_corrections=False)
    assert with_it["num_pairs"] == without["num_pairs"] + 4
    (row,) = with_it["groups"]["category"]
    assert (row["name"], row["num_pairs"]) == ("odd", 6 * 12)
    assert without["groups"]["category"] == []
    file.write_text(file.read_text() + "{nonsense\n")
    assert card(place, tmp_path / "skip", rankings=(file,), on_bad_row="skip")["num_slates"] == 12


def test_a_model_with_another_tokenizer_is_refused(place: Path, tmp_path: Path) -> None:
    Tokenizer.train(["other words"] * 4, 300).save(tmp_path / "tokenizer")
    strange = Tokenizer.load(tmp_path / "tokenizer")
    hub.save(
        ScalarModel(tiny.config(strange.vocab_size)),
        tmp_path / "strange",
        tokenizer_dir=tmp_path / "tokenizer",
    )
    with pytest.raises(UsageError, match="another tokenizer"):
        card(place, tmp_path / "out", models=(place / "reward", tmp_path / "strange"))


def test_the_command(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "evaluate",
        "--task",
        "reward",
        "--model",
        str(place / "reward"),
        "--out",
        str(tmp_path / "card"),
    ]
    words += ["--rankings", str(place / "rankings.jsonl"), "--gold", str(place / "gold.jsonl")]
    assert main([*words, "--set", "threads=1"]) == 0
    shown = capsys.readouterr().out
    for word in (
        "reward model",
        "two annotators agree",
        "length alone",
        "source alone",
        "by annotator",
        "taste",
    ):
        assert word in shown
    tree = json.loads((tmp_path / "card" / "evaluation.json").read_text())
    assert tree["verdict"]["sentence"] in " ".join(shown.split())
    assert "stop_rule" not in shown, "nobody should optimise against this one at all"
    good = tree | {"verdict": tree["verdict"] | {"optimise": True, "kl": 1.27}}
    said = [line.plain for line in tables(good) if isinstance(line, Text)]
    assert "- to end a run of PPO by this: --set stop_rule.budget=1.3" in said
    page = (tmp_path / "card.html").read_text()
    for word in ("Report card", "Calibration", "Accuracy by margin", "Scores", "Choosing by score"):
        assert word in page
    assert "No PPO was logged" not in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rankings", "x"], "--rankings goes with --task reward"),
        (["--gold", "x"], "--gold goes with --task reward"),
        (["--model", "x", "--model", "y"], "several of --model go with --task reward"),
        (["--task", "reward"], "required"),
        (["--task", "reward", "--model", "x", "--rankings", "y: z"], "y: z"),
        (["--model", "not here"], "not here"),
    ],
)
def test_wrong_options_are_told(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *words, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
