"""The parent of a gateway with several processes: holds the listening sockets, starts the others, starts them again.

It handles no event and runs no event loop, so there is nothing in it to go wrong. Its children are forks: they need not
read code or configuration again, and one that is started later has the configuration that the others use, whatever has
become of the file meanwhile.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

import structlog

from edge import logs
from edge.api import EdgeError
from edge.board import State
from edge.config import load
from edge.config.model import GatewayConfig
from edge.exits import EXIT_FAILED, EXIT_OK, cannot_start, run_to_exit
from edge.gateway import refuse_fixed
from edge.http.server import addresses_of, listen, listen_each
from edge.process import Announce, Place, Process, Started, remove_sockets
from edge.registry import Registry
from edge.roles import Role, roles

log = structlog.get_logger(__name__)

HEALTHY_SECS = 10.0
"""A process that lived for so long is started again at once; one that did not, later each time."""
WANTED_SECS = 0.5
"""The same for one that stopped in order, because somebody told it to."""
FIRST_PAUSE_SECS = 0.1
LONGEST_PAUSE_SECS = 5.0
MOST_DOUBLINGS = 10
"""More than lead to the longest pause."""
FORK_PAUSE_SECS = 1.0
SLACK_SECS = 4.0
"""What a process that drains may take on top of its time before it is killed: its own bounds are shorter."""
LEAST_DELIVERY_SECS = 0.5
"""What the delivery process gets even if the ingest processes have used up the time."""
LOOK_SECS = 1.0

UP, REMEMBER, LEAVING = 1, 2, 3
"""What children write into the pipe to the parent, with their place: I am up; the configuration was reloaded; I stop,
and take no more connections."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


@dataclass(slots=True)
class Child:
    """One process: its role, and how it has fared."""

    role: Role
    pid: int = 0
    """0: it does not run."""
    started_at: float = 0.0
    was_up: bool = False
    code: int = 0
    """How the last one in this place ended; negative: by a signal."""
    failures: int = 0
    """How often in a row it died young."""
    due_at: float = 0.0
    """When it is to be started again."""


def pause_secs(failures: int) -> float:
    """Return how long to wait before a process is started again that has died young so often in a row."""
    return min(LONGEST_PAUSE_SECS, FIRST_PAUSE_SECS * 2 ** min(failures - 1, MOST_DOUBLINGS)) if failures else 0.0


class Supervisor:
    """Runs a gateway of several processes from start to exit."""

    def __init__(self, config: GatewayConfig, registry: Registry, environ: Mapping[str, str]) -> None:
        self._config = config
        self._registry = registry
        self._environ = environ
        parts = roles(config.server.workers)
        board = parts[0].board
        if board is None:
            raise ValueError("several processes have a board")
        self._board = board
        self._children = [Child(role) for role in parts]
        self._lines = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in parts[1:]]
        self._life = os.pipe()
        """The parent alone holds the end to write to: the other end closes with its death."""
        self._notices = os.pipe()
        self._woken = os.pipe()
        for fd in (*self._notices, *self._woken):
            os.set_blocking(fd, False)
        self._ingest: list[list[socket.socket]] = []
        self._admin: list[socket.socket] = []
        self._asked: list[int] = []
        """Signals that have come and were not dealt with yet."""

    def run(self, announce: Announce) -> int:
        """Start, look after the processes until a signal asks to stop, drain; return the exit code."""
        try:
            self._ingest = listen_each(self._config.server.listen, self._config.server.workers)
            self._admin = listen(self._config.admin.listen)
        except (EdgeError, OSError) as error:
            return cannot_start(error)
        for number in _SIGNALS:
            signal.signal(number, self._note)
        signal.set_wakeup_fd(self._woken[1], warn_on_full_buffer=False)
        if not self._start_all():
            return self._give_up()
        if not self._is_asked_to_stop():
            started = Started(self._config, addresses_of(self._ingest[0]), addresses_of(self._admin))
            log.info(
                "the gateway is listening",
                ingest=started.ingest,
                admin=started.admin,
                sinks=len(self._config.sinks),
                workers=len(self._lines),
            )
            announce(started)
        while not self._is_asked_to_stop():
            try:
                self._look_after()
            except Exception:
                # Whatever it is: the processes go on, and one that dies is to be started again.
                log.exception("periodic work failed; it is tried again", work="look_after")
                time.sleep(LOOK_SECS)
        return self._drain()

    # --- starting

    def _start_all(self) -> bool:
        """Start the delivery process, then the others; False when one of them does not come up."""
        for children in (self._children[:1], self._children[1:]):
            for child in children:
                self._start(child)
            while any(not child.was_up for child in children):
                if self._is_asked_to_stop():
                    return True
                self._wait(LOOK_SECS)
                self._reap()
                if any(child.started_at and not child.pid for child in self._children):
                    return False
        return True

    def _start(self, child: Child) -> None:
        child.started_at, child.was_up = time.monotonic(), False
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            pid = os.fork()
        except OSError as error:
            log.error("a process of the gateway cannot be started right now", role=child.role.name, error=str(error))
            child.due_at = time.monotonic() + FORK_PAUSE_SECS
            return
        if not pid:
            self._be(child.role)
        child.pid = pid
        self._board.note(child.role.place, State.STARTING, pid)

    def _be(self, role: Role) -> NoReturn:
        """Be a child, to the end of the process."""
        code = EXIT_FAILED
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for fd in (self._life[1], self._notices[0], *self._woken):
                os.close(fd)
            logs.name_process(role.name)
            ingest, admin, lines = self._ends_of(role)

            def notify(notice: int) -> None:
                os.write(self._notices[1], bytes([notice, role.place]))

            place = Place(
                role,
                lines,
                self._life[0],
                self._ingest,
                self._board.n_reloads,
                remember=lambda: notify(REMEMBER),
                leaving=lambda: notify(LEAVING),
            )
            process = Process(self._config, self._registry, self._environ, place)
            code = run_to_exit(process.serve_on(lambda _: notify(UP), ingest, admin))
        except BaseException:
            log.exception("a process of the gateway failed")
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(code)

    def _ends_of(self, role: Role) -> tuple[list[socket.socket], list[socket.socket], list[socket.socket]]:
        """Return what a child has of the sockets; what it has no use for is closed."""
        if role.delivers:
            for sock in (*(sock for socks in self._ingest for sock in socks), *(end for _, end in self._lines)):
                sock.close()
            return [], self._admin, [end for end, _ in self._lines]
        for sock in self._admin:
            sock.close()
        mine = role.place - 1
        for index, (theirs, end) in enumerate(self._lines):
            theirs.close()
            if index != mine:
                end.close()
        return self._ingest[mine], [], [self._lines[mine][1]]

    # --- while it runs

    def _look_after(self) -> None:
        """Wait for something to happen and see to it."""
        now = time.monotonic()
        pauses = [child.due_at - now for child in self._children if not child.pid]
        self._wait(max(0.0, min([*pauses, LOOK_SECS])))
        for child in self._reap():
            self._plan_restart(child)
        if signal.SIGHUP in self._asked:
            self._asked.remove(signal.SIGHUP)
            self._reload()
        now = time.monotonic()
        for child in self._children:
            if not child.pid and child.due_at <= now and not self._is_asked_to_stop():
                self._board.count_restart(child.role.place)
                self._start(child)

    def _plan_restart(self, child: Child) -> None:
        """Decide when a process that died is to be started again, and say so."""
        now = time.monotonic()
        lived = now - child.started_at
        least_secs = WANTED_SECS if child.code == EXIT_OK else HEALTHY_SECS
        child.failures = 0 if child.was_up and lived >= least_secs else child.failures + 1
        pause = pause_secs(child.failures)
        child.due_at = now + pause
        fields = {
            "role": child.role.name,
            "restart_in_secs": pause,
            "lived_secs": round(lived, 3),
            **_ended(child.code),
        }
        if child.code == EXIT_OK and child.was_up:
            log.info("a process of the gateway has stopped and is started again", **fields)
        else:
            log.error("a process of the gateway died and is started again", **fields)

    def _reload(self) -> None:
        """Have the configuration read again: by the delivery process, which has the others do it too."""
        delivery, *others = self._children
        if delivery.pid:
            self._kill(delivery, signal.SIGHUP)  # it says when all have the new configuration
            return
        self._remember()
        for child in others:
            self._kill(child, signal.SIGHUP)

    def _remember(self) -> None:
        """Read the configuration for processes that are started later. What is wrong with it others say."""
        try:
            config = load(self._config.source, self._registry, self._environ)
            refuse_fixed(self._config, config)
        except (Exception, SystemExit):  # noqa: BLE001 - components look at their options in code of their own
            return
        self._config = config
        self._board.count_reload()
        logs.configure(config.log.level, config.log.format)

    # --- the end

    def _drain(self) -> int:
        """Stop the ingest processes, then the one that delivers what they took; return the exit code."""
        server = self._config.server
        self._asked.clear()
        self._board.drain(server.pre_stop_secs + server.drain_timeout_secs)
        log.info("draining", pre_stop_secs=server.pre_stop_secs, drain_timeout_secs=server.drain_timeout_secs)
        delivery, *ingest = self._children
        code = self._stop(ingest, self._board.secs_left)
        if self._board.secs_left < LEAST_DELIVERY_SECS and not self._asked:
            self._board.drain(LEAST_DELIVERY_SECS)
        code = max(code, self._stop([delivery], self._board.secs_left))
        for sock in (*(sock for socks in self._ingest for sock in socks), *self._admin):
            sock.close()
        remove_sockets((*server.listen, *self._config.admin.listen))
        log.info("the gateway has stopped", exit_code=code)
        return code

    def _stop(self, children: Sequence[Child], secs: float) -> int:
        """Have processes drain; kill those that have not ended within the time and some slack."""
        code = EXIT_OK
        running = [child for child in children if child.pid]
        for child in running:
            self._kill(child, signal.SIGTERM)
        if self._asked:
            self._hurry(running)
        deadline = time.monotonic() + secs + SLACK_SECS
        while any(child.pid for child in running):
            self._wait(min(LOOK_SECS, max(0.0, deadline - time.monotonic())))
            if self._is_asked_to_stop() and self._board.secs_left > 0:
                self._hurry(running)
                deadline = min(deadline, time.monotonic() + SLACK_SECS)
            self._reap()
            if time.monotonic() >= deadline:
                for child in running:
                    if child.pid:
                        log.error("a process of the gateway does not end and is killed", role=child.role.name)
                        self._kill(child, signal.SIGKILL)
                        code = EXIT_FAILED
                deadline = time.monotonic() + SLACK_SECS
        # A second signal may come when a process has done all and is about to end.
        fine = {EXIT_OK, -signal.SIGTERM} if self._asked else {EXIT_OK}
        # One that was down by then counts as well: it did not end in order.
        return code if all(child.code in fine for child in children) else EXIT_FAILED

    def _hurry(self, running: Sequence[Child]) -> None:
        """Pass on a second signal: nobody is waited for any more."""
        self._board.hurry()
        for child in running:
            self._kill(child, signal.SIGTERM)

    def _give_up(self) -> int:
        """End what was started, because something could not be; return the exit code of that."""
        self._board.drain(0.0)
        codes = [child.code for child in self._children if not child.pid and child.started_at]
        self._stop(self._children, 0.0)
        remove_sockets((*self._config.server.listen, *self._config.admin.listen))
        return next((code for code in codes if code > 0), EXIT_FAILED)

    # --- signals, children, the pipe

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._asked.append(number)

    def _is_asked_to_stop(self) -> bool:
        return signal.SIGTERM in self._asked or signal.SIGINT in self._asked

    def _wait(self, secs: float) -> None:
        """Wait for a signal or a notice, for so long at most, and take the notices."""
        readable, _, _ = select.select([self._woken[0], self._notices[0]], [], [], secs)
        for fd in readable:
            with suppress(BlockingIOError):
                data = os.read(fd, 4096)
                if fd == self._notices[0]:
                    self._hear(data)

    def _hear(self, notices: bytes) -> None:
        delivery = self._children[0]
        for notice, place in zip(notices[::2], notices[1::2], strict=True):
            child = self._children[place]
            if notice == REMEMBER and (child is delivery or not delivery.pid):
                # The delivery process comes last: when it has reloaded, all have.
                self._remember()
            elif notice == LEAVING and child.pid:
                self._board.note(place, State.STARTING, child.pid)
            elif notice == UP and child.pid:
                child.was_up = True
                self._board.note(place, State.UP, child.pid)

    def _reap(self) -> list[Child]:
        """Take note of the children that have ended; return them."""
        ended = []
        for child in self._children:
            if not child.pid:
                continue
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                child.pid, child.code = 0, os.waitstatus_to_exitcode(status)
                self._board.note(child.role.place, State.DOWN, 0)
                ended.append(child)
        return ended

    def _kill(self, child: Child, number: int) -> None:
        if child.pid:
            try:
                os.kill(child.pid, number)
            except OSError as error:
                if error.errno != errno.ESRCH:
                    raise


def _ended(code: int) -> dict[str, object]:
    """Return how a process ended, as fields of a log line."""
    return {"exit_code": code} if code >= 0 else {"signal": signal.Signals(-code).name}
