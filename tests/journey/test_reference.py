"""Which runs are held against the reference curves: those whose settings are near the default journey's, in
their own stage and in the stages before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sick
import yaml

from bloomery.cli import main
from bloomery.journey import diagnose as doctor
from bloomery.journey.diagnose import Column, Table, reference
from bloomery.journey.diagnose.table import leaves
from bloomery.journey.settings import Journey
from bloomery.recipe import dump, load

KL = Column("objective/kl", (0,), (0.0,))


def step(name: str, stage: str, *changed: str, **settings: Any) -> Table:
    """A step of a journey with some settings changed; `settings` are the step's own, if any."""
    journey = dict(leaves(yaml.safe_load(dump(load(Journey, None, list(changed))))))
    return Table(name, stage, settings=settings, journey=journey)


@pytest.mark.parametrize("name", reference.SECTIONS)
def test_the_default_journey_is_like_the_journeys_the_curves_are_of(name: str) -> None:
    """Where this fails, defaults have changed: make the curves again (benchmarks/reference_curves.py)."""
    stage = {"base": "pretrain"}.get(name, name.partition("-")[0])
    assert reference.unlike(step(name, stage, "seed=9", "sft.compute.threads=1")) == []
    assert set(reference.SECTIONS) == set(reference.steps())


def test_numbers_may_differ_by_less_than_half() -> None:
    ppo = {"kl_coef": 0.2, "steps": 40, "ptx_coef": 0.0}
    for key, value, near in (
        ("kl_coef", 0.29, True),
        ("kl_coef", 0.31, False),
        ("kl_coef", 0.14, True),
        ("kl_coef", 0.13, False),
        ("kl_coef", 0.0, False),
        ("steps", 59, True),
        ("steps", 61, False),
        ("ptx_coef", 0.01, False),
    ):
        table = Table("mine", "ppo", settings={**ppo, key: value})
        assert (reference.unlike(table) == []) is near, (key, value)
        assert bool(reference.normal(table, KL)) is near


def test_what_differs_is_said_in_a_few_words() -> None:
    own = {"kl_coef": 0.02, "lora.rank": 8, "target_kl": None, "critic.schedule": "cosine", "new_key": 3}
    assert reference.unlike(Table("mine", "ppo", settings=own)) == [
        "lora is set",
        "kl_coef is 0.02, not 0.2",
        "target_kl is null, not 0.05",
        'critic.schedule is "cosine", not "constant"',
    ]
    files = step("base", "pretrain", 'data.documents=["a/very/long/name.jsonl"]', "data.root=/elsewhere")
    assert reference.unlike(files) == ["data.documents is not []"]
    arms = step("reward-1", "reward", 'first.answers=[{"of": "sft"}]')
    assert reference.unlike(arms) == ["first.answers is another"]


def test_a_step_depends_on_the_steps_before_it_and_on_no_other() -> None:
    changed = ("first.ppo.kl_coef=0.5",)
    assert reference.unlike(step("sft", "sft", *changed)) == []
    assert reference.unlike(step("reward-1", "reward", *changed)) == []
    assert reference.unlike(step("ppo-1", "ppo", *changed)) == ["kl_coef is 0.5, not 0.2"]
    for later in ("reward-2", "ppo-2", "ppo-5"):
        table = step(later, later[:-2], *changed)
        assert reference.unlike(table) == ["first.ppo.kl_coef is 0.5, not 0.2"], later
    world = step("ppo-1", "ppo", "world.size=20")
    assert reference.unlike(world) == ["world.size is 20, not 120"]
    # What the step itself says is nearer to the truth than the recipe that the journey started with.
    assert reference.unlike(step("ppo-1", "ppo", *changed, kl_coef=0.2)) == []


def test_a_journeys_recipe_is_read_and_a_line_says_why_there_is_no_curve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sick.default("sft").write(tmp_path / "stages" / "sft-0123456789ab")
    one = {"name": "sft", "stage": "sft", "directory": "stages/sft-0123456789ab"}
    rest = {"key": "0123456789ab", "seconds": 1.0, "cached": False}
    (tmp_path / "journey.json").write_text(json.dumps({"steps": [one | rest]}))
    assert main(["diagnose", str(tmp_path), "--curves"]) == 0
    assert "not comparable" not in capsys.readouterr().out
    (tmp_path / "recipe.yaml").write_text("world: {size: 40}\nclean: {near: false}\n")
    (found,) = doctor.diagnose(tmp_path)
    assert found.table.journey == {"world.size": 40, "clean.near": False}
    assert main(["diagnose", str(tmp_path), "--curves"]) == 0
    said = capsys.readouterr().out
    assert "not comparable: world.size is 40, not 120 (1 more)" in said
    assert said.count("normal") == 3
