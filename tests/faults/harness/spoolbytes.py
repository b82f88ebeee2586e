"""Spools of known content, to be damaged: how they are written, and how one is opened, read and closed again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge.spool import Frame, Log


def write_spool(path: Path, payloads: Sequence[bytes], **options: Any) -> None:
    """Write one frame for each payload, the first one number 0, and end in order."""

    async def run() -> None:
        log = Log.open(path, **options)
        log.start(asyncio.get_running_loop())
        for start in range(0, len(payloads), 500):
            await asyncio.gather(*map(log.append, payloads[start : start + 500]))
        await log.close()

    asyncio.run(run())


def payload_of(number: int, size: int) -> bytes:
    """Return bytes that say which frame they belong to and that compress to nothing."""
    return b"%08d " % number + random.Random(number).randbytes(max(size - 9, 0))


@dataclass(slots=True)
class Observer:
    """Adds up what a log reports."""

    corrupt_bytes: int = 0
    lost_frames: int = 0
    commits: int = field(default=0)

    def commit(self, duration_secs: float, n_events: int) -> None:
        self.commits += 1

    def corrupt(self, n_bytes: int) -> None:
        self.corrupt_bytes += n_bytes

    def lost(self, n_frames: int) -> None:
        self.lost_frames += n_frames


@dataclass(slots=True)
class Opened:
    """A log that was opened, and how long that took."""

    log: Log
    secs: float
    observer: Observer

    def read(self, position: int, end: int | None = None) -> tuple[list[Frame], int]:
        """Return the frames from a position on, up to `end` or a little past it, and the events lost on the way."""
        frames: list[Frame] = []
        lost = 0
        end = self.log.durable_seq if end is None else min(end, self.log.durable_seq)
        while position < end:
            result = self.log.read(position, 1 << 20)
            assert result.position > position, f"reading stops at {position}"
            frames += result.frames
            lost += result.lost_events
            position = result.position
        return frames, lost


class Opener:
    """Opens logs on a loop of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def close(self) -> None:
        self._loop.close()

    @contextmanager
    def open(self, path: Path, **options: Any) -> Iterator[Opened]:
        """Open a log for the time of a `with`."""
        observer = Observer()
        started = time.monotonic()
        log = Log.open(path, observer=observer, **options)
        secs = time.monotonic() - started
        try:
            yield Opened(log, secs, observer)
        finally:
            self._loop.run_until_complete(log.close())

    def append(self, log: Log, payload: bytes) -> int:
        """Start the log and append one frame."""

        async def append() -> int:
            log.start(self._loop)
            return await log.append(payload)

        return self._loop.run_until_complete(append())
