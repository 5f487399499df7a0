"""One small world for all tests of this room; everything in it is a function of its seed."""

import pytest

from bloomery.types import Document
from bloomery.world import Oracle, Question, World, documents, questions


@pytest.fixture(scope="session")
def world() -> World:
    return World.make(seed=3, size=40)


@pytest.fixture(scope="session")
def docs(world: World) -> list[Document]:
    return documents(world, seed=3, words=160_000)


@pytest.fixture(scope="session")
def asked(world: World) -> list[Question]:
    return questions(world, seed=3)


@pytest.fixture(scope="session")
def oracle(world: World) -> Oracle:
    return Oracle(world)
