"""A connection of the fast HTTP server (`server.http: fast`): an asyncio protocol in place of Tornado's streams.

Tornado's own HTTP/1 costs about 120 us a request before any handler runs. Here a connection is one protocol object: it
finds the end of a head, has llhttp read it, and either takes the short way of `edge.http.quick` (the usual request to
an ingest route) or hands the request to Tornado's application over `edge.http.bridge`. One request at a time: what a
sender pipelines waits in the buffer, which keeps the answers in order.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any, Final

from edge.http import answers, connections
from edge.http.bridge import Bridge, PeerContext
from edge.http.connections import closing_bytes, malformed
from edge.http.framing import TARGET_BYTES, MalformedError
from edge.http.quick import Quick, QuickHead
from edge.http.wire import HEAD_END, WireHead, parse_head

if TYPE_CHECKING:
    from edge.http.fast_server import FastServer

BUFFER_BYTES: Final = 256 * 1024
"""What may wait in a connection's buffer before nothing more is read from it."""
WRITE_BUFFER_BYTES: Final = 64 * 1024
BARE_END: Final = re.compile(rb"(?<!\r)\n|\r(?=[^\n])")
"""The end of a line that is not CR LF. A head that has one is refused at once: it may never end otherwise."""
AT_ONCE: Final = 32
"""Requests of one connection that are answered in one turn of the loop at most."""
GATHER_SECS: Final = 1.0
"""A small body that is not there within this time goes the ordinary way, where slow senders are watched."""


class FastConnection(asyncio.Protocol):
    """One connection. `buffer` holds what has arrived and nobody has taken: a head, the body in hand, what follows."""

    def __init__(self, server: FastServer, context: PeerContext) -> None:
        self.server = server
        self.buffer = bytearray()
        self.context = context
        self._transport: Any = None
        self._bridge: Bridge | None = None
        self._task: asyncio.Task[None] | None = None
        self._quick: Quick | None = None
        self._is_gathering = False
        """The body of `_quick` is not all there yet."""
        self._is_going_on = False
        self._usual_head: QuickHead | None = None
        """The last head that took the short way."""
        self._since = time.monotonic()
        """Since when the connection waits for what it waits for: the next head, or the rest of a small body."""
        self._arrived: asyncio.Future[bool] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._blocked_since = 0.0
        self._skipped_line = False
        self._is_paused = False
        self._is_due = False
        """Whether the next request will be looked for in another turn of the loop."""
        self._ended = False
        self._at_end = False

    # --- asyncio's side

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        self._transport = transport
        transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
        if not self.server.admit(self):
            self.answer_and_end(answers.busy("busy.backpressure"))

    def data_received(self, data: bytes) -> None:
        """Take what has arrived."""
        if self._ended:
            return
        if not self.buffer and self._quick is None and self._bridge is None and self._run_usual(data):
            return
        self.buffer += data
        if self._is_gathering:
            self._gather()
        elif self._bridge is None and self._quick is None:
            if not self._is_due:
                self._go_on()
        elif self._arrived is not None:
            self._wake()
        if len(self.buffer) > BUFFER_BYTES and not self._is_paused and (self.is_busy or self._is_due):
            self._is_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """The sender has sent all it wants to; it may still wait for answers."""
        self._at_end = True
        if self._is_gathering and self._quick is not None:
            self._quick.release()
            self.end()
        self._wake()
        if not self.is_busy and not self._is_due:
            self.end()
        return not self.server.tls

    def connection_lost(self, error: Exception | None) -> None:
        """Let go of everything."""
        self._ended = self._at_end = True
        self.server.connections.discard(self)
        self._wake()
        self.resume_writing()
        self.buffer.clear()
        if self._is_gathering and self._quick is not None:
            self._quick.release()
        if self._bridge is not None:
            self._bridge.lose()
        # What knows the connection lets it go as well, above all its transport: with TLS that has 280 KiB of buffers,
        # which are not to wait for the garbage collector.
        self._transport = self._bridge = self._usual_head = None
        self._is_paused = False

    def pause_writing(self) -> None:
        """The peer does not take its answers."""
        self._blocked_since = time.monotonic()
        self._drained = self.server.loop.create_future()

    def resume_writing(self) -> None:
        """The peer has taken enough."""
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None

    # --- requests, one after the other

    @property
    def is_busy(self) -> bool:
        """Whether a request is being read or answered."""
        return self._bridge is not None or self._quick is not None

    def next_request(self) -> None:
        """Go on with what follows the request that has just been answered."""
        self._bridge = self._quick = self._task = None
        self._skipped_line = False
        self._since = time.monotonic()
        if not self._is_going_on and (self.buffer or self._is_paused or self._at_end):
            self._advance()

    def _advance(self) -> None:
        """Read on, begin with the next request, and end the connection when its sender has and nothing is left."""
        self._read_on()
        if self.buffer:
            self._go_on()
        if self._at_end and not self.is_busy and not self._is_due:
            self.end()

    def _read_on(self) -> None:
        """Read again, unless more than enough is waiting."""
        if self._is_paused and len(self.buffer) <= BUFFER_BYTES:
            self._is_paused = False
            self._transport.resume_reading()

    def _go_on_later(self) -> None:
        """Go on in another turn of the loop: the next one, or the one in which the peer has taken its answers."""
        self._is_due = True
        if self._drained is not None:
            self._drained.add_done_callback(self._come_back)
        else:
            self.server.loop.call_soon(self._come_back, None)

    def _come_back(self, _: object) -> None:
        self._is_due = False
        if not self._ended:
            self._advance()

    def _run_usual(self, data: bytes) -> bool:
        """Run a request that arrived whole, alone, and with the same head as the last one; False when it is not so."""
        usual = self._usual_head
        if usual is None or self._drained is not None:
            return False
        end = data.find(HEAD_END) + len(HEAD_END)
        length = usual.length_in(data[:end])
        if length < 0 or end + length != len(data):
            return False
        self._quick = quick = self.server.routes.take_again(usual, length, self)
        if quick is None:
            return False
        quick.run(data[end:])
        return True

    def _go_on(self) -> None:
        """Begin with the requests in the buffer, one after the other, as far as they can be answered at once."""
        self._is_going_on = True
        try:
            for _ in range(AT_ONCE):
                if not self.buffer or self.is_busy or self._ended or not self._begin_next():
                    break
            else:
                self._go_on_later()  # other connections have their turn first
        finally:
            self._is_going_on = False

    def _begin_next(self) -> bool:
        """Begin with the request at the front of the buffer; False when its head is not there yet."""
        if self._drained is not None:
            # Answers that nobody takes: no further request is looked at before they are.
            self._go_on_later()
            return False
        buffer = self.buffer
        if buffer.startswith(b"\r\n") and not self._skipped_line:  # one of them: RFC 9112, section 2.2
            self._skipped_line = True
            del buffer[:2]
        end = buffer.find(HEAD_END)
        limit = self.server.header_bytes
        if end + len(HEAD_END) > limit or (end < 0 and len(buffer) > limit):
            self.refuse(MalformedError("headers", f"must be at most {limit} bytes"))
            return False
        if end < 0:
            if BARE_END.search(buffer):
                self.refuse(MalformedError("headers", "must have lines that end with CR LF"))
            return False
        head = bytes(buffer[: end + len(HEAD_END)])
        del buffer[: end + len(HEAD_END)]
        try:
            self._begin(parse_head(head, TARGET_BYTES), head)
        except MalformedError as error:
            self.refuse(error)
        return True

    def _begin(self, head: WireHead, raw: bytes) -> None:
        """Take the short way with a request, or the ordinary one."""
        self._quick = quick = self.server.routes.take(head, raw, self)
        if quick is None:
            self._cross(head)
            return
        self._usual_head = quick.head
        self._is_gathering = True
        self._since = time.monotonic()
        self._gather()

    def _gather(self) -> None:
        """Run the request in hand if its small body is complete."""
        quick = self._quick
        if quick is not None and len(self.buffer) >= quick.length:
            self._is_gathering = False
            quick.run(self._body(quick.length))

    def _body(self, length: int) -> bytes:
        body = bytes(self.buffer[:length])
        del self.buffer[:length]
        return body

    def _cross(self, head: WireHead) -> None:
        """Hand the request to Tornado's application."""
        self._bridge = Bridge(self.server.application, self, head)
        self._task = self.server.loop.create_task(self._bridge.run())

    def ordinary(self) -> None:
        """Let a request whose small body is not there yet go the ordinary way."""
        if self._is_gathering and self._quick is not None:
            head = self._quick.head.wire_head
            self._quick.release()
            self._is_gathering, self._quick = False, None
            self._cross(head)

    # --- the request's side

    def more(self) -> asyncio.Future[bool]:
        """Begin to wait for more in the buffer; False when none will come.

        From this call on, and not only from when it is awaited: what arrives in between would go unnoticed.
        """
        arrived: asyncio.Future[bool] = self.server.loop.create_future()
        if self._at_end:
            arrived.set_result(False)
            return arrived
        self._read_on()
        self._arrived = arrived
        return arrived

    def _wake(self) -> None:
        arrived, self._arrived = self._arrived, None
        if arrived is not None and not arrived.done():
            arrived.set_result(bool(self.buffer) or not self._at_end)

    def write(self, data: bytes) -> None:
        """Write, without waiting. What is written to a connection that has ended goes nowhere."""
        if not self._ended:
            self._transport.write(data)

    async def written(self) -> None:
        """Wait until the peer has taken so much that more may be written."""
        if self._drained is not None:
            await asyncio.shield(self._drained)

    def refuse(self, error: MalformedError) -> None:
        """Answer 400 and end the connection."""
        self.answer_and_end(malformed(error.field, error.message))

    def answer_and_end(self, answer: answers.Answer) -> None:
        """Give an answer that no handler gives, and end the connection."""
        self.server.refused(answer.status)
        self.write(closing_bytes(answer, tls=self.server.tls))
        self.end()

    def end(self) -> None:
        """End the connection once what was written is out."""
        if not self._ended:
            self._ended = True
            self._since = time.monotonic()
            self.buffer.clear()
            self._transport.close()

    def close(self) -> None:
        """End the connection now."""
        self._ended = True
        if self._transport is not None:
            self._transport.abort()

    # --- the server's side

    def writing(self) -> bool:
        """Say whether the peer has more to take than it takes."""
        return self._drained is not None

    def closed(self) -> bool:
        """Say whether the connection has ended."""
        return self._ended

    def sweep(self, now: float) -> None:
        """Close a connection that says nothing or takes nothing for too long; see to a body that is late."""
        if self._drained is not None or self._ended:
            if now - (self._since if self._drained is None else self._blocked_since) > connections.WRITE_SECS:
                self.close()
        elif self._is_gathering:
            # On the ordinary way it would be refused now; here it may still arrive while the gateway waits.
            if now - self._since > GATHER_SECS and not self.server.is_stopping:
                self.ordinary()
        elif not self.is_busy and now - self._since > self.server.idle_secs:
            self.end()
