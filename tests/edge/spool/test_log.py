from __future__ import annotations

import asyncio
import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from edge.spool import (
    EVENTS,
    MARK,
    REPLAY,
    Log,
    SpoolBackpressureError,
    SpoolClosedError,
    SpoolFailedError,
    SpoolFullError,
    SpoolLockedError,
)


def open_files() -> list[str]:
    return [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]


async def test_append_returns_the_number_of_the_first_event(logs, read_all):
    log = logs.open()
    assert await log.append(b"one", 3) == 0
    assert await log.append(b"two", 1, REPLAY) == 3
    assert await log.append(b"three", 2, MARK) == 4
    assert log.durable_seq == 6
    frames, lost = read_all(log)
    assert [(frame.kind, frame.seq, frame.n_events, frame.payload) for frame in frames] == [
        (EVENTS, 0, 3, b"one"),
        (REPLAY, 3, 1, b"two"),
        (MARK, 4, 2, b"three"),
    ]
    assert lost == 0


async def test_append_takes_an_empty_payload(logs, read_all):
    log = logs.open()
    await log.append(b"")
    assert [frame.payload for frame in read_all(log)[0]] == [b""]


async def test_append_refuses_a_frame_without_events(logs):
    with pytest.raises(ValueError, match="at least one event"):
        logs.open().append(b"", 0)


async def test_append_refuses_what_recovery_would_take_for_garbage(logs, read_all):
    log = logs.open()
    with pytest.raises(ValueError, match="at most"):
        log.append(b"", 1 << 24)
    with pytest.raises(ValueError, match="no kind"):
        log.append(b"", 1, 4)
    assert await log.append(b"", (1 << 24) - 1) == 0
    await log.close()
    assert [frame.n_events for frame in read_all(logs.open())[0]] == [(1 << 24) - 1]


async def test_appends_that_wait_share_one_fdatasync(logs, files, gate, observer, eventually):
    log = logs.open(files=files, observer=observer)
    files.before["fdatasync"] = gate
    files.calls.clear()
    first = log.append(b"first")
    await gate.reached()
    others = [log.append(b"event %d" % number) for number in range(500)]
    gate.open()
    assert await first == 0
    assert await asyncio.gather(*others) == list(range(1, 501))
    assert files.count("fdatasync") == 2
    await eventually(lambda: observer.commits == [1, 500])  # told after those who wait


async def test_commit_of_more_buffers_than_one_call_takes_is_whole(logs, files, read_all):
    log = logs.open(files=files, segment_bytes=1 << 20)
    payloads = [b"%d" % number for number in range(3000)]
    await asyncio.gather(*map(log.append, payloads))
    assert [frame.payload for frame in read_all(log)[0]] == payloads


async def test_append_is_answered_only_after_fdatasync_returned(logs, files, gate):
    log = logs.open(files=files)
    files.before["fdatasync"] = gate
    future = log.append(b"event")
    await gate.reached()
    done, _ = await asyncio.wait([future], timeout=0.05)
    assert not done
    assert log.durable_seq == 0
    assert log.read(0, 1000).frames == []  # written, but a reader must not see it yet
    gate.open()
    assert await future == 0
    assert len(log.read(0, 1000).frames) == 1


@pytest.mark.parametrize("durability", ["os", "memory"])
async def test_append_needs_no_fdatasync_with_weaker_durability(logs, files, eventually, read_all, durability):
    log = logs.open(files=files, durability=durability)
    files.calls.clear()
    assert [await log.append(b"event") for _ in range(3)] == [0, 1, 2]
    await eventually(lambda: log.durable_seq == 3)
    assert files.count("fdatasync") == 0
    assert len(read_all(log)[0]) == 3


async def test_memory_append_is_answered_before_anything_is_written(logs, files, gate):
    log = logs.open(files=files, durability="memory")
    files.before["pwritev"] = gate
    futures = [log.append(b"event", 2) for _ in range(3)]
    assert [future.result() for future in futures] == [0, 2, 4]
    gate.open()


async def test_append_is_refused_when_too_much_waits(logs, files, gate):
    log = logs.open(files=files, queue_bytes=10_000)
    files.before["fdatasync"] = gate
    futures = [log.append(bytes(2000)) for _ in range(4)]
    with pytest.raises(SpoolBackpressureError):
        log.append(bytes(2000))
    gate.open()
    assert await asyncio.gather(*futures) == [0, 1, 2, 3]
    await log.append(bytes(2000))


async def test_append_takes_a_frame_larger_than_the_queue_when_nothing_waits(logs):
    assert await logs.open(queue_bytes=1000).append(bytes(5000)) == 0


async def test_append_needs_an_open_and_started_log(logs, spool_path):
    log = Log.open(spool_path)
    with pytest.raises(SpoolClosedError):
        log.append(b"event")
    await log.close()
    log = logs.open()
    await log.close()
    with pytest.raises(SpoolClosedError):
        log.append(b"event")


async def test_read_after_the_close_is_an_error(logs):
    log = logs.open()
    await log.append(b"event")
    await log.close()
    with pytest.raises(SpoolFailedError):
        log.read(0, 100)


async def test_cancelled_waiter_does_not_disturb_the_commit(logs):
    log = logs.open()
    first, second = log.append(b"one"), log.append(b"two")
    first.cancel()
    assert await second == 1


async def test_subscriber_hears_of_commits_until_it_leaves(logs):
    log = logs.open()
    heard: list[int] = []
    unsubscribe = log.subscribe(heard.append)
    await log.append(b"one", 2)
    await log.append(b"two")
    unsubscribe()
    unsubscribe()
    await log.append(b"three")
    assert heard == [2, 3]


async def test_close_writes_what_waits(logs, read_all):
    log = logs.open()
    futures = [log.append(b"%d" % number) for number in range(100)]
    await log.close()
    assert [future.result() for future in futures] == list(range(100))
    assert len(read_all(logs.open())[0]) == 100


async def test_close_twice_is_harmless(logs):
    log = logs.open()
    await asyncio.gather(log.close(), log.close())
    await log.close()


async def test_close_leaves_segments_of_their_real_length_and_no_temporary_files(logs, segment_paths, spool_path):
    log = logs.open()
    await log.append(b"x" * 40_000)  # past the middle: room for the next segment is prepared
    await log.close()
    assert [path.stat().st_size for path in segment_paths()] == [1024 + 32 + 40_000]
    assert sorted(path.name for path in spool_path.iterdir() if not path.name.startswith("seg-")) == [
        "LOCK",
        "META.json",
    ]
    assert not list(spool_path.glob("*.tmp"))


async def test_close_removes_a_segment_nothing_was_written_to(logs, segment_paths):
    await logs.open().close()
    assert segment_paths() == []
    log = logs.open()
    await log.append(b"event")
    await log.close()
    await logs.open().close()
    assert len(segment_paths()) == 1


async def test_close_keeps_the_empty_segment_whose_name_holds_the_number(logs, segment_paths):
    log = logs.open(segment_bytes=4096)
    for _ in range(4):
        await log.append(bytes(2500))
    await log.close()
    log = logs.open(segment_bytes=4096)
    log.release(log.durable_seq)
    await log.close()
    assert [path.name for path in segment_paths()] == ["seg-00000000000000000004.log"]
    assert await logs.open().append(b"event") == 4


async def test_log_goes_on_after_it_was_closed(logs, read_all):
    for number in range(3):
        log = logs.open()
        assert await log.append(b"%d" % number) == number
        await log.close()
    log = logs.open()
    assert [frame.payload for frame in read_all(log)[0]] == [b"0", b"1", b"2"]


def test_names_of_new_directories_are_durable_once_the_log_is_open(logs, files, spool_path, monkeypatch):
    made: list[Path] = []
    synced: list[Path] = []
    files.before["mkdir"] = made.append
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (fsync(fd), synced.append(Path(f"/proc/self/fd/{fd}").readlink())))
    logs.open(files=files)
    assert made == [spool_path.parent, spool_path]
    assert {path.parent for path in made} <= set(synced)


async def test_open_refuses_a_directory_that_is_in_use(logs, spool_path):
    log = logs.open()
    with pytest.raises(SpoolLockedError):
        Log.open(spool_path)
    assert await log.append(b"event") == 0


async def test_open_says_what_is_wrong_with_the_path(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SpoolFailedError, match="file"):
        Log.open(tmp_path / "file" / "spool")
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "LOCK").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SpoolFailedError):
        Log.open(tmp_path / "spool")
    assert not (tmp_path / "elsewhere").exists()


async def test_files_are_for_the_owner_alone(logs, spool_path, segment_paths):
    log = logs.open()
    await log.append(b"event")
    assert spool_path.stat().st_mode & 0o777 == 0o700
    for path in [*segment_paths(), spool_path / "LOCK", spool_path / "META.json"]:
        assert path.stat().st_mode & 0o777 == 0o600


async def test_full_segment_is_followed_by_the_next(logs, segment_paths, read_all, eventually):
    log = logs.open(segment_bytes=4096)
    for number in range(10):
        await log.append(b"%04d" % number * 250)
    names = [path.name for path in segment_paths()]
    assert names == [f"seg-{first:020d}.log" for first in range(0, 10, 2)]
    assert log.stats().segments == 5
    assert [frame.payload[:4] for frame in read_all(log)[0]] == [b"%04d" % number for number in range(10)]


async def test_next_segment_is_allocated_before_it_is_needed(logs, files, eventually):
    log = logs.open(files=files, segment_bytes=8192)
    await log.append(bytes(5000))
    await eventually(lambda: log._writer._active._ready is not None)
    files.calls.clear()
    await log.append(bytes(5000))
    assert files.calls[0][0] == "pwritev"  # the roll itself allocates nothing
    await eventually(lambda: files.count("fallocate") == 1)


async def test_next_segment_is_durable_before_its_first_frame(logs, files):
    log = logs.open(files=files, segment_bytes=4096)
    await log.append(bytes(3000))
    files.calls.clear()
    await log.append(bytes(3000))
    calls = [name for name, _ in files.calls]
    header, synced, renamed = calls.index("pwritev"), calls.index("fdatasync"), calls.index("rename")
    directory, frame = calls.index("fsync", renamed), calls.index("pwritev", header + 1)
    assert header < synced < renamed < directory < frame < calls.index("fdatasync", frame)


async def test_frame_larger_than_a_segment_gets_its_own(logs, read_all):
    log = logs.open(segment_bytes=4096)
    payloads = [b"a" * 100, b"b" * 50_000, b"c" * 100, b"d" * 9000]
    await asyncio.gather(*map(log.append, payloads))
    assert [frame.payload for frame in read_all(log)[0]] == payloads
    await log.close()
    assert [frame.payload for frame in read_all(logs.open())[0]] == payloads


async def test_release_unlinks_what_lies_wholly_below(logs, segment_paths, read_all):
    log = logs.open(segment_bytes=4096)
    for _ in range(6):
        await log.append(bytes(1400))
    before = log.stats().bytes
    assert log.release(1) == 0
    assert log.first_seq == 0
    freed = log.release(3)
    assert freed == 1024 + 2 * 1432
    assert log.stats().bytes == before - freed
    assert log.first_seq == 2
    assert len(segment_paths()) == 2
    result = log.read(0, 1 << 20)
    assert (result.lost_events, [frame.seq for frame in result.frames]) == (2, [2, 3, 4, 5])
    assert log.stats().lost_events == 0  # released on purpose


async def test_release_never_unlinks_the_active_segment(logs, segment_paths):
    log = logs.open()
    await log.append(b"event")
    assert log.release(1000) == 0
    assert await log.append(b"event") == 1


async def test_release_keeps_what_is_not_old_enough(logs, segment_paths):
    log = logs.open(segment_bytes=4096, retain_secs=3600)
    for _ in range(4):
        await log.append(bytes(2500))
    assert log.release(4) == 0
    await log.close()
    log = logs.open(segment_bytes=4096)
    assert log.release(4) > 0


class Wall:
    """The module `time` with a wall clock that somebody set, and a monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.jumped_secs = 0.0
        self.passed_secs = 0.0

    def time(self) -> float:
        return time.time() + self.jumped_secs

    def monotonic(self) -> float:
        return time.monotonic() + self.passed_secs


@pytest.mark.parametrize("jump_secs", [-86_400, 86_400])
async def test_retention_minds_no_clock_that_jumps_and_begins_anew_at_a_restart(
    logs, segment_paths, monkeypatch, jump_secs
):
    clock = Wall()
    for module in ("release", "active", "recovery"):
        monkeypatch.setattr(f"edge.spool.{module}.time", clock)
    log = logs.open(segment_bytes=4096, retain_secs=3600)
    for _ in range(4):
        await log.append(bytes(2500))
    clock.jumped_secs = jump_secs
    assert log.release(4) == 0
    await log.close()
    for path in segment_paths():  # a backup, a copy, or a clock that was wrong: their times say nothing
        at = path.stat().st_mtime + jump_secs
        os.utime(path, (at, at))
    log = logs.open(segment_bytes=4096, retain_secs=3600)
    assert log.release(4) == 0
    clock.passed_secs += 3590
    assert log.release(4) == 0
    clock.passed_secs += 20
    assert log.release(4) > 0
    assert log.first_seq == 4


async def test_segments_that_are_only_kept_give_way_to_the_cap_oldest_first(logs, segment_paths):
    log = logs.open(segment_bytes=4096, max_bytes=5 * 4096, retain_secs=3600)
    for _ in range(4):
        await log.append(bytes(2500))
    log.release(4)
    assert log.first_seq == 0
    for number in range(4, 30):
        assert await log.append(bytes(2500)) == number
        log.release(number + 1)
        assert log.stats().bytes <= 5 * 4096
        assert log.first_seq > number - 6  # and no more than need be
    assert log.shortage is None
    assert log.stats().segments >= 4


async def test_segments_that_are_only_kept_give_way_to_a_full_disk(logs, files, expect_log):
    expect_log += ["refuses events"]
    log = logs.open(files=files, segment_bytes=4096, retain_secs=3600)
    for _ in range(6):
        await log.append(bytes(2500))
    log.release(3)
    disk = 6 * 4096

    def allocate(*args: object) -> None:
        if sum(path.stat().st_size for path in logs.path.glob("seg-*")) + 4096 > disk:
            raise OSError(errno.ENOSPC, "No space left on device")

    files.before["fallocate"] = allocate
    for _ in range(2):
        await log.append(bytes(2500))
    assert log.first_seq in (1, 2, 3)
    outcomes = await asyncio.gather(*(log.append(bytes(2500)) for _ in range(8)), return_exceptions=True)
    assert isinstance(outcomes[-1], SpoolFullError)
    assert log.first_seq == 3  # from there on they are needed


async def test_full_log_says_so_before_the_room_is_needed(logs, eventually, expect_log):
    log = logs.open(segment_bytes=4096, max_bytes=3 * 4096)
    bells: list[int] = []
    log.watch_shortage(lambda: bells.append(log.durable_seq))
    for _ in range(3):
        await log.append(bytes(2500))
    await eventually(lambda: bells)
    assert log.stats().writable
    shortage = log.shortage
    assert shortage is not None
    assert shortage.is_cap
    excess = log.make_room(0, shortage)
    assert log.end_of_oldest(excess) == 1
    assert log.end_of_oldest(1 << 20) is None
    assert log.make_room(1, shortage) == 0
    await eventually(lambda: log.shortage is None)
    assert log.first_seq == 1


async def test_release_gives_back_room_that_a_reader_held_open(logs):
    log = logs.open(segment_bytes=4096)
    for _ in range(6):
        await log.append(bytes(2500))
    assert len(log.read(0, 1 << 20).frames) == 6
    log.release(5)
    assert not [path for path in open_files() if path.startswith(str(logs.path)) and path.endswith("(deleted)")]


async def test_stats_describe_the_log(logs):
    log = logs.open(segment_bytes=4096, max_bytes=1 << 20)
    await log.append(b"event", 5)
    stats = log.stats()
    assert (stats.segments, stats.bytes, stats.capacity_bytes) == (1, 4096, 1 << 20)
    assert (stats.writable, stats.reason, stats.appended_events) == (True, "", 5)
    assert (stats.corrupt_bytes, stats.lost_events, stats.late_events) == (0, 0, 0)
    await log.close()
    assert not log.stats().writable


async def test_waiter_that_fails_keeps_nobody_from_being_told(logs: Any, expect_log: list[str]) -> None:
    expect_log += ["who waited for a commit failed"] * 2
    log = logs.open()
    told: list[int] = []

    def fail(seq: int, error: object) -> None:
        raise ValueError("a waiter's own")

    log.submit(b"a", 1, fail)
    log.submit(b"b", 1, lambda seq, error: told.append(seq))
    log.submit(b"c", 1, fail)
    assert await log.append(b"d") == 3
    assert told == [1]
