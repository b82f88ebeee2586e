"""What waits to be written: a queue with a limit in bytes between the event loop and the writer thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from edge.spool.errors import SpoolBackpressureError, SpoolClosedError, SpoolError, SpoolUnknownError
from edge.spool.format import EVENTS, FRAME_HEADER_BYTES

logger = structlog.get_logger(__name__)

QUEUE_BYTES = 32 * 1024 * 1024

OnOutcome = Callable[[int, SpoolError | None], None]
"""Told on the loop, once, what became of a frame: the number of its first event, and why it is not stored or None.

A plain call, since a future costs the loop another turn and several microseconds for every frame.
"""


class Entry:
    """One frame on its way to the disk."""

    __slots__ = ("decided", "kind", "n_events", "payload", "queued_at", "seq", "size", "told", "waiter")

    def __init__(
        self,
        payload: bytes,
        n_events: int,
        kind: int,
        waiter: OnOutcome,
        decided: Callable[[bool], None] | None = None,
    ) -> None:
        self.payload = payload
        self.n_events = n_events
        self.kind = kind
        self.waiter: OnOutcome | None = waiter
        """Who has not been told yet."""
        self.decided = decided
        """Called on the loop once it is certain whether the frame is part of the log, whatever the waiter was told."""
        self.queued_at = 0.0
        self.size = FRAME_HEADER_BYTES + len(payload)
        self.seq = -1
        """Number of its first event, once the writer has given it one."""
        self.told = False
        """The waiter has been told that the outcome is unknown."""

    def answer(self, error: SpoolError | None) -> None:
        """Tell the waiter, unless it has been told; called on the loop."""
        waiter, self.waiter = self.waiter, None
        if waiter is None:
            return
        try:
            waiter(self.seq, error)
        except Exception as failure:
            # Others wait for the same commit, and are to be told as well.
            logger.error("who waited for a commit failed on the word of it", exc_info=failure)


class AppendQueue:
    """Entries that wait and entries that are being written, together at most `limit_bytes`.

    `put`, `flush` and `expire` belong to the event loop, `take`, `settle` and `refuse` to the writer thread. What is
    put becomes visible to the writer with `flush`: a writer woken by the first of many frames would commit it alone,
    and a commit costs what dozens of frames do.
    """

    def __init__(self, limit_bytes: int = QUEUE_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._idle = False
        self._woken = False
        self._gathered: list[Entry] = []
        """Put and not flushed yet; the loop's own."""
        self._gathered_bytes = 0
        self._waiting: list[Entry] = []
        self._taken: list[Entry] = []
        self._progress_at = 0.0
        self._bytes = 0
        self._refusal: tuple[type[SpoolError], str] | None = None
        self._room = 0
        self._closed = False
        self._next_seq: int | None = None

    def number_from(self, seq: int) -> None:
        """Give entries their numbers when they are put, not when they are written (durability `memory`)."""
        self._next_seq = seq

    def put(self, entry: Entry) -> bool:
        """Queue an entry, or raise the reason why not at once. True: it is the first, and `flush` has to follow."""
        held = self._bytes + self._gathered_bytes
        n_bytes = held + entry.size
        if self._closed:
            raise SpoolClosedError("the log is closed")
        refusal = self._refusal
        if refusal is not None and n_bytes > self._room:
            raise refusal[0](refusal[1])
        if n_bytes > self._limit_bytes and held:
            raise SpoolBackpressureError("too much waits to be written")
        self._gathered_bytes += entry.size
        self._gathered.append(entry)
        if self._next_seq is not None:
            entry.seq = self._next_seq
            self._next_seq += entry.n_events
        return len(self._gathered) == 1

    @property
    def n_gathered(self) -> int:
        """Entries that were put and not flushed."""
        return len(self._gathered)

    def flush(self) -> None:
        """Let the writer have what was put."""
        if not self._gathered:
            return
        now = time.monotonic()
        for entry in self._gathered:
            entry.queued_at = now
        with self._lock:
            self._waiting += self._gathered
            self._bytes += self._gathered_bytes
            if self._idle:
                self._idle = False
                self._wake.notify()
        self._gathered, self._gathered_bytes = [], 0

    def take(self, timeout_secs: float | None) -> list[Entry]:
        """Wait for entries and take all of them; empty after the time-out, a `wake` or the close."""
        with self._lock:
            if not self._waiting and not self._closed and not self._woken:
                self._idle = True
                self._wake.wait(timeout_secs)
                self._idle = False
            self._woken = False
            self._taken, self._waiting = self._waiting, []
            self._progress_at = time.monotonic()
            return self._taken

    def settle(self, entries: list[Entry], rest: list[Entry]) -> int:
        """Take note that `entries` are decided and `rest` is next; returns the events that came too late."""
        with self._lock:
            self._taken = rest
            self._progress_at = time.monotonic()
            self._bytes -= sum(entry.size for entry in entries)
            return events_in([entry for entry in entries if entry.told])

    def in_hand(self) -> list[Entry]:
        """Return the entries that were taken and are not settled."""
        with self._lock:
            return self._taken

    def refuse(self, error: type[SpoolError], message: str, room_bytes: int) -> None:
        """Let `put` raise `error` for all that does not fit into `room_bytes` with what is queued."""
        with self._lock:
            self._refusal = error, message
            self._room = room_bytes

    def accept(self) -> None:
        """End `refuse`."""
        with self._lock:
            self._refusal = None

    @property
    def refusal(self) -> str:
        """Why entries are refused; empty when they are not."""
        refusal = self._refusal
        return refusal[1] if refusal else ""

    def expire(self, limit_secs: float) -> None:
        """Answer those who have waited too long; called on the loop.

        Entries in the hands of a writer that makes no progress may get stored: unknown. Entries that only wait are
        withdrawn.
        """
        now = time.monotonic()
        with self._lock:
            unknown: list[Entry] = []
            if self._taken and now - self._progress_at > limit_secs:
                unknown = [entry for entry in self._taken if not entry.told]
            for entry in unknown:
                entry.told = True
            count = 0
            while count < len(self._waiting) and now - self._waiting[count].queued_at > limit_secs:
                count += 1
            withdrawn, self._waiting = self._waiting[:count], self._waiting[count:]
            self._bytes -= sum(entry.size for entry in withdrawn)
        for entry in unknown:
            entry.answer(SpoolUnknownError("the disk does not answer; the events may be stored"))
        for entry in withdrawn:
            entry.answer(SpoolBackpressureError("the disk does not answer; the events were not stored"))
        decide(withdrawn, is_stored=False)

    def stalled_secs(self) -> float:
        """Return for how long the writer has made no progress although there is work for it."""
        now = time.monotonic()
        with self._lock:
            since = self._progress_at if self._taken else now
            return now - (min(since, self._waiting[0].queued_at) if self._waiting else since)

    def wake(self) -> None:
        """Let the writer look after its segments now."""
        with self._lock:
            self._woken = True
            self._wake.notify()

    def close(self) -> None:
        """Take no more entries; those that wait are still written. Called on the loop."""
        self.flush()
        with self._lock:
            self._closed = True
            self._wake.notify()

    @property
    def drained(self) -> bool:
        """True once the queue is closed and nothing waits."""
        with self._lock:
            return self._closed and not self._waiting


def events_in(entries: list[Entry]) -> int:
    """Return how many events of requests are in some entries; replays and marks are none."""
    return sum(entry.n_events for entry in entries if entry.kind == EVENTS)


def decide(entries: list[Entry], *, is_stored: bool) -> None:
    """Tell whoever wants to know what became of frames; called on the loop. The first word counts."""
    for entry in entries:
        if entry.decided is not None:
            decided, entry.decided = entry.decided, None
            decided(is_stored)
