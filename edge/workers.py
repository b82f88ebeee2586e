"""The sinks' workers on one shard of the spool: how they start, take each other's place at a reload, and stop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from edge.binding import BoundSink
from edge.clock import Clock
from edge.config.model import DeadLetters, SinkConfig
from edge.delivery.observer import DeliveryObserver
from edge.delivery.poison import FlightRecorder, RecordFile
from edge.delivery.shared import SinkPool, TurnCaller, identity
from edge.delivery.worker import SinkSnapshot, SinkWorker, Source
from edge.spool.cursor import CursorFile

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A sink whose files are there, ready to be started."""

    sink: BoundSink
    config: SinkConfig
    cursor_file: CursorFile
    recorder: FlightRecorder


class Workers:
    """One worker for each configured sink. Those of several shards share their sinks through one `pool`.

    A worker keeps its place, and with it its hold on the spool, until the one that replaces it has started: what a
    sink has not settled is never released in between.
    """

    def __init__(
        self,
        spool: Source,
        directory: Path,
        letters: DeadLetters,
        observer: DeliveryObserver,
        clock: Clock,
        pool: SinkPool | None = None,
    ) -> None:
        self._spool = spool
        self._directory = directory
        self._pool = pool or SinkPool(letters)
        self._observer = observer
        self._clock = clock
        self._workers: dict[str, SinkWorker] = {}
        self._configs: dict[str, SinkConfig] = {}

    def prepare(self, sinks: Iterable[tuple[BoundSink, SinkConfig]]) -> list[Prepared]:
        """Make the files of the sinks that are new or changed. Blocks; raises what the disk says."""
        return [
            Prepared(
                sink,
                config,
                CursorFile(self._directory, config.id),
                FlightRecorder(config.id, RecordFile(self._directory, config.id), self._pool.turn),
            )
            for sink, config in sinks
            if not self._is_running(config)
        ]

    def _is_running(self, config: SinkConfig) -> bool:
        before = self._configs.get(config.id)
        return before is not None and identity(before) == identity(config)

    async def replace(self, prepared: Sequence[Prepared], wanted: Sequence[SinkConfig], timeout_secs: float) -> bool:
        """Start what was prepared, each in the place of its predecessor, and stop what is not wanted any more.

        The predecessors finish the attempt in hand, within the time-out; the rest is their successors' work. One sink
        that fails to start is logged and stays stopped; it does not keep the others from their place. Returns whether
        every sink that is wanted has its worker.
        """
        ids = {config.id for config in wanted}
        gone = [name for name in self._workers if name not in ids]
        results = await asyncio.gather(
            *(self._start(item, timeout_secs) for item in prepared),
            *(self._remove(name, timeout_secs) for name in gone),
            return_exceptions=True,
        )
        for error in results:
            if isinstance(error, BaseException):
                log.error("a sink could not be started or stopped", exc_info=error)
        return all(self._is_running(config) for config in wanted)

    async def _start(self, item: Prepared, timeout_secs: float) -> None:
        shared, store = self._pool.sink(item.sink, item.config), self._pool.store(item.config)
        seat = shared.seat()
        before = self._workers.get(item.config.id)
        if before is not None:
            # Only now: a sink that only one worker had, and its dead letters, are closed by it.
            await before.stop(timeout_secs, deliver_pending=False)
        worker = SinkWorker(
            seat,
            item.config,
            self._spool,
            item.cursor_file,
            store,
            self._observer,
            self._clock,
            shard=self._directory.name,
            recorder=item.recorder,
            caller=TurnCaller(shared),
        )
        try:
            worker.start()
        except BaseException:
            # What others wait for, should they take its place, is not to be held by one that never began.
            await seat.close()
            if store is not None:
                await store.close()
            raise
        self._workers[item.config.id] = worker
        self._configs[item.config.id] = item.config

    async def _remove(self, name: str, timeout_secs: float) -> None:
        worker = self._workers[name]
        await worker.stop(timeout_secs, deliver_pending=False)
        pending = worker.snapshot().pending_events
        if pending:
            log.warning(
                "a sink was taken out of the configuration; what it has not settled goes when the others are past it",
                sink=name,
                pending_events=pending,
            )
        del self._workers[name], self._configs[name]

    async def stop(self, timeout_secs: float) -> None:
        """Let every sink deliver what is pending within the time given, then stop it. None waits for another."""
        stopping = (worker.stop(timeout_secs) for worker in self._workers.values())
        for error in await asyncio.gather(*stopping, return_exceptions=True):
            if isinstance(error, BaseException):
                log.error("a sink could not be stopped in order", exc_info=error)

    def remind(self) -> None:
        """Let every sink say what its log lines have held back."""
        for worker in self._workers.values():
            worker.remind()

    def get(self, sink_id: str) -> SinkWorker | None:
        """Return the worker of a sink."""
        return self._workers.get(sink_id)

    def snapshots(self) -> list[SinkSnapshot]:
        """Return the state of every sink that has a worker."""
        return [worker.snapshot() for worker in self._workers.values()]

    async def drop_before(self, position: int) -> bool:
        """Have every sink durably past a position, those that are not required by giving events up.

        Returns whether they are. Nothing is given up while a required sink still needs an event before the position.
        """
        behind = [worker for worker in self._workers.values() if worker.durable_position < position]
        if any(worker.required and worker.position < position for worker in behind):
            return False
        passing = (
            worker.save_past(position) if worker.position >= position else worker.drop_before(position)
            for worker in behind
        )
        return all(await asyncio.gather(*passing))

    @property
    def release_position(self) -> int:
        """The position that every sink is durably past."""
        return min((worker.durable_position for worker in self._workers.values()), default=0)
