"""The bytes of HTTP/1: heads by llhttp (Node's parser), bodies by length or in chunks. Strict: one reading, or none."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Final

import httptools
from tornado.httputil import HTTPHeaders, RequestStartLine

from edge.http.framing import (
    ABSURD_LENGTH,
    CHUNK_LINE_BYTES,
    KNOWN_METHODS,
    VERSIONS,
    MalformedError,
    check_head,
    plain_start_line,
)

HEAD_END: Final = b"\r\n\r\n"

_METHOD: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}(?= )")
_LONG_LENGTH: Final = re.compile(rb"(\r\ncontent-length:[ \t]*)([0-9]{19,})(?=[ \t]*\r\n)", re.IGNORECASE)
_CHUNK_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,16}")


class WireHeaders:
    """Headers as they came, by their names in lower case: what is used of Tornado's headers, in a tenth of the time."""

    __slots__ = ("_fields",)

    def __init__(self, pairs: list[tuple[bytes, bytes]]) -> None:
        fields: dict[str, list[str]] = {}
        for name, value in pairs:
            key = name.decode("latin-1").lower()
            text = value.rstrip(b" \t").decode("latin-1")  # the parser leaves what is behind a value in it
            if key in fields:
                fields[key].append(text)
            else:
                fields[key] = [text]
        self._fields = fields

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return a header's value, several joined with a comma."""
        values = self._fields.get(name.lower())
        if values is None:
            return default
        return values[0] if len(values) == 1 else ",".join(values)

    def get_list(self, name: str) -> list[str]:
        """Return the values of every header of this name."""
        return self._fields.get(name.lower(), [])

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._fields

    def __getitem__(self, name: str) -> str:
        return ",".join(self._fields[name.lower()])

    def __setitem__(self, name: str, value: str) -> None:
        self._fields[name.lower()] = [value]

    def __delitem__(self, name: str) -> None:
        del self._fields[name.lower()]

    def as_tornado(self) -> HTTPHeaders:
        """Return them as Tornado's handlers want them."""
        headers = HTTPHeaders()
        for name, values in self._fields.items():
            for value in values:
                headers.add(name, value)
        return headers


class WireHead:
    """The head of one request."""

    __slots__ = ("headers", "keeps_alive", "start_line")

    def __init__(self, start_line: RequestStartLine, headers: WireHeaders, *, keeps_alive: bool) -> None:
        self.start_line = start_line
        self.headers = headers
        self.keeps_alive = keeps_alive


class _Parts:
    """Takes what the parser finds."""

    __slots__ = ("pairs", "url")

    def __init__(self) -> None:
        self.url = b""
        self.pairs: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.pairs.append((name, value))


def parse_head(head: bytes, target_bytes: int) -> WireHead:
    """Return the head of a request, the empty line at its end included; `MalformedError` when it is refused."""
    found = _METHOD.match(head)
    if found is None:
        raise MalformedError("request", "is not valid HTTP")
    method = found[0].decode()
    # llhttp knows a list of methods; to the gateway all but seven are alike, and are answered 405.
    text = head if method in KNOWN_METHODS else b"GET" + head[found.end() :]
    try:
        parser, parts = _parse(text)
    except httptools.HttpParserError:
        shorter = _LONG_LENGTH.sub(_shortened, text)
        if shorter == text:
            _explain(head, target_bytes)
            raise MalformedError("request", "is not valid HTTP") from None
        return parse_head(shorter, target_bytes)
    headers = WireHeaders(parts.pairs)
    version = f"HTTP/{parser.get_http_version()}"
    start_line = RequestStartLine(method, parts.url.decode("latin-1"), version)
    if not head.startswith(f"{method} {start_line.path} {version}\r\n".encode("latin-1")):
        raise MalformedError("request", "is not valid HTTP")  # the parser lets more than one blank pass
    check_head(head, start_line, headers, target_bytes)
    keeps_alive = _keeps_alive(version, headers.get("connection") or "")
    return WireHead(plain_start_line(start_line), headers, keeps_alive=keeps_alive)


def _parse(text: bytes) -> tuple[httptools.HttpRequestParser, _Parts]:
    parts = _Parts()
    parser = httptools.HttpRequestParser(parts)
    # No other protocol is spoken here: the head was read, and the request is answered as it is.
    with suppress(httptools.HttpParserUpgrade):
        parser.feed_data(text)
    return parser, parts


def _shortened(found: re.Match[bytes]) -> bytes:
    """Return a length in as many digits as the parser reads: more than any limit is still more than any limit."""
    significant = found[2].lstrip(b"0") or b"0"
    return found[1] + (significant if len(significant) <= len(ABSURD_LENGTH) else ABSURD_LENGTH.encode())


def _explain(head: bytes, target_bytes: int) -> None:
    """Raise `MalformedError` with better words than the parser's where the checks of framing have some.

    Whatever this makes of the head, the request is refused.
    """
    first, *lines = head[: -len(HEAD_END)].split(b"\r\n")
    method, _, rest = first.partition(b" ")
    target, _, version = rest.rpartition(b" ")
    if version.decode("latin-1") not in VERSIONS:
        return
    pairs = [(name, value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in lines)]
    start_line = RequestStartLine(method.decode("latin-1"), target.decode("latin-1"), version.decode("latin-1"))
    check_head(head, start_line, WireHeaders(pairs), target_bytes)


def _keeps_alive(version: str, connection: str) -> bool:
    """Tell whether the connection is to stay open after the answer (RFC 9112, section 9.3)."""
    options = {option.strip(" \t") for option in connection.lower().split(",")} if connection else ()
    return "close" not in options and (version != "HTTP/1.0" or "keep-alive" in options)


class LengthBody:
    """A body of a known length."""

    def __init__(self, length: int) -> None:
        self._left = length

    @property
    def complete(self) -> bool:
        """Whether all of it has been taken."""
        return self._left == 0

    def take(self, data: bytearray) -> bytes:
        """Remove what belongs to the body from the front of `data` and return it."""
        piece = bytes(data[: self._left])
        del data[: len(piece)]
        self._left -= len(piece)
        return piece


class ChunkedBody:
    """A body in chunks (RFC 9112, section 7.1), without extensions and trailers."""

    def __init__(self) -> None:
        self._left = 0
        self._ends_chunk = False
        self._is_last = False
        self.complete = False
        """Whether all of it has been taken."""

    def take(self, data: bytearray) -> bytes:
        """Remove what belongs to the body from the front of `data` and return its content as far as it is there.

        `MalformedError` when it is not in chunks.
        """
        pieces: list[bytes] = []
        try:
            self._take(data, pieces)
        except MalformedError:
            if not pieces:  # what came before it counts first: the request may have its answer by then
                raise
        return b"".join(pieces)

    def _take(self, data: bytearray, pieces: list[bytes]) -> None:
        while not self.complete:
            if self._left:
                piece = bytes(data[: self._left])
                if not piece:
                    break
                del data[: len(piece)]
                self._left -= len(piece)
                self._ends_chunk = not self._left
                pieces.append(piece)
            elif self._ends_chunk or self._is_last:
                if len(data) < 2:
                    break
                if data[:2] != b"\r\n":
                    words = (
                        "must end with an empty line, without trailers" if self._is_last else "must have whole chunks"
                    )
                    raise MalformedError("request", words)
                del data[:2]
                self.complete = self._is_last
                self._ends_chunk = False
            elif not self._read_size(data):
                break

    def _read_size(self, data: bytearray) -> bool:
        """Read the size line of the next chunk; False when it is not there in full."""
        end = data.find(b"\n", 0, CHUNK_LINE_BYTES)
        if end < 0:
            if len(data) >= CHUNK_LINE_BYTES:
                raise MalformedError("body", "must have chunks whose size line is short")
            return False
        line = bytes(data[: end + 1])
        if not line.endswith(b"\r\n") or _CHUNK_SIZE.fullmatch(line[:-2]) is None:
            raise MalformedError("request", "must have chunks whose size is a hexadecimal number and ends with CR LF")
        del data[: end + 1]
        self._left = int(line[:-2], 16)
        self._is_last = not self._left
        return True
