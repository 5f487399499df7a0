"""Duplicates: equal texts by hash, near ones by MinHash and banding, each candidate checked exactly.

MinHash: Broder 1997; banding as in Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4:
with r rows in b bands a pair of Jaccard similarity s is a candidate with probability 1 - (1 - s^r)^b, which
for r = 5, b = 25 is .99 at s = 0.7.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from bloomery.data.formats import AnyRecord
from bloomery.errors import DataError, UsageError
from bloomery.seeds import stream
from bloomery.types import Conversation, Document, Prompt

BANDS, ROWS = 25, 5
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|\w+|[^\w\s]")
_BATCH = 256

Hashes = NDArray[np.uint64]


@dataclass
class Duplicates:
    """Clusters: the id of the document that was kept, and those of its duplicates that were not."""

    clusters: dict[str, list[str]] = field(default_factory=dict)
    num_read: int = 0
    num_exact: int = 0
    num_near: int = 0


def dedupe(
    documents: Iterable[Document], *, threshold: float = 0.7, ngram: int = 3, near: bool = True
) -> tuple[list[Document], Duplicates]:
    """The documents without later duplicates of earlier ones, in order, and what was found.

    Exact: equal but for case, form and white space. Near: at least `threshold` of the word n-grams that
    occur in either of two documents occur in both (Jaccard similarity); n-grams of `ngram` words.
    Deterministic. Raises `UsageError` for a threshold outside (0, 1] or an ngram below 1.
    """
    if not 0 < threshold <= 1 or ngram < 1:
        raise UsageError("0 < threshold <= 1 and ngram >= 1", got=f"threshold={threshold}, ngram={ngram}")
    report = Duplicates()
    kept: list[Document] = []
    exact: dict[bytes, int] = {}  # digest of the normal form -> number among the kept
    index = _NearIndex(threshold)
    for document, shingles, signature in _signed(documents, ngram if near else 0):
        report.num_read += 1
        digest = hashlib.sha256(normal_form(document.text).encode()).digest()
        first = exact.get(digest)
        if first is not None:
            report.num_exact += 1
        elif near:
            first = index.find(shingles, signature)
            report.num_near += first is not None
        if first is not None:
            report.clusters.setdefault(kept[first].id, []).append(document.id)
            exact.setdefault(digest, first)
            continue
        exact[digest] = len(kept)
        index.add(shingles, signature)
        kept.append(document)
    return kept, report


def normal_form(text: str) -> str:
    """Text up to case, Unicode form and white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def shingles(text: str, ngram: int) -> Hashes:
    """[S] sorted distinct hashes of the word n-grams of a text; of all its words where it has fewer."""
    words = _WORD.findall(normal_form(text))
    codes = np.fromiter((_code(word) for word in words), dtype=np.uint64, count=len(words))
    n = max(1, min(ngram, len(codes)))
    total = np.zeros(max(1, len(codes) - n + 1), dtype=np.uint64)
    for i in range(n if len(codes) else 0):
        total = (total * _BASE) + codes[i : i + len(total)]
    return np.unique(total)


def jaccard(a: Hashes, b: Hashes) -> float:
    """|a and b| / |a or b| of two sorted sets."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def overlap(
    train: Iterable[AnyRecord],
    evaluation: Iterable[AnyRecord],
) -> list[tuple[str, str]]:
    """Pairs (id in `evaluation`, id of the first in `train`) whose text, or whose prompt, is the same but
    for case, punctuation and white space."""
    seen: dict[str, str] = {}
    for record in train:
        seen.setdefault(_key(record), record.id)
    return [(record.id, seen[key]) for record in evaluation if (key := _key(record)) in seen]


def refuse_overlap(
    train: Iterable[AnyRecord],
    evaluation: Iterable[AnyRecord],
) -> None:
    """Raises `DataError` where anything that is evaluated on is also trained on."""
    if found := overlap(train, evaluation):
        raise DataError(
            f"{len(found)} of the evaluation's prompts or texts are also in the training data",
            got=", ".join(f"{a} = {b}" for a, b in found[:5]),
            do="take them out of the training data, or say that the overlap is wanted",
        )


class _NearIndex:
    """Documents kept so far, by the bands of their signatures."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.kept: list[Hashes] = []
        self.buckets: list[dict[bytes, list[int]]] = [{} for _ in range(BANDS)]

    def find(self, shingles: Hashes, signature: Hashes) -> int | None:
        """The first kept document that is similar enough."""
        bands = zip(self.buckets, signature.reshape(BANDS, ROWS), strict=True)
        candidates = {i for bucket, band in bands for i in bucket.get(band.tobytes(), ())}
        return next((i for i in sorted(candidates) if self._similar(self.kept[i], shingles)), None)

    def add(self, shingles: Hashes, signature: Hashes) -> None:
        for bucket, band in zip(self.buckets, signature.reshape(BANDS, ROWS), strict=True):
            bucket.setdefault(band.tobytes(), []).append(len(self.kept))
        self.kept.append(shingles)

    def _similar(self, a: Hashes, b: Hashes) -> bool:
        most = min(len(a), len(b)) / max(len(a), len(b))
        return most >= self.threshold and jaccard(a, b) >= self.threshold


def _signed(documents: Iterable[Document], ngram: int) -> Iterator[tuple[Document, Hashes, Hashes]]:
    """Documents with shingles and signature, a batch at a time; `ngram` 0 leaves both empty."""
    stream = iter(documents)
    nothing = np.zeros(BANDS * ROWS, dtype=np.uint64)
    while batch := list(islice(stream, _BATCH)):
        if not ngram:
            yield from ((document, nothing, nothing) for document in batch)
            continue
        sets = [shingles(document.text, ngram) for document in batch]
        yield from zip(batch, sets, signatures(sets), strict=True)


def signatures(sets: Sequence[Hashes]) -> Hashes:
    """[D, BANDS * ROWS] minima of D non-empty sets under as many hash functions."""
    starts = np.cumsum([0, *map(len, sets[:-1])])
    values = np.concatenate(sets)
    result = np.empty((len(sets), BANDS * ROWS), dtype=np.uint64)
    for i, (a, b) in enumerate(_FUNCTIONS):
        mixed = values * a + b
        mixed ^= mixed >> np.uint64(29)
        result[:, i] = np.minimum.reduceat(mixed * _BASE, starts)
    return result


def _code(word: str) -> int:
    """64 bits for a word, the same in every process."""
    code = _codes.get(word)
    if code is None:
        code = int.from_bytes(
            hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little"
        )
        if len(_codes) < 2**20:
            _codes[word] = code
    return code


def _key(record: AnyRecord) -> str:
    if isinstance(record, Document):
        text = record.text
    elif isinstance(record, Conversation):
        last = max((i for i, m in enumerate(record.messages) if m.role == "assistant"), default=None)
        text = " ".join(m.content for m in record.messages[:last])
    else:
        turns = record.messages if isinstance(record, Prompt) else record.prompt
        text = " ".join(m.content for m in turns)
    return re.sub(r"\W+", " ", normal_form(text)).strip()


_codes: dict[str, int] = {}
_BASE = np.uint64(0x9E3779B97F4A7C15)
_draws = stream(0, "minhash").integers(1, 2**63, size=(BANDS * ROWS, 2), dtype=np.uint64)
_FUNCTIONS = [(a | np.uint64(1), b) for a, b in _draws]
