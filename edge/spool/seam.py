"""The seam between who writes a log and who reads it from another process: a shared page and a pipe to wake who reads.

The page is made by a parent before it forks, so that it outlives both sides: a writer that starts again goes on behind
the numbers it has published, and what a reader that is gone had released stays released. Nothing in it has to survive
the parent. Every field is one aligned word of eight bytes, stored and loaded whole, and has one side that writes it,
but for the word that says whether the reader sleeps: who wakes it takes it down.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress

from edge.spool.segment import Segment, SegmentIndex

_PAGE_BYTES = mmap.PAGESIZE
# The two sides write to different cache lines.
_GENERATION, _DURABLE, _LAYOUT, _WISH, _RELEASED, _ASLEEP = 0, 1, 2, 3, 8, 9


class Seam:
    """What writer and reader of one shard tell each other."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _PAGE_BYTES)
        # Native words, not `struct` with a byte order: that would store byte by byte.
        self._words = memoryview(self._memory).cast("Q")
        self.wake_fd, self._ring_fd = os.pipe()
        os.set_blocking(self.wake_fd, False)
        os.set_blocking(self._ring_fd, False)

    @property
    def generation(self) -> int:
        """How often a writer has opened the log; 0: the other fields say nothing yet."""
        return self._words[_GENERATION]

    def opened(self) -> None:
        """Say that the log is open and that its readers have their places."""
        self._words[_GENERATION] += 1
        self.wake()

    @property
    def durable_seq(self) -> int:
        """Every event below it is durable, whatever becomes of the writer."""
        return self._words[_DURABLE]

    def publish(self, durable_seq: int) -> None:
        """Let the reader go on up to an event, which is durable."""
        self._words[_DURABLE] = durable_seq
        if self._words[_ASLEEP]:
            self.wake()

    @property
    def layout(self) -> int:
        """Changes with the list of segments."""
        return self._words[_LAYOUT]

    def changed(self) -> None:
        """Say that the list of segments is another one."""
        self._words[_LAYOUT] += 1

    @property
    def wish(self) -> int:
        """The writer has no room: events before this one are to be given up where that is allowed; 0: it has."""
        return self._words[_WISH]

    @wish.setter
    def wish(self, position: int) -> None:
        self._words[_WISH] = position
        if position:
            self.wake()

    @property
    def released(self) -> int:
        """Every sink is durably past it."""
        return self._words[_RELEASED]

    @released.setter
    def released(self, position: int) -> None:
        self._words[_RELEASED] = position

    def sleep(self) -> None:
        """Have the reader woken by the next change."""
        self._words[_ASLEEP] = 1

    def wake(self) -> None:
        """Wake the reader, once for each `sleep`."""
        self._words[_ASLEEP] = 0
        with suppress(BlockingIOError, BrokenPipeError):  # a pipe that is full wakes as well
            os.write(self._ring_fd, b"\0")

    def woken(self) -> None:
        """Take note of having been woken."""
        with suppress(BlockingIOError):
            os.read(self.wake_fd, 4096)

    def close(self) -> None:
        """Give the pipe back; the page goes with the object."""
        os.close(self.wake_fd)
        os.close(self._ring_fd)


class SharedIndex(SegmentIndex):
    """The segments of a log that another process reads: whatever changes is said at the seam."""

    def __init__(self, segments: list[Segment], durable_seq: int, seam: Seam) -> None:
        super().__init__(segments, durable_seq)
        self._seam = seam
        seam.changed()
        seam.publish(durable_seq)

    def publish(self, data_end: int, durable_seq: int) -> None:
        """Let readers see the active segment up to `data_end`, here and elsewhere."""
        super().publish(data_end, durable_seq)
        self._seam.publish(durable_seq)

    def start(self, segment: Segment) -> None:
        """Add the segment that is written from now on. Its file has its name already."""
        super().start(segment)
        self._seam.changed()

    def replace(self, old: Segment, new: Segment) -> None:
        """Let `new` stand in the place of `old`."""
        super().replace(old, new)
        self._seam.changed()

    def drop(self, segment: Segment) -> None:
        """Forget a segment whose file is gone, or about to go."""
        super().drop(segment)
        self._seam.changed()

    def put_back(self, segment: Segment) -> None:
        """Take note that a segment's file could not be removed."""
        super().put_back(segment)
        self._seam.changed()
