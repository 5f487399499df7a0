"""Rollouts as tensors against the docstring's example, worked by hand; answers that depend on nothing but
their place, their prompt and the seed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bloomery.infer.engine import Engine
from bloomery.models.config import LlamaConfig
from bloomery.models.llama import Llama
from bloomery.rollout import batch as batch_module
from bloomery.rollout.batch import RolloutBatch, in_pieces, pieces
from bloomery.rollout.sample import ask
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.types import Completion, Message, Prompt, Rollout

PROMPT = Prompt(id="p", messages=(Message(role="user", content="x"),))


def rollout(prompt: Sequence[int], tokens: Sequence[int], logprobs: Sequence[float]) -> Rollout:
    return Rollout(PROMPT, tuple(prompt), Completion(tuple(tokens), tuple(logprobs), "stop"), "")


def test_the_documented_example() -> None:
    long = rollout([3, 4, 6], [8, 5], [-0.2, -0.3])
    batch = RolloutBatch.of([rollout([7, 8], [9, 5], [-0.1, -0.7]), long], pad_id=0)
    assert batch.tokens.tolist() == [[7, 8, 9, 5, 0], [3, 4, 6, 8, 5]]
    assert batch.mask.tolist() == [[False, False, True, True, False], [False, False, False, True, True]]
    torch.testing.assert_close(
        batch.old_logprobs, torch.tensor([[0, 0, -0.1, -0.7, 0], [0, 0, 0, -0.2, -0.3]])
    )
    assert batch.tokens.dtype == torch.int64
    assert batch.mask.dtype == torch.bool


ids = st.lists(st.integers(1, 50), min_size=1, max_size=6)


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.tuples(ids, ids), min_size=1, max_size=5), pad_id=st.integers(0, 50))
def test_the_mask_is_true_exactly_on_the_completions(
    rows: list[tuple[list[int], list[int]]], pad_id: int
) -> None:
    """Padding is told by place, so an id that is also the pad id is still a token."""
    made = [rollout(prompt, said, [-0.5 * t - 0.25 for t in said]) for prompt, said in rows]
    batch = RolloutBatch.of(made, pad_id)
    assert not batch.mask[:, 0].any()
    assert (batch.old_logprobs[~batch.mask] == 0).all()
    for row, one in enumerate(made):
        assert batch.tokens[row][batch.mask[row]].tolist() == list(one.completion.tokens)
        assert batch.old_logprobs[row][batch.mask[row]].tolist() == list(one.completion.logprobs)
        assert batch.tokens[row, : len(one.tokens)].tolist() == list(one.tokens)
        assert (batch.tokens[row, len(one.tokens) :] == pad_id).all()


LENGTHS = [(2, 3), (4, 4), (1, 2), (5, 1), (1, 6)]  # prompt, completion


@pytest.mark.parametrize("budget", [1, 14, 10_000])
def test_reading_in_pieces_equals_reading_everything(budget: int) -> None:
    """A causal reader: what it says of a token depends on the tokens up to it."""
    batch = RolloutBatch.of([rollout([p + 1] * p, [2] * c, [-1.0] * c) for p, c in LENGTHS], pad_id=9)
    shapes: list[tuple[int, int]] = []

    def read(tokens: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        shapes.append(tuple(tokens.shape))  # type: ignore[arg-type]
        total = tokens.cumsum(1).double()
        return torch.where(mask, total, 0.0), torch.where(mask, -total, 0.0)

    (whole, minus), shapes = read(batch.tokens, batch.mask), []
    got = in_pieces(read, batch.tokens, batch.mask, budget)
    torch.testing.assert_close(got[0], whole)
    torch.testing.assert_close(got[1], minus)
    assert sum(rows for rows, _ in shapes) == len(LENGTHS)
    assert (
        shapes
        == {
            1: [(1, 3), (1, 5), (1, 6), (1, 7), (1, 8)],
            14: [(2, 5), (2, 7), (1, 8)],
            10_000: [(5, 8)],
        }[budget]
    )


def test_how_much_is_read_at_a_time_is_the_device_s(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.ones(40, 64, dtype=torch.bool)
    assert [len(rows) for rows, _ in pieces(mask)] == [16, 16, 8]
    on_gpu = batch_module.positions(torch.device("cuda"))
    monkeypatch.setattr(batch_module, "positions", lambda device: on_gpu)
    assert [len(rows) for rows, _ in pieces(mask)] == [40]


def test_gradients_go_through_the_pieces() -> None:
    batch = RolloutBatch.of([rollout([1] * p, [2] * c, [-1.0] * c) for p, c in LENGTHS], pad_id=0)
    scale = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    (found,) = in_pieces(lambda t, m: (torch.where(m, scale[t], 0.0),), batch.tokens, batch.mask, 14)
    found.sum().backward()
    assert scale.grad is not None
    assert scale.grad.tolist() == [0, 0, sum(c for _, c in LENGTHS)]


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(Tokenizer.train(["red blue green"], 300))


@pytest.fixture(scope="module")
def engine(chat: Chat) -> Engine:
    """In float64, so that rounding cannot move a draw."""
    vocab = chat.tokenizer.vocab_size
    model = Llama(LlamaConfig.shape(width=16, depth=1, heads=2, vocab=vocab, context=80, tied=False)).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return Engine(model, stop_id=chat.tokenizer.end_id, pad_id=chat.tokenizer.pad_id)


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(id=f"{i}", messages=(Message(role="user", content=t),)) for i, t in enumerate(texts)]


def said(engine: Engine, chat: Chat, asked: list[Prompt], seed: int = 1) -> list[Rollout]:
    return ask(engine, chat, asked, max_tokens=8, temperature=1.0, seed=seed)


def test_answers_come_in_the_order_asked(engine: Engine, chat: Chat) -> None:
    """The engine works through prompts longest first; that must not show."""
    asked = prompts("red", "red blue green red blue", "green blue", "red blue green")
    answers = said(engine, chat, asked)
    assert [a.prompt.id for a in answers] == ["0", "1", "2", "3"]
    assert [list(a.prompt_tokens) for a in answers] == [chat.prompt(p.messages) for p in asked]
    assert all(a.tokens == a.prompt_tokens + a.completion.tokens for a in answers)


def test_an_answer_depends_on_its_place_and_prompt_not_on_its_company(engine: Engine, chat: Chat) -> None:
    first = said(engine, chat, prompts("red", "blue", "green", "red blue"))
    other = said(engine, chat, prompts("green blue red green", "blue", "x", "red blue", "red", "a b c d e"))
    for place in (1, 3):
        assert first[place].completion.tokens == other[place].completion.tokens
        assert first[place].completion.logprobs == pytest.approx(other[place].completion.logprobs)
    assert said(engine, chat, prompts("red"))[0].completion.tokens == first[0].completion.tokens


def test_a_prompt_given_several_times_is_answered_several_ways(engine: Engine, chat: Chat) -> None:
    answers = said(engine, chat, prompts(*["red"] * 6))
    assert len({a.completion.tokens for a in answers}) == 6
    assert [a.completion for a in said(engine, chat, prompts(*["red"] * 6))] == [
        a.completion for a in answers
    ]
    again = said(engine, chat, prompts(*["red"] * 6), seed=2)
    assert all(a.completion.tokens != b.completion.tokens for a, b in zip(answers, again, strict=True))


def test_settings_reach_the_sampler(engine: Engine, chat: Chat) -> None:
    asked = prompts(*["red"] * 4)
    greedy = ask(engine, chat, asked, max_tokens=3, temperature=0.0, seed=1)
    assert all(a.completion.tokens == b.completion.tokens for a, b in pairwise(greedy))
    assert {len(a.completion.tokens) for a in greedy} == {3}
    narrow = ask(engine, chat, asked, max_tokens=3, temperature=1.0, seed=1, top_p=1e-6)
    assert all(p == pytest.approx(0.0, abs=1e-6) for a in narrow for p in a.completion.logprobs)


class Says:
    """Answers each prompt with given ids."""

    def __init__(self, *completions: Completion) -> None:
        self.completions = completions

    def __call__(self, prompts: object, params: object) -> list[Completion]:
        return list(self.completions)


def test_the_end_token_is_trained_but_is_no_text(chat: Chat) -> None:
    word = tuple(chat.tokenizer.encode("red"))
    ended = Completion((*word, chat.tokenizer.end_id), (-0.5,) * (len(word) + 1), "stop")
    cut = Completion(word, (-0.5,) * len(word), "length")
    answers = ask(Says(ended, cut), chat, prompts("x", "x"), max_tokens=9, temperature=1.0, seed=0)
    assert [a.text for a in answers] == ["red", "red"]
    batch = RolloutBatch.of(answers, chat.tokenizer.pad_id)
    ends = batch.tokens == chat.tokenizer.end_id
    start = len(answers[0].prompt_tokens)
    assert (ends & batch.mask).tolist() == [
        [c == start + len(word) for c in range(ends.shape[1])],
        [False] * ends.shape[1],
    ]
    assert ends[:, :start].any()  # the user's end token is there too, and does not count
