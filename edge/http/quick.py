"""The short way of the usual request: `POST` to an ingest route, its small body in hand, without a `RequestHandler`.

Only what needs nothing special goes this way: a body of a known length below `QUICK_BYTES`, no `Expect`, no refusal by
the head. Everything else is the handlers' work, and `edge.http.intake` does the same for both.
"""

from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final, Protocol

import structlog
from tornado.escape import parse_qs_bytes
from tornado.httputil import format_timestamp

from edge.http.answers import Answer, busy
from edge.http.bridge import Context
from edge.http.connections import SECURITY_HEADERS, TRANSPORT_SECURITY
from edge.http.handlers import EXPOSED_HEADERS, REQUEST_ID, TRACEPARENT
from edge.http.intake import Intake, Route
from edge.http.large import LARGE_BYTES
from edge.http.state import Site
from edge.http.wire import WireHead, WireHeaders

log = structlog.get_logger(__name__)

QUICK_BYTES: Final = LARGE_BYTES
QUERY_BYTES: Final = 512
"""Longer queries are read where it is told what is wrong with them."""
PATHS: Final[dict[str, Route]] = {"/ingest": "ingest", "/ingest/batch": "batch"}

_FIXED: Final = "".join(f"{name}: {value}\r\n" for name, value in SECURITY_HEADERS.items())
_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n{_FIXED}"
    for status in HTTPStatus
}


class Wire(Protocol):
    """The connection of a request, as far as it is used here."""

    context: Context

    def write(self, data: bytes) -> None:
        """Write, without waiting."""

    def next_request(self) -> None:
        """Go on with what follows this request."""

    def ordinary(self) -> None:
        """Let the request go the ordinary way, if its body is not there yet."""

    def end(self) -> None:
        """End the connection once what was written is out."""


class QuickRoutes:
    """Decides which requests go the short way."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._date = ""
        self._date_until = 0.0

    def take(self, head: WireHead, wire: Wire) -> Quick | None:
        """Return the request, ready for its body; None when it has to go the ordinary way."""
        method, target, _ = head.start_line
        if method != "POST":
            return None
        path, _, query = target.partition("?")
        route = PATHS.get(path)
        headers = head.headers
        length_text = headers.get("content-length")
        if route is None or not length_text or "expect" in headers:
            return None
        length = int(length_text)
        if length > QUICK_BYTES or len(query) > QUERY_BYTES:
            return None
        quick = Quick(self, self._site, route, head, query, length, wire)
        return quick if quick.admitted() else None

    def date(self) -> str:
        """Return the `Date` header of this second."""
        now = time.time()
        if now >= self._date_until:
            self._date = f"Date: {format_timestamp(int(now))}\r\n"
            self._date_until = int(now) + 1.0
        return self._date


class Quick:
    """One request on the short way. `admitted` comes first; then `run` with the body, or `release`."""

    __slots__ = (
        "_head", "_intake", "_query", "_routes", "_started", "_wire", "body_clock", "length", "received_at",
        "request_id", "route", "site", "traceparent",
    )  # fmt: skip

    def __init__(
        self, routes: QuickRoutes, site: Site, route: Route, head: WireHead, query: str, length: int, wire: Wire
    ) -> None:
        self.site = site
        self.route = route
        self.length = length
        """Bytes of its body."""
        self.received_at = datetime.now(UTC)
        self.body_clock = None
        """Bodies that are late go the ordinary way, where their speed is watched."""
        self._routes = routes
        self._head = head
        self._query = query
        self._wire = wire
        self._started = time.monotonic()
        given = head.headers.get("x-request-id")
        self.request_id = given if given and REQUEST_ID.fullmatch(given) else f"{random.getrandbits(64):016x}"
        trace = head.headers.get("traceparent")
        self.traceparent = trace if trace and TRACEPARENT.fullmatch(trace) else ""
        self._intake = Intake(site, route, self)

    @property
    def headers(self) -> WireHeaders:
        """The headers of the request."""
        return self._head.headers

    @property
    def peer(self) -> str:
        """The other end of the connection."""
        return self._wire.context.peer

    def query_value(self, name: str) -> str | None:
        """Return the last value of a query parameter; bytes that are not UTF-8 become characters no valid value has."""
        if not self._query:
            return None
        values = parse_qs_bytes(self._query, keep_blank_values=True).get(name)
        return values[-1].decode("utf-8", "surrogateescape").strip() if values else None

    def admitted(self) -> bool:
        """Say whether nothing in the head speaks against it, and count it in."""
        if self._intake.refusal_by_head() is not None or not self._intake.reserve(self.length):
            return False
        self.site.in_flight.add(self)
        return True

    def release(self) -> None:
        """Let go of a request that will not be answered here."""
        self.site.in_flight.discard(self)
        self._intake.release()

    def turn_away(self) -> None:
        """Have a request whose body is not there answered the ordinary way, which refuses it when the gateway stops."""
        self._wire.ordinary()

    def cut_off(self) -> None:
        """Do nothing: it has no clock."""

    def run(self, body: bytes) -> None:
        """Answer the request, its body being there."""
        self.site.gateway.metrics.http_request_bytes.inc(len(body))
        try:
            if self._intake.respond_now(body, self._answer):
                return
        except Exception as error:  # noqa: BLE001 - whatever it is, the sender gets its answer
            self._fail(error)
            return
        self._intake.hold_whole(body)
        task = asyncio.get_running_loop().create_task(self._intake.respond())
        task.add_done_callback(self._responded)

    def _responded(self, task: asyncio.Task[Answer]) -> None:
        error = task.exception()
        if error is not None:
            self._fail(error)
        else:
            self._answer(task.result())

    def _fail(self, error: BaseException) -> None:
        """Answer after an error that nobody expected: the sender repeats the request."""
        log.error(
            "a handler failed; the sender was told to retry",
            route=self.route,
            request_id=self.request_id,
            exc_info=error,
        )
        self._answer(busy("busy.unknown"))

    def _answer(self, answer: Answer) -> None:
        """Send the answer, count it, and let the connection go on."""
        closes = self.site.closing or not self._head.keeps_alive
        body = answer.encode()
        self._wire.write(self._headed(answer, len(body), closes=closes) + body)
        self.release()
        self.site.observe(self.route, "POST", answer.status, time.monotonic() - self._started)
        if closes:
            self._wire.end()
        else:
            self._wire.next_request()

    def _headed(self, answer: Answer, length: int, *, closes: bool) -> bytes:
        """Return the head of an answer, with the headers that every answer has."""
        parts = [
            _STATUS_LINES[answer.status],
            self._routes.date(),
            f"X-Request-Id: {self.request_id}\r\nContent-Length: {length}\r\n",
        ]
        if self.site.tls:
            parts.append(f"Strict-Transport-Security: {TRANSPORT_SECURITY}\r\n")
        if self.site.plan.cors_enabled:
            parts.append(self._origin())
        parts += [f"{name}: {value}\r\n" for name, value in answer.headers.items()]
        if closes:
            parts.append("Connection: close\r\n")
        elif self._head.start_line.version == "HTTP/1.0":
            parts.append("Connection: keep-alive\r\n")
        parts.append("\r\n")
        return "".join(parts).encode("latin-1")

    def _origin(self) -> str:
        """Return the CORS headers of an answer."""
        origin = self.headers.get("origin")
        if not origin or not self.site.plan.origins.allows(origin):
            return "Vary: Origin\r\n"
        return (
            f"Vary: Origin\r\nAccess-Control-Allow-Origin: {origin}\r\n"
            f"Access-Control-Expose-Headers: {EXPOSED_HEADERS}\r\n"
        )
