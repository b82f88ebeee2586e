"""The writer thread: group commit, and what follows when the disk says no."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import Callable
from typing import Literal

import structlog

from edge.spool.active import ActiveSegment, NoRoomError, Shortage
from edge.spool.errors import SpoolError, SpoolFailedError, SpoolFullError, SpoolUnknownError
from edge.spool.files import Buffer
from edge.spool.format import frame_header
from edge.spool.observer import LogObserver
from edge.spool.queue import AppendQueue, Entry, decide, events_in
from edge.spool.segment import SegmentIndex

logger = structlog.get_logger(__name__)

Durability = Literal["disk", "os", "memory"]

RETRY_SECS = 1.0
"""How long to wait before the disk is asked again for what it refused."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Writer:
    """Takes entries from the queue, makes them durable together and answers all who wait in one call to the loop."""

    def __init__(
        self,
        active: ActiveSegment,
        queue: AppendQueue,
        index: SegmentIndex,
        observer: LogObserver,
        durability: Durability,
    ) -> None:
        self._active = active
        self._queue = queue
        self._index = index
        self._observer = observer
        self._durability = durability
        self._problem: SpoolError | None = None
        self._retry_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_commit: Callable[[int], None] = lambda durable_seq: None
        self._on_shortage: Callable[[], None] = lambda: None
        self._on_exit: Callable[[], None] = lambda: None
        self._has_looked = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spool-writer", daemon=True)
        self.appended_events = 0
        """Events of requests that were stored; replayed ones are not counted again."""
        self.late_events = 0
        """Events that were stored after their waiter had been told that the outcome is unknown."""
        self.shortage: Shortage | None = None
        """Why room for the next segment could not be allocated; None once it was."""

    def start(self) -> None:
        """Create the first segment and start the thread. A disk that refuses leaves a log that can be read."""
        self._roll(0)
        self._thread.start()

    def attach(
        self,
        loop: asyncio.AbstractEventLoop,
        on_commit: Callable[[int], None],
        on_shortage: Callable[[], None],
        on_exit: Callable[[], None],
    ) -> None:
        """Name the loop of the futures, on which the other three are called. Comes before the first append."""
        self._on_commit, self._on_shortage, self._on_exit, self._loop = on_commit, on_shortage, on_exit, loop

    def look_now(self) -> None:
        """Ask the disk again at once, because room was made; called from any thread."""
        self._retry_at = 0.0
        self._queue.wake()

    def wait_for_look(self, timeout_secs: float) -> None:
        """Return when the disk was asked again, or after so long."""
        self._has_looked.clear()
        self.look_now()
        self._has_looked.wait(timeout_secs)

    def join(self) -> None:
        """Wait for the end of the thread, once the queue is closed."""
        self._thread.join()

    def _run(self) -> None:
        while not self._queue.drained:
            entries = self._queue.take(self._wait_secs())
            try:
                self._commit_all(entries)
                self._look_after_segments()
                self._has_looked.set()
            except Exception as error:  # noqa: BLE001 - whatever it is: waiters get an answer and the thread goes on
                self._give_up(error)
        try:
            self._active.finish()
        except Exception as error:
            logger.error("the last segment was not ended in order; the next start repairs it", exc_info=error)
        self._call(self._on_exit)

    def _wait_secs(self) -> float | None:
        """Return how long the thread may sleep when nothing arrives; None: for ever."""
        if self._problem is None and self._active.segment is not None and not self._active.wants_ready:
            return None
        return max(self._retry_at - time.monotonic(), 0.0)

    def _commit_all(self, entries: list[Entry]) -> None:
        """Write entries in as few commits as there are segments to put them in."""
        while entries:
            size = entries[0].size
            if self._active.room < size and not self._roll(size):
                problem = self._problem or SpoolFullError(f"no room for a frame of {size} bytes")
                self._fail(entries[:1], problem, entries[1:])
                entries = entries[1:]
                continue
            count, total, room = 0, 0, self._active.room
            while count < len(entries) and total + entries[count].size <= room:
                total += entries[count].size
                count += 1
            group, entries = entries[:count], entries[count:]
            self._commit(group, entries)

    def _commit(self, group: list[Entry], rest: list[Entry]) -> None:
        """Write one group and make it durable; `rest` is what follows."""
        started = time.monotonic()
        buffers, end_seq = self._encode(group)
        try:
            data_end = self._active.write(buffers)
        except OSError as error:
            self._write_failed(group, rest, error)
            return
        if self._durability == "disk":
            try:
                self._active.sync()
            except OSError as error:
                self._sync_failed(group, rest, error)
                return
        self._index.publish(data_end, end_seq)
        self.appended_events += events_in(group)
        self.late_events += self._queue.settle(group, rest)
        if isinstance(self._problem, SpoolFullError):
            self._queue.refuse(SpoolFullError, str(self._problem), self._active.room)
        # Those who wait come first: whatever an observer does, they have their answer.
        self._call(self._committed, group, end_seq)
        self._observer.commit(time.monotonic() - started, sum(entry.n_events for entry in group))

    def _encode(self, group: list[Entry]) -> tuple[list[Buffer], int]:
        """Give entries their numbers; returns the buffers to write and the number behind the last event."""
        key = self._active.key
        seq = self._index.durable_seq
        buffers: list[Buffer] = []
        for entry in group:
            if entry.seq < 0:
                entry.seq = seq
            buffers.append(frame_header(key, entry.kind, entry.seq, entry.n_events, entry.payload))
            buffers.append(entry.payload)
            seq = entry.seq + entry.n_events
        return buffers, seq

    def _committed(self, group: list[Entry], durable_seq: int) -> None:
        """Tell all who wait for a commit; called on the loop."""
        decide(group, is_stored=True)
        for entry in group:
            entry.answer(None)
        self._on_commit(durable_seq)

    def _fail(self, group: list[Entry], error: SpoolError, rest: list[Entry]) -> None:
        self._queue.settle(group, rest)
        self._call(self._failed, group, error)

    def _failed(self, group: list[Entry], error: SpoolError) -> None:
        """Give each waiter of a failed commit an exception of its own; called on the loop."""
        for entry in group:
            entry.answer(type(error)(str(error)))
        decide(group, is_stored=False)

    def _call(self, function: Callable[..., None], *args: object) -> None:
        """Call a function on the loop; a loop that is closed has nobody left who waits."""
        if self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            logger.debug("the event loop ended before the spool was closed")

    def _write_failed(self, group: list[Entry], rest: list[Entry], error: OSError) -> None:
        """End the segment at its last good byte: a whole frame of the group may already lie behind it."""
        logger.error("the spool could not be written", error=str(error))
        try:
            self._active.cut()
            if self._durability == "disk":
                self._active.sync_cut()
        except OSError:
            outcome: SpoolError = SpoolUnknownError(f"the events could not be written whole: {error.strerror}")
        else:
            outcome = SpoolFailedError(f"the events could not be written: {error.strerror}")
        self._end_segment(group, rest, outcome)

    def _sync_failed(self, group: list[Entry], rest: list[Entry], error: OSError) -> None:
        """Part with the segment: after a failed fdatasync its pages count as clean, and a second one would lie.

        The next segment starts with the numbers of this group, so what may be left of it on the disk never counts.
        """
        logger.error("fdatasync of the spool failed", error=str(error))
        try:
            self._active.cut()
        except OSError:
            logger.warning("the segment could not be cut; the next one fences it")
        self._end_segment(group, rest, SpoolUnknownError(f"the disk did not confirm the events: {error.strerror}"))

    def _give_up(self, error: Exception) -> None:
        """Answer everybody after an error that should not exist, and go on with a fresh segment."""
        logger.error("the spool's writer met an unexpected error", exc_info=error)
        outcome = SpoolUnknownError("an unexpected error of the writer; the events may be stored")
        self._end_segment(self._queue.in_hand(), [], outcome)

    def _end_segment(self, group: list[Entry], rest: list[Entry], outcome: SpoolError) -> None:
        """Go on without this segment: tell the group; what comes next starts a fresh one."""
        self._active.retire()
        self._retry_at = 0.0
        self._fail(group, outcome, rest)

    def _look_after_segments(self) -> None:
        """Do what is better done when nobody waits: prepare the next segment, try again what failed."""
        now = time.monotonic()
        if now < self._retry_at:
            return
        if self._active.segment is None:
            self._roll(0)
        elif self._problem is not None or self._active.wants_ready:
            try:
                self._active.make_ready()
            except OSError as error:
                self._retry_at = now + RETRY_SECS
                self._note_shortage(error)
            else:
                self._accept()

    def _roll(self, size: int) -> bool:
        """Start the next segment with room for a frame of `size` bytes; False when the disk refuses."""
        capacity = self._active.capacity_for(size)
        is_oversize = capacity > self._active.segment_bytes
        if self._problem is not None and not is_oversize and time.monotonic() < self._retry_at:
            return False
        # After an error of the disk there is one try on a fresh segment. Without a segment this is that try.
        attempts = 2 if self._active.segment is not None else 1
        for attempt in range(1, attempts + 1):
            try:
                self._active.start(capacity)
            except OSError as error:
                if error.errno in _FULL:
                    if not is_oversize:
                        self._refuse(SpoolFullError(f"no room for the next segment: {error.strerror}"))
                    self._note_shortage(error)
                    return False
                if attempt == attempts:
                    self._refuse(SpoolFailedError(f"no segment could be started: {error.strerror}"))
                    return False
            else:
                self._accept()
                return True
        return False

    def _note_shortage(self, error: OSError) -> None:
        """Say that there is no room, to whoever can make some. It is asked for again every `RETRY_SECS`."""
        if isinstance(error, NoRoomError):
            self.shortage = error.shortage
            self._call(self._on_shortage)

    def _refuse(self, problem: SpoolError) -> None:
        """Refuse entries at the door until the disk gives room again; a full disk leaves what the segment still has."""
        if type(problem) is not type(self._problem):
            if isinstance(problem, SpoolFullError):
                logger.warning("the spool refuses events", reason=str(problem))
            else:
                logger.error("the spool refuses events", reason=str(problem))
        self._problem = problem
        self._retry_at = time.monotonic() + RETRY_SECS
        room = self._active.room if isinstance(problem, SpoolFullError) else 0
        self._queue.refuse(type(problem), str(problem), room)

    def _accept(self) -> None:
        self.shortage = None
        if self._problem is not None:
            logger.info("the spool takes events again")
            self._problem = None
            self._queue.accept()
