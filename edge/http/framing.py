"""Requests that are no HTTP, or whose end could be read in two ways: one answer, and the connection is closed.

Two parties that disagree about where a request ends can be made to disagree about whose the next one is (RFC 9112,
section 11.2). Tornado finds most of it, but only after the handler was asked, and answers with a bare status line.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from http import HTTPStatus
from typing import Any

from tornado.httputil import HTTPHeaders, HTTPInputError, HTTPMessageDelegate, RequestStartLine, ResponseStartLine
from tornado.iostream import IOStream, UnsatisfiableReadError

from edge.http import answers
from edge.http.answers import Answer

TORNADO_400 = b"HTTP/1.1 400 Bad Request\r\n\r\n"
"""What Tornado writes when it cannot read a request."""

LENGTH = re.compile(r"[0-9]{1,19}")


class FramingDelegate(HTTPMessageDelegate):
    """Refuses a request whose framing is not beyond doubt, before the handler behind it hears of it."""

    def __init__(self, inner: HTTPMessageDelegate) -> None:
        self._inner = inner
        self._passed = False

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        """Pass the headers on; `HTTPInputError`, which Tornado answers with 400, when they are in doubt."""
        check_framing(headers)
        self._passed = True
        return self._inner.headers_received(start_line, headers)

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


def check_framing(headers: HTTPHeaders) -> None:
    """Raise `HTTPInputError` unless the headers say in exactly one way where the body ends."""
    codings = headers.get_list("Transfer-Encoding")
    lengths = headers.get_list("Content-Length")
    if codings and (lengths or len(codings) > 1 or codings[0].lower() != "chunked"):
        raise HTTPInputError("Transfer-Encoding must be one chunked, and alone")
    if lengths and (len(lengths) > 1 or LENGTH.fullmatch(lengths[0]) is None):
        raise HTTPInputError("Content-Length must be one number")
    if len(headers.get_list("Host")) > 1:
        raise HTTPInputError("there must be one Host")


def answer_malformed_requests(stream: IOStream, header_bytes: int) -> None:
    """Give what Tornado answers below the handlers the shape of every other answer.

    Bytes that are no HTTP get a bare status line from Tornado, and headers over the limit get nothing at all. Neither
    passes an interface that could be overridden, so the two calls are caught on the stream itself.
    """
    write, close = stream.write, stream.close

    def write_answer(data: bytes | memoryview) -> asyncio.Future[None]:
        if data == TORNADO_400:
            data = closing_bytes(answers.refuse("http.malformed", "request", "is not valid HTTP"))
        return write(data)

    def close_with_answer(exc_info: Any = False) -> None:
        if isinstance(exc_info, UnsatisfiableReadError) and not stream.closed():
            answer = answers.refuse("http.malformed", "headers", f"must be at most {header_bytes} bytes")
            write(closing_bytes(answer)).add_done_callback(lambda written: written.exception())
        close(exc_info)

    stream.write, stream.close = write_answer, close_with_answer  # type: ignore[method-assign]


def closing_bytes(answer: Answer) -> bytes:
    """Return a whole HTTP answer that ends its connection."""
    body = answer.encode()
    headers = {
        **answer.headers,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    status = HTTPStatus(answer.status)
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
