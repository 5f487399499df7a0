"""Train the tokenizer on the cleaned documents."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from bloomery.data.sources import OnBadRow, read_conversations, read_documents
from bloomery.recipe import InputPath, Section
from bloomery.stages.common import read_all
from bloomery.text.tokenizer import Tokenizer
from bloomery.train.run import Run


class TokenizerRecipe(Section):
    """Train a byte-level BPE tokenizer."""

    documents: tuple[InputPath, ...]
    conversations: tuple[InputPath, ...] = ()
    """Chats whose text is read too, so that what people say is spelled with few tokens."""
    on_bad_row: OnBadRow = "error"
    """Stop at a row that cannot be read, or skip and count it."""
    vocab_size: int = Field(2048, ge=262)
    """Entries, the 256 bytes and the special tokens included."""


def run(recipe: TokenizerRecipe, out: Path) -> None:
    with Run(out, stage="tokenizer", recipe=recipe) as run:
        texts = [d.text for path in recipe.documents for d in read_documents(path)]
        chats = read_all(read_conversations, recipe.conversations, recipe.on_bad_row, run.line)
        texts += [m.content for c in chats for m in c.messages]
        tokenizer = Tokenizer.train(texts, recipe.vocab_size)
        tokenizer.save(out)
        num_bytes = sum(len(text.encode()) for text in texts)
        num_tokens = sum(len(ids) for ids in tokenizer.encode_batch(texts))
        run.line(
            f"{tokenizer.vocab_size} entries, {num_bytes / num_tokens:.2f} bytes a token on its own text"
        )
        run.finish(metrics={"vocab_size": tokenizer.vocab_size, "bytes_per_token": num_bytes / num_tokens})
