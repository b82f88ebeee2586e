"""Rewriting segments without their bad bytes, under the hands of a running log.

A damaged segment is never changed in place: a new file with the same header and every intact frame is written beside
it, compared with it frame by frame, made durable, and renamed over the old one. Whoever reads the old file meanwhile
keeps its descriptor and goes on with the new one at the next segment it opens.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest

import structlog

from edge.spool.errors import SpoolClosedError, SpoolFailedError
from edge.spool.files import (
    CREATE_FLAGS,
    Files,
    close_quietly,
    open_directory_again,
    read_at,
    remove_quietly,
    sync_directory,
    write_all,
)
from edge.spool.format import FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES, Frame, SegmentHeader, temporary_name
from edge.spool.quarantine import Quarantine
from edge.spool.recovery import discover
from edge.spool.scan import Damage, ReadAt, scan
from edge.spool.segment import Segment, SegmentFiles, SegmentIndex, View

logger = structlog.get_logger(__name__)

PAGE_SECS = 2.0
PAGE_ENTRIES = 1000
"""When one call ends: after so long, or with so much to tell; at least one segment is done."""
SEGMENT_ENTRIES = 200
"""Damaged ranges, and gaps, of one segment that are told one by one; the rest is told as a sum."""
_COPY_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be, and what became of it."""

    what: str
    segment: str
    offset: int
    n_bytes: int
    done: str
    mended: bool
    """False when it is still there."""


@dataclass(frozen=True, slots=True)
class Missing:
    """Events that were stored and are gone; nothing here brings them back."""

    segment: str
    """The segment in which, or behind which, they should be."""
    seq: int
    n_events: int


@dataclass(slots=True)
class RepairReport:
    """What looking through segments found and did."""

    segments: int = 0
    frames: int = 0
    events: int = 0
    position: int = 0
    """Where to go on."""
    end: int = 0
    """Where the log ended when this was made: nothing is left to do from there on."""
    findings: list[Finding] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)

    @property
    def missing_events(self) -> int:
        """How many events are gone."""
        return sum(gap.n_events for gap in self.missing)

    def add(self, other: RepairReport) -> None:
        """Go on with what a later call found."""
        self.segments += other.segments
        self.frames += other.frames
        self.events += other.events
        self.position, self.end = other.position, other.end
        self.findings += other.findings
        self.missing += other.missing


@dataclass(slots=True)
class Contents:
    """What is in one segment, frame by frame."""

    frames: int = 0
    events: int = 0
    end_seq: int = 0
    """Number behind the last event that counts."""
    intact: list[tuple[int, int]] = field(default_factory=list)
    """Ranges of the file that hold nothing but whole frames."""
    damage: list[Damage] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)


def examine(read: ReadAt, segment: Segment, data_end: int, position: int, end_seq: int | None) -> Contents:
    """Read a segment to its end. `position` is the first event it should have, `end_seq` where the next one starts.

    Every frame whose checksum is right is kept, also one that no reader returns (written in vain, or twice); only those
    that a reader returns are counted.
    """
    contents = Contents(end_seq=position)
    for item in scan(read, segment.header.key, segment.name, SEGMENT_HEADER_BYTES, data_end):
        if isinstance(item, Damage):
            contents.damage.append(item)
            continue
        stop = item.offset + FRAME_HEADER_BYTES + len(item.payload)
        if contents.intact and contents.intact[-1][1] == item.offset:
            contents.intact[-1] = contents.intact[-1][0], stop
        else:
            contents.intact.append((item.offset, stop))
        if item.end <= contents.end_seq or (end_seq is not None and item.end > end_seq):
            continue
        if item.seq > contents.end_seq:
            contents.missing.append(Missing(segment.name, contents.end_seq, item.seq - contents.end_seq))
        contents.frames += 1
        contents.events += item.n_events
        contents.end_seq = item.end
    if end_seq is not None and contents.end_seq < end_seq:
        contents.missing.append(Missing(segment.name, contents.end_seq, end_seq - contents.end_seq))
    return contents


def has_whole_header(read: ReadAt, header: SegmentHeader) -> bool:
    """Say whether both copies of a segment's header are intact."""
    data = read(0, SEGMENT_HEADER_BYTES)
    half = SEGMENT_HEADER_BYTES // 2
    return SegmentHeader.unpack(data[:half]) == header == SegmentHeader.unpack(data[half:])


def tell(report: RepairReport, segment: Segment, contents: Contents, *, done: str, mended: bool) -> None:
    """Add what a segment holds to a report; `done` says what became of its damaged ranges."""
    report.segments += 1
    report.frames += contents.frames
    report.events += contents.events
    for damage in contents.damage[:SEGMENT_ENTRIES]:
        report.findings.append(Finding("corrupt", segment.name, damage.offset, damage.length, done, mended))
    if more := contents.damage[SEGMENT_ENTRIES:]:
        what = f"corrupt, {len(more)} more ranges"
        size = sum(damage.length for damage in more)
        report.findings.append(Finding(what, segment.name, more[0].offset, size, done, mended))
    report.missing += contents.missing[:SEGMENT_ENTRIES]
    if rest := contents.missing[SEGMENT_ENTRIES:]:
        report.missing.append(Missing(segment.name, rest[0].seq, sum(gap.n_events for gap in rest)))


class Rewriter:
    """Looks through the segments of an open log and rewrites those that are damaged. Safe to use from any thread.

    The segment being written is read and left as it is.
    """

    def __init__(
        self,
        dir_fd: int,
        files: Files,
        index: SegmentIndex,
        segment_files: SegmentFiles,
        quarantine: Quarantine,
        lock: threading.Lock,
    ) -> None:
        self._dir_fd = dir_fd
        self._files = files
        self._index = index
        self._segment_files = segment_files
        self._quarantine = quarantine
        self._lock = lock
        """Held by who removes or replaces segments, and when the directory is given up."""
        self._one_at_a_time = threading.Lock()
        self._is_closed = False

    def close(self) -> None:
        """Replace nothing from now on: the directory is given up. The caller holds the lock."""
        self._is_closed = True

    def run(self, position: int, page_secs: float = PAGE_SECS) -> RepairReport:
        """Look through the segments from event `position` on, for about `page_secs`, and rewrite the damaged ones.

        Blocks. Raises `SpoolClosedError`, or `SpoolFailedError` when the disk refuses; what was done before is done.
        """
        deadline = time.monotonic() + page_secs
        with self._one_at_a_time:
            # A descriptor of its own: the log may be closed, and its number used again, while this goes on.
            with self._lock:
                if self._is_closed:
                    raise SpoolClosedError("the log is closed")
                dir_fd = open_directory_again(self._dir_fd)
            try:
                report = RepairReport(position=position, end=self._index.durable_seq)
                if not position:
                    self._adopt_unreadable(dir_fd, report)
                while report.position < report.end and (view := self._index.locate(report.position)) is not None:
                    self._look_through(dir_fd, view, report)
                    report.position = view.end_seq
                    if time.monotonic() >= deadline or len(report.findings) + len(report.missing) >= PAGE_ENTRIES:
                        break
                else:
                    report.position = max(report.position, report.end)
            except OSError as error:
                raise SpoolFailedError(f"the repair cannot go on: {error.strerror or error}") from error
            finally:
                os.close(dir_fd)
        return report

    def _adopt_unreadable(self, dir_fd: int, report: RepairReport) -> None:
        """Move files with a segment's name and no intact header into quarantine, unless they are known to be segments.

        The header of a segment that is known is in memory: it is read and rewritten like any other.
        """
        with self._lock:
            if self._is_closed:
                raise SpoolClosedError("the log is closed")
            known = self._index.names()
            for name, status in discover(dir_fd).unreadable.items():
                if name not in known:
                    moved = self._quarantine.adopt(name, status.st_size, status.st_blocks * 512)
                    report.findings.append(unreadable(name, status.st_size, moved=moved))

    def _look_through(self, dir_fd: int, view: View, report: RepairReport) -> None:
        if self._is_closed:
            raise SpoolClosedError("the log is closed")
        segment = view.segment
        position = max(report.position, segment.first_seq)
        try:
            fd = self._segment_files.borrow(segment)
        except FileNotFoundError:
            if self._index.holds(segment):
                report.missing.append(Missing(segment.name, position, view.end_seq - position))
            return
        try:
            read = partial(read_at, fd)
            contents = examine(read, segment, view.data_end, position, view.end_seq)
            is_headed = has_whole_header(read, segment.header)
            if is_headed and not contents.damage:
                tell(report, segment, contents, done="", mended=True)
                return
            if self._index.is_active(segment):
                done, mended = "left: it is being written", False
            else:
                done, mended = self._rewrite(dir_fd, segment, fd, contents)
            tell(report, segment, contents, done=done, mended=mended)
            if not is_headed:
                report.findings.append(headless(segment) if mended else headless(segment, done))
        finally:
            self._segment_files.give_back(segment)

    def _rewrite(self, dir_fd: int, segment: Segment, fd: int, contents: Contents) -> tuple[str, bool]:
        """Put a file without the damaged ranges in a segment's place; returns what was done, and whether it worked."""
        read = partial(read_at, fd)
        for damage in contents.damage:
            self._quarantine.damaged(segment.name, damage.offset, damage.length, read)
        name = temporary_name()
        try:
            size = self._write_copy(dir_fd, name, segment, fd, contents.intact)
            new = Segment(segment.name, segment.header, size, size, segment.aged_from, segment.end_seq)
            if not self._put_in_place(dir_fd, name, segment, new):
                return "gone with its segment: every sink is past it", True
        except OSError as error:
            logger.warning("a damaged segment could not be rewritten", segment=segment.name, error=str(error))
            return f"left: {error.strerror or error}", False
        finally:
            remove_quietly(self._files, dir_fd, name)
        sync_directory(self._files, dir_fd)
        self._quarantine.replaced(segment.name)
        n_bytes = sum(damage.length for damage in contents.damage)
        logger.info("a damaged segment was rewritten", segment=segment.name, n_bytes=n_bytes)
        return "moved to quarantine", True

    def _write_copy(self, dir_fd: int, name: str, segment: Segment, fd: int, intact: list[tuple[int, int]]) -> int:
        """Write the new file and make it durable; returns its size. `OSError` when it is not what it should be."""
        size = SEGMENT_HEADER_BYTES + sum(stop - start for start, stop in intact)
        copy = self._files.open(name, CREATE_FLAGS, dir_fd=dir_fd)
        try:
            self._files.fallocate(copy, size)
            end = write_all(self._files, copy, [segment.header.pack()], 0)
            for start, stop in intact:
                for offset in range(start, stop, _COPY_BYTES):
                    data = read_at(fd, offset, min(_COPY_BYTES, stop - offset))
                    end = write_all(self._files, copy, [data], end)
            if end != size or not _same_frames(segment, fd, intact, copy, size):
                raise OSError(errno.EIO, "the disk gives back something else at every look")
            # Its age is that of its events, not of this copy.
            status = os.fstat(fd)
            os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
            self._files.fsync(copy)
        finally:
            close_quietly(self._files, copy)
        return size

    def _put_in_place(self, dir_fd: int, name: str, old: Segment, new: Segment) -> bool:
        """Rename the new file over the old one and let readers see it; False when that was released meanwhile."""

        def swap() -> None:
            self._index.replace(old, new)
            try:
                self._files.rename(name, old.name, dir_fd=dir_fd)
            except OSError:
                self._index.replace(new, old)
                raise

        with self._lock:
            if self._is_closed:
                raise SpoolClosedError("the log is closed")
            if not self._index.holds(old):
                return False
            self._segment_files.replace(old, new, swap)
            return True


def headless(segment: Segment, left: str = "") -> Finding:
    """Return the finding for a segment one of whose headers is damaged, or both; `left` says why it still is."""
    return Finding("damaged header", segment.name, 0, SEGMENT_HEADER_BYTES, left or "written anew", not left)


def unreadable(name: str, size: int, *, moved: bool) -> Finding:
    """Return the finding for a file with a segment's name and no intact header."""
    done = "moved to quarantine" if moved else "left: quarantine has no room for it"
    return Finding("no intact header", name, 0, size, done, moved)


def _same_frames(segment: Segment, fd: int, intact: list[tuple[int, int]], copy: int, size: int) -> bool:
    """Say whether a copy holds the frames of the intact ranges, byte for byte, and nothing else."""
    found = scan(partial(read_at, copy), segment.header.key, segment.name, SEGMENT_HEADER_BYTES, size)
    for old, new in zip_longest(_items_in(segment, fd, intact), found):
        if not isinstance(old, Frame) or not isinstance(new, Frame):
            return False
        if (old.kind, old.seq, old.n_events, old.payload) != (new.kind, new.seq, new.n_events, new.payload):
            return False
    return True


def _items_in(segment: Segment, fd: int, ranges: list[tuple[int, int]]) -> Iterator[Frame | Damage]:
    for start, stop in ranges:
        yield from scan(partial(read_at, fd), segment.header.key, segment.name, start, stop)
