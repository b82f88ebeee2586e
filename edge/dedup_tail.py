"""What the spool's tail holds of stored events, for the ids to be remembered after a start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

from edge.event import parse_time, sent_ids, unpack
from edge.spool.format import EVENTS, Frame
from edge.spool.log import Log

READ_BYTES = 1024 * 1024

Stored = tuple[float, str, list[bytes]]
"""What is remembered of a frame: when it was received (seconds since the epoch, by the wall clock of then), the id of
the key, and the event_ids as they were sent, in UTF-8."""


def newest_segments(spool: Log, end: int, is_stopped: Callable[[], bool]) -> Iterator[Iterator[Stored]]:
    """Yield what each segment holds below event `end`: the newest segment first, but the oldest frame of each first.

    Blocks. The iterator of a segment raises `SpoolFailedError` when the segment cannot be opened now.
    """
    bounds = [*(seq for seq in spool.starts() if seq < end), end]
    for start, stop in reversed(list(pairwise(bounds))):
        yield _segment(spool, start, stop, is_stopped)


def _segment(spool: Log, position: int, stop: int, is_stopped: Callable[[], bool]) -> Iterator[Stored]:
    while position < stop and not is_stopped():
        result = spool.read(position, READ_BYTES, is_needed=False)
        for frame in result.frames:
            # Replayed events are not looked at: they were stored before, and what a sender sends again is not them.
            if frame.kind == EVENTS and frame.seq < stop and (stored := _stored(frame)) is not None:
                yield stored
        if result.position <= position:
            return
        position = result.position


def _stored(frame: Frame) -> Stored | None:
    """Return what is remembered of a frame; None for one that the gateway did not write."""
    try:
        meta, lines = unpack(frame.payload)
        return parse_time(meta["received_at"]).timestamp(), meta["key"], sent_ids(meta, lines)
    except (ValueError, TypeError, LookupError, AttributeError):
        return None
