"""A thread for blocking work of one component: jobs in order, one at a time, none lost when nobody waits any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

Result = TypeVar("Result")

_Job = tuple[Callable[[], Any], asyncio.AbstractEventLoop, asyncio.Future[Any]]


class JobThread:
    """Runs blocking jobs for coroutines of one event loop.

    A job that has begun cannot be stopped: when the sink's time-out cancels the wait, the job goes on. The retry of the
    same batch must not start a second one beside it or behind it, so it passes the same `key` and waits for the first.

    The thread is a daemon: a disk or a pipe that hangs for good does not keep the process from ending.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._waited_for: tuple[object, asyncio.Future[Any]] | None = None
        self._thread = Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, job: Callable[[], Result], *, key: object = None) -> Result:
        """Run the job in the thread and return its result or raise its error.

        With a `key`: when an earlier wait with the same key was cancelled, its job's result is returned instead.
        """
        before = self._waited_for
        if key is not None:
            self._waited_for = None
        future: asyncio.Future[Result]
        if key is not None and before is not None and before[0] == key:
            future = before[1]
        else:
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            self._jobs.put((job, loop, future))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if key is not None:
                self._waited_for = (key, future)
            raise

    def stop(self) -> None:
        """Let the thread end after the jobs that wait; returns at once. No job may follow."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, loop, future = item
            result: Any = None
            error: BaseException | None = None
            try:
                result = job()
            except BaseException as raised:  # noqa: BLE001 - raised again where the job is awaited
                error = raised
            try:
                loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:  # the loop is closed: nobody waits
                return
            # A reference kept until the next job would keep its batch in memory.
            del item, job, future, result, error


def _settle(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    """Hand a job's end to the coroutine that waits for it, if one still does."""
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
