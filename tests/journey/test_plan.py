"""The settings and the plan of a journey: sections equal the stages' own settings, steps feed each other, and
every setting lands in the step it belongs to and in no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bloomery.errors import RecipeError, UsageError
from bloomery.journey.estimate import estimate
from bloomery.journey.plan import Journey, make_plan, runs
from bloomery.journey.run import look
from bloomery.journey.steps import Plan
from bloomery.recipe import Section, dump, input_paths, load
from bloomery.stages import STAGES

OUT = Path("/nowhere/out")


class Part(Section):
    speed: int = 1
    weight: int = 2


class Whole(Section):
    part: Part = Part(weight=7)


class Outer(Section):
    whole: Whole = Whole(part=Part(speed=5))


def test_a_part_that_is_given_is_laid_over_the_default_of_its_field() -> None:
    assert load(Whole, overrides=["part.speed=3"]).part == Part(speed=3, weight=7)
    assert load(Outer, overrides=["whole.part.weight=9"]).whole.part == Part(speed=5, weight=9)
    with pytest.raises(RecipeError, match=r"unknown key 'whole\.part\.wait' \(did you mean 'weight'"):
        load(Outer, overrides=["whole.part.wait=9"])


def plan_of(*overrides: str) -> Plan:
    return make_plan(load(Journey, overrides=overrides), OUT)


def test_the_default_journey_has_the_steps_of_the_design() -> None:
    plan = plan_of("rounds=2")
    assert [step.name for step in plan.steps] == [
        *("world", "data", "tokenizer", "corpus", "base", "evaluate-base", "sft", "evaluate-sft"),
        *("label-1", "reward-1", "ppo-1", "evaluate-rl-1"),
        *("label-2", "reward-2", "ppo-2", "evaluate-rl-2"),
    ]
    assert dict(plan.aliases) == {"reward": "reward-2", "rl": "ppo-2"}


def test_every_input_is_the_output_of_an_earlier_step() -> None:
    seen: set[str] = set()
    for step in plan_of("rounds=3").steps:
        for name, path in input_paths(step.recipe):
            assert path.relative_to(OUT).parts[0] in seen, f"{step.name}: {name}"
        seen.add(step.name)


def inputs(plan: Plan, step: str) -> dict[str, str]:
    (found,) = (one for one in plan.steps if one.name == step)
    return {name: str(path.relative_to(OUT)) for name, path in input_paths(found.recipe)}


def test_rounds_build_on_each_other() -> None:
    plan = plan_of("rounds=3")
    assert inputs(plan, "ppo-1")["policy"] == "sft"
    assert inputs(plan, "ppo-3")["policy"] == "ppo-2"
    assert {inputs(plan, f"ppo-{n}")["reference"] for n in (1, 2, 3)} == {"sft"}
    assert inputs(plan, "ppo-3")["reward"] == "reward-3"
    assert "start" not in inputs(plan, "reward-1")
    assert inputs(plan, "reward-3")["start"] == "reward-2"
    assert [inputs(plan, "reward-3")[f"rankings[{i}]"] for i in range(3)] == [
        f"label-{n}/rankings.jsonl" for n in (1, 2, 3)
    ]
    assert "ppo-2" in inputs(plan, "label-3").values()
    assert "ppo-1" not in inputs(plan, "label-3").values()


def test_rounds_do_not_ask_the_same_prompts_in_the_same_way() -> None:
    seeds = [
        getattr(s.recipe, "seed", None) for s in plan_of("rounds=3", "seed=5").steps if s.stage == "label"
    ]
    assert len(set(seeds)) == 3


def test_no_rounds_stops_after_sft() -> None:
    plan = plan_of("rounds=0")
    assert plan.steps[-1].name == "evaluate-sft"
    assert not plan.aliases


def test_sections_hold_exactly_the_settings_of_their_stage() -> None:
    journey = load(Journey)
    for stage in ("world", "clean", "tokenizer", "encode", "pretrain", "sft", "evaluate"):
        section, schema = getattr(journey, stage), STAGES[stage].recipe
        given = {name for name in schema.model_fields if name in type(section).model_fields}
        left = set(schema.model_fields) - given
        assert set(type(section).model_fields) == given
        plan = plan_of()
        (recipe, *_) = [step.recipe for step in plan.steps if step.stage == stage]
        planned = {name.split("[")[0].split(".")[0] for name, _ in input_paths(recipe)}
        optional = {name for name in left if getattr(recipe, name) in (None, ())}
        fixed = {"seed", "chat"} & set(schema.model_fields)
        assert left == fixed | planned | optional
        for name in given - planned:
            assert getattr(recipe, name) == getattr(section, name)


def leaves(section: Section, prefix: str = "") -> Iterator[str]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


@pytest.mark.parametrize(
    ("override", "steps"),
    [
        ("world.size=9", {"world"}),
        ("clean.near=false", {"data"}),
        ("tokenizer.vocab_size=500", {"tokenizer"}),
        ("encode.val_fraction=0.1", {"corpus"}),
        ("pretrain.tokens=5", {"base"}),
        ("sft.epochs=9", {"sft"}),
        ("sft.optimiser.learning_rate=1e-5", {"sft"}),
        ("evaluate.samples=3", {"evaluate-base", "evaluate-sft", "evaluate-rl-1", "evaluate-rl-2"}),
        ("first.label.prompts=9", {"label-1"}),
        ("first.reward.epochs=9", {"reward-1"}),
        ("first.ppo.kl_coef=0.5", {"ppo-1"}),
        ("later.label.prompts=9", {"label-2"}),
        ("later.reward.epochs=9", {"reward-2"}),
        ("later.ppo.kl_coef=0.5", {"ppo-2"}),
    ],
)
def test_a_setting_changes_its_own_steps_only(override: str, steps: set[str]) -> None:
    before, after = plan_of("rounds=2"), plan_of("rounds=2", override)
    assert {a.name for a, b in zip(before.steps, after.steps, strict=True) if a != b} == steps


def test_one_learning_rate_leaves_the_rest_of_a_stages_optimiser_alone() -> None:
    before, after = plan_of(), plan_of("first.ppo.optimiser.learning_rate=1e-5")
    one, two = (next(s.recipe for s in plan.steps if s.name == "ppo-1") for plan in (before, after))
    rates = {"learning_rate": 1e-5}
    assert two.optimiser == one.optimiser.model_copy(update=rates)  # type: ignore[attr-defined]


def test_the_resolved_recipe_gives_the_same_plan(tmp_path: Path) -> None:
    journey = load(Journey, overrides=["seed=3", "rounds=2", "later.ppo.kl_coef=0.5"])
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(journey))
    assert load(Journey, path) == journey
    assert make_plan(load(Journey, path), OUT) == make_plan(journey, OUT)


def test_every_stage_of_a_plan_can_be_run_and_estimated() -> None:
    assert set(runs()) == set(STAGES)
    plan = plan_of("rounds=1")
    costs = estimate(plan, speed=1e11)
    assert all(cost.memory > 0 and cost.seconds > 0 and cost.disk > 0 for cost in costs)
    models = {s.name for s, cost in zip(plan.steps, costs, strict=True) if cost.parameters}
    assert models == {"base", "sft", "reward-1", "ppo-1"}


def test_estimates_follow_shapes_and_tokens() -> None:
    def base(*overrides: str) -> tuple[int, float, float]:
        plan = plan_of("rounds=0", *overrides)
        (cost,) = (c for s, c in zip(plan.steps, estimate(plan, 1e11), strict=True) if s.name == "base")
        return cost.parameters, cost.seconds, cost.memory

    small = base()
    assert base("pretrain.tokens=4000000")[1] == pytest.approx(2 * small[1])
    assert base("pretrain.model.depth=8")[0] > small[0]
    assert base("pretrain.batch=64")[2] > small[2]
    # 2048 x 16 embeddings (tied); a layer of 4 x 16 x 16 attention, 3 x 16 x 64 feed-forward, 2 norms; a norm
    tiny = ["pretrain.model.width=16", "pretrain.model.depth=1", "pretrain.model.heads=2"]
    assert base(*tiny, "tokenizer.vocab_size=2048")[0] == 2048 * 16 + 4 * 256 + 3 * 16 * 64 + 32 + 16


# ------------------------------------------------------------------------------------------ your own files


def files(tmp_path: Path, *overrides: str) -> Plan:
    for name in ("text.jsonl", "chat.jsonl", "pairs.jsonl"):
        (tmp_path / name).write_text('{"text": "x"}\n')
    given = [
        f"data.root={tmp_path}",
        "data.documents=[text.jsonl]",
        "data.demonstrations=[chat.jsonl]",
        "data.rankings=[pairs.jsonl]",
        "rounds=1",
    ]
    return make_plan(load(Journey, overrides=[*given, *overrides]), tmp_path / "out")


def test_a_journey_over_files(tmp_path: Path) -> None:
    plan = files(tmp_path)
    assert [step.name for step in plan.steps] == [
        *("data", "tokenizer", "corpus", "base", "evaluate-base", "sft", "reward-1", "evaluate-sft"),
        *("ppo-1", "evaluate-rl-1"),
    ]
    rows = look(plan, tmp_path / "out", tmp_path / "out" / "stages")
    assert rows[0].key
    assert {row.state for row in rows} == {"to do"}


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("rounds=2", "one round at most"),
        ("data.demonstrations=[]", "demonstrations is empty"),
        ("data.rankings=[]", "rankings is empty"),
    ],
)
def test_files_that_are_not_enough(tmp_path: Path, override: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        files(tmp_path, override)


def test_without_rounds_no_rankings_are_needed(tmp_path: Path) -> None:
    assert files(tmp_path, "rounds=0", "data.rankings=[]").steps[-1].name == "evaluate-sft"


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")), ids=lambda p: p.name
)
def test_every_named_recipe_is_a_journey_of_few_lines(path: Path) -> None:
    assert make_plan(load(Journey, path), OUT).steps
    lines = path.read_text(encoding="utf-8").split("\n")
    assert len(lines) <= 41
    assert lines[0].startswith("# ")
    assert any(line.startswith("# bloomery run recipes/") for line in lines)
