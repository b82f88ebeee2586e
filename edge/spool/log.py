"""The log: what the gateway and the dead letters see of the spool."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from edge.spool.active import ActiveSegment, Shortage
from edge.spool.capacity import DEFAULT_BYTES
from edge.spool.cursor import cursor_names, load_cursor
from edge.spool.errors import SpoolClosedError, SpoolError, SpoolFailedError
from edge.spool.files import Files, create_directory, open_directory
from edge.spool.format import EVENTS, FRAME_EVENTS, KINDS
from edge.spool.lock import take_lock
from edge.spool.observer import LogObserver, SilentObserver
from edge.spool.quarantine import Quarantine
from edge.spool.queue import QUEUE_BYTES, AppendQueue, Entry, OnOutcome, decide
from edge.spool.reader import Reader, ReadResult
from edge.spool.recovery import Recovery, recover
from edge.spool.release import Releaser
from edge.spool.rewrite import RepairReport, Rewriter
from edge.spool.seam import Seam, SharedIndex
from edge.spool.segment import SegmentFiles, SegmentIndex
from edge.spool.writer import Durability, Writer

logger = structlog.get_logger(__name__)

SEGMENT_BYTES = 64 * 1024 * 1024
STALL_SECS = 5.0
STALL_LOOKS = 20
"""How many times within the limit waiters are looked for that have waited too long: one in twenty is what they wait
longer than it at most."""
LOOK_SECS = 1.0
GATHER_SECS = 0.002
"""How long frames are gathered for one commit while every turn of the loop brings more of them."""


@dataclass(frozen=True, slots=True)
class LogStats:
    """The state of a log at one moment; the counts are since the log was opened."""

    segments: int
    bytes: int
    """Room taken on disk by segments, allocated room included."""
    capacity_bytes: int
    corrupt_bytes: int
    lost_events: int
    """Events that were stored and cannot be read any more, as far as a reader has met them."""
    writable: bool
    reason: str
    """Why events are refused; empty when they are not."""
    appended_events: int
    late_events: int
    """Events that were stored after their waiter had been told that the outcome is unknown."""


def _resolve(future: asyncio.Future[int], seq: int, error: SpoolError | None) -> None:
    """Hand a frame's outcome to the coroutine that waits for it, if one still does."""
    if future.done():
        return
    if error is None:
        future.set_result(seq)
    else:
        future.set_exception(error)


class Log:
    """A segmented log of frames in one directory, owned by one process at a time.

    Opened with :meth:`open`, bound to an event loop with :meth:`start`, ended with :meth:`close`. `append`, `subscribe`
    and `close` belong to that loop; `read`, `release`, `repair` and `stats` may be called from any thread.
    """

    def __init__(
        self,
        lock_fd: int,
        dir_fd: int,
        index: SegmentIndex,
        segment_files: SegmentFiles,
        quarantine: Quarantine,
        releaser: Releaser,
        queue: AppendQueue,
        writer: Writer,
        files: Files,
        recovery: Recovery,
        *,
        max_bytes: int,
        stall_secs: float,
        is_memory: bool,
    ) -> None:
        self._lock_fd = lock_fd
        self._dir_fd = dir_fd
        self._index = index
        self._segment_files = segment_files
        self._quarantine = quarantine
        self._releaser = releaser
        self._queue = queue
        self._writer = writer
        self._files = files
        self._reader = Reader(index, segment_files, quarantine)
        self._max_bytes = max_bytes
        self._stall_secs = stall_secs
        self._is_memory = is_memory
        self._rewriter = Rewriter(dir_fd, files, index, segment_files, quarantine, releaser.lock)
        self._subscribers: dict[object, Callable[[int], None]] = {}
        self._on_shortage: Callable[[], None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._exited: asyncio.Event | None = None
        self._is_closed = False
        self._gather_until = 0.0
        self.recovery = recovery
        """What opening found and did."""

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        shard: str = "",
        segment_bytes: int = SEGMENT_BYTES,
        max_bytes: int = DEFAULT_BYTES,
        durability: Durability = "disk",
        retain_secs: float = 0.0,
        observer: LogObserver | None = None,
        floor: int = 0,
        files: Files | None = None,
        stall_secs: float = STALL_SECS,
        queue_bytes: int = QUEUE_BYTES,
        seam: Seam | None = None,
    ) -> Log:
        """Take the directory `path`, recover what is in it and start the writer thread; blocks.

        The next event's number is at least `floor` and at least every cursor in the directory. `shard` defaults to the
        directory's name. Raises `SpoolLockedError` when another process owns the directory, `SpoolFormatError` when a
        newer version wrote it, `SpoolFailedError` when it cannot be used at all. A full disk is no reason not to open.
        At a `seam` another process follows the log; numbers that were published there are not used again.
        """
        if seam is not None:
            floor = max(floor, seam.durable_seq)
        path = path.absolute()
        files = files or Files()
        fds: list[int] = []
        try:
            create_directory(files, path)
            fds.append(open_directory(path))
            fds.append(take_lock(fds[0], path))
            fds.append(open_directory(path))
            quarantine = Quarantine(fds[0], files, observer or SilentObserver())
            floors = [floor, *(cursor.position for name in cursor_names(path) if (cursor := load_cursor(path, name)))]
            recovery = recover(fds[0], files, quarantine, shard or path.name, floors)
        except OSError as error:
            _close_all(fds)
            raise SpoolFailedError(f"{path}: {error.strerror or error}") from error
        except SpoolError:
            _close_all(fds)
            raise
        segments, next_seq = recovery.segments, recovery.next_seq
        index = SegmentIndex(segments, next_seq) if seam is None else SharedIndex(segments, next_seq, seam)
        segment_files = SegmentFiles(fds[2])
        releaser = Releaser(fds[0], files, index, segment_files, quarantine, retain_secs)
        queue = AppendQueue(queue_bytes)
        active = ActiveSegment(
            path,
            fds[0],
            files,
            index,
            shard=shard or path.name,
            segment_bytes=segment_bytes,
            max_bytes=max_bytes,
            give_way=releaser.give_way,
        )
        writer = Writer(active, queue, index, observer or SilentObserver(), durability)
        if durability == "memory":
            queue.number_from(recovery.next_seq)
        writer.start()
        return cls(
            fds[1],
            fds[0],
            index,
            segment_files,
            quarantine,
            releaser,
            queue,
            writer,
            files,
            recovery,
            max_bytes=max_bytes,
            stall_secs=stall_secs,
            is_memory=durability == "memory",
        )

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Bind the log to the loop that appends; called on it, once."""
        self._loop = loop
        self._exited = asyncio.Event()
        self._writer.attach(loop, self._notify, self._ran_short, self._exited.set)
        self._watch()

    def append(
        self,
        payload: bytes,
        n_events: int = 1,
        kind: int = EVENTS,
        decided: Callable[[bool], None] | None = None,
    ) -> asyncio.Future[int]:
        """Queue a frame; the future has the number of its first event once the frame is as durable as configured.

        Raises `SpoolBackpressureError`, `SpoolFullError`, `SpoolFailedError` or `SpoolClosedError` at once when the
        frame is not taken. The future may have those errors as well, and `SpoolUnknownError` when nobody knows.

        `decided` is called once on the loop for a frame that was taken, when it is certain whether it is part of the
        log: True before anybody who waits for the future goes on; False or True long after a `SpoolUnknownError` if
        that is how long the disk takes. It is quick and does not raise.
        """
        if self._loop is None:
            raise SpoolClosedError("the log was not started")
        if not 1 <= n_events <= FRAME_EVENTS:
            raise ValueError(f"a frame has at least one event, and at most {FRAME_EVENTS}")
        if kind not in KINDS:
            raise ValueError(f"{kind} is no kind of frame")
        future: asyncio.Future[int] = self._loop.create_future()
        entry = self._put(Entry(payload, n_events, kind, partial(_resolve, future), decided))
        if self._is_memory:
            entry.answer(None)
        return future

    def submit(self, payload: bytes, n_events: int, waiter: OnOutcome) -> None:
        """Queue a frame of events as `append` does; instead of a future, `waiter` is called on the loop, once.

        Never before this returns.
        """
        if self._loop is None:
            raise SpoolClosedError("the log was not started")
        entry = self._put(Entry(payload, n_events, EVENTS, waiter))
        if self._is_memory:
            self._loop.call_soon(entry.answer, None)

    def _flush(self, n_before: int) -> None:
        """Let the writer have what was put, unless this turn of the loop has brought more and the time is not up."""
        n_gathered = self._queue.n_gathered
        if n_gathered > n_before and self._loop is not None and time.monotonic() < self._gather_until:
            self._loop.call_soon(self._flush, n_gathered)
        else:
            self._queue.flush()

    def _put(self, entry: Entry) -> Entry:
        if self._queue.put(entry) and self._loop is not None:
            self._gather_until = time.monotonic() + GATHER_SECS
            self._loop.call_soon(self._flush, 0)
        if self._is_memory:
            decide([entry], is_stored=True)
        return entry

    @property
    def durable_seq(self) -> int:
        """Every event below it is durable; readers see nothing from it on."""
        return self._index.durable_seq

    @property
    def first_seq(self) -> int:
        """Number of the first event that may still be in the log."""
        return self._index.first_seq

    def starts(self) -> list[int]:
        """Return the numbers of the first events of all segments, in order."""
        return self._index.starts()

    def read(self, position: int, max_bytes: int, *, is_needed: bool = True) -> ReadResult:
        """Return the frames from event `position` on, about `max_bytes` of payload, at least one if there is one.

        Blocks. Never goes past `durable_seq`. Raises `SpoolFailedError` when a segment cannot be opened now. Events
        that are missing are counted as lost, unless the caller says that they are not needed: every sink may have had
        them.
        """
        return self._reader.read(position, max_bytes, is_needed=is_needed)

    def subscribe(self, callback: Callable[[int], None]) -> Callable[[], None]:
        """Have `callback` called on the loop with `durable_seq` after each commit; returns what ends that."""
        key = object()
        self._subscribers[key] = callback

        def unsubscribe() -> None:
            self._subscribers.pop(key, None)

        return unsubscribe

    def release(self, position: int) -> int:
        """Unlink the segments wholly below event `position` that are old enough; returns the bytes freed. Blocks.

        The caller has made every cursor durable that allows this. The segment being written always stays.
        """
        freed = self._releaser.release(position)
        if freed:
            self._writer.look_now()
        return freed

    @property
    def shortage(self) -> Shortage | None:
        """Why there is no room for the next segment; None while there is. Says so before the room is needed."""
        return self._writer.shortage

    def watch_shortage(self, callback: Callable[[], None]) -> None:
        """Have `callback` called on the loop whenever the writer finds no room, which it tries again every second."""
        self._on_shortage = callback

    def make_room(self, position: int, shortage: Shortage) -> int:
        """Let go of what lies wholly below event `position` and, as far as needed, of what is kept to be replayed.

        Returns the bytes by which the segments still take too much. The same condition as for `release`. Blocks.
        """
        self._releaser.release(position)
        self._releaser.give_way(shortage.most_bytes)
        excess = max(0, self._index.totals()[1] - shortage.most_bytes)
        if not excess:
            self._writer.wait_for_look(LOOK_SECS)
        return excess

    def end_of_oldest(self, n_bytes: int) -> int | None:
        """Return the event behind the oldest segments that take `n_bytes` together, as few as that needs.

        None when all together, without the one being written, take less.
        """
        return self._index.end_of_oldest(n_bytes)

    def repair(self, position: int = 0) -> RepairReport:
        """Rewrite damaged segments from event `position` on without their bad bytes; blocks for about two seconds.

        The report says where to go on, and is done when `position` has reached its `end`. The segment being written is
        left as it is. Raises `SpoolFailedError` when the disk refuses; what was done before stays done.
        """
        return self._rewriter.run(position)

    def stats(self) -> LogStats:
        """Return the state of the log."""
        segments, n_bytes = self._index.totals()
        reason = self._queue.refusal
        if not reason and self._queue.stalled_secs() > self._stall_secs:
            reason = "the disk does not answer"
        if self._is_closed:
            reason = "the log is closed"
        return LogStats(
            segments=segments,
            bytes=n_bytes,
            capacity_bytes=self._max_bytes,
            corrupt_bytes=self._quarantine.corrupt_bytes,
            lost_events=self._quarantine.lost_events,
            writable=not reason,
            reason=reason,
            appended_events=self._writer.appended_events,
            late_events=self._writer.late_events,
        )

    async def close(self) -> None:
        """Write what waits, end the last segment and give the directory up. Takes as long as the disk takes."""
        self._queue.close()
        if self._exited is not None:
            await self._exited.wait()
        self._writer.join()
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._releaser.close():
            self._is_closed = True
            with self._releaser.lock:
                self._rewriter.close()
            self._segment_files.close()
            _close_all([self._dir_fd, self._lock_fd])

    def _notify(self, durable_seq: int) -> None:
        for callback in tuple(self._subscribers.values()):
            callback(durable_seq)

    def _ran_short(self) -> None:
        if self._on_shortage is not None:
            self._on_shortage()

    def _watch(self) -> None:
        """Answer waiters that have waited too long, and look again soon."""
        if self._loop is not None:
            self._queue.expire(self._stall_secs)
            self._watchdog = self._loop.call_later(self._stall_secs / STALL_LOOKS, self._watch)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
