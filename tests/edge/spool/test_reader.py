from __future__ import annotations

import asyncio
import os
import random
import threading

import pytest

from edge.spool import SpoolFailedError, scan
from edge.spool.format import FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES
from edge.spool.scan import LEAST_BYTES

FRAME_BYTES = FRAME_HEADER_BYTES + 100


def payload(number: int) -> bytes:
    return b"%04d" % number * 25


def flip(path, offset: int, mask: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


async def test_read_goes_on_where_it_ended(logs):
    log = logs.open()
    for number in range(10):
        await log.append(payload(number))
    seqs, position = [], 0
    while (result := log.read(position, 250)).frames:
        assert len(result.frames) <= 3
        seqs += [frame.seq for frame in result.frames]
        position = result.position
    assert seqs == list(range(10))
    assert position == log.durable_seq


async def test_read_returns_no_more_than_asked_for_and_what_is_left_of_one_frame(logs):
    log = logs.open(segment_bytes=32 * 1024)
    dice = random.Random(11)
    for _ in range(300):
        await log.append(b"x" * dice.choice([0, 10, 100, 1000, 5000]))
    for _ in range(300):
        max_bytes = dice.choice([1, 500, 30_000, 64 * 1024, 200_000])
        result = log.read(dice.randrange(log.durable_seq), max_bytes)
        sizes = [max(len(frame.payload), LEAST_BYTES) for frame in result.frames]
        assert sum(sizes[:-1]) < max_bytes
        assert sum(sizes) >= max_bytes or result.position == log.durable_seq


async def test_reader_finds_the_frame_behind_each_of_many_gaps_at_once(logs, segment_paths, expect_log, monkeypatch):
    """Each gap ends a read; the next one must not begin at the start of the segment."""
    expect_log += ["damaged", "lost"]
    log = logs.open(segment_bytes=1 << 20)
    n_frames = 1000
    for number in range(n_frames):
        await log.append(payload(number))
    for number in range(1, n_frames, 2):
        flip(segment_paths()[0], SEGMENT_HEADER_BYTES + number * FRAME_BYTES + FRAME_HEADER_BYTES)
    scanned = 0
    unpack = scan.FRAME.unpack_from

    class Counting:
        @staticmethod
        def unpack_from(data: bytes, at: int) -> object:
            nonlocal scanned
            scanned += 1
            return unpack(data, at)

    monkeypatch.setattr(scan, "FRAME", Counting)
    seqs, lost, position = [], 0, 0
    while position < log.durable_seq:
        result = log.read(position, 1 << 20)
        seqs += [frame.seq for frame in result.frames]
        lost += result.lost_events
        position = result.position
    assert seqs == list(range(0, n_frames, 2))
    assert lost == n_frames // 2
    assert scanned <= 10 * n_frames


async def test_read_returns_a_frame_larger_than_asked_for(logs):
    log = logs.open(segment_bytes=4 << 20)
    await log.append(b"x" * 3_000_000)
    assert len(log.read(0, 1).frames[0].payload) == 3_000_000


async def test_read_from_the_middle_of_a_frame_returns_all_of_it(logs):
    log = logs.open()
    await log.append(payload(0), 10)
    await log.append(payload(1), 10)
    result = log.read(7, 1 << 20)
    assert [frame.seq for frame in result.frames] == [0, 10]
    assert (result.position, result.lost_events) == (20, 0)
    assert [frame.seq for frame in log.read(13, 1 << 20).frames] == [10]


async def test_read_at_the_end_or_past_it_returns_nothing(logs):
    log = logs.open()
    await log.append(b"event")
    for position in (1, 2, 1 << 40):
        result = log.read(position, 100)
        assert (result.frames, result.position, result.lost_events) == ([], position, 0)


async def test_read_from_anywhere_agrees_with_a_read_of_everything(logs, read_all):
    log = logs.open(segment_bytes=8192)
    dice = random.Random(7)
    for number in range(200):
        await log.append(payload(number), dice.randint(1, 5))
    frames, _ = read_all(log)
    for _ in range(200):
        position = dice.randrange(log.durable_seq)
        expected = [frame for frame in frames if frame.end > position]
        found, lost = read_all(log, position, dice.randint(1, 3000))
        assert found == expected
        assert lost == 0


async def test_reader_sees_every_event_once_while_it_is_written(logs):
    log = logs.open(segment_bytes=16 * 1024)
    is_done = threading.Event()
    seen: list[int] = []
    beyond: list[int] = []

    def follow() -> None:
        position = 0
        while not is_done.is_set() or position < log.durable_seq:
            result = log.read(position, 4096)
            if result.position > log.durable_seq:
                beyond.append(result.position)
            seen.extend(int(frame.payload[:4]) for frame in result.frames)
            position = result.position

    follower = asyncio.create_task(asyncio.to_thread(follow))
    for start in range(0, 2000, 50):
        await asyncio.gather(*(log.append(payload(number)) for number in range(start, start + 50)))
    is_done.set()
    await follower
    assert seen == list(range(2000))
    assert beyond == []
    assert log.stats().corrupt_bytes == log.stats().lost_events == 0


async def test_flipped_bit_costs_one_frame(logs, observer, segment_paths, spool_path, expect_log, read_all):
    expect_log += ["a segment of the spool is damaged", "events of the spool are lost"]
    log = logs.open(observer=observer, segment_bytes=1 << 20)
    for number in range(50):
        await log.append(payload(number), 2)
    (path,) = segment_paths()
    dice = random.Random(1)
    hit = sorted(dice.sample(range(50), 10))
    for count, frame in enumerate(hit):
        # every other one in the header, where the length and the number are
        within = dice.randrange(FRAME_HEADER_BYTES) if count % 2 else dice.randrange(FRAME_HEADER_BYTES, FRAME_BYTES)
        flip(path, SEGMENT_HEADER_BYTES + frame * FRAME_BYTES + within, 1 << dice.randrange(8))
    for _ in range(3):  # however many sinks read it, the damage is counted once
        frames, lost = read_all(log)
        assert [frame.payload for frame in frames] == [payload(n) for n in range(50) if n not in hit]
        assert lost == 20
    assert log.stats().lost_events == 20
    assert log.stats().corrupt_bytes == observer.corrupt_bytes == 10 * FRAME_BYTES
    assert observer.lost_frames == len({frame for frame in hit if frame - 1 not in hit})
    kept = list((spool_path / "quarantine").iterdir())
    assert sorted(path.stat().st_size for path in kept) == [FRAME_BYTES] * len(kept)


async def test_gap_comes_before_the_frames_of_a_result(logs, segment_paths, expect_log):
    expect_log += ["damaged", "lost"]
    log = logs.open()
    for number in range(5):
        await log.append(payload(number))
    flip(segment_paths()[0], SEGMENT_HEADER_BYTES + 2 * FRAME_BYTES + 50)
    first = log.read(0, 1 << 20)
    assert ([frame.seq for frame in first.frames], first.position, first.lost_events) == ([0, 1], 2, 0)
    second = log.read(2, 1 << 20)
    assert ([frame.seq for frame in second.frames], second.position, second.lost_events) == ([3, 4], 5, 1)


async def test_damage_at_the_end_of_the_active_segment_does_not_stop_readers(logs, segment_paths, expect_log, read_all):
    expect_log += ["damaged", "lost"]
    log = logs.open()
    for number in range(3):
        await log.append(payload(number))
    flip(segment_paths()[0], SEGMENT_HEADER_BYTES + 2 * FRAME_BYTES + 5)
    frames, lost = read_all(log)
    assert (len(frames), lost) == (2, 1)
    await log.append(payload(3))
    frames, lost = read_all(log)
    assert ([frame.seq for frame in frames], lost) == ([0, 1, 3], 1)


async def test_missing_segment_is_a_counted_gap(logs, segment_paths, observer, expect_log, read_all):
    expect_log += ["events of the spool are lost"]
    log = logs.open(segment_bytes=4096, observer=observer)
    for number in range(30):
        await log.append(payload(number) * 10)
    await log.close()
    segment_paths()[3].unlink()
    log = logs.open(segment_bytes=4096, observer=observer)
    frames, lost = read_all(log)
    assert [frame.seq for frame in frames] == [n for n in range(30) if n not in (6, 7)]
    assert lost == log.stats().lost_events == 2
    assert observer.lost_frames == 1


async def test_segment_that_vanishes_while_the_log_is_open_is_a_counted_gap(logs, segment_paths, expect_log, read_all):
    expect_log += ["events of the spool are lost"]
    log = logs.open(segment_bytes=4096)
    for number in range(10):
        await log.append(payload(number) * 10)
    segment_paths()[1].unlink()
    frames, lost = read_all(log)
    assert ([frame.seq for frame in frames], lost) == ([0, 1, 4, 5, 6, 7, 8, 9], 2)


async def test_segment_cut_short_by_somebody_else_does_not_stop_readers(logs, segment_paths, expect_log, read_all):
    expect_log += ["damaged", "lost"]
    log = logs.open(segment_bytes=4096)
    for number in range(10):
        await log.append(payload(number) * 10)
    os.truncate(segment_paths()[1], SEGMENT_HEADER_BYTES + 500)
    frames, lost = read_all(log)
    assert ([frame.seq for frame in frames], lost) == ([0, 1, 4, 5, 6, 7, 8, 9], 2)


async def test_segment_replaced_by_a_link_is_not_followed(logs, segment_paths, tmp_path):
    log = logs.open(segment_bytes=4096)
    for number in range(6):
        await log.append(payload(number) * 10)
    first = segment_paths()[0]
    first.rename(tmp_path / "elsewhere")
    first.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SpoolFailedError):
        log.read(0, 1000)


@pytest.mark.parametrize("is_damaged", [False, True])
async def test_frames_behind_the_start_of_the_next_segment_do_not_count(
    logs, segment_paths, expect_log, read_all, is_damaged
):
    expect_log += ["damaged", "lost"]
    log = logs.open(segment_bytes=4096)
    for number in range(2):
        await log.append(payload(number) * 10)
    await log.close()
    whole = segment_paths()[0].read_bytes()
    # As after a failed commit that could not be cut off: the next segment starts with the same number.
    os.truncate(segment_paths()[0], SEGMENT_HEADER_BYTES + FRAME_HEADER_BYTES + 1000)
    log = logs.open(segment_bytes=4096)
    await log.append(b"the other 1")
    await log.close()
    segment_paths()[0].write_bytes(whole)
    if is_damaged:
        flip(segment_paths()[0], SEGMENT_HEADER_BYTES + 500)
    frames, lost = read_all(logs.open(segment_bytes=4096))
    assert [frame.payload for frame in frames] == [payload(0) * 10, b"the other 1"][is_damaged:]
    assert lost == is_damaged
