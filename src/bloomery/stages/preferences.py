"""What people said of answers as the preference stages read it: one slate for each prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from bloomery.data.messages import Messages
from bloomery.errors import DataError, UsageError
from bloomery.feedback.pairs import Pair, rankings_to_pairs
from bloomery.models.slates import Example
from bloomery.stages.slates import prompt_id
from bloomery.text.chat import Chat
from bloomery.types import Judgement, Ranking


@dataclass(frozen=True, slots=True)
class Slate:
    """One prompt with the answers that were compared or judged, as tokens and masks of prompt + answer.

    `pairs` are (chosen, rejected, weight): the places of two answers, and the pair's share of its ranking, so
    that a ranking weighs the same whatever its K. `judged` are (place, whether it is good) of the answers
    that were judged alone. `stray` is the place of the answer that shows the KL.
    """

    id: str
    answers: tuple[Example, ...]
    pairs: tuple[tuple[int, int, float], ...]
    judged: tuple[tuple[int, bool], ...] = ()
    stray: int | None = None

    @property
    def learnt(self) -> tuple[Example, ...]:
        """The answers up to the last that was compared or judged: what only shows the KL stands behind."""
        places = [place for *two, _ in self.pairs for place in two] + [place for place, _ in self.judged]
        return self.answers[: 1 + max(places)]

    @property
    def longest(self) -> int:
        """Tokens of the longest answer with its prompt."""
        return max(len(tokens) for tokens, _ in self.answers)


def make_slates(
    rankings: Iterable[Ranking],
    chat: Chat,
    corrections: bool,
    say: Callable[[str], None],
    judgements: Iterable[Judgement] = (),
) -> list[Slate]:
    """The rankings and judgements of each prompt together, in the order first met; says what teaches
    nothing."""
    groups: dict[Messages, tuple[list[tuple[Pair, ...]], list[Judgement]]] = {}
    left_out: Counter[str] = Counter()
    for r in rankings:
        made = rankings_to_pairs([r if corrections else r.model_copy(update={"correction": None})])
        left_out.update({f"rankings ({why})": n for why, n in made.dropped_rankings.items()})
        left_out.update({f"pairs ({why})": n for why, n in made.dropped_pairs.items()})
        if made.pairs:
            groups.setdefault(r.prompt, ([], []))[0].append(made.pairs)
    for j in judgements:
        groups.setdefault(j.prompt, ([], []))[1].append(j)
    if left_out:
        say("left out " + ", ".join(f"{n} {what}" for what, n in sorted(left_out.items())))
    return [make_slate(prompt, *said, chat) for prompt, said in groups.items()]


def make_slate(
    prompt: Messages, rankings: Sequence[Sequence[Pair]], judgements: Sequence[Judgement], chat: Chat
) -> Slate:
    """The pairs of several rankings of one prompt, and what was judged alone; an answer that two of them
    speak of is one answer."""
    answers: dict[Messages, int] = {}
    pairs = [
        (
            answers.setdefault(pair.chosen, len(answers)),
            answers.setdefault(pair.rejected, len(answers)),
            1 / len(several),
        )
        for several in rankings
        for pair in several
    ]
    judged = [(answers.setdefault(j.completion, len(answers)), j.label) for j in judgements]
    examples = tuple(example(prompt, answer, chat) for answer in answers)
    return Slate(prompt_id(prompt), examples, tuple(pairs), tuple(judged))


def example(prompt: Messages, answer: Messages, chat: Chat) -> Example:
    """Tokens of prompt + answer; what the assistant says in the answer counts, its end tokens included."""
    rendered = chat.render((*prompt, *answer))
    begin = rendered.spans[len(prompt)].start
    mask = [counts and t >= begin for t, counts in enumerate(rendered.mask)]
    if not any(mask):
        raise DataError(
            "there is nothing to learn in this answer",
            where=f"prompt {prompt_id(prompt)}",
            got=f"messages by {', '.join(m.role for m in answer)}",
            expected="an assistant's message whose weight is not 0",
        )
    return rendered.tokens, mask


def say_kinds(judgements: Sequence[Judgement], rankings: bool, say: Callable[[str], None]) -> None:
    """How many answers of each kind were judged alone; and what follows where there is one kind only."""
    kinds = Counter(j.verdict for j in judgements)
    say("answers judged alone: " + ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())))
    if len(kinds) == 1 and not rankings:
        end = "likelier" if judgements[0].label else "less likely"
        say(f"every answer is {judgements[0].verdict}: all become {end}, and nothing tells them apart")


def with_strays(slates: Sequence[Slate], limit: int) -> list[Slate]:
    """Each slate with an answer of the next slates after its own prompt: the first that fits; in no pair."""
    made = []
    for i, s in enumerate(slates):
        others = (slates[(i + k) % len(slates)].answers for k in range(1, len(slates)))
        moved = (transplant(s.answers[0], answers[i % len(answers)]) for answers in others)
        stray = next((one for one in moved if len(one[0]) <= limit), None)
        if stray is None:
            raise UsageError(
                "this loss compares with answers to other prompts, and none fits",
                got=f"{len(slates)} prompts",
                do="give answers to more prompts, or choose another loss",
            )
        made.append(replace(s, answers=(*s.answers, stray), stray=len(s.answers)))
    return made


def transplant(own: Example, other: Example) -> Example:
    """The prompt of one example with the answer of another."""
    begin, start = own[1].index(True), other[1].index(True)
    return [*own[0][:begin], *other[0][start:]], [*own[1][:begin], *other[1][start:]]
