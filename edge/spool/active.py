"""The segment that is being written and the room prepared for the one after it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from edge.spool.files import Buffer, Files, close_quietly, remove_quietly, write_all
from edge.spool.format import SEGMENT_HEADER_BYTES, FrameKey, segment_name
from edge.spool.segment import Prepared, Segment, SegmentIndex, activate, discard, prepare

logger = structlog.get_logger(__name__)

_LOOK_SECS = 1.0
"""How often the directory is looked at: whether it, and the file, are still where they were."""
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True)
class Shortage:
    """There is no room for the next segment."""

    most_bytes: int
    """What the segments may take for the next one to have room."""
    is_cap: bool
    """`max_bytes` is the limit; else the disk or a quota is, which others fill as well."""


class NoRoomError(OSError):
    """The next segment cannot be allocated."""

    def __init__(self, error: OSError, shortage: Shortage) -> None:
        super().__init__(error.errno, error.strerror)
        self.shortage = shortage


class ActiveSegment:
    """Owns the descriptor that frames are written to. Used by the writer thread alone.

    Methods raise `OSError` when the disk refuses; which of them may be tried again is the caller's to know.
    """

    def __init__(
        self,
        path: Path,
        dir_fd: int,
        files: Files,
        index: SegmentIndex,
        *,
        shard: str,
        segment_bytes: int,
        max_bytes: int,
        give_way: Callable[[int], int],
    ) -> None:
        self._path = path
        self._dir_fd = dir_fd
        self._files = files
        self._index = index
        self._shard = shard
        self._max_bytes = max_bytes
        self._give_way = give_way
        """Unlinks what is only kept until the segments take at most so many bytes; returns what it freed."""
        self._fd = -1
        self._ready: Prepared | None = None
        self._looked_at = time.monotonic()
        self.segment_bytes = max(segment_bytes, SEGMENT_HEADER_BYTES + 1)
        self.segment: Segment | None = None

    @property
    def room(self) -> int:
        """Bytes that still fit; 0 without a segment."""
        return self.segment.header.capacity - self.segment.data_end if self.segment is not None else 0

    @property
    def key(self) -> FrameKey:
        """What the frames of the segment are made with."""
        if self.segment is None:
            raise OSError(errno.EBADF, "there is no segment to write to")
        return self.segment.header.key

    @property
    def wants_ready(self) -> bool:
        """Say whether it is time to allocate room for the next segment."""
        segment = self.segment
        return segment is not None and self._ready is None and segment.data_end * 2 > segment.header.capacity

    def capacity_for(self, size: int) -> int:
        """Return the size of a segment that takes a frame of `size` bytes."""
        return max(self.segment_bytes, SEGMENT_HEADER_BYTES + size)

    def write(self, buffers: Sequence[Buffer]) -> int:
        """Write behind the last frame; returns the offset behind what was written."""
        if self.segment is None:
            raise OSError(errno.EBADF, "there is no segment to write to")
        now = time.monotonic()
        if now - self._looked_at > _LOOK_SECS:
            self._looked_at = now
            self._check_place()
        return write_all(self._files, self._fd, buffers, self.segment.data_end)

    def sync(self) -> None:
        """Make what was written durable. After an error only `cut` and `retire` are allowed."""
        self._files.fdatasync(self._fd)

    def cut(self) -> None:
        """Cut the file back to its last good byte."""
        if self.segment is not None:
            self._files.ftruncate(self._fd, self.segment.data_end)
            self._index.resize(self.segment, self.segment.data_end)

    def sync_cut(self) -> None:
        """Make a `cut` durable. Never after an error of `sync`."""
        self._files.fsync(self._fd)

    def retire(self) -> None:
        """Close the segment without another sync; what it holds stays readable."""
        if self.segment is not None:
            close_quietly(self._files, self._fd)
            self._index.seal(time.monotonic())
            self.segment, self._fd = None, -1

    def make_ready(self) -> None:
        """Allocate room for the next segment."""
        if self._ready is None:
            self._ready = self._prepare(self.segment_bytes)

    def start(self, capacity: int) -> None:
        """Go on with a fresh segment of at least `capacity` bytes; the old one ends only when the fresh one is safe."""
        self._check_directory()
        prepared, self._ready = self._ready, None
        if prepared is None or prepared.capacity < capacity:
            self._ready = prepared
            prepared = self._prepare(capacity)
        first_seq = self._index.durable_seq
        header = activate(self._files, self._dir_fd, prepared, first_seq, self._shard)
        try:
            self.cut()
        except OSError as error:
            logger.warning("a full segment could not be cut", error=str(error))
        self.retire()
        self._fd = prepared.fd
        self.segment = Segment(
            segment_name(first_seq), header, SEGMENT_HEADER_BYTES, prepared.capacity, time.monotonic()
        )
        self._index.start(self.segment)

    def finish(self) -> None:
        """End the segment for good: cut, durable, closed; an empty one goes when nothing depends on its name."""
        if self._ready is not None:
            discard(self._files, self._dir_fd, self._ready)
            self._ready = None
        segment = self.segment
        if segment is None:
            return
        try:
            self.cut()
            self.sync_cut()
        except OSError as error:
            logger.warning("the last segment could not be cut", error=str(error))
        is_empty = segment.data_end == SEGMENT_HEADER_BYTES
        before = self._index.before(segment)
        self.retire()
        # The name of an empty segment holds the number to go on with, unless the one before ends with that number.
        if is_empty and (segment.first_seq == 0 or (before is not None and before.end_seq == segment.first_seq)):
            remove_quietly(self._files, self._dir_fd, segment.name)

    def _prepare(self, capacity: int) -> Prepared:
        """Allocate room, in the place of segments that are only kept if need be; `NoRoomError` when there is none."""
        while True:
            try:
                return self._allocate(capacity)
            except NoRoomError as error:
                if not self._give_way(error.shortage.most_bytes):
                    raise

    def _allocate(self, capacity: int) -> Prepared:
        """Allocate room within `max_bytes`; a log without segments may always have one."""
        segments, used = self._index.totals()
        most_bytes = self._max_bytes - capacity - (self._ready.capacity if self._ready is not None else 0)
        if segments and used > most_bytes:
            raise NoRoomError(OSError(errno.ENOSPC, "max_bytes is reached"), Shortage(most_bytes, is_cap=True))
        try:
            return prepare(self._files, self._dir_fd, capacity)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise NoRoomError(error, Shortage(used - capacity, is_cap=False)) from error

    def _check_place(self) -> None:
        """Raise `OSError` when frames would go to a file that nobody will find again."""
        if os.fstat(self._fd).st_nlink == 0:
            raise OSError(errno.ENOENT, "the segment was removed")
        self._check_directory()

    def _check_directory(self) -> None:
        mine, there = os.fstat(self._dir_fd), self._path.stat()
        if (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino):
            raise OSError(errno.ENOENT, "the directory was replaced")
