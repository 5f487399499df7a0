"""Reward sources as a recipe names them: what each kind is made into, what is refused and how it is said, and
that models in settings count as inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from invented import rollout

from bloomery.errors import RecipeError, UsageError
from bloomery.lineage import resolved
from bloomery.models import hub
from bloomery.models.config import LlamaConfig
from bloomery.models.llama import Llama, ScalarModel, init
from bloomery.recipe import Section, dump, input_paths, load
from bloomery.registry import settings_of
from bloomery.rewards.model import RewardModel
from bloomery.rewards.parts import Opinion, Part
from bloomery.rewards.sources import Source, Tools, combined, sources
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.types import Rollout

KINDS = {"model", "process", "ensemble", "judge", "exact", "regex", "numeric", "length", "graded"}
ANSWERS = [rollout("red jam", tokens=(9, 6, 5)), rollout("tea", tokens=(6, 5))]


class Recipe(Section):
    rewards: tuple[Source, ...] = ()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two reward models and a judge, with a tokenizer."""
    root = tmp_path_factory.mktemp("sources")
    tokenizer = Tokenizer.train(["red jam tea good"] * 20, 300)
    tokenizer.save(root / "tokenizer")
    config = LlamaConfig.shape(width=16, depth=1, heads=2, vocab=tokenizer.vocab_size, context=256)
    for seed, name in enumerate(("a", "b")):
        made = ScalarModel(config)
        init(made, seed)
        hub.save(made, root / name, tokenizer_dir=root / "tokenizer")
    judge = Llama(config)
    init(judge, 7)
    hub.save(judge, root / "judge", tokenizer_dir=root / "tokenizer")
    return root


@pytest.fixture(scope="module")
def tools(home: Path) -> Tools:
    return Tools(Chat(Tokenizer.load(home / "tokenizer")), torch.device("cpu"))


def source(**fields: Any) -> Source:
    return Source.model_validate(fields)


def scores(home: Path, name: str) -> list[float]:
    return RewardModel(hub.load(home / name, "scalar"), 0)(ANSWERS)


def test_every_kind_is_tested_and_says_what_it_does() -> None:
    assert set(sources) == KINDS
    assert all(sources[kind].__doc__ for kind in KINDS)


def test_a_model_and_a_rule_weighed(home: Path, tools: Tools) -> None:
    listed = [
        source(kind="model", settings={"path": str(home / "a")}, weight=2.0),
        source(kind="length", name="brevity", weight=0.25, settings={"most": 1}),
    ]
    judge = combined(listed, tools)
    want = [2 * s - 0.25 * n for s, n in zip(scores(home, "a"), (2, 1), strict=True)]
    assert judge(ANSWERS) == pytest.approx(want)
    assert judge.metrics["rewards/brevity/mean"] == -1.5
    assert judge.metrics["rewards/model/mean"] == pytest.approx(sum(scores(home, "a")) / 2)


def test_an_ensemble_of_models(home: Path, tools: Tools) -> None:
    models = [str(home / "a"), str(home / "b")]
    judge = combined([source(kind="ensemble", settings={"models": models, "pool": "minimum"})], tools)
    pairs = list(zip(scores(home, "a"), scores(home, "b"), strict=True))
    assert judge(ANSWERS) == pytest.approx([min(p) for p in pairs])
    assert judge.metrics["rewards/ensemble/disagreement"] == pytest.approx(
        sum(abs(a - b) / 2 for a, b in pairs) / 2
    )
    settings = {"models": models, "pool": "uncertainty", "pool_settings": {"penalty": 2.0}}
    judge = combined([source(kind="ensemble", settings=settings)], tools)
    assert judge(ANSWERS) == pytest.approx([(a + b) / 2 - 2 * ((a - b) / 2) ** 2 for a, b in pairs])
    with pytest.raises(UsageError, match="no ensemble pool is called 'minium'"):
        source(kind="ensemble", settings={"models": models, "pool": "minium"}).part(tools)


def test_a_reward_model_that_reads_other_tokens_is_refused(home: Path) -> None:
    other = Tokenizer.train(["quite other words"] * 20, 300)
    listed = source(kind="model", settings={"path": str(home / "a")})
    with pytest.raises(UsageError, match="another tokenizer than the policy"):
        listed.part(Tools(Chat(other), torch.device("cpu")))


def test_a_judge_in_this_process(home: Path, tools: Tools) -> None:
    """An untrained model babbles: no verdict can be read, so it has no opinion, and says so."""
    settings = {"model": str(home / "judge"), "template": "{question} {answer}?", "max_tokens": 3}
    judge = combined([source(kind="judge", settings=settings)], tools)
    assert judge(ANSWERS) == [0.0, 0.0]
    assert judge.metrics["rewards/judge/abstained"] == 1.0


def test_your_own_callable_beside_the_others(tools: Tools) -> None:
    def jam(rollouts: Sequence[Rollout]) -> list[float]:
        return [float("jam" in r.text) for r in rollouts]

    listed = [source(kind="regex", settings={"pattern": "tea"}, weight=-1.0)]
    assert combined(listed, tools, first=[Part("jam", jam)])(ANSWERS) == [1.0, -1.0]


def test_your_own_kind_is_a_function_with_settings(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_parts", dict(sources._parts))

    @sources.register("shout")
    def shout(tools: Tools, *, word: str, times: int = 1) -> Opinion:
        return lambda rollouts: [float(r.text.count(word) >= times) for r in rollouts]

    judge = combined([source(kind="shout", settings={"word": "e", "times": 1})], tools)
    assert judge(ANSWERS) == [1.0, 1.0]
    with pytest.raises(ValueError, match="word"):
        source(kind="shout")


def test_models_in_settings_are_inputs(home: Path) -> None:
    settings = {"models": [str(home / "a"), str(home / "b")]}
    recipe = Recipe(
        rewards=(source(kind="ensemble", settings=settings), source(kind="length", settings={"most": 3}))
    )
    found = dict(input_paths(recipe))
    assert found == {
        "rewards[0].settings.models[0]": home / "a",
        "rewards[0].settings.models[1]": home / "b",
    }


def test_what_lies_at_a_path_in_settings_decides_whether_a_stage_reruns(home: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    recipe = Recipe(rewards=(source(kind="exact", settings={"answers": str(answers)}),))
    found = []
    for text in ("a", "b", "a"):
        answers.write_text(f'{{"id": "p", "answer": "{text}"}}')
        found.append(resolved(recipe))
    assert found[0] == found[2] != found[1]


def test_a_recipe_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "rewards:\n- {kind: length, weight: 0.5, settings: {most: 3, unit: words}}\n"
        "- {kind: exact, settings: {answers: a.jsonl}}\n"
    )
    recipe = load(Recipe, path)
    assert recipe.rewards[0].settings.model_dump() == {"most": 3, "least": 0, "unit": "words"}
    path.write_text(dump(recipe))
    assert load(Recipe, path) == recipe
    assert settings_of(sources["length"]) is settings_of(sources["length"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "{kind: lenth, settings: {most: 3}}",
            r"recipe.yaml:2: .*no reward source is called 'lenth' \(did you mean 'length'",
        ),
        ("{kind: length, settings: {mots: 3}}", r"recipe.yaml:2: .*mots.*did you mean 'most'"),
        ("{kind: length, settings: {most: -3}}", "greater than or equal to 0"),
        ("{kind: regex}", "pattern: field required"),
        ("{kind: length, settings: {most: 3}, wieght: 2}", "unknown key 'rewards.0.wieght'"),
        ("{kind: length, settings: {most: 3}, weight: .nan}", "finite number"),
        ("{kind: length, settings: 3}", "settings"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"rewards:\n- {line}\n")
    with pytest.raises(RecipeError, match=message):
        load(Recipe, path)


def test_an_answer_of_no_tokens_is_scored_at_the_end_of_its_prompt(home: Path) -> None:
    judge = RewardModel(hub.load(home / "a", "scalar"), 0)
    with torch.no_grad():
        want = float(judge.model(torch.tensor([[7, 8]]))[0, -1])
    assert judge([rollout("", tokens=())]) == pytest.approx([want], abs=1e-5)
    assert len(judge([rollout("", tokens=(5,))])) == 1
