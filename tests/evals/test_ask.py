"""How a model is asked, compared with the chat template, and with a stand-in whose continuation is known."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bloomery.evals.ask import ask, first_sentence, prompt
from bloomery.text.chat import Chat
from bloomery.types import Completion, Message, Prompt, SamplingParams
from bloomery.world import Question


class Says:
    """Answers every prompt with the same text; remembers what it was asked and how."""

    def __init__(self, chat: Chat, text: str, end: bool) -> None:
        ids = chat.tokenizer.encode(text) + ([chat.tokenizer.end_id] if end else [])
        self.completion = Completion(tuple(ids), (0.0,) * len(ids), "stop" if end else "length")
        self.params: list[SamplingParams] = []

    def __call__(
        self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]
    ) -> list[Completion]:
        self.params = list(params)
        return [self.completion for _ in prompts]


def a_fact(asked: list[Question]) -> Question:
    return next(q for q in asked if q.cloze)


def test_a_chat_model_is_asked_by_the_template(asked: list[Question], chat: Chat) -> None:
    question = next(q for q in asked if len(q.messages) > 1)
    assert prompt(question, chat, base=False) == chat.prompt(question.messages)


def test_a_base_model_is_asked_by_cloze_or_by_plain_text(asked: list[Question], chat: Chat) -> None:
    fact, other = a_fact(asked), next(q for q in asked if not q.cloze and len(q.messages) == 1)
    doc, encode = chat.tokenizer.doc_id, chat.tokenizer.encode
    assert prompt(fact, chat, base=True) == [doc, *encode(fact.cloze or "")]
    assert prompt(other, chat, base=True) == [doc, *encode(other.messages[0].content + "\n")]
    assert chat.tokenizer.end_id not in prompt(other, chat, base=True)


def test_a_base_answer_ends_with_its_first_sentence(asked: list[Question], chat: Chat) -> None:
    fact = a_fact(asked)
    says = Says(chat, " Arven. Her dog is red.", end=False)
    (reply,) = ask(says, chat, [fact], base=True, temperature=1.0, max_tokens=30, seed=0)
    assert reply.text == f"{fact.cloze} Arven."
    assert reply.finished
    assert chat.tokenizer.decode(list(reply.completion)) == " Arven."


def test_an_unended_chat_answer_is_kept_whole_and_unfinished(asked: list[Question], chat: Chat) -> None:
    says = Says(chat, "Arven. Her dog is", end=False)
    (reply,) = ask(says, chat, asked[:1], base=False, temperature=1.0, max_tokens=30, seed=0)
    assert (reply.text, reply.finished) == ("Arven. Her dog is", False)


def test_the_end_token_is_no_text(asked: list[Question], chat: Chat) -> None:
    (reply,) = ask(
        Says(chat, "Yes.", end=True), chat, asked[:1], base=False, temperature=0, max_tokens=9, seed=0
    )
    assert (reply.text, reply.finished) == ("Yes.", True)
    assert reply.completion[-1] == chat.tokenizer.end_id


def test_a_draw_depends_on_the_question_not_on_its_place(asked: list[Question], chat: Chat) -> None:
    def seeds(questions: list[Question]) -> dict[str, int]:
        says = Says(chat, "Yes.", end=True)
        ask(says, chat, questions, base=False, temperature=1.0, max_tokens=9, seed=4)
        return {q.id: p.seed for q, p in zip(questions, says.params, strict=True)}

    assert seeds(asked[:5][::-1]).items() <= seeds(asked[:9]).items()
    assert len(set(seeds(asked[:9]).values())) == 9


def test_plain_prompts_can_be_asked_too(chat: Chat) -> None:
    plain = Prompt(id="p", messages=(Message(role="user", content="Hello."),))
    assert prompt(plain, chat, base=True) == [chat.tokenizer.doc_id, *chat.tokenizer.encode("Hello.\n")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Arven.", ("Arven.", True)),
        ("\n\nIn Arven\nand", ("In Arven", True)),
        ("It is 2.5 miles. Then", ("It is 2.5 miles.", True)),
        ("Really? Yes.", ("Really?", True)),
        ("no end", ("no end", False)),
        ("", ("", False)),
    ],
)
def test_first_sentence(text: str, expected: tuple[str, bool]) -> None:
    assert first_sentence(text) == expected
