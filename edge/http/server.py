"""Listeners: addresses, TLS, connection limits, and how they stop."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPMessageDelegate
from tornado.iostream import IOStream
from tornado.netutil import bind_sockets, bind_unix_socket
from tornado.web import Application

from edge.api import EdgeError
from edge.config.model import Limits, Tls
from edge.http import answers
from edge.http.framing import FramingDelegate, answer_malformed_requests, closing_bytes

log = structlog.get_logger(__name__)

BACKLOG = 1024
POLL_SECS = 0.02
ADMIN_BODY_BYTES = 1 << 20
ADMIN_CONNECTIONS = 64

UNLIMITED = 1 << 62
"""Tornado answers a body over its own limit with a bare 400; the handlers answer 413 before they read it."""


class ListenError(EdgeError):
    """An address that cannot be listened on."""


class EdgeHTTPServer(HTTPServer):
    """Tornado's HTTP server with a bound on connections. A connection too many gets a 503 and is closed."""

    bound = UNLIMITED
    """The most connections at once."""

    @property
    def open_connections(self) -> int:
        """Connections open at this moment."""
        return len(self._connections)

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        """Serve a connection, or turn it away when there are too many."""
        if len(self._connections) < self.bound:
            answer_malformed_requests(stream, self.conn_params.max_header_size)
            super().handle_stream(stream, address)
            return

        def close(written: asyncio.Future[None]) -> None:
            written.exception()  # the peer may be gone; nobody else asks
            stream.close()

        stream.write(_TOO_MANY_CONNECTIONS).add_done_callback(close)

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """Look at a request's framing before any handler sees it."""
        return FramingDelegate(super().start_request(server_conn, request_conn))


_TOO_MANY_CONNECTIONS = closing_bytes(answers.busy("busy.backpressure"))


def ingest_server(application: Application, limits: Limits, tls: Tls | None) -> EdgeHTTPServer:
    """Return the server of the ingest listeners, every limit of it set."""
    server = EdgeHTTPServer(
        application,
        ssl_options=_ssl_context(tls) if tls is not None else None,
        xheaders=False,
        decompress_request=False,
        max_header_size=limits.header_bytes,
        idle_connection_timeout=limits.idle_secs,
        max_body_size=UNLIMITED,
        # The stream holds at most what one read brings; bodies are taken piece by piece.
        max_buffer_size=max(2 * limits.header_bytes, 256 * 1024),
    )
    server.bound = limits.connections
    return server


def admin_server(application: Application) -> EdgeHTTPServer:
    """Return the server of the admin listeners."""
    server = EdgeHTTPServer(
        application,
        max_header_size=16 * 1024,
        idle_connection_timeout=60,
        body_timeout=10,
        max_body_size=ADMIN_BODY_BYTES,
        max_buffer_size=2 * ADMIN_BODY_BYTES,
    )
    server.bound = ADMIN_CONNECTIONS
    return server


def _ssl_context(tls: Tls) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tls.cert_file, tls.key_file)
    return context


def listen(addresses: Sequence[str]) -> list[socket.socket]:
    """Return bound, listening sockets for ``host:port``, ``[v6]:port`` and ``unix:/path`` addresses."""
    sockets: list[socket.socket] = []
    try:
        for address in addresses:
            sockets.extend(_bind(address))
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise ListenError(f"cannot listen on {address}: {os.strerror(error.errno or 0)}") from error
    return sockets


def _bind(address: str) -> list[socket.socket]:
    if address.startswith("unix:"):
        path = Path(address.removeprefix("unix:"))
        _refuse_live_socket(path)
        return [bind_unix_socket(str(path), mode=0o660, backlog=BACKLOG)]
    host, _, port = address.rpartition(":")
    return bind_sockets(int(port), host.strip("[]"), backlog=BACKLOG)


def _refuse_live_socket(path: Path) -> None:
    """Raise when another process listens on this unix socket; binding would silently take it away."""
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError:
            return
    raise OSError(98, "Address already in use")


def addresses_of(sockets: Sequence[socket.socket]) -> list[str]:
    """Return where the sockets listen, ports as the system gave them."""
    names = []
    for sock in sockets:
        name = sock.getsockname()
        if sock.family == socket.AF_UNIX:
            names.append(f"unix:{name}")
        elif sock.family == socket.AF_INET6:
            names.append(f"[{name[0]}]:{name[1]}")
        else:
            names.append(f"{name[0]}:{name[1]}")
    return names


async def wait_until_idle(in_flight: set[Any], secs_left: Callable[[], float]) -> bool:
    """Wait until every request has its answer; False when the time is up first."""
    while in_flight:
        if secs_left() <= 0:
            return False
        await asyncio.sleep(POLL_SECS)
    return True
