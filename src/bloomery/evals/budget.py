"""How far to optimise against a reward model, as far as held-out comparisons can say.

The held-out answers are a small experiment in optimisation themselves: choosing the best of n by score is
best-of-n, `log n - (n - 1) / n` nats from answering at random, and the annotators' rankings say what it
gained. So up to the number of answers of a slate the gain is measured; beyond, there is only a law.

The rule, in order (`verdict`):

1. Against a model that orders answers no better than a coin, or than a rule that counts characters, or that
   knows no more of them than where they come from, or whose choices annotators like no better than any
   answer, nobody should optimise. "No better" is an interval that reaches down to nothing.
2. Otherwise the budget is the lower end of the interval of the KL at which the law of best-of-n (Gao et al.
   2022, see `overoptimisation`), fitted to the measured gains, is highest; and never more than `STRETCH`
   times the distance sqrt(KL) that was measured. The second is a convention, not a finding: a law fitted to
   few answers says little of what lies far beyond them.

Reinforcement learning spends more KL than best-of-n for as much optimisation (Gao et al. 2022, section 4), so
that a budget in nats is rather too small for it than too large. What no comparison can say is what a policy
would find that no held-out answer shows.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import torch

from bloomery.evals import overoptimisation as law
from bloomery.evals.comparisons import Scored
from bloomery.evals.overoptimisation import Floats
from bloomery.objectives.search import best_of_n_kl, expected_best

STRETCH = 2.0
"""Times the distance sqrt(KL) that was measured: four times the nats."""
OVERSURE = 0.1
"""Surer than right by this much, or expected calibration error: worth a warning."""


def choosing(held_out: Sequence[Scored]) -> dict[str, Any] | None:
    """What annotators say of the best of n answers by score: `curve`, a row for each n with its KL in nats,
    the `gain` over a random answer with its interval, and the share of the other answers that it stands
    `above`.

    Gains are in standard deviations of worth: where an answer is i-th from below of K, it is worth the
    expected i-th of K draws from a normal distribution (Thurstone's scale), over all annotators; a tie has
    the mean of its places. On this scale the gain of a judge whose errors are normal too stays in proportion
    to sqrt(KL) (nearly), so where the law falls there is more to it than noise (regressional against extremal
    Goodhart, Gao et al. 2022, section 4).

    Only answers count that all annotators of the slate ranked, and only slates with as many of them as half
    of all slates have at least. None where no slate has two. Intervals draw prompts. `peak` is the KL at
    which the law is highest, with its interval, null where it never is; it is missing where fewer than four
    n were measured.
    """
    slates = [(s, _whole(s)) for s in held_out]
    sizes = Counter(len(answers) for _, answers in slates if len(answers) > 1)
    if not sizes:
        return None
    widest = max(k for k in sizes if sum(n for size, n in sizes.items() if size >= k) * 2 >= sizes.total())
    gains, above = defaultdict[str, list[list[float]]](list), defaultdict[str, list[list[float]]](list)
    for slate, answers in slates:
        if len(answers) >= widest:
            scores = torch.tensor([[slate.scores[k] for k in answers]])
            for found, worth in zip((gains, above), _worth(slate, answers), strict=True):
                values = torch.tensor(worth)[None]
                found[slate.id].append(
                    [float(expected_best(scores, values, n)) for n in range(1, widest + 1)]
                )
    gain, share = (np.array([np.mean(rows, axis=0) for rows in found.values()]) for found in (gains, above))
    kl = [best_of_n_kl(n) for n in range(1, widest + 1)]
    drawn, shares = law.over_prompts(gain), law.over_prompts(share)
    measured: dict[str, Any] = {"num_prompts": len(gain), "curve": []}
    for n, nats in enumerate(kl):
        row = asdict(law.ranged(float(gain[:, n].mean()), drawn[:, n]))
        beside = law.ranged(float(share[:, n].mean()), shares[:, n])
        measured["curve"].append(
            {"n": n + 1, "kl": nats, "gain": row.pop("value")} | row | {"above": asdict(beside)}
        )
    if widest >= law.FEWEST:
        measured["peak"] = _peak(law.distances(kl), gain.mean(axis=0), drawn)
    return measured


def _whole(slate: Scored) -> list[int]:
    """The answers that every annotator of a slate ranked."""
    return [k for k in range(len(slate.texts)) if all(row[k] > 0 for row in slate.ranks)]


def _worth(slate: Scored, answers: Sequence[int]) -> tuple[Floats, Floats]:
    """What each answer is worth, the mean over annotators: on Thurstone's scale, and as the share of the
    others that it stands above, of which a tie counts one half."""
    table = np.array([[row[k] for k in answers] for row in slate.ranks])
    worse = (table[:, None, :] > table[:, :, None]).sum(axis=2)
    alike = (table[:, None, :] == table[:, :, None]).sum(axis=2)
    places = np.concatenate([[0.0], np.cumsum(normal_places(len(answers)))])
    on_scale = (places[worse + alike] - places[worse]) / alike
    share = (worse + (alike - 1) / 2) / (len(answers) - 1)
    return on_scale.mean(axis=0), share.mean(axis=0)


@cache
def normal_places(num: int) -> Floats:
    """The expected i-th lowest of `num` draws from a standard normal distribution, `[num]`."""
    x = np.linspace(-9.0, 9.0, 3601)
    density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    below = 0.5 + 0.5 * np.vectorize(math.erf)(x / math.sqrt(2))
    found = [
        np.sum(x * density * (num - i) * math.comb(num, i) * below**i * (1 - below) ** (num - 1 - i))
        for i in range(num)
    ]
    places: Floats = np.array(found) * (x[1] - x[0])
    return places


def _peak(d: Floats, gain: Floats, drawn: Floats) -> dict[str, float | None]:
    """The KL at which the law of best-of-n is highest, None where it never is, with its interval."""
    at, _ = law.peaks("bon", law.coefficients("bon", d, gain)[None])
    ends, _ = law.peaks("bon", law.coefficients("bon", d, drawn))
    found = law.ranged(float(at[0] ** 2), ends**2)
    return {"kl": found.value if math.isfinite(found.value) else None, "low": found.low, "high": found.high}


# ----------------------------------------------------------------------------------------------- the verdict


def verdict(card: Mapping[str, Any]) -> dict[str, Any]:
    """Whether to optimise against the model of a report card: `optimise` (None where nothing was compared),
    `kl` in nats, how many answers the best of which goes as far (`best_of`), a `sentence`, and `notes`.

    `card` is what `reward.report_card` finds.
    """
    if card["accuracy"] is None:
        return _said(None, 0.0, "Nothing was held out to compare: nothing can be said of this reward model.")
    seen = f"it orders {percent(card)} of {card['num_pairs']:,} held-out comparisons as annotators do"
    for wrong in (_coin(card), _simpler(card), _choice(card)):
        if wrong:
            return _said(False, 0.0, f"Do not optimise against it: {seen}, {wrong}.", notes(card))
    kl, why = _reach(card["choosing"])
    top = card["choosing"]["curve"][-1]
    above = percent({"accuracy": top["above"]["value"], **top["above"]})
    sentence = (
        f"Good enough to optimise against, up to a KL of about {kl:.1f} nats, as far as best-of-"
        f"{best_of(kl)}: {seen}, and the best of {top['n']} by its score, {top['kl']:.2f} nats away, stands "
        f"above {above} of the other answers, where a random one stands above 50 %. Farther, {why}."
    )
    return _said(True, kl, sentence, notes(card))


def _said(optimise: bool | None, kl: float, sentence: str, others: Sequence[str] = ()) -> dict[str, Any]:
    found = {"optimise": optimise, "kl": kl, "best_of": best_of(kl)}
    return found | {"sentence": sentence, "notes": list(others)}


def _reach(found: Mapping[str, Any]) -> tuple[float, str]:
    """The budget in nats, and what sets it."""
    farthest = STRETCH**2 * found["curve"][-1]["kl"]
    low = found.get("peak", {}).get("low")
    if low is not None and low < farthest:
        return low, "the law that fits these gains (Gao et al. 2022) may already fall"
    return (
        farthest,
        f"nothing was measured: a law is trusted to {STRETCH:.0f} times the distance, the root of the KL",
    )


def _coin(card: Mapping[str, Any]) -> str | None:
    if card["high"] < 0.5:
        return "that is, it prefers the answers they rejected: are chosen and rejected swapped somewhere?"
    return "which cannot be told from tossing a coin" if card["low"] <= 0.5 else None


def _simpler(card: Mapping[str, Any]) -> str | None:
    """A rule that knows less and does as well."""
    length, given = card["baselines"]["length"], card["given_sources"]
    if length["lead"]["low"] <= 0:
        mean, low, high = (100 * length["lead"][end] for end in ("mean", "low", "high"))
        lead = f"{mean:+.1f} points [{low:+.1f} to {high:+.1f}]".replace("-", "−")
        return f"no better than a rule that only counts characters ({percent(length)}; the lead is {lead})"
    if given["accuracy"] is not None and given["low"] <= 0.5:
        return (
            "but knows no more of them than where they come from: where both sources win equally often it is "
            f"right in {percent(given)}"
        )
    return None


def _choice(card: Mapping[str, Any]) -> str | None:
    """Annotators like what it chooses no better than any answer."""
    found = card["choosing"]
    if found is None:
        return "but no prompt has two answers that all its annotators ranked, so no choice was measured"
    top = found["curve"][-1]
    return (
        None if top["low"] > 0 else f"but its best of {top['n']} answers is liked no better than any of them"
    )


def notes(card: Mapping[str, Any]) -> list[str]:
    """What else to know before optimising, in sentences."""
    found = [*_beside_annotators(card)]
    alone = next((row for row in card["groups"]["sources"] if row["name"] == "of one source"), None)
    if alone is None:
        found.append(
            "No comparison is known to be between two answers of one source, and an optimised policy gives "
            "only such: whether it tells those apart was not measured."
        )
    else:
        doubt = ", which cannot be told from a coin" if alone["low"] <= 0.5 <= alone["high"] else ""
        found.append(
            "Between two answers of one source, and an optimised policy gives only such, it is right in "
            f"{percent(alone)} of {alone['num_pairs']:,}{doubt}."
        )
    prior = card["baselines"]["prior"]
    if prior["lead"]["low"] <= 0 and prior["low"] > 0.5:
        found.append(
            f"A rule that only knows the source of an answer is right in {percent(prior)}: much of what is "
            "compared here is told by that alone."
        )
    trust = card["calibration"]
    if trust["surer"] > OVERSURE:
        found.append(
            f"It is surer than right by {100 * trust['surer']:.0f} points: its scale overstates what an "
            "answer is worth, and pulls too hard against a KL penalty."
        )
    elif trust["ece"] > OVERSURE:
        found.append(
            f"Its calibration error is {trust['ece']:.2f}: do not read differences of scores as odds."
        )
    found.append(
        "No comparison shows what a policy finds beyond these answers: watch a second reward model on the "
        "way, or ask people again."
    )
    return found


def _beside_annotators(card: Mapping[str, Any]) -> Iterator[str]:
    ceiling = card["ceiling"]
    if ceiling["accuracy"] is None:
        yield "No answers were ranked by two annotators, so nobody knows how good it could be."
    elif card["high"] >= ceiling["low"]:
        yield f"Annotators agree with each other on {percent(ceiling)}: it is at their ceiling."
    elif card["low"] > 0.5:
        share = (card["accuracy"] - 0.5) / (ceiling["accuracy"] - 0.5)
        yield (
            f"Annotators agree with each other on {percent(ceiling)}: it has learnt {100 * share:.0f} % of "
            "what they share beyond chance."
        )


def best_of(kl: float) -> int:
    """The largest n whose best is at most so many nats away."""
    low, high = 1, 2
    while best_of_n_kl(high) <= kl:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if best_of_n_kl(middle) <= kl else (low, middle)
    return low


def percent(row: Mapping[str, Any]) -> str:
    """An accuracy with its interval, as "71.2 % [70.1 to 72.3]"."""
    return f"{100 * row['accuracy']:.1f} % [{100 * row['low']:.1f} to {100 * row['high']:.1f}]"
