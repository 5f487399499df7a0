"""Compared: what a registry gives back with what was put in, and what it says about a miss or a duplicate."""

from __future__ import annotations

import pytest

from bloomery.errors import UsageError
from bloomery.registry import Registry


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
