"""Made-up prompts, rankings and annotators for the tests of this room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bloomery.feedback.store import Item
from bloomery.types import Annotator, Candidate, Message, Policy, Ranking, Rating, Sampling

WHEN = "2026-01-02T03:04:05.000Z"


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def candidate(text: str, policy: str = "sft") -> Candidate:
    return Candidate(messages=(Message(role="assistant", content=text),), policy=Policy(id=policy))


def item(number: int, k: int = 3, gold: tuple[int, ...] | None = None) -> Item:
    candidates = tuple(
        Candidate(
            messages=(Message(role="assistant", content=f"answer {j} to {number}"),),
            policy=Policy(id=f"policy-{j}", digest="ab" * 32),
            sampling=Sampling(temperature=0.7, max_tokens=32, seed=number),
            logprob=-0.1 * j,
        )
        for j in range(k)
    )
    return Item(f"q{number}", user(f"question {number}"), candidates, "rare", gold)


def ranking(
    ranks: Sequence[int] | None,
    annotator: str = "ada",
    prompt: str = "q",
    texts: Sequence[str] | None = None,
    **fields: object,
) -> Ranking:
    """Answers are called a, b, c ... and come from policies of the same names."""
    texts = texts or "abcdefghi"[: len(ranks or "ab")]
    return Ranking.model_validate(
        {
            "id": f"{prompt}/{annotator}",
            "prompt": user(prompt),
            "completions": [candidate(text, policy=text) for text in texts],
            "ranking": ranks,
            "annotator": Annotator(id=annotator, kind="human"),
            "created_at": WHEN,
            **fields,
        }
    )


def crowd(seed: int, kinds: Mapping[str, str], num_prompts: int, overlap: int, k: int = 4) -> list[Ranking]:
    """Rankings by annotators of known habits. Truth and lengths are independent, answers shown shuffled.

    Kinds: careful, careless (does not read two prompts in five), random (never reads), left (keeps the
    order of the screen), flipped (worst first), long (likes length), hurried, generous, flat (one rating
    for all).
    """
    rng = np.random.default_rng(seed)
    found = []
    for q in range(num_prompts):
        truth, sizes = rng.normal(size=k), rng.integers(10, 60, size=k)
        completions = [candidate(f"{q}-{j} " + "x" * int(sizes[j]), f"policy-{j}") for j in range(k)]
        for name in rng.choice(sorted(kinds), size=overlap, replace=False):
            kind, shown = kinds[name], rng.permutation(k)
            seen = truth + 0.6 * rng.normal(size=k)
            unread = rng.normal(size=k)
            seen = {
                "random": unread,
                "careless": unread if rng.random() < 0.4 else seen,
                "left": -np.argsort(shown).astype(float),
                "flipped": -seen,
                "long": seen + np.log2(sizes),
            }.get(kind, seen)
            slack = 0.0 if kind == "left" else 0.2
            rated = np.clip(np.round(4 + 1.2 * truth + 1.6 * (kind == "generous")), 1, 7).astype(int)
            found.append(
                Ranking(
                    id=f"q{q}/{name}",
                    prompt=user(f"question {q}"),
                    completions=tuple(completions),
                    ranking=tuple(1 + int((seen > value + slack).sum()) for value in seen),
                    ratings=tuple(
                        Rating(helpful=r, honest=r, harmless=r) if kind != "flat" else _FLAT
                        for r in rated.tolist()
                    ),
                    annotator=Annotator(id=str(name), kind="simulated"),
                    seconds=float((2 if kind == "hurried" else 20) * np.exp(0.3 * rng.normal())),
                    shown_order=tuple(shown.tolist()),
                    created_at=WHEN,
                )
            )
    return found


_FLAT = Rating(helpful=5, honest=5, harmless=5)
