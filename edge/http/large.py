"""Large bodies: so many at a time are decompressed, decoded and judged, however many senders have sent one.

One body of a few megabytes becomes ten times that as events, and keeps a processor busy for tens of milliseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, ParamSpec, TypeVar

from edge.api import EdgeError

P = ParamSpec("P")
T = TypeVar("T")

LARGE_BYTES: Final = 64 * 1024
"""Bodies from this size on, as they are after decompression, are large."""
TURNS: Final = 3
WAIT_SECS: Final = 5.0
"""Longer than this no body waits for its turn: a 503 now is better than an answer that comes when nobody waits."""


class NoTurnError(EdgeError):
    """There are too many large bodies; nothing was done with this one."""


class LargeBodies:
    """Hands out turns. Whoever has one may hold a large body and what becomes of it, and has a thread for the work."""

    def __init__(self, turns: int = TURNS, wait_secs: float = WAIT_SECS) -> None:
        self._free = asyncio.Semaphore(turns)
        # Its own few threads: each thread of the common pool would keep memory that only large bodies need.
        self._threads = ThreadPoolExecutor(turns, thread_name_prefix="large-body")
        self._wait_secs = wait_secs

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, in the order of arrival, and keep it until the block ends. `NoTurnError` after a while."""
        try:
            async with asyncio.timeout(self._wait_secs):
                await self._free.acquire()
        except TimeoutError:
            raise NoTurnError("too many large bodies at once") from None
        try:
            yield
        finally:
            self._free.release()

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do work in a thread; on a large body only with a turn in hand."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **kwargs))
