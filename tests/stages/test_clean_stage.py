"""From documents to a corpus: every document that is dropped is counted under one reason, sources are
weighed, and what the world wrote arrives in the shards."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny

from bloomery.data.shards import Corpus
from bloomery.data.sources import read_documents
from bloomery.lineage import digest_file, verify
from bloomery.stages import clean, encode, tokenizer, world
from bloomery.stages.clean import Clean
from bloomery.stages.encode import Encode
from bloomery.stages.tokenizer import TokenizerRecipe
from bloomery.stages.world import WorldRecipe
from bloomery.text.tokenizer import Tokenizer
from bloomery.world import Question, World

GOOD = (
    "The mill stands by the river, and two brothers keep it.",
    "Every spring the market opens when the first boat comes in.",
    "A kettle of soup needs salt, an onion and a little patience.",
    "Nobody remembers who built the bridge over the northern road.",
    "Three goats climbed onto the roof while the farmer was asleep.",
    "She wrote a letter to her aunt and forgot to post it.",
)
GARBLED = "q#x7 %%zz @@ kk--!! 9s9 ^^ vv~~ ** pp"
COPY = "The mill  stands by the RIVER, and two brothers keep it."
NEAR = "Every spring the market opens when the first boat comes in again."


def document(id: str, text: str, source: str = "news", quality: str = "clean") -> dict[str, Any]:
    return {"id": id, "text": text, "source": source, "quality": quality}


MIXED = [
    *(document(f"good-{i}", text, "news" if i % 2 else "howto") for i, text in enumerate(GOOD)),
    document("bad", GARBLED, "howto", "garbled"),
    document("short", "Too short.", "news"),
    document("copy", COPY, "news", "duplicate"),
    document("near", NEAR, "howto", "duplicate"),
]


def scrub(paths: list[Path], out: Path, **changed: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    clean.run(Clean(documents=tuple(paths), **changed), out)
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return tiny.lines(out / "documents.jsonl"), report


def test_every_document_is_kept_or_counted_under_one_reason(tmp_path: Path) -> None:
    file = tiny.write_lines(tmp_path / "all.jsonl", MIXED)
    kept, report = scrub([file], tmp_path / "out")
    assert [d["id"] for d in kept] == [f"good-{i}" for i in range(6)]
    assert [d["text"] for d in kept] == list(GOOD)
    assert report["read"] == 10
    assert report["kept"] == report["written"] == 6
    assert report["read"] == report["kept"] + sum(report["reasons"].values())
    assert report["reasons"]["too_short"] == 1
    assert report["reasons"]["duplicate"] == 2
    assert report["duplicates"] == {"exact": 1, "near": 1}
    assert report["sources"]["howto"]["clean"] == {"kept": 3}
    assert report["sources"]["news"]["duplicate"] == {"duplicate": 1, "kept": 0}
    assert "kept" not in report["sources"]["howto"]["garbled"]
    lineage = json.loads((tmp_path / "out" / "lineage.json").read_text())
    assert lineage["data"] == [{"source": "howto", "documents": 3}, {"source": "news", "documents": 3}]


def test_near_copies_stay_when_only_equal_texts_are_looked_for(tmp_path: Path) -> None:
    file = tiny.write_lines(tmp_path / "all.jsonl", MIXED)
    kept, report = scrub([file], tmp_path / "out", near=False)
    assert "near" in [d["id"] for d in kept]
    assert report["duplicates"] == {"exact": 1, "near": 0}
    strict, _ = scrub([file], tmp_path / "strict", threshold=1.0)
    assert len(strict) == 7


def test_rules_can_be_left_out(tmp_path: Path) -> None:
    file = tiny.write_lines(tmp_path / "all.jsonl", MIXED)
    kept, report = scrub([file], tmp_path / "out", rules={"disabled": ["too_short"]})
    assert "short" in [d["id"] for d in kept]
    assert "too_short" not in report["reasons"]


def test_sources_are_weighed_after_the_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tiny.write_lines(tmp_path / "all.jsonl", MIXED)
    kept, report = scrub([file], tmp_path / "out", weights={"news": 2, "howto": 0, "nwes": 3})
    assert Counter(d["text"] for d in kept) == {GOOD[i]: 2 for i in (1, 3, 5)}
    assert len({d["id"] for d in kept}) == 6
    assert (report["read"], report["kept"], report["written"]) == (10, 6, 6)
    assert "no document has source 'nwes': its weight has no effect" in capsys.readouterr().err
    half, report = scrub([file], tmp_path / "half", weights={"news": 1 / 3})
    assert Counter(d["source"] for d in half) == {"howto": 3, "news": 1}
    assert report["written"] == 4


def test_files_may_share_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each file numbers its documents from 0; the second repeats a text of the first under another's id.
    All are counted, and what is written can be read again."""
    one = tiny.write_lines(tmp_path / "1.jsonl", [document(str(i), t) for i, t in enumerate(GOOD[:3])])
    texts = (GOOD[1], GOOD[3], GOOD[4], GOOD[5])
    two = tiny.write_lines(
        tmp_path / "2.jsonl", [document(i, t) for i, t in zip(("0", "1", "1/2", "9"), texts, strict=True)]
    )
    kept, report = scrub([one, two], tmp_path / "out")
    assert [d["text"] for d in kept] == list(GOOD)
    assert [d["id"] for d in kept] == ["0", "1", "2", "1/2", "1/2/2", "9"]
    assert (report["read"], report["kept"], report["reasons"]) == (7, 6, {"duplicate": 1})
    assert "3 documents have the id of another file's" in capsys.readouterr().err
    assert len(list(read_documents(tmp_path / "out" / "documents.jsonl"))) == 6


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world, and a seventh of its documents on their way to a corpus."""
    root = tmp_path_factory.mktemp("corpus")
    world.run(WorldRecipe(seed=1, size=8), root / "world")
    some = tiny.lines(root / "world" / "documents.jsonl")[::7]
    raw = tiny.write_lines(root / "raw.jsonl", some)
    clean.run(Clean(documents=(raw,)), root / "clean")
    documents = (root / "clean" / "documents.jsonl",)
    shown = (root / "world" / "demonstrations.jsonl",)
    tokenizer.run(
        TokenizerRecipe(documents=documents, conversations=shown, vocab_size=500), root / "tokenizer"
    )
    encode.run(Encode(documents=documents, tokenizer=root / "tokenizer", val_fraction=0.2), root / "encode")
    return root


def test_the_world_is_written_whole(made: Path) -> None:
    place = made / "world"
    assert verify(place) == []
    read = World.from_json((place / "world.json").read_text())
    assert read.to_json() == World.make(1, 8).to_json()
    asked = [Question.from_json(row) for row in tiny.lines(place / "questions.jsonl")]
    assert {q.split for q in asked} == {"demo", "label", "eval"}
    prompts = tiny.lines(place / "prompts.jsonl")
    assert [p["id"] for p in prompts] == [q.id for q in asked if q.split == "label"]
    # What is demonstrated or optimised against is never what is asked in the end.
    finals = {q.messages for q in asked if q.split == "eval"}
    assert not finals & {q.messages for q in asked if q.split != "eval"}
    texts = {q.text for q in asked if q.split == "eval"}
    for talk in tiny.lines(place / "demonstrations.jsonl"):
        assert not texts & {m["content"] for m in talk["messages"][:1]} or len(talk["messages"]) > 2


def test_the_worlds_garbled_pages_do_not_pass_and_its_clean_ones_do(made: Path) -> None:
    report = json.loads((made / "clean" / "report.json").read_text())
    totals: Counter[tuple[str, bool]] = Counter()
    for qualities in report["sources"].values():
        for quality, reasons in qualities.items():
            for reason, n in reasons.items():
                totals[quality, reason == "kept"] += n
    assert totals["garbled", False] >= 5
    assert totals["garbled", True] <= 0.1 * totals["garbled", False]
    assert totals["clean", True] > 0.9 * (totals["clean", True] + totals["clean", False])


def test_the_tokenizer_spells_everything_it_read(made: Path) -> None:
    spells = Tokenizer.load(made / "tokenizer")
    assert spells.vocab_size == 500
    texts = [d["text"] for d in tiny.lines(made / "clean" / "documents.jsonl")]
    assert all(spells.decode(spells.encode(text)) == text for text in texts[:50])
    talks = [m["content"] for t in tiny.lines(made / "world" / "demonstrations.jsonl") for m in t["messages"]]
    num_bytes = sum(len(text.encode()) for text in texts + talks)
    num_tokens = sum(len(spells.encode(text)) for text in texts + talks)
    assert num_bytes / num_tokens > 2
    card = (made / "tokenizer" / "README.md").read_text()
    assert f"{num_bytes / num_tokens:.4g}"[:4] in card


def test_the_corpus_holds_every_document_once_on_one_side(made: Path) -> None:
    corpus, spells = Corpus.open(made / "encode"), Tokenizer.load(made / "tokenizer")
    sides: dict[str, list[str]] = {}
    for split in ("train", "val"):
        sides[split] = [
            spells.decode(shard.tokens[shard.starts[i] + 1 : shard.starts[i + 1]].tolist())
            for shard in corpus.split(split)
            for i in range(shard.num_documents)
        ]
    texts = [d["text"] for d in tiny.lines(made / "clean" / "documents.jsonl")]
    assert Counter(sides["train"] + sides["val"]) == Counter(texts)
    assert 0.1 < len(sides["val"]) / len(texts) < 0.3
    assert not set(sides["train"]) & set(sides["val"])


def test_the_same_seed_writes_the_same_bytes(made: Path, tmp_path: Path) -> None:
    world.run(WorldRecipe(seed=1, size=8), tmp_path / "again")
    for name in ("documents.jsonl", "demonstrations.jsonl", "questions.jsonl", "prompts.jsonl", "world.json"):
        assert digest_file(tmp_path / "again" / name) == digest_file(made / "world" / name)
