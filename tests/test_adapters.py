"""Fine-tuning of all or a part: what is said to learn does; the table and curves are those of the runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import yaml

from bloomery.models import LlamaConfig, build, hub, lora
from bloomery.stages.ppo import Ppo
from bloomery.stages.sft import Sft
from bloomery.text.tokenizer import Tokenizer


@pytest.fixture
def adapters(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("adapters")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("base")
    Tokenizer.train(["red plum jam and green tea"] * 3, 300).save(place)
    hub.save(build(LlamaConfig.shape(32, 4, 4, 300, context=32)), place, tokenizer_dir=place)
    return place


def test_every_side_is_one_that_the_stage_takes(adapters: ModuleType, tmp_path: Path) -> None:
    for name, changed in adapters.SIDES.items():
        recipe = Sft.model_validate({"model": tmp_path, "demonstrations": (tmp_path,), **changed})
        assert (recipe.lora is not None) == name.startswith("rank"), name
        if recipe.lora is not None:
            assert name.startswith(f"rank {recipe.lora.rank}")
            assert recipe.lora.new_tokens == ("no new" not in name)
        assert recipe.optimiser.kind == "adamw"
    for name, changed in adapters.REINFORCED.items():
        given = {"policy": tmp_path, "reference": tmp_path, "reward": tmp_path, "prompts": (tmp_path,)}
        ppo = Ppo.model_validate({**given, **changed})
        assert ppo.lora is not None
        assert name == f"PPO, rank {ppo.lora.rank}"


def test_what_learns_is_counted(adapters: ModuleType, base: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    hub.save(hub.load(base), whole, tokenizer_dir=base)
    for patterns in ([], adapters.LAST[:-1]):
        (whole / "recipe.yaml").write_text(yaml.safe_dump({"train": patterns}))
        model = hub.load(base)
        counted = {
            name: p.numel()
            for name, p in model.named_parameters()
            if not patterns or ".layers.2." in name or ".layers.3." in name or name == "model.norm.weight"
        }
        assert adapters.learning(whole) == sum(counted.values())
    thin = tmp_path / "thin"
    model = hub.load(base)
    lora.attach(model, lora.Adapter(rank=3, alpha=6.0, base=base))
    hub.save(model, thin, tokenizer_dir=base)
    (thin / "recipe.yaml").write_text(yaml.safe_dump({"train": []}))
    inner = model.config.intermediate_size
    assert adapters.learning(thin) == 4 * 3 * (4 * (32 + 32) + 3 * (32 + inner))


def test_tables_and_curves(adapters: ModuleType, tmp_path: Path) -> None:
    rows = {
        "PPO, rank 8": [{"learning": 7.0, "graded": 0.5, "kl": 0.25}],
        "rank 8": [{"learning": 10.0, "loss": x, "graded": 0.25, "known_accuracy": 0.75} for x in (0.5, 0.7)],
        "all weights": [{"learning": 1000.0, "loss": 0.5, "graded": -0.5, "known_accuracy": 0.9}],
    }
    said = adapters.table(rows).splitlines()
    assert said[0] == "| | learns | held-out loss | graded | known | seeds |"
    assert said[2] == "| all weights | 1,000 | 0.500 | -0.500 | 90.0 | 1 |"
    assert said[3].startswith("| rank 8 | 10 | 0.600 (0.500 to 0.700) | +0.250 (+0.250 to +0.250) |")
    assert said[3].endswith("| 75.0 (75.0 to 75.0) | 2 |")
    assert said[5] == "| | learns | graded | KL | seeds |"
    assert said[7] == "| PPO, rank 8 | 7 | +0.500 | 0.25 | 1 |"
    runs = {}
    for name in ("rank 8", "all weights", "PPO, rank 8", "PPO, rank 32"):
        runs[name] = [tmp_path / name]
        runs[name][0].mkdir()
        found = [{"step": i, "gold/graded_reward": 1 / (i + 1), "eval_loss": 2.0} for i in range(9)]
        (runs[name][0] / "metrics.jsonl").write_text("\n".join(map(json.dumps, found)))
    tree = ElementTree.fromstring(adapters.drawn(runs))
    names = [span.text for span in tree.iter("{http://www.w3.org/2000/svg}tspan")]
    assert names[1:3] == ["all weights", "rank 8"]
    assert names[4:] == ["rank 32", "rank 8"]
