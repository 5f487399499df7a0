"""Who is better, from who beat whom: Bradley-Terry strengths and Elo ratings.

P(i beats j) = sigmoid(s_i - s_j)   (Bradley and Terry 1952); a tie is half a win for each side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bloomery.errors import DataError
from bloomery.feedback.pairs import by_content
from bloomery.seeds import stream
from bloomery.types import Ranking, ranked_pairs

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Game:
    """One comparison. Games of one `group` (a prompt) are resampled together, since they hang together."""

    winner: str
    loser: str
    tie: bool = False
    group: str = ""


@dataclass(frozen=True, slots=True)
class Strength:
    """Strength in log-odds (0 is the mean player) with its 95 % interval, and the share of games won."""

    name: str
    strength: float
    low: float
    high: float
    num_games: int
    win_share: float


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """Players, best first. `islands` are the groups of players that games connect: strengths compare only
    within one. `bounded` says that every player of an island both beat and lost to the rest of it, directly
    or not (Ford 1957); without that the likelihood has no maximum and the prior sets the distance."""

    players: tuple[Strength, ...]
    islands: tuple[tuple[str, ...], ...]
    bounded: bool


def games(rankings: Iterable[Ranking]) -> list[Game]:
    """All pairs of all submitted rankings as games between policies; a policy does not play itself."""
    found = []
    for key, group in by_content(rankings).items():
        for ranking in group:
            policies = [candidate.policy.id for candidate in ranking.completions]
            for i, j, tie in ranked_pairs(ranking.ranking or ()):
                if policies[i] != policies[j]:
                    found.append(Game(policies[i], policies[j], tie, key))
    return found


def fit(wins: Floats, prior: float = 0.1) -> Floats:
    """Strengths [n] of maximum posterior, mean 0, for wins[i, j] = (times i beat j) + (ties) / 2.

    The prior is `prior` drawn games of every player against one of strength 0: weak, and enough to keep
    every strength finite. Newton's method on a concave function, with step halving.
    """
    num = len(wins)
    total = wins + wins.T

    def value(s: Floats) -> float:
        apart = s[:, None] - s[None, :]
        against_zero = np.logaddexp(0, s) + np.logaddexp(0, -s)
        return float(-(wins * np.logaddexp(0, -apart)).sum() - prior / 2 * against_zero.sum())

    s = np.zeros(num)
    for _ in range(100):
        p, p0 = _sigmoid(s[:, None] - s[None, :]), _sigmoid(s)
        gradient = (wins - total * p).sum(axis=1) + prior * (0.5 - p0)
        weight = total * p * (1 - p)
        hessian = np.diag(weight.sum(axis=1) + prior * p0 * (1 - p0)) - weight
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while value(s + size * step) < value(s) - 1e-12 and size > 1e-6:
            size /= 2
        s = s + size * step
        if np.abs(size * step).max() < 1e-10:
            break
    centred: Floats = s - s.mean()
    return centred


def leaderboard(
    played: Sequence[Game], *, prior: float = 0.1, num_bootstrap: int = 200, seed: int = 0
) -> Leaderboard:
    """Strengths with percentile intervals from resampling groups. Raises `DataError` if nobody played."""
    if not played:
        raise DataError("no comparisons between different policies", do="rank answers of at least two")
    names = sorted({game.winner for game in played} | {game.loser for game in played})
    keys = sorted({game.group for game in played})
    number, place = {name: i for i, name in enumerate(names)}, {key: g for g, key in enumerate(keys)}
    winner = np.array([number[game.winner] for game in played])
    loser = np.array([number[game.loser] for game in played])
    group = np.array([place[game.group] for game in played])
    tie = np.array([game.tie for game in played])

    def table(weight: Floats) -> Floats:
        wins = np.zeros((len(names), len(names)))
        np.add.at(wins, (winner, loser), weight * np.where(tie, 0.5, 1.0))
        np.add.at(wins, (loser, winner), weight * np.where(tie, 0.5, 0.0))
        return wins

    wins = table(np.ones(len(played)))
    strengths = fit(wins, prior)
    rng = stream(seed, "bradley-terry")
    draws = rng.multinomial(len(keys), np.full(len(keys), 1 / len(keys)), size=num_bootstrap)
    samples = np.array([fit(table(draw[group].astype(np.float64)), prior) for draw in draws])
    low, high = np.quantile(samples, [0.025, 0.975], axis=0)
    num_games = (wins + wins.T).sum(axis=1)
    islands, bounded = connectivity(wins)
    return Leaderboard(
        players=tuple(
            Strength(
                names[i],
                float(strengths[i]),
                float(low[i]),
                float(high[i]),
                round(num_games[i]),
                float(wins[i].sum() / num_games[i]),
            )
            for i in np.argsort(-strengths, kind="stable")
        ),
        islands=tuple(tuple(names[i] for i in island) for island in islands),
        bounded=bounded,
    )


def connectivity(wins: Floats) -> tuple[list[list[int]], bool]:
    """Groups of players joined by games, and whether within each everyone reaches everyone by wins."""
    reach = _closure(wins > 0)
    joined = _closure((wins + wins.T) > 0)
    islands: list[list[int]] = []
    for i in range(len(wins)):
        if not any(i in island for island in islands):
            islands.append(np.flatnonzero(joined[i]).tolist())
    return islands, bool((reach == joined).all())


def elo(played: Iterable[Game], *, k: float = 32.0, start: float = 1000.0) -> dict[str, float]:
    """Ratings after the games in their order: r += k (score - 1 / (1 + 10^((other - r) / 400)))  (Elo 1978).

    Depends on the order, unlike Bradley-Terry; 400 points are odds of 10 to 1.
    """
    ratings: dict[str, float] = {}
    for game in played:
        one, two = ratings.setdefault(game.winner, start), ratings.setdefault(game.loser, start)
        expected = 1 / (1 + 10 ** ((two - one) / 400))
        change = k * ((0.5 if game.tie else 1.0) - expected)
        ratings[game.winner], ratings[game.loser] = one + change, two - change
    return ratings


def _sigmoid(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -x))


def _closure(edges: NDArray[np.bool_]) -> NDArray[np.bool_]:
    reach = edges | np.eye(len(edges), dtype=bool)
    while True:
        further = (reach.astype(np.int64) @ reach.astype(np.int64)) > 0
        if (further == reach).all():
            return reach
        reach = further
