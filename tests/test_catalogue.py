"""What `bloomery ls` lists against the registries themselves."""

from __future__ import annotations

from bloomery.cli import catalogue
from bloomery.objectives import policy, preference, reward
from bloomery.rewards.sources import sources


def cells(what: str, column: int) -> list[str]:
    return [str(cell) for cell in catalogue.LISTS[what]().columns[column].cells]


def test_every_loss_and_every_reward_is_listed_with_its_settings() -> None:
    registries = (reward.ranking_losses, reward.rating_losses, preference.losses, policy.policy_losses)
    assert cells("losses", 1) == [name for registry in registries for name in registry]
    settings = dict(zip(cells("losses", 1), cells("losses", 2), strict=True))
    assert settings["pairs"] == "label_smoothing, margin"
    assert settings["plackett-luce"] == ""
    assert cells("rewards", 1) == list(sources)
    assert all(cells("rewards", 3))
    assert dict(zip(cells("rewards", 1), cells("rewards", 2), strict=True))["exact"] == "answers, strict"
