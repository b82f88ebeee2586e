"""Reads frames off the spool and cuts them into batches: by count, by bytes, and (the worker decides when) by age."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from edge.api import EventMetadata
from edge.config.model import BatchOptions, Condition
from edge.delivery.window import Window
from edge.event import FrameMeta, event_metadata, unpack
from edge.spool.format import EVENTS, REPLAY, Frame
from edge.spool.reader import ReadResult

READ_BYTES = 256 * 1024
"""Asked of the spool at a time: large enough to amortise the call, small enough to keep memory and GIL time low."""


class Readable(Protocol):
    """The part of the spool's log that delivery reads."""

    @property
    def durable_seq(self) -> int:
        """Exclusive end of what may be read."""

    def read(self, position: int, max_bytes: int) -> ReadResult:
        """Return frames from a position on."""


@dataclass(slots=True)
class _Chunk:
    """What one frame holds for the sink: some of its events, and the positions it covers with what lies before them."""

    start: int
    """Where the gap before the frame begins; the frame's own begin when there is none."""
    lost: int
    first: int
    end: int
    seqs: Sequence[int]
    lines: list[bytes]
    meta: FrameMeta
    metadata: EventMetadata
    seen_at: float
    size: int
    """Sum of the lengths of `lines`."""
    taken: int = 0
    """How many of `lines` went into a window already."""


NOTHING: FrameMeta = {}
NO_METADATA = event_metadata(NOTHING)


class Batcher:
    """Turns the spool from a position on into windows of at most `max_events` events and `max_bytes` bytes of lines.

    `fill` blocks (it reads files) and runs in a worker thread; the rest is quick and runs on the event loop. Never both
    at once: the one task that owns the batcher awaits `fill`. An event larger than `max_bytes` travels alone. A frame
    may be cut, and frames may be joined. What `when` does not match, and replayed events of other sinks, are passed as
    skipped; what cannot be read, as lost.
    """

    def __init__(self, sink: str, log: Readable, position: int, options: BatchOptions, when: Condition | None) -> None:
        self._sink = sink
        self._log = log
        self._options = options
        self._when = when
        self._chunks: deque[_Chunk] = deque()
        self._position = position
        self._items = 0
        self._bytes = 0
        self._bytes_seen = 0
        self._lines_seen = 0
        self._read_any = False
        self.read_position = position
        """Everything below it is in a window already or buffered."""
        self.unreadable_events = 0
        """Events in frames whose payload is not one of ours, so far."""
        self.unparsed_events = 0
        """Events whose `when` could not be asked, so far; they are delivered."""

    @property
    def full(self) -> bool:
        """Whether a whole batch is buffered."""
        return self._items >= self._options.max_events or self._bytes >= self._options.max_bytes

    @property
    def empty(self) -> bool:
        """Whether not a single event is buffered for the sink (skipped ones may be)."""
        return self._items == 0

    @property
    def behind(self) -> bool:
        """Whether positions were read that no window has covered yet."""
        return self.read_position > self._position

    def oldest_seen_at(self) -> float | None:
        """Return when the first buffered event was noticed, by the monotonic clock."""
        return next((chunk.seen_at for chunk in self._chunks if len(chunk.lines) > chunk.taken), None)

    def head_metadata(self) -> EventMetadata | None:
        """Return what is known of the first buffered frame."""
        return self._chunks[0].metadata if self._chunks else None

    def wanted_events(self) -> int:
        """Return after how many more events in the spool a look is worth it; at least 1.

        Bytes are guessed from the events seen so far, and halved so that the guess converges from below.
        """
        if not self._lines_seen:
            return self._options.max_events if self._read_any else 1
        room = self._options.max_bytes - self._bytes
        mean = max(1.0, self._bytes_seen / self._lines_seen)
        return max(1, min(self._options.max_events - self._items, int(room / mean / 2)))

    def fill(self, noticed_at: float, due: Callable[[], bool]) -> None:
        """Read until a batch is full, the spool is read to its end, or `due` says that what is there is to go.

        Raises what the spool raises; what was read before stays buffered.
        """
        while not self.full and self.read_position < self._log.durable_seq:
            before = self.read_position
            self._take(self._log.read(before, READ_BYTES), noticed_at)
            if self.read_position == before or due():
                return

    def cut(self) -> Window:
        """Return the next window: as many buffered events as one batch may hold; maybe none, when all were skipped."""
        end, size = self._position, 0
        seqs: list[int] = []
        lines: list[bytes] = []
        metas: list[FrameMeta] = []
        metadata: list[EventMetadata] = []
        gaps: list[tuple[int, int]] = []
        while self._chunks:
            chunk = self._chunks[0]
            begin = chunk.taken
            stop, size = self._fitting(chunk, len(lines), size)
            whole = stop == len(chunk.lines)
            if chunk.lost and begin == 0 and (whole or stop > begin):
                gaps.append((chunk.first, chunk.lost))
            if stop > begin:
                seqs.extend(chunk.seqs[begin:stop])
                lines.extend(chunk.lines[begin:stop])
                metas.extend([chunk.meta] * (stop - begin))
                metadata.extend([chunk.metadata] * (stop - begin))
                chunk.taken = stop
                end = seqs[-1] + 1
            if not whole:
                break
            end = chunk.end
            self._chunks.popleft()
        window = Window(self._position, end, seqs, lines, metas, metadata, gaps)
        self._items -= len(window)
        self._bytes -= size
        self._position = end
        return window

    def _fitting(self, chunk: _Chunk, n_events: int, size: int) -> tuple[int, int]:
        """Return up to which of a chunk's lines a window with so many events and bytes has room, and its new bytes."""
        index = chunk.taken
        whole_fits = n_events + len(chunk.lines) <= self._options.max_events
        if not index and whole_fits and size + chunk.size <= self._options.max_bytes:
            return len(chunk.lines), size + chunk.size
        stop = min(len(chunk.lines), index + self._options.max_events - n_events)
        while index < stop:
            length = len(chunk.lines[index])
            if size + length > self._options.max_bytes and (n_events or index > chunk.taken):
                break
            size += length
            index += 1
        return index, size

    def _take(self, result: ReadResult, noticed_at: float) -> None:
        """Buffer what the spool returned."""
        for frame in result.frames:
            if frame.end > self.read_position:
                self._take_frame(frame, noticed_at)
        if result.position > self.read_position:
            # A gap at the end of what was read: no frame follows it yet.
            gap = result.position - self.read_position
            self._append(
                _Chunk(self.read_position, gap, result.position, result.position, (), [], NOTHING, NO_METADATA, 0.0, 0)
            )

    def _take_frame(self, frame: Frame, noticed_at: float) -> None:
        begin = max(frame.seq, self.read_position)
        lost = begin - self.read_position
        meta, lines, readable = self._open(frame)
        if not readable:
            self.unreadable_events += frame.end - begin
            lost, begin = frame.end - self.read_position, frame.end
        seqs: Sequence[int] = range(frame.seq, frame.seq + len(lines))
        if begin > frame.seq:
            seqs, lines = seqs[begin - frame.seq :], lines[begin - frame.seq :]
        if self._when is not None and lines:
            seqs, lines = self._matching(self._when, seqs, lines)
        metadata, size = event_metadata(meta), sum(map(len, lines))
        self._append(_Chunk(self.read_position, lost, begin, frame.end, seqs, lines, meta, metadata, noticed_at, size))

    def _open(self, frame: Frame) -> tuple[FrameMeta, list[bytes], bool]:
        """Return a frame's metadata and the lines this sink is concerned with, and whether it could be read."""
        if frame.kind not in (EVENTS, REPLAY):
            return NOTHING, [], True
        try:
            meta, lines = unpack(frame.payload)
        except ValueError:
            return NOTHING, [], False
        if len(lines) != frame.n_events:
            return NOTHING, [], False
        if frame.kind == REPLAY and meta.get("sink") != self._sink:
            return meta, [], True
        return meta, lines, True

    def _matching(self, when: Condition, seqs: Sequence[int], lines: list[bytes]) -> tuple[Sequence[int], list[bytes]]:
        kept = [(seq, line) for seq, line in zip(seqs, lines, strict=True) if self._wanted(when, line)]
        if len(kept) == len(lines):
            return seqs, lines
        return [seq for seq, _ in kept], [line for _, line in kept]

    def _wanted(self, when: Condition, line: bytes) -> bool:
        try:
            event: Mapping[str, Any] = orjson.loads(line)
            return when(event)
        except Exception:  # noqa: BLE001 - whatever a condition trips over, the event was accepted and must go somewhere
            self.unparsed_events += 1
            return True

    def _append(self, chunk: _Chunk) -> None:
        self.read_position = chunk.end
        self._read_any = True
        if not chunk.lines and not chunk.lost and self._chunks:
            # Nothing but skipped events: they are passed together with what is before them.
            self._chunks[-1].end = chunk.end
            return
        self._chunks.append(chunk)
        self._items += len(chunk.lines)
        self._bytes += chunk.size
        self._bytes_seen += chunk.size
        self._lines_seen += len(chunk.lines)
