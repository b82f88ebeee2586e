from __future__ import annotations

import asyncio
import errno
import random
import shutil
import time

import pytest

from edge.spool import (
    SpoolBackpressureError,
    SpoolError,
    SpoolFailedError,
    SpoolFullError,
    SpoolUnknownError,
)
from edge.spool import writer as writer_module

REFUSES = "the spool refuses events"
SYNC_FAILED = "fdatasync of the spool failed"
NOT_WRITTEN = "the spool could not be written"
NOT_CUT = "could not be cut"


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask a disk that refused again after a moment instead of a second."""
    monkeypatch.setattr(writer_module, "RETRY_SECS", 0.02)


async def append_all(log, payloads) -> dict[bytes, int | str]:
    """Append one after the other; returns number or name of the error of each."""
    outcome: dict[bytes, int | str] = {}
    for payload in payloads:
        try:
            outcome[payload] = await log.append(payload)
        except SpoolError as error:
            outcome[payload] = type(error).__name__
    return outcome


async def queue_behind(log, files, gate, payloads) -> list[asyncio.Future[int]]:
    """Queue payloads that form one commit, because the commit of `before` is held up until the gate opens."""
    files.before["fdatasync"] = gate
    log.append(b"before")
    await gate.reached()
    return [log.append(payload) for payload in payloads]


async def test_full_disk_refuses_new_segments_and_goes_on_by_itself(logs, files, eventually, expect_log, no_patience):
    expect_log += [REFUSES]
    log = logs.open(files=files, segment_bytes=4096)
    files.fail_always("fallocate", errno.ENOSPC)
    assert await append_all(log, [b"a" * 2000]) == {b"a" * 2000: 0}
    assert await append_all(log, [b"b" * 2000]) == {b"b" * 2000: "SpoolFullError"}
    with pytest.raises(SpoolFullError):  # at once, without the writer
        log.append(b"c" * 2000)
    assert not log.stats().writable
    assert "No space" in log.stats().reason
    assert await log.append(b"fits into what the segment has left") == 1
    assert len(log.read(0, 1 << 20).frames) == 2
    files.heal()
    await eventually(lambda: log.stats().writable)
    assert await log.append(b"d" * 2000) == 2
    assert log.stats().segments == 2


@pytest.mark.parametrize("code", [errno.EDQUOT, errno.EFBIG, errno.ENOSPC])
async def test_disk_that_is_full_at_the_start_is_opened_and_read(
    logs, files, eventually, expect_log, read_all, no_patience, code
):
    expect_log += [REFUSES]
    log = logs.open()
    await log.append(b"event")
    await log.close()
    files.fail_always("fallocate", code)
    log = logs.open(files=files)
    with pytest.raises(SpoolFullError):
        log.append(b"more")
    assert [frame.payload for frame in read_all(log)[0]] == [b"event"]
    files.heal()
    await eventually(lambda: log.stats().writable)
    assert await log.append(b"more") == 1


async def test_failed_allocation_ahead_of_need_disturbs_nobody(logs, files, eventually, no_patience):
    log = logs.open(files=files, segment_bytes=8192)
    files.fail_always("fallocate", errno.ENOSPC, times=3)
    for number in range(3):
        assert await log.append(b"x" * 1700) == number
    assert log.stats().writable
    await eventually(lambda: files.count("fallocate") >= 5)
    assert await log.append(b"x" * 3000) == 3


async def test_max_bytes_is_never_exceeded_and_release_makes_room(logs, eventually, expect_log):
    expect_log += [REFUSES]
    log = logs.open(segment_bytes=4096, max_bytes=3 * 4096)
    for stored in range(3):
        assert await log.append(b"x" * 3000) == stored
        assert log.stats().bytes <= 3 * 4096
    with pytest.raises(SpoolFullError):
        await log.append(b"x" * 3000)
    assert "max_bytes" in log.stats().reason
    started = time.monotonic()
    log.release(2)
    await eventually(lambda: log.stats().writable)
    assert time.monotonic() - started < 0.9  # at once, not at the next second
    assert await log.append(b"x" * 3000) == 3


async def test_frame_that_finds_no_room_of_its_own_leaves_the_others_alone(logs, read_all):
    log = logs.open(segment_bytes=4096, max_bytes=4 * 4096)
    outcome = await append_all(log, [b"a", b"x" * 50_000, b"b"])
    assert list(outcome.values()) == [0, "SpoolFullError", 1]
    assert log.stats().writable


async def test_failed_fdatasync_is_unknown_to_its_commit_and_the_next_goes_on(logs, files, expect_log, read_all):
    expect_log += [SYNC_FAILED]
    log = logs.open(files=files)
    assert await log.append(b"before") == 0
    files.fail_once("fdatasync", errno.EIO)
    with pytest.raises(SpoolUnknownError):
        await log.append(b"doubtful")
    assert await log.append(b"after") == 1
    assert [frame.payload for frame in read_all(log)[0]] == [b"before", b"after"]
    assert log.stats().writable
    await log.close()
    assert [frame.payload for frame in read_all(logs.open())[0]] == [b"before", b"after"]


@pytest.mark.parametrize("is_lasting", [False, True])
@pytest.mark.parametrize("skip", range(12))
async def test_descriptor_whose_sync_failed_is_never_synced_again(
    logs, files, expect_log, read_all, eventually, no_patience, skip, is_lasting
):
    expect_log += [SYNC_FAILED, REFUSES]
    log = logs.open(files=files, segment_bytes=4096)
    payloads = [b"%04d" % number * 200 for number in range(12)]
    failed: list[int] = []
    state = {"skip": skip}

    def fail(number: int) -> None:
        if state["skip"]:
            state["skip"] -= 1
        elif is_lasting or not failed:
            failed.append(number)
            raise OSError(errno.EIO, "Input/output error")

    files.before["fdatasync"] = fail
    outcome = await append_all(log, payloads)
    known = [payload for payload, result in outcome.items() if isinstance(result, int)]
    assert [frame.payload for frame in read_all(log)[0]] == known
    if is_lasting:
        assert not log.stats().writable
        with pytest.raises(SpoolFailedError):
            log.append(b"more")
    else:
        assert len(known) >= len(payloads) - 1
    files.heal()
    await eventually(lambda: log.stats().writable)
    assert await log.append(b"last") == len(known)
    await log.close()
    for number in failed:
        last = max(index for index, call in enumerate(files.calls) if call == ("fdatasync", number))
        assert ("fdatasync", number) not in files.calls[last + 1 :]
        assert ("fsync", number) not in files.calls[last + 1 :]
        assert ("close", number) in files.calls[last:]
    assert len(failed) == len(set(failed))
    assert [frame.payload for frame in read_all(logs.open())[0]] == [*known, b"last"]


@pytest.mark.parametrize("name", ["open", "fallocate", "fsync", "fdatasync", "pwritev", "rename", "ftruncate", "close"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("skip", range(5))
async def test_any_call_may_fail_once_without_loss(
    logs, files, expect_log, read_all, eventually, no_patience, name, code, skip
):
    expect_log += [SYNC_FAILED, REFUSES, NOT_WRITTEN, NOT_CUT]
    log = logs.open(files=files, segment_bytes=4096)
    files.fail_once(name, code, after=skip)
    payloads = [b"%04d" % number * 200 for number in range(12)]
    outcome = await append_all(log, payloads)
    known = [payload for payload, result in outcome.items() if isinstance(result, int)]
    files.heal()
    await eventually(lambda: log.stats().writable)
    assert await log.append(b"last") == len(known)
    frames, lost = read_all(log)
    assert ([frame.payload for frame in frames], lost) == ([*known, b"last"], 0)
    await log.close()
    frames, lost = read_all(logs.open())
    assert ([frame.payload for frame in frames], lost) == ([*known, b"last"], 0)


async def test_short_writes_are_completed(logs, files, read_all):
    log = logs.open(files=files)
    files.largest_write = 7
    payloads = [b"%d" % number * 20 for number in range(20)]
    await asyncio.gather(*map(log.append, payloads))
    assert [frame.payload for frame in read_all(log)[0]] == payloads


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EFBIG])
async def test_write_that_fails_half_way_stores_nothing_of_its_commit(logs, files, gate, expect_log, read_all, code):
    expect_log += [NOT_WRITTEN]
    log = logs.open(files=files)
    futures = await queue_behind(log, files, gate, [b"refused %d" % number for number in range(3)])
    files.largest_write = 60  # one frame and a part of the next
    files.fail_once("pwritev", code, after=1)
    gate.open()
    errors = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(error) for error in errors] == [SpoolFailedError] * len(futures)
    files.largest_write = None
    assert await log.append(b"after") == 1
    assert [frame.payload for frame in read_all(log)[0]] == [b"before", b"after"]
    await log.close()
    assert [frame.payload for frame in read_all(logs.open())[0]] == [b"before", b"after"]


async def test_refused_commit_is_not_there_after_a_crash(logs, files, gate, eventually, tmp_path, expect_log, read_all):
    expect_log += [NOT_WRITTEN, REFUSES]
    log = logs.open(files=files)
    futures = await queue_behind(log, files, gate, [b"refused 1", b"refused 2"])
    files.largest_write = 60  # one whole frame gets to the file
    files.fail_once("pwritev", errno.EIO, after=1)
    files.fail_always("fallocate", errno.ENOSPC)  # and no fresh segment fences it
    gate.open()
    errors = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(error) for error in errors] == [SpoolFailedError] * len(futures)
    await eventually(lambda: not log.stats().writable)
    shutil.copytree(logs.path, tmp_path / "crashed")
    assert [frame.payload for frame in read_all(logs.open(tmp_path / "crashed"))[0]] == [b"before"]


async def test_write_that_takes_no_byte_is_an_error_not_a_loop(logs, files, expect_log):
    expect_log += [NOT_WRITTEN, REFUSES]
    log = logs.open(files=files)
    files.largest_write = 0
    with pytest.raises(SpoolFailedError):
        await log.append(b"event")


async def test_failed_commit_that_cannot_be_cut_never_counts(logs, files, expect_log, read_all):
    expect_log += [SYNC_FAILED, NOT_CUT]
    log = logs.open(files=files)
    await log.append(b"before")
    files.fail_once("fdatasync", errno.EIO)
    files.fail_once("ftruncate", errno.EIO)
    with pytest.raises(SpoolUnknownError):
        await log.append(b"doubtful")
    assert await log.append(b"after") == 1
    await log.close()
    frames, lost = read_all(logs.open())
    assert ([frame.payload for frame in frames], lost) == ([b"before", b"after"], 0)


async def test_stalled_commit_is_unknown_and_what_waits_is_withdrawn(logs, files, gate, eventually, read_all):
    log = logs.open(files=files, stall_secs=0.1)
    files.before["fdatasync"] = gate
    stalled = log.append(b"stalled", 3)
    await gate.reached()
    waiting = log.append(b"waiting")
    with pytest.raises(SpoolUnknownError):
        await stalled
    with pytest.raises(SpoolBackpressureError):
        await waiting
    assert not log.stats().writable
    assert log.durable_seq == 0
    gate.open()
    await eventually(lambda: log.durable_seq == 3)
    assert await log.append(b"later") == 3
    assert log.stats().writable
    assert (log.stats().appended_events, log.stats().late_events) == (4, 3)
    assert [frame.payload for frame in read_all(log)[0]] == [b"stalled", b"later"]


async def test_stalled_disk_does_not_hold_up_the_loop(logs, files, gate):
    log = logs.open(files=files, queue_bytes=100_000)
    files.before["fdatasync"] = gate
    futures = []
    slowest = 0.0
    for _ in range(200):
        started = time.monotonic()
        try:
            futures.append(log.append(bytes(1000)))
        except SpoolBackpressureError:
            break
        slowest = max(slowest, time.monotonic() - started)
    else:
        raise AssertionError("the queue has a limit")
    assert slowest < 0.1
    gate.open()
    await asyncio.gather(*futures)


async def test_removed_segment_is_noticed(logs, files, segment_paths, expect_log, monkeypatch):
    expect_log += [NOT_WRITTEN]
    monkeypatch.setattr("edge.spool.active._LOOK_SECS", 0)
    log = logs.open()
    await log.append(b"one")
    segment_paths()[0].unlink()
    with pytest.raises(SpoolFailedError):
        await log.append(b"two")
    await log.append(b"three")
    assert len(segment_paths()) == 1


async def test_replaced_directory_is_noticed_and_nothing_written_elsewhere(
    logs, tmp_path, eventually, expect_log, monkeypatch, no_patience
):
    expect_log += [NOT_WRITTEN, REFUSES]
    monkeypatch.setattr("edge.spool.active._LOOK_SECS", 0)
    log = logs.open()
    await log.append(b"one")
    logs.path.rename(tmp_path / "moved")
    before = sorted(path.name for path in (tmp_path / "moved").iterdir())
    with pytest.raises(SpoolFailedError):
        await log.append(b"two")
    await eventually(lambda: not log.stats().writable)
    assert sorted(path.name for path in (tmp_path / "moved").iterdir()) == before
    (tmp_path / "moved").rename(logs.path)
    await eventually(lambda: log.stats().writable)
    assert await log.append(b"three") == 1


async def test_unexpected_error_of_the_writer_answers_everybody_and_it_goes_on(logs, files, expect_log, read_all):
    expect_log += ["unexpected error"]
    log = logs.open(files=files)
    await log.append(b"before")
    files.before["fdatasync"] = lambda fd: 1 / 0
    future = log.append(b"doubtful")
    with pytest.raises(SpoolUnknownError):
        await future
    files.heal()
    await log.append(b"after")
    assert [frame.payload for frame in read_all(log)[0]] == [b"before", b"after"]


async def test_release_of_a_log_without_a_segment_frees_nothing(logs, files, eventually, expect_log, no_patience):
    expect_log += [SYNC_FAILED, REFUSES]
    log = logs.open(files=files)
    files.fail_once("fdatasync", errno.EIO)
    files.fail_always("open", errno.EIO)  # the segment went, and no other one can be made
    with pytest.raises(SpoolUnknownError):
        await log.append(b"doubtful")
    await eventually(lambda: not log.stats().writable)
    assert log.stats().segments == 0
    assert log.release(0) == 0
    files.heal()
    await eventually(lambda: log.stats().writable)


async def test_unlink_that_fails_keeps_the_segment_in_the_log(logs, files, expect_log):
    expect_log += ["a segment could not be removed"]
    log = logs.open(files=files, segment_bytes=4096)
    for _ in range(3):
        await log.append(bytes(3000))
    files.fail_always("unlink", errno.EACCES)
    assert log.release(2) == 0
    assert log.first_seq == 0
    files.heal()
    assert log.release(2) > 0
    assert log.first_seq == 2


@pytest.mark.parametrize("seed", range(15))
async def test_books_balance_after_any_mixture_of_faults(
    logs, files, expect_log, read_all, eventually, no_patience, seed
):
    expect_log += [SYNC_FAILED, REFUSES, NOT_WRITTEN, NOT_CUT, "a segment could not be removed"]
    dice = random.Random(seed)
    log = logs.open(files=files, segment_bytes=8192, max_bytes=1 << 20)
    outcome: dict[bytes, int | type[BaseException]] = {}
    calls = ["open", "fallocate", "fsync", "fdatasync", "pwritev", "rename", "ftruncate", "close", "unlink"]

    async def append(payload: bytes) -> None:
        try:
            outcome[payload] = await log.append(payload)
        except SpoolError as error:
            outcome[payload] = type(error)

    for round_number in range(40):
        if dice.random() < 0.6:
            files.fail_always(
                dice.choice(calls),
                dice.choice([errno.EIO, errno.ENOSPC]),
                after=dice.randrange(4),
                times=dice.choice([1, 1, 2, 1000]),
            )
        if dice.random() < 0.3:
            files.largest_write = dice.randrange(1, 5000)
        payloads = [b"%d.%d " % (round_number, number) * dice.randrange(1, 300) for number in range(dice.randrange(20))]
        await asyncio.gather(*map(append, payloads))
        files.heal()
        await eventually(lambda: log.stats().writable)
    stored = {payload: result for payload, result in outcome.items() if isinstance(result, int)}
    refused = {payload for payload, result in outcome.items() if result in (SpoolFailedError, SpoolFullError)}
    assert len(stored) > 100
    for number in range(2):
        frames, lost = read_all(log)
        assert lost == log.stats().corrupt_bytes == 0
        found = {frame.payload: frame.seq for frame in frames}
        assert len(found) == len(frames)
        assert stored.items() <= found.items()
        assert not refused & set(found)
        assert log.durable_seq == len(frames)
        if number == 0:
            await log.close()
            log = logs.open()
