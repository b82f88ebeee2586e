"""Answers that are given before the body has arrived, and what happens to the rest of the body then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Final

from tornado.httputil import HTTPHeaders
from tornado.ioloop import IOLoop

LINGER_BYTES: Final = 1 << 20
LINGER_SECS: Final = 2.0
"""After an early answer a body still on its way is read and thrown away within these bounds: closing at once would
reset the connection and the sender might never see the answer (RFC 9112, section 9.6)."""


def expects_body(headers: HTTPHeaders) -> bool:
    """Tell whether a body follows; the framing of the request has been checked."""
    return headers.get("Content-Length", "").strip("0") != "" or "Transfer-Encoding" in headers


class Linger:
    """Throws away what a sender still sends after it was answered, for a while, then closes the connection."""

    def __init__(self, connection: Any) -> None:
        """`connection` is the HTTP/1 connection of the request."""
        self._connection = connection
        self._discarded_bytes = 0
        self._full: asyncio.Future[None] | None = None
        self._timer = IOLoop.current().call_later(LINGER_SECS, self._end)

    def discard(self, n_bytes: int) -> Awaitable[None] | None:
        """Count bytes that were thrown away. Past the bound nothing more is read, and the sender has to look up."""
        self._discarded_bytes += n_bytes
        if self._discarded_bytes <= LINGER_BYTES:
            return None
        if self._full is None:
            self._full = asyncio.get_running_loop().create_future()
        return self._full

    def cancel(self) -> None:
        """Forget it: the body has arrived, or the connection is closed."""
        IOLoop.current().remove_timeout(self._timer)
        self._wake()

    def _end(self) -> None:
        self._connection.close()
        self._wake()

    def _wake(self) -> None:
        if self._full is not None and not self._full.done():
            self._full.set_result(None)
