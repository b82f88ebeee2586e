"""Listeners: addresses, TLS, connection limits, and how they stop."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPMessageDelegate
from tornado.netutil import bind_sockets, bind_unix_socket, ssl_wrap_socket
from tornado.web import Application

from edge.api import EdgeError
from edge.config.model import Limits, Server, Tls
from edge.http import answers
from edge.http.connections import Acceptor, EdgeStream, EdgeTlsStream, closing_bytes, connection_bound
from edge.http.fast_server import FastServer
from edge.http.framing import TARGET_BYTES, FramingDelegate
from edge.http.quick import QuickRoutes
from edge.http.state import Site

log = structlog.get_logger(__name__)

BACKLOG = 1024
POLL_SECS = 0.02
ADMIN_BODY_BYTES = 1 << 20
ADMIN_CONNECTIONS = 64
ADMIN_HEADER_BYTES = 16 * 1024

UNLIMITED = 1 << 62
"""Tornado answers a body over its own limit with a bare 400; the handlers answer 413 before they read it."""


class ListenError(EdgeError):
    """An address that cannot be listened on."""


class EdgeHTTPServer(HTTPServer):
    """Tornado's HTTP server with a bound on connections. A connection too many gets a 503 and is closed."""

    bound = UNLIMITED
    """The most connections at once."""
    target_bytes = TARGET_BYTES
    """The longest request target, query included."""

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        """Set the server up; called by Tornado in place of a constructor."""
        super().initialize(*args, **kwargs)
        self.streams: set[EdgeStream] = set()
        """The connections open at this moment, those before their TLS handshake included."""
        self.refused: Callable[[int], None] = lambda status: None
        """Called with the status of every answer that no handler gave."""
        self._acceptors: list[Acceptor] = []

    @property
    def open_connections(self) -> int:
        """Connections open at this moment."""
        return len(self.streams)

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Begin to accept on these sockets, which the server owns from here on."""
        self._acceptors.extend(Acceptor(sock, self._serve) for sock in sockets)

    def stop_accepting(self) -> None:
        """Accept the connections that wait in the backlog, then close the listening sockets.

        Requests that were sent in full by then are answered like any other. Call it after `Site.closing` was set and
        before `wait_until_idle`.
        """
        for acceptor in self._acceptors:
            acceptor.stop()

    def stop(self) -> None:
        """Do what `stop_accepting` does: Tornado's own would reset the connections in the backlog."""
        self.stop_accepting()

    def serve(self, connection: socket.socket, address: Any) -> None:
        """Serve a connection that was accepted elsewhere."""
        self._serve(connection, address)

    def _serve(self, connection: socket.socket, address: Any) -> None:
        """Serve a connection, or turn it away when there are too many."""
        if len(self.streams) >= self.bound:
            self._turn_away(connection)
            return
        if self.ssl_options is not None:
            try:
                connection = ssl_wrap_socket(
                    connection, self.ssl_options, server_side=True, do_handshake_on_connect=False
                )
            except OSError:
                connection.close()  # the peer is gone already
                return
        self.handle_stream(self._stream(connection), address)

    def _turn_away(self, connection: socket.socket) -> None:
        """Answer 503 and close; with TLS only close, since an answer would have to wait for the handshake.

        Without a stream of Tornado's, which costs several times the answer: under overload there are more of these
        than of those that are served.
        """
        if self.ssl_options is None:
            answer = answers.busy("busy.backpressure")
            self.refused(answer.status)
            with suppress(OSError):  # the peer is gone already
                connection.send(closing_bytes(answer), socket.MSG_DONTWAIT)  # so little always has room
        connection.close()

    def _stream(self, connection: socket.socket) -> EdgeStream:
        kind = EdgeStream if self.ssl_options is None else EdgeTlsStream
        stream = kind(
            connection,
            header_bytes=self.conn_params.max_header_size,
            refused=self.refused,
            max_buffer_size=self.max_buffer_size,
            read_chunk_size=self.read_chunk_size,
        )
        self.streams.add(stream)
        stream.on_closed = self.streams.discard
        return stream

    def start_request(self, server_conn: Any, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """Look at a request's framing before any handler sees it."""
        stream: EdgeStream = server_conn.stream
        stream.begin_request()
        return FramingDelegate(super().start_request(server_conn, request_conn), stream, self.target_bytes)


def ingest_server(application: Application, server: Server) -> EdgeHTTPServer | FastServer:
    """Return the server of the ingest listeners, every limit of it set. The application is `ingest_application`'s."""
    site: Site = application.settings["site"]
    limits, tls = server.limits, server.tls
    if server.http == "fast":
        fast = FastServer(
            application,
            QuickRoutes(site),
            header_bytes=limits.header_bytes,
            idle_secs=limits.idle_secs,
            bound=connection_bound(limits.connections),
            ssl_context=_ssl_context(tls) if tls is not None else None,
            refused=site.count_refused,
        )
        site.streams = fast.connections
        return fast
    return _tornado_server(application, site, limits, tls)


def _tornado_server(application: Application, site: Site, limits: Limits, tls: Tls | None) -> EdgeHTTPServer:
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
    server.bound = connection_bound(limits.connections)
    site.streams = server.streams
    server.refused = site.count_refused
    return server


def admin_server(application: Application) -> EdgeHTTPServer:
    """Return the server of the admin listeners."""
    server = EdgeHTTPServer(
        application,
        max_header_size=ADMIN_HEADER_BYTES,
        idle_connection_timeout=60,
        body_timeout=10,
        max_body_size=ADMIN_BODY_BYTES,
        max_buffer_size=2 * ADMIN_BODY_BYTES,
    )
    server.bound = ADMIN_CONNECTIONS
    server.target_bytes = ADMIN_HEADER_BYTES  # a scrape may name every metric it wants
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


def listen_each(addresses: Sequence[str], n: int) -> list[list[socket.socket]]:
    """Return listening sockets as `listen` does, for each of several processes.

    Of a TCP address each process has a socket of its own, and the system spreads the connections over them. A unix
    socket they share.
    """
    first = listen(addresses)
    names = [(sock.family, sock.getsockname()) for sock in first]
    shared = [sock for sock in first if sock.family == socket.AF_UNIX]
    for sock in first:
        # They have shown that nobody else listens there, which no socket that shares its port can.
        if sock.family != socket.AF_UNIX:
            sock.close()
    try:
        return [
            [
                *(_bind_sharing(family, name) for family, name in names if family != socket.AF_UNIX),
                *(sock.dup() for sock in shared),
            ]
            for _ in range(n)
        ]
    except OSError as error:
        raise ListenError(f"cannot listen on {addresses}: {os.strerror(error.errno or 0)}") from error
    finally:
        for sock in shared:
            sock.close()


def _bind_sharing(family: int, name: Any) -> socket.socket:
    """Return a listening socket at an address that others of the same user may listen at as well."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.setblocking(False)  # noqa: FBT003 - the standard library's own signature
    sock.bind(name)
    sock.listen(BACKLOG)
    return sock


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
    """Wait until every request has its answer; False when the time is up first.

    What was accepted a moment ago is read in the loop's next turns, so nothing in flight must be seen twice. When the
    time is up, senders whose body has not arrived are told to come again.
    """
    idle = 0
    while idle < 2:
        idle = 0 if in_flight else idle + 1
        if in_flight and secs_left() <= 0:
            for handler in [*in_flight]:
                handler.turn_away()
            return False
        await asyncio.sleep(POLL_SECS)
    return True
