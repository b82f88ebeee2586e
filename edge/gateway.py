"""The gateway without its listeners: registry, pipeline, spool and delivery, and how they start, reload and drain."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from edge.api import EdgeError
from edge.binding import Bound, Lifecycle, bind
from edge.books import Books
from edge.clock import Clock
from edge.config.model import GatewayConfig
from edge.dedup import Dedup
from edge.delivery.attempt import Caller
from edge.delivery.circuit import CircuitState
from edge.delivery.worker import SinkSnapshot, SinkWorker
from edge.door import Door
from edge.judging import Plan
from edge.metrics import Metrics, Samples
from edge.outcomes import AttemptResult
from edge.pipeline import Pipeline
from edge.registry import Registry
from edge.roles import SHARD, WHOLE, Role
from edge.room import Holders, RoomMaker
from edge.shards import RemoteSinks, Shards, begin_cursors, forget_everywhere, open_spool
from edge.spool.cursor import cursor_names, load_cursor
from edge.spool.log import Log
from edge.validation import EventValidator

log = structlog.get_logger(__name__)

__all__ = ["SHARD", "Check", "ConfiguredSinkError", "Gateway", "ReloadError", "open_spool", "refuse_fixed"]

RELEASE_EVERY_SECS = 1.0
LAG_EVERY_SECS = 0.5
OPEN_TIMEOUT_SECS = 10.0
CLOSE_TIMEOUT_SECS = 5.0
CLOSE_LEAST_SECS = 0.5
"""What closing gets even when the drain's time is used up."""

FIXED_AT_RELOAD = (
    "server.listen",
    "server.http",
    "server.workers",
    "server.tls",
    "server.limits.connections",
    "server.limits.header_bytes",
    "server.limits.idle_secs",
    "admin",
    "spool",
    "dead_letters",
    "dedup",
)
"""What a reload cannot change: it is held by sockets, files and locks. A restart can."""


class ReloadError(EdgeError):
    """A new configuration that cannot take the place of the running one. The old one goes on."""


class ConfiguredSinkError(EdgeError):
    """The cursor of a sink that is configured is not to be removed."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of readiness."""

    name: str
    ok: bool
    detail: str = ""


class Gateway:
    """What one process does between door and sinks: all of it, or the part of its role.

    Owned by whoever runs the event loop. Its configurations are those of its role (`Role.of`).
    """

    def __init__(
        self, config: GatewayConfig, registry: Registry, metrics: Metrics, clock: Clock, role: Role = WHOLE
    ) -> None:
        self.config = config
        self.role = role
        self.metrics = metrics
        self.clock = clock
        self.draining = False
        self._registry = registry
        self._books = Books(metrics)
        self._bound: Bound = bind(role.parts(config), registry)
        self._tasks: list[asyncio.Task[None]] = []
        self._reloading = asyncio.Lock()
        self.last_snapshots: list[SinkSnapshot] = []
        """The state of every sink when the drain ended."""
        dedup = config.dedup
        self._dedup = Dedup(dedup.window_secs, dedup.window_events, clock) if dedup.enabled else None
        self._spool: Log
        self.shards = Shards(config, role, self._books, clock, self._reloading)
        """What this process delivers; nothing in an ingest process."""
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
        self._spool = await asyncio.to_thread(
            open_spool,
            self.config.spool,
            self._books,
            retain_secs=self._dedup_secs,
            shard=self.role.shard,
            shares=self.config.server.workers + 1 if self.role.seams else 1,
            seam=self.role.seam,
        )
        self._spool.start(asyncio.get_running_loop())
        try:
            holders = await self._holders()
            prepared = await asyncio.to_thread(self.shards.prepare, self._bound.sinks)
            await self._open_all(self._bound.lifecycles)
        except BaseException:
            await self._spool.close()
            raise
        self.door = Door(self._plan(self.config, self._bound), self._spool, self._books, self._dedup)
        await self.shards.replace(prepared, self._bound.sinks, 0)
        self._books.begin(self._bound)
        self._publish_gauges()
        self._books.loaded(self.clock.time())
        room = RoomMaker(self._spool, holders)
        await room.make()  # a spool that was full when it was opened: before anybody is refused
        self._tasks = [
            asyncio.create_task(room.run()),
            asyncio.create_task(_every(self.clock, RELEASE_EVERY_SECS, self._release)),
            asyncio.create_task(self._lag_loop()),
        ]
        if self.role.delivers:
            self._tasks.append(asyncio.create_task(self.shards.watch()))
        if self._dedup is not None:
            self._tasks.append(asyncio.create_task(self._dedup.load(self._spool)))

    async def _holders(self) -> Holders:
        """Return who needs what is in the spool: the sinks, which are here or behind the seam."""
        path = self.config.spool.path / self.role.shard
        seam = self.role.seam
        if seam is None:
            await asyncio.to_thread(self._report_orphans, path)
            self.shards.own(self._spool)
            return self.shards.main
        # Before the first event is taken: nobody may be there yet to whom it would matter.
        sinks = [config.id for config in self.config.sinks]
        await asyncio.to_thread(begin_cursors, path, sinks, self._spool.durable_seq)
        seam.opened()
        return RemoteSinks(seam, self.clock)

    @property
    def _dedup_secs(self) -> float:
        """How long delivered segments stay for dedup: to know after a restart what was stored before it."""
        dedup = self.config.dedup
        return dedup.window_secs if dedup.enabled else 0.0

    def _report_orphans(self, path: Path) -> None:
        """Say which cursors are of no configured sink: they hold nothing in the spool, and wait for their sink."""
        configured = {config.id for config in self.config.sinks}
        behind: dict[str, int | None] = {}
        for name in cursor_names(path):
            if name not in configured:
                cursor = load_cursor(path, name)
                behind[name] = None if cursor is None else max(0, self._spool.durable_seq - cursor.position)
        if behind:
            log.info("the spool has cursors of sinks that are not configured", sinks_behind_events=behind)

    def _plan(self, config: GatewayConfig, bound: Bound) -> Plan:
        return Plan(
            validator=EventValidator(config.schema.unknown_fields, config.schema.required),
            pipeline=Pipeline(bound.steps, self._books),
            event_bytes=config.server.limits.event_bytes,
        )

    async def reload(self, config: GatewayConfig, swap: Callable[[], None] = lambda: None) -> None:
        """Put a new configuration in place of the running one; an error leaves the old one whole.

        Everything new is built and opened first; then what judges events is swapped as one object, and `swap` is called
        in the same breath, for what the caller has built. Sinks that did not change go on undisturbed; changed ones
        finish the attempt in hand and go on from their cursor.
        """
        async with self._reloading:
            try:
                await self._reload(config, swap)
            except BaseException:
                self._books.reload_failed()
                raise

    async def _reload(self, config: GatewayConfig, swap: Callable[[], None]) -> None:
        if self.draining:
            raise ReloadError("the gateway is draining")
        refuse_fixed(self.config, config)
        bound = bind(self.role.parts(config), self._registry)
        plan = self._plan(config, bound)
        prepared = await asyncio.to_thread(self.shards.prepare, bound.sinks)
        await self._open_all(bound.lifecycles)
        old_bound = self._bound
        self.config, self._bound, self.door.plan = config, bound, plan
        swap()
        self._books.begin(bound)
        await self.shards.replace(prepared, bound.sinks, config.server.drain_timeout_secs)
        await self._close_all(old_bound.lifecycles, CLOSE_TIMEOUT_SECS)
        self._books.loaded(self.clock.time())

    async def forget(self, sink_id: str) -> bool:
        """Remove the cursor of a sink that is not configured; return whether there was one.

        `ConfiguredSinkError` for one that is, `OSError` when the disk refuses.
        """
        async with self._reloading:  # no reload may bring the sink back meanwhile
            if self.worker(sink_id) is not None or any(sink_id == config.id for config in self.config.sinks):
                raise ConfiguredSinkError("is configured in the running gateway; take it out and reload first")
            return await asyncio.to_thread(forget_everywhere, self.config.spool.path, sink_id)

    async def _open_all(self, lifecycles: Sequence[Lifecycle]) -> None:
        """Open enrichers and filters; when one cannot be opened, close those that were and raise."""
        for index, lifecycle in enumerate(lifecycles):
            answer = await Caller().call(lifecycle.open, OPEN_TIMEOUT_SECS)
            if answer.result is not AttemptResult.OK:
                await self._close_all(lifecycles[: index + 1], CLOSE_TIMEOUT_SECS)
                raise EdgeError(f"{lifecycle.id} cannot be opened: {answer.text or 'it was cancelled'}")

    async def _close_all(self, lifecycles: Sequence[Lifecycle], timeout_secs: float) -> None:
        answers = await asyncio.gather(*(Caller().call(lifecycle.close, timeout_secs) for lifecycle in lifecycles))
        for lifecycle, answer in zip(lifecycles, answers, strict=True):
            if answer.result is not AttemptResult.OK:
                log.error("a component failed to close", component=lifecycle.id, error=answer.text)

    async def drain(self, secs_left: Callable[[], float]) -> None:
        """Stop the sinks within the time left, then close the spool. What is not delivered stays in the spool.

        Called once, when every request has its answer: what was accepted is durable by then. Ends in time whatever
        sinks, components or the disk do; what would not end is abandoned to the end of the process.
        """
        self.draining = True
        with suppress(TimeoutError):
            # A reload in progress may end; one that does not is not waited for.
            async with asyncio.timeout(secs_left()):
                await self._reloading.acquire()
        if self._dedup is not None:
            self._dedup.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.shards.stop(secs_left())
        self.last_snapshots = self.snapshots()
        await self._close_all(self._bound.lifecycles, max(CLOSE_LEAST_SECS, min(CLOSE_TIMEOUT_SECS, secs_left())))
        closing = asyncio.create_task(self._close_spool())
        await asyncio.wait({closing}, timeout=max(CLOSE_LEAST_SECS, secs_left()))
        if not closing.done():
            log.error("the disk does not answer; the gateway stops without closing the spool")

    async def _close_spool(self) -> None:
        await self.shards.close()
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
        if self._dedup is not None:
            is_ready = self._dedup.is_ready
            checks.append(Check("dedup", is_ready, "" if is_ready else "the ids of stored events are being read back"))
        snapshots = {snapshot.id: snapshot for snapshot in self.snapshots()}
        for config in self.config.sinks if self.role.delivers else ():
            if config.required:
                snapshot = snapshots.get(config.id)
                ok = snapshot is not None and snapshot.open and snapshot.circuit == CircuitState.CLOSED
                detail = "it is not running" if snapshot is None else snapshot.last_error
                checks.append(Check(f"sink:{config.id}", ok, "" if ok else detail))
        return checks

    @property
    def unaccounted(self) -> int:
        """Events without an outcome: at the door, between door and spool, at every sink. 0 while the books balance."""
        return abs(self.door.unaccounted) + self._unstored + self.shards.unaccounted

    @property
    def _unstored(self) -> int:
        """By how much the events the door calls accepted and those the spool has taken differ.

        Events in flight may be in the spool already while their waiter has not been told; they are allowed for. With
        durability `memory` the door answers first, and there is nothing to compare.
        """
        if self.config.spool.durability == "memory":
            return 0
        stats = self._spool.stats()
        surplus = stats.appended_events - stats.late_events - self.door.stored
        return max(0, surplus - self.door.in_flight, -surplus)

    def _publish_gauges(self) -> None:
        """Let the scraped gauges be read from this gateway."""

        def of_sinks(attribute: str) -> Callable[[], Samples]:
            return lambda: [((item.id,), float(getattr(item, attribute))) for item in self.snapshots()]

        def of_spool(attribute: str) -> Callable[[], Samples]:
            # In an ingest process it is its own log; who delivers adds up what it owns.
            return lambda: [
                ((), float(sum(getattr(log.stats(), attribute) for log in self.shards.logs() or [self._spool])))
            ]

        self.metrics.sources.update(
            {
                "edge_spool_bytes": of_spool("bytes"),
                "edge_spool_capacity_bytes": of_spool("capacity_bytes"),
                "edge_spool_segments": of_spool("segments"),
                "edge_spool_behind_cursor_events": lambda: [((), float(self._spool.recovery.behind_cursor_events))],
                "edge_dedup_ids": lambda: [] if self._dedup is None else [((), float(len(self._dedup)))],
                "edge_sink_pending_events": of_sinks("pending_events"),
                "edge_sink_oldest_pending_age_seconds": of_sinks("oldest_pending_age_secs"),
                "edge_sink_circuit_state": of_sinks("circuit"),
                "edge_dead_letters": of_sinks("dead_letters"),
                "edge_dead_letters_evicted": of_sinks("dead_letters_evicted"),
                "edge_events_unaccounted": lambda: [((), float(self.unaccounted))],
            }
        )

    def snapshots(self) -> list[SinkSnapshot]:
        """Return the state of every sink."""
        return self.shards.snapshots()

    def worker(self, sink_id: str) -> SinkWorker | None:
        """Return the worker of a sink on this process's own shard: every sink that is configured has one."""
        return self.shards.main.get(sink_id)

    async def _release(self) -> None:
        """Let go of segments that every sink is durably past, and that are not being read for their ids.

        Before that, the sinks say what their log lines have held back.
        """
        self.shards.remind()
        if self._dedup is not None and not self._dedup.is_ready:
            return
        if self.role.seam is not None:
            await asyncio.to_thread(self._spool.release, self.role.seam.released)
        await self.shards.release()

    async def _lag_loop(self) -> None:
        """Measure how late the event loop runs a timer."""
        while True:
            due = self.clock.monotonic() + LAG_EVERY_SECS
            await self.clock.sleep(LAG_EVERY_SECS)
            self._books.loop_lag(max(0.0, self.clock.monotonic() - due))


async def _every(clock: Clock, secs: float, work: Callable[[], Awaitable[None]]) -> None:
    """Do something again and again; whatever it raises is logged and does not end it."""
    while True:
        await clock.sleep(secs)
        try:
            await work()
        except Exception:
            log.exception("periodic work failed; it is tried again", work=work.__name__)


def refuse_fixed(old: GatewayConfig, new: GatewayConfig) -> None:
    """Raise `ReloadError` when a configuration differs in what a reload cannot change."""
    for name in FIXED_AT_RELOAD:
        before, after = old, new
        for part in name.split("."):
            before, after = getattr(before, part), getattr(after, part)
        if before != after:
            raise ReloadError(f"{name} cannot change at a reload; restart the gateway")
