"""From rankings to pairs: K ranked answers are K(K-1)/2 comparisons, and a correction beats them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bloomery.errors import DataError
from bloomery.feedback.rows import content_key
from bloomery.types import Message, Ranking, ranked_pairs


@dataclass(frozen=True, slots=True)
class Pair:
    """One comparison. With `tie`, neither side is better and `chosen` is merely the one of lower index.

    `indices` are (chosen, rejected) positions among the ranking's completions; K stands for the correction.
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tie: bool
    indices: tuple[int, int]
    ranking_id: str
    annotator_id: str


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs, and how many rankings and pairs were left out for which reason."""

    pairs: tuple[Pair, ...]
    dropped_rankings: dict[str, int]
    dropped_pairs: dict[str, int]


def contestants(ranking: Ranking) -> tuple[tuple[tuple[Message, ...], ...], tuple[int, ...]]:
    """All answers that were ranked, as (messages, ranks): the K completions, and after them the correction
    if there is one, alone on rank 1 with every other rank one lower.

    Raises `DataError` for a record without a ranking.
    """
    if ranking.ranking is None:
        raise DataError("this record has no ranking", where=f"record {ranking.id!r}", got=ranking.status)
    answers = tuple(candidate.messages for candidate in ranking.completions)
    if ranking.correction is None:
        return answers, ranking.ranking
    correction = Message(role="assistant", content=ranking.correction)
    return (*answers, (correction,)), (*(rank + 1 for rank in ranking.ranking), 1)


def why_unusable(ranking: Ranking) -> str | None:
    """The reason a record teaches nothing: "skipped", "flagged", or "all tied" (without a correction)."""
    if ranking.status != "submitted":
        return ranking.status
    if len(set(contestants(ranking)[1])) == 1:
        return "all tied"
    return None


def ranking_to_pairs(ranking: Ranking) -> list[Pair]:
    """All pairs of one ranking, ties marked. K completions give K(K-1)/2, one with a correction K more."""
    answers, ranks = contestants(ranking)
    return [
        Pair(ranking.prompt, answers[i], answers[j], tie, (i, j), ranking.id, ranking.annotator.id)
        for i, j, tie in ranked_pairs(ranks)
    ]


def rankings_to_pairs(rankings: Iterable[Ranking], ties: bool = False) -> Pairs:
    """Pairs of many rankings, several annotators of one prompt side by side.

    Left out, and counted: records skipped or flagged; rankings in which all is tied; pairs whose two
    answers read the same; ties, unless `ties`.
    """
    kept: list[Pair] = []
    no_ranking: Counter[str] = Counter()
    no_pair: Counter[str] = Counter()
    for ranking in rankings:
        if (reason := why_unusable(ranking)) is not None:
            no_ranking[reason] += 1
            continue
        for pair in ranking_to_pairs(ranking):
            if pair.chosen == pair.rejected:
                no_pair["same text"] += 1
            elif pair.tie and not ties:
                no_pair["tie"] += 1
            else:
                kept.append(pair)
    return Pairs(tuple(kept), dict(no_ranking), dict(no_pair))


def by_content(rankings: Iterable[Ranking]) -> dict[str, list[Ranking]]:
    """Rankings of the same prompt with the same completions, together; only records that have a ranking."""
    groups: dict[str, list[Ranking]] = {}
    for ranking in rankings:
        if ranking.ranking is not None and ranking.status == "submitted":
            groups.setdefault(content_key(ranking.prompt, ranking.completions), []).append(ranking)
    return groups


def votes(rankings: Sequence[Ranking]) -> dict[tuple[int, int], float]:
    """For each pair i < j of one prompt's completions: the share of annotators who put i above j, a tie
    counting half. A soft label for the pair. Raises `DataError` if the completions are not the same."""
    if not rankings:
        return {}
    completions = rankings[0].completions
    share: dict[tuple[int, int], float] = {}
    for ranking in rankings:
        if ranking.ranking is None or ranking.completions != completions:
            raise DataError(
                "only rankings of the same completions can be combined",
                where=f"record {ranking.id!r}",
                do="group them first with by_content",
            )
        for winner, loser, tie in ranked_pairs(ranking.ranking):
            pair = (min(winner, loser), max(winner, loser))
            share[pair] = share.get(pair, 0.0) + (0.5 if tie else float(winner < loser))
    return {pair: value / len(rankings) for pair, value in sorted(share.items())}


def consensus(rankings: Sequence[Ranking]) -> tuple[int, ...]:
    """One ranking for several annotators of one prompt: by Borda count, the mean share of the others that a
    completion beats (ties half). Equal counts share a rank; ranks are those of a competition (1, 2, 2, 4).

    If three annotators say (1, 2, 3), (1, 3, 2) and (2, 1, 3), the first wins 5 of its 6 comparisons, the
    second 3 and the third 1: the consensus is (1, 2, 3).
    """
    num = len(rankings[0].completions) if rankings else 0
    score = [0.0] * num
    for (i, j), share in votes(rankings).items():
        score[i] += share
        score[j] += 1 - share
    rounded = [round(value, 9) for value in score]
    return tuple(1 + sum(other > value for other in rounded) for value in rounded)
