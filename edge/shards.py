"""The shards of the spool that one process delivers: its own, those that other processes write, and orphans.

An orphan is a shard that no process of this gateway writes: there were more workers once. Whoever delivers takes it by
its lock, delivers what is left in it, and lets it go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path

import structlog

from edge.api import EdgeError
from edge.binding import BoundSink
from edge.books import Books
from edge.clock import Clock
from edge.config.model import GatewayConfig, SinkConfig, Spool
from edge.delivery.shared import SinkPool
from edge.delivery.worker import SinkSnapshot
from edge.roles import SHARD, Role, shard_names
from edge.spool.capacity import default_capacity
from edge.spool.cursor import Cursor, CursorFile, forget_cursor
from edge.spool.errors import SpoolLockedError
from edge.spool.follower import Follower
from edge.spool.format import SEGMENT_HEADER_BYTES
from edge.spool.log import Log
from edge.spool.observer import LogObserver
from edge.spool.seam import Seam
from edge.workers import Prepared, Workers

log = structlog.get_logger(__name__)

START_LOOK_SECS = 0.02
LOOK_SECS = 1.0
ORPHAN_LOOKS = 5
"""Orphans are looked for at every so many looks: another process may hold one and end."""
ORPHAN_SEGMENT_BYTES = 64 * 1024
"""Nothing is appended to an orphan; its log allocates as little room as may be."""
ORPHAN_MAX_BYTES = 1 << 62
DROP_SECS = 5.0
"""How long an ingest process waits for the delivery process to give events up."""
DROP_LOOK_SECS = 0.02


class Shard:
    """One shard that is delivered here: where its frames come from, and the sinks' workers on it."""

    def __init__(self, name: str, source: Log | Follower, workers: Workers) -> None:
        self.name = name
        self.source = source
        self.workers = workers
        self.has_begun = False
        """Every sink has its worker: before, nobody knows what a sink still needs."""

    async def release(self) -> None:
        """Have segments let go that every sink is durably past, by who owns them."""
        if not self.has_begun:
            return
        position = self.workers.release_position
        if isinstance(self.source, Log):
            await asyncio.to_thread(self.source.release, position)
        else:
            self.source.seam.released = max(self.source.seam.released, position)
            await asyncio.to_thread(self.source.let_go)

    async def make_way(self) -> None:
        """Give up what the owner has no room for, as far as sinks may lose it."""
        if (
            self.has_begun
            and isinstance(self.source, Follower)
            and (wish := self.source.seam.wish) > self.source.seam.released
        ):
            await self.workers.drop_before(wish)
            await self.release()

    async def close(self) -> None:
        """Let go of the shard."""
        if isinstance(self.source, Log):
            await self.source.close()
        else:
            self.source.close()


class RemoteSinks:
    """The sinks as an ingest process knows them: by what the delivery process says at the seam."""

    def __init__(self, seam: Seam, clock: Clock) -> None:
        self._seam = seam
        self._clock = clock

    @property
    def release_position(self) -> int:
        """The position that every sink is durably past."""
        return self._seam.released

    async def drop_before(self, position: int) -> bool:
        """Have every sink durably past a position, those that are not required by giving events up."""
        self._seam.wish = position
        deadline = self._clock.monotonic() + DROP_SECS
        try:
            while self._seam.released < position and self._clock.monotonic() < deadline:  # noqa: ASYNC110 - another process does it
                await asyncio.sleep(DROP_LOOK_SECS)
        finally:
            self._seam.wish = 0
        return self._seam.released >= position


class Shards:
    """All shards that one process delivers. Used on the event loop."""

    def __init__(self, config: GatewayConfig, role: Role, books: Books, clock: Clock, changing: asyncio.Lock) -> None:
        self._root = config.spool.path
        self._letters = config.dead_letters
        self._retain_secs = config.spool.retain_secs
        self._books = books
        self._clock = clock
        self._role = role
        self._changing = changing
        """Held while the sinks are being replaced: no shard begins with sinks that are on their way out."""
        self._pool = SinkPool(config.dead_letters)
        self._sinks: Sequence[tuple[BoundSink, SinkConfig]] = ()
        self._shards: dict[str, Shard] = {}
        self._awaited = dict(role.followed)
        self._making_way: dict[str, asyncio.Task[None]] = {}
        self._past: set[str] = set()
        """Orphans that were found empty, or have been emptied."""

    def own(self, log: Log) -> None:
        """Deliver the shard whose log this process owns."""
        name = self._role.shard
        self._shards[name] = self._shard(name, log)

    @property
    def main(self) -> Workers:
        """The workers on the process's own shard: every configured sink has one there."""
        return self._shards[self._role.shard].workers

    def source(self, name: str) -> Log | Follower | None:
        """Return where the frames of a shard come from; None for a shard that is not delivered here."""
        shard = self._shards.get(name)
        return None if shard is None else shard.source

    def workers(self, name: str) -> Workers | None:
        """Return the sinks' workers on a shard; None for a shard that is not delivered here."""
        shard = self._shards.get(name)
        return None if shard is None else shard.workers

    @property
    def missing(self) -> list[str]:
        """Shards whose process has not opened its log yet."""
        return sorted(self._awaited)

    def logs(self) -> list[Log]:
        """Return the logs that this process owns."""
        return [shard.source for shard in self._shards.values() if isinstance(shard.source, Log)]

    def prepare(self, sinks: Sequence[tuple[BoundSink, SinkConfig]]) -> list[tuple[Shard, list[Prepared]]]:
        """Make the files of the sinks that are new or changed, on every shard. Blocks; raises what the disk says."""
        return [(shard, shard.workers.prepare(sinks)) for shard in self._shards.values()]

    async def replace(
        self,
        prepared: Sequence[tuple[Shard, list[Prepared]]],
        sinks: Sequence[tuple[BoundSink, SinkConfig]],
        timeout_secs: float,
    ) -> None:
        """Start what was prepared in the place of its predecessors, on every shard."""
        self._sinks = sinks
        wanted = [config for _, config in sinks]
        begun = await asyncio.gather(*(shard.workers.replace(items, wanted, timeout_secs) for shard, items in prepared))
        for (shard, _), has_begun in zip(prepared, begun, strict=True):
            shard.has_begun = has_begun

    async def stop(self, timeout_secs: float) -> None:
        """Let every sink deliver what is pending within the time given, then stop it, on all shards at once."""
        await asyncio.gather(*(shard.workers.stop(timeout_secs) for shard in self._shards.values()))

    async def close(self) -> None:
        """Let go of all shards but the process's own."""
        for task in self._making_way.values():
            task.cancel()
        for name in [name for name in self._shards if name != self._role.shard]:
            await self._shards[name].close()

    async def release(self) -> None:
        """Have segments let go that every sink is durably past."""
        for shard in tuple(self._shards.values()):
            await shard.release()

    def remind(self) -> None:
        """Let every sink say what its log lines have held back."""
        for shard in self._shards.values():
            shard.workers.remind()

    def snapshots(self) -> list[SinkSnapshot]:
        """Return the state of every sink, all shards together."""
        found: dict[str, list[SinkSnapshot]] = {}
        for shard in self._shards.values():
            for snapshot in shard.workers.snapshots():
                found.setdefault(snapshot.id, []).append(snapshot)
        return [_together(parts) for parts in found.values()]

    @property
    def unaccounted(self) -> int:
        """Events that a cursor has passed and no count of it knows, or the other way round."""
        cursors = [snapshot.cursor for shard in self._shards.values() for snapshot in shard.workers.snapshots()]
        return sum(abs(cursor.position - cursor.base - cursor.settled_events) for cursor in cursors)

    async def watch(self) -> None:
        """Begin with shards whose process has come up, and with orphans; end those that are empty. Until cancelled."""
        looks = 0
        while True:
            try:
                await self._begin_awaited()
                await self._begin_again()
                if not self._awaited:
                    if looks % ORPHAN_LOOKS == 0:
                        await self._adopt()
                    looks += 1
                    await self._end_empty()
            except Exception:
                log.exception("periodic work failed; it is tried again", work="watch_shards")
            await self._clock.sleep(START_LOOK_SECS if self._awaited else LOOK_SECS)

    async def _begin_awaited(self) -> None:
        for name, seam in tuple(self._awaited.items()):
            if seam.generation:
                follower = await asyncio.to_thread(Follower, self._root / name, seam, self._books)
                follower.start(asyncio.get_running_loop())
                await self._begin(name, follower)
                del self._awaited[name]

    async def _begin_again(self) -> None:
        """Start the workers that could not be started: until all are there, nothing of the shard is released."""
        async with self._changing:
            for shard in [shard for shard in self._shards.values() if not shard.has_begun]:
                prepared = await asyncio.to_thread(shard.workers.prepare, self._sinks)
                shard.has_begun = await shard.workers.replace(prepared, [config for _, config in self._sinks], 0)

    async def _begin(self, name: str, source: Log | Follower) -> None:
        """Start the sinks' workers on a shard."""
        shard = self._shard(name, source)
        async with self._changing:
            self._shards[name] = shard  # at once: a drain that comes now is to find it
            try:
                prepared = await asyncio.to_thread(shard.workers.prepare, self._sinks)
                shard.has_begun = await shard.workers.replace(prepared, [config for _, config in self._sinks], 0)
            except Exception:
                del self._shards[name]
                await shard.close()
                raise
        if isinstance(source, Follower):
            source.on_wish = lambda: self._make_way(shard)

    def _make_way(self, shard: Shard) -> None:
        task = self._making_way.get(shard.name)
        if task is None or task.done():
            self._making_way[shard.name] = asyncio.create_task(shard.make_way())

    async def _adopt(self) -> None:
        """Take the orphans whose lock is free and in which there is something."""
        mine = {self._role.shard, *self._role.followed}
        for name in await asyncio.to_thread(shard_names, self._root):
            if name in mine or name in self._shards or name in self._past:
                continue
            if not await asyncio.to_thread(_holds_events, self._root / name):
                self._past.add(name)
                continue
            try:
                orphan = await asyncio.to_thread(self._open_orphan, name)
            except SpoolLockedError:
                continue  # of a process that has not ended yet
            except EdgeError as error:
                self._past.add(name)
                log.error("a shard that no process writes cannot be opened", shard=name, error=str(error))
                continue
            orphan.start(asyncio.get_running_loop())
            log.info("a shard that no process writes is delivered", shard=name, events=_n_events(orphan))
            await self._begin(name, orphan)

    def _open_orphan(self, name: str) -> Log:
        return Log.open(
            self._root / name,
            shard=name,
            segment_bytes=ORPHAN_SEGMENT_BYTES,
            max_bytes=ORPHAN_MAX_BYTES,
            retain_secs=self._retain_secs,
            observer=self._books,
        )

    async def _end_empty(self) -> None:
        """Let go of the orphans that hold nothing any more."""
        for name, shard in tuple(self._shards.items()):
            if name == self._role.shard or not isinstance(shard.source, Log):
                continue
            await shard.release()
            if _n_events(shard.source) or shard.workers.release_position < shard.source.durable_seq:
                continue
            async with self._changing:
                del self._shards[name]
                self._past.add(name)
                await shard.workers.stop(0)
                await shard.close()
            log.info("a shard that no process writes is empty now", shard=name)

    def _shard(self, name: str, source: Log | Follower) -> Shard:
        workers = Workers(source, self._root / name, self._letters, self._books.delivery, self._clock, pool=self._pool)
        return Shard(name, source, workers)


def open_spool(
    options: Spool,
    observer: LogObserver | None = None,
    *,
    retain_secs: float = 0.0,
    shard: str = SHARD,
    shares: int = 1,
    seam: Seam | None = None,
) -> Log:
    """Open a shard of the spool as it is configured, and nothing else of the gateway. Blocks, raises like `Log.open`.

    `retain_secs` counts where it is longer than the configured one. The shard may take one of so many `shares` of the
    room, and two segments at least.
    """
    path = options.path / shard
    max_bytes = options.max_bytes
    if max_bytes is None:
        max_bytes = default_capacity(path, options.segment_bytes)
    return Log.open(
        path,
        shard=shard,
        segment_bytes=options.segment_bytes,
        max_bytes=max_bytes if shares == 1 else max(max_bytes // shares, 2 * options.segment_bytes),
        durability=options.durability,
        retain_secs=max(options.retain_secs, retain_secs),
        observer=observer,
        seam=seam,
    )


def forget_everywhere(spool: Path, sink_id: str) -> bool:
    """Remove the cursors of a sink on all shards; return whether there was one."""
    return sum(forget_cursor(spool / shard, sink_id) for shard in shard_names(spool)) > 0


def begin_cursors(directory: Path, sinks: Sequence[str], position: int) -> None:
    """See to it that sinks which are new get what is stored from now on, although nobody reads for them yet. Blocks."""
    for sink in sinks:
        file = CursorFile(directory, sink)
        try:
            if file.load() is None and not file.is_damaged:
                file.save(Cursor(position=position, base=position))
        finally:
            file.close()


def _n_events(log: Log) -> int:
    return log.durable_seq - log.first_seq


def _holds_events(path: Path) -> bool:
    return any(item.stat().st_size > SEGMENT_HEADER_BYTES for item in path.glob("seg-*.log"))


def _together(parts: Sequence[SinkSnapshot]) -> SinkSnapshot:
    """Return the state of a sink, all its workers together."""
    if len(parts) == 1:
        return parts[0]
    cursors = [astuple(part.cursor) for part in parts]
    return replace(
        parts[0],
        open=all(part.open for part in parts),
        circuit=max(part.circuit for part in parts),
        pending_events=sum(part.pending_events for part in parts),
        oldest_pending_age_secs=max(part.oldest_pending_age_secs for part in parts),
        cursor=Cursor(*map(sum, zip(*cursors, strict=True))),
        durable_position=sum(part.durable_position for part in parts),
        last_error=next((part.last_error for part in parts if part.last_error), ""),
        retry_in_secs=max(part.retry_in_secs for part in parts),
    )
