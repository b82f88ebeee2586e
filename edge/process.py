"""One process of the gateway from start to exit: listeners, signals, reload, drain."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from edge import logs
from edge.api import EdgeError
from edge.binding import bind
from edge.clock import SystemClock
from edge.config import ConfigError, load
from edge.config.model import GatewayConfig
from edge.exits import EXIT_OK
from edge.gateway import Gateway, refuse_fixed
from edge.heap import settle, settle_again
from edge.http.admin import AdminSite, admin_application
from edge.http.app import ingest_application
from edge.http.fast_server import FastServer
from edge.http.held import Cover, HeldSocket
from edge.http.server import EdgeHTTPServer, addresses_of, admin_server, ingest_server, listen, wait_until_idle
from edge.http.state import HttpPlan, Site, http_plan
from edge.metrics import Metrics
from edge.peers import Answers, Ledger, Peers, failing
from edge.registry import Registry
from edge.roles import WHOLE, Role

log = structlog.get_logger(__name__)

SWEEP_EVERY_SECS = 1.0
CLOSE_CONNECTIONS_SECS = 1.0
LINGER_SECS = 0.3
"""Who was accepted last has so long to send its request, and is told to come again. Sinks take as long to end."""
HANDOVER_SECS = 0.2
WORD_SECS = 0.1
"""Whoever stops a whole group of processes signals all at once: the parent's word, that all are meant, comes within."""
CATCH_UP_LOOKS = 10
COVER_LOOK_SECS = 0.1
"""How often an ingest process looks whether another one is down."""


@dataclass(frozen=True, slots=True)
class Started:
    """A gateway that has begun to listen; what the banner shows."""

    config: GatewayConfig
    ingest: list[str]
    admin: list[str]


@dataclass(frozen=True, slots=True)
class Place:
    """What a process of several has inherited from their parent."""

    role: Role
    lines: Sequence[socket.socket]
    """Of the delivery process: its ends of the lines to the ingest processes. Of those: the one end."""
    parent_fd: int
    """Readable once the parent is gone."""
    listening: Sequence[Sequence[socket.socket]]
    """The ingest listeners of every ingest process."""
    n_reloads: int
    """How often the configuration had been reloaded when the process was made."""
    remember: Callable[[], None] = lambda: None
    """Has the parent read the configuration again, for processes that it will start."""
    leaving: Callable[[], None] = lambda: None
    """Has the others accept the connections of this process."""


Announce = Callable[[Started], None]


class Process:
    """The listeners around one gateway. In a gateway of several processes each has the listeners of its role."""

    def __init__(
        self, config: GatewayConfig, registry: Registry, environ: Mapping[str, str], place: Place | None = None
    ) -> None:
        self._place = place
        self.role = place.role if place is not None else WHOLE
        self.config = self.role.of(config)
        self._registry = registry
        self._environ = environ
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()
        self._orphaned = False
        """The parent is gone."""
        self.gateway: Gateway
        self._site: Site
        self._ingest: EdgeHTTPServer | FastServer
        self._admin: EdgeHTTPServer | None = None
        self._peers: Peers | None = None
        self._answers: Answers | None = None
        self._ledger: Ledger | None = None
        self._cover: Cover | None = None
        self._held: list[HeldSocket] = []

    async def serve(self, announce: Announce) -> int:
        """Listen, and do what `serve_on` does."""
        return await self.serve_on(announce, *bind_all(self.config))

    async def serve_on(
        self, announce: Announce, ingest_sockets: list[socket.socket], admin_sockets: list[socket.socket]
    ) -> int:
        """Start, serve until a signal asks to stop, drain. Raises what keeps the gateway from starting."""
        # Before anything is opened: a signal during the start is a drain right after it, not a death in the middle.
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        # Of several processes the parent alone hears Ctrl-C, and says in which order they stop.
        loop.add_signal_handler(signal.SIGINT, self.stop if self._place is None else lambda: None)
        loop.add_signal_handler(signal.SIGHUP, lambda: None)
        try:
            started = await self.start(ingest_sockets, admin_sockets)
        except BaseException:
            for sock in (*ingest_sockets, *admin_sockets):
                sock.close()
            raise
        loop.add_signal_handler(signal.SIGHUP, self._spawn_reload)
        if self._place is not None:
            loop.add_reader(self._place.parent_fd, self._lose_parent)
            if self._is_ending:
                self.stop()  # since before this process could hear it
            self._spawn(self._catch_up(self._place.n_reloads))
        settle()
        announce(started)
        await self._stop.wait()
        await self.drain()
        return EXIT_OK

    @property
    def _is_ending(self) -> bool:
        """Whether this process ends because the whole gateway does."""
        board = self.role.board
        return board is None or board.is_draining or self._orphaned

    def _lose_parent(self) -> None:
        """Stop in order: nobody would start what dies from now on."""
        if self._place is not None:
            asyncio.get_running_loop().remove_reader(self._place.parent_fd)
        log.error("the parent process is gone: this one stops")
        self._orphaned = True
        self._stop.set()

    async def start(self, ingest_sockets: list[socket.socket], admin_sockets: list[socket.socket]) -> Started:
        """Start the gateway, then accept connections on these sockets."""
        role, server = self.role, self.config.server
        started = Started(self.config, addresses_of(ingest_sockets), addresses_of(admin_sockets))
        self.gateway = Gateway(self.config, self._registry, Metrics(CollectorRegistry()), SystemClock(), role)
        self._site = Site(self.gateway, http_plan(self.config, self.gateway), tls=server.tls is not None)
        self._ingest = ingest_server(ingest_application(self._site), server)
        self.gateway.metrics.sources["edge_http_connections"] = lambda: [((), float(self._ingest.open_connections))]
        await self.gateway.start()
        if self._place is not None:
            self._join(self._place)
        if role.takes_events:
            self._ingest.add_sockets(self._hold(ingest_sockets))
        if role.delivers:
            site = AdminSite(self.gateway, self.config.admin.token, self.reload, self._peers)
            self._admin = admin_server(admin_application(site))
            self._admin.add_sockets(admin_sockets)
        self._spawn(self._sweep_loop())
        if self._place is None:
            # What a gateway of several processes has too, so that one dashboard and one alert do for both.
            self.gateway.metrics.sources["edge_process_up"] = lambda: [((role.name,), 1.0)]
            self.gateway.metrics.sources["edge_process_restarts_total"] = lambda: [((role.name,), 0.0)]
            said = {"ingest": started.ingest, "admin": started.admin, "sinks": len(self.config.sinks)}
            log.info("the gateway is listening", **said)
        return started

    def _hold(self, sockets: list[socket.socket]) -> Sequence[socket.socket]:
        """Take the listening sockets over, and look after those of other ingest processes while these are down."""
        place, board = self._place, self.role.board
        if place is None or board is None:
            return sockets
        self._held = [HeldSocket.of(sock) for sock in sockets]
        self._cover = Cover(board, self.role.place, place.listening, self._ingest.serve)
        self._spawn(self._cover_loop(self._cover))
        return self._held

    async def _cover_loop(self, cover: Cover) -> None:
        while True:
            try:
                cover.look()
            except OSError as error:  # for want of descriptors
                log.warning("the connections of another process cannot be taken right now", error=str(error))
            await asyncio.sleep(COVER_LOOK_SECS)

    def _join(self, place: Place) -> None:
        """Take the place of this process among the others."""
        board = place.role.board
        if board is None:
            raise ValueError("a process of several has a board")
        if place.role.delivers:
            self._peers = Peers(self.gateway, board, place.lines)
            return
        self._ledger = Ledger(self.gateway, board, place.role.place)
        self._answers = Answers(
            place.lines[0],
            {
                "metrics": self._answer_metrics,
                "checks": self._answer_checks,
                "reload": self._answer_reload,
                "repair": self._answer_repair,
            },
        )

    async def _answer_metrics(self, question: dict[str, Any]) -> dict[str, Any]:
        if self._ledger is not None:
            self._ledger.leave()
        return {}

    async def _answer_checks(self, question: dict[str, Any]) -> dict[str, Any]:
        return {"failing": failing(self.gateway.checks())}

    async def _answer_reload(self, question: dict[str, Any]) -> dict[str, Any]:
        await self.reload()
        return {}

    async def _answer_repair(self, question: dict[str, Any]) -> dict[str, Any]:
        return asdict(await asyncio.to_thread(self.gateway.spool.repair, question["position"]))

    def stop(self) -> None:
        """Begin to drain. Called a second time: wait for no sender any more, and give the sinks no time.

        Of several processes the parent says on the board whether that is meant: one that gets a signal twice may have
        got it from the parent and from who stops the whole group.
        """
        board = self.role.board
        if self._stop.is_set() and (board is None or not board.is_draining or board.is_hurrying):
            self._hurry.set()
        self._stop.set()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _spawn_reload(self) -> None:
        self._spawn(self._reload_and_log())

    async def _reload_and_log(self) -> None:
        with suppress(EdgeError, OSError):
            await self.reload()

    async def _catch_up(self, n_reloads: int) -> None:
        """Reload if the others have done so while this process was starting, and nobody could tell it."""
        board = self.role.board
        for _ in range(CATCH_UP_LOOKS):
            if board is not None and board.n_reloads != n_reloads:
                await self._reload_and_log()
                return
            await asyncio.sleep(WORD_SECS)

    async def reload(self) -> None:
        """Read the configuration file again and put it in place; log and raise what is wrong: the old one goes on."""
        async with self._reloading:
            try:
                loaded = await asyncio.to_thread(load, self.config.source, self._registry, self._environ)
                config = self.role.of(loaded)
                plan = http_plan(config, self.gateway, self._site.plan)
                if self._peers is not None:
                    # Before any of them has changed: what can be told to be wrong is not to leave half of them behind.
                    refuse_fixed(self.gateway.config, config)
                    bind(config, self._registry)
                    await self._peers.reload()
                await self.gateway.reload(config, lambda: self._swap(config, plan))
                if self._place is not None:
                    self._place.remember()
            except ConfigError as error:
                self.gateway.reload_failed()
                for problem in error.problems:
                    log.error("the new configuration is wrong; the old one goes on", problem=str(problem))
                raise
            except (Exception, SystemExit) as error:
                self.gateway.reload_failed()
                log.error("the new configuration cannot be used; the old one goes on", error=str(error))
                if isinstance(error, EdgeError | OSError):
                    raise
                raise EdgeError(f"{type(error).__name__}: {error}") from error
        settle_again()
        logs.configure(config.log.level, config.log.format)
        if self.role.delivers:
            warn(config)
        log.info("the configuration was reloaded", sinks=len(config.sinks), components=len(config.pipeline))

    def _swap(self, config: GatewayConfig, plan: HttpPlan) -> None:
        """Let keys, limits and origins change in the same moment as the pipeline."""
        self.config = config
        self._site.plan = plan

    async def _sweep_loop(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_EVERY_SECS)
            try:
                self._site.sweep()
                if self._ledger is not None:
                    self._ledger.leave()
                if self._peers is not None:
                    self._peers.leave()
            except Exception:
                log.exception("looking for slow senders failed; it is tried again")

    async def drain(self) -> None:
        """Finish what was accepted, then stop: not ready, last answers, last commit, sinks within the time-out."""
        server, role = self.config.server, self.role
        self.gateway.draining = True
        log.info("draining", pre_stop_secs=server.pre_stop_secs, drain_timeout_secs=server.drain_timeout_secs)
        timeout_secs = server.drain_timeout_secs
        if not self._is_ending:
            await asyncio.sleep(WORD_SECS)
        if role.takes_events:
            with suppress(TimeoutError):
                async with asyncio.timeout(server.pre_stop_secs):
                    await self._hurry.wait()
        elif role.board is not None and role.board.is_draining:
            while role.board.takes_events and role.board.secs_left:  # noqa: ASYNC110 - other processes end, not tasks
                await asyncio.sleep(WORD_SECS)
            timeout_secs = role.board.secs_left  # the ingest processes have had the rest
        deadline = asyncio.get_running_loop().time() + timeout_secs

        def secs_left() -> float:
            return 0.0 if self._hurry.is_set() else max(0.0, deadline - asyncio.get_running_loop().time())

        await self._stop_accepting()
        lingers_until = asyncio.get_running_loop().time() + LINGER_SECS
        if not await wait_until_idle(self._site.in_flight, secs_left):
            log.warning("requests were still arriving when the drain time was up", requests=len(self._site.in_flight))
        for task in self._tasks:
            task.cancel()
        await self.gateway.drain(secs_left)
        if self._held:
            await asyncio.sleep(min(secs_left(), lingers_until - asyncio.get_running_loop().time()))
        await self._close_all()
        if self._place is None:
            remove_sockets((*server.listen, *self.config.admin.listen))
        log.info("stopped", pending_events={item.id: item.pending_events for item in self.gateway.last_snapshots})

    async def _stop_accepting(self) -> None:
        ends_for_all = self._is_ending
        if ends_for_all:
            self._site.closing = True
        if self._cover is not None:
            self._cover.stop(ends_for_all=ends_for_all)
            self._cover = None
        if self._place is not None and not ends_for_all:
            self._place.leaving()
        for sock in self._held:
            sock.leave(ends_for_all=ends_for_all)
        self._ingest.stop()
        if not ends_for_all:
            # Who connects now is served by the successor; who has just connected here is not to be sent away for that.
            await asyncio.sleep(HANDOVER_SECS)
            self._site.closing = True

    async def _close_all(self) -> None:
        """End the admin listener, what is said to other processes, and every connection."""
        if self._admin is not None:
            self._admin.stop()
        if self._ledger is not None:
            self._ledger.leave()
        if self._answers is not None:
            self._answers.close()
        for listener in (self._ingest, self._admin):
            if listener is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(CLOSE_CONNECTIONS_SECS):
                        await listener.close_all_connections()
        if self._peers is not None:
            self._peers.close()


def bind_all(config: GatewayConfig) -> tuple[list[socket.socket], list[socket.socket]]:
    """Return the listening sockets of a configuration, ingest and admin; raises what keeps one from being used."""
    ingest_sockets = listen(config.server.listen)
    try:
        return ingest_sockets, listen(config.admin.listen)
    except BaseException:
        for sock in ingest_sockets:
            sock.close()
        raise


def remove_sockets(addresses: Iterable[str]) -> None:
    """Remove the files of unix sockets: a file nobody listens on looks like a gateway that hangs."""
    for address in addresses:
        if address.startswith("unix:"):
            Path(address.removeprefix("unix:")).unlink(missing_ok=True)


def warn(config: GatewayConfig) -> None:
    """Log what works and should not stay as it is."""
    for warning in config.warnings:
        log.warning("the configuration works, but look at it", warning=warning)
