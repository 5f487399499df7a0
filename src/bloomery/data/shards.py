"""A corpus on disk: for each split and source one file of token ids, read as a memory map.

index.json            what lies where; written last, so a directory without it is unfinished
train-0-news.bin      ids, little-endian; every document is <|doc|> and its tokens
val-0-news.bin
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bloomery.errors import ArtifactError, DataError, UsageError, nearest
from bloomery.text.tokenizer import Tokenizer
from bloomery.types import Document

INDEX = "index.json"
SPLITS = ("train", "val")
_FORMAT = "bloomery-corpus-1"
_BATCH = 1000


@dataclass(frozen=True, eq=False)
class Shard:
    """The documents of one source in one split; document `i` is tokens[starts[i]:starts[i + 1]]."""

    split: str
    source: str
    file: str
    tokens: NDArray[Any]
    starts: NDArray[np.int64]
    num_bytes: int

    @property
    def num_tokens(self) -> int:
        return int(self.starts[-1])

    @property
    def num_documents(self) -> int:
        return len(self.starts) - 1


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokenised text. `token_bytes[id]` is the UTF-8 length of a token, for bits per byte."""

    path: Path
    tokenizer: str
    pad_id: int
    vocab_size: int
    token_bytes: NDArray[np.uint16]
    shards: tuple[Shard, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(sorted({shard.source for shard in self.shards}))

    @property
    def num_tokens(self) -> int:
        """Tokens of all splits; `sum(s.num_tokens for s in corpus.split("train"))` for one of them."""
        return sum(shard.num_tokens for shard in self.shards)

    def split(self, name: str) -> tuple[Shard, ...]:
        """The shards of "train" or "val". Raises `UsageError` where there is no document in it."""
        found = tuple(shard for shard in self.shards if shard.split == name)
        if not found:
            raise UsageError(
                f"the corpus has no documents in '{name}'{nearest(name, SPLITS)}",
                where=self.path,
                do="encode more documents, or a larger fraction of them for it",
            )
        return found

    def counts(self, most: int = 10_000_000) -> NDArray[np.int64]:
        """[vocab_size] How often each token stands among the first `most` of every training shard."""
        found = np.zeros(self.vocab_size, dtype=np.int64)
        for shard in self.split("train"):
            found += np.bincount(shard.tokens[:most], minlength=self.vocab_size)
        return found

    @classmethod
    def open(cls, path: Path, tokenizer: Tokenizer | None = None) -> Corpus:
        """Map a corpus directory. Raises `ArtifactError` naming a missing, short or foreign file, and
        `UsageError` where another tokenizer than the one given has written it."""
        path = Path(path)
        index = _read_index(path)
        if tokenizer is not None and index["tokenizer"] != tokenizer.digest:
            raise UsageError(
                "the corpus is in the tokens of another tokenizer than the model's",
                where=path,
                got=index["tokenizer"][:12],
                expected=tokenizer.digest[:12],
                do="encode the text with the model's own tokenizer",
            )
        dtype = np.dtype(index["dtype"])
        shards = tuple(_open_shard(path, entry, dtype) for entry in index["shards"])
        return cls(
            path=path,
            tokenizer=index["tokenizer"],
            pad_id=index["pad_id"],
            vocab_size=index["vocab_size"],
            token_bytes=np.asarray(index["token_bytes"], dtype=np.uint16),
            shards=shards,
        )


def write_shards(
    documents: Iterable[Document], tokenizer: Tokenizer, out: Path, *, val_fraction: float = 0.02
) -> Corpus:
    """Encode `documents` into a corpus directory and open it.

    A document's split depends on its text alone (`in_val`), so equal texts never fall on both sides.
    Raises `DataError` for an empty document and `ArtifactError` where a corpus lies already.
    """
    out = Path(out)
    if (out / INDEX).exists():
        raise ArtifactError("a corpus lies here already", where=out, do="name another directory")
    if not 0.0 <= val_fraction < 1.0:
        raise UsageError("val_fraction is a share", got=val_fraction, expected="0 <= val_fraction < 1")
    out.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype("<u2" if tokenizer.vocab_size < 65536 else "<u4")
    entries: dict[tuple[str, str], dict[str, Any]] = {}
    files: dict[tuple[str, str], BinaryIO] = {}
    with ExitStack() as stack:
        for document, ids in _encoded(documents, tokenizer):
            key = ("val" if in_val(document.text, val_fraction) else "train", document.source)
            if key not in entries:
                name = f"{key[0]}-{len(entries)}-{re.sub(r'[^A-Za-z0-9]+', '_', key[1])[:40]}.bin"
                entries[key] = {"split": key[0], "source": key[1], "file": name, "bytes": 0, "lengths": []}
                files[key] = stack.enter_context((out / name).open("wb"))
            files[key].write(np.asarray(ids, dtype=dtype).tobytes())
            entries[key]["lengths"].append(len(ids))
            entries[key]["bytes"] += len(document.text.encode())
    _write_index(out, dtype, tokenizer, [entries[key] for key in sorted(entries)])
    return Corpus.open(out)


def in_val(text: str, fraction: float) -> bool:
    """Whether a document is held out: decided by the hash of its text, the same in every run."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < fraction * 2**64


def _encoded(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[tuple[Document, list[int]]]:
    stream = iter(documents)
    while batch := list(islice(stream, _BATCH)):
        for document, ids in zip(batch, tokenizer.encode_batch([d.text for d in batch]), strict=True):
            if not ids:
                raise DataError(f"document '{document.id}' is empty", do="clean the documents first")
            yield document, [tokenizer.doc_id, *ids]


def _write_index(out: Path, dtype: np.dtype[Any], tokenizer: Tokenizer, shards: list[dict[str, Any]]) -> None:
    index = {
        "format": _FORMAT,
        "dtype": dtype.str,
        "tokenizer": tokenizer.digest,
        "pad_id": tokenizer.pad_id,
        "vocab_size": tokenizer.vocab_size,
        "token_bytes": tokenizer.token_bytes.tolist(),
        "shards": shards,
    }
    temporary = out / f"{INDEX}.tmp"
    temporary.write_text(json.dumps(index), encoding="utf-8")
    os.replace(temporary, out / INDEX)


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads((path / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            "cannot read the corpus", where=path / INDEX, got=error, do="name a directory made by `encode`"
        ) from None
    if not isinstance(index, dict) or index.get("format") != _FORMAT:
        got = index.get("format") if isinstance(index, dict) else type(index).__name__
        raise ArtifactError("this is not a corpus", where=path / INDEX, got=got, expected=_FORMAT)
    return index


def _open_shard(path: Path, entry: dict[str, Any], dtype: np.dtype[Any]) -> Shard:
    file = path / Path(entry["file"]).name
    starts = np.concatenate([[0], np.cumsum(entry["lengths"])]).astype(np.int64)
    expected = int(starts[-1]) * dtype.itemsize
    got = file.stat().st_size if file.is_file() else None
    if got != expected:
        raise ArtifactError(
            "a shard of the corpus is missing" if got is None else "a shard of the corpus is damaged",
            where=file,
            got=None if got is None else f"{got} bytes",
            expected=f"{expected} bytes",
            do="encode the corpus again",
        )
    tokens = np.memmap(file, dtype=dtype, mode="r")
    return Shard(entry["split"], entry["source"], entry["file"], tokens, starts, entry["bytes"])
