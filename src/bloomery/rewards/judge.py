"""A language model as a reward: it is shown a question and an answer, and says a number.

It is reached through the `Generate` protocol, so it may run in this process or behind a server. What it says
is taken at its word only if it is one number in range; anything else is no opinion.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from bloomery.errors import UsageError
from bloomery.seeds import derive
from bloomery.text.chat import Chat
from bloomery.types import Generate, Message, Rollout, SamplingParams

TEMPLATE = """\
Here is a question and an answer to it. How good is the answer?

Question:
{question}

Answer:
{answer}

Reply with one number from {low} (worst) to {high} (best) and nothing else."""
VERDICT = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*\.?\s*")


class Judge:
    """An opinion by a judging model: its number, scaled so that `low` is 0 and `high` is 1.

    `chat` is the judge's own renderer. `template` holds {question} and {answer}, and may hold {low} and
    {high}; what a user or a policy wrote is put in as text and is never read for placeholders, nor can it
    become a control token. Raises `UsageError` for a template without them and a range without width.
    """

    def __init__(
        self,
        generate: Generate,
        chat: Chat,
        *,
        template: str = TEMPLATE,
        low: float = 1.0,
        high: float = 10.0,
        max_tokens: int = 8,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        missing = [name for name in ("{question}", "{answer}") if name not in template]
        if missing:
            raise UsageError(f"the judge's template has no {' and no '.join(missing)}", got=template)
        if low >= high:
            raise UsageError("the judge's range has no width", got=f"{low} to {high}")
        self.generate, self.chat, self.template, self.low, self.high = generate, chat, template, low, high
        self.max_tokens, self.temperature, self.seed = max_tokens, temperature, seed

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        prompts = [self.chat.prompt([Message(role="user", content=self.question(r))]) for r in rollouts]
        params = [
            SamplingParams(
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                seed=derive(self.seed, "judge", r.prompt.id, r.text),
            )
            for r in rollouts
        ]
        end = self.chat.tokenizer.end_id
        replies = [
            self.chat.tokenizer.decode([t for t in completion.tokens if t != end])
            for completion in self.generate(prompts, params)
        ]
        return [self.verdict(reply) for reply in replies]

    def question(self, rollout: Rollout) -> str:
        """What the judge is asked about an answer; a conversation is shown with its roles."""
        turns = rollout.prompt.messages
        asked = turns[0].content if len(turns) == 1 else "\n".join(f"{m.role}: {m.content}" for m in turns)
        said = {"question": asked, "answer": rollout.text, "low": f"{self.low:g}", "high": f"{self.high:g}"}
        # In one pass: a placeholder inside an answer stays what it is.
        return re.sub(r"\{(question|answer|low|high)\}", lambda found: said[found[1]], self.template)

    def verdict(self, reply: str) -> float | None:
        """The number that the whole reply is, scaled to 0..1; None for any other reply or range."""
        found = VERDICT.fullmatch(reply)
        if found is None or not self.low <= float(found[1]) <= self.high:
            return None
        return (float(found[1]) - self.low) / (self.high - self.low)
