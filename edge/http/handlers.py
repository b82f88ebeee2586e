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
from typing import Any, ClassVar, Final

import structlog
from tornado.web import HTTPError, RequestHandler, stream_request_body

from edge.http import answers
from edge.http.answers import Answer
from edge.http.connections import SECURITY_HEADERS, TRANSPORT_SECURITY
from edge.http.early import Linger, expects_body
from edge.http.framing import KNOWN_METHODS, OTHER_METHOD
from edge.http.state import Site

log = structlog.get_logger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9_.\-]{1,128}")
TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-[\x21-\x7e]{0,200})?"
)
"""https://www.w3.org/TR/trace-context/#traceparent-header"""

EXPOSED_HEADERS = "Retry-After, X-Request-Id"
PREFLIGHT_MAX_AGE_SECS = 86400
GRACE_SECS: Final = 5.0
"""How long a body may take before its speed is judged."""


@dataclass(slots=True)
class BodyClock:
    """How long a body has been arriving, for the sweep that cuts off the slow ones."""

    started: float
    received_bytes: int = 0

    def too_slow(self, now: float, bytes_per_sec: int) -> bool:
        """Tell whether the body is behind the minimum rate, a grace period at the start aside."""
        return self.received_bytes < bytes_per_sec * (now - self.started - GRACE_SECS)


@stream_request_body
class EdgeHandler(RequestHandler):
    """What every route on the ingest listener has in common. Subclasses say which methods they have."""

    SUPPORTED_METHODS = (*sorted(KNOWN_METHODS), OTHER_METHOD)
    methods: ClassVar[tuple[str, ...]] = ()
    """The methods of the route; any other one is answered 405."""
    route: ClassVar[str] = "other"
    """The route's name in metrics and logs."""

    def initialize(self, site: Site) -> None:
        """Take what the routes share; called by Tornado for every request."""
        self.site = site
        self.received_at = datetime.now(UTC)
        self._began = monotonic()
        headers = self.request.headers
        given = headers.get("X-Request-Id", "")
        self.request_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        trace = headers.get("Traceparent", "")
        self.traceparent = trace if TRACEPARENT.fullmatch(trace) else ""
        self.body_clock: BodyClock | None = None
        self._received_bytes = 0
        self._prepared: Answer | None = None
        self._linger: Linger | None = None
        self._body_complete = False
        self._counted = False
        self._early = False
        site.in_flight.add(self)
        self._stamp()

    def set_default_headers(self) -> None:
        """Set what every answer carries; Tornado's `Server` header tells strangers nothing they need."""
        self.clear_header("Server")
        self.set_header("Content-Type", "application/json")
        for name, value in SECURITY_HEADERS.items():
            self.set_header(name, value)

    def _stamp(self) -> None:
        """Set the headers that depend on the request."""
        self.set_header("X-Request-Id", self.request_id)
        if self.site.tls:
            self.set_header("Strict-Transport-Security", TRANSPORT_SECURITY)
        self._allow_origin()

    def _allow_origin(self) -> None:
        if not self.site.plan.cors_enabled:
            return
        self.set_header("Vary", "Origin")
        origin = self.request.headers.get("Origin")
        if origin is not None and self.site.plan.origins.allows(origin):
            self.set_header("Access-Control-Allow-Origin", origin)
            self.set_header("Access-Control-Expose-Headers", EXPOSED_HEADERS)

    def prepare(self) -> None:
        """Answer what can be answered by the head alone; otherwise begin to read the body, against a clock."""
        answer = self._answer_by_method() or self.answer_by_head()
        if answer is None:
            self.body_clock = BodyClock(monotonic())
        elif expects_body(self.request.headers):
            self.answer_early(answer)
        else:
            # Left to `_respond`: Tornado closes a connection that is answered before it has looked for a body.
            self._prepared = answer

    def _answer_by_method(self) -> Answer | None:
        if self.request.method == "OPTIONS":
            return self._preflight() if self.methods else self.not_found()
        return None if self.request.method in self.methods else self.method_not_allowed()

    def answer_by_head(self) -> Answer | None:
        """Return the answer when it depends on no body, or None to read the body first. Overridden by the routes."""
        return self.not_found()

    def answer_early(self, answer: Answer) -> None:
        """Answer before the body has arrived, in a way that the sender gets to see it.

        A sender that waits for `100 Continue` has sent nothing: the answer ends the exchange. One that is already
        sending gets the answer at once, and what it still sends is thrown away within bounds.
        """
        self._early = True
        self.body_clock = None
        self._announce_close()
        if "Expect" in self.request.headers and not self._received_bytes:
            self.send(answer)
            return
        body = self._headed(answer)
        if body:
            self.set_header("Content-Length", str(len(body)))
            self.write(body)
        self._linger = Linger(self.connection)
        # Not finished: Tornado would close the connection at once.
        self.flush()
        self._count()

    def _announce_close(self) -> None:
        self.set_header("Connection", "close")
        # Tornado says keep-alive to an HTTP/1.0 client that asked for it, whatever the answer's own header says.
        self.request.headers["Connection"] = "close"

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Count a piece of the body, and take it unless the request has its answer."""
        self._received_bytes += len(chunk)
        self.site.gateway.metrics.http_request_bytes.inc(len(chunk))
        if self._linger is not None:
            return self._linger.discard(len(chunk))
        if not self._early:
            self.take_chunk(chunk)
        return None

    def take_chunk(self, chunk: bytes) -> None:
        """Take a piece of the body. Overridden by routes that take bodies."""

    async def _respond(self) -> None:
        """Answer, the body having arrived. Called by Tornado for every method."""
        self._body_complete = True
        self.body_clock = None
        if self._early:
            if not self._finished:
                connection = self.connection
                # Closing was announced; Tornado would keep a connection whose body has arrived in full.
                self.finish().add_done_callback(lambda written: connection.close())
            return
        self.send(self._prepared or await self.respond())

    get = head = post = put = patch = delete = options = other = _respond

    async def respond(self) -> Answer:
        """Return the answer to a request whose body has arrived. Overridden by routes that take bodies."""
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
        if isinstance(error, HTTPError) and 400 <= status_code < 500:
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
        """Count the answer and let the request go."""
        self._count()
        self._leave()

    def _count(self) -> None:
        """Count and log the answer, at the moment when it is sent."""
        if self._counted:
            return
        self._counted = True
        method = self.request.method if self.request.method in KNOWN_METHODS else "other"
        duration_secs = monotonic() - self._began  # Tornado's own would have in it what the clock jumped meanwhile
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
        """Let go of a request that will never be complete; one that is complete goes on and has its outcome."""
        super().on_connection_close()
        if not self._body_complete:
            self._leave()

    def _leave(self) -> None:
        """Forget the request. Called when it is answered in full, and when its sender went away before that."""
        self.site.in_flight.discard(self)
        self.body_clock = None
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None

    def cut_off(self) -> None:
        """Answer a request whose body arrives too slowly to wait for it."""
        log.info(
            "a body arrived too slowly and was cut off",
            route=self.route,
            received_bytes=self._received_bytes,
            request_id=self.request_id,
        )
        self.answer_early(answers.busy("busy.backpressure", "body", "did not arrive fast enough; nothing was stored"))

    def turn_away(self) -> None:
        """Answer a request whose body has not arrived when the gateway stops."""
        if not self._body_complete and not self._early:
            self.answer_early(answers.busy("busy.draining"))


class NotFoundHandler(EdgeHandler):
    """Answers every path that is no route."""

    route = "not_found"
