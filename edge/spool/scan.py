"""Finding frames in the bytes of a segment: forward for readers, backward for recovery."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from zlib import crc32

from edge.spool.format import (
    CHECKED_BYTES,
    FRAME,
    FRAME_HEADER_BYTES,
    FRAME_MAGIC,
    FRAME_PATTERN,
    Frame,
)

ReadAt = Callable[[int, int], bytes]
"""Takes offset and size, returns the bytes there; fewer only at the end of the file."""

CHUNK_BYTES = 256 * 1024


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


def scan(
    read: ReadAt, seed: int, segment: str, offset: int, end: int, position: int = 0, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[Frame | Damage]:
    """Yield the frames that start in `[offset, end)` and the damaged ranges between them, in order.

    Frames that end at or before event `position` are stepped over; only their headers are checked. Zeros up to `end`
    are room that was never written and are not reported.
    """
    data, base = b"", offset
    view = memoryview(data)
    while offset < end:
        at = offset - base
        if at + FRAME_HEADER_BYTES > len(data):
            data, base, at = read(offset, min(chunk_bytes, end - offset)), offset, 0
            view = memoryview(data)
            if len(data) < FRAME_HEADER_BYTES:
                if data.strip(b"\0"):
                    yield Damage(offset, len(data))
                return
        magic, kind, n_events, length, seq, check, crc = FRAME.unpack_from(data, at)
        stop = offset + FRAME_HEADER_BYTES + length
        if magic != FRAME_MAGIC or crc32(view[at : at + CHECKED_BYTES], seed) != check or stop > end:
            found, data_end = _next_header(read, seed, offset + 1, end)
            if found < end or data_end > offset + 1 or data[at]:
                yield Damage(offset, (found if found < end else data_end) - offset)
            offset = found
            continue
        if seq + n_events <= position:
            offset = stop
            continue
        if at + FRAME_HEADER_BYTES + length > len(data):
            data, base, at = read(offset, min(max(chunk_bytes, stop - offset), end - offset)), offset, 0
            view = memoryview(data)
        payload = data[at + FRAME_HEADER_BYTES : at + FRAME_HEADER_BYTES + length]
        if crc32(payload, check) == crc:
            yield Frame(kind, seq, n_events, payload, segment, offset)
        else:
            yield Damage(offset, stop - offset)
        offset = stop


def _next_header(read: ReadAt, seed: int, offset: int, end: int) -> tuple[int, int]:
    """Return where the next valid frame header starts (`end` when there is none) and where the bytes before it end."""
    data_end = offset
    while offset < end:
        data = read(offset, min(CHUNK_BYTES, end - offset))
        if not data:
            break
        for match in FRAME_PATTERN.finditer(data):
            if _header_at(read, data, offset, match.start(), seed, end):
                return offset + match.start(), offset + match.start()
        content = len(data.rstrip(b"\0"))
        if content:
            data_end = offset + content
        # The last bytes are looked at again: a header may start in them. What is shorter than a header is none.
        step = len(data) - FRAME_HEADER_BYTES + 1
        if step <= 0 or offset + len(data) >= end:
            break
        offset += step
    return end, data_end


def _header_at(read: ReadAt, data: bytes, base: int, at: int, seed: int, end: int) -> tuple[int, int, int, int] | None:
    """Return (stop offset, end seq, header crc, crc) of a valid frame header at `base + at`, else None."""
    head = data[at : at + FRAME_HEADER_BYTES]
    if len(head) < FRAME_HEADER_BYTES:
        head = read(base + at, FRAME_HEADER_BYTES)
        if len(head) < FRAME_HEADER_BYTES:
            return None
    _, _, n_events, length, seq, check, crc = FRAME.unpack(head)
    stop = base + at + FRAME_HEADER_BYTES + length
    if crc32(head[:CHECKED_BYTES], seed) != check or stop > end:
        return None
    return stop, seq + n_events, check, crc


def find_tail(read: ReadAt, seed: int, start: int, end: int) -> Tail:
    """Find the last valid frame in `[start, end)`, looking backward: the cost is what lies behind it, not before."""
    claimed_seq = 0
    data_end = start
    high = end
    while high > start:
        low = max(start, high - CHUNK_BYTES)
        data = read(low, min(high + FRAME_HEADER_BYTES, end) - low)
        if data_end == start:
            content = len(data.rstrip(b"\0"))
            data_end = low + content if content else start
        if FRAME_MAGIC in data:
            for match in reversed(list(FRAME_PATTERN.finditer(data))):
                header = _header_at(read, data, low, match.start(), seed, end)
                if header is None:
                    continue
                stop, end_seq, check, crc = header
                claimed_seq = max(claimed_seq, end_seq)
                if _checksum(read, low + match.start() + FRAME_HEADER_BYTES, stop, check) == crc:
                    return Tail(stop, end_seq, claimed_seq, max(data_end, stop))
        high = low
    return Tail(start, None, claimed_seq, data_end)


def _checksum(read: ReadAt, offset: int, end: int, crc: int) -> int | None:
    """Return the checksum of a range, read piece by piece; None when the file is shorter."""
    while offset < end:
        data = read(offset, min(CHUNK_BYTES, end - offset))
        if not data:
            return None
        crc = crc32(data, crc)
        offset += len(data)
    return crc
