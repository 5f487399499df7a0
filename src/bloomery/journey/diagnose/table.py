"""One stage's metrics under one set of names, whoever logged them, and a few ways to look at a column."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, Literal

Json = Mapping[str, Any]
Status = Literal["finished", "running", "unfinished", "unknown"]

TREND = 10
"""A trend is not judged from fewer values than this."""

# What other programs, and other stages, call a quantity: their name -> the name used by the conditions.
# A leading "train/" is dropped and a leading "eval/" becomes "eval_" before a name is looked up.
SAME = {
    "lr": "learning_rate",
    "actor_lr": "learning_rate",
    "gpt_loss": "loss",
    "eval gpt_loss": "eval_loss",
    "eval_gpt_loss": "eval_loss",
    "acc": "accuracy",
    "eval_acc_mean": "eval_accuracy",
    "eval_rewards/accuracies": "eval_accuracy",
    "rewards/accuracies": "accuracy",
    "critic_loss": "loss/value_avg",
    "policy_loss": "loss/policy_avg",
    "ptx_loss": "loss/ptx_avg",
    "objective/scores": "reward",
    "response_length": "completions/mean_length",
    "truncated": "completions/clipped_ratio",
    "policy/entropy_avg": "entropy",
    "entropy_loss": "entropy",
    "policy/clipfrac_avg": "clip_fraction",
    "ppo_clip_ratio": "clip_fraction",
    "clip_ratio/region_mean": "clip_fraction",
    "clip_ratio": "clip_fraction",
    "ppo_kl": "policy/approxkl_avg",
    "objective/kl_k1": "kl",
    "vllm_kl": "sampling/kl",
    "timing/step_total": "step_time",
    "rollout/tok_per_sec": "tok_per_sec",
    "objective/kl_coef": "kl_coef",
}

LOOKED_AT = {
    *SAME.values(),
    *("bpb", "val/bpb", "grad_norm", "grad_norm/ppo", "grad_norm/ptx", "num_tokens", "loss/replay", "margin"),
    *("reward_std", "min_reward", "max_reward", "mean_reward", "chosen_reward", "frac_reward_zero_std"),
    *("rewards/margins", "logps/chosen", "mean_token_accuracy", "explained_variance", "objective/kl"),
    *("objective/entropy", "val/ratio", "val/ratio_var", "val/num_eos_tokens", "policy/stopped_early"),
    *("sampling/sampling_logp_difference/mean", "sampling/importance_sampling_ratio/mean"),
}
"""All names that a condition asks for; a file with none of them is of nothing that is known here."""


def common_name(name: str) -> str:
    """The name under which conditions look for what a program logged as `name`."""
    if name.startswith("eval/"):
        name = "eval_" + name.removeprefix("eval/").removeprefix("eval_").removeprefix("eval ")
    name = name.removeprefix("train/")
    return SAME.get(name, name)


@dataclass(frozen=True, slots=True)
class Column:
    """One metric over the steps that logged it, finite values only; `bad` are the steps where it was not."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    bad: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    @property
    def last(self) -> float:
        return self.values[-1]

    def part(self, start: float, stop: float) -> tuple[float, ...]:
        """The values from one fraction of the column to another; at least one."""
        first = min(int(start * len(self)), len(self) - 1)
        return self.values[first : max(first + 1, int(stop * len(self)))]

    def mean(self, start: float, stop: float) -> float:
        return fmean(self.part(start, stop))

    @property
    def head(self) -> float:
        """Mean of the first fifth."""
        return self.mean(0.0, 0.2)

    @property
    def tail(self) -> float:
        """Mean of the last fifth."""
        return self.mean(0.8, 1.0)

    def fifths(self) -> list[tuple[float, float]]:
        """(mean, standard error) of each fifth of the column."""
        return [spread(self.part(i / 5, (i + 1) / 5)) for i in range(5)]

    def moved(self) -> float:
        """How far the last fifth's mean is from the first's, in standard errors of the difference: below -3
        it clearly fell, above 3 it clearly rose."""
        (first, wide), *_, (last, narrow) = self.fifths()
        error = math.hypot(wide, narrow)
        if not error:
            return 0.0 if last == first else math.copysign(math.inf, last - first)
        return (last - first) / error


BELOW_ZERO = 0.5
"""Nats: about what an undecided pair costs (log 2). The least height of a loss whose zero means nothing."""


def height(column: Column, value: float) -> float:
    """What a change of a loss from `value` is a share of: `value`, its height above 0. A loss that goes
    below 0 (robust DPO's) has no such height: how far it fell, or |value|, and at least `BELOW_ZERO`."""
    if min(column.values) >= 0:
        return value
    return max(abs(value), column.values[0] - min(column.values), BELOW_ZERO)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and its standard error (0 for a single value)."""
    return fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Table:
    """A stage's columns by common name, and what else its directory says: `settings` is recipe.yaml with
    dotted keys, `state` is trainer_state.json, `card` is evaluation.json. Of a step of a journey: `journey`
    is the whole journey's recipe, `before` the evaluation of the model that was started from and `after` that
    of the model that was made.
    """

    name: str
    stage: str
    rows: int = 0
    columns: Mapping[str, Column] = field(default_factory=dict)
    status: Status = "unknown"
    settings: Json = field(default_factory=dict)
    journey: Json = field(default_factory=dict)
    state: Json = field(default_factory=dict)
    card: Json = field(default_factory=dict)
    before: Json = field(default_factory=dict)
    after: Json = field(default_factory=dict)

    def get(self, *names: str, least: int = 1) -> Column | None:
        """The first of these columns with at least `least` values."""
        found = (self.columns[name] for name in names if name in self.columns)
        return next((column for column in found if len(column) >= least), None)

    def trend(self, *names: str) -> Column | None:
        """The first of these columns that is long enough to have a trend."""
        return self.get(*names, least=TREND)

    @property
    def steps(self) -> int:
        """Steps done, as far as the metrics tell."""
        return max((c.steps[-1] for c in self.columns.values() if c.steps), default=-1) + 1


def number(tree: Any, *keys: str) -> float | None:
    """`number(tree, "a", "b")` is tree["a"]["b"] where that is a number, else None."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return float(tree) if isinstance(tree, int | float) and not isinstance(tree, bool) else None


def leaves(tree: Json, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What a tree of settings says, each under its dotted key."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def columns_of(rows: Iterable[tuple[int, Json]]) -> dict[str, Column]:
    """Columns by common name from (step, metrics) in order. A null and a number that is not finite count as
    bad; texts, truth values and lists are not metrics. Where two names mean the same, the plain one wins."""
    good: dict[str, list[tuple[int, float]]] = {}
    bad: dict[str, list[int]] = {}
    for step, metrics in rows:
        for name, value in metrics.items():
            found = _number(value)
            if found is None:
                continue
            if math.isfinite(found):
                good.setdefault(name, []).append((step, found))
            else:
                bad.setdefault(name, []).append(step)
    columns: dict[str, Column] = {}
    for name in sorted(good.keys() | bad.keys(), key=lambda name: (common_name(name) != name, name)):
        steps, values = zip(*good[name], strict=True) if name in good else ((), ())
        columns.setdefault(common_name(name), Column(name, steps, values, tuple(bad.get(name, ()))))
    return columns


def _number(value: Any) -> float | None:
    """NaN for null; a number written as text is that number; None for what is no metric."""
    if value is None:
        return math.nan
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
