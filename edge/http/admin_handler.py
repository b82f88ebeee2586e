"""The base of all handlers on the admin listener: who may ask, how bodies are taken, the shape of answers.

Browsers are no operators: what a page could make a browser send here is refused, token or not.
"""

from __future__ import annotations

import hmac
import secrets
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address
from typing import Any, ClassVar

import structlog
from tornado.web import HTTPError, RequestHandler, stream_request_body

from edge.gateway import Check, Gateway
from edge.http import answers
from edge.http.answers import Answer
from edge.http.connections import SECURITY_HEADERS
from edge.http.early import Linger, expects_body
from edge.http.framing import KNOWN_METHODS, OTHER_METHOD
from edge.http.handlers import REQUEST_ID
from edge.http.server import ADMIN_BODY_BYTES, UNLIMITED
from edge.peers import Peers
from edge.scrape import registry_of

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class AdminSite:
    """What the admin handlers share."""

    gateway: Gateway
    token: str
    reload: Callable[[], Awaitable[None]]
    """Reads the configuration file again and puts it in place; raises what is wrong with it."""
    peers: Peers | None = None
    """The other processes of the gateway; None where there is one process."""

    async def checks(self) -> list[Check]:
        """Return what readiness depends on."""
        return self.gateway.checks() if self.peers is None else await self.peers.checks()

    async def registry(self) -> Any:
        """Return the registry that a scrape is encoded from."""
        return self.gateway.metrics.registry if self.peers is None else registry_of(await self.peers.scrape())

    @property
    def is_draining(self) -> bool:
        """Whether the gateway is stopping."""
        board = self.gateway.role.board
        return self.gateway.draining or (board is not None and board.is_draining)


@stream_request_body
class AdminHandler(RequestHandler):
    """What every admin route has in common: who may ask, bodies, the shape of answers.

    Bodies are taken piece by piece, so that Tornado never parses one as a form.
    """

    SUPPORTED_METHODS = (*sorted(KNOWN_METHODS), OTHER_METHOD)
    methods: ClassVar[tuple[str, ...]] = ()
    """The methods of the route; any other one is answered 405, and with none every request 404."""

    def initialize(self, site: AdminSite) -> None:
        """Take what the routes share."""
        self.site = site
        self.body = bytearray()
        self._received_bytes = 0
        self._refusal: Answer | None = None
        self._early = False
        self._linger: Linger | None = None

    @cached_property
    def request_id(self) -> str:
        """The id the sender gave the request, or a fresh one."""
        given = self.request.headers.get("X-Request-Id", "")
        return given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)

    def set_default_headers(self) -> None:
        """Set what every answer carries."""
        self.clear_header("Server")
        self.set_header("Content-Type", "application/json")
        for name, value in SECURITY_HEADERS.items():
            self.set_header(name, value)
        self.set_header("X-Request-Id", self.request_id)

    def prepare(self) -> None:
        """Decide whether the request may be answered; a refusal goes out when its body, if small, has arrived."""
        self.connection.set_max_body_size(UNLIMITED)
        self._refusal = self._from_a_page() or self._stranger() or self._wrong_route() or self._wrong_body()
        if int(self.request.headers.get("Content-Length", "0")) > ADMIN_BODY_BYTES and "Expect" in self.request.headers:
            self._answer_early()

    def _from_a_page(self) -> Answer | None:
        """Refuse what a browser sends for a page: another site's, since this listener has none (CSRF)."""
        headers = self.request.headers
        if "Origin" in headers:
            return answers.refuse("auth.origin", "Origin", "must be absent: web pages may not ask here")
        if headers.get("Sec-Fetch-Site", "").lower() == "cross-site":
            return answers.refuse("auth.origin", "Sec-Fetch-Site", "must not be cross-site")
        return None

    def _stranger(self) -> Answer | None:
        """Refuse who has not the token where one is configured, else who asks for another host than this machine.

        A page of a site whose name was made to lead to this machine (DNS rebinding) is of the same origin to the
        browser; the Host header still has that name. The token is compared in constant time.
        """
        token = self.site.token
        if token:
            scheme, _, given = self.request.headers.get("Authorization", "").partition(" ")
            if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode()):
                return None
            answer = answers.refuse("auth.invalid", "Authorization", "must be Bearer with the admin token")
            return Answer(answer.status, answer.body, {"WWW-Authenticate": "Bearer"})
        host = self.request.headers.get("Host")
        # Without Host it is HTTP/1.0, which no browser speaks.
        if host is None or names_this_machine(host) or self.connection.context.address_family == socket.AF_UNIX:
            return None
        message = "must be localhost or a loopback address, unless admin.token is configured and sent"
        return answers.refuse("auth.origin", "Host", message)

    def _wrong_route(self) -> Answer | None:
        if not self.methods:
            return answers.refuse("http.not_found", "path", "is not an admin route")
        if self.request.method in self.methods:
            return None
        allowed = ", ".join(self.methods)
        answer = answers.refuse("http.method", "method", f"must be one of: {allowed}")
        return Answer(answer.status, answer.body, {"Allow": allowed})

    def _wrong_body(self) -> Answer | None:
        """Refuse a body that is not said to be JSON: a page can send others without asking first (a form)."""
        if self.request.method != "POST" or not expects_body(self.request.headers):
            return None
        media_type = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if media_type == "application/json":
            return None
        return answers.refuse("http.media_type", "Content-Type", "must be application/json")

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Take a piece of the body. Past the limit it is answered, whatever length was announced.

        Not before: most of a body that is only a little too large has then been read, and its sender sees the answer.
        """
        self._received_bytes += len(chunk)
        if self._linger is not None:
            return self._linger.discard(len(chunk))
        if self._early:
            return None
        if self._received_bytes > ADMIN_BODY_BYTES:
            self.body.clear()
            self._answer_early()
        elif self._refusal is None:
            self.body += chunk
        return None

    def _answer_early(self) -> None:
        """Answer before the body has arrived, in a way that the sender gets to see it."""
        self._early = True
        body = self._headed(self._refusal or _too_large())
        self.set_header("Connection", "close")
        if "Expect" in self.request.headers and not self._received_bytes:
            self.finish(body)  # the sender waits for a word before it sends anything: this is the word
            return
        self.set_header("Content-Length", str(len(body)))
        self.write(body)
        self._linger = Linger(self.connection)
        # Not finished: Tornado would close the connection at once.
        self.flush()

    async def _respond(self) -> None:
        if self._early:
            if not self._finished:
                connection = self.connection
                # Closing was announced; Tornado would keep a connection whose body has arrived in full.
                self.finish().add_done_callback(lambda written: connection.close())
            return
        answer = self._refusal or await self.respond()
        if answer is not None:
            self.finish(self._headed(answer))

    get = head = post = put = patch = delete = options = other = _respond

    async def respond(self) -> Answer | None:
        """Return the answer of the route, the body having arrived; None when it was sent already."""
        raise NotImplementedError

    def _headed(self, answer: Answer) -> bytes:
        """Set status and headers of an answer and return its body."""
        self.set_status(answer.status)
        for name, value in answer.headers.items():
            self.set_header(name, value)
        return answer.encode()

    @property
    def connection(self) -> Any:
        """The HTTP/1 connection of the request."""
        return self.request.connection

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Give what was raised the shape of every other answer."""
        if 400 <= status_code < 500:
            answer = answers.refuse("http.malformed", "request", "is not valid HTTP")
        else:
            answer = refusal(status_code, "Internal error", "internal", "gateway", "failed; its log says why")
        self.finish(self._headed(answer))

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """Log what nobody expected, once, with its request id."""
        if not isinstance(value, HTTPError):
            log.error(
                "an admin route failed",
                path=self.request.path[:128],
                request_id=self.request_id,
                exc_info=(typ, value, tb),
            )

    def on_finish(self) -> None:
        """Stop waiting for the rest of a body."""
        self._forget_linger()

    def on_connection_close(self) -> None:
        """Stop waiting for the rest of a body: the sender went away."""
        super().on_connection_close()
        self._forget_linger()

    def _forget_linger(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None

    def compute_etag(self) -> str | None:
        """No answer is cached."""
        return None


def names_this_machine(host: str) -> bool:
    """Tell whether a Host header, with or without a port, is ``localhost`` or a loopback address."""
    name, colon, port = host.rpartition(":")
    if not colon or port.endswith("]") or not port.isdigit():
        name = host
    if name.lower() == "localhost":
        return True
    try:
        return ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name).is_loopback
    except ValueError:
        return False


def _too_large() -> Answer:
    return answers.refuse("limit.body", "body", f"must be at most {ADMIN_BODY_BYTES} bytes")


def refusal(status: int, error: str, code: str, field: str, message: str) -> Answer:
    """Return an answer that is not in the ingest listener's table, in the shape of those that are."""
    return Answer(status, {"error": error, "details": [{"field": field, "message": message, "code": code}]})
