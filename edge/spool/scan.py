"""Finding frames in the bytes of a segment: forward for readers, backward for recovery."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from struct import Struct

from edge.spool.checksum import crc32
from edge.spool.format import (
    CHECKED_BYTES,
    FRAME,
    FRAME_EVENTS,
    FRAME_HEADER_BYTES,
    FRAME_MAGIC,
    Frame,
    FrameKey,
)

ReadAt = Callable[[int, int], bytes]
"""Takes offset and size, returns the bytes there; fewer only at the end of the file."""

CHUNK_BYTES = 256 * 1024
LEAST_BYTES = 1536
"""What a frame counts as at least where frames are asked for by bytes: to handle one takes as long as so many bytes."""
PATIENCE_SECS = 0.75
"""How long `find_tail` looks for an intact frame, and then for headers: far more than what was not made up needs."""
_RESIDUE = crc32(crc32(b"").to_bytes(4, "little"))
"""What the crc of any bytes followed by their own crc is, wherever it was started."""
_FIELDS = Struct("<8xIIQII")
"""Events, length, seq, header crc, crc of a header."""
_REST = Struct("<4xI4xQ4x")
"""Events and seq in what follows the magic."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A range of a segment that is no valid frame."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Tail:
    """How a segment ends."""

    end: int
    """Offset behind the last valid frame."""
    end_seq: int | None
    """Number behind the last valid event; None without a valid frame."""
    claimed_seq: int
    """Number behind the last event that a valid frame header speaks of, payload intact or not; 0 when none does."""
    data_end: int
    """Offset behind the last byte that is not zero."""
    is_certain: bool = True
    """False: patience ended first. `end` is then `data_end`, and no frame has a number past `end_seq`."""


def scan(
    read: ReadAt, key: FrameKey, segment: str, offset: int, end: int, position: int = 0, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[Frame | Damage]:
    """Yield the frames that start in `[offset, end)` and the damaged ranges between them, in order.

    Frames that end at or before event `position` are stepped over; only their headers are checked. Zeros up to `end`
    are room that was never written and are not reported.
    """
    for found in scan_runs(read, key, segment, offset, end, position, chunk_bytes):
        if isinstance(found, Damage):
            yield found
        else:
            yield from found


def scan_runs(
    read: ReadAt,
    key: FrameKey,
    segment: str,
    offset: int,
    end: int,
    position: int = 0,
    chunk_bytes: int = CHUNK_BYTES,
    max_bytes: int = sys.maxsize,
) -> Iterator[list[Frame] | Damage]:
    """Yield what `scan` does, frames by the list: such as lie side by side, their numbers without a gap.

    The frame that brings them to `max_bytes` of payload is the last of its list; behind it they come one by one. Each
    counts as `LEAST_BYTES` at least.
    """
    headers = _Headers(key, end - offset)
    data, base, left = b"", offset, max_bytes
    while offset < end:
        at = offset - base
        if at + FRAME_HEADER_BYTES > len(data):
            data, base, at = read(offset, min(chunk_bytes, end - offset)), offset, 0
            if len(data) < FRAME_HEADER_BYTES:
                if data.strip(b"\0"):
                    yield Damage(offset, len(data))
                return
        run, left = _run(data, at, base, min(end - base, len(data)), key.seed, segment, position, left)
        if run:
            yield run
            offset = run[-1].offset + FRAME_HEADER_BYTES + len(run[-1].payload)
            continue
        magic, kind, _, n_events, length, seq, check, crc = FRAME.unpack_from(data, at)
        stop = offset + FRAME_HEADER_BYTES + length
        if magic != FRAME_MAGIC or crc32(data[at : at + CHECKED_BYTES], key.seed) != check or stop > end:
            found, data_end = _next_header(read, headers, offset + 1, end)
            if found < end or data_end > offset + 1 or data[at]:
                yield Damage(offset, (found if found < end else data_end) - offset)
            offset = found
            continue
        if seq + n_events <= position:
            offset = stop
            continue
        if at + FRAME_HEADER_BYTES + length > len(data):
            # The rest of the chunk would only be read once more, were this the last frame that is asked for.
            size = max(stop - offset, min(chunk_bytes, left))
            data, base, at = read(offset, min(size, end - offset)), offset, 0
        payload = data[at + FRAME_HEADER_BYTES : at + FRAME_HEADER_BYTES + length]
        if crc32(payload, check) == crc:
            yield [Frame(kind, seq, n_events, payload, segment, offset)]
            left -= max(length, LEAST_BYTES)
        else:
            yield Damage(offset, stop - offset)
        offset = stop


def _run(
    data: bytes, at: int, base: int, end: int, seed: int, segment: str, position: int, max_bytes: int
) -> tuple[list[Frame], int]:
    """Return the intact frames that lie side by side in `data[at:end]`, behind `position`; none when the first is odd.

    They end with the one that brings them to `max_bytes`. The second value is what of these is left.

    What there is of a reader's work with single events is done here, in one loop without a call of ours.
    """
    run: list[Frame] = []
    unpack, new = FRAME.unpack_from, tuple.__new__
    next_seq = -1
    left = max(max_bytes, 1)
    while at + FRAME_HEADER_BYTES <= end and left > 0:
        magic, kind, _, n_events, length, seq, check, crc = unpack(data, at)
        start = at + FRAME_HEADER_BYTES
        stop = start + length
        if magic != FRAME_MAGIC or stop > end or seq + n_events <= position or (run and seq != next_seq):
            break
        payload = data[start:stop]
        if crc32(data[at : at + CHECKED_BYTES], seed) != check or crc32(payload, check) != crc:
            break
        run.append(new(Frame, (kind, seq, n_events, payload, segment, base + at)))
        next_seq = seq + n_events
        left -= max(length, LEAST_BYTES)
        at = stop
    return run, left


class _Headers:
    """Finds the valid frame headers in some bytes of a segment; `room` is the most that a frame may take."""

    def __init__(self, key: FrameKey, room: int) -> None:
        self._key = key
        self._room = room
        self._pattern: re.Pattern[bytes] | None = None
        self._seed = crc32(FRAME_MAGIC, key.seed)
        self._expects_many = False

    def find(self, data: bytes) -> list[int]:
        """Return where they start, in order."""
        if FRAME_MAGIC not in data:
            return []
        # Without their places first: that is twice as fast where all that looks like a header is none.
        if not self._expects_many and not self._rests(data):
            return []
        seed = self._seed
        found = [match.start() for match in self._compiled().finditer(data) if crc32(match[1], seed) == _RESIDUE]
        self._expects_many = bool(found)
        return found

    def claimed_seq(self, data: bytes) -> int:
        """Return the number behind the last event that they speak of."""
        return max((seq + n_events for n_events, seq in map(_REST.unpack, self._rests(data))), default=0)

    def _rests(self, data: bytes) -> list[bytes]:
        """Return what follows the magic in them, up to their crc."""
        seed = self._seed
        return [rest for rest in self._compiled().findall(data) if crc32(rest, seed) == _RESIDUE]

    def _compiled(self) -> re.Pattern[bytes]:
        if self._pattern is None:
            self._pattern = self._key.pattern(self._room)
        return self._pattern


def _next_header(read: ReadAt, headers: _Headers, offset: int, end: int) -> tuple[int, int]:
    """Return where the next valid frame header starts (`end` when there is none) and where the bytes before it end."""
    data_end = offset
    while offset < end:
        data = read(offset, min(CHUNK_BYTES, end - offset))
        for at in headers.find(data):
            length = _FIELDS.unpack_from(data, at)[1]
            if offset + at + FRAME_HEADER_BYTES + length <= end:
                return offset + at, offset + at
        content = len(data.rstrip(b"\0"))
        if content:
            data_end = offset + content
        if len(data) < FRAME_HEADER_BYTES or offset + len(data) >= end:
            break
        offset += len(data) - FRAME_HEADER_BYTES + 1  # the last bytes are looked at again: a header may start in them
    return end, data_end


def find_tail(
    read: ReadAt, key: FrameKey, start: int, end: int, first_seq: int, patience_secs: float = PATIENCE_SECS
) -> Tail:
    """Find the last valid frame in `[start, end)`, looking backward: the cost is what lies behind it, not before.

    Bytes that were made to look like frames can make that long. After `patience_secs` the payloads are not looked at
    any more, and after as long again not even the headers. Then everything counts as data, nothing of which is to be
    cut, and the numbers go on behind all that the headers say, or that so many bytes can hold from `first_seq` on.
    """
    headers = _Headers(key, end - start)
    claimed_seq = 0
    data_end = start
    high = end
    is_certain = True
    started = time.monotonic()
    while high > start:
        if time.monotonic() - started > 2 * patience_secs:
            most_events = (high - start) // FRAME_HEADER_BYTES * FRAME_EVENTS
            claimed_seq, is_certain = max(claimed_seq, first_seq + most_events), False
            data_end = max(data_end, high)
            break
        low = max(start, high - CHUNK_BYTES)
        data = read(low, min(high + FRAME_HEADER_BYTES, end) - low)
        if data_end == start:
            content = len(data.rstrip(b"\0"))
            data_end = low + content if content else start
        if not is_certain:
            claimed_seq = max(claimed_seq, headers.claimed_seq(data))
            high = low
            continue
        for at in reversed(headers.find(data)):
            n_events, length, seq, check, crc = _FIELDS.unpack_from(data, at)
            begin = at + FRAME_HEADER_BYTES
            stop = begin + length
            if low + stop > end:
                continue
            if seq + n_events > claimed_seq:
                claimed_seq = seq + n_events
            if time.monotonic() - started > patience_secs:
                is_certain = False
            elif (
                crc32(data[begin:stop], check) if stop <= len(data) else _checksum(read, data, low, begin, stop, check)
            ) == crc:
                return Tail(low + stop, seq + n_events, claimed_seq, max(data_end, low + stop))
        high = low
    if is_certain:
        return Tail(start, None, claimed_seq, data_end)
    return Tail(data_end, max(claimed_seq, first_seq), claimed_seq, data_end, is_certain=False)


def _checksum(read: ReadAt, data: bytes, base: int, start: int, stop: int, crc: int) -> int | None:
    """Return the checksum of `[start, stop)` counted from `base`, where `data` starts; None at the end of the file."""
    crc = crc32(data[start:stop], crc)
    offset, end = base + max(start, len(data)), base + stop
    while offset < end:
        piece = read(offset, min(CHUNK_BYTES, end - offset))
        if not piece:
            return None
        crc = crc32(piece, crc)
        offset += len(piece)
    return crc
