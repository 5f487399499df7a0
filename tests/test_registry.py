"""Compared: what a registry gives back with what was put in, and what it says about a miss or a duplicate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import pytest
from pydantic import Field

from bloomery.errors import UsageError
from bloomery.registry import Registry, settings_of


@pytest.fixture
def losses() -> Registry[str]:
    table: Registry[str] = Registry("loss")
    table.register("simpo")("S")
    table.register("dpo")("D")
    return table


def test_it_gives_back_what_was_put_in(losses: Registry[str]) -> None:
    assert losses["dpo"] == "D"
    assert losses["simpo"] == "S"
    assert list(losses) == ["dpo", "simpo"]
    assert len(losses) == 2
    assert "dpo" in losses
    assert "ipo" not in losses


def test_register_returns_the_part_so_that_it_serves_as_a_decorator() -> None:
    table: Registry[object] = Registry("reward")

    @table.register("length")
    def length() -> int:
        return 3

    assert length() == 3
    assert table["length"] is length


def test_a_miss_names_the_nearest_and_all_known(losses: Registry[str]) -> None:
    with pytest.raises(UsageError) as caught:
        losses["dop"]
    assert str(caught.value) == "no loss is called 'dop' (did you mean 'dpo'?)\n  expected: dpo, simpo"
    assert caught.value.exit_code == 2


def test_a_miss_in_an_empty_registry_says_so() -> None:
    with pytest.raises(UsageError, match=r"\(none\)"):
        Registry[int]("task")["x"]


def test_a_name_taken_twice_is_refused_and_the_first_stays(losses: Registry[str]) -> None:
    with pytest.raises(UsageError, match="loss 'dpo' is registered twice"):
        losses.register("dpo")("other")
    assert losses["dpo"] == "D"


Rule = Callable[[float], float]


@pytest.fixture
def rules() -> Registry[Rule]:
    table: Registry[Rule] = Registry("rule")

    @table.register("line")
    def line(x: float, *, slope: Annotated[float, Field(gt=0)] = 2.0, start: float = 1.0) -> float:
        return start + slope * x

    @table.register("power")
    def power(x: float, *, exponent: int) -> float:
        return float(x**exponent)

    return table


def test_settings_are_the_keyword_only_arguments(rules: Registry[Rule]) -> None:
    assert rules.bind("line", {})(3.0) == 7.0
    assert rules.bind("line", {"slope": 4})(3.0) == 13.0
    assert rules.bind("power", {"exponent": 3})(2.0) == 8.0
    assert settings_of(rules["line"])().model_dump() == {"slope": 2.0, "start": 1.0}
    assert set(settings_of(rules["power"]).model_fields) == {"exponent"}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("lime", {}, "did you mean 'line'"),
        ("line", {"slop": 1.0}, r"rule 'line': slop: .*did you mean 'slope'\?\)\n.*got: 1.0\n.*slope, start"),
        ("line", {"x": 1.0}, "x: extra inputs"),
        ("line", {"slope": -1.0}, "slope: input should be greater than 0"),
        ("line", {"slope": float("nan")}, "slope: input should be"),
        ("line", {"start": "high"}, "start: input should be a valid number"),
        ("line", {"start": True}, "start: value error, input should be a number"),
        ("power", {}, "exponent: field required"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(
    rules: Registry[Rule], name: str, settings: dict[str, float], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        rules.bind(name, settings)
