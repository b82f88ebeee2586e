"""The one place where a sink's worker waits: for time, for events in the spool, or for the order to stop."""

from __future__ import annotations

import asyncio

from edge.clock import Clock


class Waiter:
    """Waits of one task. Used on the event loop only."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._future: asyncio.Future[None] | None = None
        self._until_seq: int | None = None
        self.stopped = False
        """Set for good by `stop`; every wait ends at once from then on."""
        self.interrupted = False
        """Set by `interrupt` until `resume`; every wait ends at once meanwhile."""
        self.finishing = False
        """Set for good by `finish`: what is there is delivered, but nothing is waited for."""

    @property
    def stopping(self) -> bool:
        """Whether what is in hand is to be put down: for good, or to look up."""
        return self.stopped or self.interrupted

    async def wait(self, secs: float | None, until_seq: int | None = None) -> None:
        """Wait until `secs` have passed, the spool reaches `until_seq`, or `stop`; None: no such end."""
        if self.finishing and until_seq is None:
            # A wait that no event can end is a pause after a failure: a sink that fails now is not waited for.
            self.stopped = True
        if self.stopping or self.finishing or (secs is not None and secs <= 0):
            return
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._future, self._until_seq = future, until_seq
        timer = None
        if secs is not None:
            timer = loop.create_task(_sleep(self._clock, secs))
            timer.add_done_callback(lambda _: _ring(future))
        try:
            await future
        finally:
            self._future = None
            if timer is not None:
                timer.cancel()

    def committed(self, durable_seq: int) -> None:
        """Note how far the spool reaches; wakes the task only when it waits for that much."""
        if self._future is not None and self._until_seq is not None and durable_seq >= self._until_seq:
            _ring(self._future)

    def finish(self) -> None:
        """End the running wait and all later ones; a pause after a failure becomes a `stop`."""
        self.finishing = True
        if self._future is not None:
            if self._until_seq is None:
                self.stopped = True
            _ring(self._future)

    def interrupt(self) -> None:
        """End the running wait, and those to come until `resume`."""
        self.interrupted = True
        if self._future is not None:
            _ring(self._future)

    def resume(self) -> None:
        """Wait again."""
        self.interrupted = False

    def stop(self) -> None:
        """End the running wait and all later ones."""
        self.stopped = True
        if self._future is not None:
            _ring(self._future)


async def _sleep(clock: Clock, secs: float) -> None:
    await clock.sleep(secs)


def _ring(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
