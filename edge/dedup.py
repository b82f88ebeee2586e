"""Finds events that were sent twice: the ids of stored events, kept for a window of time and of number.

Exact, and scoped by the sender's key: the same event_id under another key is another event. An id is remembered once
its frame is durable, never before. Until then the request that brought it holds a `Claim`, and whoever comes with the
same id meanwhile waits for what becomes of that one.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from hashlib import sha256
from math import inf

import structlog

from edge.clock import Clock
from edge.dedup_tail import newest_segments
from edge.spool.errors import SpoolFailedError
from edge.spool.log import Log

log = structlog.get_logger(__name__)

READY_SECS = 5.0
"""How long a request waits for the ids of the spool's tail before its sender is told to come back."""

WHOLE_BYTES = 64
"""Ids up to this length are kept as they are. Of longer ones, which a sender could fill the memory with, the first
bytes and their SHA-256 are kept: 32 bytes of which nobody has ever found two equal ones."""
_HEAD_BYTES = WHOLE_BYTES + 1 - sha256().digest_size

_NOT_READ = "the ids of stored events could not be read back; repeats of them are stored again"

_SHARDS = 256
"""A dict of a million ids holds everybody up when it grows; one of a few thousand does not."""
_CHUNK_KEYS = 4096

LATE_SECS = 300.0
"""A slow request may be stored so long after it was received: frames lie in the spool in the order of the former."""


class Window:
    """Ids with the time they were stored at; the oldest are forgotten by age and by number. Not thread-safe."""

    def __init__(self, secs: float, events: int) -> None:
        self._secs = secs
        self._events = events
        self._shards: list[dict[bytes, float]] = [{} for _ in range(_SHARDS)]
        self._order = _Order()
        self._count = 0

    def __len__(self) -> int:
        """How many ids are held, those included whose time is up and that were not yet forgotten."""
        return self._count

    def has(self, key: bytes, now: float) -> bool:
        """Say whether an id was stored less than the window's seconds ago and is among the newest."""
        at = self._shards[hash(key) % _SHARDS].get(key)
        return at is not None and now - at < self._secs

    def add(self, key: bytes, at: float) -> None:
        """Remember an id as stored at this time."""
        shard = self._shards[hash(key) % _SHARDS]
        if key not in shard:
            self._count += 1
        shard[key] = at
        self._order.append(key, at)
        if self._count > self._events:
            self._forget()

    def forget(self, now: float, most: int) -> None:
        """Forget up to `most` ids whose time is up. Twice as many as were added is enough to keep up."""
        order = self._order
        while most and order and now - order.oldest >= self._secs:
            self._forget()
            most -= 1

    def _forget(self) -> None:
        key, at = self._order.pop()
        shard = self._shards[hash(key) % _SHARDS]
        if shard.get(key) == at:  # otherwise it was stored again since, and its time is another one
            del shard[key]
            self._count -= 1


class _Order:
    """Keys in the order they came, with their times.

    In chunks that end as tuples and arrays, which the garbage collector does not walk through, as it would through a
    deque: that takes 30 ms for a million keys.
    """

    def __init__(self) -> None:
        self._chunks: deque[tuple[tuple[bytes, ...], array[float]]] = deque()
        self._last: list[bytes] = []
        self._last_times = array("d")
        self._first: tuple[bytes, ...] = ()
        self._first_times = array("d")
        self._next = 0
        """Index in the first chunk of the oldest key."""

    def __bool__(self) -> bool:
        return self._next < len(self._first) or bool(self._chunks or self._last)

    def append(self, key: bytes, at: float) -> None:
        """Add the newest key."""
        self._last.append(key)
        self._last_times.append(at)
        if len(self._last) == _CHUNK_KEYS:
            self._end_chunk()

    @property
    def oldest(self) -> float:
        """The time of the oldest key; there must be one."""
        self._begin_chunk()
        return self._first_times[self._next]

    def pop(self) -> tuple[bytes, float]:
        """Remove and return the oldest key and its time; there must be one."""
        self._begin_chunk()
        self._next += 1
        return self._first[self._next - 1], self._first_times[self._next - 1]

    def _end_chunk(self) -> None:
        self._chunks.append((tuple(self._last), self._last_times))
        self._last, self._last_times = [], array("d")

    def _begin_chunk(self) -> None:
        if self._next < len(self._first):
            return
        if not self._chunks:
            self._end_chunk()
        self._first, self._first_times = self._chunks.popleft()
        self._next = 0


class Claim:
    """The ids of one request's events, from when they are judged until it is certain what became of their frame."""

    __slots__ = ("_dedup", "_firsts", "_looked_at", "_prefix", "_told", "code", "has_repeats", "ids")

    def __init__(self, dedup: Dedup, prefix: bytes) -> None:
        self._dedup = dedup
        self._prefix = prefix
        self._looked_at = dedup.changes
        self._firsts: list[Claim] = []
        """Claims of other requests that have ids of this one: their frames are not stored yet, or perhaps never."""
        self._told: asyncio.Event | None = None
        self.ids: dict[bytes, str] = {}
        """What is to be stored, in order: the key it is remembered by -> the event_id as it was sent."""
        self.has_repeats = False
        """Whether `first_of` or `others` found an id that is not new."""
        self.code: str | None = None
        """What those who wait are told: empty when the frame is stored, why it is not; None as long as nobody knows."""

    def key(self, event_id: str) -> bytes:
        """Return what an id is remembered by: nothing else, under this key or another, has the same."""
        return _key(self._prefix, event_id.encode())

    def first_of(self, key: bytes) -> Claim | None:
        """Return the claim under which this id was or is being stored; None: it is new."""
        first = self if key in self.ids else self._look(key)
        self.has_repeats = self.has_repeats or first is not None
        return first

    def keep(self, keys: Iterable[bytes]) -> None:
        """Leave only those of `ids` that are really going to be stored."""
        self.ids = {key: self.ids[key] for key in keys}

    def _look(self, key: bytes) -> Claim | None:
        first = self._dedup.first_of(key)
        if first is not None and first.code != "":
            self._firsts.append(first)
        return first

    def is_all_new(self) -> bool:
        """Say whether there is nobody to wait for: what is in `ids` is new, until the next `await`."""
        return not self._firsts and self._looked_at == self._dedup.changes

    async def others(self) -> tuple[set[str], dict[bytes, Claim]]:
        """Wait until it is known what became of all ids of this request that others brought first.

        Returns why first ones were not stored, empty when all were; and those of `ids`, no longer in there, that others
        brought while this request was judged or waited. What is left in `ids` is new until the next `await`.
        Nobody waits for a claim that waits here: it is not held yet.
        """
        repeats: dict[bytes, Claim] = {}
        while True:
            for first in self._firsts:
                await first.wait()
            if self._looked_at == self._dedup.changes:
                break
            self._looked_at = self._dedup.changes
            for key in tuple(self.ids):
                found = self._look(key)
                if found is not None:
                    del self.ids[key]
                    self.has_repeats = True
                    repeats[key] = found
        return {first.code for first in self._firsts if first.code}, repeats

    async def wait(self) -> None:
        """Wait until `code` is known."""
        if self.code is None:
            self._told = self._told or asyncio.Event()
            await self._told.wait()

    def hold(self) -> Callable[[bool], None]:
        """Let others with the same ids wait from now on; returns what has to be told of the frame's fate."""
        self._dedup.hold(self)
        return self.decided

    def decided(self, is_stored: bool) -> None:
        """Remember the ids if their frame is stored, else give them free. Called once it is certain."""
        self._dedup.settle(self, is_stored=is_stored)
        if is_stored:
            self.tell("")

    def tell(self, code: str) -> None:
        """Answer those who wait, and those who come until `decided` is called: once, the first word counts."""
        if self.code is None:
            self.code = code
            if self._told is not None:
                self._told.set()


class Dedup:
    """The ids that this process has stored, and those it is about to. Belongs to the event loop, `load` aside."""

    def __init__(self, window_secs: float, window_events: int, clock: Clock) -> None:
        self._clock = clock
        self._window_secs = window_secs
        self._window_events = window_events
        self.changes = 0
        """How many claims were held so far."""
        self._window = Window(window_secs, window_events)
        self._claims: dict[bytes, Claim] = {}
        self._prefixes: dict[str, bytes] = {}
        self._stored = Claim(self, b"")
        self._stored.code = ""
        self._ready = asyncio.Event()
        self._is_stopped = False

    def __len__(self) -> int:
        """How many ids are held in memory."""
        return len(self._window)

    @property
    def is_ready(self) -> bool:
        """Whether the ids of the spool's tail are known."""
        return self._ready.is_set()

    async def ready(self) -> bool:
        """Wait until `load` has ended; False when that takes too long."""
        if not self._ready.is_set():
            try:
                async with asyncio.timeout(READY_SECS):
                    await self._ready.wait()
            except TimeoutError:
                return False
        return True

    def claim(self, key_id: str) -> Claim:
        """Return the claim of a request that was sent under this key."""
        return Claim(self, self._prefix(key_id))

    def first_of(self, key: bytes) -> Claim | None:
        """Return the claim under which an id was or is being stored, None when it is new."""
        claim = self._claims.get(key)
        if claim is None and self._window.has(key, self._clock.monotonic()):
            return self._stored
        return claim

    def hold(self, claim: Claim) -> None:
        """Let all who ask for the ids of a claim find it."""
        self.changes += 1
        for key in claim.ids:
            self._claims[key] = claim

    def settle(self, claim: Claim, *, is_stored: bool) -> None:
        """End a claim that was held."""
        for key in claim.ids:
            del self._claims[key]
        if is_stored:
            now = self._clock.monotonic()
            for key in claim.ids:
                self._window.add(key, now)
            self._window.forget(now, 2 * len(claim.ids))

    def _prefix(self, key_id: str) -> bytes:
        """Return what tells the ids of a key from those of others; short, since every id carries it."""
        prefix = self._prefixes.get(key_id)
        if prefix is None:
            prefix = self._prefixes[key_id] = b"%x:" % len(self._prefixes)
        return prefix

    async def load(self, spool: Log) -> None:
        """Remember what the spool holds of the window, then be ready. Comes before the first append."""
        try:
            await asyncio.to_thread(self._load, spool, spool.durable_seq)
        except Exception:
            log.exception(_NOT_READ)
        self._ready.set()
        log.info("events sent twice are found", known_ids=len(self))

    def stop(self) -> None:
        """Let `load` end soon, because the spool is about to be closed."""
        self._is_stopped = True

    def _load(self, spool: Log, end: int) -> None:
        """Read the tail of the spool backward, segment by segment, until the window is full; blocks.

        How old a frame is, is what the wall clock makes of it, and never less than nothing: a clock that was put back
        gives an id the whole window once more, from now; one that was put forward has it forgotten early.
        """
        now, wall_now = self._clock.monotonic(), self._clock.time()
        segments: list[tuple[list[bytes], array[float]]] = []
        n_events = 0
        for frames in newest_segments(spool, end, lambda: self._is_stopped):
            keys: list[bytes] = []
            times = array("d")
            segments.append((keys, times))
            youngest_secs = inf
            try:
                for received_at, key_id, event_ids in frames:
                    age_secs = max(wall_now - received_at, 0.0)
                    youngest_secs = min(youngest_secs, age_secs)
                    if age_secs < self._window_secs:
                        prefix = self._prefix(key_id)
                        keys += [_key(prefix, event_id) for event_id in event_ids]
                        times.extend([now - age_secs] * len(event_ids))
            except SpoolFailedError as error:
                log.error(_NOT_READ, error=str(error))
            n_events += len(keys)
            if n_events >= self._window_events or self._window_secs + LATE_SECS <= youngest_secs < inf:
                break
        while segments:
            for key, at in zip(*segments.pop(), strict=True):
                self._window.add(key, at)


def _key(prefix: bytes, event_id: bytes) -> bytes:
    """Return what an id is remembered by, under the key of that prefix: nothing else has the same.

    A shortened id is longer, by one byte, than any that is kept whole.
    """
    if len(event_id) > WHOLE_BYTES:
        event_id = event_id[:_HEAD_BYTES] + sha256(event_id).digest()
    return prefix + event_id
