from __future__ import annotations

import pytest

from bloomery.text.tokenizer import Tokenizer

SENTENCE = "the cat sat on a mat and the dog ran to the man who said hello in the rain 12 345"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([SENTENCE, SENTENCE.title()] * 5, 300)
