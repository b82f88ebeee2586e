"""One gateway process from start to exit: configuration, listeners, signals, drain."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from edge import logs
from edge.api import EdgeError
from edge.binding import BindingError
from edge.clock import SystemClock
from edge.config import ConfigError, load
from edge.config.model import GatewayConfig
from edge.gateway import Gateway
from edge.http.admin import AdminSite, admin_application
from edge.http.app import ingest_application
from edge.http.fast import FastServer
from edge.http.server import EdgeHTTPServer, addresses_of, admin_server, ingest_server, listen, wait_until_idle
from edge.http.state import HttpPlan, Site, http_plan
from edge.metrics import Metrics
from edge.registry import PluginError, Registry, load_registry

log = structlog.get_logger(__name__)

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h."""

SWEEP_EVERY_SECS = 1.0
EXIT_SECS = 1.0
"""How long the interpreter may take to end by itself once the drain is over."""
CLOSE_CONNECTIONS_SECS = 1.0


@dataclass(frozen=True, slots=True)
class Started:
    """A gateway that has begun to listen; what the banner shows."""

    config: GatewayConfig
    ingest: list[str]
    admin: list[str]


Announce = Callable[[Started], None]


def run(config_path: Path, environ: Mapping[str, str], announce: Announce) -> int:
    """Run a gateway until SIGTERM or SIGINT and return the exit code.

    What is wrong with the configuration goes to stderr, one line for each mistake, and the code is 78; anything else
    that keeps the gateway from starting is one line and code 1. SIGHUP reloads the configuration.
    """
    try:
        registry = load_registry()
        config = load(config_path, registry, environ)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return EXIT_CONFIG
    except PluginError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIG
    logs.configure(config.log.level, config.log.format)
    _warn(config)
    # Whatever the gateway writes (spool, dead letters, files of sinks) is nobody else's business.
    os.umask(0o077)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            return _leave(runner.run(Process(config, registry, environ).serve(announce)))
        except BindingError as error:
            print(error, file=sys.stderr)
            return EXIT_CONFIG
        except (EdgeError, OSError) as error:
            print(f"the gateway cannot start: {error}", file=sys.stderr)
            return EXIT_FAILED


def _leave(code: int) -> int:
    """See to it that the process ends soon, whatever a plugin's threads or a disk that does not answer still do."""

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    timer = threading.Timer(EXIT_SECS, end)
    timer.daemon = True
    timer.start()
    return code


def _warn(config: GatewayConfig) -> None:
    for warning in config.warnings:
        log.warning("the configuration works, but look at it", warning=warning)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


class Process:
    """The listeners around one gateway."""

    def __init__(self, config: GatewayConfig, registry: Registry, environ: Mapping[str, str]) -> None:
        self.config = config
        self._registry = registry
        self._environ = environ
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()
        self.gateway: Gateway
        self._site: Site
        self._ingest: EdgeHTTPServer | FastServer
        self._admin: EdgeHTTPServer

    async def serve(self, announce: Announce) -> int:
        """Start, serve until a signal asks to stop, drain. Raises what keeps the gateway from starting."""
        # Before anything is opened: a signal during the start is a drain right after it, not a death in the middle.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, lambda: None)
        ingest_sockets, admin_sockets = self._bind()
        try:
            started = await self.start(ingest_sockets, admin_sockets)
        except BaseException:
            for sock in (*ingest_sockets, *admin_sockets):
                sock.close()
            raise
        loop.add_signal_handler(signal.SIGHUP, self._spawn_reload)
        announce(started)
        await self._stop.wait()
        await self.drain()
        return EXIT_OK

    def _bind(self) -> tuple[list[socket.socket], list[socket.socket]]:
        ingest_sockets = listen(self.config.server.listen)
        try:
            return ingest_sockets, listen(self.config.admin.listen)
        except BaseException:
            for sock in ingest_sockets:
                sock.close()
            raise

    async def start(self, ingest_sockets: list[socket.socket], admin_sockets: list[socket.socket]) -> Started:
        """Start the gateway, then accept connections on these sockets."""
        self.gateway = Gateway(self.config, self._registry, Metrics(CollectorRegistry()), SystemClock())
        server = self.config.server
        self._site = Site(self.gateway, http_plan(self.config, self.gateway), tls=server.tls is not None)
        self._ingest = ingest_server(ingest_application(self._site), server)
        self._admin = admin_server(admin_application(AdminSite(self.gateway, self.config.admin.token, self.reload)))
        self.gateway.metrics.sources["edge_http_connections"] = lambda: [((), float(self._ingest.open_connections))]
        await self.gateway.start()
        self._ingest.add_sockets(ingest_sockets)
        self._admin.add_sockets(admin_sockets)
        self._spawn(self._sweep_loop())
        started = Started(self.config, addresses_of(ingest_sockets), addresses_of(admin_sockets))
        log.info("the gateway is listening", ingest=started.ingest, admin=started.admin, sinks=len(self.config.sinks))
        return started

    def stop(self) -> None:
        """Begin to drain. Called a second time: wait for no sender any more, and give the sinks no time."""
        if self._stop.is_set():
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

    async def reload(self) -> None:
        """Read the configuration file again and put it in place; log and raise what is wrong: the old one goes on."""
        async with self._reloading:
            try:
                config = await asyncio.to_thread(load, self.config.source, self._registry, self._environ)
                plan = http_plan(config, self.gateway, self._site.plan)
                await self.gateway.reload(config, lambda: self._swap(config, plan))
            except ConfigError as error:
                self.gateway.reload_failed()
                for problem in error.problems:
                    log.error("the new configuration is wrong; the old one goes on", problem=str(problem))
                raise
            except (Exception, SystemExit) as error:
                log.error("the new configuration cannot be used; the old one goes on", error=str(error))
                if isinstance(error, EdgeError | OSError):
                    raise
                raise EdgeError(f"{type(error).__name__}: {error}") from error
        logs.configure(config.log.level, config.log.format)
        _warn(config)
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
            except Exception:
                log.exception("looking for slow senders failed; it is tried again")

    async def drain(self) -> None:
        """Finish what was accepted, then stop: not ready, last answers, last commit, sinks within the time-out."""
        server = self.config.server
        self.gateway.draining = True
        log.info("draining", pre_stop_secs=server.pre_stop_secs, drain_timeout_secs=server.drain_timeout_secs)
        with suppress(TimeoutError):
            async with asyncio.timeout(server.pre_stop_secs):
                await self._hurry.wait()
        deadline = asyncio.get_running_loop().time() + server.drain_timeout_secs

        def secs_left() -> float:
            return 0.0 if self._hurry.is_set() else max(0.0, deadline - asyncio.get_running_loop().time())

        self._site.closing = True
        self._ingest.stop()
        if not await wait_until_idle(self._site.in_flight, secs_left):
            log.warning("requests were still arriving when the drain time was up", requests=len(self._site.in_flight))
        for task in self._tasks:
            task.cancel()
        await self.gateway.drain(secs_left)
        self._admin.stop()
        for listener in (self._ingest, self._admin):
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_CONNECTIONS_SECS):
                    await listener.close_all_connections()
        _remove_sockets((*server.listen, *self.config.admin.listen))
        log.info("stopped", pending_events={item.id: item.pending_events for item in self.gateway.last_snapshots})


def _remove_sockets(addresses: Iterable[str]) -> None:
    """Remove the files of unix sockets: a file nobody listens on looks like a gateway that hangs."""
    for address in addresses:
        if address.startswith("unix:"):
            Path(address.removeprefix("unix:")).unlink(missing_ok=True)
