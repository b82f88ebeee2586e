"""Reading the log from a position: bounded by what is durable, never stopped by damage."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from edge.spool.errors import SpoolFailedError
from edge.spool.files import read_at
from edge.spool.format import FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES, Frame
from edge.spool.quarantine import Quarantine
from edge.spool.scan import LEAST_BYTES, Damage, ReadAt, scan_runs
from edge.spool.segment import Segment, SegmentFiles, View

_CHUNK_BYTES = 64 * 1024
_LARGE_CHUNK_BYTES = 1024 * 1024
_HINTS = 256


class Index(Protocol):
    """The segments of a log in order, and how far they may be read."""

    def locate(self, position: int) -> View | None:
        """Return the segment that holds event `position`, or the first one after it; None when nothing durable is."""

    def holds(self, segment: Segment) -> bool:
        """Say whether a segment is still part of the log."""


@dataclass(slots=True)
class ReadResult:
    """What one `read` found."""

    frames: list[Frame] = field(default_factory=list)
    """In order and without a gap between them. The first one may start before the position that was asked for."""
    position: int = 0
    """Where to go on."""
    is_needed: bool = True
    """Whether somebody misses what is not there."""
    lost_events: int = 0
    """Events between the position that was asked for and the first frame (or `position`) that are not there."""


class Reader:
    """Reads frames for any number of sinks, each with a position of its own. Safe to use from any thread."""

    def __init__(self, index: Index, segment_files: SegmentFiles, quarantine: Quarantine) -> None:
        self._index = index
        self._segment_files = segment_files
        self._quarantine = quarantine
        self._lock = threading.Lock()
        self._hints: OrderedDict[int, tuple[Segment, int]] = OrderedDict()
        self._frame_bytes = LEAST_BYTES
        """Length of a frame, as those that were read last had it."""

    def read(self, position: int, max_bytes: int, *, is_needed: bool = True) -> ReadResult:
        """Return the frames from event `position` on, about `max_bytes` of payload, at least one if there is one.

        A frame counts as `LEAST_BYTES` at least.
        Raises `SpoolFailedError` when a segment cannot be opened now.
        """
        result = ReadResult(position=position, is_needed=is_needed)
        left = max(max_bytes, 1)
        while left > 0 and (view := self._index.locate(result.position)) is not None:
            first_seq = view.segment.first_seq
            if result.position < first_seq:  # released before this reader got there, so nothing of the log's is lost
                if result.frames:
                    break
                result.lost_events += first_seq - result.position
                result.position = first_seq
            taken = self._read_segment(view, result, left)
            if taken is None:
                break
            left -= taken
        return result

    def _read_segment(self, view: View, result: ReadResult, max_bytes: int) -> int | None:
        """Add the frames of one segment to the result.

        Returns what the frames that were added count as, in bytes; None when the result ends here.
        """
        segment = view.segment
        try:
            fd = self._segment_files.borrow(segment)
        except FileNotFoundError:
            if not self._index.holds(segment):
                return 0  # released meanwhile
            return self._skip(segment, view.end_seq, result)
        except OSError as error:
            raise SpoolFailedError(f"{segment.name} cannot be opened: {error.strerror}") from error
        try:
            return self._read_frames(partial(read_at, fd), view, result, max_bytes)
        finally:
            self._segment_files.give_back(segment)

    def _read_frames(self, read: ReadAt, view: View, result: ReadResult, max_bytes: int) -> int | None:
        segment = view.segment
        taken = 0
        for found in self._found(read, view, result.position, max_bytes):
            if isinstance(found, Damage):
                self._quarantine.damaged(segment.name, found.offset, found.length, read)
                continue
            run = _between(found, result.position, view.end_seq)
            if run:
                if run[0].seq > result.position and self._skip(segment, run[0].seq, result) is None:
                    # The next read begins at the gap: it is not to look for it from the start of the segment.
                    if result.frames[-1].segment == segment.name:
                        self._remember(segment, result.frames[-1:])
                    return None
                result.frames += run
                result.position = run[-1].end
                taken += sum([max(len(frame.payload), LEAST_BYTES) for frame in run])
                if taken >= max_bytes or result.position == view.end_seq:
                    self._remember(segment, run)
                    return taken
            if found[-1].end > view.end_seq:
                break  # written in vain before the next segment took over
        if result.position < view.end_seq:
            return None if self._skip(segment, view.end_seq, result) is None else taken
        return taken

    def _found(self, read: ReadAt, view: View, position: int, max_bytes: int) -> Iterator[list[Frame] | Damage]:
        segment = view.segment
        offset = self._offset(segment, position)
        size = self._frame_bytes
        # All that is asked for, in frames like the last ones, and one of these at least.
        expected = max(size, min(max_bytes, max_bytes * size // LEAST_BYTES))
        chunk_bytes = max(_CHUNK_BYTES, min(expected, _LARGE_CHUNK_BYTES))
        key, end = segment.header.key, view.data_end
        return scan_runs(read, key, segment.name, offset, end, position, chunk_bytes, max_bytes)

    def _skip(self, segment: Segment, seq: int, result: ReadResult) -> int | None:
        """Step over a gap up to `seq`; None when the frames before it have to be returned first."""
        if result.is_needed:
            self._quarantine.lost(segment.name, result.position, seq - result.position, 1)
        if result.frames:
            return None
        result.lost_events += seq - result.position
        result.position = seq
        return 0

    def _offset(self, segment: Segment, position: int) -> int:
        """Return where in a segment to look for `position`: the nearest place known that is not behind it."""
        with self._lock:
            hint = self._hints.get(position)
            if hint is not None and hint[0] is segment:
                self._hints.move_to_end(position)
                return hint[1]
            known = [(seq, at) for seq, (of, at) in self._hints.items() if of is segment and seq <= position]
        return max(known)[1] if known else SEGMENT_HEADER_BYTES

    def _remember(self, segment: Segment, run: list[Frame]) -> None:
        """Take note of where the frame after these starts, and of how long they are."""
        last = run[-1]
        end = last.offset + FRAME_HEADER_BYTES + len(last.payload)
        with self._lock:
            self._frame_bytes = (end - run[0].offset) // len(run) + 1
            self._hints[last.end] = segment, end
            self._hints.move_to_end(last.end)
            if len(self._hints) > _HINTS:
                self._hints.popitem(last=False)


def _between(frames: list[Frame], position: int, end_seq: int) -> list[Frame]:
    """Return those of some frames in order that end behind `position` and not behind `end_seq`."""
    if frames[0].end > position and frames[-1].end <= end_seq:
        return frames
    return [frame for frame in frames if position < frame.end <= end_seq]
