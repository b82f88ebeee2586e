"""Connections below HTTP: how they are accepted, and streams that answer what never gets as far as a handler."""

from __future__ import annotations

import ctypes
import os
import resource
import secrets
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final

import structlog
from tornado.concurrent import Future, future_add_done_callback
from tornado.httputil import HTTPInputError, format_timestamp
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream, SSLIOStream, StreamClosedError, UnsatisfiableReadError

from edge.http import answers
from edge.http.answers import Answer
from edge.http.framing import CHUNK_LINE_BYTES, MalformedError

log = structlog.get_logger(__name__)

_SO_ATTACH_FILTER: Final = 26
_NO_SYN: Final = (
    struct.pack("HBBI", 0x30, 0, 0, 13),  # load the byte with the flags out of the TCP header
    struct.pack("HBBI", 0x45, 0, 1, 0x02),  # SYN: go on; else skip one
    struct.pack("HBBI", 0x06, 0, 0, 0),  # drop
    struct.pack("HBBI", 0x06, 0, 0, 0xFFFFFFFF),  # keep
)
"""A socket filter, as classic BPF (linux/filter.h), that drops what begins a connection."""

TORNADO_400: Final = b"HTTP/1.1 400 Bad Request\r\n\r\n"
"""What Tornado writes when it cannot read a request."""
CONTINUE: Final = b"HTTP/1.1 100 "
CLOSES: Final = b"\r\nConnection: close\r\n"

WRITE_SECS: Final = 30.0
"""An answer that is not taken within this time never will be."""

ACCEPT_AT_ONCE: Final = 128
MOST_WAITING: Final = 2048
"""Twice the backlog: whoever comes while the ones that wait are accepted cannot keep the gateway from stopping."""
PAUSE_SECS: Final = 0.1
COMPLAIN_EVERY_SECS: Final = 1.0
RESERVED_FILES: Final = 128
"""Descriptors that connections leave to the spool, the sinks and the admin listener."""
LEAST_CONNECTIONS: Final = 16

SECURITY_HEADERS: Final = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
TRANSPORT_SECURITY: Final = "max-age=31536000"


class EdgeStream(IOStream):
    """One connection, as Tornado's HTTP sees it.

    Bytes that are no HTTP get a bare status line from Tornado, headers over the limit get nothing, and neither passes
    an interface of Tornado's HTTP that could be overridden; what reads and writes streams does.
    """

    tls = False

    def __init__(self, *args: Any, header_bytes: int, refused: Callable[[int], None], **kwargs: Any) -> None:
        """`refused` is called with the status of every answer that is given here."""
        self.head = b""
        self.on_closed: Callable[[EdgeStream], None] | None = None
        self._header_bytes = header_bytes
        self._refused = refused
        self._answered = False
        self._closes = False
        """Whether an answer has said that it is the last one."""
        self._refusal: Answer | None = None
        self._writing_since = time.monotonic()
        super().__init__(*args, **kwargs)

    def begin_request(self) -> None:
        """Forget the previous request; called before the next one is read."""
        self.head = b""
        self._answered = False
        self._refusal = None

    def refuse(self, error: MalformedError) -> None:
        """Remember the words for the 400 that Tornado is about to write."""
        self._refusal = malformed(error.field, error.message)

    def read_until_regex(self, regex: bytes, max_bytes: int | None = None) -> Future[bytes]:
        """Read the head of a request, and keep it: what Tornado makes of it no longer shows how its lines ended.

        A stream that is closed still gives what it has in its buffer, and Tornado would take it for the next request.
        """
        if self._closes or self.closed():
            self.close()
            raise StreamClosedError
        reading: Future[bytes] = super().read_until_regex(regex, max_bytes)  # type: ignore[assignment]
        future_add_done_callback(reading, self._keep_head)
        return reading

    def _keep_head(self, reading: Future[bytes]) -> None:
        if not reading.cancelled() and reading.exception() is None:
            self.head = reading.result()

    def read_until(self, delimiter: bytes, max_bytes: int | None = None) -> Future[bytes]:
        r"""Read the size line of a chunk, the only thing that Tornado reads this way.

        A line that ends with a bare LF would be searched for a CR LF in what follows, and waited for. The longest line
        is that of the other server.
        """
        line: Future[bytes] = Future()

        def check(reading: Future[bytes]) -> None:
            if reading.cancelled():
                line.cancel()
            elif (error := reading.exception()) is not None:
                line.set_exception(error)
                line.exception()  # whoever reads may be gone
            elif reading.result().endswith(delimiter):
                line.set_result(reading.result())
            else:
                line.set_exception(HTTPInputError("a chunk's size must end with CR LF"))

        reading: Future[bytes] = super().read_until(delimiter[-1:], CHUNK_LINE_BYTES)  # type: ignore[assignment]
        future_add_done_callback(reading, check)
        return line

    def write(self, data: bytes | memoryview) -> Future[None]:
        """Write. Tornado's bare 400 becomes an answer, or nothing when the request has had its answer."""
        if data == TORNADO_400:
            if self._answered:
                nothing: Future[None] = Future()
                nothing.set_result(None)
                return nothing
            data = self._refusal_bytes()
        if not self.writing():
            self._writing_since = time.monotonic()
        if not self._answered and bytes(data[: len(CONTINUE)]) != CONTINUE:
            self._answered = True
            self._closes = CLOSES in bytes(data).partition(b"\r\n\r\n")[0] + b"\r\n"
        return super().write(data)

    def close(self, exc_info: Any = False) -> None:
        """Close. Headers, or a chunk's size line, that do not end where they must get their answer first."""
        if isinstance(exc_info, UnsatisfiableReadError) and not self._answered and not self.closed():
            if self.head:
                self._refusal = malformed("body", "must have chunks whose size line is short")
            else:
                self._refusal = malformed("headers", f"must be at most {self._header_bytes} bytes")
            # Written at once as far as the peer takes it, which is far enough for so little.
            self.write(self._refusal_bytes())
        super().close(exc_info)

    def _refusal_bytes(self) -> bytes:
        answer = self._refusal or malformed("request", "is not valid HTTP")
        self._refused(answer.status)
        return closing_bytes(answer, tls=self.tls)

    def is_stuck(self, now: float) -> bool:
        """Tell whether an answer has been waiting too long for the peer to take it; `now` is monotonic."""
        return self.writing() and now - self._writing_since > WRITE_SECS

    def sweep(self, now: float) -> None:
        """Close a connection that does not take its answer; called every second."""
        if self.is_stuck(now):
            self.close()

    def close_fd(self) -> None:
        """Tell, beside closing, that the connection is gone."""
        super().close_fd()
        if self.on_closed is not None:
            self.on_closed(self)


class EdgeTlsStream(EdgeStream, SSLIOStream):
    """One connection with TLS, from before the handshake on."""

    tls = True


def malformed(field: str, message: str) -> Answer:
    """Return the 400 for what is not valid HTTP."""
    return answers.refuse("http.malformed", field, message)


def closing_bytes(answer: Answer, *, tls: bool = False) -> bytes:
    """Return a whole HTTP answer that ends its connection, with the headers every answer has."""
    body = answer.encode()
    headers = {
        "Content-Type": "application/json",
        "Date": format_timestamp(time.time()),
        **SECURITY_HEADERS,
        "X-Request-Id": secrets.token_hex(8),
        **({"Strict-Transport-Security": TRANSPORT_SECURITY} if tls else {}),
        **answer.headers,
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    status = HTTPStatus(answer.status)
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def drop_attempts(listening: socket.socket) -> None:
    """Have the system drop attempts to connect that begin from now on, as far as it can (Linux, TCP).

    Whoever connected between the last `accept` and the close would be reset. So nobody new gets in any more; the
    attempt is repeated within a second, by the peer's system, and refused then. See socket(7), SO_ATTACH_FILTER.
    """
    if listening.family == socket.AF_UNIX or not sys.platform.startswith("linux"):
        return
    program = ctypes.create_string_buffer(b"".join(_NO_SYN))
    pointer = struct.pack("HP", len(_NO_SYN), ctypes.addressof(program))
    with suppress(OSError):
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)


class Acceptor:
    """Accepts the connections of one listening socket, which it owns.

    When the system refuses, mostly for want of file descriptors, it waits: the socket stays readable, and asking again
    at once would keep the processor busy with nothing else.
    """

    def __init__(self, listening: socket.socket, accepted: Callable[[socket.socket, Any], None]) -> None:
        self._listening = listening
        self._accepted = accepted
        self._loop = IOLoop.current()
        self._resume_at: object | None = None
        self._complained_at = float("-inf")
        self._stopped = False
        self._resume()

    def stop(self) -> None:
        """Accept who is already waiting, then close the socket: closing it first would reset their connections."""
        if self._stopped:
            return
        if self._resume_at is not None:
            self._loop.remove_timeout(self._resume_at)
            self._resume_at = None
        else:
            self._loop.remove_handler(self._listening)
        self._stopped = True
        if getattr(self._listening, "ends_for_all", False):  # and nobody is to accept from it after this process
            drop_attempts(self._listening)
        for _ in range(MOST_WAITING // ACCEPT_AT_ONCE):
            if not self._accept_some():
                break
        self._listening.close()

    def _resume(self) -> None:
        self._resume_at = None
        self._loop.add_handler(self._listening, self._readable, IOLoop.READ)

    def _readable(self, fd: object, events: int) -> None:
        self._accept_some()

    def _accept_some(self) -> bool:
        """Accept up to so many connections that others get their turn; True when there may be more."""
        for _ in range(ACCEPT_AT_ONCE):
            try:
                connection, address = self._listening.accept()
            except BlockingIOError:
                return False
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._pause(error)
                return False
            self._accepted(connection, address)
        return True

    def _pause(self, error: OSError) -> None:
        now = time.monotonic()
        if now - self._complained_at >= COMPLAIN_EVERY_SECS:
            self._complained_at = now
            log.warning("connections cannot be accepted right now", error=os.strerror(error.errno or 0))
        if not self._stopped:
            self._loop.remove_handler(self._listening)
            self._resume_at = self._loop.call_later(PAUSE_SECS, self._resume)


def connection_bound(wanted: int) -> int:
    """Return how many connections may be open at once: as many as are wanted, or as open files allow."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft - RESERVED_FILES >= wanted:
        return wanted
    bound = min(wanted, max(LEAST_CONNECTIONS, soft - RESERVED_FILES))
    log.info("the limit on open files lowers the limit on connections", connections=bound, wanted=wanted, files=soft)
    return bound
