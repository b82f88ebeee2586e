from __future__ import annotations

import os
import random
import shutil
import struct
import time
from functools import partial
from pathlib import Path
from zlib import crc32

import pytest
from harness.garbage import HARMLESS, newer_meta, newer_segment, unsealed

from edge.spool import Cursor, CursorFile, Log, SpoolFailedError, SpoolFormatError
from edge.spool.format import (
    FRAME_HEADER_BYTES,
    FRAME_MAGIC,
    SEGMENT_HEADER_BYTES,
    SegmentHeader,
    frame_header,
    segment_name,
)
from edge.spool.inspect import verify
from edge.spool.scan import find_tail

BAD_DIRECTORY = "not everything in it could be used"


def snapshot(path: Path) -> dict[str, bytes | str]:
    return {
        str(entry.relative_to(path)): entry.read_bytes() if entry.is_file() and not entry.is_symlink() else "other"
        for entry in path.rglob("*")
    }


def test_torn_tail_at_every_byte_of_the_last_three_frames(
    logs, io_loop, spool_path, segment_paths, read_all, tmp_path, expect_log
):
    expect_log += ["damaged", "lost"]
    payloads = [b"frame %d " % number * 3 for number in range(6)]
    logs.write(payloads)
    (path,) = segment_paths()
    whole = path.read_bytes()
    ends = [SEGMENT_HEADER_BYTES]
    for payload in payloads:
        ends.append(ends[-1] + FRAME_HEADER_BYTES + len(payload))
    assert ends[-1] == len(whole)
    for size in range(ends[3], ends[6] + 1):
        for is_zeros in (True, False):
            copy = tmp_path / f"copy-{size}-{is_zeros}"
            copy.mkdir()
            shutil.copy(spool_path / "META.json", copy)
            if is_zeros:
                unsealed(copy / path.name, whole[:size])
            else:
                (copy / path.name).write_bytes(whole[:size])
            log = Log.open(copy, segment_bytes=4096)
            intact = sum(end <= size for end in ends[1:])
            frames, lost = read_all(log)
            assert [frame.payload for frame in frames] == payloads[:intact]
            torn = whole[max(end for end in ends if end <= size) : size].rstrip(b"\0")
            assert log.recovery.torn_bytes == len(torn)
            # Numbers that a torn frame only claims are given again, those of a cut segment are not.
            claimed = not is_zeros and size - ends[intact] >= FRAME_HEADER_BYTES and intact < 6
            assert (log.durable_seq, lost) == (intact, 0) or claimed
            assert log.stats().corrupt_bytes == log.recovery.torn_bytes
            io_loop.run_sync(log.close)
            shutil.rmtree(copy)


def test_torn_tail_is_kept_in_quarantine(logs, segment_paths, spool_path, expect_log):
    expect_log += ["damaged"]
    logs.write([b"one", b"two"])
    (path,) = segment_paths()
    data = path.read_bytes()
    unsealed(path, data + b"\xffgarbage")
    log = logs.open()
    assert log.recovery.torn_bytes == 8
    assert [file.read_bytes() for file in (spool_path / "quarantine").iterdir()] == [b"\xffgarbage"]
    assert path.stat().st_size == len(data)


def test_frames_behind_a_hole_in_the_last_segment_are_kept(logs, segment_paths, expect_log, read_all):
    expect_log += ["damaged", "lost"]
    logs.write([b"a" * 100, b"b" * 100, b"c" * 100])
    (path,) = segment_paths()
    data = bytearray(path.read_bytes())
    data[SEGMENT_HEADER_BYTES + 132 : SEGMENT_HEADER_BYTES + 264] = bytes(132)  # a page the disk never wrote
    unsealed(path, data)
    frames, lost = read_all(logs.open())
    assert ([frame.payload[:1] for frame in frames], lost) == ([b"a", b"c"], 1)


async def test_recovered_segment_is_sealed_and_a_fresh_one_started(logs, segment_paths):
    log = logs.open()
    await log.append(b"one")
    os.close(log._lock_fd)  # as if the process had died
    other = logs.open()
    log._lock_fd = os.open(os.devnull, os.O_RDONLY)
    await other.append(b"two")
    first, second = segment_paths()
    assert first.stat().st_size == SEGMENT_HEADER_BYTES + FRAME_HEADER_BYTES + 3
    assert second.stat().st_size == 64 * 1024
    headers = [SegmentHeader.unpack(path.read_bytes()) for path in (first, second)]
    assert headers[0].epoch != headers[1].epoch
    assert [header.first_seq for header in headers] == [0, 1]


def test_recovery_is_the_same_however_often_it_runs(logs, segment_paths, spool_path, expect_log):
    expect_log += ["damaged"]
    logs.write([b"one", b"two"])
    unsealed(segment_paths()[0], segment_paths()[0].read_bytes()[:-1])
    logs.write([])
    once = snapshot(spool_path)
    logs.write([])
    logs.write([])
    assert snapshot(spool_path) == once


async def test_stale_bytes_of_another_segment_are_never_frames(
    logs, segment_paths, tmp_path, spool_path, read_all, expect_log
):
    expect_log += ["damaged"]
    old, log = logs.open(tmp_path / "old"), logs.open()
    for number in range(10):
        await old.append(b"old %d" % number)
    await old.close()
    await log.append(b"new 0")
    await log.close()
    (path,) = segment_paths()
    stale = next((tmp_path / "old").glob("seg-*")).read_bytes()
    # The room behind "new 0" once belonged to the other file, which had its next events at the same places.
    unsealed(path, path.read_bytes() + stale[path.stat().st_size :])
    frames, lost = read_all(logs.open())
    assert ([frame.payload for frame in frames], lost) == ([b"new 0"], 0)


@pytest.mark.parametrize("seed", range(10))
def test_random_flips_in_the_last_segment_lose_only_what_they_touch(
    logs, segment_paths, expect_log, read_all, observer, seed
):
    expect_log += ["damaged", "lost"]
    payloads = [b"%05d " % number * 20 for number in range(200)]
    logs.write(payloads, segment_bytes=1 << 20)
    (path,) = segment_paths()
    data = bytearray(path.read_bytes())
    dice = random.Random(seed)
    touched = set()
    for _ in range(20):
        offset = dice.randrange(SEGMENT_HEADER_BYTES, len(data))
        data[offset] ^= 1 << dice.randrange(8)
        touched.add((offset - SEGMENT_HEADER_BYTES) // 152)
    # The last frame is among them: its loss is known because the segment was complete.
    data[-1] ^= 1
    touched.add(199)
    path.write_bytes(data)
    log = logs.open(segment_bytes=1 << 20, observer=observer)
    frames, lost = read_all(log)
    assert [frame.seq for frame in frames] == [n for n in range(200) if n not in touched]
    assert all(frame.payload == payloads[frame.seq] for frame in frames)
    assert lost == log.stats().lost_events == len(touched)
    assert log.durable_seq == 200


async def test_next_number_is_never_below_a_cursor(logs, spool_path, read_all, expect_log):
    expect_log += [BAD_DIRECTORY]
    CursorFile(spool_path, "gone").save(Cursor(position=100, base=0, delivered=100))
    log = logs.open()
    assert log.recovery.behind_cursor_events == 100
    assert await log.append(b"event") == 100
    await log.close()
    assert logs.open(floor=50).durable_seq == 101


async def test_next_number_is_never_below_the_floor(logs, expect_log):
    expect_log += [BAD_DIRECTORY]
    assert await logs.open(floor=7).append(b"event") == 7


async def test_next_number_is_never_below_a_segment_name(logs, spool_path, expect_log, read_all):
    expect_log += [BAD_DIRECTORY]
    spool_path.mkdir(parents=True)
    (spool_path / segment_name(500)).write_bytes(b"its header is gone")
    log = logs.open()
    assert await log.append(b"event") == 500
    assert log.recovery.unreadable_segments == 1
    (kept,) = (spool_path / "quarantine").iterdir()
    assert kept.read_bytes() == b"its header is gone"
    assert [frame.seq for frame in read_all(log)[0]] == [500]


@pytest.mark.parametrize("make", HARMLESS, ids=lambda make: make.__name__)
def test_log_starts_whatever_is_in_its_directory(logs, io_loop, spool_path, expect_log, read_all, make):
    expect_log += [BAD_DIRECTORY, "META.json could not be written", "damaged", "lost"]
    outside = spool_path.parent / "outside"
    logs.write([b"one", b"two"])
    outside.mkdir()
    (outside / "precious").write_bytes(b"precious")
    make(spool_path)
    for number in range(2):
        started = time.monotonic()
        log = logs.open()
        assert time.monotonic() - started < 2
        position = io_loop.run_sync(lambda log=log, number=number: log.append(b"fresh %d" % number))
        frames, _ = read_all(log)
        assert [frame.payload for frame in frames] == [b"one", b"two", b"fresh 0", b"fresh 1"][: 3 + number]
        assert frames[-1].seq == position
        io_loop.run_sync(log.close)
    assert snapshot(outside) == {"precious": b"precious"}


def test_swapped_names_are_read_in_the_order_of_their_headers(logs, segment_paths, expect_log, read_all):
    logs.write([b"%d" % number * 2500 for number in range(4)], segment_bytes=4096)
    first, second, *_ = segment_paths()
    first.rename(first.with_suffix(".swap"))
    second.rename(first)
    first.with_suffix(".swap").rename(second)
    frames, lost = read_all(logs.open())
    assert [frame.payload[:1] for frame in frames] == [b"0", b"1", b"2", b"3"]
    assert lost == 0


def test_segment_that_may_not_be_read_is_refused_and_everything_left_as_it_is(logs, spool_path, monkeypatch):
    logs.write([b"one"])
    unsealed(spool_path / segment_name(0), (spool_path / segment_name(0)).read_bytes() + b"torn")
    before = snapshot(spool_path)
    opening = os.open

    def refuse(name, *args, **options):  # root may read everything, whatever the mode of a file is
        if name == segment_name(0):
            raise PermissionError(13, "Permission denied", name)
        return opening(name, *args, **options)

    monkeypatch.setattr(os, "open", refuse)
    for function in (Log.open, verify):
        with pytest.raises(SpoolFailedError, match="may not be read"):
            function(spool_path)
    monkeypatch.undo()
    assert snapshot(spool_path) == before


@pytest.mark.parametrize("has_lock", [True, False])
@pytest.mark.parametrize("make", [newer_meta, newer_segment])
def test_newer_version_is_refused_and_left_as_it_is(logs, spool_path, segment_paths, make, has_lock):
    logs.write([b"one"])
    unsealed(segment_paths()[0], segment_paths()[0].read_bytes() + b"torn")
    (spool_path / "seg-0123456789abcdef.tmp").write_bytes(b"")
    if not has_lock:
        (spool_path / "LOCK").unlink()
    make(spool_path)
    before = snapshot(spool_path)
    with pytest.raises(SpoolFormatError, match="version 2"):
        Log.open(spool_path)
    assert snapshot(spool_path) == before


SIZE = 64 * 1024 * 1024


def random_content(header: SegmentHeader) -> bytes:
    return random.Random(1).randbytes(1 << 20) * 63


def one_frame_and_room(header: SegmentHeader) -> bytes:
    return frame_header(header.key, 1, 0, 1, b"x" * 20) + b"x" * 20


def tiny_frames(header: SegmentHeader) -> bytes:
    payload = b"x" * 20
    return b"".join(frame_header(header.key, 1, seq, 1, payload) + payload for seq in range(1_290_000))


def damaged_payloads(header: SegmentHeader) -> bytes:
    return (frame_header(header.key, 1, 0, 1, b"x" * 100) + b"y" * 100) * 500_000


def damaged_tiny_payloads(header: SegmentHeader) -> bytes:
    return (frame_header(header.key, 1, 0, 1, b"x") + b"y") * 2_000_000


def magic_and_tag(header: SegmentHeader) -> bytes:
    return (FRAME_MAGIC + b"\x01" + header.key.tag) * (SIZE // 8)


def plausible_headers(header: SegmentHeader) -> bytes:
    fields = struct.pack("<IIQ", 1, 100, 5)
    return (FRAME_MAGIC + b"\x01" + header.key.tag + fields) * (SIZE // 24)


def headers_in_headers(header: SegmentHeader) -> bytes:
    """Two thousand valid headers, the payload of each reaching to the end: hours, if each were read."""
    content, count = b"", 2_000
    for number in range(count):
        length = SIZE - SEGMENT_HEADER_BYTES - (number + 1) * FRAME_HEADER_BYTES
        head = struct.pack("<4sB3sIIQ", FRAME_MAGIC, 1, header.key.tag, 1, length, number)
        content += head + struct.pack("<II", crc32(head, header.key.seed), 0)
    return content.ljust(SIZE - SEGMENT_HEADER_BYTES, b"x")


@pytest.mark.parametrize(
    "make",
    [
        random_content,
        one_frame_and_room,
        tiny_frames,
        damaged_payloads,
        damaged_tiny_payloads,
        magic_and_tag,
        plausible_headers,
        headers_in_headers,
    ],
    ids=lambda make: make.__name__,
)
def test_open_takes_less_than_two_seconds_whatever_fills_a_large_segment(io_loop, spool_path, expect_log, make):
    expect_log += ["damaged", "cannot be told in time"]
    spool_path.mkdir(parents=True)
    header = SegmentHeader.new(0, SIZE, "x")
    unsealed(spool_path / segment_name(0), (header.pack() + make(header))[:SIZE], SIZE)
    started = time.monotonic()
    log = Log.open(spool_path)
    assert time.monotonic() - started < 4  # twice the promise: the machine of a test does other things as well
    io_loop.run_sync(log.close)


def test_intact_frames_survive_a_segment_whose_end_cannot_be_told_in_time(
    logs, spool_path, read_all, expect_log, monkeypatch
):
    expect_log += ["damaged", "cannot be told in time", "lost"]
    spool_path.mkdir(parents=True)
    header = SegmentHeader.new(0, 1 << 20, "x")
    intact = frame_header(header.key, 1, 0, 3, b"intact") + b"intact"
    late = frame_header(header.key, 1, 3, 2, b"last") + b"last"
    body = intact + b"".join(frame_header(header.key, 1, 3, 2, b"x") + b"y" for _ in range(20_000)) + late[:-1] + b"?"
    path = spool_path / segment_name(0)
    unsealed(path, header.pack() + body, 1 << 20)
    monkeypatch.setattr("edge.spool.recovery.find_tail", partial(find_tail, patience_secs=0.0))
    log = logs.open()
    assert log.recovery.torn_bytes == 0
    assert log.durable_seq >= 5
    assert path.read_bytes().rstrip(b"\0") == header.pack() + body
    frames, lost = read_all(log)
    assert [frame.payload for frame in frames] == [b"intact"]
    assert lost == log.durable_seq - 3
