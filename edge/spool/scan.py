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
    Frame,
    FrameKey,
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
    read: ReadAt, key: FrameKey, segment: str, offset: int, end: int, position: int = 0, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[Frame | Damage]:
    """Yield the frames that start in `[offset, end)` and the damaged ranges between them, in order.

    Frames that end at or before event `position` are stepped over; only their headers are checked. Zeros up to `end`
    are room that was never written and are not reported.
    """
    seed = key.seed
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
        magic, kind, _, n_events, length, seq, check, crc = FRAME.unpack_from(data, at)
        stop = offset + FRAME_HEADER_BYTES + length
        if magic != FRAME_MAGIC or crc32(view[at : at + CHECKED_BYTES], seed) != check or stop > end:
            found, data_end = _next_header(read, key, offset + 1, end)
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


def _next_header(read: ReadAt, key: FrameKey, offset: int, end: int) -> tuple[int, int]:
    """Return where the next valid frame header starts (`end` when there is none) and where the bytes before it end."""
    pattern = key.pattern
    data_end = offset
    while offset < end:
        data = read(offset, min(CHUNK_BYTES, end - offset))
        for match in pattern.finditer(data):
            at = match.start()
            if at + FRAME_HEADER_BYTES > len(data):
                break
            stop, _, check, _ = _header(data, at, offset)
            if stop <= end and crc32(data[at : at + CHECKED_BYTES], key.seed) == check:
                return offset + at, offset + at
        content = len(data.rstrip(b"\0"))
        if content:
            data_end = offset + content
        if len(data) < FRAME_HEADER_BYTES or offset + len(data) >= end:
            break
        offset += len(data) - FRAME_HEADER_BYTES + 1  # the last bytes are looked at again: a header may start in them
    return end, data_end


def _header(data: bytes, at: int, base: int) -> tuple[int, int, int, int]:
    """Return (offset behind the frame, number behind its last event, header crc, crc) of the header at `base + at`."""
    _, _, _, n_events, length, seq, check, crc = FRAME.unpack_from(data, at)
    return base + at + FRAME_HEADER_BYTES + length, seq + n_events, check, crc


def find_tail(read: ReadAt, key: FrameKey, start: int, end: int) -> Tail:
    """Find the last valid frame in `[start, end)`, looking backward: the cost is what lies behind it, not before."""
    pattern = key.pattern
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
            for at in reversed([match.start() for match in pattern.finditer(data)]):
                if at + FRAME_HEADER_BYTES > len(data):
                    continue
                stop, end_seq, check, crc = _header(data, at, low)
                if stop > end or crc32(data[at : at + CHECKED_BYTES], key.seed) != check:
                    continue
                claimed_seq = max(claimed_seq, end_seq)
                if _checksum(read, data, low, at + FRAME_HEADER_BYTES, stop - low, check) == crc:
                    return Tail(stop, end_seq, claimed_seq, max(data_end, stop))
        high = low
    return Tail(start, None, claimed_seq, data_end)


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
