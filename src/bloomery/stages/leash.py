"""What ties a policy to a frozen reference: what divergence costs, and where it is charged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor

from bloomery.errors import UsageError
from bloomery.objectives.advantage import leashed_rewards
from bloomery.objectives.policy import adapted_kl_coef, kl_estimators, log_ratio
from bloomery.stages.online import Online


class Leashed(Online):
    """What every stage is told whose policy is held to a reference."""

    kl_coef: float = Field(0.2, ge=0)
    """beta: what a nat of divergence from the reference costs."""
    kl_in: Literal["loss", "reward"] = "reward"
    """Whether divergence is a term of the loss or taken from the reward."""
    kl_estimator: str | None = None
    """k1, k2 or k3; k3 in the loss and k1 in the reward when not given."""
    kl_target: float | None = Field(None, gt=0)
    """Divergence of an answer, in nats, that `kl_coef` is steered towards from step to step."""
    target_kl: float | None = Field(0.05, gt=0)
    """Stop a step's passes when the policy has moved this far (nats a token) from where it sampled."""
    sampler_tolerance: float = Field(1e-5, ge=0)
    """Where sampler and trainer differ by more than this in a token's log-prob, the trainer's are used."""

    @property
    def divergence(self) -> Callable[[Tensor], Tensor]:
        """The KL estimator."""
        return kl_estimators[self.kl_estimator or ("k3" if self.kl_in == "loss" else "k1")]

    @model_validator(mode="after")
    def _steerable(self) -> Leashed:
        if self.kl_estimator is not None:
            kl_estimators[self.kl_estimator]
        if self.kl_target is not None and self.kl_coef == 0:
            raise UsageError("kl_target steers kl_coef by factors", got="kl_coef=0", expected="above 0")
        return self


def without_effect(recipe: Leashed) -> list[str]:
    """What is set of the leash and changes nothing in this run."""
    said = []
    if recipe.kl_coef == 0 and recipe.kl_estimator is not None:
        said.append("kl_estimator changes nothing: kl_coef is 0")
    if recipe.kl_coef > 0 and recipe.kl_in == "loss" and recipe.kl_estimator == "k1":
        said.append(
            "k1 in the loss is no leash, its gradient averages to zero: use k2 or k3, or kl_in=reward"
        )
    return said


def rewards_of(recipe: Leashed, scores: Tensor, away: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Rewards of tokens `[B, T]`: scores on the last, less the price of divergence if it is charged here.

    Args:
        scores: `[B]`.
        away: `[B, T]`, `log pi - log pi_ref` at sampling.
    """
    taken = kl_coef if recipe.kl_in == "reward" else 0.0
    return leashed_rewards(scores, recipe.divergence(away), mask, taken)


def losses_of(
    recipe: Leashed, losses: Tensor, logprobs: Tensor, reference: Tensor, mask: Tensor, kl_coef: float
) -> Tensor:
    """Losses of tokens `[B, T]`, plus the price of divergence if it is charged here.

    Args:
        losses, logprobs, reference: `[B, T]`: policy losses, log-probs of the policy as it is, and the
            reference's.
    """
    if recipe.kl_in == "reward":
        return losses
    return losses + kl_coef * recipe.divergence(log_ratio(logprobs, reference, mask))


def steer(recipe: Leashed, state: dict[str, Any], metrics: Mapping[str, float]) -> None:
    """With `kl_target`, put the next step's coefficient into a run's state, from what a step logged."""
    if recipe.kl_target is not None:
        state["kl_coef"] = adapted_kl_coef(state["kl_coef"], metrics["objective/kl"], recipe.kl_target)
