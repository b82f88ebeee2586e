"""Following a log that another process writes: read-only, up to what that process has published as durable."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import threading
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edge.spool.errors import SpoolFailedError
from edge.spool.files import Files, open_directory
from edge.spool.observer import LogObserver, SilentObserver
from edge.spool.quarantine import Quarantine
from edge.spool.reader import Reader, ReadResult
from edge.spool.recovery import discover
from edge.spool.seam import Seam
from edge.spool.segment import Segment, SegmentFiles, View

GATHER_SECS = 0.02
"""How long commits are let add up before those who wait are told: 50 times a second at most. To be woken takes the
delivery process 0.1 ms, and a sink waits longer than this for its batch anyway."""
LOOK_SECS = 1.0
"""How often the seam is looked at without being woken, should a wake-up ever be missed."""


class FollowedIndex:
    """The segments of the log as its directory shows them. Safe to use from any thread.

    Read anew whenever the writer says that the list has changed. The segment being written is as long as its file: its
    frames are read one after the other, and the last one that is durable ends the reading.
    """

    def __init__(self, dir_fd: int, seam: Seam) -> None:
        self._dir_fd = dir_fd
        self._seam = seam
        self._lock = threading.Lock()
        self._layout = -1
        self._segments: list[Segment] = []
        self._firsts: list[int] = []
        self._inodes: dict[Segment, int] = {}
        self.on_gone: Callable[[Segment], None] = lambda segment: None
        """Called for each segment that is not part of the log any more, so that its room is given back."""

    @property
    def first_seq(self) -> int:
        """Number of the first event that may still be there."""
        durable_seq = self._seam.durable_seq
        with self._lock:
            self._refresh()
            return min(self._firsts[0], durable_seq) if self._firsts else durable_seq

    def locate(self, position: int) -> View | None:
        """Return the segment that holds event `position`, or the first one after it; None when nothing durable is."""
        # Before the list: a segment that holds something durable is listed by then.
        durable_seq = self._seam.durable_seq
        if position >= durable_seq:
            return None
        with self._lock:
            self._refresh()
            if not self._segments:
                return None
            at = max(bisect_right(self._firsts, position) - 1, 0)
            segment = self._segments[at]
            following = self._firsts[at + 1] if at + 1 < len(self._firsts) else durable_seq
            # The writer may have begun further segments since `durable_seq` was read.
            return View(segment, segment.data_end, min(following, durable_seq))

    def holds(self, segment: Segment) -> bool:
        """Say whether a segment is still part of the log."""
        with self._lock:
            self._layout = -1  # a segment is taken off the list before its file goes
            self._refresh()
            return segment in self._segments

    def _refresh(self) -> None:
        layout = self._seam.layout
        if layout == self._layout:
            return
        try:
            # Before the files are looked into: one that is replaced meanwhile will be found to be another one.
            with os.scandir(self._dir_fd) as entries:
                inodes = {entry.name: entry.inode() for entry in entries}
            discovery = discover(self._dir_fd)
            for name in discovery.ignored:
                self._refuse_to_miss(name)
        except OSError as error:
            raise SpoolFailedError(f"the spool's directory cannot be read: {error.strerror}") from error
        found = discovery.segments
        known = {(segment.name, self._inodes[segment]): segment for segment in self._segments}
        gone = set(self._segments)
        self._segments, self._firsts, self._inodes = [], [], {}
        for segment in found:
            inode = inodes.get(segment.name, 0)
            before = known.get((segment.name, inode))
            if before is not None:  # the object that readers have notes on
                before.data_end, before.size = segment.data_end, segment.size
            self._segments.append(before or segment)
            self._firsts.append(segment.first_seq)
            self._inodes[before or segment] = inode
        self._layout = layout
        for segment in gone.difference(self._segments):
            self.on_gone(segment)

    def _refuse_to_miss(self, name: str) -> None:
        """Raise `SpoolFailedError` for a segment that is there and could not be opened, for want of descriptors, say.

        Without it in the list its events would count as lost, and be passed.
        """
        with suppress(FileNotFoundError):
            if stat.S_ISREG(os.stat(name, dir_fd=self._dir_fd, follow_symlinks=False).st_mode):
                raise SpoolFailedError(f"{name} cannot be opened right now")

    def refresh(self, *, anyway: bool) -> bool:
        """Read the list anew if the writer has changed it, or anyway; return whether it has. Blocks."""
        with self._lock:
            has_changed = self._layout != self._seam.layout
            if anyway:
                self._layout = -1
            self._refresh()
            return has_changed

    def inode(self, segment: Segment) -> int:
        """Return the number of the file that a segment is known to be; 0 for one that is not known any more."""
        with self._lock:
            return self._inodes.get(segment, 0)


class FollowedFiles(SegmentFiles):
    """Open descriptors of segments whose files others replace: who repairs a segment gives its name to another file.

    Notes on where frames lie in the old file are not to meet the new one.
    """

    def __init__(self, dir_fd: int, index: FollowedIndex) -> None:
        super().__init__(dir_fd)
        self._index = index

    def borrow(self, segment: Segment) -> int:
        """Return a descriptor that stays open until `give_back`. `FileNotFoundError` when the file is another one."""
        fd = super().borrow(segment)
        if os.fstat(fd).st_ino == self._index.inode(segment):
            return fd
        self.give_back(segment)
        self.forget(segment)
        raise FileNotFoundError(errno.ENOENT, "the segment was replaced", segment.name)


class Follower:
    """What delivery sees of a log that another process owns. Bound to an event loop with `start`, ended with `close`.

    `read` may be called from any thread. Damage that is met is kept in the log's quarantine, as its owner would.
    """

    def __init__(self, path: Path, seam: Seam, observer: LogObserver | None = None) -> None:
        self.seam = seam
        self._dir_fd = open_directory(path)
        self._index = FollowedIndex(self._dir_fd, seam)
        self._quarantine = Quarantine(self._dir_fd, Files(), observer or SilentObserver())
        self._files = FollowedFiles(open_directory(path), self._index)
        self._index.on_gone = self._files.forget
        self._reader = Reader(self._index, self._files, self._quarantine)
        self._subscribers: dict[object, Callable[[int], None]] = {}
        self._loop: asyncio.AbstractEventLoop
        self._timer: asyncio.TimerHandle | None = None
        self._told = 0
        self._look_again = True
        self.on_wish: Callable[[], None] = lambda: None
        """Called on the loop when the owner of the log has no room."""

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to watch the seam; called on the loop, once."""
        self._loop = loop
        loop.add_reader(self.seam.wake_fd, self._woken)
        self._look()

    @property
    def durable_seq(self) -> int:
        """Every event below it is durable; nothing is read from it on."""
        return self.seam.durable_seq

    @property
    def first_seq(self) -> int:
        """Number of the first event that may still be in the log."""
        return self._index.first_seq

    def read(self, position: int, max_bytes: int, *, is_needed: bool = True) -> ReadResult:
        """Return frames from event `position` on, like the log itself."""
        return self._reader.read(position, max_bytes, is_needed=is_needed)

    def let_go(self) -> None:
        """Close what was opened of segments that are gone: as long as it is open, a file takes its room. Blocks.

        To be called every second or so: a segment is taken off the writer's list a moment before its file goes.
        """
        self._look_again = self._index.refresh(anyway=self._look_again)

    def subscribe(self, callback: Callable[[int], None]) -> Callable[[], None]:
        """Have `callback` called on the loop with `durable_seq` soon after commits; returns what ends that."""
        key = object()
        self._subscribers[key] = callback

        def unsubscribe() -> None:
            self._subscribers.pop(key, None)

        return unsubscribe

    def close(self) -> None:
        """Stop watching and give the descriptors back."""
        self._loop.remove_reader(self.seam.wake_fd)
        if self._timer is not None:
            self._timer.cancel()
        self._files.close()
        os.close(self._dir_fd)

    def _woken(self) -> None:
        self.seam.woken()
        self._look_in(GATHER_SECS)

    def _look_in(self, secs: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(secs, self._look)

    def _look(self) -> None:
        """Tell the subscribers what is new, then sleep until the writer has more."""
        durable_seq = self.seam.durable_seq
        if durable_seq != self._told:
            self._told = durable_seq
            for callback in tuple(self._subscribers.values()):
                callback(durable_seq)
        if self.seam.wish:
            self.on_wish()
        self.seam.sleep()
        # What was published before the writer could see that nobody is awake would wake nobody.
        self._look_in(LOOK_SECS if self.seam.durable_seq == durable_seq else GATHER_SECS)
