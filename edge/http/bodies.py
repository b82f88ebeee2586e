"""Content types and codings of bodies, and decompression that never produces much more than it may.

A body is fed and taken in pieces; what a bomb would have become is never held, only counted up to the cap.
"""

from __future__ import annotations

import io
import re
import sys
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from itertools import islice
from typing import Final, Literal

import brotli

from edge.http.errors import RequestError
from edge.validation import Detail

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MediaType = Literal["json", "ndjson"]


class BodyError(RequestError):
    """The body is not taken: its type, its coding, its size, or its bytes."""

    @property
    def details(self) -> list[Detail]:
        """What the answer says is wrong."""
        return [Detail(field=self.field, message=self.message, code=self.code)]


_JSON_TYPES: Final = frozenset({"application/json", "text/plain"})
_NDJSON_TYPES: Final = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})
# RFC 6839, 3.1. The name of a subtype is a token (RFC 9110, 5.6.2).
_JSON_SUFFIX: Final = re.compile(r"application/[-!#$&^_.+0-9a-z]+\+json")
# A quoted string that does not end takes the rest of the header with it: each character is looked at once.
_PARAMETER: Final = re.compile(r';((?:[^;"]|"(?:[^"\\]|\\.)*+(?:"|\\?\Z))*+)')
_MEDIA_TYPE_CHARS: Final = 256
_UTF8_CHARSETS: Final = frozenset({"utf-8", "utf8", "us-ascii"})


def media_type(header: str | None) -> MediaType:
    """Return how to read a body with this `Content-Type`; none at all means JSON. `BodyError` for any other type."""
    if header is None or not header.strip():
        return "json"
    if len(header) > _MEDIA_TYPE_CHARS:
        raise BodyError(415, "http.media_type", "Content-Type", f"must be at most {_MEDIA_TYPE_CHARS} characters")
    name = header.partition(";")[0].strip().lower()
    if name in _NDJSON_TYPES:
        kind: MediaType = "ndjson"
    elif name in _JSON_TYPES or _JSON_SUFFIX.fullmatch(name):
        kind = "json"
    else:
        raise BodyError(
            415, "http.media_type", "Content-Type", "must be application/json, application/x-ndjson or text/plain"
        )
    for parameter in _PARAMETER.findall(header):
        key, _, value = parameter.partition("=")
        if key.strip().lower() == "charset" and value.strip(' \t"').lower() not in _UTF8_CHARSETS:
            raise BodyError(415, "http.media_type", "Content-Type", "must have the charset utf-8 or none")
    return kind


_CODINGS: Final[Mapping[str, str]] = {
    "gzip": "gzip",
    "x-gzip": "gzip",
    "deflate": "deflate",
    "zstd": "zstd",
    "br": "br",
}


def content_codings(header: str | None) -> tuple[str, ...]:
    """Return the coding to undo, as a tuple of one or none, by `Content-Encoding`.

    `identity` is left out. An unknown coding, and more than one (nested bombs), is a `BodyError`.
    """
    if not header:
        return ()
    named = [name for part in header.split(",") if (name := part.strip().lower()) not in ("", "identity")]
    if not all(name in _CODINGS for name in named):
        raise BodyError(415, "http.encoding", "Content-Encoding", "must be one of: gzip, deflate, zstd, br, identity")
    if len(named) > 1:
        raise BodyError(415, "http.encoding", "Content-Encoding", "must name one coding only")
    return tuple(_CODINGS[name] for name in named)


def sniff_codings(data: bytes) -> tuple[str, ...]:
    """Return the coding of a body that came without `Content-Encoding`: several browser SDKs gzip without saying so."""
    return ("gzip",) if data.startswith(b"\x1f\x8b") else ()


STEP_BYTES: Final = 65536
"""The most that one step of a decompressor takes in or gives out."""
RATIO_FREE_BYTES: Final = 65536
"""Output up to here is not judged by its ratio: small bodies of many alike events compress well beyond any bomb."""
MAX_PARTS: Final = 1024
"""Members (gzip) or frames (zstd) of one body. Each costs a decompressor, even when nothing is in it."""
SMALL_PARTS: Final = 16
"""Parts of a body that is decompressed in passing."""
SLOW_TO_START: Final = frozenset({"br"})
"""Codings that make megabytes before they give out the first byte, however few are asked for: milliseconds."""
# RFC 9659: the window of zstd as a content coding is at most 8 MiB.
_ZSTD_OPTIONS: Final[Mapping[int, int]] = {zstd.DecompressionParameter.window_log_max: 23}
_BROTLI_BLOCK_BYTES: Final = 32752
"""The first block of the library's output buffer. A larger limit is overstepped by the next block, twice as large."""
# RFC 7932, 9.1: the first four bits of a window of 8 or 16 MiB. The library fills the window before it gives anything
# out, whatever the limit of a step; encoders use 4 MiB at most unless told otherwise.
_BROTLI_WIDE_WINDOWS: Final = (0b1101, 0b1111)


class _TooManyPartsError(Exception):
    """There are more parts than may be looked at."""


class _MalformedError(Exception):
    """The data ends too early, goes on after its end, or asks for too much memory."""


def decompress(coding: str, data: bytes, max_bytes: int, max_ratio: int) -> bytes:
    """Return the decompressed body; blocking, a few milliseconds for each MiB of output.

    `BodyError` 413 past `max_bytes`, past `max_ratio` times the compressed length, or past 1,024 members; 400 for
    data that is truncated, corrupt, followed by something else, or wants a window above 8 MiB (zstd) or 4 MiB (br).
    While it runs it takes the window in memory, beside the output.
    """
    try:
        raw = _decompress_up_to(coding, data, max_bytes, max_ratio, MAX_PARTS)
    except _TooManyPartsError:
        raise _too_large(f"must have at most {MAX_PARTS} compressed parts") from None
    if raw is None:
        raise _too_large(f"must be at most {max_bytes} bytes when decompressed")
    return raw


def decompress_small(coding: str, data: bytes, max_bytes: int) -> bytes | None:
    """Return the decompressed body, or None when that would be much work: `decompress` is then to do it all again.

    Most compressed bodies are small, and done in less time than it takes to hand them to a thread; `SLOW_TO_START`
    has the codings of which not even that is certain. `BodyError` as `decompress` raises it, 413 aside.
    """
    try:
        return _decompress_up_to(coding, data, max_bytes, None, SMALL_PARTS)
    except _TooManyPartsError:
        return None


def _decompress_up_to(coding: str, data: bytes, max_bytes: int, max_ratio: int | None, max_parts: int) -> bytes | None:
    """Return the decompressed body, or None past `max_bytes`; `BodyError` past `max_ratio`, which None leaves out."""
    by_ratio = max_bytes if max_ratio is None else max(RATIO_FREE_BYTES, max_ratio * len(data))
    out = io.BytesIO()
    size_bytes = 0
    try:
        for piece in _DECODERS[coding](data, max_parts):
            size_bytes += len(piece)
            if size_bytes > max_bytes:
                return None
            if size_bytes > by_ratio:
                raise _too_large(f"must not be compressed more than {max_ratio} to 1")
            out.write(piece)
    except (_MalformedError, zlib.error, zstd.ZstdError, brotli.error):
        raise BodyError(400, "json.encoding", "body", f"is not valid {coding}") from None
    return out.getvalue()


def _too_large(message: str) -> BodyError:
    return BodyError(413, "limit.decompressed", "body", message)


def _gunzip(data: bytes, max_parts: int) -> Iterator[bytes]:
    """Yield the content of every member (RFC 1952, 2.2)."""
    return _parts(data, max_parts, lambda at: _inflate(data, at, 16 + zlib.MAX_WBITS))


def _undeflate(data: bytes, _max_parts: int) -> Iterator[bytes]:
    """Yield the content of a zlib stream (RFC 9110, 8.4.1.2), or of the bare deflate stream that many send instead."""
    # RFC 1950, 2.2: method 8, a window of at most 32 KiB, and a checksum over the first two bytes.
    wrapped = len(data) > 1 and data[0] & 0x8F == 8 and int.from_bytes(data[:2], "big") % 31 == 0
    end = yield from _inflate(data, 0, zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS)
    if end != len(data):
        raise _MalformedError


def _unzstd(data: bytes, max_parts: int) -> Iterator[bytes]:
    """Yield the content of every frame (RFC 8878, 3.1); skippable frames have none."""
    return _parts(data, max_parts, lambda at: _unzstd_frame(data, at))


def _parts(data: bytes, max_parts: int, part: Callable[[int], Generator[bytes, None, int]]) -> Iterator[bytes]:
    """Yield the content of one part after the other; `part` begins at a place and returns where it ended."""
    at = 0
    for _ in range(max_parts):
        at = yield from part(at)
        if at == len(data):
            return
    raise _TooManyPartsError


def _inflate(data: bytes, at: int, window_bits: int) -> Generator[bytes, None, int]:
    stream = zlib.decompressobj(window_bits)
    while not stream.eof:
        fed = stream.unconsumed_tail
        if not fed:
            fed = data[at : at + STEP_BYTES]
            at += len(fed)
        piece = stream.decompress(fed, STEP_BYTES)
        if not (fed or piece or stream.eof):
            raise _MalformedError
        yield piece
    return at - len(stream.unused_data)


def _unzstd_frame(data: bytes, at: int) -> Generator[bytes, None, int]:
    stream = zstd.ZstdDecompressor(options=_ZSTD_OPTIONS)
    while not stream.eof:
        fed = data[at : at + STEP_BYTES] if stream.needs_input else b""
        at += len(fed)
        if stream.needs_input and not fed:
            raise _MalformedError
        yield stream.decompress(fed, STEP_BYTES)
    return at - len(stream.unused_data)


def _unbrotli(data: bytes, _max_parts: int) -> Iterator[bytes]:
    """Yield the content of the one stream (RFC 7932)."""
    if data[:1] and data[0] & 0x0F in _BROTLI_WIDE_WINDOWS:
        raise _MalformedError
    stream = brotli.Decompressor()
    at = 0
    idle = False
    while not stream.is_finished():
        fed = data[at : at + STEP_BYTES] if stream.can_accept_more_data() else b""
        at += len(fed)
        piece = stream.process(fed, output_buffer_limit=_BROTLI_BLOCK_BYTES)
        # A stream that takes more may still hold output back, so only a second step without any progress is the end.
        if not (fed or piece) and idle:
            raise _MalformedError
        idle = not (fed or piece)
        yield piece
    if at != len(data):
        raise _MalformedError


_DECODERS: Final[Mapping[str, Callable[[bytes, int], Iterator[bytes]]]] = {
    "gzip": _gunzip,
    "deflate": _undeflate,
    "zstd": _unzstd,
    "br": _unbrotli,
}

_LINE: Final = re.compile(rb"[^ \t\r\n][^\n]*+")


def split_ndjson(raw: bytes, max_lines: int | None = None) -> list[bytes]:
    """Return the lines without line ends and surrounding blanks; blank lines are skipped.

    With `max_lines`, at most one line more than that is returned: enough to see that there are too many.
    """
    lines = (found.group().rstrip(b" \t\r") for found in _LINE.finditer(raw))
    return list(lines if max_lines is None else islice(lines, max_lines + 1))
