"""The two laws against curves made from known coefficients, the peaks against a fine grid, the intervals
against how often they hold, and the stop rule against runs worked out by hand."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from bloomery.errors import UsageError
from bloomery.evals import overoptimisation as over
from bloomery.evals.overoptimisation import (
    Fit,
    Law,
    Verdict,
    along_runs,
    budget_rule,
    fit,
    over_prompts,
    stop_rule,
)

D = np.sqrt([0.0, 0.2, 0.7, 1.5, 3.0, 6.0, 12.0, 25.0])


def law(name: Law, d: float, start: float, alpha: float, beta: float) -> float:
    if name == "bon":
        return start + d * (alpha - beta * d)
    return start + d * (alpha - beta * math.log(d)) if d else start


def exact(name: Law, start: float, alpha: float, beta: float, d: np.ndarray = D) -> Fit:
    gold = [law(name, x, start, alpha, beta) for x in d]
    return fit(name, d, gold, np.array([gold, gold]))


@pytest.mark.parametrize("name", over.LAWS)
@pytest.mark.parametrize(("start", "alpha", "beta"), [(-0.3, 0.8, 0.25), (0.5, 1.5, 0.6), (0.1, -0.2, 0.4)])
def test_coefficients_and_peak_of_a_curve_that_follows_the_law(
    name: Law, start: float, alpha: float, beta: float
) -> None:
    found = exact(name, start, alpha, beta)
    assert (found.start.value, found.alpha.value, found.beta.value) == pytest.approx((start, alpha, beta))
    assert found.alpha.low == found.alpha.high == pytest.approx(alpha)
    assert found.r2 == pytest.approx(1.0)
    assert found.num == 8
    grid = np.linspace(0.0, 60.0, 60_001)
    curve = [law(name, x, start, alpha, beta) for x in grid]
    assert found.gold(grid[::1000]) == pytest.approx(curve[::1000])
    assert found.peak is not None
    highest = int(np.argmax(curve))
    assert found.peak.d.value == pytest.approx(grid[highest], abs=2e-3)
    assert found.peak.kl.value == pytest.approx(found.peak.d.value**2)
    assert found.peak.gain.value == pytest.approx(curve[highest] - start, abs=1e-6)
    assert found.peak.reached == (grid[highest] <= D[-1])
    assert found.peak.share == 1.0


def test_by_hand() -> None:
    """d (2 - d / 2) is highest at d = 2, where it is 2; d (2 - log d) at d = e, where it is e."""
    peak = exact("bon", 0.0, 2.0, 0.5).peak
    assert peak is not None
    assert (peak.d.value, peak.kl.value, peak.gain.value) == pytest.approx((2.0, 4.0, 2.0))
    peak = exact("rl", 0.0, 2.0, 1.0).peak
    assert peak is not None
    assert (peak.d.value, peak.gain.value) == pytest.approx((math.e, math.e))


@pytest.mark.parametrize("name", over.LAWS)
def test_a_curve_that_rises_for_ever_has_no_peak(name: Law) -> None:
    for beta in (0.0, -0.2):
        found = exact(name, 0.0, 1.0, beta)
        assert found.peak is None or found.peak.d.value > 1e6  # a beta of rounding errors peaks nowhere near
    assert exact(name, 0.0, 1.0, -0.2).peak is None


def test_a_curve_that_only_falls_is_highest_at_its_start() -> None:
    peak = exact("bon", 0.3, -0.5, 0.1).peak
    assert peak is not None
    assert (peak.d.value, peak.gain.value, peak.reached) == (0.0, 0.0, True)


def test_a_peak_beyond_the_data_says_so() -> None:
    peak = exact("bon", 0.0, 2.0, 0.1).peak
    assert peak is not None
    assert peak.d.value == pytest.approx(10.0)
    assert not peak.reached


def test_a_peak_that_some_draws_do_not_have_has_no_upper_bound() -> None:
    gold = np.array([law("bon", x, 0.0, 1.0, 0.05) for x in D])
    rising = np.array([law("bon", x, 0.0, 1.0, -0.05) for x in D])
    peak = fit("bon", D, gold, np.array([gold] * 9 + [rising])).peak
    assert peak is not None
    assert peak.share == pytest.approx(0.9)
    assert peak.d.low == pytest.approx(10.0)
    assert peak.d.high is peak.kl.high is peak.gain.high is None


def test_a_law_goes_through_a_start_that_is_known() -> None:
    """By hand: at d = 1 and 2 gold gains 1 and 1 over 0.5, which is d (1.5 - 0.5 d); and log 1 is 0."""
    d = np.array([0.0, 1.0, 2.0, 0.5])
    gold = np.array([9.0, 1.5, 1.5, 0.5 + 0.5 * (1.5 - 0.25)])  # what is measured at 0 changes nothing
    found = fit("bon", d, gold, gold[None], start=0.5)
    assert (found.start.value, found.start.low, found.start.high) == (0.5, 0.5, 0.5)
    assert (found.alpha.value, found.beta.value) == pytest.approx((1.5, 0.5))
    assert fit("bon", d, gold, gold[None]).start.value > 2


def test_what_a_known_start_leaves_over_is_centred() -> None:
    """A law through a start that is 0.1 too low misses more above than below: draws keep to the law."""
    for name in over.LAWS:
        gold = np.array([law(name, x, 0.4, 0.8, 0.25) for x in D])
        curve = over.basis(name, D) @ over.coefficients(name, D, gold, 0.3)
        assert (gold - curve).mean() > 0.01
        drawn = along_runs(name, D, gold, 0.3, block=2)
        assert drawn.mean(axis=0) == pytest.approx(curve, abs=0.01)


def test_runs_that_were_asked_the_same_are_drawn_together() -> None:
    """Three leashes with one noise: drawn apart, it would seem to average out."""
    rng, held = np.random.default_rng(0), {1: 0, 3: 0}
    d = np.sqrt(np.concatenate([np.linspace(0.0, far, 60) for far in (16.0, 9.0, 4.0)]))
    truth = np.array([law("rl", x, 0.1, 0.9, 0.4) for x in d])
    for seed in range(60):
        gold = truth + np.tile(rng.normal(0.0, 0.1, 60), 3)
        for runs in held:
            draws = along_runs("rl", d, gold, 0.1, block=4, runs=runs, seed=seed)[:400]
            alpha = fit("rl", d, gold, draws, 0.1).alpha
            held[runs] += alpha.low is not None and alpha.high is not None and alpha.low < 0.9 < alpha.high
    assert held[3] >= 50
    assert held[1] < held[3] - 6
    missed = draws - over.basis("rl", d) @ over.coefficients("rl", d, gold, 0.1)
    assert missed.shape == (400, 180)


def test_gold_without_a_law() -> None:
    d, gold = [0.0, 1.0, 2.0], [1.0, 3.0, -1.0]
    near = math.exp(-0.5)
    by_hand = (3.0 + near * (1.0 - 1.0)) / (1 + 2 * near)
    assert over.smoothed(d, gold, [1.0], 1.0) == pytest.approx([by_hand])
    assert over.smoothed(d, gold, [0.0, 1.0, 2.0], 0.01) == pytest.approx(gold)
    assert over.smoothed(d, gold, [0.9, 50.0], 0.01) == pytest.approx([3.0, -1.0])  # however far it is
    assert over.smoothed(d, gold, [1.0], 1e6) == pytest.approx([1.0])


def test_the_law_that_made_a_curve_is_the_nearer_one() -> None:
    rng = np.random.default_rng(0)
    d = np.linspace(0.05, 6.0, 80)
    for name in over.LAWS:
        gold = np.array([law(name, x, 0.0, 1.2, 0.35) for x in d]) + rng.normal(0, 0.02, 80)
        fits = {one: fit(one, d, gold, gold[None]) for one in over.LAWS}
        assert over.nearest(fits) == name
        assert fits[name].r2 == pytest.approx(1.0, abs=0.02)


def test_gold_that_never_varies() -> None:
    gold = np.full(8, 0.25)
    found = fit("bon", D, gold, gold[None])
    assert found.r2 is None
    assert (found.start.value, found.alpha.value) == pytest.approx((0.25, 0.0))
    assert over.nearest({"bon": found, "rl": exact("rl", 0, 1, 1)}) == "rl"


def test_intervals_of_runs_hold_as_often_as_they_say() -> None:
    """60 runs whose noise hangs on from step to step: blocks know of that, single steps do not."""
    d, held = np.sqrt(np.linspace(0.0, 16.0, 120)), {1: 0, 12: 0}
    truth = np.array([law("rl", x, 0.1, 0.9, 0.4) for x in d])
    for seed in range(60):
        rng = np.random.default_rng(seed)
        noise = np.convolve(rng.normal(0.0, 0.1, 131), np.full(12, 1 / math.sqrt(12)), mode="valid")
        for block in held:
            draws = along_runs("rl", d, truth + noise, block=block, seed=seed)[:400]
            alpha = fit("rl", d, truth + noise, draws).alpha
            held[block] += alpha.low is not None and alpha.high is not None and alpha.low < 0.9 < alpha.high
    assert held[12] >= 48
    assert held[1] < 36


def test_drawn_prompts_keep_what_was_chosen_from_the_same_answers_together() -> None:
    level = np.random.default_rng(0).normal(0.0, 1.0, (50, 1))
    values = level + np.array([0.0, 0.5, 0.7])
    draws = over_prompts(values, seed=3)
    assert draws.shape == (over.DRAWS, 3)
    np.testing.assert_allclose(draws - draws[:, :1], [[0.0, 0.5, 0.7]] * len(draws))
    assert draws[:, 0].mean() == pytest.approx(level.mean(), abs=0.02)
    assert draws[:, 0].std() == pytest.approx(level.std() / math.sqrt(50), rel=0.1)
    assert (over_prompts(values, seed=3) == draws).all()
    assert not (over_prompts(values, seed=4) == draws).all()


def test_blocks_are_what_the_law_misses_in_the_order_it_came() -> None:
    gold = np.array([law("bon", x, 0.0, 1.0, 0.2) for x in D]) + np.arange(8) * np.array([1, -1] * 4)
    curve = over.basis("bon", D) @ over.coefficients("bon", D, gold)
    missed = gold - curve - (gold - curve).mean()
    draws = along_runs("bon", D, gold, block=3, seed=1) - curve
    assert draws.shape == (over.DRAWS, 8)
    for row in draws[:20]:
        places = [int(np.argmin(abs(missed - r))) for r in row]
        assert missed[places] == pytest.approx(row)
        assert all((b - a) % 8 == 1 for i, (a, b) in enumerate(pairwise(places)) if i % 3 < 2)
    assert len({tuple(np.round(row, 9)) for row in draws}) > 20


@pytest.mark.parametrize(
    ("d", "gold", "complaint"),
    [
        ([0.0, 1.0, 2.0, 2.0], [1.0, 2.0, 3.0, 3.0], "too few distances"),
        ([0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0], "one gold reward for each distance"),
        ([0.0, 1.0, 2.0, 3.0], [1.0, float("nan"), 3.0, 3.0], "finite"),
        ([0.0, -1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 3.0], "square root"),
        ([], [], "too few distances"),
    ],
)
def test_what_cannot_be_fitted(d: list[float], gold: list[float], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        fit("rl", d, gold, np.array([gold]))


def test_a_kl_just_below_zero_is_no_distance() -> None:
    assert over.distances([4.0, 0.0, -1e-3]).tolist() == [2.0, 0.0, 0.0]


# ------------------------------------------------------------------------------------------ where to stop


def test_the_run_ends_when_the_witness_has_stopped_rising_and_the_proxy_has_not() -> None:
    proxy = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    witness = [0.0, 1.0, 2.0, 3.0, 2.5, 2.0, 1.5, 9.0]
    assert stop_rule(proxy, witness, window=1, patience=3) == Verdict(best=3, stop=6)
    assert stop_rule(proxy, witness, window=1, patience=2) == Verdict(best=3, stop=5)
    # A rule that would have waited sees the end: 9 is a new best.
    assert stop_rule(proxy, witness, window=1, patience=4) == Verdict(best=7, stop=None)


def test_the_witness_must_keep_pace() -> None:
    """For three steps it gains what the proxy gains, from then on a quarter; it never stops rising."""
    proxy = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    witness = [0.0, 1.0, 2.0, 3.0, 3.25, 3.5, 3.75, 4.0]
    for share in (0.0, 0.2):
        assert stop_rule(proxy, witness, window=1, patience=2, share=share).stop is None
    for share in (0.3, 0.5, 0.9):
        assert stop_rule(proxy, witness, window=1, patience=2, share=share) == Verdict(best=3, stop=5)
    assert stop_rule(proxy, witness, window=2, patience=2, share=0.5) == Verdict(best=4, stop=6)
    # In means of two the difference was .25, .75, 1.25, 1.375, 1.125; now it is 4, 0, 0, 0, -.75 and so on.
    assert stop_rule(proxy, [4.0, *witness[1:]], window=1, patience=7, share=1.0) == Verdict(best=0, stop=7)
    falling = proxy[::-1]
    assert stop_rule(falling, falling, window=1, patience=2, share=0.5).stop is None


def test_where_the_proxy_does_not_rise_either_nothing_is_exploited() -> None:
    witness = [0.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    level = [0.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert stop_rule(level, witness, window=1, patience=2) == Verdict(best=2, stop=None)
    late = [0.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.5]
    assert stop_rule(late, witness, window=1, patience=2) == Verdict(best=2, stop=6)


def test_means_of_a_window_see_past_one_lucky_step() -> None:
    proxy = [float(i) for i in range(10)]
    lucky = [0.0, 5.0, 0.0, 3.0, 3.0, 3.0, 2.0, 1.0, 0.0, 0.0]
    assert stop_rule(proxy, lucky, window=1, patience=3) == Verdict(best=1, stop=4)
    # Means of three: 5/3, 8/3, 2, 3, 8/3, 2, 1, 1/3; the highest ends at step 5.
    assert stop_rule(proxy, lucky, window=3, patience=3) == Verdict(best=5, stop=8)


def test_a_run_that_asks_at_every_step_is_told_the_same() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        proxy = (np.arange(60) * 0.05 + rng.normal(0, 0.2, 60)).tolist()
        witness = (-0.002 * (np.arange(60) - 25.0) ** 2 + rng.normal(0, 0.2, 60)).tolist()
        kl = (np.arange(60) * 0.05 + rng.normal(0, 0.1, 60)).tolist()
        for rule in (
            lambda n, p=proxy, w=witness: stop_rule(p[:n], w[:n], window=4, patience=8),
            lambda n, p=proxy, w=witness, kl=kl: stop_rule(
                p[:n], w[:n], kl[:n], window=4, patience=8, budget=1.0
            ),
            lambda n, kl=kl: budget_rule(kl[:n], window=4, budget=1.0),
        ):
            whole, asked = rule(60), [rule(n) for n in range(1, 61)]
            first = next((n for n, said in enumerate(asked) if said.stop is not None), None)
            assert first == whole.stop
            assert whole.stop is None or asked[whole.stop].best == whole.best
            # The weights of the step that is named were held when it was the newest.
            assert whole.stop is None or asked[whole.best].best == whole.best


def test_runs_too_short_to_say_anything() -> None:
    assert stop_rule([1.0], [1.0], window=3, patience=1) == Verdict(best=0, stop=None)
    assert stop_rule([1.0, 2.0], [2.0, 1.0], window=3, patience=1) == Verdict(best=1, stop=None)
    assert stop_rule([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], window=3, patience=1) == Verdict(best=2, stop=None)
    for proxy, witness in (([], []), ([1.0], [1.0, 2.0])):
        with pytest.raises(UsageError, match="a number of each step"):
            stop_rule(proxy, witness, window=1, patience=1)
    with pytest.raises(UsageError, match="from every column\n  got: 2, 2, 1"):
        stop_rule([1.0, 2.0], [1.0, 2.0], [0.1], window=1, patience=1, budget=1.0)


def test_the_witness_is_heard_between_half_of_the_budget_and_twice_of_it() -> None:
    proxy = [float(i) for i in range(10)]
    witness = [9.0, 0.0, 0.0, 1.0, 2.0, 3.0, 2.0, 2.0, 2.0, 9.0]
    kl = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5]
    heard = partial(stop_rule, proxy, witness, kl, window=1)
    # The first step is lucky. Nobody listens before 1 nat, and what comes after 4 nats is too late.
    assert heard(patience=3) == Verdict(best=0, stop=3)
    assert heard(patience=3, budget=2.0) == Verdict(best=5, stop=8)
    assert heard(patience=3, budget=3.0) == Verdict(best=5, stop=8)  # after 2.5 of 3 nats
    assert heard(patience=4, budget=2.0) == Verdict(best=5, stop=9)
    assert heard(patience=9, budget=2.0) == Verdict(best=5, stop=9)
    assert heard(patience=9, budget=1.9) == Verdict(best=5, stop=8)
    assert heard(patience=9, budget=2.25) == Verdict(best=9, stop=None)
    # Twice the budget is 2: the step before is the best that there was, though not the best to come.
    assert heard(patience=9, budget=1.0) == Verdict(best=4, stop=5)
    # Never half of the budget: the run goes on, and its last step is the best.
    assert heard(patience=3, budget=10.0) == Verdict(best=9, stop=None)
    # Nothing to spend: the first step that spends anything ends the run.
    assert heard(patience=3, budget=0.0) == Verdict(best=0, stop=1)
    assert stop_rule([0.0], [0.0], [0.1], window=1, patience=1, budget=0.0) == Verdict(best=0, stop=0)
    # A leap over the whole band: back to the step before.
    assert stop_rule([0.0, 1.0], [0.0, 1.0], [0.1, 9.0], window=1, patience=1, budget=1.0) == Verdict(0, 1)
    # In means of three the last step has spent 4 nats (3.5, 4 and 4.5), and before it the best ends at 6.
    assert heard(window=3, patience=4, budget=2.0) == Verdict(best=9, stop=None)
    assert heard(window=3, patience=4, budget=1.99) == Verdict(best=6, stop=9)


def test_a_budget_by_itself() -> None:
    kl = [0.0, 0.5, 1.5, 1.0, 2.0, 3.0]
    assert budget_rule(kl, window=1, budget=1.0) == Verdict(best=1, stop=2)
    assert budget_rule(kl, window=1, budget=1.5) == Verdict(best=3, stop=4)
    assert budget_rule(kl, window=2, budget=1.25) == Verdict(best=3, stop=4)  # means: .25, 1, 1.25, 1.5, 2.5
    assert budget_rule(kl, window=1, budget=3.0) == Verdict(best=5, stop=None)
    assert budget_rule([0.5, 1.0], window=1, budget=0.0) == Verdict(best=0, stop=0)
    assert budget_rule([9.0], window=2, budget=1.0) == Verdict(best=0, stop=None)


def test_what_is_gained_at_a_step() -> None:
    gold = [0.0, 1.0, 2.0, 1.0, 0.0, -1.0]
    assert [over.gained(gold, 0.5, at, 1) for at in range(6)] == [-0.5, 0.5, 1.5, 0.5, -0.5, -1.5]
    # Means of three: 1, 4/3, 1, 0; the first and the last window are the first and the last that there are.
    means = [over.gained(gold, 0.0, at, 3) for at in range(6)]
    assert means == pytest.approx([1.0, 1.0, 4 / 3, 1.0, 0.0, 0.0])
    assert over.gained(gold, -1.0, 3, 100) == pytest.approx(1.5)
