"""One sink for several shards: each shard has a worker of its own, and all of them share the sink and its dead letters.

A sink is written for one batch in flight, opened before the first one and closed once. Here that stays true however
many workers it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from time import monotonic
from typing import Any

import structlog

from edge.api import Batch
from edge.config.model import Condition, DeadLetters, SinkConfig
from edge.delivery.attempt import Answer, Caller, DeliverySink
from edge.delivery.dead_letters import DeadLetterStore

log = structlog.get_logger(__name__)

PREDECESSOR_SECS = 30.0
"""How long a changed sink waits for the one before it to be closed: two at once could write to one file."""


class SharedSink:
    """A bound sink and who uses it."""

    def __init__(self, sink: DeliverySink, identity: object, before: SharedSink | None = None) -> None:
        self.sink = sink
        self.identity = identity
        self.turn = asyncio.Lock()
        """Held during each call of a hook."""
        self.opened = 0
        """How often it was opened."""
        self.users = 0
        self._closed = asyncio.Event()
        self._before = before

    async def ready(self) -> None:
        """Wait until the sink whose place this one takes has been closed."""
        if self._before is None:
            return
        try:
            async with asyncio.timeout(PREDECESSOR_SECS):
                await self._before.closed()
        except TimeoutError:
            log.error("a changed sink is used although its predecessor was not closed", sink=self.sink.id)
        self._before = None  # by whoever waited first: all who came before have waited for the same

    async def closed(self) -> None:
        """Wait until it was closed."""
        await self._closed.wait()

    def seat(self) -> Seat:
        """Return what one worker sees of the sink; the last one to close it does so."""
        self.users += 1
        return Seat(self)

    async def leave(self) -> None:
        """Close the sink if nobody else uses it."""
        self.users -= 1
        if not self.users:
            try:
                await self.sink.close()
            finally:
                self._closed.set()


class Seat:
    """A sink as one of its workers sees it."""

    def __init__(self, shared: SharedSink) -> None:
        self._shared = shared
        self._opened = 0

    @property
    def id(self) -> str:
        """The operator's name for the sink."""
        return self._shared.sink.id

    @property
    def when(self) -> Condition | None:
        """Which events it wants; None: all."""
        return self._shared.sink.when

    async def open(self) -> None:
        """Open the sink, unless another worker has done so since this one did: the connection is a new one then."""
        shared = self._shared
        if shared.opened <= self._opened:
            await shared.sink.open()
            shared.opened += 1
        self._opened = shared.opened

    async def deliver(self, batch: Batch) -> Mapping[int, Any] | None:
        """Hand a batch to the sink."""
        return await self._shared.sink.deliver(batch)

    async def close(self) -> None:
        """Leave the sink."""
        await self._shared.leave()


class TurnCaller(Caller):
    """Calls the hooks of a shared sink when no other worker does. Waiting for that is no part of a call's time.

    A call that ignores its cancellation keeps the turn until it ends: hooks are never called concurrently.
    """

    def __init__(self, shared: SharedSink) -> None:
        super().__init__()
        self._shared = shared

    async def _run(self, hook: Callable[[], Awaitable[Any]], timeout_secs: float) -> Answer:
        began = monotonic()
        await self._shared.ready()
        async with self._shared.turn:
            self.waited_secs = monotonic() - began
            return await super()._run(hook, timeout_secs)


class SharedStore(DeadLetterStore):
    """The dead letters of a sink, closed by the last of its workers."""

    users = 0

    async def close(self) -> None:
        """Leave the store; the last one to do so closes it."""
        self.users -= 1
        if self.users <= 0:
            await super().close()


def identity(config: SinkConfig) -> object:
    """Return what makes a sink the same across a reload: everything but the compiled condition and the place."""
    return replace(config, component=replace(config.component, when=None, where=""))


class SinkPool:
    """The sinks of one process, the dead letters they leave, and what keeps them apart. Used on the event loop."""

    def __init__(self, letters: DeadLetters) -> None:
        self._letters = letters
        self._sinks: dict[str, SharedSink] = {}
        self._stores: dict[str, SharedStore] = {}
        self.turn = asyncio.Lock()
        """Held by a worker while events are in flight that may have killed the process."""

    def sink(self, sink: DeliverySink, config: SinkConfig) -> SharedSink:
        """Return what the workers of a sink share: what is in use already, unless the configuration is another one."""
        same = identity(config)
        before = self._sinks.get(config.id)
        if before is not None and before.users and before.identity == same:
            return before
        self._sinks[config.id] = shared = SharedSink(sink, same, before)
        return shared

    def store(self, config: SinkConfig) -> DeadLetterStore | None:
        """Return the dead letters of a sink, to be closed by who asked; None when it keeps none."""
        if not config.dead_letter:
            return None
        store = self._stores.get(config.id)
        if store is None or not store.users:
            letters = self._letters
            store = self._stores[config.id] = SharedStore(
                letters.path, config.id, segment_bytes=letters.segment_bytes, max_bytes=letters.max_bytes
            )
        store.users += 1
        return store
