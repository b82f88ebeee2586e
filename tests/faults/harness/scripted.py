"""A scripted life of a spool with two sinks, written down call by call: what the exhaustive crash test looks at.

Appends alone and in groups, segments that fill up, short writes, batches, dead letters kept and replayed, cursors and
releases: everything goes through the code that the gateway runs, from `Log` to `SinkWorker`.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

import edge.delivery.progress
from edge.api import Batch, PermanentError
from edge.clock import SystemClock
from edge.config.model import BatchOptions, ComponentConfig, DeadLetters, RetryOptions, SinkConfig
from edge.delivery.dead_letters import DeadLetterStore
from edge.delivery.worker import SinkWorker
from edge.event import pack
from edge.spool import CursorFile, Log
from edge.workers import Workers
from harness.simfs import Op, RecordingFiles

SINKS = ("all", "picky")
SHARD = "shard-000"
SEGMENT_BYTES = 8192
LARGEST = (None, None, None, 700)
"""What one pwritev takes; one of these at each step."""
META = {"key": "web", "received_at": "2025-10-09T08:53:20+00:00", "request_id": "r"}


class Sink:
    """Takes events and says so in the trace; the picky one refuses one in six for good."""

    when = None

    def __init__(self, id: str, files: RecordingFiles) -> None:
        self.id = id
        self._files = files

    async def open(self) -> None:
        """There is nothing to open."""

    async def close(self) -> None:
        """There is nothing to close."""

    async def deliver(self, batch: Batch) -> dict[int, Exception]:
        numbers = [orjson.loads(line)["n"] for line in batch.lines]
        refused = {i for i, n in enumerate(numbers) if self.id == "picky" and n % 6 == 5}
        self._files.note("delivered", self.id, [n for i, n in enumerate(numbers) if i not in refused])
        return {i: PermanentError("not that one") for i in refused}


class Observer:
    """Delivery wants somebody to report to."""

    def attempt(self, *args: Any) -> None: ...
    def sink_settled(self, *args: Any) -> None: ...
    def batch(self, *args: Any) -> None: ...


def sink_config(id: str) -> SinkConfig:
    return SinkConfig(
        component=ComponentConfig("sink", "recording", id, {}, None, None, "skip", "test:1"),
        batch=BatchOptions(max_events=10, max_bytes=1 << 20, max_age_secs=0.0),
        retry=RetryOptions(initial_secs=0.5, max_secs=60.0, give_up_secs=None),
        timeout_secs=10.0,
        dead_letter=True,
        required=False,
    )


class Script:
    """The run: about `steps` appends on a fresh spool under `root`."""

    def __init__(self, root: Path, steps: int, seed: int = 1, largest_writes: Sequence[int | None] = LARGEST) -> None:
        self.trace: list[Op] = []
        self.root = root
        self.files = RecordingFiles(root, self.trace.append)
        self._steps = steps
        self._dice = random.Random(seed)
        self._largest_writes = largest_writes
        self._n = 0
        self._syncs = 0
        self._loop: asyncio.AbstractEventLoop

    def run(self) -> list[Op]:
        """Return what was done, in order."""
        asyncio.run(self._run())
        return self.trace

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self.files.before = self._before
        self.files.largest_write = self._largest_writes[0]
        path = self.root / "spool" / SHARD
        log = Log.open(path, segment_bytes=SEGMENT_BYTES, files=self.files)
        log.start(self._loop)
        letters = DeadLetters(path=self.root / "dead-letters", segment_bytes=4096, max_bytes=1 << 20)
        clock = SystemClock()
        workers = Workers(log, path, letters, Observer(), clock)
        running = {}
        for name in SINKS:
            running[name] = SinkWorker(
                Sink(name, self.files),
                sink_config(name),
                log,
                CursorFile(path, name, files=self.files),
                DeadLetterStore(letters.path, name, segment_bytes=4096, max_bytes=1 << 20),
                Observer(),
                clock,
                rng=random.Random(7),
            )
            running[name].start()
        workers._workers = running
        self.files.note("started")

        async def release() -> None:
            await asyncio.to_thread(log.release, workers.release_position)

        for step in range(self._steps):
            self.files.largest_write = self._dice.choice(self._largest_writes)
            await asyncio.gather(*(self._append(log) for _ in range(self._dice.choice([1, 1, 1, 2, 5]))))
            if step % 9 == 4:
                await release()  # as the gateway does it: whatever the sinks are at just now
            if step % 30 == 29:
                await _until(lambda: all(worker.snapshot().pending_events == 0 for worker in running.values()))
                await _until(lambda: workers.release_position == log.durable_seq)
                await release()
            if step % 40 == 39:
                await self._take_letters_away(running["picky"].dead_letters)
        await workers.stop(5.0)
        await log.close()

    async def _append(self, log: Log) -> None:
        count = self._dice.choice([1, 1, 2, 4])
        numbers = range(self._n, self._n + count)
        self._n += count
        lines = [orjson.dumps({"n": n, "pad": "x" * self._dice.randrange(5, 500)}) for n in numbers]
        payload = pack(META, lines)
        self.files.note("sent", payload, count)
        future = log.append(payload, count)
        # At once, not when this coroutine gets its turn: what a sender was told must stand before what comes later.
        future.add_done_callback(lambda done: self.files.note("acked", done.result(), payload, list(numbers)))
        await future

    async def _take_letters_away(self, store: DeadLetterStore | None) -> None:
        assert store is not None
        letters = await asyncio.to_thread(lambda: list(store.entries()))
        oldest = letters[: len(letters) // 2 + 1]
        # From here on they may be gone.
        self.files.note("taken", store.sink, [orjson.loads(letter.line)["n"] for letter in oldest])
        await store.mark([letter.id for letter in oldest], "dropped")

    def _before(self, name: str) -> None:
        """Let the loop say what it knows before a sync counts: an acknowledgement must not come ahead of it.

        Now and then the sinks get the time to run ahead, as far as they are let.
        """
        if name not in ("fdatasync", "fsync") or threading.get_ident() == self._thread or not self._loop.is_running():
            return
        self._syncs += 1
        wait = asyncio.sleep(0.03 if self._syncs % 12 == 0 else 0)
        asyncio.run_coroutine_threadsafe(_passes(wait), self._loop).result(5)


async def _passes(wait: Any) -> None:
    await wait
    await asyncio.sleep(0)


async def _until(condition: Any) -> None:
    deadline = asyncio.get_running_loop().time() + 10
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "the sinks did not come to rest"
        await asyncio.sleep(0.002)


@contextmanager
def recorded(script: Script) -> Iterator[None]:
    """Have dead letters use the script's files as well, and cursors saved soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edge.spool.log.Files", lambda: script.files)
        patch.setattr(edge.delivery.progress, "SAVE_SECS", 0.004)
        yield
