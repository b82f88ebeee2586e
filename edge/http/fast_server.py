"""The fast HTTP server's listeners: they accept, count, watch and close the connections of `edge.http.fast`."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import Any, Final

import structlog
from tornado.httputil import HTTPServerConnectionDelegate

from edge.http.bridge import PeerContext
from edge.http.connections import Acceptor
from edge.http.fast import FastConnection
from edge.http.quick import QuickRoutes

log = structlog.get_logger(__name__)

CLOSE_POLL_SECS: Final = 0.01


class FastServer:
    """Listeners whose connections are `FastConnection`. Has what the process uses of Tornado's server."""

    def __init__(
        self,
        application: HTTPServerConnectionDelegate,
        routes: QuickRoutes,
        *,
        header_bytes: int,
        idle_secs: float,
        bound: int,
        ssl_context: ssl.SSLContext | None,
        refused: Callable[[int], None],
    ) -> None:
        self.application = application
        self.routes = routes
        self.header_bytes = header_bytes
        self.idle_secs = idle_secs
        self.bound = bound
        self.refused = refused
        self.tls = ssl_context is not None
        self.loop = asyncio.get_running_loop()
        self.connections: set[FastConnection] = set()
        self.is_stopping = False
        self._ssl_context = ssl_context
        self._acceptors: list[Acceptor] = []
        self._beginning: set[asyncio.Task[None]] = set()

    @property
    def streams(self) -> set[FastConnection]:
        """The connections open at this moment."""
        return self.connections

    @property
    def open_connections(self) -> int:
        """Connections open at this moment, those before their TLS handshake included."""
        return len(self.connections) + (len(self._beginning) if self.tls else 0)

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Begin to accept on these sockets, which the server owns from here on."""
        self._acceptors.extend(Acceptor(sock, self._serve) for sock in sockets)

    def stop(self) -> None:
        """Do what `stop_accepting` does."""
        self.stop_accepting()

    def stop_accepting(self) -> None:
        """Accept the connections that wait in the backlog, then close the listening sockets."""
        for acceptor in self._acceptors:
            acceptor.stop()
        self.is_stopping = True

    async def close_all_connections(self) -> None:
        """Close every connection, idle or not."""
        for task in self._beginning:
            task.cancel()
        for connection in [*self.connections]:
            connection.end()
        while self.connections:  # noqa: ASYNC110 - connections end when the loop says so; an event for each would be state
            await asyncio.sleep(CLOSE_POLL_SECS)

    def admit(self, connection: FastConnection) -> bool:
        """Count a connection in; False when there are too many."""
        self.connections.add(connection)
        return len(self.connections) <= self.bound

    def serve(self, connection: socket.socket, address: Any) -> None:
        """Serve a connection that was accepted elsewhere."""
        self._serve(connection, address)

    def _serve(self, connection: socket.socket, address: Any) -> None:
        if self.tls and self.open_connections >= self.bound:
            # An answer would have to wait for the handshake, and the connection with it.
            connection.close()
            return
        connection.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        context = PeerContext(connection.family, address, tls=self.tls)
        task = self.loop.create_task(self._connect(connection, context))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def _connect(self, connection: socket.socket, context: PeerContext) -> None:
        options: dict[str, Any] = {}
        if self._ssl_context is not None:
            options = {"ssl": self._ssl_context, "ssl_handshake_timeout": self.idle_secs}
        try:
            await self.loop.connect_accepted_socket(lambda: FastConnection(self, context), connection, **options)
        except OSError as error:
            log.debug("a connection ended before it began", error=str(error))
