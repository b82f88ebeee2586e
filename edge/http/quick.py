"""The short way of the usual request: `POST` to an ingest route, its small body in hand, without a `RequestHandler`.

Only what needs nothing special goes this way: a body of a known length below `QUICK_BYTES`, no `Expect`, no refusal by
the head. Everything else is the handlers' work, and `edge.http.intake` does the same for both.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final, Protocol

import orjson
import structlog
from tornado.escape import parse_qs_bytes
from tornado.httputil import format_timestamp

from edge.http.admission import Admission, Route, admit, refusal_by_state
from edge.http.answers import Answer, busy
from edge.http.bridge import PeerContext
from edge.http.connections import SECURITY_HEADERS, TRANSPORT_SECURITY
from edge.http.handlers import EXPOSED_HEADERS, REQUEST_ID, TRACEPARENT
from edge.http.intake import answer_for, respond, respond_now
from edge.http.large import LARGE_BYTES
from edge.http.state import Site
from edge.http.wire import WireHead, WireHeaders
from edge.judging import ECHOED_CHARS, Result

log = structlog.get_logger(__name__)

QUICK_BYTES: Final = LARGE_BYTES
QUERY_BYTES: Final = 512
"""Longer queries are read where it is told what is wrong with them."""
PATHS: Final[dict[str, Route]] = {"/ingest": "ingest", "/ingest/batch": "batch"}

_LENGTH: Final = re.compile(rb"(?<=\r\n)content-length:[ \t]*(0|[1-9][0-9]{0,6})(?=\r\n)", re.IGNORECASE)
_FIXED: Final = "".join(f"{name}: {value}\r\n" for name, value in SECURITY_HEADERS.items())
_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n{_FIXED}".encode()
    for status in HTTPStatus
}


class QuickWire(Protocol):
    """The connection of a request, as far as it is used here."""

    context: PeerContext

    def write(self, data: bytes) -> None:
        """Write, without waiting."""

    def next_request(self) -> None:
        """Go on with what follows this request."""

    def ordinary(self) -> None:
        """Let the request go the ordinary way, if its body is not there yet."""

    def end(self) -> None:
        """End the connection once what was written is out."""


class QuickHead:
    """A head that takes the short way.

    A sender that keeps its connection repeats its head byte for byte, but for the length of the body. Each connection
    remembers its last one: a head like it need not be parsed and admitted again, which is two fifths of a request.
    """

    __slots__ = (
        "_after",
        "_before",
        "admission",
        "is_http_1_0",
        "keeps_alive",
        "request_id",
        "tail",
        "traceparent",
        "wire_head",
    )

    def __init__(self, raw: bytes, wire_head: WireHead) -> None:
        found = _LENGTH.search(raw)
        self._before, self._after = (raw[: found.start(1)], raw[found.end(1) :]) if found else (b"", b"")
        headers = wire_head.headers
        given = headers.get("x-request-id")
        self.request_id = given if given and REQUEST_ID.fullmatch(given) else ""
        """As the sender gave it, or empty."""
        trace = headers.get("traceparent")
        self.traceparent = trace if trace and TRACEPARENT.fullmatch(trace) else ""
        self.wire_head = wire_head
        self.keeps_alive = wire_head.keeps_alive
        self.is_http_1_0 = wire_head.start_line.version == "HTTP/1.0"
        self.admission: Admission
        self.tail = b""
        """The last headers of every answer."""

    def length_in(self, raw: bytes) -> int:
        """Return the length that a head declares which is this one in all else; -1 when it is another one."""
        before, after = self._before, self._after
        if not before or not raw.startswith(before) or not raw.endswith(after):
            return -1
        digits = raw[len(before) : -len(after)]
        # Another first digit than 0: one length has one spelling, and what has two is looked at with care.
        return int(digits) if digits.isdigit() and len(digits) < 8 and digits[0] != 48 else -1


class _Asked:
    """A head and its connection, as admission asks about them."""

    def __init__(self, head: QuickHead, query: str, wire: QuickWire) -> None:
        self.headers: WireHeaders = head.wire_head.headers
        self.peer = wire.context.peer
        self.traceparent = head.traceparent
        self._values = parse_qs_bytes(query, keep_blank_values=True) if query else {}

    def query_value(self, name: str) -> str | None:
        """Return the last value of a query parameter; bytes that are not UTF-8 become characters no valid value has."""
        values = self._values.get(name)
        return values[-1].decode("utf-8", "surrogateescape").strip() if values else None


class QuickRoutes:
    """Decides which requests go the short way."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._date = b""
        self._date_of = 0

    def take(self, wire_head: WireHead, raw: bytes, wire: QuickWire) -> Quick | None:
        """Return the request, ready for its body; None when it has to go the ordinary way."""
        method, target, _ = wire_head.start_line
        if method != "POST":
            return None
        path, _, query = target.partition("?")
        route = PATHS.get(path)
        headers = wire_head.headers
        length_text = headers.get("content-length")
        if route is None or not length_text or "expect" in headers or len(query) > QUERY_BYTES:
            return None
        length = int(length_text)
        if length > QUICK_BYTES:
            return None
        head = QuickHead(raw, wire_head)
        admitted = admit(self.site, self.site.plan, route, _Asked(head, query, wire))
        if isinstance(admitted, Answer):
            return None
        head.admission = admitted
        head.tail = self._tail(head)
        return self._begin(head, length, wire)

    def take_again(self, head: QuickHead, length: int, wire: QuickWire) -> Quick | None:
        """Return a request with a head that was taken before; None when it has to be looked at anew."""
        if length > QUICK_BYTES or head.admission.plan is not self.site.plan:
            return None
        return self._begin(head, length, wire)

    def _begin(self, head: QuickHead, length: int, wire: QuickWire) -> Quick | None:
        site = self.site
        if refusal_by_state(site, head.admission.plan, length) is not None:
            return None
        site.body_bytes += length
        quick = Quick(self, site, head, length, wire)
        site.in_flight.add(quick)
        return quick

    def _tail(self, head: QuickHead) -> bytes:
        """Return the headers that depend on the head and the configuration alone."""
        parts = []
        if self.site.tls:
            parts.append(f"Strict-Transport-Security: {TRANSPORT_SECURITY}\r\n")
        if head.admission.plan.cors_enabled:
            parts.append("Vary: Origin\r\n")
            origin = head.wire_head.headers.get("origin")
            if origin and head.admission.plan.origins.allows(origin):
                parts.append(
                    f"Access-Control-Allow-Origin: {origin}\r\nAccess-Control-Expose-Headers: {EXPOSED_HEADERS}\r\n"
                )
        if head.keeps_alive and head.is_http_1_0:
            parts.append("Connection: keep-alive\r\n")
        return "".join(parts).encode("latin-1")

    def date(self) -> bytes:
        """Return the `Date` header of this second."""
        now = int(time.time())
        if now != self._date_of:
            self._date_of = now
            self._date = f"Date: {format_timestamp(now)}\r\n".encode()
        return self._date


class Quick:
    """One request on the short way, from its head on: `run` with the body, or `release`."""

    __slots__ = (
        "_is_answered",
        "_request_id",
        "_routes",
        "_site",
        "_started",
        "_wire",
        "body_clock",
        "head",
        "length",
        "received_at",
    )

    def __init__(self, routes: QuickRoutes, site: Site, head: QuickHead, length: int, wire: QuickWire) -> None:
        self.head = head
        self.length = length
        """Bytes of its body."""
        self.received_at = datetime.now(UTC)
        self.body_clock = None
        """Bodies that are late go the ordinary way, where their speed is watched."""
        self._site = site
        self._routes = routes
        self._wire = wire
        self._started = time.monotonic()
        self._is_answered = False
        # Told apart by it, not kept secret.
        self._request_id = head.request_id or f"{random.getrandbits(64):016x}"

    def release(self) -> None:
        """Let go of a request that will not be answered here."""
        self._site.in_flight.discard(self)
        self._site.body_bytes -= self.length
        self.length = 0

    def turn_away(self) -> None:
        """Have a request whose body is not there answered the ordinary way, which refuses it when the gateway stops."""
        self._wire.ordinary()

    def cut_off(self) -> None:
        """Do nothing: it has no clock."""

    def run(self, body: bytes) -> None:
        """Answer the request, its body being there."""
        site, admission = self._site, self.head.admission
        context = admission.context(self.received_at, self._request_id)
        site.count_body(len(body))
        try:
            if respond_now(site, admission, context, body, self._done):
                return
        except Exception as error:  # noqa: BLE001 - whatever it is, the sender gets its answer
            self._fail(error)
            return
        except BaseException:
            self.release()
            self._wire.end()
            raise
        task = asyncio.get_running_loop().create_task(respond(site, admission, context, body, self._hold))
        task.add_done_callback(self._responded)

    def _hold(self, n_bytes: int) -> bool:
        more = n_bytes - self.length
        if self._site.body_bytes + more > self.head.admission.plan.limits.inflight_bytes:
            return False
        self._site.body_bytes += more
        self.length = n_bytes
        return True

    def _responded(self, task: asyncio.Task[Answer]) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            self._fail(error)
        else:
            self._done(task.result())

    def _fail(self, error: BaseException) -> None:
        """Answer after an error that nobody expected: the sender repeats the request."""
        log.error(
            "a handler failed; the sender was told to retry",
            route=self.head.admission.route,
            request_id=self._request_id,
            exc_info=error,
        )
        if self._is_answered:
            self._wire.end()  # what failed comes after it: another answer would be taken for that to the next request
        else:
            self._done(busy("busy.unknown"))

    def _done(self, result: Result | Answer) -> None:
        """Send the answer, count it, and let the connection go on."""
        self._is_answered = True
        site, head, wire = self._site, self.head, self._wire
        admission = head.admission
        more = b""
        if type(result) is Result and result.ids and not result.busy and not admission.verbose:
            status, body = 200, success(admission.route, result.ids)
        else:
            answer = result if isinstance(result, Answer) else answer_for(admission, result)
            status, body = answer.status, answer.encode()
            if answer.headers:
                more = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items()).encode("latin-1")
        closes = site.closing or not head.keeps_alive
        if closes:
            more += b"Connection: close\r\n"
        wire.write(
            b"%b%bX-Request-Id: %b\r\nContent-Length: %d\r\n%b%b\r\n%b"
            % (_STATUS_LINES[status], self._routes.date(), self._request_id.encode(), len(body), head.tail, more, body)
        )
        self.release()
        site.observe(admission.route, "POST", status, time.monotonic() - self._started)
        if closes:
            wire.end()
        else:
            wire.next_request()


def success(route: Route, ids: Sequence[str]) -> bytes:
    """Return the body of the answer to events that are all accepted, as `edge.http.intake.answer_for` words it."""
    if route == "ingest":
        return b'{"status":"success","eventId":%b}' % orjson.dumps(ids[0][:ECHOED_CHARS])
    return b'{"status":"success","accepted":%d,"rejected":0,"results":[]}' % len(ids)
