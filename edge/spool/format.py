"""How segments and frames lie on disk.

A segment starts with its header, twice, in two sectors, so that one bad byte does not take the segment with it. Frames
follow without padding. All numbers are little-endian::

    segment header   magic 8 | version 2 | flags 2 | epoch 16 | first_seq 8 | capacity 8 | shard 64 | crc 4
    frame            magic 4 | kind 1 | tag 3 | n_events 4 | length 4 | seq 8 | header crc 4 | crc 4 | payload

The header crc covers epoch and header, so a length is never believed without proof; the crc goes on over the payload.
The epoch is random for each segment: bytes that an older file left behind on the disk never pass for a frame. The tag
is its beginning: what is not of this segment is passed over without looking at checksums.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

from edge.spool.checksum import crc32
from edge.spool.errors import SpoolFormatError

VERSION = 1

EVENTS = 1
"""A frame of accepted events."""
REPLAY = 2
"""A frame of events that are delivered again, to one sink."""
MARK = 3
"""A note about other frames."""
KINDS = (EVENTS, REPLAY, MARK)

FRAME_EVENTS = (1 << 24) - 1
"""Most events in one frame. That the highest byte of the number is 0 tells headers from bytes that only look alike."""
SEQ_LIMIT = 1 << 62
"""No event has a number as high as this. A name with a higher one was not made by us; believing it would leave no
numbers to go on with."""

FRAME_MAGIC = b"\xffEv\xfe"
"""Never part of UTF-8 text, so no payload of JSON contains it."""
FRAME = Struct("<4sB3sIIQII")
FRAME_HEADER_BYTES = FRAME.size
CHECKED_BYTES = 24
"""How much of the frame header the header crc covers."""

SEGMENT_HEADER_BYTES = 1024
_COPY_BYTES = 512
_SEGMENT_MAGIC = b"EDGESEG\n"
_SEGMENT = Struct("<8sHH16sQQ64s")
_CRC = Struct("<I")
_HEAD = Struct("<4sB3sIIQ")
_CRCS = Struct("<II")

_NAME = re.compile(r"seg-(\d{20})\.log")
_TEMPORARY_NAME = re.compile(r"seg-[0-9a-f]{16}\.tmp")


class Frame(NamedTuple):
    """One frame as it was stored: events that came together. A named tuple, for every reader makes one of each."""

    kind: int
    seq: int
    """Number of its first event."""
    n_events: int
    payload: bytes
    segment: str
    """Name of the file it lies in."""
    offset: int
    """Where it starts in that file."""

    @property
    def end(self) -> int:
        """The number behind its last event."""
        return self.seq + self.n_events


@dataclass(frozen=True, slots=True)
class FrameKey:
    """What ties frames to their segment."""

    seed: int
    """Where the checksums of the frames start."""
    tag: bytes
    """Three bytes that stand in every frame header."""

    def pattern(self, room: int) -> re.Pattern[bytes]:
        """Match the magic of what may be a frame header; the group is the rest of it up to its own crc, included.

        All that can be said without a checksum is asked for: kind, tag, and the highest bytes of the number of events,
        of a length within `room` bytes and of the seq. Only the magic is consumed, and it does not overlap itself: no
        candidate hides another one.
        """
        longest = re.escape(bytes([min(room >> 24, 0xFF)]))
        head = b"[%b-%b]%b.{3}\\x00.{3}[\\x00-%b].{7}[\\x00-\\x3f].{4}" % (
            *(re.escape(bytes([kind])) for kind in (min(KINDS), max(KINDS))),
            re.escape(self.tag),
            longest,
        )
        return re.compile(re.escape(FRAME_MAGIC) + b"(?=(" + head + b").{4})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What a segment says of itself."""

    epoch: bytes
    first_seq: int
    capacity: int
    """Bytes that were allocated, header included; nothing behind them belongs to the segment."""
    shard: str

    @classmethod
    def new(cls, first_seq: int, capacity: int, shard: str) -> SegmentHeader:
        """Return a header with a fresh epoch."""
        return cls(os.urandom(16), first_seq, capacity, shard)

    @property
    def key(self) -> FrameKey:
        """What the segment's frames are checked with."""
        return FrameKey(crc32(self.epoch), self.epoch[:3])

    def pack(self) -> bytes:
        """Return the first `SEGMENT_HEADER_BYTES` of the segment."""
        shard = self.shard.encode()[:64]
        copy = _SEGMENT.pack(_SEGMENT_MAGIC, VERSION, 0, self.epoch, self.first_seq, self.capacity, shard)
        copy += _CRC.pack(crc32(copy))
        return copy.ljust(_COPY_BYTES, b"\0") * 2

    @classmethod
    def unpack(cls, data: bytes) -> SegmentHeader | None:
        """Return the header out of a segment's first bytes, None when neither copy is intact.

        Raises `SpoolFormatError` for an intact header of a newer version.
        """
        for start in (0, _COPY_BYTES):
            copy = data[start : start + _SEGMENT.size + _CRC.size]
            if len(copy) < _SEGMENT.size + _CRC.size or not copy.startswith(_SEGMENT_MAGIC):
                continue
            if _CRC.unpack_from(copy, _SEGMENT.size)[0] != crc32(copy[: _SEGMENT.size]):
                continue
            _, version, _, epoch, first_seq, capacity, shard = _SEGMENT.unpack_from(copy)
            if version > VERSION:
                raise SpoolFormatError(
                    f"a segment has format version {version}, this program reads {VERSION}: use the one that wrote it"
                )
            return cls(epoch, first_seq, capacity, shard.rstrip(b"\0").decode(errors="replace"))
        return None


def segment_name(first_seq: int) -> str:
    """Return the file name of the segment that starts with `first_seq`."""
    return f"seg-{first_seq:020d}.log"


def parse_segment_name(name: str) -> int | None:
    """Return the number in a segment's file name; None for other names."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def is_temporary_name(name: str) -> bool:
    """Say whether a file is a segment that was never finished."""
    return _TEMPORARY_NAME.fullmatch(name) is not None


def temporary_name() -> str:
    """Return a fresh name for a segment that is being prepared."""
    return f"seg-{os.urandom(8).hex()}.tmp"


def frame_header(key: FrameKey, kind: int, seq: int, n_events: int, payload: bytes) -> bytes:
    """Return the header of a frame; the payload follows it on disk."""
    head = _HEAD.pack(FRAME_MAGIC, kind, key.tag, n_events, len(payload), seq)
    check = crc32(head, key.seed)
    return head + _CRCS.pack(check, crc32(payload, check))
