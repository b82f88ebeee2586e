from __future__ import annotations

import asyncio
import errno
import os
import random
import shutil
import threading

import pytest

from edge.spool import Cursor, CursorFile, SpoolFailedError, SpoolLockedError, rewrite
from edge.spool.files import Files
from edge.spool.format import FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES, segment_name, temporary_name
from edge.spool.inspect import dump, verify
from edge.spool.repair import Finding, Missing, plan, repair
from edge.spool.scan import LEAST_BYTES

FRAME_BYTES = FRAME_HEADER_BYTES + 100
DAMAGED = ["a segment of the spool is damaged", "events of the spool are lost"]


def payload(number: int) -> bytes:
    return b"%04d" % number * 25


def spoil(path, *frames: int, within: int = FRAME_HEADER_BYTES + 50, size: int = 1) -> None:
    """Overwrite bytes of some frames of a segment, counted from its first."""
    with path.open("r+b") as file:
        for frame in frames:
            file.seek(SEGMENT_HEADER_BYTES + frame * FRAME_BYTES + within)
            file.write(b"!" * size)


def snapshot(path):
    return {str(entry.relative_to(path)): entry.read_bytes() for entry in path.rglob("*") if entry.is_file()}


def payloads(path) -> list[bytes]:
    return [frame.payload for frame in dump(path)]


@pytest.fixture
def stored(logs, spool_path, segment_paths):
    """A closed log of 90 frames in segments of 30."""
    logs.write([payload(number) for number in range(90)], segment_bytes=SEGMENT_HEADER_BYTES + 30 * FRAME_BYTES + 50)
    paths = segment_paths()
    assert len(paths) == 3
    return paths


def test_damaged_ranges_go_and_intact_frames_stay(stored, spool_path, expect_log):
    expect_log += DAMAGED
    spoil(stored[0], 3, 4, 29)
    spoil(stored[1], 0, within=6)
    before = stored[0].read_bytes()
    report = repair(spool_path)
    assert [(found.what, found.segment, found.offset, found.n_bytes) for found in report.findings] == [
        ("corrupt", stored[0].name, SEGMENT_HEADER_BYTES + 3 * FRAME_BYTES, FRAME_BYTES),
        ("corrupt", stored[0].name, SEGMENT_HEADER_BYTES + 4 * FRAME_BYTES, FRAME_BYTES),
        ("corrupt", stored[0].name, SEGMENT_HEADER_BYTES + 29 * FRAME_BYTES, FRAME_BYTES),
        ("corrupt", stored[1].name, SEGMENT_HEADER_BYTES, FRAME_BYTES),
    ]
    assert {(found.done, found.mended) for found in report.findings} == {("moved to quarantine", True)}
    assert report.missing == [
        Missing(stored[0].name, 3, 2),
        Missing(stored[0].name, 29, 1),
        Missing(stored[1].name, 30, 1),
    ]
    assert (report.missing_events, report.frames, report.events) == (4, 86, 86)
    assert payloads(spool_path) == [payload(number) for number in range(90) if number not in (3, 4, 29, 30)]
    found = verify(spool_path)
    assert found.corrupt == found.unreadable == []
    assert sum(gap.n_events for gap in found.gaps) == 4
    assert stored[0].stat().st_size == SEGMENT_HEADER_BYTES + 27 * FRAME_BYTES
    kept = snapshot(spool_path / "quarantine")
    start = SEGMENT_HEADER_BYTES + 3 * FRAME_BYTES
    assert kept[f"{stored[0].name}.{start}"] == before[start : start + FRAME_BYTES]
    assert len(kept) == 4


def test_second_repair_finds_only_what_is_missing(stored, spool_path, expect_log):
    expect_log += DAMAGED
    spoil(stored[0], 3)
    spoil(stored[2], 29)
    first = repair(spool_path)
    before = snapshot(spool_path)
    again = repair(spool_path)
    assert again.findings == []
    assert again.missing == first.missing
    after = snapshot(spool_path)
    # The empty segment that holds the number to go on with is made anew by whoever opens the log.
    assert {name for name in after if after[name] != before[name]} == {segment_name(90)}
    assert len(after) == len(before)


def test_repair_of_an_intact_log_changes_nothing(stored, spool_path):
    before = snapshot(spool_path)
    report = repair(spool_path)
    assert (report.findings, report.missing, report.segments, report.events) == ([], [], 3, 90)
    assert snapshot(spool_path) == before


def test_plan_says_what_repair_does_and_changes_nothing(stored, spool_path, expect_log):
    expect_log += [*DAMAGED, "not everything in it could be used"]
    spoil(stored[0], 3)
    spoil(stored[1], 29)
    with stored[1].open("r+b") as file:
        file.write(b"?" * 100)
    spoil(stored[2], 2, 28, 29)
    with stored[2].open("ab") as file:
        file.write(b"torn")
    (spool_path / segment_name(400)).write_bytes(b"x" * 5000)
    (spool_path / temporary_name()).write_bytes(bytes(100))
    before = snapshot(spool_path)
    planned = plan(spool_path)
    assert snapshot(spool_path) == before
    done = repair(spool_path)
    key = lambda found: (found.segment, found.offset)  # noqa: E731
    assert sorted(planned.findings, key=key) == sorted(done.findings, key=key)
    assert [found.what for found in sorted(done.findings, key=key)] == [
        "corrupt",
        "damaged header",
        "corrupt",
        "corrupt",
        "torn end",
        "no intact header",
        "never finished",
    ]
    assert planned.missing == done.missing
    assert plan(spool_path).findings == []


def test_numbers_of_a_damaged_end_are_not_used_again(logs, io_loop, stored, spool_path, expect_log):
    expect_log += DAMAGED
    spoil(stored[2], *range(30))
    report = repair(spool_path)
    assert report.missing[-1].seq + report.missing[-1].n_events == 90
    assert verify(spool_path).corrupt == []
    log = logs.open()
    assert log.durable_seq == 90
    assert io_loop.run_sync(lambda: log.append(b"next")) == 90


def test_numbers_of_a_cursor_that_is_ahead_are_not_used_again(logs, stored, spool_path, expect_log):
    expect_log += [*DAMAGED, "not everything in it could be used"]
    stored[2].unlink()
    CursorFile(spool_path, "archive").save(Cursor(position=75, delivered=75))
    planned = plan(spool_path)
    assert planned.missing == repair(spool_path).missing == [Missing(stored[1].name, 60, 15)]
    assert logs.open().durable_seq == 75


def test_one_damaged_header_is_written_anew(stored, spool_path):
    with stored[1].open("r+b") as file:
        file.seek(600)
        file.write(b"?")
    report = repair(spool_path)
    assert report.findings == [Finding("damaged header", stored[1].name, 0, 1024, "written anew", mended=True)]
    assert stored[1].read_bytes()[:512] == stored[1].read_bytes()[512:1024]
    assert len(payloads(spool_path)) == 90


def test_age_of_a_segment_stays(stored, spool_path, expect_log):
    expect_log += DAMAGED
    spoil(stored[0], 3)
    os.utime(stored[0], (1_000_000_000, 1_000_000_000))
    repair(spool_path)
    assert stored[0].stat().st_mtime == 1_000_000_000


def test_frames_written_in_vain_are_neither_counted_nor_lost(logs, io_loop, spool_path, segment_paths, expect_log):
    """What a failed commit left behind a segment's last good byte stays: no intact frame ever goes."""
    expect_log += DAMAGED
    size = SEGMENT_HEADER_BYTES + 30 * FRAME_BYTES
    logs.write([payload(number) for number in range(10)], segment_bytes=size)
    path = segment_paths()[0]
    whole = path.read_bytes()
    spare = spool_path.parent / "spare"
    logs.write([payload(number) for number in range(8)], path=spare, segment_bytes=size)
    log = logs.open(segment_bytes=size)
    io_loop.run_sync(lambda: log.append(payload(10)))
    io_loop.run_sync(log.close)
    path.write_bytes(whole + whole[-FRAME_BYTES:])  # the last frame twice
    spoil(path, 3)
    report = repair(spool_path)
    assert (report.events, report.missing_events) == (10, 1)
    assert path.stat().st_size == SEGMENT_HEADER_BYTES + 10 * FRAME_BYTES


def test_directory_that_is_owned_or_no_log_is_refused(logs, spool_path, tmp_path):
    logs.open()
    with pytest.raises(SpoolLockedError):
        repair(spool_path)
    (tmp_path / "etc").mkdir()
    for function in (repair, plan):
        with pytest.raises(SpoolFailedError):
            function(tmp_path / "nowhere")
        with pytest.raises(SpoolFailedError, match="holds no segments"):
            function(tmp_path / "etc")
    assert list((tmp_path / "etc").iterdir()) == []


@pytest.mark.parametrize("call", ["open", "fallocate", "pwritev", "fsync", "rename"])
def test_disk_that_refuses_leaves_the_old_file(stored, spool_path, files, expect_log, call):
    expect_log += [*DAMAGED, "could not be rewritten"]
    spoil(stored[1], 5)
    before = stored[1].read_bytes()
    armed = threading.Event()

    def refuse(*args):
        # Only the new file's calls, and not what starting and ending the log does.
        if armed.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")

    real = rewrite.Rewriter._rewrite

    def armed_rewrite(self, *args):
        armed.set()
        try:
            return real(self, *args)
        finally:
            armed.clear()

    files.before[call] = refuse
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewrite.Rewriter, "_rewrite", armed_rewrite)
        report = repair(spool_path, files=files)
    assert [(found.done, found.mended) for found in report.findings] == [("left: No space left on device", False)]
    assert stored[1].read_bytes() == before
    assert not list(spool_path.glob("*.tmp"))


def test_copy_that_is_not_the_same_never_takes_the_place(stored, spool_path, monkeypatch, expect_log):
    expect_log += [*DAMAGED, "could not be rewritten"]
    spoil(stored[1], 5)
    before = stored[1].read_bytes()
    real = rewrite.write_all

    def flipping(files, fd, buffers, offset):
        if len(buffers) == 1 and offset > SEGMENT_HEADER_BYTES:
            buffers = [bytes(buffers[0][:-1]) + b"?"]
        return real(files, fd, buffers, offset)

    monkeypatch.setattr(rewrite, "write_all", flipping)
    report = repair(spool_path)
    assert [found.mended for found in report.findings] == [False]
    assert stored[1].read_bytes() == before


def test_calls_make_the_new_file_durable_before_and_the_directory_after_the_rename(
    stored, spool_path, files, expect_log
):
    expect_log += DAMAGED
    spoil(stored[1], 5)
    repair(spool_path, files=files)
    calls = files.calls
    at = calls.index(("rename", stored[1].name))
    opened = next(index for index in range(at, 0, -1) if calls[index][0] == "open")
    assert [call for call, _ in calls[opened:at]] == [
        "open",
        "fallocate",
        "pwritev",
        "pwritev",
        "pwritev",
        "fsync",
        "close",
    ]
    fsyncs = {argument for call, argument in calls[opened:at] if call == "fsync"}
    assert fsyncs == {argument for call, argument in calls[opened:at] if call == "pwritev"}
    after = [call for call, _ in calls[at + 1 : at + 5]]
    assert after[after.index("open") :][:3] == ["open", "fsync", "close"]


def test_killed_at_any_call_leaves_the_old_or_the_new_file(stored, spool_path, tmp_path, expect_log):
    """A copy of the directory as it is before every call of a repair is one that repairs to the same end."""
    expect_log += DAMAGED
    spoil(stored[0], 3, 17)
    spoil(stored[1], 0)
    moments = tmp_path / "moments"

    class Copying(Files):
        def __getattribute__(self, name):
            if name in ("open", "fallocate", "pwritev", "fsync", "ftruncate", "rename", "unlink"):
                shutil.copytree(spool_path, moments / f"{len(list(moments.glob('*'))):04d}")
            return super().__getattribute__(name)

    moments.mkdir()
    repair(spool_path, files=Copying())
    expected = payloads(spool_path)
    states = sorted(moments.iterdir())
    assert len(states) > 30
    for state in states:
        assert payloads(state) == expected
        report = repair(state)
        assert payloads(state) == expected
        assert report.missing_events == 3
        assert verify(state).corrupt == []
        assert not list(state.glob("*.tmp"))


async def test_running_log_repairs_sealed_segments_and_readers_see_the_new_files(
    logs, spool_path, segment_paths, read_all, expect_log
):
    expect_log += DAMAGED
    log = logs.open(segment_bytes=SEGMENT_HEADER_BYTES + 30 * FRAME_BYTES + 50)
    for number in range(100):
        await log.append(payload(number))
    paths = segment_paths()
    spoil(paths[0], 3)
    spoil(paths[1], 7)
    spoil(paths[3], 2)  # of the segment being written
    before, _ = read_all(log)
    size = log.stats().bytes
    report = await asyncio.to_thread(log.repair)
    assert [(found.segment, found.mended) for found in report.findings] == [
        (paths[0].name, True),
        (paths[1].name, True),
        (paths[3].name, False),
    ]
    assert report.findings[-1].done == "left: it is being written"
    assert (report.position, report.end, report.missing_events) == (100, 100, 3)
    frames, lost = read_all(log)
    assert [frame.payload for frame in frames] == [frame.payload for frame in before]
    assert lost == 3
    assert log.stats().lost_events == 3  # not counted again
    assert log.stats().bytes == size - 2 * FRAME_BYTES
    assert [found.segment for found in verify(spool_path).corrupt] == [paths[3].name]
    log.release(60)
    assert segment_paths() == paths[2:]
    assert log.stats().bytes == sum(path.stat().st_size for path in paths[2:])


async def test_running_log_writes_a_header_anew_that_it_knows(logs, spool_path, segment_paths):
    """The header is in memory: a restart would have lost the whole segment."""
    log = logs.open(segment_bytes=SEGMENT_HEADER_BYTES + 30 * FRAME_BYTES + 50)
    for number in range(61):
        await log.append(payload(number))
    path = segment_paths()[0]
    with path.open("r+b") as file:
        file.write(b"?" * SEGMENT_HEADER_BYTES)
    assert verify(spool_path).unreadable == [path.name]
    report = await asyncio.to_thread(log.repair)
    assert [(found.what, found.segment) for found in report.findings] == [("damaged header", path.name)]
    assert verify(spool_path).is_intact
    assert len(payloads(spool_path)) == 61


async def test_running_log_moves_what_is_no_segment_and_keeps_what_it_prepares(logs, spool_path):
    log = logs.open(segment_bytes=SEGMENT_HEADER_BYTES + 30 * FRAME_BYTES + 50)
    for number in range(20):
        await log.append(payload(number))
    (spool_path / segment_name(7)).write_bytes(b"x" * 5000)
    prepared = spool_path / temporary_name()
    prepared.write_bytes(bytes(10))
    report = await asyncio.to_thread(log.repair)
    assert [(found.what, found.segment, found.n_bytes) for found in report.findings] == [
        ("no intact header", segment_name(7), 5000)
    ]
    assert not (spool_path / segment_name(7)).exists()
    assert prepared.exists()
    assert len(list((spool_path / "quarantine").glob(f"{segment_name(7)}.*"))) == 1


async def test_reader_that_holds_the_old_file_goes_on(logs, segment_paths, expect_log, gate, monkeypatch):
    expect_log += DAMAGED
    log = logs.open(segment_bytes=SEGMENT_HEADER_BYTES + 30 * FRAME_BYTES + 50)
    for number in range(61):
        await log.append(payload(number))
    spoil(segment_paths()[0], 3)
    real = log._reader._read_frames

    def held(*args):
        gate()
        return real(*args)

    monkeypatch.setattr(log._reader, "_read_frames", held)
    reading = asyncio.create_task(asyncio.to_thread(log.read, 4, 1 << 20))
    await gate.reached()
    monkeypatch.undo()
    report = await asyncio.to_thread(log.repair)
    assert [found.mended for found in report.findings] == [True]
    gate.open()
    result = await reading
    assert [frame.seq for frame in result.frames] == list(range(4, 61))
    assert result.lost_events == 0


async def test_reader_that_comes_with_the_old_view_after_the_swap_finds_the_new_file(
    logs, segment_paths, expect_log, gate, monkeypatch
):
    """Between finding a segment and opening it its file is replaced: the old offsets must not meet the new file."""
    expect_log += DAMAGED
    log = logs.open(segment_bytes=SEGMENT_HEADER_BYTES + 30 * FRAME_BYTES + 50)
    for number in range(61):
        await log.append(payload(number))
    assert log.read(0, 20 * LEAST_BYTES).position == 20  # a hint into the old file
    spoil(segment_paths()[0], 3)
    real = log._segment_files.borrow

    def held(segment):
        gate()
        return real(segment)

    monkeypatch.setattr(log._segment_files, "borrow", held)
    reading = asyncio.create_task(asyncio.to_thread(log.read, 20, 1 << 20))
    await gate.reached()
    monkeypatch.undo()
    await asyncio.to_thread(log.repair)
    gate.open()
    result = await reading
    assert [frame.seq for frame in result.frames] == list(range(20, 61))
    assert result.lost_events == 0
    assert log.stats().corrupt_bytes == FRAME_BYTES


async def test_swap_that_fails_lets_readers_go_on_with_the_old_file(logs, files, segment_paths, read_all, expect_log):
    expect_log += [*DAMAGED, "could not be rewritten"]
    log = logs.open(files=files, segment_bytes=SEGMENT_HEADER_BYTES + 30 * FRAME_BYTES + 50)
    for number in range(61):
        await log.append(payload(number))
    spoil(segment_paths()[0], 3)
    files.fail_once("rename", errno.EIO)
    report = await asyncio.to_thread(log.repair)
    assert [found.mended for found in report.findings] == [False]
    frames, lost = read_all(log)
    assert (len(frames), lost) == (60, 1)
    assert [found.mended for found in (await asyncio.to_thread(log.repair)).findings] == [True]
    frames, lost = read_all(log)
    assert (len(frames), lost) == (60, 1)


async def test_segment_released_while_it_is_rewritten_stays_gone(
    logs, files, spool_path, segment_paths, gate, expect_log
):
    expect_log += DAMAGED
    log = logs.open(files=files, segment_bytes=SEGMENT_HEADER_BYTES + 30 * FRAME_BYTES + 50)
    for number in range(61):
        await log.append(payload(number))
    path = segment_paths()[0]
    spoil(path, 3)
    files.before["fsync"] = gate
    repairing = asyncio.create_task(asyncio.to_thread(log.repair))
    await gate.reached()
    log.release(30)
    assert not path.exists()
    gate.open()
    report = await repairing
    assert [found.done for found in report.findings] == ["gone with its segment: every sink is past it"]
    assert not path.exists()
    await log.close()
    assert not list(spool_path.glob("*.tmp"))


async def test_log_closed_while_a_segment_is_rewritten_replaces_nothing(
    logs, files, segment_paths, gate, expect_log, monkeypatch
):
    expect_log += DAMAGED
    log = logs.open(files=files, segment_bytes=SEGMENT_HEADER_BYTES + 30 * FRAME_BYTES + 50)
    for number in range(61):
        await log.append(payload(number))
    path = segment_paths()[0]
    spoil(path, 3)
    before = path.read_bytes()
    real = rewrite._same_frames

    def held(*args):
        gate()
        return real(*args)

    monkeypatch.setattr(rewrite, "_same_frames", held)
    repairing = asyncio.create_task(asyncio.to_thread(log.repair))
    await gate.reached()
    await log.close()
    gate.open()
    with pytest.raises(Exception, match="the log is closed"):
        await repairing
    assert path.read_bytes() == before


async def test_repair_goes_page_by_page(logs, segment_paths, expect_log):
    expect_log += DAMAGED
    log = logs.open(segment_bytes=SEGMENT_HEADER_BYTES + 30 * FRAME_BYTES + 50)
    for number in range(100):
        await log.append(payload(number))
    for path in segment_paths()[:3]:
        spoil(path, 3)
    position, pages = 0, []
    while position < log.durable_seq:
        page = await asyncio.to_thread(log._rewriter.run, position, 0.0)
        assert page.position > position
        position = page.position
        pages.append((page.segments, len(page.findings), page.missing_events))
    assert pages == [(1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 0, 0)]


def test_many_ranges_of_one_segment_are_told_as_a_sum(logs, spool_path, segment_paths, expect_log):
    expect_log += DAMAGED
    logs.write([payload(number) for number in range(1000)], segment_bytes=1 << 20)
    spoil(segment_paths()[0], *range(1, 999, 2))
    report = repair(spool_path)
    assert len(report.findings) == rewrite.SEGMENT_ENTRIES + 1
    assert report.findings[-1].what == "corrupt, 299 more ranges"
    assert sum(found.n_bytes for found in report.findings) == 499 * FRAME_BYTES
    assert report.missing_events == 499


async def test_nothing_intact_is_lost_under_reads_appends_release_and_repair_at_once(
    logs, spool_path, segment_paths, expect_log
):
    """Damage, repair, append, read and release all the time: every reader sees every frame that was not damaged."""
    expect_log += [*DAMAGED, "a segment could not be removed"]
    dice = random.Random(11)
    log = logs.open(segment_bytes=SEGMENT_HEADER_BYTES + 30 * FRAME_BYTES + 50)
    total = 3000
    damaged: set[int] = set()
    done = threading.Event()
    seen: list[list[int]] = [[], []]
    lost = [0, 0]
    positions = [0, 0]

    def follow(reader: int) -> None:
        while not done.is_set() or positions[reader] < log.durable_seq:
            if positions[reader] + 300 > log.durable_seq and not done.wait(0.001):
                continue  # stays behind, so that there is something to damage that nobody has read
            result = log.read(positions[reader], 700)
            lost[reader] += result.lost_events
            seen[reader] += [int(frame.payload[:4]) for frame in result.frames]
            positions[reader] = result.position

    def repair_all() -> int:
        mended = 0
        while not done.wait(0.005):
            position = 0
            while position < log.durable_seq:
                page = log.repair(position)
                mended += sum(found.mended for found in page.findings)
                position = page.position
        return mended

    followers = [asyncio.create_task(asyncio.to_thread(follow, reader)) for reader in (0, 1)]
    repairing = asyncio.create_task(asyncio.to_thread(repair_all))
    for start in range(0, total, 30):
        await asyncio.gather(*(log.append(payload(number)) for number in range(start, start + 30)))
        with log._releaser.lock:  # between two replacements: this is about damage of the disk, not of a file on its way
            sealed = log._index.wholly_below(start)
            segment = dice.choice(sealed) if sealed and start % 90 == 0 else None
            number = segment.first_seq + 15 if segment is not None else -1
            if number not in damaged and segment is not None and min(positions) < segment.first_seq:
                path = spool_path / segment.name
                data = path.read_bytes()
                at = data.find(payload(number))
                if at > 0:
                    with path.open("r+b") as file:
                        file.seek(at)
                        file.write(b"!!")
                    damaged.add(number)
        log.release(min(positions))
        await asyncio.sleep(0)
    done.set()
    await asyncio.gather(*followers)
    mended = await repairing
    for reader in (0, 1):
        assert len(seen[reader]) + lost[reader] == total
        assert seen[reader] == sorted(set(seen[reader]))
        assert set(range(total)) - set(seen[reader]) <= damaged
    assert 3 < mended <= len(damaged)
    await log.close()
    assert not list(spool_path.glob("*.tmp"))
