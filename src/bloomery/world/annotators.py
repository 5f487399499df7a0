"""Simulated annotators: raters with habits of their own, who know the truth but do not always see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bloomery.seeds import derive, stream
from bloomery.types import Rating
from bloomery.world.answers import abstention, written
from bloomery.world.oracle import Oracle, Verdict
from bloomery.world.questions import Question


@dataclass(frozen=True)
class Judgement:
    """One annotator on K texts: ranks (1 is best, equal is a tie), 3H ratings, and how it came about."""

    ranking: tuple[int, ...]
    ratings: tuple[Rating, ...]
    correction: str | None
    seconds: float
    shown_order: tuple[int, ...]
    comment: str | None


@dataclass(frozen=True)
class SimulatedAnnotator:
    """A rater and its habits; worth is in units of the graded table.

    `noise`: standard deviation of what a text is worth. `leniency`: added to every rating. `position_bias`:
    worth of being shown first rather than last. `length_bias`: worth of ten words more. `strictness`: weight
    of honesty beside the table. `ties`: smaller differences are ties. `carelessness`: share of prompts ranked
    at random. `corrects`: share of prompts without a right answer for which one is written. `pace`: of work.
    """

    id: str
    noise: float
    leniency: float
    position_bias: float
    length_bias: float
    strictness: float
    ties: float
    carelessness: float
    corrects: float
    pace: float

    def rank(self, question: Question, texts: Sequence[str], oracle: Oracle, seed: int) -> Judgement:
        """Equal texts tie. The same arguments give the same judgement."""
        rng = stream(seed, "annotator", self.id, question.id)
        shown = tuple(int(i) for i in rng.permutation(len(texts)))
        verdicts = [oracle.judge(question, text) for text in texts]
        careless = bool(rng.random() < self.carelessness)
        worth = []
        for i, (text, verdict) in enumerate(zip(texts, verdicts, strict=True)):
            place = 1 - 2 * shown.index(i) / max(1, len(texts) - 1)
            value = self.worth(question, verdict) + self.position_bias * place / 2
            value += self.length_bias * min(len(text.split()), 40) / 10
            value += float(stream(derive(seed, "text", text), self.id, question.id).normal(0.0, self.noise))
            worth.append(float(rng.normal(0.0, 1.0)) if careless else value)
        ratings = tuple(self._rating(v, float(rng.normal(0.0, self.noise))) for v in verdicts)
        correction = self._correction(question, verdicts, oracle, float(rng.random()), seed)
        length = sum(len(t.split()) for t in texts)
        seconds = round(self.pace * (4 + 0.6 * length) * float(rng.uniform(0.7, 1.5)), 1)
        comment = "None of them is right." if not any(v.correct for v in verdicts) else None
        return Judgement(ranks(worth, texts, self.ties), ratings, correction, seconds, shown, comment)

    def worth(self, question: Question, verdict: Verdict) -> float:
        """What a text is worth to this annotator before noise: the table, honesty and helpfulness."""
        value = verdict.reward + 0.12 * (verdict.helpful - 4) + 0.12 * self.strictness * (verdict.honest - 4)
        return value - (2.0 if verdict.malformed else 0.0)

    def _rating(self, verdict: Verdict, noise: float) -> Rating:
        def shift(value: int) -> int:
            return max(1, min(7, round(value + self.leniency + noise)))

        return Rating(
            helpful=shift(verdict.helpful), honest=shift(verdict.honest), harmless=shift(verdict.harmless)
        )

    def _correction(
        self, question: Question, verdicts: Sequence[Verdict], oracle: Oracle, draw: float, seed: int
    ) -> str | None:
        """A right answer where there is none. What no document tells, strict annotators leave open."""
        if any(v.correct for v in verdicts) or draw >= self.corrects:
            return None
        rng = stream(seed, "correction", self.id, question.id)
        if question.exposure == "never" and rng.random() < self.strictness / 2:
            return abstention(question, oracle.world, rng)
        return written(question, "right", oracle.world, rng)


def ranks(worth: Sequence[float], texts: Sequence[str], ties: float) -> tuple[int, ...]:
    """Ranks from 1 (best). A text ties with the next better one when less than `ties` lies between them,
    or when they are the same text. Ranks are competition ranks: 1, 1, 3.

    >>> ranks([0.0, 2.0, 1.9], ["a", "b", "c"], 0.2)
    (3, 1, 1)
    """
    best: dict[str, float] = {}
    for text, value in zip(texts, worth, strict=True):
        best[text] = max(value, best.get(text, value))
    order = sorted(range(len(texts)), key=lambda i: (-best[texts[i]], texts[i], i))
    found = [0] * len(texts)
    for place, i in enumerate(order):
        above = order[place - 1] if place else None
        tied = above is not None and (texts[above] == texts[i] or best[texts[above]] - best[texts[i]] < ties)
        found[i] = found[above] if tied and above is not None else place + 1
    return tuple(found)


def annotators(seed: int, n: int = 8) -> list[SimulatedAnnotator]:
    """A panel: mild habits, all different; every eighth annotator is careless."""
    found = []
    for i in range(n):
        rng = stream(seed, "panel", i)
        careless = i % 8 == 7
        found.append(
            SimulatedAnnotator(
                id=f"annotator-{i + 1:02d}",
                noise=round(float(rng.uniform(1.0, 1.4)), 3),
                leniency=round(float(rng.normal(0.0, 0.6)), 3),
                position_bias=round(float(rng.uniform(-0.1, 0.3)), 3),
                length_bias=round(float(rng.uniform(-0.05, 0.15)), 3),
                strictness=round(float(rng.uniform(0.6, 1.4)), 3),
                ties=round(float(rng.uniform(0.05, 0.25)), 3),
                carelessness=0.35 if careless else round(float(rng.uniform(0.0, 0.06)), 3),
                corrects=round(float(rng.uniform(0.05, 0.3)), 3),
                pace=round(float(rng.uniform(0.5, 2.0)), 3),
            )
        )
    return found
