"""The base of all handlers on the ingest listener: limits before bodies, one shape of answer, the headers all share.

Every handler reads its body as a stream, so that whatever can be refused is refused before the body is read.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any, ClassVar

import structlog
from tornado.ioloop import IOLoop
from tornado.web import HTTPError, RequestHandler, stream_request_body

from edge.http import answers
from edge.http.answers import Answer
from edge.http.state import Site

log = structlog.get_logger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9_.\-]{1,128}")
TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-[\x21-\x7e]{0,200})?"
)
"""https://www.w3.org/TR/trace-context/#traceparent-header"""

KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

LINGER_BYTES = 1 << 20
LINGER_SECS = 2.0
"""After an early answer a body still on its way is read and thrown away within these bounds: closing at once would
reset the connection and the sender might never see the answer (RFC 9112, section 9.6)."""

EXPOSED_HEADERS = "Retry-After, X-Request-Id"
PREFLIGHT_MAX_AGE_SECS = 86400


@dataclass(slots=True)
class BodyClock:
    """How long a body has been arriving, for the sweep that cuts off the slow ones."""

    started: float
    received_bytes: int = 0

    def too_slow(self, now: float, bytes_per_sec: int, grace_secs: float = 5.0) -> bool:
        """Tell whether the body is behind the minimum rate, a grace period at the start aside."""
        return self.received_bytes < bytes_per_sec * (now - self.started - grace_secs)


@stream_request_body
class EdgeHandler(RequestHandler):
    """What every route on the ingest listener has in common. Subclasses say which methods they have."""

    SUPPORTED_METHODS = tuple(sorted(KNOWN_METHODS))
    methods: ClassVar[tuple[str, ...]] = ()
    """The methods of the route; any other one is answered 405."""
    route: ClassVar[str] = "other"
    """The route's name in metrics and logs."""

    def initialize(self, site: Site) -> None:
        """Take what the routes share; called by Tornado for every request."""
        self.site = site
        self.received_at = datetime.now(UTC)
        headers = self.request.headers
        given = headers.get("X-Request-Id", "")
        self.request_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        trace = headers.get("Traceparent", "")
        self.traceparent = trace if TRACEPARENT.fullmatch(trace) else ""
        self.body_clock: BodyClock | None = None
        self._answered = False
        self._discarded_bytes = 0
        self._linger: object = None
        site.in_flight.add(self)
        self._stamp()

    def set_default_headers(self) -> None:
        """Set what every answer carries; Tornado's `Server` header tells strangers nothing they need."""
        self.clear_header("Server")
        self.set_header("Content-Type", "application/json")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Cache-Control", "no-store")

    def _stamp(self) -> None:
        """Set the headers that depend on the request."""
        self.set_header("X-Request-Id", self.request_id)
        if self.site.tls:
            self.set_header("Strict-Transport-Security", "max-age=31536000")
        self._allow_origin()

    def _allow_origin(self) -> None:
        if not self.site.plan.cors_enabled:
            return
        self.set_header("Vary", "Origin")
        origin = self.request.headers.get("Origin")
        if origin is not None and self.site.plan.origins.allows(origin):
            self.set_header("Access-Control-Allow-Origin", origin)
            self.set_header("Access-Control-Expose-Headers", EXPOSED_HEADERS)

    def prepare(self) -> Awaitable[None] | None:
        """Refuse what can be refused without the body; otherwise let `admit` decide."""
        if self.request.method not in self.methods and self.request.method != "OPTIONS":
            return self.answer_early(self.method_not_allowed())
        if self.request.method == "OPTIONS":
            return self.answer_early(self._preflight()) if self.methods else self.answer_early(self.not_found())
        refusal = self.admit()
        if refusal is not None:
            return self.answer_early(refusal)
        return None

    def admit(self) -> Answer | None:
        """Return a refusal that needs no body, or None to go on. Overridden by routes that take bodies."""
        return None

    async def answer_early(self, answer: Answer) -> None:
        """Answer before the body was read, in a way that the sender gets to see it.

        A sender that waits for `100 Continue` has sent nothing: the answer ends the exchange. One that is already
        sending gets the answer at once, and what it still sends is thrown away within bounds.
        """
        self._answered = True
        if not self._expects_body() or self.request.headers.get("Expect", "").lower() == "100-continue":
            self.send(answer)
            return
        self.set_header("Connection", "close")
        body = self._headed(answer)
        self.set_header("Content-Length", str(len(body)))
        self.write(body)
        self._linger = IOLoop.current().call_later(LINGER_SECS, self.connection.close)
        await self.flush()

    def _expects_body(self) -> bool:
        headers = self.request.headers
        return headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in headers

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Throw away what arrives after an early answer, up to a bound; `take_chunk` gets the rest."""
        if not self._answered:
            return self.take_chunk(chunk)
        self._discarded_bytes += len(chunk)
        if self._discarded_bytes > LINGER_BYTES:
            self.connection.close()
        return None

    def take_chunk(self, chunk: bytes) -> Awaitable[None] | None:
        """Take a piece of the body. Overridden by routes that take bodies; the others ignore them."""
        return None

    async def _respond(self) -> None:
        if self._answered:
            if not self._finished:
                self.finish()
                # `Connection: close` was promised; Tornado would keep a connection whose body has arrived in full.
                self.connection.close()
            return
        answer = await self.respond()
        if answer is not None:
            self.send(answer)

    get = head = post = put = patch = delete = options = _respond

    async def respond(self) -> Answer | None:
        """Return the answer, the body having arrived."""
        raise NotImplementedError

    def send(self, answer: Answer) -> None:
        """Send a whole answer."""
        body = self._headed(answer)
        self.finish(body or None)

    def _headed(self, answer: Answer) -> bytes:
        """Set status and headers of an answer and return its body."""
        self.set_status(answer.status)
        for name, value in answer.headers.items():
            self.set_header(name, value)
        if self.site.closing:
            self.set_header("Connection", "close")
        if answer.status == 204:
            self.clear_header("Content-Type")
            return b""
        return answer.encode()

    def not_found(self) -> Answer:
        """Return the 404."""
        return answers.refuse("http.not_found", "path", "is not a route of this gateway")

    def method_not_allowed(self) -> Answer:
        """Return the 405 with its `Allow`, or the 404 of a path that has no methods at all."""
        if not self.methods:
            return self.not_found()
        allowed = ", ".join((*self.methods, "OPTIONS"))
        answer = answers.refuse("http.method", "method", f"must be one of: {allowed}")
        return Answer(answer.status, answer.body, {"Allow": allowed})

    def _preflight(self) -> Answer:
        """Answer OPTIONS: a CORS preflight (https://fetch.spec.whatwg.org/#cors-preflight-fetch) or a plain one.

        Request headers are reflected: SDKs add headers of their own on retries, and a fixed list would make exactly
        the retries fail.
        """
        headers = self.request.headers
        allowed = ", ".join((*self.methods, "OPTIONS"))
        origin = headers.get("Origin")
        if origin is None or "Access-Control-Request-Method" not in headers:
            return Answer(204, {}, {"Allow": allowed})
        if not self.site.plan.origins.allows(origin):
            return answers.refuse("auth.origin", "Origin", "is not among the allowed origins")
        reply = {
            "Access-Control-Allow-Methods": allowed,
            "Access-Control-Max-Age": str(PREFLIGHT_MAX_AGE_SECS),
            "Vary": "Origin, Access-Control-Request-Headers",
        }
        wanted = headers.get("Access-Control-Request-Headers", "")
        if wanted and len(wanted) <= 2048 and wanted.isprintable():
            reply["Access-Control-Allow-Headers"] = wanted
        return Answer(204, {}, reply)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Give what was raised the shape of every other answer. What nobody expected is a 503: the sender retries."""
        self._stamp()  # Tornado has thrown away the headers set so far
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, HTTPError) and status_code == 405:
            self.send(self.method_not_allowed())
        elif isinstance(error, HTTPError) and status_code == 404:
            self.send(self.not_found())
        elif isinstance(error, HTTPError) and 400 <= status_code < 500:
            self.send(answers.refuse("http.malformed", "request", "is not valid HTTP"))
        else:
            self.send(answers.busy("busy.unknown"))

    def compute_etag(self) -> str | None:
        """No answer of the gateway is cached."""
        return None

    def check_etag_header(self) -> bool:
        """No answer of the gateway is cached."""
        return False

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """Log what nobody expected, once, with its request id; a closed connection is no news."""
        if isinstance(value, HTTPError):
            return
        log.error(
            "a handler failed; the sender was told to retry",
            route=self.route,
            request_id=self.request_id,
            exc_info=(typ, value, tb),
        )

    @property
    def connection(self) -> Any:
        """The HTTP/1 connection of the request."""
        return self.request.connection

    def on_finish(self) -> None:
        """Count and log the answer."""
        self._leave()
        method = self.request.method if self.request.method in KNOWN_METHODS else "other"
        duration_secs = self.request.request_time()
        self.site.observe(self.route, str(method), self.get_status(), duration_secs)
        log.debug(
            "answered",
            route=self.route,
            method=method,
            status=self.get_status(),
            duration_secs=round(duration_secs, 6),
            request_id=self.request_id,
            traceparent=self.traceparent or None,
        )

    def on_connection_close(self) -> None:
        """The sender went away before its body was complete or before it was answered."""
        super().on_connection_close()
        if self._answered or self.body_clock is not None:
            self._leave()

    def _leave(self) -> None:
        self.site.in_flight.discard(self)
        self.body_clock = None
        if self._linger is not None:
            IOLoop.current().remove_timeout(self._linger)
            self._linger = None

    def start_body_clock(self) -> None:
        """Begin to judge how fast the body arrives."""
        self.body_clock = BodyClock(monotonic())

    def cut_off(self) -> None:
        """Close a connection whose body arrives too slowly."""
        self.connection.stream.close()


class NotFoundHandler(EdgeHandler):
    """Answers every path that is no route."""

    route = "not_found"
