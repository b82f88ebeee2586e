"""Time, passed in: delivery and limits never ask the system for it, so that tests decide what time it is."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Two clocks and a way to wait. `monotonic` is for durations, `time` for stamps that people and files see."""

    def monotonic(self) -> float:
        """Seconds since some fixed point; never goes back."""

    def time(self) -> float:
        """Seconds since the epoch, UTC; may jump."""

    async def sleep(self, secs: float) -> None:
        """Wait for `secs` seconds of `monotonic`."""


class SystemClock:
    """The machine's clocks and the event loop's timer."""

    def monotonic(self) -> float:
        """Return `time.monotonic`."""
        return time.monotonic()

    def time(self) -> float:
        """Return `time.time`."""
        return time.time()

    async def sleep(self, secs: float) -> None:
        """Wait on the running event loop."""
        await asyncio.sleep(secs)
