"""Opening a directory whatever is in it: find the segments, cut the torn tail, put aside what is not ours to read."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

import orjson
import structlog

from edge.spool.errors import SpoolFailedError, SpoolFormatError
from edge.spool.files import Files, close_quietly, open_regular, read_at, remove_quietly, write_durably
from edge.spool.format import (
    SEGMENT_HEADER_BYTES,
    SEQ_LIMIT,
    VERSION,
    SegmentHeader,
    is_temporary_name,
    parse_segment_name,
    segment_name,
)
from edge.spool.quarantine import Quarantine
from edge.spool.scan import find_tail
from edge.spool.segment import Segment

logger = structlog.get_logger(__name__)

META = "META.json"
_META_LIMIT_BYTES = 64 * 1024


@dataclass(slots=True)
class Discovery:
    """What lies in a directory."""

    segments: list[Segment] = field(default_factory=list)
    """In order of their first event."""
    unreadable: dict[str, os.stat_result] = field(default_factory=dict)
    """Files with a segment's name and no intact header."""
    ignored: list[str] = field(default_factory=list)
    """Entries with a segment's name that are links, FIFOs, directories, copies, or that cannot be opened."""
    temporary: list[str] = field(default_factory=list)
    """Segments that were being prepared."""
    highest_name: int = 0

    def count_name(self, number: int) -> None:
        """Take note of the number in a file's name."""
        if number < SEQ_LIMIT:
            self.highest_name = max(self.highest_name, number)


@dataclass(slots=True)
class Recovery:
    """What opening found and did."""

    segments: list[Segment]
    next_seq: int
    torn_bytes: int = 0
    """Bytes behind the last valid frame, cut off."""
    torn_at: tuple[str, int] = ("", 0)
    """Name of the segment that was cut, and where."""
    unreadable_segments: int = 0
    unreadable: dict[str, tuple[int, bool]] = field(default_factory=dict)
    """Files without an intact header: their sizes in bytes, and whether they could be moved to quarantine."""
    temporary: list[str] = field(default_factory=list)
    """Files that were never finished, removed."""
    ignored_entries: int = 0
    behind_cursor_events: int = 0
    """How far a cursor is ahead of the log's last event: the log lost its end, or a cursor is not of this log."""
    duration_secs: float = 0.0


def discover(dir_fd: int) -> Discovery:
    """Look at every entry of a directory without changing anything.

    Raises `SpoolFormatError` when a newer version wrote one of the segments, `SpoolFailedError` when one may not be
    read.
    """
    found = Discovery()
    now = time.monotonic()
    with os.scandir(dir_fd) as entries:
        names = [entry.name for entry in entries]
    for name in sorted(names):
        number = parse_segment_name(name)
        if number is None:
            if is_temporary_name(name):
                found.temporary.append(name)
            continue
        try:
            fd = open_regular(name, dir_fd)
        except OSError as error:
            is_regular = _is_regular(name, dir_fd)
            if is_regular and isinstance(error, PermissionError):
                # Going on without it would take its events for lost, and its last numbers for free.
                raise SpoolFailedError(
                    f"{name} may not be read: give it to the gateway's user, or move it away"
                ) from error
            found.ignored.append(name)
            if is_regular:
                found.count_name(number)
            continue
        found.count_name(number)
        try:
            status = os.fstat(fd)
            header = SegmentHeader.unpack(read_at(fd, 0, SEGMENT_HEADER_BYTES))
        finally:
            os.close(fd)
        if header is None or header.first_seq >= SEQ_LIMIT:
            found.unreadable[name] = status
            continue
        data_end = max(min(status.st_size, header.capacity), SEGMENT_HEADER_BYTES)
        found.segments.append(Segment(name, header, data_end, data_end, now))
    _leave_one_each(found)
    return found


def _is_regular(name: str, dir_fd: int) -> bool:
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _leave_one_each(found: Discovery) -> None:
    """Keep one segment for each first event, the one whose name says so: the others are copies."""
    best: dict[int, Segment] = {}
    for segment in found.segments:
        other = best.get(segment.first_seq)
        if other is None or parse_segment_name(segment.name) == segment.first_seq:
            best[segment.first_seq] = segment
    kept = sorted(best.values(), key=lambda segment: segment.first_seq)
    names = {segment.name for segment in kept}
    found.ignored.extend(segment.name for segment in found.segments if segment.name not in names)
    found.segments = kept


def check_meta(dir_fd: int) -> bool:
    """Say whether META.json is there and intact; raises `SpoolFormatError` when a newer version wrote it."""
    try:
        fd = open_regular(META, dir_fd)
    except OSError:
        return False
    try:
        data = read_at(fd, 0, _META_LIMIT_BYTES)
    finally:
        os.close(fd)
    try:
        meta = orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    version = meta.get("format") if isinstance(meta, dict) else None
    if not isinstance(version, int):
        return False
    if version > VERSION:
        raise SpoolFormatError(
            f"META.json has format version {version}, this program knows {VERSION}: use the version that wrote it"
        )
    return True


def recover(dir_fd: int, files: Files, quarantine: Quarantine, shard: str, floors: Iterable[int]) -> Recovery:
    """Make a directory fit to go on with. `floors` are the cursors' positions; the caller holds the lock.

    Only the last segment is looked through. `SpoolFormatError`, and `SpoolFailedError` for a segment that may not be
    read, are raised before anything is changed.
    """
    started = time.monotonic()
    has_meta = check_meta(dir_fd)
    found = discover(dir_fd)
    if not has_meta:
        try:
            write_durably(files, dir_fd, META, orjson.dumps({"format": VERSION, "shard": shard}))
        except OSError as error:  # a full disk must not stop the start; the segments describe themselves
            logger.warning("META.json could not be written", error=str(error))
    for name in found.temporary:
        remove_quietly(files, dir_fd, name)
    floor = max(floors, default=0)
    result = Recovery(
        found.segments,
        max(floor, found.highest_name),
        ignored_entries=len(found.ignored),
        temporary=found.temporary,
    )
    for name, status in found.unreadable.items():
        is_moved = quarantine.adopt(name, status.st_size, status.st_blocks * 512)
        result.unreadable[name] = status.st_size, is_moved
        result.unreadable_segments += 1
    end_of_log = 0
    empty = ""
    if found.segments:
        last = found.segments[-1]
        result.torn_bytes, end_of_log = _cut_tail(dir_fd, files, quarantine, last)
        result.torn_at = last.name, last.data_end
        if last.data_end == SEGMENT_HEADER_BYTES:
            found.segments.pop()
            empty = last.name  # stays until the next segment takes its name: the name holds the number
    result.next_seq = _free_number(dir_fd, max(result.next_seq, end_of_log), empty)
    result.behind_cursor_events = max(floor - end_of_log, 0)
    result.duration_secs = time.monotonic() - started
    _report(result, found, shard)
    return result


def _cut_tail(dir_fd: int, files: Files, quarantine: Quarantine, segment: Segment) -> tuple[int, int]:
    """Cut off what follows the last valid frame of a segment; returns the torn bytes and the next number."""
    segment.end_seq = segment.first_seq
    try:
        fd = files.open(segment.name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    except OSError:
        return 0, segment.first_seq  # gone, or not ours to write
    try:
        read = partial(read_at, fd)
        tail = find_tail(read, segment.header.key, SEGMENT_HEADER_BYTES, segment.data_end, segment.first_seq)
        if not tail.is_certain:
            logger.warning("the end of the spool cannot be told in time; nothing of it is cut", segment=segment.name)
        torn = max(tail.data_end - tail.end, 0)
        if torn:
            quarantine.damaged(segment.name, tail.end, torn, read)
        segment.end_seq = tail.end_seq or segment.first_seq
        next_seq = segment.end_seq
        # A segment that had been cut to its length before has no torn write at its end: what is damaged there was
        # stored, and the numbers it claims are used up.
        was_sealed = os.fstat(fd).st_size < segment.header.capacity
        segment.data_end = tail.end
        _cut(files, fd, segment)
        if not tail.is_certain:
            segment.end_seq = None
        return torn, max(next_seq, tail.claimed_seq if was_sealed else 0)
    finally:
        close_quietly(files, fd)


def _cut(files: Files, fd: int, segment: Segment) -> None:
    """Cut a segment to its data and make it durable: what is delivered from now on must not vanish."""
    try:
        if os.fstat(fd).st_size > segment.data_end:
            files.ftruncate(fd, segment.data_end)
        segment.size = segment.data_end
        files.fsync(fd)
    except OSError as error:
        logger.warning("a segment could not be cut", segment=segment.name, error=str(error))


def _free_number(dir_fd: int, seq: int, empty: str) -> int:
    """Return the first number from `seq` on whose file name is free, or taken by the `empty` segment or a link."""
    while True:
        name = segment_name(seq)
        try:
            mode = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode
        except OSError:
            return seq
        if name == empty or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return seq
        seq += 1


def _report(result: Recovery, found: Discovery, shard: str) -> None:
    fields = {
        "shard": shard,
        "segments": len(result.segments),
        "next_seq": result.next_seq,
        "torn_bytes": result.torn_bytes,
        "unreadable_segments": result.unreadable_segments,
        "ignored_entries": result.ignored_entries,
        "behind_cursor_events": result.behind_cursor_events,
    }
    if found.ignored or found.unreadable or result.behind_cursor_events:
        logger.warning("the spool was opened; not everything in it could be used", **fields)
    else:
        logger.info("the spool was opened", **fields)
