"""The plan of the over-optimisation laboratory: it begins as every journey does, so the cache serves both;
what is tried against a reward model is fed by the right steps; every setting lands where it belongs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bloomery.errors import RecipeError, UsageError
from bloomery.journey.estimate import estimate
from bloomery.journey.plan import Journey, make_plan
from bloomery.journey.steps import Plan
from bloomery.recipe import dump, input_paths, load

OUT = Path("/nowhere/out")
LAB = {
    "sizes": "{small: {width: 64, depth: 2, heads: 4}}",
    "reward_models": "[{name: half}, {name: few, share: 0.05, flipped: 0.3, size: small}]",
    "kl_coefs": "[0.0, 0.05]",
}


def plan_of(*overrides: str, **lab: str) -> Plan:
    settings = [f"lab.{key}={value}" for key, value in (LAB | lab).items()]
    return make_plan(load(Journey, overrides=["rounds=0", *settings, *overrides]), OUT)


def recipe(plan: Plan, step: str) -> Any:
    (found,) = (one.recipe for one in plan.steps if one.name == step)
    return found


def inputs(plan: Plan, step: str) -> dict[str, str]:
    return {name: str(path.relative_to(OUT)) for name, path in input_paths(recipe(plan, step))}


def test_the_steps() -> None:
    assert [step.name for step in plan_of().steps] == [
        *("world", "data", "tokenizer", "corpus", "base", "evaluate-base", "sft", "evaluate-sft", "label-1"),
        *("baseline", "base-small", "sft-small"),
        *("spoil-half", "reward-half", "spoil-half-twin", "reward-half-twin"),
        *("best-half", "ppo-half-0", "ppo-half-0.05"),
        *("spoil-few", "reward-few", "spoil-few-twin", "reward-few-twin"),
        *("best-few", "ppo-few-0", "ppo-few-0.05"),
    ]


def test_it_begins_as_the_journey_does_step_for_step() -> None:
    usual = make_plan(load(Journey, overrides=["rounds=1"]), OUT).steps[:9]
    assert plan_of().steps[:9] == usual


def test_every_input_is_the_output_of_an_earlier_step() -> None:
    seen: set[str] = set()
    for step in plan_of().steps:
        for name, path in input_paths(step.recipe):
            assert path.relative_to(OUT).parts[0] in seen, f"{step.name}: {name}"
        seen.add(step.name)


def test_a_reward_model_and_its_twin_differ_in_their_rankings_and_seed_only() -> None:
    plan = plan_of("seed=4")
    one, twin = recipe(plan, "reward-few"), recipe(plan, "reward-few-twin")
    assert one.rankings == (OUT / "spoil-few" / "rankings.jsonl",)
    assert twin.rankings == (OUT / "spoil-few-twin" / "rankings.jsonl",)
    assert (one.seed, twin.seed) == (4, 5)
    assert one.model_copy(update={"rankings": twin.rankings, "seed": 5}) == twin
    spoilt, other = recipe(plan, "spoil-few"), recipe(plan, "spoil-few-twin")
    assert (spoilt.share, spoilt.part, spoilt.flipped, spoilt.seed) == (0.05, 0, 0.3, 4)
    assert other == spoilt.model_copy(update={"part": 1})
    assert spoilt.held_out == one.held_out
    assert inputs(plan, "reward-few")["model"] == "sft-small"
    assert inputs(plan, "reward-half")["model"] == "sft"
    assert inputs(plan, "reward-few")["gold[0]"] == "label-1/gold.jsonl"


def test_the_small_trunk_is_made_as_the_base_is() -> None:
    plan = plan_of()
    small, usual = recipe(plan, "base-small"), recipe(plan, "base")
    assert (small.model.width, small.model.depth) == (64, 2)
    assert small.model_copy(update={"model": usual.model}) == usual
    assert inputs(plan, "sft-small")["model"] == "base-small"


def test_ppo_is_trained_on_one_and_watches_the_other() -> None:
    plan = plan_of("first.ppo.steps=7", "first.ppo.watch=[{kind: length, settings: {most: 9}}]")
    for leash in (0.0, 0.05):
        one = recipe(plan, f"ppo-few-{leash:g}")
        assert (one.kl_coef, one.steps) == (leash, 7)
        assert [source.logged for source in one.watch] == ["length", "held-out", "ensemble"]
        found = inputs(plan, f"ppo-few-{leash:g}")
        assert found["reward"] == "reward-few"
        assert found["policy"] == found["reference"] == "sft"
        assert found["watch[1].settings.path"] == "reward-few-twin"
        assert [found[f"watch[2].settings.models[{i}]"] for i in (0, 1)] == ["reward-few", "reward-few-twin"]
        assert found["world"] == "world"
    best = inputs(plan, "best-few")
    assert (best["policy"], best["reward"], best["prompts[0]"]) == (
        "sft",
        "reward-few",
        "world/prompts.jsonl",
    )


def test_the_baseline_asks_the_sft_model_every_prompt_as_ppo_does() -> None:
    plan = plan_of("lab.best_of_n={limit: 9, at: [1, 2]}", "first.ppo.max_tokens=11", baseline="5")
    one, best = recipe(plan, "baseline"), recipe(plan, "best-half")
    assert (one.limit, one.samples, one.at, one.max_tokens) == (None, 5, (), 11)
    assert all(getattr(one, name) == getattr(best, name) for name in ("policy", "prompts", "world", "seed"))
    assert one.reward is None  # so no reward model need be there first
    assert one.prompts == recipe(plan, "ppo-few-0").prompts
    assert one.policy == recipe(plan, "ppo-few-0").reference


@pytest.mark.parametrize(
    ("override", "steps"),
    [
        ("lab.best_of_n.samples=8", {"best-half", "best-few"}),
        ("lab.baseline=8", {"baseline"}),
        (
            "first.ppo.temperature=0.7",
            {"baseline", *(f"ppo-{n}-{b}" for n in ("half", "few") for b in ("0", "0.05"))},
        ),
        ("first.ppo.steps=9", {f"ppo-{n}-{b}" for n in ("half", "few") for b in ("0", "0.05")}),
        ("first.reward.epochs=9", {f"reward-{n}{t}" for n in ("half", "few") for t in ("", "-twin")}),
        ("first.label.prompts=9", {"label-1"}),
        ("lab.sizes={small: {width: 32, depth: 2, heads: 4}}", {"base-small"}),
        (
            "lab.reward_models=[{name: half}, {name: few, share: 0.1, flipped: 0.3, size: small}]",
            {"spoil-few", "spoil-few-twin"},
        ),
    ],
)
def test_a_setting_changes_its_own_steps_only(override: str, steps: set[str]) -> None:
    before, after = plan_of(), plan_of(override)
    assert {a.name for a, b in zip(before.steps, after.steps, strict=True) if a != b} == steps


def test_the_resolved_recipe_gives_the_same_plan(tmp_path: Path) -> None:
    journey = load(Journey, overrides=["rounds=0", *(f"lab.{key}={value}" for key, value in LAB.items())])
    (tmp_path / "recipe.yaml").write_text(dump(journey))
    assert make_plan(load(Journey, tmp_path / "recipe.yaml"), OUT) == make_plan(journey, OUT)


def test_estimates_know_which_model_a_step_starts_from() -> None:
    plan = plan_of()
    found = {s.name: cost for s, cost in zip(plan.steps, estimate(plan, 1e11), strict=True)}
    assert all(cost.memory > 0 and cost.seconds > 0 and cost.disk > 0 for cost in found.values())
    assert found["base-small"].parameters == found["reward-few"].parameters < found["base"].parameters
    assert found["reward-half"].parameters == found["ppo-few-0"].parameters == found["base"].parameters
    assert found["reward-few"].seconds < found["reward-half"].seconds / 5
    assert found["ppo-half-0"] == found["ppo-few-0"]


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("rounds=1", "takes the place of rounds"),
        ("data.documents=[x.jsonl]", "needs the oracle"),
        (
            "lab.reward_models=[{name: a, size: small}, {name: a}]",
            "two reward models of the lab are called 'a'",
        ),
        ("lab.reward_models=[{name: a, size: smal}]", "no size of the lab is called 'smal'.*'small'"),
        ("lab.reward_models=[{name: a}]", "a size that no reward model of the lab has"),
        ("lab.kl_coefs=[0.1, 0.1]", "a leash of the lab is there twice"),
    ],
)
def test_laboratories_that_make_no_sense(override: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        plan_of(override)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("lab.reward_models=[{name: a, share: 0.6}]", "share"),
        ("lab.reward_models=[{name: 1a}]", "name"),
        ("lab.sizes={a/b: {width: 32}}", "pattern"),
        ("lab.reward_models=[]", "reward_models"),
        ("lab.windw=3", "did you mean 'window'"),
    ],
)
def test_settings_out_of_range(override: str, complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        plan_of(override)
