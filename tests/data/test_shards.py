"""Corpora on disk: what is written is what was encoded, held-out documents are decided by their text, and
every damaged file is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bloomery.data.shards import INDEX, Corpus, in_val, write_shards
from bloomery.errors import ArtifactError, DataError, UsageError
from bloomery.text.tokenizer import Tokenizer
from bloomery.types import Document

DOCUMENTS = [
    Document(id=str(i), text=f"Bird {i} sings: {'la ' * (i % 7)}<|end|> é.", source=["a/b", "news"][i % 2])
    for i in range(60)
]


@pytest.fixture(scope="module")
def corpus(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_shards(DOCUMENTS, tokenizer, tmp_path_factory.mktemp("corpus"), val_fraction=0.25)


def test_every_document_is_there_once(corpus: Corpus, tokenizer: Tokenizer) -> None:
    assert corpus.sources == ("a/b", "news")
    assert corpus.tokenizer == tokenizer.digest
    for split in ("train", "val"):
        for shard in corpus.split(split):
            expected = [
                d.text
                for d in DOCUMENTS
                if d.source == shard.source and in_val(d.text, 0.25) == (split == "val")
            ]
            rows = [shard.tokens[a:b] for a, b in zip(shard.starts, shard.starts[1:], strict=False)]
            assert [tokenizer.decode(row[1:]) for row in rows] == expected
            assert all(row[0] == tokenizer.doc_id for row in rows)
            assert shard.num_documents == len(expected)
            assert shard.num_bytes == sum(len(text.encode()) for text in expected)
            assert shard.num_bytes == corpus.token_bytes[shard.tokens].sum()
            assert shard.tokens.dtype == np.dtype("<u2")
    assert corpus.num_tokens == sum(1 + len(tokenizer.encode(d.text)) for d in DOCUMENTS)


def test_tokens_are_counted_where_training_reads(corpus: Corpus, tokenizer: Tokenizer) -> None:
    for most in (10**7, 25):
        read = [token for shard in corpus.split("train") for token in shard.tokens[:most].tolist()]
        assert corpus.counts(most).tolist() == [read.count(token) for token in range(tokenizer.vocab_size)]
    assert corpus.counts()[tokenizer.doc_id] == sum(shard.num_documents for shard in corpus.split("train"))


def test_the_split_is_by_text_alone() -> None:
    texts = [f"text {i}" for i in range(2000)]
    held = {text for text in texts if in_val(text, 0.1)}
    assert 150 < len(held) < 250
    assert held < {text for text in texts if in_val(text, 0.2)}
    assert not any(in_val(text, 0.0) for text in texts)
    # In every process: `printf "the split is by text" | sha256sum` begins with 2e81, which is 0.1817 of ffff.
    assert [in_val("the split is by text", share) for share in (0.18, 0.185)] == [False, True]


def test_a_split_without_documents_says_so(tokenizer: Tokenizer, tmp_path: Path) -> None:
    corpus = write_shards(DOCUMENTS[:4], tokenizer, tmp_path / "c", val_fraction=0)
    with pytest.raises(UsageError, match="no documents in 'val'"):
        corpus.split("val")
    with pytest.raises(UsageError, match="did you mean 'train'"):
        corpus.split("trian")


def test_what_cannot_be_written(tokenizer: Tokenizer, tmp_path: Path, corpus: Corpus) -> None:
    with pytest.raises(ArtifactError, match="lies here already"):
        write_shards(DOCUMENTS, tokenizer, corpus.path)
    with pytest.raises(DataError, match="document 'x' is empty"):
        write_shards([Document(id="x", text="")], tokenizer, tmp_path / "a")
    assert not (tmp_path / "a" / INDEX).exists()  # unfinished, and recognisable as such
    with pytest.raises(UsageError, match="val_fraction"):
        write_shards(DOCUMENTS, tokenizer, tmp_path / "b", val_fraction=1.0)


def test_a_corpus_is_that_of_one_tokenizer(corpus: Corpus, tokenizer: Tokenizer) -> None:
    assert Corpus.open(corpus.path, tokenizer).tokenizer == tokenizer.digest
    other = Tokenizer.train(["another text altogether"], 262)
    with pytest.raises(UsageError, match="in the tokens of another tokenizer"):
        Corpus.open(corpus.path, other)


def test_damage_is_named(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"index\.json: cannot read the corpus"):
        Corpus.open(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(corpus.path, copy)
    Corpus.open(copy)
    victim = copy / corpus.shards[1].file
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-2])
    with pytest.raises(ArtifactError, match=f"{victim.name}: a shard of the corpus is damaged") as caught:
        Corpus.open(copy)
    assert f"{len(whole) - 2} bytes" in str(caught.value)
    victim.unlink()
    with pytest.raises(ArtifactError, match=f"{victim.name}: a shard of the corpus is missing"):
        Corpus.open(copy)
    (copy / INDEX).write_text(json.dumps({"format": "something else"}))
    with pytest.raises(ArtifactError, match="this is not a corpus"):
        Corpus.open(copy)
    (copy / INDEX).write_text("{")
    with pytest.raises(ArtifactError, match="cannot read the corpus"):
        Corpus.open(copy)
