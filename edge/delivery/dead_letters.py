"""The dead letters of one sink: events given up on, kept with their reason in a log of the spool's own format.

One frame holds one letter: the event's line, and the metadata of its original frame with what happened to it. A letter
is taken away by a MARK frame that names it; nothing is ever rewritten.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import orjson
import structlog

from edge.api import EventMetadata
from edge.delivery.selection import EVERYTHING, Selection
from edge.delivery.seqset import SeqSet
from edge.event import FrameMeta, event_metadata, pack, parse_time, unpack
from edge.spool.errors import SpoolBackpressureError, SpoolClosedError
from edge.spool.format import EVENTS, MARK, Frame, parse_segment_name
from edge.spool.inspect import dump
from edge.spool.log import Log

log = structlog.get_logger(__name__)

Action = Literal["replayed", "dropped"]
T = TypeVar("T")

MARKS_PER_FRAME = 10_000
READ_BYTES = 1024 * 1024
LETTER_KEYS = ("sink", "reason", "attempts", "first_error", "last_error", "died_at", "replay_of")


class DeadLetterReason(StrEnum):
    """Why an event was given up on; a closed set."""

    PERMANENT = "permanent"
    """The target refused it for good."""
    GAVE_UP = "gave_up"
    """It was retried for `retry.give_up_secs`."""
    INVALID_RESULT = "invalid_result"
    """The sink returned something that says nothing about what the target took."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One event about to become a dead letter."""

    line: bytes
    meta: FrameMeta
    """The metadata of the frame it was stored in."""
    reason: DeadLetterReason
    attempts: int
    first_error: str
    last_error: str
    died_at: datetime
    """UTC."""


@dataclass(frozen=True)
class DeadLetter:
    """One dead letter as it is kept."""

    id: int
    """Its number in the store; never used again for another one."""
    line: bytes
    meta: FrameMeta
    """The metadata of the original frame, and the keys of this letter."""

    @property
    def sink(self) -> str:
        """The sink that gave the event up."""
        return str(self.meta.get("sink", ""))

    @property
    def reason(self) -> str:
        """One of `DeadLetterReason`, unless another version wrote it."""
        return str(self.meta.get("reason", ""))

    @property
    def attempts(self) -> int:
        """How many attempts the event took part in."""
        value = self.meta.get("attempts", 0)
        return value if isinstance(value, int) else 0

    @property
    def first_error(self) -> str:
        """The first thing that went wrong."""
        return str(self.meta.get("first_error", ""))

    @property
    def last_error(self) -> str:
        """The last thing that went wrong."""
        return str(self.meta.get("last_error", ""))

    @cached_property
    def died_at(self) -> datetime:
        """When it was given up on, UTC."""
        return parse_time(str(self.meta.get("died_at", "")))

    @cached_property
    def event_id(self) -> str:
        """The event's `event_id`, or empty. Parses the event."""
        try:
            event = orjson.loads(self.line)
        except ValueError:
            return ""
        value = event.get("event_id") if isinstance(event, dict) else None
        return value if isinstance(value, str) else ""

    @property
    def metadata(self) -> EventMetadata:
        """What was stored beside the event when it was accepted."""
        return event_metadata(self.meta)

    @property
    def original_meta(self) -> FrameMeta:
        """The metadata of the frame that held the event, without what the letter added."""
        return _original(self.meta)


class DeadLetterStore:
    """The dead letters of one sink, under ``<path>/<sink>``.

    The directory is created and locked with the first letter (or mark): a sink that never gives up costs nothing.
    `entries` reads the files without the lock, so it also works beside a running gateway. When `max_bytes` is reached
    the oldest segment goes, with the letters in it, and `evicted` counts them.
    """

    def __init__(self, path: Path, sink: str, *, segment_bytes: int, max_bytes: int) -> None:
        self.path = path / sink
        self.sink = sink
        self.evicted = 0
        """Letters that the cap pushed out, since this object was made."""
        # Few large segments would let the cap push out nearly everything at once.
        self._segment_bytes = max(4096, min(segment_bytes, max_bytes // 8))
        self._max_bytes = max_bytes
        self._log: Log | None = None
        self._live = SeqSet()
        self._counted = False
        self.moving = asyncio.Lock()
        """Held by who replays or drops: two at once would move the same letters twice."""
        self._lock = asyncio.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._closed = False

    def count(self) -> int:
        """Return how many letters there are; kept in memory, 0 until `start` has counted those on disk."""
        return len(self._live)

    async def start(self) -> None:
        """Count the letters on disk, without creating or locking anything."""
        async with self._lock:
            if self._log is None and not self._counted and not self._closed:
                self._live = await self._run(lambda: _live_seqs(self.path))
                self._counted = True

    async def add(self, letters: Sequence[Letter]) -> None:
        """Keep letters; they are durable on return. `EdgeError` or `OSError`: some may not be, add all again."""
        payloads = [_payload(self.sink, letter) for letter in letters]
        async with self._lock:
            await self._append(payloads, EVENTS)

    async def mark(self, seqs: Iterable[int], action: Action) -> int:
        """Take letters away; durable on return. Returns how many were still there."""
        async with self._lock:
            await self._open()
            present = sorted({seq for seq in seqs if seq in self._live})
            marks = [
                pack({"action": action, "seqs": present[start : start + MARKS_PER_FRAME]}, [])
                for start in range(0, len(present), MARKS_PER_FRAME)
            ]
            await self._append(marks, MARK)
            self._live.discard_all(present)
            if present:
                await self._release()
            return len(present)

    def entries(self, selection: Selection = EVERYTHING) -> Iterator[DeadLetter]:
        """Return the letters that are meant, as they were when iteration began, oldest first. Blocks: reads files."""
        # Who holds the log knows what is left; everybody else reads the files once more for the marks.
        return _entries(self.path, selection, None if self._log is None else self._live.copy())

    async def close(self) -> None:
        """Let go of the directory, for good. Nothing is lost without it."""
        async with self._lock:
            self._closed = True
            if self._log is not None:
                await self._log.close()
                self._log = None
            if self._executor is not None:
                self._executor.shutdown(wait=False)
                self._executor = None

    async def _open(self) -> Log:
        """Return the log, opened and counted. `SpoolClosedError` once the store is closed: another one may own it."""
        if self._closed:
            raise SpoolClosedError("the dead letters are closed")
        if self._log is None:
            opened, live = await self._run(self._open_blocking)
            opened.start(asyncio.get_running_loop())
            self._log, self._live, self._counted = opened, live, True
        return self._log

    def _open_blocking(self) -> tuple[Log, SeqSet]:
        # The cap is kept here, by dropping the oldest; the log itself must not refuse before that.
        opened = Log.open(
            self.path,
            shard=self.sink,
            segment_bytes=self._segment_bytes,
            max_bytes=self._max_bytes + 4 * self._segment_bytes,
            durability="disk",
            observer=None,
        )
        return opened, _live_in(_frames(opened))

    async def _append(self, payloads: Sequence[bytes], kind: int) -> None:
        """Append frames and wait until all are durable."""
        opened = await self._open()
        await self._make_room(opened, sum(map(len, payloads)))
        waiting: list[asyncio.Future[int]] = []
        error: BaseException | None = None
        for payload in payloads:
            try:
                waiting.append(opened.append(payload, 1, kind))
            except SpoolBackpressureError as refusal:
                if not waiting:
                    raise
                error = await self._settled(waiting, kind) or error
                waiting = []
                try:
                    waiting.append(opened.append(payload, 1, kind))
                except SpoolBackpressureError:
                    raise refusal from None
        error = await self._settled(waiting, kind) or error
        if error is not None:
            raise error

    async def _settled(self, waiting: Sequence[asyncio.Future[int]], kind: int) -> BaseException | None:
        """Wait for appended frames; count those that are durable, and return the first error."""
        error: BaseException | None = None
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            if isinstance(result, BaseException):
                error = error or result
            elif kind == EVENTS:
                self._live.add(result)
        return error

    async def _make_room(self, opened: Log, n_bytes: int) -> None:
        """Drop the oldest segments while what is to come does not fit under the cap."""
        while opened.stats().bytes + n_bytes > self._max_bytes:
            end, freed = await self._run(lambda: _release_oldest(self.path, opened))
            if not freed:
                return
            evicted = self._live.discard_below(end)
            self.evicted += evicted
            if evicted:
                log.warning(
                    "dead letters are full: the oldest were dropped",
                    sink=self.sink,
                    dropped_events=evicted,
                    max_bytes=self._max_bytes,
                )

    async def _release(self) -> None:
        """Delete the segments before the oldest letter that is left."""
        opened = self._log
        if opened is not None:
            lowest = self._live.lowest
            position = opened.durable_seq if lowest is None else lowest
            await self._run(lambda: opened.release(position))

    async def _run(self, work: Callable[[], T]) -> T:
        """Do blocking work in this store's own thread: plugins may have taken every shared one."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"edge-dead-letters-{self.sink}")
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)


def _original(meta: FrameMeta) -> FrameMeta:
    return {key: value for key, value in meta.items() if key not in LETTER_KEYS}


def _payload(sink: str, letter: Letter) -> bytes:
    return pack(
        {
            **_original(letter.meta),
            "sink": sink,
            "reason": str(letter.reason),
            "attempts": letter.attempts,
            "first_error": letter.first_error,
            "last_error": letter.last_error,
            "died_at": letter.died_at.isoformat(),
        },
        [letter.line],
    )


def _entries(path: Path, selection: Selection, live: SeqSet | None) -> Iterator[DeadLetter]:
    start, stop = (
        (0, None) if selection.seqs is None else (min(selection.seqs, default=0), max(selection.seqs, default=0))
    )
    if live is None:
        live = _live_seqs(path, start)
    if not live:
        return
    for frame in dump(path, start):
        if stop is not None and frame.seq > stop:
            return
        if frame.kind == EVENTS and frame.seq in live:
            letter = _letter(frame)
            if letter is not None and selection.matches(letter):
                yield letter


def _letter(frame: Frame) -> DeadLetter | None:
    """Return the letter in a frame; None for a frame that no store wrote."""
    try:
        meta, lines = unpack(frame.payload)
    except ValueError:
        return None
    return DeadLetter(frame.seq, lines[0], meta) if len(lines) == 1 else None


def _frames(opened: Log) -> Iterator[Frame]:
    """Yield every frame of an open log. Blocks."""
    position = opened.first_seq
    while position < opened.durable_seq:
        result = opened.read(position, READ_BYTES)
        yield from result.frames
        if result.position <= position:
            return
        position = result.position


def _live_seqs(path: Path, start: int = 0) -> SeqSet:
    """Return the letters under a directory, from a number on, that no mark took away. Blocks."""
    return _live_in(dump(path, start)) if path.is_dir() else SeqSet()


def _live_in(frames: Iterable[Frame]) -> SeqSet:
    live = SeqSet()
    marked: set[int] = set()
    for frame in frames:
        if frame.kind == EVENTS:
            live.add(frame.seq)
        elif frame.kind == MARK:
            marked.update(_marked(frame.payload))
    live.discard_all(marked)
    return live


def _marked(payload: bytes) -> list[int]:
    try:
        meta, _ = unpack(payload)
    except ValueError:
        return []
    seqs: Any = meta.get("seqs")
    return [seq for seq in seqs if type(seq) is int] if isinstance(seqs, list) else []


def _release_oldest(path: Path, opened: Log) -> tuple[int, int]:
    """Delete the oldest segment unless it is the only one; return where it ended and the bytes freed. Blocks."""
    starts = sorted(start for item in path.iterdir() if (start := parse_segment_name(item.name)) is not None)
    return (starts[1], opened.release(starts[1])) if len(starts) > 1 else (0, 0)
