"""One small world and a tokenizer that can spell it."""

from __future__ import annotations

import pytest

from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.world import Oracle, Question, World, questions


@pytest.fixture(scope="session")
def world() -> World:
    return World.make(seed=3, size=16)


@pytest.fixture(scope="session")
def asked(world: World) -> list[Question]:
    return [q for q in questions(world, seed=3) if q.split == "eval"]


@pytest.fixture(scope="session")
def oracle(world: World) -> Oracle:
    return Oracle(world)


@pytest.fixture(scope="session")
def chat(asked: list[Question]) -> Chat:
    return Chat(Tokenizer.train([q.answer for q in asked], 400))
