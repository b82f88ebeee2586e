"""Whoever asks is told once, on the loop, whether a frame is part of the log, whatever its waiter was told."""

from __future__ import annotations

import errno

import pytest

from edge.spool import SpoolBackpressureError, SpoolClosedError, SpoolFailedError, SpoolUnknownError


async def test_stored_frame_is_decided_before_its_waiter_goes_on(logs):
    log = logs.open()
    words: list[bool] = []
    await log.append(b"event", decided=words.append)
    assert words == [True]
    await log.append(b"another")
    assert words == [True]


@pytest.mark.parametrize(
    ("call", "error", "line"),
    [
        ("pwritev", SpoolFailedError, "the spool could not be written"),
        ("fdatasync", SpoolUnknownError, "fdatasync of the spool failed"),
    ],
)
async def test_frame_of_a_failed_commit_is_not_stored(logs, files, expect_log, eventually, read_all, call, error, line):
    expect_log.append(line)
    log = logs.open(files=files)
    words: list[bool] = []
    files.fail_once(call, errno.EIO)
    with pytest.raises(error):
        await log.append(b"event", decided=words.append)
    assert words == [False]
    await log.append(b"after")
    assert [frame.payload for frame in read_all(log)[0]] == [b"after"]


@pytest.mark.parametrize("is_stored", [True, False])
async def test_stalled_frame_is_decided_when_the_disk_answers(
    logs, files, gate, expect_log, eventually, read_all, is_stored
):
    expect_log += [] if is_stored else ["fdatasync of the spool failed"]
    log = logs.open(files=files, stall_secs=0.1)

    def stall(*args: object) -> None:
        gate()
        if not is_stored:
            raise OSError(errno.EIO, "no")

    files.before["fdatasync"] = stall
    stalled_words: list[bool] = []
    waiting_words: list[bool] = []
    stalled = log.append(b"stalled", decided=stalled_words.append)
    await gate.reached()
    waiting = log.append(b"waiting", decided=waiting_words.append)
    with pytest.raises(SpoolUnknownError):
        await stalled
    with pytest.raises(SpoolBackpressureError):
        await waiting
    assert (stalled_words, waiting_words) == ([], [False])
    files.heal()
    gate.open()
    await eventually(lambda: stalled_words)
    assert (stalled_words, waiting_words) == ([is_stored], [False])
    assert [frame.payload for frame in read_all(log)[0]] == ([b"stalled"] if is_stored else [])


async def test_frame_whose_waiter_has_gone_is_decided_all_the_same(logs, files, gate, eventually):
    log = logs.open(files=files)
    files.before["fdatasync"] = gate
    words: list[bool] = []
    future = log.append(b"event", decided=words.append)
    await gate.reached()
    future.cancel()
    gate.open()
    await eventually(lambda: words)
    assert words == [True]


async def test_frame_in_memory_is_decided_at_once_and_not_again(logs):
    log = logs.open(durability="memory")
    words: list[bool] = []
    log.append(b"event", decided=words.append)
    assert words == [True]
    await log.close()
    assert words == [True]


async def test_frame_that_was_not_taken_is_not_decided(logs):
    log = logs.open()
    await log.close()
    words: list[bool] = []
    with pytest.raises(SpoolClosedError):
        log.append(b"event", decided=words.append)
    assert words == []
