"""Lines of a file, strictly: streamed, decompressed under a cap, and never repaired.

Accepted as they are, because nothing is lost: a byte-order mark at the start of a file, CRLF line ends, and
blank lines between rows. Everything else that is not one JSON object in UTF-8 per line is a `DataError` that
names file:line:column. Lines end at `\\n` only; U+2028 and its like are text.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import zstandard

from bloomery.errors import DataError

MAX_LINE = 16 * 2**20
_CHUNK = 2**16
_ZSTD_CHUNK = 2**10  # zstd can turn 4 bytes into 128 kB, so little at a time
_FREE = 64 * 2**20
_MAX_RATIO = 200
_SURROGATE = re.compile("[\ud800-\udfff]")


class Line(NamedTuple):
    number: int
    data: bytes
    too_long: bool = False


def read_lines(path: Path, *, max_bytes: int | None = None) -> Iterator[Line]:
    """The lines of a plain, `.gz` or `.zst` file, without their ends.

    `max_bytes` caps what a compressed file may unfold to (by default 64 MiB or 200 times its size, whichever
    is more). Raises `DataError` past the cap, and for a file that is missing, damaged or cut off.
    """
    number, buffer, too_long = 1, bytearray(), False
    for chunk in _chunks(path, max_bytes):
        for i, part in enumerate(chunk.split(b"\n")):
            if i > 0:
                yield Line(number, bytes(buffer), too_long)
                number, buffer, too_long = number + 1, bytearray(), False
            buffer += part
            if len(buffer) > MAX_LINE:
                too_long, buffer = True, bytearray()
    if buffer or too_long:
        yield Line(number, bytes(buffer), too_long)


def text_of(line: Line, path: Path) -> str:
    """A line as text, without a byte-order mark before line 1 or a CR at its end.

    Raises `DataError` for a line that is too long, is not UTF-8 or holds a NUL.
    """
    where = f"{path}:{line.number}"
    if line.too_long:
        raise DataError(
            "this line is too long",
            where=where,
            got=f"more than {MAX_LINE // 2**20} MiB",
            do="split it into several rows",
        )
    data = line.data.removesuffix(b"\r")
    if line.number == 1:
        data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            "this line is not UTF-8",
            where=f"{where}:{error.start + 1}",
            got=f"byte 0x{data[error.start]:02x}",
            do="save the file as UTF-8",
        ) from None
    if "\0" in text:
        raise DataError("this line holds a NUL character", where=f"{where}:{text.index(chr(0)) + 1}")
    return text


def parse_row(text: str, where: str) -> dict[str, Any]:
    """One JSON object. Raises `DataError` for what JSON or plain text does not allow: NaN, infinities,
    duplicate keys, numbers beyond reason, nesting too deep, NUL characters, lone surrogates."""
    try:
        value = _DECODER.decode(text)
    except _Problem as error:
        raise DataError(error.args[0], where=_place(text, where, error.args[1]), got=error.args[1]) from None
    except json.JSONDecodeError as error:
        raise DataError(
            "this line is not JSON",
            where=f"{where}:{error.colno}",
            got=f"{error.msg.lower()} at {text[error.pos : error.pos + 20]!r}",
            expected="one JSON object per line",
        ) from None
    except RecursionError:
        raise DataError("this line is nested too deeply", where=where) from None
    except ValueError as error:
        raise DataError("this line holds a number that is too long", where=where, got=error) from None
    if not isinstance(value, dict):
        raise DataError(
            "this line is not a JSON object",
            where=where,
            got=type(value).__name__,
            expected="one object per line; a file that is one JSON array has to be unrolled first",
        )
    if "\\u" in text:
        _check_strings(value, where)
    return value


class _Problem(Exception):
    """Raised inside the JSON decoder: what is wrong, and the text to point at."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _Problem("a key is given twice in one object", f'"{twice}"')
    return row


def _refuse_constant(text: str) -> NoReturn:
    raise _Problem("this is no number in JSON", text)


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _Problem("a number is too large", text)
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)


def _place(text: str, where: str, part: str) -> str:
    """Where the last `part` of a line is; of a key given twice, the second one."""
    return f"{where}:{text.rfind(part) + 1}"


def _check_strings(value: Any, where: str) -> None:
    if isinstance(value, str):
        if bad := _SURROGATE.search(value):
            raise DataError("a string holds half of a surrogate pair", where=where, got=ascii(bad.group()))
        if "\0" in value:
            raise DataError("a string holds a NUL character", where=where, got=_around(value))
    elif isinstance(value, dict):
        for key, inner in value.items():
            _check_strings(key, where)
            _check_strings(inner, where)
    elif isinstance(value, list):
        for inner in value:
            _check_strings(inner, where)


def _around(value: str) -> str:
    at = value.index("\0")
    return repr(value[max(0, at - 20) : at + 20])


def _chunks(path: Path, max_bytes: int | None) -> Iterator[bytes]:
    """The unfolded bytes of a file, a chunk at a time."""
    try:
        with path.open("rb") as file:
            if path.suffix not in (".gz", ".zst"):
                while chunk := file.read(_CHUNK):
                    yield chunk
                return
            cap = max_bytes or max(_FREE, _MAX_RATIO * path.stat().st_size)
            total = 0
            for chunk in _gunzip(file) if path.suffix == ".gz" else _unzstd(file):
                total += len(chunk)
                if total > cap:
                    raise DataError(
                        "this file unfolds to more than it may",
                        where=path,
                        got=f"more than {cap} bytes",
                        do="unpack it yourself if you trust it",
                    )
                yield chunk
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DataError("this compressed file is damaged or cut off", where=path, got=error) from None
    except OSError as error:
        raise DataError("cannot read the file", where=path, got=error.strerror or error) from None


def _gunzip(file: BinaryIO) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=file) as unfolded:
        while chunk := unfolded.read(_CHUNK):
            yield chunk


def _unzstd(file: BinaryIO) -> Iterator[bytes]:
    frame = zstandard.ZstdDecompressor(max_window_size=2**27).decompressobj()
    started = False
    while data := file.read(_ZSTD_CHUNK):
        while data:
            started = True
            yield frame.decompress(data)
            data = frame.unused_data if frame.eof else b""
            if frame.eof:
                frame = zstandard.ZstdDecompressor(max_window_size=2**27).decompressobj()
                started = False
    if started:
        raise EOFError("the last frame is not complete")
