"""The gateway without its listeners: registry, pipeline, spool and delivery, and how they start, reload and drain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from edge.api import EdgeError
from edge.binding import Bound, BoundSink, Lifecycle, bind
from edge.books import Books
from edge.clock import Clock
from edge.config.model import GatewayConfig, SinkConfig
from edge.delivery.dead_letters import DeadLetterStore
from edge.delivery.worker import SinkSnapshot, SinkWorker
from edge.door import Door, Plan
from edge.metrics import Metrics, Samples
from edge.pipeline import Pipeline
from edge.registry import Registry
from edge.spool.cursor import CursorFile
from edge.spool.log import Log
from edge.validation import EventValidator

log = structlog.get_logger(__name__)

SHARD = "shard-000"
RELEASE_EVERY_SECS = 1.0
LAG_EVERY_SECS = 0.5
OPEN_TIMEOUT_SECS = 10.0
CLOSE_TIMEOUT_SECS = 5.0

FIXED_AT_RELOAD = ("server.listen", "server.tls", "server.workers", "admin.listen", "spool", "dead_letters")
"""What a reload cannot change: it is held by sockets, files and locks. A restart can."""


class ReloadError(EdgeError):
    """A new configuration that cannot take the place of the running one. The old one goes on."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of readiness."""

    name: str
    ok: bool
    detail: str = ""


class Gateway:
    """One ingest and delivery process, from the door to the sinks. Owned by whoever runs the event loop."""

    def __init__(self, config: GatewayConfig, registry: Registry, metrics: Metrics, clock: Clock) -> None:
        self.config = config
        self.metrics = metrics
        self.clock = clock
        self.draining = False
        self._registry = registry
        self._books = Books(metrics)
        self._bound: Bound = bind(config, registry)
        self._workers: dict[str, SinkWorker] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._reloading = asyncio.Lock()
        self.last_snapshots: list[SinkSnapshot] = []
        """The state of every sink when the drain ended."""
        self._spool: Log
        self.door: Door

    @property
    def wanted_headers(self) -> tuple[str, ...]:
        """Names of the request headers that some component reads, in lower case."""
        return self._bound.wanted_headers

    @property
    def spool(self) -> Log:
        """The spool of this process."""
        return self._spool

    async def start(self) -> None:
        """Open the spool and the components and begin to deliver. `EdgeError` or `OSError` when that cannot be done.

        Sinks are opened in the background: one that is down never keeps the gateway from accepting.
        """
        options = self.config.spool
        path = options.path / SHARD
        self._spool = await asyncio.to_thread(
            Log.open,
            path,
            shard=SHARD,
            segment_bytes=options.segment_bytes,
            max_bytes=options.max_bytes,
            durability=options.durability,
            retain_secs=options.retain_secs,
            observer=self._books,
        )
        self._spool.start(asyncio.get_running_loop())
        try:
            await self._open_all(self._bound.lifecycles)
        except BaseException:
            await self._spool.close()
            raise
        self.door = Door(self._plan(self.config, self._bound), self._spool, self._books)
        self._start_workers(self._bound.sinks)
        self._publish_gauges()
        self._books.loaded(self.clock.time())
        self._tasks = [asyncio.create_task(self._release_loop()), asyncio.create_task(self._lag_loop())]

    def _plan(self, config: GatewayConfig, bound: Bound) -> Plan:
        return Plan(
            validator=EventValidator(config.schema.unknown_fields, config.schema.required),
            pipeline=Pipeline(bound.steps, self._books),
            event_bytes=config.server.limits.event_bytes,
        )

    def _start_workers(self, sinks: Sequence[tuple[BoundSink, SinkConfig]]) -> None:
        for sink, config in sinks:
            store = None
            if config.dead_letter:
                letters = self.config.dead_letters
                store = DeadLetterStore(
                    letters.path, config.id, segment_bytes=letters.segment_bytes, max_bytes=letters.max_bytes
                )
            cursor_file = CursorFile(self.config.spool.path / SHARD, config.id)
            worker = SinkWorker(sink, config, self._spool, cursor_file, store, self._books.delivery, self.clock)
            self._workers[config.id] = worker
            worker.start()

    async def reload(self, config: GatewayConfig) -> None:
        """Put a new configuration in place of the running one; `ReloadError` (or another) leaves the old one whole.

        Everything new is built and opened first; then what judges events is swapped as one object. Sinks that did
        not change go on undisturbed; changed ones stop at a batch's end and go on from their cursor.
        """
        async with self._reloading:
            try:
                await self._reload(config)
            except Exception:
                self._books.reload_failed()
                raise

    async def _reload(self, config: GatewayConfig) -> None:
        if self.draining:
            raise ReloadError("the gateway is draining")
        _refuse_fixed(self.config, config)
        bound = bind(config, self._registry)
        await self._open_all(bound.lifecycles)
        plan = self._plan(config, bound)
        old_config, old_bound = self.config, self._bound
        self.config, self._bound, self.door.plan = config, bound, plan
        before = {item.id: _identity(item) for item in old_config.sinks}
        after = {item.id: _identity(item) for item in config.sinks}
        gone = [name for name in before if after.get(name) != before[name]]
        await asyncio.gather(*(self._stop_worker(name, config.server.drain_timeout_secs) for name in gone))
        self._start_workers([(sink, item) for sink, item in bound.sinks if item.id not in self._workers])
        await self._close_all(old_bound.lifecycles)
        self._books.loaded(self.clock.time())

    async def _stop_worker(self, name: str, timeout_secs: float) -> None:
        worker = self._workers[name]
        await worker.stop(timeout_secs)
        del self._workers[name]

    async def _open_all(self, lifecycles: Sequence[Lifecycle]) -> None:
        """Open enrichers and filters; when one cannot be opened, close those that were and raise."""
        for index, lifecycle in enumerate(lifecycles):
            try:
                async with asyncio.timeout(OPEN_TIMEOUT_SECS):
                    await lifecycle.open()
            except Exception as error:
                await self._close_all(lifecycles[: index + 1])
                raise EdgeError(f"{lifecycle.id} cannot be opened: {type(error).__name__}: {error}") from error

    async def _close_all(self, lifecycles: Sequence[Lifecycle]) -> None:
        for lifecycle in lifecycles:
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT_SECS):
                    await lifecycle.close()
            except Exception:
                log.exception("a component failed to close", component=lifecycle.id)

    async def drain(self, timeout_secs: float) -> None:
        """Stop the sinks within the time given, then close the spool. What is not delivered stays in the spool.

        Called once, when every request has its answer: what was accepted is durable by then.
        """
        self.draining = True
        async with self._reloading:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            workers = list(self._workers.values())
            await asyncio.gather(*(self._stop_worker(worker.id, timeout_secs) for worker in workers))
            self.last_snapshots = [worker.snapshot() for worker in workers]
            await self._close_all(self._bound.lifecycles)
            await self._spool.close()

    def reload_failed(self) -> None:
        """Count a reload whose configuration could not even be read."""
        self._books.reload_failed()

    def checks(self) -> list[Check]:
        """Return what readiness depends on: the spool can be written, required sinks are open, no drain is on."""
        stats = self._spool.stats()
        checks = [
            Check("spool", stats.writable, stats.reason),
            Check("draining", not self.draining, "the gateway is stopping" if self.draining else ""),
        ]
        for snapshot in self.snapshots():
            if snapshot.required:
                ok = snapshot.open and snapshot.circuit != 2
                checks.append(Check(f"sink:{snapshot.id}", ok, "" if ok else snapshot.last_error))
        return checks

    @property
    def unaccounted(self) -> int:
        """Events without an outcome, at the door and at every sink together; 0 while the books balance."""
        total = abs(self.door.unaccounted)
        for snapshot in self.snapshots():
            cursor = snapshot.cursor
            settled = cursor.delivered + cursor.dead_lettered + cursor.skipped + cursor.lost
            total += abs(cursor.position - cursor.base - settled)
        return total

    def _publish_gauges(self) -> None:
        """Let the scraped gauges be read from this gateway."""

        def of_sinks(attribute: str) -> Callable[[], Samples]:
            return lambda: [((item.id,), float(getattr(item, attribute))) for item in self.snapshots()]

        def of_spool(attribute: str) -> Callable[[], Samples]:
            return lambda: [((), float(getattr(self._spool.stats(), attribute)))]

        self.metrics.sources.update(
            {
                "edge_spool_bytes": of_spool("bytes"),
                "edge_spool_capacity_bytes": of_spool("capacity_bytes"),
                "edge_spool_segments": of_spool("segments"),
                "edge_sink_pending_events": of_sinks("pending_events"),
                "edge_sink_oldest_pending_age_seconds": of_sinks("oldest_pending_age_secs"),
                "edge_sink_circuit_state": of_sinks("circuit"),
                "edge_dead_letters": of_sinks("dead_letters"),
                "edge_events_unaccounted": lambda: [((), float(self.unaccounted))],
            }
        )

    def snapshots(self) -> list[SinkSnapshot]:
        """Return the state of every sink."""
        return [worker.snapshot() for worker in self._workers.values()]

    def worker(self, sink_id: str) -> SinkWorker | None:
        """Return the worker of a sink."""
        return self._workers.get(sink_id)

    async def _release_loop(self) -> None:
        """Let go of segments that every sink is durably past."""
        while True:
            await self.clock.sleep(RELEASE_EVERY_SECS)
            position = min((worker.durable_position for worker in self._workers.values()), default=0)
            try:
                await asyncio.to_thread(self._spool.release, position)
            except OSError as error:
                log.error("spool segments cannot be deleted", error=str(error))

    async def _lag_loop(self) -> None:
        """Measure how late the event loop runs a timer."""
        while True:
            due = self.clock.monotonic() + LAG_EVERY_SECS
            await self.clock.sleep(LAG_EVERY_SECS)
            self._books.loop_lag(max(0.0, self.clock.monotonic() - due))


def _identity(config: SinkConfig) -> object:
    """Return what makes a sink the same across a reload: everything but the compiled condition and the place."""
    return replace(config, component=replace(config.component, when=None, where=""))


def _refuse_fixed(old: GatewayConfig, new: GatewayConfig) -> None:
    for name in FIXED_AT_RELOAD:
        before, after = old, new
        for part in name.split("."):
            before, after = getattr(before, part), getattr(after, part)
        if before != after:
            raise ReloadError(f"{name} cannot change at a reload; restart the gateway")
