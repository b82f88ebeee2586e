"""A follower sees what the owner of a log has published as durable: all of it, in order, and nothing else."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from edge.spool import SpoolFailedError, SpoolUnknownError, recovery
from edge.spool.cursor import Cursor, CursorFile
from edge.spool.follower import Follower
from edge.spool.format import SEGMENT_HEADER_BYTES
from edge.spool.seam import Seam

SEGMENT_BYTES = 4096


def payload(number: int) -> bytes:
    return b"%04d" % number * 25


@pytest.fixture
def seam() -> Iterator[Seam]:
    seam = Seam()
    yield seam
    seam.close()


class Following:
    """A follower beside a log of small segments, which is opened with the seam."""

    def __init__(self, logs: Any, seam: Seam) -> None:
        self.logs, self.seam = logs, seam
        self.log = self.open()
        self.follower = Follower(logs.path, seam)

    def open(self, **options: Any) -> Any:
        return self.logs.open(segment_bytes=SEGMENT_BYTES, seam=self.seam, **options)

    def numbers(self, position: int = 0, max_bytes: int = 1 << 20) -> tuple[list[int], int]:
        """Return the numbers of all events from a position on, and how many were lost on the way."""
        seqs: list[int] = []
        lost = 0
        while True:
            result = self.follower.read(position, max_bytes)
            lost += result.lost_events
            for frame in result.frames:
                assert frame.payload == payload(frame.seq)
                seqs.append(frame.seq)
            if result.position == position:
                return seqs, lost
            position = result.position


@pytest.fixture
def following(logs: Any, seam: Seam, io_loop: Any) -> Iterator[Following]:
    made = Following(logs, seam)

    async def start() -> None:
        made.follower.start(asyncio.get_running_loop())

    io_loop.run_sync(start)
    yield made

    async def close() -> None:
        made.follower.close()

    io_loop.run_sync(close)


async def test_follower_reads_all_that_is_durable_over_many_segments(following: Following) -> None:
    for number in range(200):
        await following.log.append(payload(number))
        if number % 7 == 0:  # in the middle of segments, and just when one begins
            assert following.numbers(max(0, number - 3)) == (list(range(max(0, number - 3), number + 1)), 0)
    assert following.follower.durable_seq == 200
    assert following.numbers() == (list(range(200)), 0)
    assert following.numbers(max_bytes=250) == (list(range(200)), 0)
    assert len(following.log.starts()) > 5


async def test_follower_reads_while_the_log_is_written(following: Following) -> None:
    async def write() -> None:
        for number in range(0, 600, 3):
            await asyncio.gather(*(following.log.append(payload(number + at)) for at in range(3)))

    writing = asyncio.create_task(write())
    seqs: list[int] = []
    position = 0
    while position < 600:
        result = await asyncio.to_thread(following.follower.read, position, 2000)
        assert not result.lost_events
        seqs += [frame.seq for frame in result.frames]
        position = result.position
    await writing
    assert seqs == list(range(600))


async def test_follower_never_returns_what_is_not_durable(
    logs: Any, seam: Seam, files: Any, expect_log: list[str]
) -> None:
    expect_log += ["fdatasync of the spool failed", "the segment could not be cut"]
    log = logs.open(seam=seam, files=files)
    follower = Follower(logs.path, seam)
    await log.append(payload(0))
    files.fail_once("fdatasync", errno.EIO)
    files.fail_once("ftruncate", errno.EIO)  # so that the bytes stay where they were written
    with pytest.raises(SpoolUnknownError):
        await log.append(payload(9))
    assert [frame.seq for frame in follower.read(0, 1 << 20).frames] == [0]
    assert not follower.read(1, 1 << 20).frames
    await log.append(payload(1))  # another event with the same number
    assert [frame.payload for frame in follower.read(0, 1 << 20).frames] == [payload(0), payload(1)]
    follower.start(asyncio.get_running_loop())
    follower.close()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO])
async def test_follower_passes_over_nothing_that_cannot_be_opened_right_now(
    following: Following, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    for number in range(200):
        await following.log.append(payload(number))
    missing = sorted(following.logs.path.glob("seg-*.log"))[2].name
    open_regular = recovery.open_regular

    def refuse(name: str, dir_fd: int) -> int:
        if name == missing:
            raise OSError(code, os.strerror(code), name)
        return open_regular(name, dir_fd)

    with monkeypatch.context() as patched:
        patched.setattr(recovery, "open_regular", refuse)
        for _ in range(2):
            with pytest.raises(SpoolFailedError, match=missing):
                following.numbers()
    assert following.numbers() == (list(range(200)), 0)


async def test_follower_hears_of_commits(following: Following, eventually: Any) -> None:
    heard: list[int] = []
    end = following.follower.subscribe(heard.append)
    for number in range(30):
        await following.log.append(payload(number))
    await eventually(lambda: heard and heard[-1] == 30, 0.9)  # before anybody looks without being woken
    end()
    await following.log.append(payload(30))
    await asyncio.sleep(0.05)
    assert heard[-1] == 30


async def test_follower_hears_that_there_is_no_room(following: Following, eventually: Any) -> None:
    heard: list[int] = []
    following.follower.on_wish = lambda: heard.append(following.seam.wish)
    following.seam.wish = 7
    await eventually(lambda: heard, 0.9)
    assert heard[0] == 7


async def test_follower_sees_that_segments_were_released(following: Following) -> None:
    for number in range(100):
        await following.log.append(payload(number))
    second, third = following.log.starts()[1:3]
    following.log.release(third)
    assert following.follower.first_seq == third
    assert following.numbers(third) == (list(range(third, 100)), 0)
    # Asked for what is gone it says how much that is, like the log itself.
    assert following.numbers(second)[1] == third - second


async def test_follower_holds_no_file_of_a_segment_that_is_gone(following: Following) -> None:
    def held() -> list[str]:
        found = []
        for link in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):  # that of this look
                found.append(str(link.readlink()))
        return [name for name in found if str(following.logs.path) in name and "deleted" in name]

    for number in range(100):
        await following.log.append(payload(number))
    following.numbers()
    following.log.release(100)
    assert held()
    following.follower.let_go()
    assert not held()


async def test_writer_that_starts_again_goes_on_behind_what_was_published(
    following: Following, expect_log: list[str]
) -> None:
    expect_log += ["not everything in it could be used", "events of the spool are lost"]
    for number in range(10):
        await following.log.append(payload(number))
    await following.log.close()
    # The disk has lost the end of the last segment, and no cursor on disk is as far as delivery was in memory.
    last = max(following.logs.path.glob("seg-*.log"))
    os.truncate(last, SEGMENT_HEADER_BYTES)
    CursorFile(following.logs.path, "crm").save(Cursor(position=3))
    log = following.open()
    assert log.durable_seq == following.follower.durable_seq == 10
    await log.append(payload(10))
    assert following.numbers(10) == ([10], 0)
    assert following.numbers(3)[0] == [10]


async def test_follower_steps_over_damage_and_says_what_is_lost(following: Following, expect_log: list[str]) -> None:
    expect_log += ["a segment of the spool is damaged", "events of the spool are lost"]
    for number in range(100):
        await following.log.append(payload(number))
    frame = following.follower.read(20, 1).frames[0]
    path = following.logs.path / frame.segment
    with path.open("r+b") as file:
        file.seek(frame.offset + 60)
        file.write(b"\xaa")
    seqs, lost = following.numbers()
    assert seqs == [number for number in range(100) if number != 20]
    assert lost == 1
    following.log.repair()  # which gives the name to another file, in which all lies elsewhere
    assert following.numbers() == (seqs, 1)
    assert following.numbers(22) == (list(range(22, 100)), 0)
