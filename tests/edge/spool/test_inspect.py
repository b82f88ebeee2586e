from __future__ import annotations

import random
from pathlib import Path

import pytest

from edge.spool import Cursor, CursorFile, SpoolFailedError
from edge.spool.format import FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES, segment_name
from edge.spool.inspect import CorruptRange, Gap, dump, stats, verify


def snapshot(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir() if entry.is_file()}


async def test_verify_of_a_running_log_finds_everything_intact(logs, spool_path):
    log = logs.open(segment_bytes=4096)
    for number in range(10):
        await log.append(b"%d" % number * 1000, 2)
    report = verify(spool_path)
    assert report.is_intact
    assert (report.segments, report.frames, report.events) == (5, 10, 20)
    assert (report.first_seq, report.next_seq, report.unfinished_bytes) == (0, 20, 0)


async def test_verify_of_a_released_log_starts_where_it_starts(logs, spool_path):
    log = logs.open(segment_bytes=4096)
    for number in range(10):
        await log.append(b"%d" % number * 1000)
    log.release(5)
    report = verify(spool_path)
    assert report.is_intact
    assert (report.first_seq, report.next_seq, report.frames) == (4, 10, 6)


async def test_verify_tells_damage_gaps_and_what_is_not_ours_and_changes_nothing(logs, spool_path, segment_paths):
    log = logs.open(segment_bytes=4096)
    for number in range(10):
        await log.append(b"%d" % number * 1400)
    await log.close()
    paths = segment_paths()
    with paths[1].open("r+b") as file:
        file.seek(SEGMENT_HEADER_BYTES + 100)
        file.write(b"!")
    paths[3].unlink()
    (spool_path / segment_name(77)).write_bytes(random.Random(1).randbytes(5000))
    (spool_path / segment_name(78)).symlink_to(paths[0])
    with paths[-1].open("ab") as file:
        file.write(b"torn")
    before = snapshot(spool_path)
    report = verify(spool_path)
    assert snapshot(spool_path) == before
    assert not report.is_intact
    assert report.corrupt == [CorruptRange(paths[1].name, SEGMENT_HEADER_BYTES, FRAME_HEADER_BYTES + 1400)]
    assert report.gaps == [Gap(paths[1].name, 2, 1), Gap(paths[2].name, 6, 2)]
    assert report.unreadable == [segment_name(77)]
    assert report.ignored == [segment_name(78)]
    assert (report.frames, report.unfinished_bytes) == (7, 4)


async def test_verify_counts_the_last_event_as_lost_when_the_segment_had_been_ended(logs, spool_path, segment_paths):
    log = logs.open()
    for number in range(3):
        await log.append(b"%d" % number * 100, 2)
    await log.close()
    (path,) = segment_paths()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    report = verify(spool_path)
    assert report.gaps == [Gap(path.name, 4, 2)]
    assert [item.length for item in report.corrupt] == [FRAME_HEADER_BYTES + 100]
    assert (report.next_seq, report.unfinished_bytes, report.is_intact) == (6, 0, False)
    # Not ended: the same bytes may be a write that was torn, of events that nobody was told about.
    path.write_bytes(data.ljust(64 * 1024, b"\0"))
    assert verify(spool_path).is_intact
    assert verify(spool_path).unfinished_bytes == FRAME_HEADER_BYTES + 100


async def test_stats_show_size_and_cursors(logs, spool_path, segment_paths):
    log = logs.open(segment_bytes=4096)
    for number in range(5):
        await log.append(b"%d" % number * 1400, 3)
    await log.close()
    CursorFile(spool_path, "archive").save(Cursor(position=6, delivered=6))
    CursorFile(spool_path, "fresh")
    found = stats(spool_path)
    assert (found.segments, found.first_seq, found.next_seq) == (3, 0, 15)
    assert found.bytes == sum(path.stat().st_size for path in segment_paths())
    assert found.cursors == {"archive": Cursor(position=6, delivered=6), "fresh": None}
    assert found.quarantine_bytes == 0


async def test_dump_yields_frames_from_a_position(logs, spool_path):
    log = logs.open(segment_bytes=4096)
    for number in range(10):
        await log.append(b"%d" % number * 1000)
    assert [frame.seq for frame in dump(spool_path)] == list(range(10))
    assert [frame.seq for frame in dump(spool_path, 4)] == list(range(4, 10))
    assert [frame.payload[:1] for frame in dump(spool_path, 4, limit_frames=2)] == [b"4", b"5"]
    assert list(dump(spool_path, 10)) == []


async def test_dump_goes_on_when_a_segment_is_released_meanwhile(logs, spool_path):
    log = logs.open(segment_bytes=4096)
    for number in range(10):
        await log.append(b"%d" % number * 1400)
    frames = dump(spool_path)
    assert next(frames).seq == 0
    log.release(6)
    assert [frame.seq for frame in frames] == [1, 6, 7, 8, 9]


def test_inspection_needs_a_directory(tmp_path):
    for function in (verify, stats, lambda path: list(dump(path))):
        with pytest.raises(SpoolFailedError):
            function(tmp_path / "nowhere")


def test_inspection_of_an_empty_directory_finds_nothing(tmp_path):
    assert verify(tmp_path).is_intact
    assert stats(tmp_path).segments == 0
    assert list(dump(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []
