"""Made-up rollouts for the tests of this room."""

from __future__ import annotations

from bloomery.types import Completion, FinishReason, Message, Prompt, Rollout


def rollout(
    text: str,
    prompt: str = "p",
    tokens: tuple[int, ...] = (9, 5),
    finish: FinishReason = "stop",
    asked: str = "x",
) -> Rollout:
    """An answer to a prompt of two tokens."""
    question = Prompt(id=prompt, messages=(Message(role="user", content=asked),))
    return Rollout(question, (7, 8), Completion(tokens, (0.0,) * len(tokens), finish), text)
