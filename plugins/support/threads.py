"""Threads for blocking work of components. They are daemons: work that hangs does not keep the process from ending."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

Result = TypeVar("Result")

_Job = tuple[Callable[[], Any], asyncio.AbstractEventLoop, asyncio.Future[Any]]


MAX_OUTSTANDING = 32
"""Jobs with a key that nobody has had the end of; past that a thread that hangs takes no more work."""


class JobThread:
    """Runs blocking jobs for coroutines of one event loop.

    A job that has begun cannot be stopped: when the sink's time-out cancels the wait, the job goes on. The retry of the
    same batch must not start a second one beside it or behind it, so it passes the same `key` and waits for the first,
    whatever was asked for in between.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._outstanding: dict[object, asyncio.Future[Any]] = {}
        self._thread = Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, job: Callable[[], Result], *, key: object = None) -> Result:
        """Run the job in the thread and return its result or raise its error.

        With a `key`: when earlier waits with the same key were cancelled, their job's result is returned instead.
        `OSError` (EAGAIN) when too many jobs with other keys have not ended.
        """
        if key is None:
            return await self._begin(job)
        future: asyncio.Future[Result]
        if key in self._outstanding:
            future = self._outstanding[key]
        else:
            self._make_room()
            future = self._outstanding[key] = self._begin(job)
        await asyncio.wait({future})  # cancelled here, the job's end is kept for who asks again
        if self._outstanding.get(key) is future:
            del self._outstanding[key]
        return future.result()

    def _begin(self, job: Callable[[], Result]) -> asyncio.Future[Result]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._jobs.put((job, loop, future))
        return future

    def _make_room(self) -> None:
        """Forget the oldest job that has ended, when there are too many that nobody came back for."""
        if len(self._outstanding) < MAX_OUTSTANDING:
            return
        ended = next((key for key, future in self._outstanding.items() if future.done()), None)
        if ended is None:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        del self._outstanding[ended]

    def stop(self) -> None:
        """Let the thread end after the jobs that wait; returns at once. No job may follow."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, loop, future = item
            _do(job, loop, future)
            # A reference kept until the next job would keep its batch in memory.
            del item, job, future


class Calls:
    """Blocking calls whose end nobody needs who does not wait for it: each in a thread of its own, a few at a time.

    Not the event loop's executor: its threads are waited for when the process ends, and a name server that does not
    answer, or a file on a dead network disk, would keep it alive.
    """

    def __init__(self, name: str, limit: int = 8) -> None:
        self._name = name
        self._limit = limit
        self._running: set[asyncio.Future[Any]] = set()

    async def run(self, call: Callable[[], Result]) -> Result:
        """Return the call's result or raise its error; `OSError` (EAGAIN) when too many calls hang."""
        if len(self._running) >= self._limit:
            raise BlockingIOError(errno.EAGAIN, "earlier calls hang")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        Thread(target=_do, args=(call, loop, future), name=self._name, daemon=True).start()
        await asyncio.wait({future})
        return future.result()


def _do(job: Callable[[], Any], loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any]) -> None:
    """Do a job in this thread and hand its end to the loop."""
    result: Any = None
    error: BaseException | None = None
    try:
        result = job()
    except BaseException as raised:  # noqa: BLE001 - raised again where the job is awaited
        error = raised
    with suppress(RuntimeError):  # the loop is closed: nobody waits
        loop.call_soon_threadsafe(_settle, future, result, error)
    # The error's traceback holds this frame, and the frame the error and the batch.
    del job, result, error


def _settle(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    """Hand a job's end to the coroutine that waits for it, if one still does."""
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
        future.exception()  # looked at: when nobody waits any more, asyncio has nothing to complain of
