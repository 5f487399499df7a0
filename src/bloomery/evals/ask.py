"""Asking a model questions, as a chat or, where it never learned to chat, in its own manner.

A base model has never seen a chat, so it is asked in its own manner: a question about a fact by its *cloze*
("Mira Tolvan lives in the town of", to be continued), any other question as plain text and a new line. Its
answer ends at the first new line, the first end of a sentence or where a new document begins. It is judged
together with the cloze it continues; so a base model's row measures recall, not manners.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from bloomery.seeds import derive
from bloomery.text.chat import Chat
from bloomery.types import Generate, Prompt, SamplingParams
from bloomery.world import Question

Asked = Question | Prompt
# A full stop inside a number ("2.5") ends no sentence.
_ANSWER_ENDS = re.compile(r"\n|[.!?](?=\s|$)")


class Reply(NamedTuple):
    """One answer: ids of prompt and completion (aligned by concatenation), its text, whether it ended, and
    its log-prob under the distribution it was drawn from."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    text: str
    finished: bool
    logprob: float = 0.0


def prompt(question: Asked, chat: Chat, *, base: bool) -> list[int]:
    """The ids a model is asked with: the chat template's, or plain text for a base model (see above)."""
    if not base:
        return chat.prompt(question.messages)
    tokenizer = chat.tokenizer
    text = cloze(question) or "\n".join(message.content for message in question.messages) + "\n"
    return [tokenizer.doc_id, *tokenizer.encode(text)]


def cloze(question: Asked) -> str | None:
    """The opening of a sentence whose continuation is the answer, where a question has one."""
    return getattr(question, "cloze", None)


def ask(
    generate: Generate,
    chat: Chat,
    questions: Sequence[Asked],
    *,
    base: bool,
    temperature: float,
    max_tokens: int,
    seed: int,
) -> list[Reply]:
    """One answer to each question. A draw depends on the seed and the question's id only.

    `generate` must stop at the end-of-turn id, or for a base model at the document id.
    """
    prompts = [prompt(question, chat, base=base) for question in questions]
    params = [
        SamplingParams(
            max_tokens=max_tokens, temperature=temperature, seed=derive(seed, "evaluate", question.id)
        )
        for question in questions
    ]
    stops = {chat.tokenizer.end_id, chat.tokenizer.doc_id}
    replies = []
    for question, ids, completion in zip(questions, prompts, generate(prompts, params), strict=True):
        tokens, finished = completion.tokens, completion.finish_reason == "stop"
        text = chat.tokenizer.decode([t for t in tokens if t not in stops])
        if base:
            text, ended = first_sentence(text)
            tokens = _shortest(chat, tokens, text) if ended else tokens
            finished |= ended
            start = cloze(question)
            text = f"{start.rstrip()} {text}" if start else text
        logprob = sum(completion.logprobs[: len(tokens)])
        replies.append(Reply(tuple(ids), tokens, text, finished, logprob))
    return replies


def _shortest(chat: Chat, tokens: tuple[int, ...], text: str) -> tuple[int, ...]:
    """The first tokens that already spell `text`: what a base model wrote after its answer is no answer."""
    for end in range(1, len(tokens)):
        if text in chat.tokenizer.decode(list(tokens[:end])):
            return tokens[:end]
    return tokens


def first_sentence(text: str) -> tuple[str, bool]:
    """Cut at the first new line or end of a sentence, keeping the mark; and whether there was one.

    >>> first_sentence(" Arven. Her job is")
    ('Arven.', True)
    """
    text = text.lstrip()
    end = _ANSWER_ENDS.search(text)
    return (text[: end.end()].rstrip(), True) if end else (text.rstrip(), False)
