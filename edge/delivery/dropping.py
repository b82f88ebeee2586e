"""Giving up the oldest events of a sink, when the spool is full and they are what holds its first segments."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

from edge.api import EdgeError
from edge.clock import Clock
from edge.config.model import BatchOptions
from edge.delivery.batcher import Batcher
from edge.delivery.deliver import Delivery
from edge.delivery.progress import CursorKeeper
from edge.delivery.waiting import Waiter

GRACE_SECS = 0.5
"""What the attempt in hand gets to end: a target that is only slow is to have its batch. One that hung gets no more."""
READ_SECS = 1.0
"""How long the events are looked at, while senders may be waiting for room already."""
DROP_SECS = 5.0
"""After so long whoever asked goes on without: the disk does not answer."""
AT_ONCE = BatchOptions(max_events=10_000, max_bytes=8 * 1024 * 1024, max_age_secs=0.0)


class Dropper:
    """Has one worker give up the events before a position. Used on the event loop.

    `ask` interrupts the worker's task. That task puts down what it has in hand, calls `drop`, and goes on from there:
    only one task ever moves the cursor.
    """

    def __init__(self, waiter: Waiter, delivery: Delivery, keeper: CursorKeeper, clock: Clock) -> None:
        self._waiter = waiter
        self._delivery = delivery
        self._keeper = keeper
        self._clock = clock
        self._done: asyncio.Future[None] | None = None
        self._told = keeper.cursor.dropped
        self._is_hanging = False
        self.position = 0
        """What lies before it is to be given up."""

    async def ask(self, position: int, worker: asyncio.Task[None]) -> None:
        """Return when the cursor is past a position, the worker's task has ended or `DROP_SECS` are over."""
        self.position = max(self.position, position)
        self._done = done = self._done or asyncio.get_running_loop().create_future()
        self._waiter.interrupt()
        self._is_hanging = not await self._delivery.caller.let_go(0.0 if self._is_hanging else GRACE_SECS)
        await asyncio.wait({worker, done}, timeout=DROP_SECS, return_when=asyncio.FIRST_COMPLETED)

    async def drop(self, batcher: Batcher, executor: Executor) -> None:
        """Move the cursor to `position`, or to the first event behind it that is wanted, and end the interruption.

        The events are read, so that what the sink does not want counts as skipped and what is another sink's as
        foreign: a dropped event is one that the sink should have had. What cannot be read, or not within `READ_SECS`,
        is counted by its numbers, as dropped. The batcher begins at the cursor and is of no use afterwards.
        """
        try:
            await self._read(batcher, executor)
            self._delivery.drop_unread(self.position)
        finally:
            dropped = self._keeper.cursor.dropped
            if dropped > self._told:
                self._delivery.reporter.dropped(dropped - self._told)
            self._told = dropped
            self._waiter.resume()
            if self._done is not None and not self._done.done():
                self._done.set_result(None)
            self._done = None

    async def _read(self, batcher: Batcher, executor: Executor) -> None:
        clock, keeper = self._clock, self._keeper
        ends_at = clock.monotonic() + READ_SECS

        def enough() -> bool:
            return batcher.read_position >= self.position or clock.monotonic() >= ends_at

        while keeper.cursor.position < self.position and clock.monotonic() < ends_at:
            before = batcher.read_position
            try:
                await asyncio.get_running_loop().run_in_executor(executor, batcher.fill, 0.0, enough)
            except (OSError, EdgeError):
                return  # who is to deliver such events says that they cannot be read; nobody is
            while batcher.behind and keeper.cursor.position < self.position:
                self._delivery.drop(batcher.cut(), self.position)
            if batcher.read_position == before:
                return
