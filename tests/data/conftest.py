from __future__ import annotations

import os
from pathlib import Path

import pytest

from bloomery.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    line = "the quick brown fox jumps over the lazy dog while one two three birds sing in the tall trees"
    return Tokenizer.train([line, line.title()] * 5, 320)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder of real texts, where there is one: $BLOOMERY_DATA, or `shared/data` beside the repository."""
    root = Path(os.environ.get("BLOOMERY_DATA") or Path(__file__).parents[3] / "shared" / "data")
    if not (root / "pretrain").is_dir():
        pytest.skip("no folder of real data here; name one in BLOOMERY_DATA")
    return root
