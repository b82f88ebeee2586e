"""Keeps a sink's cursor: moves it in memory after every batch and makes it durable soon after, off the event loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from dataclasses import replace
from typing import Protocol
from weakref import WeakKeyDictionary

import structlog

from edge.delivery.window import Progress
from edge.spool.cursor import Cursor

log = structlog.get_logger(__name__)

SAVE_EVENTS = 1000
SAVE_SECS = 0.2
RETRY_SECS = 1.0
STOP_SECS = 1.0
WAIT_SECS = 5.0
"""How long `save_past` waits for the disk."""


class Saveable(Protocol):
    """The part of the spool's cursor file that delivery uses. All calls block."""

    @property
    def is_damaged(self) -> bool:
        """Whether there was a cursor that cannot be read any more."""

    def load(self) -> Cursor | None:
        """Return the saved cursor; None when there is none."""

    def save(self, cursor: Cursor) -> None:
        """Make the cursor durable."""

    def close(self) -> None:
        """Let go of what `save` opened."""


# A save that hangs outlives its keeper, and what it writes lands whenever the disk wakes up. Were the next keeper of
# the same cursor to save before that, the old write would then go over a newer slot, and the cursor would fall back
# behind segments that were released meanwhile. A thread inside a system call cannot be called back, so the next keeper
# waits for it. Only its saves wait: its worker delivers until `SAVE_EVENTS` are unsaved, as with any slow save.
_unended: WeakKeyDictionary[object, dict[str, asyncio.Task[None]]] = WeakKeyDictionary()
"""Spool -> sink -> the save that was still going on when its keeper was closed."""


def is_being_saved(spool: object, sink: str) -> bool:
    """Return whether a save of a sink's cursor is going on that its keeper could not wait for."""
    return sink in _unended.get(spool, {})


class CursorKeeper:
    """The cursor of one sink, in memory and on disk.

    Saved when `SAVE_EVENTS` events were settled since the last save, or `SAVE_SECS` after the first of them. `bounded`
    holds the worker back while more than `SAVE_EVENTS` are unsaved: what a sudden death of the process delivers twice
    is at most the batch in flight and `SAVE_EVENTS`. A disk that refuses the cursor does not stop delivery: it is said,
    and tried again.
    """

    def __init__(
        self, spool: object, sink: str, file: Saveable, cursor: Cursor, executor: Executor, *, durable: bool
    ) -> None:
        self.cursor = cursor
        self.durable_position = cursor.position
        self._spool = spool
        self._sink = sink
        self._file = file
        self._executor = executor
        self._saved = cursor if durable else None
        self._unsaved_events = 0
        self._timer: asyncio.TimerHandle | None = None
        self._saving: asyncio.Task[None] | None = None
        self._failing = False
        self._closed = False
        self._before = _unended.get(spool, {}).get(sink)
        """The save of an earlier keeper that has to end before any of this one."""

    def advance(self, progress: Progress) -> None:
        """Move the cursor in memory, and see to it that it is saved in time."""
        cursor = self.cursor
        self.cursor = replace(
            cursor,
            position=progress.position,
            delivered=cursor.delivered + progress.delivered,
            dead_lettered=cursor.dead_lettered + progress.dead_lettered,
            skipped=cursor.skipped + progress.skipped + progress.foreign,
            lost=cursor.lost + progress.lost,
            dropped=cursor.dropped + progress.dropped,
        )
        # Passing skipped events again costs nothing, but a cursor far behind keeps segments on disk: all count.
        self._unsaved_events += progress.position - cursor.position
        self._schedule()

    def touch(self) -> None:
        """Have the cursor saved although it did not move."""
        self._schedule()

    async def save_past(self, position: int) -> bool:
        """Make the cursor durable now if it is past a position; return whether it is durably past it."""
        while self.durable_position < position <= self.cursor.position and not self._closed:
            if self._saving is None or self._saving.done():
                self._cancel_timer()
                self._saving = asyncio.get_running_loop().create_task(self._save())
            done, _ = await asyncio.wait({self._saving}, timeout=WAIT_SECS)
            if not done or self._failing:
                break
        return self.durable_position >= position

    async def bounded(self) -> None:
        """Wait until so few events are unsaved that another batch may be attempted."""
        while self._unsaved_events > SAVE_EVENTS and self._saving is not None and not self._failing:
            await asyncio.wait({self._saving})

    async def saved(self) -> None:
        """Have the cursor saved now and wait for it; a disk that refuses it is not waited for."""
        while self.durable_position < self.cursor.position and not self._failing and not self._closed:
            if self._saving is None:
                self._cancel_timer()
                self._saving = asyncio.get_running_loop().create_task(self._save())
            await asyncio.wait({self._saving})

    async def close(self) -> None:
        """Save what is unsaved, within `STOP_SECS`. A save that takes longer keeps the cursor from the next keeper."""
        self._closed = True
        self._cancel_timer()
        if self._saving is not None:
            await asyncio.wait({self._saving}, timeout=STOP_SECS)
        if self._saved != self.cursor and (self._saving is None or self._saving.done()):
            self._saving = asyncio.get_running_loop().create_task(self._save())
            await asyncio.wait({self._saving}, timeout=STOP_SECS)
        if self._saving is None or self._saving.done():
            self._file.close()
            return
        log.error("the cursor of a sink is not saved in time; a restart would repeat events", sink=self._sink)
        unended = _unended.setdefault(self._spool, {})
        unended[self._sink] = self._saving
        self._saving.add_done_callback(lambda save: self._ended(unended, save))

    def _ended(self, unended: dict[str, asyncio.Task[None]], save: asyncio.Task[None]) -> None:
        self._file.close()
        if unended.get(self._sink) is save:
            del unended[self._sink]

    def _schedule(self) -> None:
        if self._closed or (self._saving is not None and not self._saving.done()):
            return
        loop = asyncio.get_running_loop()
        if self._unsaved_events >= SAVE_EVENTS and not self._failing:
            self._cancel_timer()
            self._saving = loop.create_task(self._save())
        elif self._timer is None:
            self._timer = loop.call_later(RETRY_SECS if self._failing else SAVE_SECS, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        if not self._closed and (self._saving is None or self._saving.done()):
            self._saving = asyncio.get_running_loop().create_task(self._save())

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _save(self) -> None:
        try:
            if self._before is not None:
                await asyncio.wait({self._before})
                self._before = None
            cursor, events = self.cursor, self._unsaved_events
            await asyncio.get_running_loop().run_in_executor(self._executor, self._file.save, cursor)
        except Exception as error:  # noqa: BLE001 - whatever it is, the cursor is not saved and has to be
            if not self._failing:
                log.error(
                    "the cursor of a sink cannot be saved; a restart would repeat events",
                    sink=self._sink,
                    error=str(error),
                )
            self._failing = True
        else:
            if self._failing:
                log.info("the cursor of a sink is saved again", sink=self._sink)
            self._failing = False
            self._saved = cursor
            self.durable_position = cursor.position
            self._unsaved_events -= events
        finally:
            # This task is about to end: what came in meanwhile needs the next one.
            self._saving = None
            if self._saved != self.cursor and not self._closed:
                self._schedule()
