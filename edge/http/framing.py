"""The head of a request, looked at before any handler hears of it: what could be read in two ways is refused.

Two parties that disagree about where a request ends can be made to disagree about whose the next one is (RFC 9112,
section 11.2). Tornado is lenient in places and finds other things only after the handler was asked.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable
from typing import Final, Protocol

from tornado.httputil import HTTPHeaders, HTTPInputError, HTTPMessageDelegate, RequestStartLine, ResponseStartLine

KNOWN_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER_METHOD: Final = "OTHER"
"""What the handlers see in place of any method that is not among the known ones; every route answers it 405."""

VERSIONS: Final = ("HTTP/1.0", "HTTP/1.1")
METHOD_BYTES: Final = 32
HEADER_LINES: Final = 64
TARGET_BYTES: Final = 2048
ABSURD_LENGTH: Final = "9" * 18
"""Stands for a longer `Content-Length`: more than any limit, and what int() reads without effort."""
CHUNK_LINE_BYTES: Final = 18
"""Longest size line of a chunk: sixteen digits and CR LF. Extensions are not taken: nobody sends them but attackers."""

_DIGITS: Final = re.compile(r"[0-9]+")
_TARGET: Final = re.compile(r"[!-~]+")
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])?(?::[0-9]*)?")
"""A host and its port (RFC 9110, section 7.2), without user names."""
_ABSOLUTE: Final = re.compile(r"https?://([^/?#]+)(.*)", re.IGNORECASE)
_LOOK_ALIKES: Final = ("Content_Length", "Transfer_Encoding")
"""Names that some proxies and gateways take for the ones with a hyphen."""


class MalformedError(HTTPInputError):
    """The request is not taken as HTTP; Tornado answers it with 400 and closes the connection."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.field = field
        self.message = message


class Refusing(Protocol):
    """The connection of a request, as far as its framing is concerned."""

    head: bytes
    """Request line and headers as they came."""

    def refuse(self, error: MalformedError) -> None:
        """Remember in which words the request is to be refused."""


class FramingHeaders(Protocol):
    """Headers of either HTTP server, as far as framing is concerned; names are found in any case."""

    def get(self, name: str, /) -> str | None:
        """Return a header's value."""

    def get_list(self, name: str, /) -> list[str]:
        """Return the values of every header of this name."""

    def __contains__(self, name: object, /) -> bool: ...

    def __setitem__(self, name: str, value: str, /) -> None: ...

    def __delitem__(self, name: str, /) -> None: ...


class FramingDelegate(HTTPMessageDelegate):
    """Stands before the handler of one request. Owned by the connection, for as long as the request is read."""

    def __init__(self, inner: HTTPMessageDelegate, wire: Refusing, target_bytes: int) -> None:
        self._inner = inner
        self._wire = wire
        self._target_bytes = target_bytes
        self._passed = False

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        """Pass the head on, made plain; `HTTPInputError` when it is refused."""
        if isinstance(start_line, RequestStartLine):
            start_line = self._check(start_line, headers)
        # From here on the end of the connection concerns the handler; before it is made, nobody is there to hear it.
        self._passed = True
        return self._inner.headers_received(start_line, headers)

    def _check(self, start_line: RequestStartLine, headers: HTTPHeaders) -> RequestStartLine:
        try:
            check_head(self._wire.head, start_line, headers, self._target_bytes)
        except MalformedError as error:
            self._wire.refuse(error)
            raise
        return plain_start_line(start_line)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Pass a piece of the body on."""
        return self._inner.data_received(chunk)

    def finish(self) -> None:
        """Pass the end of the request on."""
        self._inner.finish()

    def on_connection_close(self) -> None:
        """Pass the end of the connection on to a handler that knows of the request."""
        if self._passed:
            self._inner.on_connection_close()


def check_head(head: bytes, start_line: RequestStartLine, headers: FramingHeaders, target_bytes: int) -> None:
    """Raise `MalformedError` unless the head can be read in one way only, and is no larger than it should be.

    Rewrites what Tornado would misread: an absurd length, `Expect` in another case.
    """
    n_lines = head.count(b"\n")
    if n_lines != head.count(b"\r\n") or n_lines != head.count(b"\r"):
        raise MalformedError("headers", "must have lines that end with CR LF")
    if n_lines > HEADER_LINES + 2:  # the request line, and the empty one at the end
        raise MalformedError("headers", f"must be at most {HEADER_LINES} lines")
    if len(start_line.path) > target_bytes:
        raise MalformedError("path", f"must be at most {target_bytes} bytes, the query included")
    if start_line.version not in VERSIONS or len(start_line.method) > METHOD_BYTES:
        raise MalformedError("request", "is not valid HTTP")
    if _TARGET.fullmatch(start_line.path) is None:
        raise MalformedError("path", "must be of printable ASCII characters")
    if not start_line.path.startswith("/") and start_line.path != "*":
        found = _ABSOLUTE.fullmatch(start_line.path)
        if found is None or not _HOST.fullmatch(found[1]):
            raise MalformedError("path", "must begin with / or with the scheme and the host")
    hosts = headers.get_list("Host")
    if len(hosts) != 1 and (hosts or start_line.version != "HTTP/1.0"):
        raise MalformedError("Host", "must be there once")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise MalformedError("Host", "must be a host, with or without a port")
    for name in _LOOK_ALIKES:
        if name in headers:
            raise MalformedError("headers", "must not have names that look like those of the framing")
    _check_framing(start_line.version, headers)
    _prepare_expect(start_line.version, headers)


def plain_start_line(start_line: RequestStartLine) -> RequestStartLine:
    """Return the start line of a checked head as the handlers know it: a method they know, a target that is a path.

    A target in absolute form has to be accepted (RFC 9112, section 3.2.2). Its host stands for the header's, and the
    gateway serves every host alike.
    """
    if start_line.method not in KNOWN_METHODS:
        start_line = start_line._replace(method=OTHER_METHOD)
    if not start_line.path.startswith("/") and (found := _ABSOLUTE.fullmatch(start_line.path)) is not None:
        path = found[2]
        start_line = start_line._replace(path=path if path.startswith("/") else f"/{path}")
    return start_line


def _check_framing(version: str, headers: FramingHeaders) -> None:
    """Refuse everything but one length, or one `chunked`, or neither."""
    codings = headers.get_list("Transfer-Encoding")
    lengths = headers.get_list("Content-Length")
    if codings:
        if lengths or len(codings) > 1 or codings[0].lower() != "chunked":
            raise MalformedError("Transfer-Encoding", "must be one chunked, without Content-Length")
        if version == "HTTP/1.0":
            raise MalformedError("Transfer-Encoding", "is not part of HTTP/1.0")
    if lengths:
        if len(lengths) > 1 or _DIGITS.fullmatch(lengths[0]) is None:
            raise MalformedError("Content-Length", "must be one number")
        if len(lengths[0]) > len(ABSURD_LENGTH):
            significant = lengths[0].lstrip("0") or "0"
            headers["Content-Length"] = significant if len(significant) <= len(ABSURD_LENGTH) else ABSURD_LENGTH


def _prepare_expect(version: str, headers: FramingHeaders) -> None:
    """Let Tornado see `Expect` only as it understands it. The value has no case (RFC 9110, 10.1.1)."""
    expect = headers.get("Expect") or None
    if expect is None or expect == "100-continue":
        if version == "HTTP/1.0" and expect is not None:
            del headers["Expect"]
        return
    if version != "HTTP/1.0" and expect.strip().lower() == "100-continue":
        headers["Expect"] = "100-continue"
    else:
        del headers["Expect"]
