"""Repairing a directory that no gateway has: at once what starts and readers would do one by one, and what they found.

Nothing here brings events back. It takes damaged bytes out of the way, keeps a copy of them, and says what is gone.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from edge.spool.cursor import cursor_names, load_cursor
from edge.spool.errors import SpoolFailedError
from edge.spool.files import Files, open_directory, open_regular, read_at
from edge.spool.format import SEGMENT_HEADER_BYTES
from edge.spool.lock import LOCK
from edge.spool.log import Log
from edge.spool.recovery import META, Discovery, Recovery, check_meta, discover
from edge.spool.rewrite import (
    Contents,
    Finding,
    Missing,
    RepairReport,
    examine,
    has_whole_header,
    headless,
    tell,
    unreadable,
)
from edge.spool.scan import find_tail
from edge.spool.segment import Segment

__all__ = ["Finding", "Missing", "RepairReport", "plan", "repair"]

Progress = Callable[[RepairReport], None]
_SEGMENT_BYTES = 4096
"""Of the segment that opening the log begins; it is gone when the log is closed, or holds nothing but its number."""


def repair(path: Path, progress: Progress | None = None, *, files: Files | None = None) -> RepairReport:
    """Repair the log in directory `path` and return what was found and done; `progress` hears of every page. Blocks.

    Raises `SpoolLockedError` when a process owns the directory, `SpoolFormatError` when a newer version wrote it,
    `SpoolFailedError` when it is no directory of segments or the disk refuses. Can be interrupted and run again.
    """
    _check_place(path)
    log = Log.open(path, segment_bytes=_SEGMENT_BYTES, max_bytes=sys.maxsize, files=files)
    try:
        report = _of_start(log.recovery)
        while report.position < log.durable_seq:
            report.add(log.repair(report.position))
            if progress is not None:
                progress(report)
    finally:
        asyncio.run(log.close())
    return report


def plan(path: Path) -> RepairReport:
    """Return what `repair` would find and do, without the lock and without changing anything. Raises like `repair`.

    Beside a running gateway the end of the last segment is in motion: what is found there may be a frame that is being
    written.
    """
    _check_place(path)
    floor = max((cursor.position for name in cursor_names(path) if (cursor := load_cursor(path, name))), default=0)
    dir_fd = open_directory(path)
    try:
        check_meta(dir_fd)
        found = discover(dir_fd)
        report = RepairReport()
        for name, status in found.unreadable.items():
            report.findings.append(unreadable(name, status.st_size, moved=True))
        report.findings += [_leftover(name) for name in found.temporary]
        _plan_segments(dir_fd, found, floor, report)
    finally:
        os.close(dir_fd)
    return report


def _check_place(path: Path) -> None:
    """Raise `SpoolFailedError` for a directory that holds no log: opening one would make it."""
    try:
        dir_fd = open_directory(path)
    except OSError as error:
        raise SpoolFailedError(f"{path}: {error.strerror}") from error
    try:
        found = discover(dir_fd)
    finally:
        os.close(dir_fd)
    is_log = any((path / name).exists() for name in (LOCK, META))
    if not (is_log or found.segments or found.unreadable or found.temporary):
        raise SpoolFailedError(f"{path} holds no segments")


def _of_start(recovery: Recovery) -> RepairReport:
    """Return what opening the log did."""
    report = RepairReport()
    for name, (size, is_moved) in recovery.unreadable.items():
        report.findings.append(unreadable(name, size, moved=is_moved))
    report.findings += [_leftover(name) for name in recovery.temporary]
    if recovery.torn_bytes:
        report.findings.append(_torn(*recovery.torn_at, recovery.torn_bytes))
    return report


def _leftover(name: str) -> Finding:
    return Finding("never finished", name, 0, 0, "removed", mended=True)


def _torn(name: str, offset: int, n_bytes: int) -> Finding:
    return Finding("torn end", name, offset, n_bytes, "moved to quarantine", mended=True)


def _plan_segments(dir_fd: int, found: Discovery, floor: int, report: RepairReport) -> None:
    """Add what looking through the segments finds, in the words of what would be done about it."""
    report.end = max(floor, found.highest_name)
    followings = [*(segment.first_seq for segment in found.segments[1:]), None]
    for segment, following in zip(found.segments, followings, strict=True):
        position = max(report.position, segment.first_seq)
        report.position = following or position
        try:
            fd = open_regular(segment.name, dir_fd)
        except OSError:
            continue  # released since the directory was listed
        try:
            read = partial(read_at, fd)
            contents = examine(read, segment, segment.data_end, position, following)
            if following is None:
                _plan_end(fd, segment, contents, report)
            tell(report, segment, contents, done="moved to quarantine", mended=True)
            if not has_whole_header(read, segment.header):
                report.findings.append(headless(segment))
        finally:
            os.close(fd)
        report.position = max(report.position, contents.end_seq)


def _plan_end(fd: int, segment: Segment, contents: Contents, report: RepairReport) -> None:
    """Tell the torn end of the last segment from damage within it, and where numbers go on from what is missing."""
    data_end = contents.intact[-1][1] if contents.intact else SEGMENT_HEADER_BYTES
    torn = [damage for damage in contents.damage if damage.offset >= data_end]
    if torn:
        contents.damage = contents.damage[: -len(torn)]
        report.findings.append(_torn(segment.name, data_end, torn[-1].offset + torn[-1].length - data_end))
    claimed = 0
    if os.fstat(fd).st_size < segment.header.capacity:  # was ended in order: what is damaged at its end was stored
        read = partial(read_at, fd)
        key = segment.header.key
        claimed = find_tail(read, key, SEGMENT_HEADER_BYTES, segment.data_end, segment.first_seq).claimed_seq
    report.end = max(report.end, contents.end_seq, claimed)
    if report.end > contents.end_seq:
        contents.missing.append(Missing(segment.name, contents.end_seq, report.end - contents.end_seq))
