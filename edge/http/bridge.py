"""Hands a request that the fast server has read to Tornado's application, through Tornado's documented interfaces."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final, Protocol

import structlog
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPInputError,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
)

from edge.http.framing import MalformedError
from edge.http.wire import ChunkedBody, LengthBody, WireHead

log = structlog.get_logger(__name__)

PIECE_BYTES: Final = 64 * 1024
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
NOT_HTTP: Final = MalformedError("request", "is not valid HTTP")
NO_BODY: Final = frozenset({204, 304})


class BridgedWire(Protocol):
    """The connection of a request, as far as the bridge uses it."""

    context: PeerContext
    buffer: bytearray
    """What has arrived and nobody has taken."""

    def more(self) -> asyncio.Future[bool]:
        """Begin to wait for more in `buffer`; False when none will come."""

    def write(self, data: bytes) -> None:
        """Write, without waiting."""

    async def written(self) -> None:
        """Wait until the peer has taken so much that more may be written."""

    def refuse(self, error: MalformedError) -> None:
        """Answer 400 and end the connection."""

    def end(self) -> None:
        """End the connection once what was written is out."""

    def next_request(self) -> None:
        """Go on with what follows this request."""


class PeerContext:
    """What Tornado's request looks up about its connection."""

    def __init__(self, family: int, address: Any, *, tls: bool) -> None:
        """`address` is the peer's, as it was when the connection was accepted: a socket that was reset has none."""
        self.address_family = family
        self.peer = str(address[0]) if family in (socket.AF_INET, socket.AF_INET6) else ""
        # What Tornado itself says of a unix socket.
        self.remote_ip = self.peer or "0.0.0.0"  # noqa: S104
        self.protocol = "https" if tls else "http"


class BridgeConnection(HTTPConnection):
    """The answer side of one request, as handlers see it."""

    def __init__(self, wire: BridgedWire, head: WireHead) -> None:
        self.context = wire.context
        self._wire = wire
        self._head = head
        self._chunked = False
        self._closes = not head.keeps_alive
        self.started = False
        self.finished = asyncio.get_running_loop().create_future()
        self.body_complete = False

    def write_headers(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders, chunk: bytes | None = None
    ) -> asyncio.Future[None]:
        """Write the head of the answer, and the beginning of its body."""
        if isinstance(start_line, RequestStartLine):
            raise TypeError("an answer is written, not a request")
        self.started = True
        version = self._head.start_line.version
        without_body = start_line.code in NO_BODY or self._head.start_line.method == "HEAD"
        if "Content-Length" not in headers and not without_body:
            self._chunked = version == "HTTP/1.1"
            self._closes = self._closes or not self._chunked
            if self._chunked:
                headers["Transfer-Encoding"] = "chunked"
        self._closes = self._closes or "close" in headers.get("Connection", "").lower()
        if self._closes:
            headers["Connection"] = "close"
        elif version == "HTTP/1.0":
            headers["Connection"] = "keep-alive"
        reason = start_line.reason or HTTPStatus(start_line.code).phrase
        lines = [f"HTTP/1.1 {start_line.code} {reason}", *(f"{name}: {value}" for name, value in headers.get_all())]
        if any("\n" in line or "\r" in line for line in lines):
            raise ValueError("a header must be one line")
        self._wire.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + self._framed(chunk or b""))
        return self._written()

    def write(self, chunk: bytes) -> asyncio.Future[None]:
        """Write a piece of the body."""
        self._wire.write(self._framed(chunk))
        return self._written()

    def _framed(self, chunk: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(chunk), chunk) if self._chunked and chunk else chunk

    def finish(self) -> None:
        """End the answer. A body that has not arrived by now is not read any more."""
        if self._chunked:
            self._wire.write(b"0\r\n\r\n")
        if not self.finished.done():
            self.finished.set_result(None)

    def close(self) -> None:
        """Close the connection."""
        self._wire.end()

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """Take no note: the delegate hears of the end of the connection."""

    def set_max_body_size(self, max_body_size: int) -> None:
        """Take no note: handlers look after the sizes of their bodies."""

    @property
    def closes(self) -> bool:
        """Whether the connection ends with this answer."""
        return self._closes or not self.body_complete

    def _written(self) -> asyncio.Future[None]:
        return asyncio.ensure_future(self._wire.written())


class Bridge:
    """One request on its way through Tornado's application. `run` is a task; `lose` when the peer has gone."""

    def __init__(self, application: HTTPServerConnectionDelegate, wire: BridgedWire, head: WireHead) -> None:
        self._wire = wire
        self._head = head
        self._connection = BridgeConnection(wire, head)
        self._delegate = application.start_request(wire, self._connection)
        self._passed = False

    async def run(self) -> None:
        """Pass the request on piece by piece, wait for the end of its answer, go on or close."""
        connection, wire = self._connection, self._wire
        try:
            preparing = self._delegate.headers_received(self._head.start_line, self._head.headers.as_tornado())
            self._passed = True
            if preparing is not None:
                await preparing
            await self._read_body()
            if not connection.body_complete:
                # Answered before its body was there, or its sender has gone: nobody waits for the rest.
                self.lose()
            elif not connection.finished.done():
                self._delegate.finish()
                await connection.finished
        except HTTPInputError as error:
            if connection.started:
                wire.end()
            else:
                wire.refuse(error if isinstance(error, MalformedError) else NOT_HTTP)
            self.lose()
            return
        except Exception:
            log.exception("a request could not be handed to its handler")
            self.lose()
            wire.end()
            return
        if connection.closes:
            wire.end()
        else:
            await wire.written()
            wire.next_request()

    async def _read_body(self) -> None:
        """Pass the body on until it is complete, or the answer is."""
        connection, wire = self._connection, self._wire
        headers = self._head.headers
        length = int(headers.get("content-length") or "0")
        body = ChunkedBody() if "transfer-encoding" in headers else LengthBody(length)
        if not body.complete and "expect" in headers and not connection.started:
            wire.write(CONTINUE)
        while not connection.finished.done():
            piece = body.take(wire.buffer)
            for start in range(0, len(piece), PIECE_BYTES):
                if connection.finished.done():
                    return
                taking = self._delegate.data_received(piece[start : start + PIECE_BYTES])
                if taking is not None:
                    await taking
            if body.complete:
                connection.body_complete = True
                return
            if not piece and not await self._more():
                return

    async def _more(self) -> bool:
        """Wait for more of the body, or for the end of the answer, whichever comes first."""
        reading = self._wire.more()
        await asyncio.wait({reading, self._connection.finished}, return_when=asyncio.FIRST_COMPLETED)
        if reading.done():
            return reading.result()
        reading.cancel()
        return False

    def lose(self) -> None:
        """Tell the handler, if there is one, that its sender has gone."""
        if self._passed:
            self._delegate.on_connection_close()
        if not self._connection.finished.done():
            self._connection.finished.set_result(None)
