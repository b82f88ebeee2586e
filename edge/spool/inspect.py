"""Looking at a log from outside: read-only and without the lock, whether a gateway is running on it or not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

from edge.spool.cursor import Cursor, cursor_names, load_cursor
from edge.spool.errors import SpoolFailedError
from edge.spool.files import open_directory, open_regular, read_at
from edge.spool.format import SEGMENT_HEADER_BYTES, Frame
from edge.spool.recovery import check_meta, discover
from edge.spool.scan import Damage, Tail, find_tail, scan
from edge.spool.segment import Segment


@dataclass(frozen=True, slots=True)
class CorruptRange:
    """Bytes of a segment that are no valid frame."""

    segment: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Events that should be in the log and are not."""

    segment: str
    """The segment in which, or behind which, they should be."""
    seq: int
    n_events: int


@dataclass(slots=True)
class VerifyReport:
    """What reading every frame of a log found."""

    segments: int = 0
    frames: int = 0
    events: int = 0
    first_seq: int = 0
    next_seq: int = 0
    corrupt: list[CorruptRange] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    unfinished_bytes: int = 0
    """Bytes behind the last valid frame of the last segment: being written now, or torn."""
    unreadable: list[str] = field(default_factory=list)
    """Files with a segment's name and no intact header."""
    ignored: list[str] = field(default_factory=list)
    """Links, FIFOs, directories and copies with a segment's name."""

    @property
    def is_intact(self) -> bool:
        """True when every event that was stored can be read."""
        return not (self.corrupt or self.gaps or self.unreadable)


@dataclass(frozen=True, slots=True)
class SpoolStats:
    """The size of a log and where its cursors are."""

    segments: int
    bytes: int
    first_seq: int
    next_seq: int
    quarantine_bytes: int
    cursors: dict[str, Cursor | None]
    """None: both slots are damaged."""


def verify(path: Path) -> VerifyReport:
    """Read every frame of the log in directory `path`.

    Raises `SpoolFailedError` when there is no such directory, `SpoolFormatError` when a newer version wrote it.
    """
    report = VerifyReport()
    with _Directory(path) as directory:
        report.unreadable = list(directory.found.unreadable)
        report.ignored = directory.found.ignored
        segments = directory.found.segments
        report.first_seq = report.next_seq = segments[0].first_seq if segments else 0
        for at, segment in enumerate(segments):
            following = segments[at + 1].first_seq if at + 1 < len(segments) else None
            if directory.is_there(segment):
                report.segments += 1
                _verify_segment(directory, segment, following, report)
    return report


def _verify_segment(directory: _Directory, segment: Segment, following: int | None, report: VerifyReport) -> None:
    """Read one segment; `following` is where the next one starts, None for the last."""
    expected = report.next_seq
    damage: list[Damage] = []
    for item in directory.scan(segment, 0):
        if isinstance(item, Damage):
            damage.append(item)
            continue
        if item.end <= expected or (following is not None and item.end > following):
            continue
        _add_corrupt(report, segment, damage)
        if item.seq > expected:
            report.gaps.append(Gap(segment.name, expected, item.seq - expected))
        report.frames += 1
        report.events += item.n_events
        expected = item.end
    if following is None:
        following = directory.claimed_seq(segment) if damage else expected
        if following <= expected:
            report.unfinished_bytes = sum(item.length for item in damage)
    if expected < following:
        _add_corrupt(report, segment, damage)
        report.gaps.append(Gap(segment.name, expected, following - expected))
        expected = following
    report.next_seq = expected


def _add_corrupt(report: VerifyReport, segment: Segment, damage: list[Damage]) -> None:
    report.corrupt.extend(CorruptRange(segment.name, item.offset, item.length) for item in damage)
    damage.clear()


def stats(path: Path) -> SpoolStats:
    """Return the size of the log in directory `path` and its cursors; raises like `verify`."""
    with _Directory(path) as directory:
        segments = directory.found.segments
        next_seq = directory.end_seq(segments[-1]) if segments else 0
        return SpoolStats(
            segments=len(segments),
            bytes=sum(segment.size for segment in segments),
            first_seq=segments[0].first_seq if segments else 0,
            next_seq=next_seq,
            quarantine_bytes=sum(file.lstat().st_size for file in (path / "quarantine").glob("*")),
            cursors={name: load_cursor(path, name) for name in cursor_names(path)},
        )


def dump(path: Path, position: int = 0, limit_frames: int | None = None) -> Iterator[Frame]:
    """Yield the intact frames of the log in directory `path` from event `position` on; raises like `verify`."""
    with _Directory(path) as directory:
        segments = directory.found.segments
        for at, segment in enumerate(segments):
            following = segments[at + 1].first_seq if at + 1 < len(segments) else None
            if following is not None and following <= position:
                continue
            for item in directory.scan(segment, position):
                if isinstance(item, Damage) or item.end <= position or (following is not None and item.end > following):
                    continue
                if limit_frames is not None:
                    if limit_frames == 0:
                        return
                    limit_frames -= 1
                yield item
                position = item.end


class _Directory:
    """An open directory and what lies in it."""

    def __init__(self, path: Path) -> None:
        try:
            self._fd = open_directory(path)
        except OSError as error:
            raise SpoolFailedError(f"{path}: {error.strerror}") from error
        try:
            check_meta(self._fd)
            self.found = discover(self._fd)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)

    def is_there(self, segment: Segment) -> bool:
        """Say whether a segment was not released since the directory was listed."""
        try:
            os.close(open_regular(segment.name, self._fd))
        except OSError:
            return False
        return True

    def scan(self, segment: Segment, position: int) -> Iterator[Frame | Damage]:
        """Yield frames and damage of a segment; nothing when it was released meanwhile."""
        try:
            fd = open_regular(segment.name, self._fd)
        except OSError:
            return
        try:
            read = partial(read_at, fd)
            yield from scan(read, segment.header.key, segment.name, SEGMENT_HEADER_BYTES, segment.data_end, position)
        finally:
            os.close(fd)

    def end_seq(self, segment: Segment) -> int:
        """Return the number behind the last valid event of a segment."""
        tail = self._tail(segment)
        return tail.end_seq or segment.first_seq if tail is not None else segment.first_seq

    def claimed_seq(self, segment: Segment) -> int:
        """Return the number behind the last event that a segment had when it was ended in order; 0 if it was not.

        As in recovery: what is damaged at the end of such a segment was stored, and is not a write that was torn.
        """
        tail = self._tail(segment) if segment.size < segment.header.capacity else None
        return tail.claimed_seq if tail is not None else 0

    def _tail(self, segment: Segment) -> Tail | None:
        try:
            fd = open_regular(segment.name, self._fd)
        except OSError:
            return None
        try:
            read, key = partial(read_at, fd), segment.header.key
            return find_tail(read, key, SEGMENT_HEADER_BYTES, segment.data_end, segment.first_seq)
        finally:
            os.close(fd)
