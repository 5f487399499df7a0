"""Over-optimisation: how the gold reward rises and falls with the distance from the start, and where to stop.

Gao, Schulman & Hilton 2022, "Scaling Laws for Reward Model Overoptimization" (arXiv 2210.10760):
with d = sqrt(KL(policy || start)), what gold gains is

    best-of-n               R(d) = d (alpha - beta d)
    reinforcement learning  R(d) = d (alpha - beta log d)

Both are linear in alpha and beta, so least squares is exact. The paper centres gold on 0 at d = 0. So may
these: `start` is the level there, where it was measured; else it is a third coefficient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bloomery.errors import UsageError
from bloomery.evals.bootstrap import DRAWS, LEVEL
from bloomery.seeds import stream

Floats = NDArray[np.float64]
Law = Literal["bon", "rl"]
LAWS: tuple[Law, ...] = ("bon", "rl")
FEWEST = 4
"""Distances that differ, at least, for three coefficients and something left to judge them by."""


@dataclass(frozen=True, slots=True)
class Ranged:
    """A number with its 95 % interval; a bound is None where the data set none."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Peak:
    """Where a law is highest: `d`, its square in nats, and what gold has gained there over the start.

    `reached`: whether the data go as far. `share` of the draws have a peak at all.
    """

    d: Ranged
    kl: Ranged
    gain: Ranged
    reached: bool
    share: float


@dataclass(frozen=True, slots=True)
class Fit:
    """A law fitted to `num` points. `r2` is the share of gold's variance that it explains, None when gold
    does not vary; `peak` is None where the law rises for ever (beta <= 0)."""

    law: Law
    start: Ranged
    alpha: Ranged
    beta: Ranged
    r2: float | None
    peak: Peak | None
    num: int

    def gain(self, d: ArrayLike) -> Floats:
        """What gold gains over the start at distances `d`."""
        found: Floats = basis(self.law, d)[..., 1:] @ np.array([self.alpha.value, self.beta.value])
        return found

    def gold(self, d: ArrayLike) -> Floats:
        """Gold at distances `d`."""
        return self.start.value + self.gain(d)


def distances(kl: Sequence[float]) -> Floats:
    """sqrt of divergences in nats. A KL that is estimated from samples comes out a little below 0 near the
    start: that is distance 0."""
    return np.sqrt(np.maximum(np.asarray(kl, dtype=np.float64), 0.0))


def basis(law: Law, d: ArrayLike) -> Floats:
    """`[..., 3]` for distances `[...]`: what start, alpha and beta are multiplied with."""
    x = np.asarray(d, dtype=np.float64)
    falls = x * x if law == "bon" else x * np.log(np.where(x > 0, x, 1.0))
    return np.stack([np.ones_like(x), x, -falls], axis=-1)


def coefficients(
    law: Law, d: Sequence[float] | Floats, gold: ArrayLike, start: float | None = None
) -> Floats:
    """Start, alpha and beta `[..., 3]` of the least-squares fit to gold `[..., n]` at distances `[n]`;
    through `start`, where that is known.

    Raises `UsageError` when a number is not finite, a distance is below 0, or fewer than `FEWEST` differ.
    """
    x, y = np.asarray(d, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    if y.shape[-1:] != x.shape:
        raise UsageError("a law is fitted to one gold reward for each distance", got=f"{y.shape}, {x.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise UsageError("a law is fitted to numbers that are finite")
    if (x < 0).any():
        raise UsageError("a distance is the square root of a divergence", got=float(x.min()))
    if len(np.unique(x)) < FEWEST:
        raise UsageError(
            "too few distances to fit a law to",
            got=len(np.unique(x)),
            expected=f"at least {FEWEST} that differ",
        )
    known = 0 if start is None else 1
    found: Floats = (y - (start or 0.0)) @ np.linalg.pinv(basis(law, x)[:, known:]).T
    return found if start is None else np.insert(found, 0, start, axis=-1)


def fit(
    law: Law,
    d: Sequence[float] | Floats,
    gold: Sequence[float] | Floats,
    draws: Floats,
    start: float | None = None,
) -> Fit:
    """The law nearest to gold `[n]` at distances `[n]`, with percentile intervals.

    Args:
        draws: `[draws, n]`, gold as it could have come out as well: `over_prompts` or `along_runs`.
        start: gold at distance 0, where it is known; fitted where it is not.
    """
    x, y = np.asarray(d, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    best, drawn = coefficients(law, x, y, start), coefficients(law, x, draws, start)
    spread = float(np.square(y - y.mean()).sum())
    missed = float(np.square(y - basis(law, x) @ best).sum())
    level, alpha, beta = (ranged(best[i], drawn[:, i]) for i in range(3))
    return Fit(
        law=law,
        start=level,
        alpha=alpha,
        beta=beta,
        r2=1 - missed / spread if spread > 0 else None,
        peak=_peak(law, best, drawn, float(x.max())),
        num=len(x),
    )


def ranged(value: float, drawn: Floats) -> Ranged:
    """A number with the middle `LEVEL` of its draws; infinite bounds are none."""
    # No interpolation: halfway between a number and infinity there is nothing.
    found = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf").tolist()
    low, high = (bound if np.isfinite(bound) else None for bound in found)
    return Ranged(float(value), low, high)


def _peak(law: Law, best: Floats, drawn: Floats, farthest: float) -> Peak | None:
    (d,), (gain,) = peaks(law, best[None])
    if not np.isfinite(d * d):
        return None
    ds, gains = peaks(law, drawn)
    return Peak(
        d=ranged(d, ds),
        kl=ranged(d * d, ds * ds),
        gain=ranged(gain, gains),
        reached=bool(d <= farthest),
        share=float(np.isfinite(ds).mean()),
    )


def peaks(law: Law, found: Floats) -> tuple[Floats, Floats]:
    """The distance of each law's peak and the gain there, `[m]` each, for coefficients `[m, 3]`; both are
    infinite where beta <= 0. A law that only falls is highest where it starts."""
    alpha, beta = found[:, 1], np.where(found[:, 2] > 0, found[:, 2], np.nan)
    with np.errstate(over="ignore"):
        d = np.maximum(alpha / (2 * beta), 0.0) if law == "bon" else np.exp(alpha / beta - 1)
        gain = beta * d * d if law == "bon" else beta * d
    return np.where(np.isnan(d), np.inf, d), np.where(np.isnan(gain), np.inf, gain)


def over_prompts(values: Floats, *, seed: int = 0, draws: int = DRAWS) -> Floats:
    """Gold `[draws, n]` had other prompts been asked: prompts `[P, n]` are drawn with replacement, each with
    all of its n values, because the best of 4 and the best of 8 are chosen from the same answers."""
    num = len(values)
    counts = stream(seed, "prompts").multinomial(num, np.full(num, 1 / num), size=draws)
    found: Floats = counts @ values / num
    return found


def along_runs(
    law: Law,
    d: Sequence[float] | Floats,
    gold: Sequence[float] | Floats,
    start: float | None = None,
    *,
    block: int,
    runs: int = 1,
    seed: int = 0,
) -> Floats:
    """Gold `[DRAWS, n]` had the steps of runs fallen out otherwise: the fitted law, and what it misses drawn
    in circular blocks of `block` neighbours (Politis & Romano 1992), because what a step says is near to what
    the steps around it say. Of `runs` of one length, one after the other, the same steps are drawn together:
    with the same seed they were asked the same prompts."""
    x, y = np.asarray(d, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    curve: Floats = basis(law, x) @ coefficients(law, x, y, start)
    missed, steps = (y - curve) - (y - curve).mean(), len(x) // runs
    starts = stream(seed, "blocks").integers(0, steps, (DRAWS, -(-steps // block)))
    places = (starts[..., None] + np.arange(block)).reshape(DRAWS, -1)[:, :steps] % steps
    found: Floats = curve + np.concatenate([missed[run * steps + places] for run in range(runs)], axis=1)
    return found


def nearest(fits: Mapping[Law, Fit]) -> Law:
    """The law that explains more: both have as many coefficients, so their `r2` compare."""
    return max(fits, key=lambda law: -np.inf if (r2 := fits[law].r2) is None else r2)


def smoothed(d: ArrayLike, gold: ArrayLike, at: ArrayLike, width: float) -> Floats:
    """Gold at distances `at` without any law: the mean of `gold` over the measured distances `d`, weighted by
    a normal curve of standard deviation `width` around each (Nadaraya 1964, Watson 1964)."""
    x, y, to = (np.asarray(values, dtype=np.float64) for values in (d, gold, at))
    far = np.square((to[..., None] - x) / width) / 2
    weights = np.exp(far.min(axis=-1, keepdims=True) - far)
    found: Floats = weights @ y / weights.sum(axis=-1)
    return found


# ------------------------------------------------------------------------------------------ where to stop


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the stop rule says of a run: the step that was `best`, and at which step it ends the run, if it
    does."""

    best: int
    stop: int | None


def stop_rule(
    proxy: Sequence[float],
    witness: Sequence[float],
    kl: Sequence[float] = (),
    *,
    window: int,
    patience: int,
    share: float = 0.0,
    budget: float | None = None,
) -> Verdict:
    """Stop when what a policy is trained on still rises and what it is not trained on no longer keeps pace.

    The witness (a reward model of its own, or an ensemble less its disagreement) keeps pace while it gains
    at least `share` of what the proxy gains: while the difference, witness - share * proxy, does not fall.
    All are means over the last `window` steps. The run ends at the first step at which the difference has not
    been higher for `patience` steps and the proxy has been. No later step changes what was said of earlier
    ones, so a run may ask after each of its own. While nothing can be said the last step is the best.

    With a share of 0 the witness must have stopped rising. It often has not where gold has long been falling:
    what is left for it to gain is what it errs in as the proxy does.

    Where the reward model's report card allows a `budget` (nats, as `kl` is), the witness is not heard
    before half of it is spent, for near the start it says little but noise; and beyond twice of it the run
    ends, for the witness may err as the proxy does for ever.

    Raises `UsageError` when the lengths differ or there are no steps.
    """
    columns = [proxy, witness] if budget is None else [proxy, witness, kl]
    if not proxy or len({len(column) for column in columns}) > 1:
        got = ", ".join(str(len(column)) for column in columns)
        raise UsageError("a stop rule reads a number of each step from every column", got=got)
    if len(proxy) < window:
        return Verdict(len(proxy) - 1, None)
    p = trailing(proxy, window)
    ahead = trailing(witness, window) - share * p
    least, most = (-np.inf, np.inf) if budget is None else (budget / 2, 2 * budget)
    spent = np.zeros_like(p) if budget is None else trailing(kl, window)
    heard = np.flatnonzero(spent >= least)
    if not len(heard):
        return Verdict(len(proxy) - 1, None)
    best = int(heard[0])
    if spent[best] > most:
        return Verdict(max(best + window - 2, 0), best + window - 1)
    for step in range(best, len(p)):
        if ahead[step] > ahead[best] and spent[step] <= most:
            best = step
        elif spent[step] > most or (step - best >= patience and p[step] > p[best]):
            return Verdict(best + window - 1, step + window - 1)
    return Verdict(best + window - 1, None)


def budget_rule(kl: Sequence[float], *, window: int, budget: float) -> Verdict:
    """Stop when the mean KL of the last `window` steps is beyond what the reward model's report card allows;
    the best is the step before."""
    spent = trailing(kl, window) if len(kl) >= window else np.zeros(0)
    beyond = np.flatnonzero(spent > budget)
    if not len(beyond):
        return Verdict(len(kl) - 1, None)
    stop = int(beyond[0]) + window - 1
    return Verdict(max(stop - 1, 0), stop)


def trailing(values: Sequence[float], window: int) -> Floats:
    """Means of `window` neighbours, `[n - window + 1]`: entry i ends at value `i + window - 1`."""
    return np.convolve(np.asarray(values, dtype=np.float64), np.full(window, 1 / window), mode="valid")


def gained(gold: Sequence[float], start: float, at: int, window: int) -> float:
    """What gold has gained over `start` at step `at`: the mean of the `window` steps around it."""
    window = min(window, len(gold))
    means = trailing(gold, window) - start
    return float(means[min(max(at - window // 2, 0), len(means) - 1)])
