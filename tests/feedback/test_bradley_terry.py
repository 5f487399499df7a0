"""Bradley-Terry strengths against a closed form, published estimates and its own likelihood equations;
intervals that cover; what is said when the games do not connect the players; Elo by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from judgements import ranking

from bloomery.errors import DataError
from bloomery.feedback.bradley_terry import Game, connectivity, elo, fit, games, leaderboard

# American League East, 1987 (Agresti, Categorical Data Analysis, table 10.10): row beat column.
TEAMS = ["Milwaukee", "Detroit", "Toronto", "New York", "Boston", "Cleveland", "Baltimore"]
BASEBALL = np.array(
    [
        [0, 7, 9, 7, 7, 9, 11],
        [6, 0, 7, 5, 11, 9, 9],
        [4, 6, 0, 7, 7, 8, 12],
        [6, 8, 6, 0, 6, 7, 10],
        [6, 2, 6, 7, 0, 7, 12],
        [4, 4, 5, 6, 6, 0, 6],
        [2, 4, 1, 3, 1, 7, 0],
    ],
    dtype=float,
)


def test_two_players_have_a_closed_form() -> None:
    strengths = fit(np.array([[0.0, 3.0], [1.0, 0.0]]), prior=1e-12)
    assert strengths[0] - strengths[1] == pytest.approx(math.log(3))
    assert strengths.sum() == pytest.approx(0)


def test_published_estimates_are_reproduced() -> None:
    strengths = fit(BASEBALL, prior=1e-9)
    # Estimates as printed, Baltimore at 0.
    assert strengths - strengths[6] == pytest.approx([1.58, 1.44, 1.29, 1.25, 1.11, 0.68, 0.0], abs=0.005)


def test_expected_wins_equal_wins_at_the_maximum() -> None:
    s = fit(BASEBALL, prior=1e-9)
    chance = 1 / (1 + np.exp(s[None, :] - s[:, None]))
    assert ((BASEBALL + BASEBALL.T) * chance).sum(axis=1) == pytest.approx(BASEBALL.sum(axis=1))


def test_the_prior_keeps_an_unbeaten_player_finite() -> None:
    s = fit(np.array([[0.0, 5.0], [0.0, 0.0]]), prior=0.1)
    # By symmetry s = (x, -x): 5 sigmoid(-2x) = 0.1 (sigmoid(x) - 1/2).
    x = s[0]
    assert 5 / (1 + math.exp(2 * x)) == pytest.approx(0.1 * (1 / (1 + math.exp(-x)) - 0.5))
    assert 0 < x < 10


def test_a_tie_is_half_a_win_each() -> None:
    played = [Game("a", "b", group="1"), Game("a", "b", tie=True, group="2")]
    board = leaderboard(played, prior=1e-12, num_bootstrap=2)
    assert [player.name for player in board.players] == ["a", "b"]
    assert board.players[0].win_share == 0.75
    assert board.players[0].strength - board.players[1].strength == pytest.approx(math.log(3))


def test_rankings_become_games_between_different_policies() -> None:
    one = ranking((2, 1, 1))
    twice = one.model_copy(
        update={"completions": (one.completions[0], one.completions[1], one.completions[1])}
    )
    played = games([twice])
    assert [(game.winner, game.loser, game.tie) for game in played] == [("b", "a", False)] * 2


def test_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    truth, covered = {"a": 0.8, "b": 0.0, "c": -0.8}, 0
    for trial in range(30):
        played = []
        for group in range(60):
            one, two = rng.choice(["a", "b", "c"], size=2, replace=False)
            wins = rng.random() < 1 / (1 + math.exp(truth[two] - truth[one]))
            played.append(Game(*((one, two) if wins else (two, one)), group=str(group)))
        board = leaderboard(played, num_bootstrap=60, seed=trial)
        covered += sum(player.low <= truth[player.name] <= player.high for player in board.players)
    assert 0.85 <= covered / 90 <= 1.0


def test_islands_and_unbeaten_players_are_reported() -> None:
    apart = [Game("a", "b"), Game("b", "a"), Game("c", "d"), Game("d", "c")]
    board = leaderboard(apart, num_bootstrap=2)
    assert board.islands == (("a", "b"), ("c", "d"))
    assert board.bounded
    assert not leaderboard([Game("a", "b"), Game("b", "c")], num_bootstrap=2).bounded
    assert connectivity(BASEBALL) == ([list(range(7))], True)


def test_nobody_played() -> None:
    with pytest.raises(DataError, match="no comparisons"):
        leaderboard([])


def test_elo_by_hand() -> None:
    # First game between equals: expected 1/2, so 16 points pass. Then a tie: b expected
    # 1 / (1 + 10^(32 / 400)) = 0.45408 and got 0.5, so gains 32 * 0.04592 = 1.46944.
    ratings = elo([Game("a", "b"), Game("b", "a", tie=True)])
    assert ratings["a"] == pytest.approx(1016 - 1.46944, abs=1e-3)
    assert ratings["a"] + ratings["b"] == pytest.approx(2000)
