"""Making room in a spool that is full: first what is only kept, then the oldest events of sinks that may lose some."""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from edge.spool.log import Log

log = structlog.get_logger(__name__)


class Holders(Protocol):
    """Who holds segments: the sinks' workers, here or in another process."""

    @property
    def release_position(self) -> int:
        """The position that every sink is durably past."""

    async def drop_before(self, position: int) -> bool:
        """Have every sink durably past a position, those that are not required by giving events up."""


class RoomMaker:
    """Looks after the room for the spool's next segment, before the door has to refuse anything.

    Where `max_bytes` is the limit, the oldest segments go as soon as only sinks that are not required hold them: those
    sinks lose the events, durably and counted, before a segment is unlinked. A segment that a required sink needs
    stays, and so does all of it on a disk that others have filled: what is dropped there need not make room here.
    """

    def __init__(self, spool: Log, holders: Holders) -> None:
        self._spool = spool
        self._holders = holders
        self._short = asyncio.Event()
        spool.watch_shortage(self._short.set)

    async def run(self) -> None:
        """Make room whenever the spool is short of it, until cancelled. The spool says so again every second."""
        while True:
            await self._short.wait()
            self._short.clear()
            await self.make()

    async def make(self) -> None:
        """Make room for the next segment, if there is none and it can be made; an error is logged."""
        try:
            await self._make()
        except Exception:
            log.exception("periodic work failed; it is tried again", work="make_room")

    async def _make(self) -> None:
        shortage = self._spool.shortage
        if shortage is None:
            return
        excess = await self._release()
        if not excess or not shortage.is_cap:
            return
        end = self._spool.end_of_oldest(excess)
        if end is not None and await self._holders.drop_before(end):
            await self._release()

    async def _release(self) -> int:
        """Let go of what no sink needs; return the bytes that are still too many."""
        shortage = self._spool.shortage
        if shortage is None:
            return 0
        return await asyncio.to_thread(self._spool.make_room, self._holders.release_position, shortage)
