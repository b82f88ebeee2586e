"""A range of the spool on its way to one sink again: frames that are still there, appended once more for that sink.

Page by page and by position, so that whoever asks can show how far it is, stop, and go on from there. The range ends
where the sink stands when it begins: what it has not had yet it gets anyway, and what is appended here is never met.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from edge.api import EdgeError
from edge.delivery.replay import Appendable, append_patiently
from edge.event import FrameMeta, pack, parse_time, unpack
from edge.spool.format import EVENTS, Frame
from edge.spool.reader import ReadResult

PAGE_BYTES = 1024 * 1024
"""Read, and appended, at once: what an interruption delivers twice at most."""
PAGE_READS = 8
"""So often a call reads on while nothing it read is meant."""
OLDEST_BYTES = 64 * 1024


class Readable(Protocol):
    """The part of a shard that a range is read from."""

    @property
    def first_seq(self) -> int:
        """Number of the first event that may still be there."""

    def read(self, position: int, max_bytes: int) -> ReadResult:
        """Return frames from a position on. Blocks."""


class Spool(Readable, Appendable, Protocol):
    """What a range is read from and appended to."""


class AppendedElsewhere:
    """A shard to read from, and the one to append to: that of who delivers, which another process's is not."""

    def __init__(self, source: Readable, target: Appendable) -> None:
        self.read = source.read
        self.append = target.append
        self._source = source

    @property
    def first_seq(self) -> int:
        """Number of the first event that may still be there."""
        return self._source.first_seq


@dataclass(frozen=True, slots=True)
class Range:
    """Which frames are meant: by when their events were received, and by where they lie."""

    since: datetime
    """Received at this time or later; with an offset."""
    until: datetime
    """Received before this time; with an offset."""
    end: int
    """Events from this position on are not meant."""

    def matches(self, meta: FrameMeta) -> bool:
        """Return whether the events of a frame were received within the range."""
        return self.since <= parse_time(str(meta.get("received_at", ""))) < self.until


@dataclass(slots=True)
class RangeReport:
    """How far a replay of a range came, and what it did."""

    position: int
    """Where to go on; at the range's end nothing is left."""
    matched: int = 0
    """Events that are meant."""
    moved: int = 0
    """Events that are in the spool again."""
    lost: int = 0
    """Events between the positions read that are not in the spool any more."""
    unreadable: int = 0
    """Events in frames that hold none of ours."""


class RangeInterruptedError(EdgeError):
    """The spool refused; what was appended before is delivered."""

    def __init__(self, report: RangeReport, cause: BaseException) -> None:
        super().__init__(str(cause) or type(cause).__name__)
        self.report = report
        """How far it came."""
        self.cause = cause


async def replay_page(
    log: Spool, sink_id: str, wanted: Range, position: int, *, max_bytes: int = PAGE_BYTES
) -> RangeReport:
    """Append the next frames of a range, from event `position` on, once more for one sink; durable on return.

    `RangeInterruptedError` says how far it came when the spool refuses. Raises the spool's errors of reading.
    """
    report = RangeReport(position)
    for _ in range(PAGE_READS):
        if report.position >= wanted.end:
            break
        result = await asyncio.to_thread(log.read, report.position, max_bytes)
        if result.position <= report.position:
            break
        await _append_again(log, sink_id, wanted, result, report)
        if report.matched:
            break
    report.position = min(report.position, wanted.end)
    return report


async def _append_again(log: Appendable, sink_id: str, wanted: Range, result: ReadResult, report: RangeReport) -> None:
    """Append what is meant of the frames that were read, and move the report's position behind them."""
    before = report.position
    report.lost += min(result.lost_events, wanted.end - before)
    waiting: list[tuple[int, int, asyncio.Future[int] | EdgeError]] = []
    for frame in result.frames:
        meta, begin, lines = events_of(frame, wanted, before, report)
        if not lines:
            continue
        payload = pack({**meta, "sink": sink_id, "replay_of": begin}, lines)
        try:
            waiting.append((begin, len(lines), await append_patiently(log, payload, len(lines))))
        except EdgeError as refusal:
            waiting.append((begin, len(lines), refusal))
            break
    await asyncio.gather(*(item for _, _, item in waiting if not isinstance(item, EdgeError)), return_exceptions=True)
    for begin, n_events, item in waiting:
        error = item if isinstance(item, EdgeError) else item.exception()
        if error is not None:
            report.position = begin
            raise RangeInterruptedError(report, error) from error
        report.moved += n_events
    report.position = result.position


def events_of(frame: Frame, wanted: Range, position: int, report: RangeReport) -> tuple[FrameMeta, int, list[bytes]]:
    """Return a frame's metadata, and number and lines of its events that are meant and lie at `position` or behind it.

    Counts them in the report. Frames that were replayed themselves are never meant: what they hold is there as well.
    """
    begin, end = max(frame.seq, position), min(frame.end, wanted.end)
    if frame.kind != EVENTS or begin >= end:
        return {}, begin, []
    try:
        meta, lines = unpack(frame.payload)
    except ValueError:
        meta, lines = {}, []
    if len(lines) != frame.n_events:
        report.unreadable += end - begin
        return {}, begin, []
    if not wanted.matches(meta):
        return {}, begin, []
    report.matched += end - begin
    return meta, begin, lines[begin - frame.seq : end - frame.seq]


def received_at(frame: Frame) -> datetime | None:
    """Return when a frame's events were received; None for a frame that holds none."""
    if frame.kind != EVENTS:
        return None
    try:
        meta, _ = unpack(frame.payload)
    except ValueError:
        return None
    return parse_time(str(meta.get("received_at", "")))


async def oldest_received_at(log: Readable, end: int) -> datetime | None:
    """Return when the oldest events before `end` that are still in the spool were received; None when none are."""
    position = log.first_seq
    while position < end:
        result = await asyncio.to_thread(log.read, position, OLDEST_BYTES)
        for frame in result.frames:
            moment = received_at(frame)
            if moment is not None and frame.seq < end:
                return moment
        if result.position <= position:
            break
        position = result.position
    return None
