"""A7: the last segment ends at any byte of its last three frames, in every way a file can end."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from harness.fastdir import fast_directory, quiet
from harness.spoolbytes import Opener, payload_of, write_spool

from edge.spool.format import FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES

SEGMENT_BYTES = 8192
SIZES = (900, 50, 400, 130, 1, 150)
START_SECS = 2.0


def ends_there(data: bytes, size: int) -> bytes:
    return data[:size]


def room_behind(data: bytes, size: int) -> bytes:
    return data[:size].ljust(SEGMENT_BYTES, b"\0")


def stale_bytes_behind(data: bytes, size: int) -> bytes:
    """Return the beginning, and behind it what another file left on the disk there."""
    return data[:size] + random.Random(size).randbytes(SEGMENT_BYTES - size)


def the_same_frames_one_byte_late(data: bytes, size: int) -> bytes:
    """Return the beginning, and the rest in the wrong place: valid frames, but something lies before them."""
    return (data[:size] + b"\x07" + data[size:]).ljust(SEGMENT_BYTES, b"\0")


@pytest.mark.parametrize(
    "shape",
    [ends_there, room_behind, stale_bytes_behind, the_same_frames_one_byte_late],
    ids=lambda shape: shape.__name__,
)
def test_every_frame_before_a_torn_tail_is_delivered(row, shape: Callable[[bytes, int], bytes]):
    with (
        row(
            "A7", what=f"last segment torn at every byte of its last 3 frames: {shape.__name__}", unit="offsets"
        ) as result,
        fast_directory() as path,
        quiet(),
        closing(Opener()) as opener,
    ):
        result.bound = "0 lost, 0 corrupt, start <= 2 s"
        payloads = [payload_of(number, size) for number, size in enumerate(SIZES)]
        write_spool(path / "whole", payloads, segment_bytes=SEGMENT_BYTES)
        (segment,) = (path / "whole").glob("seg-*.log")
        data = segment.read_bytes()
        ends = [SEGMENT_HEADER_BYTES]
        for payload in payloads:
            ends.append(ends[-1] + FRAME_HEADER_BYTES + len(payload))
        assert ends[-1] == len(data)
        slowest = 0.0
        for size in range(ends[3], ends[6]):
            result.tried += 1
            copy = path / "torn"
            copy.mkdir()
            (copy / segment.name).write_bytes(shape(data, size))
            slowest = max(slowest, check(opener, copy, payloads, ends, size, result))
            shutil.rmtree(copy)
        result.note(f"slowest start {slowest:.3f} s")
        assert (result.losses, result.corrupt) == (0, 0)
        assert slowest <= START_SECS


def check(opener: Opener, path: Path, payloads: list[bytes], ends: list[int], size: int, result) -> float:
    """Open a torn spool, compare what is read, go on with it; return how long the start took."""
    with opener.open(path, segment_bytes=SEGMENT_BYTES) as opened:
        frames, _ = opened.read(0)
        whole = sum(end <= size for end in ends[1:])
        read = [frame.payload for frame in frames]
        result.losses += len(set(payloads[:whole]) - set(read))
        result.corrupt += sum(payload not in payloads for payload in read)
        assert read[:whole] == payloads[:whole]
        assert set(read) <= set(payloads)
        assert opened.log.stats().corrupt_bytes == opened.observer.corrupt_bytes
        # Whoever was told anything of the torn frames keeps their numbers: the next one is none that can be read.
        seq = opener.append(opened.log, b"after")
        assert seq >= max((frame.end for frame in frames), default=0)
        assert opened.read(seq)[0][-1].payload == b"after"
        secs = opened.secs
    with opener.open(path, segment_bytes=SEGMENT_BYTES) as opened:
        assert [frame.payload for frame in opened.read(0)[0]] == [*read, b"after"]
        assert not opened.log.recovery.torn_bytes
    return secs
