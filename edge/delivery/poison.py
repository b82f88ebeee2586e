"""Events that kill the process: what a sink has in flight is noted on disk, and what was noted at a death is suspect.

A sink, or a library under it, may take the whole process with it, on one event. Started again, the gateway would hand
it the same batch, for ever. So each sink has a file ``inflight-<sink>`` beside its cursor, with one record in it::

    magic 4 | crc 4 | suspect start 8 | suspect end 8 | deaths 8 | in flight start 8 | in flight end 8

It is written without a sync: only the death of the process has to be survived, and the page cache does that. A power
cut may tear the record, which the checksum turns into none.
"""

from __future__ import annotations

import asyncio
import logging
import os
from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from struct import Struct
from zlib import crc32

import structlog

from edge.spool.files import CREATE_FLAGS, Files, close_quietly, open_directory, open_regular, read_at, write_all

log = structlog.get_logger(__name__)

DEATHS = 3
"""An event in flight at so many deaths in a row, alone at the last one, is taken for their cause."""
PARTS = 500
"""Into how many parts suspect events are divided at most: a batch of usual size into single events."""
AHEAD_EVENTS = 2_000
"""As long as nothing is suspect, so many events from the next one on are noted at once: a write for each attempt would
cost more than the rest of it."""
IDLE_SECS = 1.0
"""How long after the last attempt such a note stays."""
TURN_SECS = 10.0
"""How long a sink with suspect events lets another one with suspect events go first."""
CLOSE_SECS = 0.5
RECORD_BYTES = 48

_MAGIC = b"EVF\x01"
_RECORD = Struct("<4sI5Q")
_BODY = Struct("<5Q")
_WRITE_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
NOTHING = range(0)


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a sink's attempts, as ranges of positions in the spool."""

    suspect: range = NOTHING
    """The killer is among these events, if one of them did it."""
    deaths: int = 0
    """At how many deaths in a row they were in flight."""
    in_flight: range = NOTHING
    """The events of the attempt that is going on, with what lies between them, or more."""

    @property
    def is_condemned(self) -> bool:
        """Whether the suspect is one event that is not to be tried again."""
        return self.deaths >= DEATHS and self.suspect.stop - self.suspect.start == 1

    def after_death(self) -> Record:
        """Return the record as it is to be read after the process died: what was in flight is suspect."""
        if not self.in_flight:
            return self
        return Record(self.in_flight, self.deaths + 1 if _is_within(self.in_flight, self.suspect) else 1)


def _is_within(part: range, whole: range) -> bool:
    return whole.start <= part.start and part.stop <= whole.stop


class RecordFile:
    """Keeps one sink's record in a directory. All calls block; used by one thread at a time.

    Construction makes the file, so that a full disk does not matter later; `save` tries again if that failed. What
    stands in its place and is not a regular file is neither followed nor removed.
    """

    def __init__(self, directory: Path, name: str, *, files: Files | None = None) -> None:
        self._directory = directory
        self._name = f"inflight-{name}"
        self._files = files or Files()
        self._fd: int | None = None
        with suppress(OSError):
            self._open()
        self.close()  # opened again by the first `save`: a file that was made in vain holds nothing

    def load(self) -> Record:
        """Return the record; an empty one when there is none that is intact."""
        try:
            dir_fd = open_directory(self._directory)
        except OSError:
            return Record()
        try:
            fd = open_regular(self._name, dir_fd)
        except OSError:
            return Record()
        finally:
            os.close(dir_fd)
        try:
            return _unpack(read_at(fd, 0, RECORD_BYTES))
        finally:
            os.close(fd)

    def save(self, record: Record) -> None:
        """Put a record where the death of the process does not reach it; raises `OSError`."""
        fd = self._fd if self._fd is not None else self._open()
        write_all(self._files, fd, [_pack(record)], 0)

    def close(self) -> None:
        """Close the file. A later `save` opens it again."""
        if self._fd is not None:
            close_quietly(self._files, self._fd)
            self._fd = None

    def _open(self) -> int:
        dir_fd = open_directory(self._directory)
        try:
            try:
                os.close(open_regular(self._name, dir_fd))
                fd = self._files.open(self._name, _WRITE_FLAGS, dir_fd=dir_fd)
            except FileNotFoundError:
                fd = self._files.open(self._name, CREATE_FLAGS, dir_fd=dir_fd)
        finally:
            os.close(dir_fd)
        try:
            if os.fstat(fd).st_size < RECORD_BYTES:
                write_all(self._files, fd, [bytes(RECORD_BYTES)], 0)
        except OSError:
            close_quietly(self._files, fd)
            raise
        self._fd = fd
        return fd


def _pack(record: Record) -> bytes:
    suspect, in_flight = record.suspect, record.in_flight
    body = _BODY.pack(suspect.start, suspect.stop, record.deaths, in_flight.start, in_flight.stop)
    return _MAGIC + crc32(body).to_bytes(4, "little") + body


def _unpack(data: bytes) -> Record:
    if len(data) < RECORD_BYTES:
        return Record()
    magic, crc, start, end, deaths, flight_start, flight_end = _RECORD.unpack(data)
    if magic != _MAGIC or crc != crc32(data[8:]):
        return Record()
    return Record(range(start, end), deaths, range(flight_start, flight_end))


class FlightRecorder:
    """Notes what one sink has in flight, and decides how the events that were in flight at a death are delivered.

    After the first death they go out again in batches as always, since most deaths are nobody's fault; only, each
    attempt is noted by itself. After the second one they go out one by one (more than `PARTS` of them: in parts, which
    takes another death). The event that is alone in flight at the third death is condemned. An attempt that ends, in
    whatever way, clears what it held; what lies behind the suspects is delivered as always.

    Suspect events of different sinks are in flight one sink at a time (`turn`): otherwise a slow sink would be in the
    middle of an attempt at each death that another one causes, and its events would be taken for the cause.

    The writing is done in a thread of its own, not on the event loop and not through a mapping: a write to the page
    cache waits when the disk hangs (for the journal that takes the file's new time, or for a page under way), and so
    does the page fault of a store into a mapping, which holds the interpreter. Only this sink is to wait then.

    Used on the event loop. Without a file it notes nothing.
    """

    def __init__(self, sink: str, file: RecordFile | None = None, turn: asyncio.Lock | None = None) -> None:
        self._sink = sink
        self._file = file
        self._turn = turn or asyncio.Lock()
        self._has_turn = False
        self._record = Record()
        """As it was written last, or is being written."""
        self._attempt = NOTHING
        self._clearing: asyncio.TimerHandle | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._failing = False
        self._closed = False

    @property
    def deaths(self) -> int:
        """At how many deaths in a row the suspect events were in flight."""
        return self._record.deaths

    @property
    def is_condemning(self) -> bool:
        """Whether there is an event that is not to be tried again."""
        return self._record.is_condemned

    def condemns(self, seq: int) -> bool:
        """Return whether this is the event that is not to be tried again."""
        return self._record.is_condemned and seq in self._record.suspect

    def load(self, position: int, end: int) -> None:
        """Read what an earlier life left of the events from `position` up to the spool's `end`; blocks.

        The file is not changed: a life that ends before the first attempt is to find what this one found.
        """
        if self._file is None:
            return
        found = self._file.load()
        record = found.after_death()
        # What the cursor is past was settled; what is beyond the spool are numbers that other events will get.
        suspect = range(max(record.suspect.start, position), min(record.suspect.stop, end))
        if not suspect:
            return
        self._record = replace(record, suspect=suspect)
        fields = {"sink": self._sink, "seq": suspect.start, "deaths": record.deaths}
        if self._record.is_condemned:
            log.error("an event was in flight at each of the last deaths of the process and is given up", **fields)
        elif found.in_flight:
            level = logging.INFO if record.deaths == 1 else logging.WARNING
            n_events = suspect.stop - suspect.start
            log.log(level, "the process died while a sink was delivering", **fields, events=n_events)

    def parts(self, seqs: Sequence[int]) -> list[range]:
        """Return how events (their positions, sorted) are to be attempted: ranges of indices, in order."""
        suspect = self._record.suspect
        first, last = bisect_left(seqs, suspect.start), bisect_left(seqs, suspect.stop)
        n_events = last - first
        size = n_events if self._record.deaths < DEATHS - 1 else -(-n_events // PARTS)
        parts = [range(index, min(index + size, last)) for index in range(first, last, max(1, size))]
        return [part for part in (range(first), *parts, range(last, len(seqs))) if part]

    async def begin(self, attempt: range) -> None:
        """Note that the events at these positions are about to be attempted; waits for the turn if they are suspect."""
        if self._file is None or self._closed:
            return
        if self._clearing is not None:
            self._clearing.cancel()
            self._clearing = None
        if self._record.suspect and attempt.start >= self._record.suspect.stop:
            self._record = Record()
        self._attempt = attempt
        suspect = self._record.suspect
        if suspect:
            if _is_within(attempt, suspect):
                await self._take_turn()
            note = attempt
        elif _is_within(attempt, self._record.in_flight):
            return
        else:
            note = range(attempt.start, max(attempt.stop, attempt.start + AHEAD_EVENTS))
        self._record = replace(self._record, in_flight=note)
        await self._write()

    def end(self, *, survived: bool) -> None:
        """Note that the attempt is over; not `survived`: because it was called off, or never started."""
        if self._file is None or self._closed:
            return
        suspect, attempt = self._record.suspect, self._attempt
        if not suspect:
            self._clearing = asyncio.get_running_loop().call_later(IDLE_SECS, self._clear)
            return
        if survived and _is_within(attempt, suspect):
            suspect = range(attempt.stop, suspect.stop)
        self._record = Record(suspect, self._record.deaths) if suspect else Record()
        written = self._write()
        if self._has_turn:
            # A death that the next one causes before this is written would count for this one.
            written.add_done_callback(lambda _: self._give_turn())

    async def close(self) -> None:
        """Leave a record with nothing in flight, whatever a call that was abandoned still does."""
        if self._closed:
            return
        self._closed = True
        if self._clearing is not None:
            self._clearing.cancel()
        self._record = replace(self._record, in_flight=NOTHING)
        if self._file is not None and self._executor is not None:
            await asyncio.wait({self._write(), self._run(self._file.close)}, timeout=CLOSE_SECS)
            self._executor.shutdown(wait=False)
        self._give_turn()

    async def _take_turn(self) -> None:
        # A call that never ends must not keep the others' events for ever.
        with suppress(TimeoutError):
            async with asyncio.timeout(TURN_SECS):
                await self._turn.acquire()
                self._has_turn = True

    def _give_turn(self) -> None:
        if self._has_turn:
            self._has_turn = False
            self._turn.release()

    def _clear(self) -> None:
        self._record = replace(self._record, in_flight=NOTHING)
        self._write()

    def _write(self) -> asyncio.Future[None]:
        """Have the record written as it is now, after what was to be written before."""
        record = self._record
        return self._run(lambda: self._save(record))

    def _run(self, work: Callable[[], None]) -> asyncio.Future[None]:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"edge-in-flight-{self._sink}")
        return asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _save(self, record: Record) -> None:
        """Write a record; a disk that refuses it does not stop delivery. Runs in the thread."""
        if self._file is None:
            return
        try:
            self._file.save(record)
        except OSError as error:
            if not self._failing:
                text = "what a sink has in flight cannot be noted: an event that kills the process would not be found"
                log.warning(text, sink=self._sink, error=str(error))
            self._failing = True
        else:
            self._failing = False
