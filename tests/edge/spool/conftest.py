"""What the spool's tests share: real files in `tmp_path`, system calls that can be recorded, delayed and failed."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edge.spool import Frame, Log
from edge.spool.files import Buffer, Files


class FaultyFiles(Files):
    """Records every call; what is put into `before` under a call's name runs first and may raise or block.

    A descriptor is recorded as the number of its `open`, because the system uses small numbers again.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.before: dict[str, Callable[..., object]] = {}
        self.largest_write: int | None = None
        self._opened = 0
        self._numbers: dict[int, int] = {}

    def _enter(self, name: str, *args: Any) -> None:
        self.calls.append((name, args[0]))
        if name in self.before:
            self.before[name](*args)

    def count(self, name: str) -> int:
        return sum(call == name for call, _ in self.calls)

    def fail_once(self, name: str, error: int, after: int = 0) -> None:
        """Let one call fail, `after` calls from now."""
        self.fail_always(name, error, after=after, times=1)

    def fail_always(self, name: str, error: int, after: int = 0, times: int = 1 << 30) -> None:
        state = {"skip": after, "times": times}

        def raise_error(*args: Any) -> None:
            if state["skip"]:
                state["skip"] -= 1
            elif state["times"]:
                state["times"] -= 1
                raise OSError(error, os.strerror(error))

        self.before[name] = raise_error

    def heal(self) -> None:
        self.before.clear()
        self.largest_write = None

    def mkdir(self, path: Path, mode: int = 0o700) -> None:
        self._enter("mkdir", path)
        super().mkdir(path, mode)

    def open(self, name: str, flags: int, mode: int = 0o600, *, dir_fd: int) -> int:
        self._enter("open", name)
        fd = super().open(name, flags, mode, dir_fd=dir_fd)
        self._opened += 1
        self._numbers[fd] = self._opened
        return fd

    def fallocate(self, fd: int, size: int) -> None:
        self._enter("fallocate", self._numbers[fd])
        super().fallocate(fd, size)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._enter("pwritev", self._numbers[fd])
        if self.largest_write is not None:
            return os.pwrite(fd, b"".join(buffers)[: self.largest_write], offset)
        return super().pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        self._enter("fdatasync", self._numbers[fd])
        super().fdatasync(fd)

    def fsync(self, fd: int) -> None:
        self._enter("fsync", self._numbers[fd])
        super().fsync(fd)

    def ftruncate(self, fd: int, size: int) -> None:
        self._enter("ftruncate", self._numbers[fd])
        super().ftruncate(fd, size)

    def rename(self, old: str, new: str, *, dir_fd: int) -> None:
        self._enter("rename", new)
        super().rename(old, new, dir_fd=dir_fd)

    def unlink(self, name: str, *, dir_fd: int) -> None:
        self._enter("unlink", name)
        super().unlink(name, dir_fd=dir_fd)

    def close(self, fd: int) -> None:
        super().close(fd)  # first: the system closes a descriptor even when it reports an error
        self._enter("close", self._numbers.pop(fd))


class Gate:
    """Holds whoever calls it until it is opened."""

    def __init__(self) -> None:
        self._is_reached = threading.Event()
        self._is_open = threading.Event()

    def __call__(self, *args: Any) -> None:
        self._is_reached.set()
        self._is_open.wait(10)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._is_reached.wait, 10)

    def open(self) -> None:
        self._is_open.set()


class Observer:
    """Adds up what a log tells."""

    def __init__(self) -> None:
        self.commits: list[int] = []
        self.corrupt_bytes = 0
        self.lost_frames = 0

    def commit(self, duration_secs: float, n_events: int) -> None:
        assert duration_secs >= 0
        self.commits.append(n_events)

    def corrupt(self, n_bytes: int) -> None:
        self.corrupt_bytes += n_bytes

    def lost(self, n_frames: int) -> None:
        self.lost_frames += n_frames


class Logs:
    """Opens logs on the test's loop and closes them at its end."""

    def __init__(self, loop: Any, path: Path) -> None:
        self._loop = loop
        self.path = path
        self.opened: list[Log] = []

    def open(self, path: Path | None = None, **options: Any) -> Log:
        log = Log.open(path or self.path, **{"segment_bytes": 64 * 1024, **options})
        log.start(self._loop.asyncio_loop)
        self.opened.append(log)
        return log

    def write(self, payloads: Sequence[bytes], path: Path | None = None, **options: Any) -> None:
        """Write a log from start to end, one commit for each payload."""

        async def run() -> None:
            log = self.open(path, **options)
            for payload in payloads:
                await log.append(payload)
            await log.close()

        self._loop.run_sync(run)

    def close(self) -> None:
        for log in self.opened:
            self._loop.run_sync(log.close, timeout=10)


@pytest.fixture
def files() -> FaultyFiles:
    return FaultyFiles()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def observer() -> Observer:
    return Observer()


@pytest.fixture
def spool_path(tmp_path: Path) -> Path:
    return tmp_path / "spool" / "shard-000"


@pytest.fixture
def logs(io_loop: Any, spool_path: Path, files: FaultyFiles) -> Iterator[Logs]:
    logs = Logs(io_loop, spool_path)
    yield logs
    files.heal()
    logs.close()


def _read_all(log: Log, position: int = 0, max_bytes: int = 1 << 20) -> tuple[list[Frame], int]:
    """Return all frames from a position on, and how many events were lost on the way."""
    frames: list[Frame] = []
    lost = 0
    while True:
        result = log.read(position, max_bytes)
        lost += result.lost_events
        frames += result.frames
        if result.position == position:
            assert position >= log.durable_seq
            return frames, lost
        position = result.position


@pytest.fixture
def read_all() -> Callable[..., tuple[list[Frame], int]]:
    return _read_all


@pytest.fixture
def segment_paths(spool_path: Path) -> Callable[[], list[Path]]:
    return partial(lambda path: sorted(path.glob("seg-*.log")), spool_path)
