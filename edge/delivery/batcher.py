"""Reads frames off the spool and cuts them into batches: by count, by bytes, and (the worker decides when) by age."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from edge.api import EventMetadata
from edge.config.model import BatchOptions, Condition
from edge.delivery.window import Passed, Window
from edge.event import FrameMeta, event_metadata, split_lines, unpack
from edge.spool.format import EVENTS, REPLAY, Frame
from edge.spool.reader import ReadResult

READ_BYTES = 64 * 1024
"""Asked of the spool at a time: large enough to amortise the call, small enough for senders not to notice.

Between two reads the event loop may have the interpreter. With four times as much the p99 of single events at half of
the saturation rate is 9 ms, with this 7.
"""


class Readable(Protocol):
    """The part of the spool's log that delivery reads."""

    @property
    def durable_seq(self) -> int:
        """Exclusive end of what may be read."""

    def read(self, position: int, max_bytes: int) -> ReadResult:
        """Return frames from a position on."""


@dataclass(slots=True)
class _Chunk:
    """What some frames hold for the sink: events of theirs, and the positions they cover with what lies before them."""

    end: int
    seqs: Sequence[int]
    lines: list[bytes]
    passed: list[Passed]
    """What is not in `lines`, in order."""
    metas: list[FrameMeta]
    """For each line; shared between the events of a frame."""
    metadata: list[EventMetadata]
    seen_at: float
    size: int
    """Sum of the lengths of `lines`."""
    taken: int = 0
    """How many of `lines` went into a window already."""
    handed: int = 0
    """How many of `passed` did."""


NOTHING: FrameMeta = {}


class Batcher:
    """Turns the spool from a position on into windows of at most `max_events` events and `max_bytes` bytes of lines.

    `fill` blocks (it reads files) and runs in a worker thread; the rest is quick and runs on the event loop. Never both
    at once: the one task that owns the batcher awaits `fill`. An event larger than `max_bytes` travels alone. A frame
    may be cut, and frames may be joined. What no batch is to hold is counted where it is met: event by event what
    `when` does not match, by frame what is another sink's or cannot be read, by the spool's word what is missing. These
    counts are never made to fit the positions: a mistake in either is to show as a difference in the cursor.
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
        """Return what is known of the first buffered event."""
        chunk = self._chunks[0] if self._chunks else None
        return chunk.metadata[chunk.taken] if chunk is not None and chunk.taken < len(chunk.lines) else None

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
        passed: list[Passed] = []
        while self._chunks:
            chunk = self._chunks[0]
            begin = chunk.taken
            stop, size = self._fitting(chunk, len(lines), size)
            whole = stop == len(chunk.lines)
            if stop > begin:
                seqs.extend(chunk.seqs[begin:stop])
                lines.extend(chunk.lines[begin:stop])
                metas.extend(chunk.metas[begin:stop])
                metadata.extend(chunk.metadata[begin:stop])
                chunk.taken = stop
                end = seqs[-1] + 1
            if whole:
                end = chunk.end
            while chunk.handed < len(chunk.passed) and chunk.passed[chunk.handed].end <= end:
                passed.append(chunk.passed[chunk.handed])
                chunk.handed += 1
            if not whole:
                break
            self._chunks.popleft()
        window = Window(self._position, end, seqs, lines, metas, metadata, passed)
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
        # The spool's own word; frames have no gap between them, so what is missing lies before the first.
        lost = result.lost_events
        frames = result.frames
        index = 0
        while index < len(frames):
            if self._when is None and not lost:
                index = self._take_plain(frames, index, noticed_at)
                if index == len(frames):
                    break
            if frames[index].end > self.read_position:
                self._take_frame(frames[index], lost, noticed_at)
                lost = 0
            index += 1
        if result.position > self.read_position:
            # A gap at the end of what was read: no frame follows it yet.
            end = result.position
            self._append(_Chunk(end, (), [], [Passed(end, lost=lost)], [], [], 0.0, 0))

    def _take_plain(self, frames: Sequence[Frame], index: int, noticed_at: float) -> int:
        """Buffer frames from an index on as long as all their events are for the sink; return where that ends.

        As many as one batch may hold share a chunk. Frames of one event are the usual ones: a chunk for each would
        cost as much as reading it, and so would a call for each of the steps here.
        """
        max_events, max_bytes = self._options.max_events, self._options.max_bytes
        while index < len(frames):
            begin = end = self.read_position
            lines: list[bytes] = []
            metas: list[FrameMeta] = []
            metadata: list[EventMetadata] = []
            size = 0
            for kind, seq, n_events, payload, _, _ in frames[index:]:
                if kind != EVENTS or seq != end:
                    break
                head, parting, text = payload.partition(b"\n")
                n_bytes = len(text) - n_events + 1
                if lines and (len(lines) + n_events > max_events or size + n_bytes > max_bytes):
                    break
                try:
                    meta = orjson.loads(head)
                except ValueError:
                    break
                if type(meta) is not dict or not parting:
                    break
                if n_events > 1:
                    own = split_lines(text)
                    if len(own) != n_events:
                        break
                    lines += own
                    metas += [meta] * n_events
                    metadata += [event_metadata(meta)] * n_events
                elif n_events < 1 or b"\n" in text:
                    break
                else:
                    lines.append(text)
                    metas.append(meta)
                    metadata.append(event_metadata(meta))
                size += n_bytes
                end += n_events
                index += 1
            if not lines:
                break
            self._append(_Chunk(end, range(begin, end), lines, [], metas, metadata, noticed_at, size))
        return index

    def _take_frame(self, frame: Frame, lost: int, noticed_at: float) -> None:
        begin = max(frame.seq, self.read_position)
        n_events = frame.n_events - (begin - frame.seq)
        passed = [Passed(begin, lost=lost)] if lost else []
        seqs: Sequence[int] = ()
        opened = self._open(frame)
        if opened is None:
            self.unreadable_events += n_events
            passed.append(Passed(frame.end, lost=n_events))
        meta, lines = opened or (NOTHING, [])
        if opened is not None and not self._is_ours(frame, meta):
            passed.append(Passed(frame.end, foreign=n_events))
            lines = []
        elif opened is not None:
            seqs, lines = range(begin, frame.end), lines[begin - frame.seq :]
            if self._when is not None:
                seqs, lines = self._matching(self._when, seqs, lines, passed)
        metas, metadata = [meta] * len(lines), [event_metadata(meta)] * len(lines)
        self._append(_Chunk(frame.end, seqs, lines, passed, metas, metadata, noticed_at, sum(map(len, lines))))

    def _open(self, frame: Frame) -> tuple[FrameMeta, list[bytes]] | None:
        """Return a frame's metadata and lines; None when it cannot be read."""
        if frame.kind not in (EVENTS, REPLAY):
            return NOTHING, []
        try:
            meta, lines = unpack(frame.payload)
        except ValueError:
            return None
        return (meta, lines) if len(lines) == frame.n_events else None

    def _is_ours(self, frame: Frame, meta: FrameMeta) -> bool:
        """Return whether a frame's events are to be looked at, be it that `when` skips them."""
        return frame.kind == EVENTS or (frame.kind == REPLAY and meta.get("sink") == self._sink)

    def _matching(
        self, when: Condition, seqs: Sequence[int], lines: list[bytes], passed: list[Passed]
    ) -> tuple[Sequence[int], list[bytes]]:
        """Return the events that the sink wants, and count the others in `passed`, one item for each run of them."""
        kept_seqs: list[int] = []
        kept_lines: list[bytes] = []
        run: Passed | None = None
        for seq, line in zip(seqs, lines, strict=True):
            if self._wanted(when, line):
                kept_seqs.append(seq)
                kept_lines.append(line)
                run = None
            else:
                if run is None:
                    run = Passed(seq)
                    passed.append(run)
                run.end = seq + 1
                run.skipped += 1
        return (kept_seqs, kept_lines) if len(kept_lines) < len(lines) else (seqs, lines)

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
        if not chunk.lines and self._chunks:
            # Nothing to deliver: passed together with what is before it, and kept as one item, however much follows.
            last = self._chunks[-1]
            last.end = chunk.end
            for item in chunk.passed:
                _pass_too(last, item)
            return
        self._chunks.append(chunk)
        self._count(len(chunk.lines), chunk.size)

    def _count(self, n_events: int, n_bytes: int) -> None:
        self._items += n_events
        self._bytes += n_bytes
        self._bytes_seen += n_bytes
        self._lines_seen += n_events


def _pass_too(chunk: _Chunk, item: Passed) -> None:
    """Add what follows a chunk's last event to what the chunk passes."""
    last = chunk.passed[-1] if chunk.passed else None
    if last is None or chunk.handed == len(chunk.passed) or (chunk.lines and last.end <= chunk.seqs[-1]):
        chunk.passed.append(item)
        return
    last.end = item.end
    last.skipped += item.skipped
    last.foreign += item.foreign
    last.lost += item.lost
