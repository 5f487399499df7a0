"""Damaged and odd files: each has one pinned outcome, with file:line:column, and memory stays bounded."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import pytest
import zstandard

from bloomery.data import rows
from bloomery.data.rows import Line, parse_row, read_lines, text_of
from bloomery.data.sources import read, read_documents
from bloomery.errors import DataError
from bloomery.types import Document

GOOD = b'{"text": "fine"}\n'
SECOND = [
    # what the second line of a file is, where the error points, and what it says
    (b'{"text": "cut', "2:10", "not JSON"),
    (b'{"text": "a"} {"text": "b"}', "2:15", "not JSON"),
    (b"{'text': 'a'}", "2:2", "not JSON"),
    (b"plain words", "2:1", "not JSON"),
    (b'{"text": "a\tb"}', "2:12", "not JSON"),
    (b'{"text": "\xff"}', "2:11", "not UTF-8"),
    (b'{"text": "\xed\xa0\x80"}', "2:11", "not UTF-8"),
    (b'\xef\xbb\xbf{"text": "a"}', "2:1", "not JSON"),
    (b'{"text": "a", "n": NaN}', "2:20", "no number in JSON"),
    (b'{"text": "a", "n": -Infinity}', "2:20", "no number in JSON"),
    (b'{"text": "a", "n": 1e999}', "2:20", "too large"),
    (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "2", "too long"),
    (b'{"text": "a", "text": "b"}', "2:15", "given twice"),
    (b'{"text": "a", "x": {"k": 1, "k": 2}}', "2:29", "given twice"),
    (b"[" * 5000 + b"]" * 5000, "2", "nested too deeply"),
    (b'{"text": "a", "x": ' + b'{"x":' * 5000 + b"1" + b"}" * 5001, "2", "nested too deeply"),
    (b'["text", "a"]', "2", "not a JSON object"),
    (b'"text"', "2", "not a JSON object"),
    (b"null", "2", "not a JSON object"),
    (b'{"text": "a\x00b"}', "2:12", "NUL"),
    (b'{"text": "a\\u0000b"}', "2", "NUL"),
    (b'{"text": "\\ud83d"}', "2", "surrogate"),
    (b'{"text": "a", "x": [{"\\udc00": 1}]}', "2", "surrogate"),
    (b'{"text": 7}', "2", "'text' is not text"),
    (b'{"text": null}', "2", "'text' is not text"),
    (b'{"text": ["a"]}', "2", "'text' is not text"),
    (b'{"text": ""}', "2", "'text' is empty"),
    (b'{"text": " \\n"}', "2", "'text' is empty"),
    (b'{"txt": "a"}', "2", "column 'text' is missing (did you mean 'txt'?)"),
    (b"{}", "2", "column 'text' is missing"),
    (b'{"text": "a", "id": 1.5}', "2", "neither text nor a whole number"),
    (b'{"text": "a", "id": ""}', "2", "neither text nor a whole number"),
]


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def texts(records: Iterable[object]) -> list[str]:
    return [record.text for record in records if isinstance(record, Document)]


@pytest.mark.parametrize(("line", "place", "says"), SECOND, ids=[f"{i}" for i in range(len(SECOND))])
def test_a_bad_line_is_named_or_counted(tmp_path: Path, line: bytes, place: str, says: str) -> None:
    path = put(tmp_path / "a.jsonl", GOOD + line + b"\n" + GOOD)
    with pytest.raises(DataError) as caught:
        list(read(path))
    assert str(caught.value).startswith(f"{path}:{place}: ")
    assert says in str(caught.value)
    skipped: list[DataError] = []
    assert texts(read(path, on_bad_row="skip", skipped=skipped)) == ["fine", "fine"]
    assert [str(error) for error in skipped] == [str(caught.value)]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xef\xbb\xbf" + GOOD, ["fine"]),
        (GOOD.replace(b"\n", b"\r\n") * 2, ["fine", "fine"]),
        (b"\n\n" + GOOD + b"  \n\n" + GOOD + b"\n", ["fine", "fine"]),
        (GOOD.rstrip(), ["fine"]),
        ('{"text": "one\u2028two\u0085three"}\n'.encode(), ["one\u2028two\u0085three"]),
        (b'{"text": "\\ud83d\\ude00"}', ["😀"]),
        (b'{"text": " kept as it is \\n"}', [" kept as it is \n"]),
    ],
)
def test_what_loses_nothing_is_accepted(tmp_path: Path, data: bytes, expected: list[str]) -> None:
    assert texts(read(put(tmp_path / "a.jsonl", data))) == expected


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_a_file_without_rows_is_an_error(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DataError, match="holds no rows"):
        list(read(put(tmp_path / "a.jsonl", data)))


def test_all_rows_skipped_is_an_error(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", b"{\n{\n")
    with pytest.raises(DataError, match="2 bad rows"):
        list(read(path, on_bad_row="skip"))


def test_skipped_rows_are_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = put(tmp_path / "a.jsonl", GOOD + b"{\n" + GOOD + b"[]\n")
    assert texts(read(path, on_bad_row="skip")) == ["fine", "fine"]
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert "skipped 2 rows" in record.getMessage()


def test_ids_are_unique_within_a_file(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", b'{"text": "a", "id": 1}\n{"text": "b", "id": "1"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: id '1' is given twice") as caught:
        list(read(path))
    assert "a.jsonl:1" in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path / "none.jsonl.gz", tmp_path):
        with pytest.raises(DataError, match=f"^{path}: cannot read the file"):
            list(read(path))


def test_a_line_that_is_too_long_is_skipped_without_being_held(tmp_path: Path) -> None:
    huge = b'{"text": "' + b"x" * (3 * rows.MAX_LINE) + b'"}\n'
    path = put(tmp_path / "a.jsonl", GOOD + huge + GOOD)
    with pytest.raises(DataError, match=r"a\.jsonl:2: this line is too long"):
        list(read(path))
    del huge
    tracemalloc.start()
    try:
        assert texts(read(path, on_bad_row="skip")) == ["fine", "fine"]
        assert tracemalloc.get_traced_memory()[1] < 3 * rows.MAX_LINE
    finally:
        tracemalloc.stop()


def compress(data: bytes, suffix: str) -> bytes:
    return gzip.compress(data) if suffix == ".gz" else zstandard.compress(data)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files(tmp_path: Path, suffix: str) -> None:
    lines = b"".join(json.dumps({"text": f"number {i} " * (i % 9 + 1)}).encode() + b"\n" for i in range(3000))
    whole = compress(lines, suffix)
    path = put(tmp_path / f"a.jsonl{suffix}", whole)
    assert [line.data + b"\n" for line in read_lines(path)] == lines.splitlines(keepends=True)
    two = put(tmp_path / f"b.jsonl{suffix}", whole + compress(GOOD, suffix))
    assert sum(1 for _ in read(two)) == 3001
    for damaged in (whole[: len(whole) // 2], whole[:-3], b"\x00" + whole[1:], whole + b"left over"):
        bad = put(tmp_path / f"c.jsonl{suffix}", damaged)
        with pytest.raises(DataError, match=r"c\.jsonl\.\w+: this compressed file is damaged or cut off"):
            list(read(bad, on_bad_row="skip"))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compression_bomb_stops_at_the_cap(tmp_path: Path, suffix: str) -> None:
    path = put(tmp_path / f"a.jsonl{suffix}", compress(b"\n" * 300_000, suffix))
    with pytest.raises(DataError, match="unfolds to more than it may"):
        list(read(path, max_bytes=200_000))
    assert sum(1 for _ in read_lines(path)) == 300_000


def test_lines_are_the_same_however_the_file_is_cut_into_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / "a.txt", b"one\n\ntwo two\nthree")
    expected = [Line(1, b"one"), Line(2, b""), Line(3, b"two two"), Line(4, b"three")]
    for size in (1, 2, 3, 5, 100):
        monkeypatch.setattr(rows, "_CHUNK", size)
        assert list(read_lines(path)) == expected


def test_rows_can_be_parsed_alone() -> None:
    assert parse_row('{"a": [1, 2.5, null, true, "\\u00e9"]}', "x:1") == {"a": [1, 2.5, None, True, "é"]}
    assert text_of(Line(1, b"\xef\xbb\xbfa\r"), Path("x")) == "a"


def test_text_files_are_cut_at_blank_lines_or_a_separator(tmp_path: Path) -> None:
    path = put(tmp_path / "tale.txt", "One\r\ntwo.\r\n\r\n\r\nThree\u2028four.\n \nFive.".encode())
    got = list(read_documents(path))
    assert [d.text for d in got] == ["One\ntwo.", "Three\u2028four.", "Five."]
    assert [d.id for d in got] == ["tale-1", "tale-5", "tale-7"]
    assert {d.source for d in got} == {"tale"}
    assert len(list(read_documents(path, separator=None))) == 4
    path = put(tmp_path / "b.txt", b"One.\n\nTwo.\n---\nThree.\n")
    assert [d.text for d in read_documents(path, separator="---")] == ["One.\n\nTwo.", "Three."]


def test_a_bad_line_of_a_text_file_spoils_its_document_only(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", b"One.\n\nTw\xffo.\nstill two\n\nThree.\n")
    with pytest.raises(DataError, match=r"a\.txt:3:3: this line is not UTF-8"):
        list(read(path))
    skipped: list[DataError] = []
    assert texts(read(path, on_bad_row="skip", skipped=skipped)) == ["One.", "Three."]
    assert len(skipped) == 1
