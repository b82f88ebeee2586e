"""One call of a sink's hook, walled off: whatever the plugin does, the caller gets a result and the process lives."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from edge.api import Batch, PermanentError, RetryableError
from edge.config.model import Condition
from edge.outcomes import AttemptResult

ERROR_TEXT_CHARS = 500
ABANDON_SECS = 0.25
"""How long a cancelled call may take to end before it is left to itself."""


class DeliverySink(Protocol):
    """A bound sink as delivery sees it: an id, a condition and three hooks."""

    @property
    def id(self) -> str:
        """The operator's name for it."""

    @property
    def when(self) -> Condition | None:
        """Which events it wants; None: all."""

    @property
    def open(self) -> Callable[[], Awaitable[None]]:
        """The hook `edge_open`."""

    @property
    def deliver(self) -> Callable[[Batch], Awaitable[Mapping[int, Any] | None]]:
        """The hook `edge_deliver`."""

    @property
    def close(self) -> Callable[[], Awaitable[None]]:
        """The hook `edge_close`."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How a call of a hook ended."""

    result: AttemptResult | None
    """None: it was cancelled by us, and what the target did is unknown."""
    error: BaseException | None = None
    value: Any = None

    @property
    def text(self) -> str:
        """The error in words that are safe to log and to store."""
        return "" if self.error is None else error_text(self.error)


CANCELLED = Answer(None)


class Caller:
    """Calls a sink's hooks one at a time, each in a task of its own with a time limit.

    A task of its own lets drain cancel the call alone. A call that ignores its cancellation is waited for (hooks are
    never called concurrently), except at drain.
    """

    waited_secs = 0.0
    """How long the last call waited before the hook was called."""

    def __init__(self) -> None:
        self._task: asyncio.Task[Answer] | None = None
        self._let_go: asyncio.Future[None] | None = None

    @property
    def stuck(self) -> bool:
        """Whether a call is running."""
        return self._task is not None and not self._task.done()

    async def call(self, hook: Callable[[], Awaitable[Any]], timeout_secs: float) -> Answer:
        """Await the hook for at most `timeout_secs` and return how it ended; never raises what the plugin raised."""
        if self._task is not None and not await self._end_of(self._task):
            return CANCELLED
        self._task = task = asyncio.get_running_loop().create_task(self._run(hook, timeout_secs))
        if not await self._end_of(task) or task.cancelled():
            return CANCELLED
        return task.result()

    async def _run(self, hook: Callable[[], Awaitable[Any]], timeout_secs: float) -> Answer:
        """Call the hook; what a call has to wait for comes before its time begins."""
        return await _guarded(hook, timeout_secs)

    async def _end_of(self, task: asyncio.Task[Answer]) -> bool:
        """Wait for the end of a call; False when `let_go` was called before."""
        if task.done():
            return True
        self._let_go = asyncio.get_running_loop().create_future()
        waiting: set[asyncio.Future[Any]] = {task, self._let_go}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()
            raise
        return task.done()

    async def cancel(self) -> None:
        """End the running call, if there is one; a call that will not end is abandoned after `ABANDON_SECS`."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=ABANDON_SECS)

    async def let_go(self, grace_secs: float) -> bool:
        """End the running call like `cancel`, after `grace_secs`; return whether it ended by itself.

        Who awaits it goes on even if it does not end. The next call begins once it has.
        """
        task = self._task
        if task is None or task.done():
            return True
        if grace_secs > 0:
            await asyncio.wait({task}, timeout=grace_secs)
        if task.done():
            return True
        await self.cancel()
        if not task.done() and self._let_go is not None and not self._let_go.done():
            self._let_go.set_result(None)
        return False


async def _guarded(hook: Callable[[], Awaitable[Any]], timeout_secs: float) -> Answer:
    try:
        async with asyncio.timeout(timeout_secs):
            value = await hook()
    except TimeoutError as error:
        message = str(error) or f"no answer within {timeout_secs:g} s"
        return Answer(AttemptResult.TIMEOUT, TimeoutError(message))
    except PermanentError as error:
        return Answer(AttemptResult.PERMANENT, error)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            return CANCELLED
        # The plugin's own inner task was cancelled: an error like any other.
        return Answer(AttemptResult.RETRYABLE, error)
    except BaseException as error:  # noqa: BLE001 - SystemExit in a plugin must not end the gateway, and a task would pass it on
        return Answer(AttemptResult.RETRYABLE, error)
    return Answer(AttemptResult.OK, None, value)


def per_event_errors(value: Any, n_events: int) -> dict[int, BaseException] | None:
    """Return what a sink said of single events (empty: all were taken); None when it is not an answer of that form."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return None
    errors: dict[int, BaseException] = {}
    for index, error in value.items():
        if type(index) is not int or not 0 <= index < n_events or not isinstance(error, BaseException):
            return None
        errors[index] = error
    return errors


def retry_after(error: BaseException | None) -> object:
    """Return the wait that an error asks for, as the plugin gave it."""
    return error.retry_after if isinstance(error, RetryableError) else None


def opens_circuit(error: BaseException | None) -> bool:
    """Return whether an error says that further attempts are useless for now."""
    return isinstance(error, RetryableError) and bool(error.open_circuit)


def error_text(error: BaseException) -> str:
    """Return type and message of an error, bounded, on one line, and storable as UTF-8."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - a plugin's __str__ is a plugin's code
        message = "(its message cannot be read)"
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if isinstance(error, TimeoutError | RetryableError | PermanentError) and message:
        text = message
    return " ".join(text[:ERROR_TEXT_CHARS].encode("utf-8", "replace").decode().split())
