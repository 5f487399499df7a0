"""Documents to token shards: memory maps, split into training and validation by the hash of the text."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from bloomery.data.shards import write_shards
from bloomery.data.sources import read_documents
from bloomery.recipe import InputPath, Section
from bloomery.text.tokenizer import Tokenizer
from bloomery.train.run import Run


class Encode(Section):
    """Tokenise documents into the corpus that pretraining reads."""

    documents: tuple[InputPath, ...]
    tokenizer: InputPath
    val_fraction: float = Field(0.02, ge=0, lt=1)
    """Share of the documents held out for bits per byte."""


def run(recipe: Encode, out: Path) -> None:
    with Run(out, stage="encode", recipe=recipe) as run:
        documents = (d for path in recipe.documents for d in read_documents(path))
        corpus = write_shards(
            documents, Tokenizer.load(recipe.tokenizer), out, val_fraction=recipe.val_fraction
        )
        run.line(
            f"{corpus.num_tokens:,} tokens from {len(corpus.sources)} sources: {', '.join(corpus.sources)}"
        )
        run.finish(data=[{"source": name} for name in corpus.sources], metrics={"tokens": corpus.num_tokens})
