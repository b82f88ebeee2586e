"""Segments: their life on disk, and the list of them that writer and readers share."""

from __future__ import annotations

import errno
import os
import threading
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from edge.spool.files import (
    CREATE_FLAGS,
    Files,
    close_quietly,
    open_regular,
    remove_quietly,
    sync_directory,
    write_all,
)
from edge.spool.format import SEGMENT_HEADER_BYTES, SegmentHeader, segment_name, temporary_name


@dataclass(slots=True, eq=False)
class Segment:
    """One file of the log, as far as this process knows it. Compared by identity: a name can be used again."""

    name: str
    header: SegmentHeader
    data_end: int
    """Offset behind the last byte that a reader may look at."""
    size: int
    """Bytes of room it takes on disk."""
    aged_from: float
    """When it got its last frame, in seconds of the monotonic clock; when it was found, for one of an earlier process.

    No clock that can be set decides what is deleted: a restart begins the time anew.
    """
    end_seq: int | None = None
    """Number behind its last event where that is known for certain."""
    is_replaced: bool = False
    """Its name belongs to another file now; under its lock, `SegmentFiles` opens it no more."""

    @property
    def first_seq(self) -> int:
        """Number of its first event."""
        return self.header.first_seq


@dataclass(frozen=True, slots=True)
class Prepared:
    """A file with room allocated, waiting to become a segment."""

    name: str
    fd: int
    capacity: int


def prepare(files: Files, dir_fd: int, capacity: int) -> Prepared:
    """Allocate room for a segment. This is where a full disk shows, not when frames are written."""
    name = temporary_name()
    fd = files.open(name, CREATE_FLAGS, dir_fd=dir_fd)
    try:
        files.fallocate(fd, capacity)
        files.fsync(fd)
    except OSError:
        discard(files, dir_fd, Prepared(name, fd, capacity))
        raise
    return Prepared(name, fd, capacity)


def discard(files: Files, dir_fd: int, prepared: Prepared) -> None:
    """Give the room of a prepared segment back."""
    close_quietly(files, prepared.fd)
    remove_quietly(files, dir_fd, prepared.name)


def activate(files: Files, dir_fd: int, prepared: Prepared, first_seq: int, shard: str) -> SegmentHeader:
    """Turn prepared room into the segment that starts with `first_seq`; once this returns it survives a power cut.

    On an `OSError` the file is gone and its descriptor closed.
    """
    header = SegmentHeader.new(first_seq, prepared.capacity, shard)
    name = prepared.name
    try:
        write_all(files, prepared.fd, [header.pack()], 0)
        files.fdatasync(prepared.fd)
        files.rename(name, segment_name(first_seq), dir_fd=dir_fd)
        name = segment_name(first_seq)
        sync_directory(files, dir_fd)
    except OSError:
        discard(files, dir_fd, Prepared(name, prepared.fd, prepared.capacity))
        raise
    return header


class View(NamedTuple):
    """What a reader may know of one segment at one moment."""

    segment: Segment
    data_end: int
    end_seq: int
    """Where the next segment starts, or what is durable: frames at or past it do not count, gaps before it do."""


class SegmentIndex:
    """The segments of a log in order, and how far they may be read. Safe to use from any thread."""

    def __init__(self, segments: list[Segment], durable_seq: int) -> None:
        self._lock = threading.Lock()
        self._segments = sorted(segments, key=lambda segment: segment.first_seq)
        self._firsts = [segment.first_seq for segment in self._segments]
        self._active: Segment | None = None
        self._bytes = sum(segment.size for segment in self._segments)
        self.durable_seq = durable_seq

    @property
    def first_seq(self) -> int:
        """Number of the first event that may still be there."""
        with self._lock:
            return self._firsts[0] if self._firsts else self.durable_seq

    def starts(self) -> list[int]:
        """Return the number of the first event of each segment."""
        with self._lock:
            return list(self._firsts)

    def totals(self) -> tuple[int, int]:
        """Return the number of segments and the room they take in bytes."""
        with self._lock:
            return len(self._segments), self._bytes

    def before(self, segment: Segment) -> Segment | None:
        """Return the segment that comes before another one, if there is one."""
        with self._lock:
            at = self._segments.index(segment)
            return self._segments[at - 1] if at else None

    def locate(self, position: int) -> View | None:
        """Return the segment that holds event `position`, or the first one after it; None when nothing durable is."""
        with self._lock:
            if position >= self.durable_seq or not self._segments:
                return None
            at = max(bisect_right(self._firsts, position) - 1, 0)
            segment = self._segments[at]
            following = self._firsts[at + 1] if at + 1 < len(self._firsts) else self.durable_seq
            return View(segment, segment.data_end, following)

    def holds(self, segment: Segment) -> bool:
        """Say whether a segment is still part of the log."""
        with self._lock:
            return segment in self._segments

    def is_active(self, segment: Segment) -> bool:
        """Say whether a segment is the one being written."""
        with self._lock:
            return segment is self._active

    def names(self) -> set[str]:
        """Return the names of all segments."""
        with self._lock:
            return {segment.name for segment in self._segments}

    def replace(self, old: Segment, new: Segment) -> None:
        """Let `new`, which holds the same events, stand in the place of `old`; never of the active one."""
        with self._lock:
            self._segments[self._segments.index(old)] = new
            self._bytes += new.size - old.size

    def start(self, segment: Segment) -> None:
        """Add the segment that is written from now on."""
        with self._lock:
            self._segments.append(segment)
            self._firsts.append(segment.first_seq)
            self._bytes += segment.size
            self._active = segment

    def publish(self, data_end: int, durable_seq: int) -> None:
        """Let readers see the active segment up to `data_end`."""
        with self._lock:
            if self._active is not None:
                self._active.data_end = data_end
            self.durable_seq = durable_seq

    def resize(self, segment: Segment, size: int) -> None:
        """Take note that a segment's file takes less room now."""
        with self._lock:
            self._bytes += size - segment.size
            segment.size = size

    def seal(self, aged_from: float) -> None:
        """End the active segment; one without frames is forgotten."""
        with self._lock:
            segment, self._active = self._active, None
            if segment is None:
                return
            segment.end_seq, segment.aged_from = self.durable_seq, aged_from
            if segment.data_end == SEGMENT_HEADER_BYTES:
                self._remove(segment)

    def drop(self, segment: Segment) -> None:
        """Forget a segment whose file is gone."""
        with self._lock:
            if segment in self._segments:
                self._remove(segment)

    def put_back(self, segment: Segment) -> None:
        """Take a dropped segment back that could not be removed; it was the first one."""
        with self._lock:
            self._segments.insert(0, segment)
            self._firsts.insert(0, segment.first_seq)
            self._bytes += segment.size

    def _remove(self, segment: Segment) -> None:
        at = self._segments.index(segment)
        del self._segments[at], self._firsts[at]
        self._bytes -= segment.size

    def end_of_oldest(self, n_bytes: int) -> int | None:
        """Return the event behind the oldest segments that take `n_bytes` together, the active one not among them."""
        with self._lock:
            ends = [*self._firsts[1:], self.durable_seq]
            for segment, end in zip(self._segments, ends, strict=True):
                if segment is self._active:
                    return None
                n_bytes -= segment.size
                if n_bytes <= 0:
                    return end
            return None

    def wholly_below(self, position: int) -> list[Segment]:
        """Return the segments, oldest first, whose events all lie below `position`; never the active one."""
        with self._lock:
            ends = [*self._firsts[1:], self.durable_seq]
            below = []
            for segment, end in zip(self._segments, ends, strict=False):  # without segments there is one end too many
                if end > position or segment is self._active:
                    break
                below.append(segment)
            return below


@dataclass(slots=True)
class _OpenFile:
    fd: int
    users: int = 0
    is_released: bool = False


class SegmentFiles:
    """Open descriptors of the segments being read, a few at a time. Safe to use from any thread.

    Owns `dir_fd`.
    """

    LIMIT = 8

    def __init__(self, dir_fd: int) -> None:
        self._dir_fd = dir_fd
        self._lock = threading.Lock()
        self._open: dict[Segment, _OpenFile] = {}
        self._closed = False

    def borrow(self, segment: Segment) -> int:
        """Return a descriptor that stays open until `give_back`. Raises `OSError` when there is no such file."""
        with self._lock:
            if self._closed:
                raise OSError(9, "the log is closed")
            if segment.is_replaced:
                raise FileNotFoundError(errno.ENOENT, "the segment was replaced", segment.name)
            entry = self._open.pop(segment, None)
            if entry is None:
                entry = _OpenFile(open_regular(segment.name, self._dir_fd))
            self._open[segment] = entry  # at the end: the order of the dict is the order of last use
            entry.users += 1
            self._shrink(self.LIMIT)
            return entry.fd

    def give_back(self, segment: Segment) -> None:
        """End the use of a borrowed descriptor."""
        with self._lock:
            entry = self._open[segment]
            entry.users -= 1
            if entry.is_released and not entry.users:
                os.close(self._open.pop(segment).fd)
            elif self._closed:
                self._shrink(0)

    def forget(self, segment: Segment) -> None:
        """Close the descriptor of a segment that was released, so that its room is given back."""
        with self._lock:
            self._release(segment)

    def replace(self, old: Segment, new: Segment, swap: Callable[[], None]) -> None:
        """Have `swap` put the file of `new` in the place of that of `old`; nobody opens one of them meanwhile.

        Who has borrowed `old` keeps it; it is not lent again, so that its offsets never meet the new file. When `swap`
        raises, it is `new` that is not lent.
        """
        with self._lock:
            new.is_replaced = True
            swap()
            new.is_replaced, old.is_replaced = False, True
            self._release(old)

    def _release(self, segment: Segment) -> None:
        entry = self._open.get(segment)
        if entry is None:
            return
        entry.is_released = True
        if not entry.users:
            os.close(self._open.pop(segment).fd)

    def close(self) -> None:
        """Close what nobody uses now, and the rest when it is given back."""
        with self._lock:
            self._closed = True
            self._shrink(0)
            os.close(self._dir_fd)

    def _shrink(self, limit: int) -> None:
        idle = [segment for segment, entry in self._open.items() if not entry.users]
        for segment in idle[: max(len(self._open) - limit, 0)]:
            os.close(self._open.pop(segment).fd)
