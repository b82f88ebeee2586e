"""Listening sockets that a parent holds too: how a process that is one of several accepts, and stops to accept."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from edge.board import Board, State
from edge.http.connections import Acceptor


class HeldSocket(socket.socket):
    """A listening socket that outlives this process.

    When the process alone ends, what waits in it is left to the successor. When the whole gateway ends, it is closed
    for all who hold it: nobody would ever accept who connects then.
    """

    ends_for_all = False
    is_left = False

    @classmethod
    def of(cls, sock: socket.socket) -> HeldSocket:
        """Take a socket over."""
        held = cls(fileno=sock.detach())
        held.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        return held

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection, unless the socket is left to others."""
        if self.is_left:
            raise BlockingIOError
        try:
            return super().accept()
        except OSError as error:
            if error.errno == errno.EINVAL:  # another process that shares it has ended it for all
                raise BlockingIOError from error
            raise

    def leave(self, *, ends_for_all: bool) -> None:
        """Prepare for `close`: of all who hold it, or of this process alone."""
        self.ends_for_all, self.is_left = ends_for_all, not ends_for_all

    def close(self) -> None:
        """Close it, for all who hold it if that was said."""
        if self.ends_for_all:
            with suppress(OSError):  # of a shared unix socket another process was first
                self.shutdown(socket.SHUT_RD)
        super().close()


class Cover:
    """Accepts in the place of other ingest processes while those are not up, so that no connection waits for them."""

    def __init__(
        self,
        board: Board,
        own: int,
        sockets: Sequence[Sequence[socket.socket]],
        serve: Callable[[socket.socket, Any], None],
    ) -> None:
        self._board = board
        self._sockets = {
            place: [sock for sock in socks if sock.family != socket.AF_UNIX]  # those are shared anyway
            for place, socks in enumerate(sockets, 1)
            if place != own
        }
        self._serve = serve
        self._covering: dict[int, list[tuple[HeldSocket, Acceptor]]] = {}
        self._is_stopped = False

    def look(self) -> None:
        """Begin where a process is down, end where it is up again."""
        if self._is_stopped:
            return
        for place, socks in self._sockets.items():
            is_up = self._board.state(place) is State.UP
            if is_up and place in self._covering:
                self._end(place)
            elif not is_up and place not in self._covering and not self._board.is_draining:
                copies: list[HeldSocket] = []
                try:
                    copies.extend(HeldSocket.of(sock.dup()) for sock in socks)
                except OSError:
                    for held in copies:
                        held.close()
                    raise
                self._covering[place] = [(held, Acceptor(held, self._serve)) for held in copies]

    def stop(self, *, ends_for_all: bool) -> None:
        """Cover nobody any more."""
        self._is_stopped = True
        for place in tuple(self._covering):
            self._end(place, ends_for_all=ends_for_all)

    def _end(self, place: int, *, ends_for_all: bool = False) -> None:
        for sock, acceptor in self._covering.pop(place):
            sock.leave(ends_for_all=ends_for_all)
            acceptor.stop()
