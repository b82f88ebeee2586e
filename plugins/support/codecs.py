"""How lines of a file are compressed, and how much of a file that was cut off anywhere is intact."""

from __future__ import annotations

import gzip
import os
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BLOCK_BYTES = 64 * 1024

GZIP_LEVEL = 6
ZSTD_LEVEL = 3

_Feed = Callable[[bytes], bytes | None]
"""Takes the next bytes of a member; returns None while it is incomplete, else the bytes that follow it."""


@dataclass(frozen=True, slots=True)
class Codec:
    """One way to write batches of lines into a file, each batch readable as soon as it is there."""

    extension: str
    compress: Callable[[bytes], bytes]
    """Whole lines -> what is appended to the file."""
    intact_bytes: Callable[[int], int]
    """File descriptor -> length of the file without what a killed writer left half done."""


def _intact_lines(descriptor: int) -> int:
    """Return the offset behind the last newline."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - BLOCK_BYTES)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _intact_members(descriptor: int, new_member: Callable[[], _Feed], errors: type[Exception]) -> int:
    """Return the offset behind the last complete member; what follows it is torn or was never compressed."""
    intact = offset = 0
    feed = new_member()
    while block := os.pread(descriptor, BLOCK_BYTES, offset):
        offset += len(block)
        while block:
            try:
                rest = feed(block)
            except errors:
                return intact
            if rest is None:
                break
            intact = offset - len(rest)
            feed, block = new_member(), rest
    return intact


def _gzip_member() -> _Feed:
    """Return the reader of one gzip member, which checks its checksum and keeps nothing."""
    member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    def feed(data: bytes) -> bytes | None:
        output = member.decompress(data, BLOCK_BYTES)
        # All input may be taken in while output, and the end of the member, is still to come.
        while not member.eof and (member.unconsumed_tail or len(output) == BLOCK_BYTES):
            output = member.decompress(member.unconsumed_tail, BLOCK_BYTES)
        return member.unused_data if member.eof else None

    return feed


def _zstd_frame() -> _Feed:
    """Return the reader of one zstd frame, which keeps nothing."""
    frame = zstd.ZstdDecompressor()

    def feed(data: bytes) -> bytes | None:
        frame.decompress(data, BLOCK_BYTES)
        while not frame.eof and not frame.needs_input:
            frame.decompress(b"", BLOCK_BYTES)
        return frame.unused_data if frame.eof else None

    return feed


def _zstd_compress(lines: bytes) -> bytes:
    """Return one zstd frame with a checksum of its contents."""
    options: dict[int, int] = {
        zstd.CompressionParameter.compression_level: ZSTD_LEVEL,
        zstd.CompressionParameter.checksum_flag: 1,
    }
    return zstd.compress(lines, options=options)


CODECS: Final[dict[str, Codec]] = {
    "none": Codec(".ndjson", bytes, _intact_lines),
    "gzip": Codec(
        ".ndjson.gz",
        lambda lines: gzip.compress(lines, GZIP_LEVEL, mtime=0),
        lambda descriptor: _intact_members(descriptor, _gzip_member, zlib.error),
    ),
    "zstd": Codec(
        ".ndjson.zst",
        _zstd_compress,
        lambda descriptor: _intact_members(descriptor, _zstd_frame, zstd.ZstdError),
    ),
}
"""The option `compression` -> its codec."""
