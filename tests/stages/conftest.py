"""A tokenizer of a few words, its chat template, and one directory for each tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jam
import pytest
import tiny

from bloomery.infer.engine import Engine
from bloomery.models import hub
from bloomery.stages.common import Compute
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def chat() -> Chat:
    return Chat(tiny.tokenizer())


@pytest.fixture(scope="session")
def tokenizer(chat: Chat) -> Tokenizer:
    return chat.tokenizer


@pytest.fixture(scope="session")
def tokenizer_dir(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(path)
    return path


@pytest.fixture(scope="session")
def model_dir(tokenizer_dir: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model to start from. Nobody writes into it."""
    path = tmp_path_factory.mktemp("model") / "model"
    hub.save(tiny.language_model(tokenizer.vocab_size, 0), path, tokenizer_dir=tokenizer_dir)
    return path


@pytest.fixture(scope="session")
def talker_dir(chat: Chat, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers in words, any of them. Nobody writes into it."""
    path = tmp_path_factory.mktemp("talker") / "model"
    hub.save(jam.talker(chat), path, tokenizer_dir=tokenizer_dir)
    return path


@pytest.fixture
def graphs_asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each engine that a stage makes to draw answers: whether it is to record its decoding."""
    plain, asked = Compute.engine, list[bool]()

    def engine(self: Compute, *given: Any, graphs: bool = False, **how: Any) -> Engine:
        asked.append(graphs)
        return plain(self, *given, **how)

    monkeypatch.setattr(Compute, "engine", engine)
    return asked
