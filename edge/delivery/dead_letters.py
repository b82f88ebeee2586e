"""The dead letters of one sink: events given up on, kept with their reason in a log of the spool's own format.

One frame holds one letter: the event's line, and the metadata of its original frame with what happened to it. A letter
is taken away by a MARK frame that names it; nothing is ever rewritten.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

import structlog

from edge.api import EdgeError
from edge.delivery.letters import (
    DeadLetter,
    DeadLetterReason,
    Letter,
    frames_of,
    letter_payload,
    live_in,
    live_seqs,
    marked_by,
    read_letters,
    release_oldest,
)
from edge.delivery.selection import EVERYTHING, Selection
from edge.delivery.seqset import SeqSet
from edge.event import pack
from edge.spool.errors import SpoolBackpressureError, SpoolClosedError, SpoolError, SpoolUnknownError
from edge.spool.format import EVENTS, MARK, Frame
from edge.spool.log import Log

__all__ = ["Action", "DeadLetter", "DeadLetterReason", "DeadLetterStore", "Letter", "UnkeptError"]

log = structlog.get_logger(__name__)

Action = Literal["replayed", "dropped"]
T = TypeVar("T")

MARKS_PER_FRAME = 10_000


class UnkeptError(EdgeError):
    """Some letters are not known to be durable; the others are."""

    def __init__(self, letters: Sequence[Letter], cause: BaseException) -> None:
        super().__init__(str(cause))
        self.letters = letters
        """Those to add again."""
        self.cause = cause


class DeadLetterStore:
    """The dead letters of one sink, under ``<path>/<sink>``.

    The directory is created and locked with the first letter (or mark): a sink that never gives up costs nothing.
    `entries` reads the files without the lock, so it also works beside a running gateway. When `max_bytes` is reached
    the oldest segment goes, with the letters in it, and `evicted` counts them.

    A letter whose outcome the log did not know (a disk that hung) may have been stored all the same: the next `add` or
    `mark` finds out before it does anything else, and from then on the letter counts and is not stored again.
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
        self._unsure_from: int | None = None
        """What lies in the log from here on is not all in `_live`: somebody was told that the outcome is unknown."""
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
                self._live = await self._run(lambda: live_seqs(self.path))
                self._counted = True

    async def add(self, letters: Sequence[Letter]) -> None:
        """Keep letters; they are durable on return.

        `UnkeptError` names those to add again; any other `EdgeError` or `OSError` means all of them.
        """
        payloads = [letter_payload(self.sink, letter) for letter in letters]
        async with self._lock:
            opened = await self._open()
            late = await self._settle_unsure(opened)
            missing = []
            for index, payload in enumerate(payloads):
                if late[payload]:
                    late[payload] -= 1
                else:
                    missing.append(index)
            errors = await self._append(opened, [payloads[index] for index in missing], EVENTS)
        unkept = [index for index, error in zip(missing, errors, strict=True) if error is not None]
        if unkept:
            cause = next(error for error in errors if error is not None)
            raise UnkeptError([letters[index] for index in unkept], cause) from cause

    async def mark(self, seqs: Iterable[int], action: Action) -> int:
        """Take letters away; durable on return. Returns how many were still there."""
        async with self._lock:
            opened = await self._open()
            await self._settle_unsure(opened)
            present = sorted({seq for seq in seqs if seq in self._live})
            marks = [
                pack({"action": action, "seqs": present[start : start + MARKS_PER_FRAME]}, [])
                for start in range(0, len(present), MARKS_PER_FRAME)
            ]
            error = next(filter(None, await self._append(opened, marks, MARK)), None)
            if error is not None:
                raise error
            self._live.discard_all(present)
            if present:
                await self._release()
            return len(present)

    def entries(self, selection: Selection = EVERYTHING) -> Iterator[DeadLetter]:
        """Return the letters that are meant, as they were when iteration began, oldest first. Blocks: reads files."""
        # Who holds the log knows what is left; everybody else reads the files once more for the marks.
        return read_letters(self.path, selection, None if self._log is None else self._live.copy())

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
        return opened, live_in(frames_of(opened))

    async def _append(self, opened: Log, payloads: Sequence[bytes], kind: int) -> list[BaseException | None]:
        """Append frames and wait for them; return for each what kept it from being durable, None for nothing."""
        await self._make_room(opened, sum(map(len, payloads)))
        errors: list[BaseException | None] = []
        waiting: list[asyncio.Future[int] | SpoolError] = []
        # Until all have their answer: who is cancelled while waiting does not know either.
        self._unsure_from = opened.durable_seq
        for payload in payloads:
            item = _put(opened, payload, kind)
            if isinstance(item, SpoolBackpressureError) and waiting:
                errors += await self._settled(waiting, kind)
                waiting = []
                item = _put(opened, payload, kind)
            waiting.append(item)
        errors += await self._settled(waiting, kind)
        if all(error is None or _says_not_stored(error) for error in errors):
            self._unsure_from = None
        return errors

    async def _settled(
        self, waiting: Sequence[asyncio.Future[int] | SpoolError], kind: int
    ) -> list[BaseException | None]:
        """Wait for appended frames and count those that are durable; return errors as `_append` does."""
        futures = [item for item in waiting if not isinstance(item, SpoolError)]
        results = iter(await asyncio.gather(*futures, return_exceptions=True))
        errors: list[BaseException | None] = []
        for item in waiting:
            result = item if isinstance(item, SpoolError) else next(results)
            if isinstance(result, BaseException):
                errors.append(result)
                continue
            errors.append(None)
            if kind == EVENTS:
                self._live.add(result)
        return errors

    async def _settle_unsure(self, opened: Log) -> Counter[bytes]:
        """Learn what became of frames whose outcome was unknown; return the payloads of letters that were stored."""
        start = self._unsure_from
        if start is None:
            return Counter()
        # The log writes in order: once this mark of nothing is durable, all that was queued before it is decided.
        await opened.append(pack({"action": "none", "seqs": []}, []), 1, MARK)
        frames: list[Frame] = await self._run(lambda: list(frames_of(opened, start)))
        live = live_in(frames)
        late = [frame for frame in frames if frame.seq in live and frame.seq not in self._live]
        self._live.discard_from(start)
        for seq in live:
            self._live.add(seq)
        for frame in frames:
            if frame.kind == MARK:
                self._live.discard_all(marked_by(frame.payload))
        self._unsure_from = None
        return Counter(frame.payload for frame in late)

    async def _make_room(self, opened: Log, n_bytes: int) -> None:
        """Drop the oldest segments while what is to come does not fit under the cap."""
        while opened.stats().bytes + n_bytes > self._max_bytes:
            end, freed = await self._run(lambda: release_oldest(self.path, opened))
            if not freed:
                return
            evicted = self._live.discard_below(end)
            self.evicted += evicted
            if evicted:
                log.error(
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


def _put(opened: Log, payload: bytes, kind: int) -> asyncio.Future[int] | SpoolError:
    """Append a frame, or return why it was refused."""
    try:
        return opened.append(payload, 1, kind)
    except SpoolError as refusal:
        return refusal


def _says_not_stored(error: BaseException) -> bool:
    return isinstance(error, SpoolError) and not isinstance(error, SpoolUnknownError)
