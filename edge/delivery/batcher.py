"""Reads frames off the spool and cuts them into batches: by count, by bytes, and (the worker decides when) by age."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from edge.api import Block, EventMetadata
from edge.config.model import BatchOptions, Condition
from edge.delivery.window import Passed, Window
from edge.event import SHORT_META_BYTES, FrameMeta, event_metadata, unpack_text
from edge.lines import count_lines, split_lines
from edge.spool.format import EVENTS, REPLAY, Frame
from edge.spool.reader import ReadResult
from edge.spool.scan import LEAST_BYTES

READ_BYTES = 256 * 1024
"""Asked of the spool at a time: large enough to amortise the call, small enough for senders not to notice.

Between two reads the event loop may have the interpreter, and within one where a large frame is read or summed up; of
small frames these are 170. With four times as many of them the p99 of single events at half of the saturation rate was
9 ms, with this 7, both before there was `FRAMES_AT_ONCE`.
"""
FRAMES_AT_ONCE = 2 * READ_BYTES // LEAST_BYTES
"""So many frames are read as soon as they are there, although the batch is not due.

To read the thousands that a due batch of single events may have makes senders wait: a p99 of 8 to 10 ms at half of the
saturation rate, with this 5. With half of it, 4, for 2 us an event more.
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
    """For each event."""
    blocks: list[Block]
    """The events, such as lie together in a frame as one text."""
    metas: list[FrameMeta]
    """For each block."""
    passed: list[Passed]
    """What is not in `blocks`, in order."""
    seen_at: float
    size: int
    """Sum of the lengths of the lines."""
    taken: int = 0
    """How many of the events went into a window already."""
    taken_blocks: int = 0
    """How many of `blocks` did."""
    handed: int = 0
    """How many of `passed` did."""

    def take(self, n_events: int, size: int, options: BatchOptions) -> int:
        """Take what a window with so many events and bytes has room for; return its new bytes."""
        max_events, max_bytes = options.max_events, options.max_bytes
        if not self.taken and n_events + len(self.seqs) <= max_events and size + self.size <= max_bytes:
            self.taken, self.taken_blocks = len(self.seqs), len(self.blocks)
            return size + self.size
        while self.taken_blocks < len(self.blocks) and n_events < max_events:
            block = self.blocks[self.taken_blocks]
            if n_events + block.n_events > max_events or size + block.size_bytes > max_bytes:
                if block.n_events > 1:
                    self._take_apart(self.taken_blocks)
                    continue
                if n_events:
                    break
            n_events += block.n_events
            size += block.size_bytes
            self.taken += block.n_events
            self.taken_blocks += 1
        return size

    def _take_apart(self, index: int) -> None:
        """Put a block of each of its events in the place of a block."""
        block = self.blocks[index]
        self.blocks[index : index + 1] = [Block(block.metadata, 1, line) for line in block.lines()]
        self.metas[index : index + 1] = [self.metas[index]] * block.n_events


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
        self._frame_events = 1.0
        """Events of the spool in a frame, as the last read had them."""
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
        return next((chunk.seen_at for chunk in self._chunks if len(chunk.seqs) > chunk.taken), None)

    def head_metadata(self) -> EventMetadata | None:
        """Return what is known of the first buffered event."""
        chunk = self._chunks[0] if self._chunks else None
        if chunk is None or chunk.taken == len(chunk.seqs):
            return None
        return chunk.blocks[chunk.taken_blocks].metadata

    def wanted_events(self) -> int:
        """Return after how many more events in the spool a look is worth it; at least 1.

        As many as the batch has room for, but no more than `FRAMES_AT_ONCE` frames hold. Bytes are guessed from the
        events seen so far, and halved so that the guess converges from below; a frame holds what the last ones did.
        """
        if not self._lines_seen:
            return self._options.max_events if self._read_any else 1
        room = self._options.max_bytes - self._bytes
        mean = max(1.0, self._bytes_seen / self._lines_seen)
        at_once = int(FRAMES_AT_ONCE * self._frame_events)
        return max(1, min(self._options.max_events - self._items, int(room / mean / 2), at_once))

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
        seqs: Sequence[int] = ()
        blocks: list[Block] = []
        metas: list[FrameMeta] = []
        passed: list[Passed] = []
        while self._chunks:
            chunk = self._chunks[0]
            begin, first = chunk.taken, chunk.taken_blocks
            size = chunk.take(len(seqs), size, self._options)
            whole = chunk.taken == len(chunk.seqs)
            if chunk.taken > begin:
                seqs = _joined(seqs, chunk.seqs[begin : chunk.taken])
                blocks += chunk.blocks[first : chunk.taken_blocks]
                metas += chunk.metas[first : chunk.taken_blocks]
                end = seqs[-1] + 1
            if whole:
                end = chunk.end
            while chunk.handed < len(chunk.passed) and chunk.passed[chunk.handed].end <= end:
                passed.append(chunk.passed[chunk.handed])
                chunk.handed += 1
            if not whole:
                break
            self._chunks.popleft()
        window = Window(self._position, end, seqs, blocks, metas, passed)
        self._items -= len(window)
        self._bytes -= size
        self._position = end
        return window

    def _take(self, result: ReadResult, noticed_at: float) -> None:
        """Buffer what the spool returned."""
        # The spool's own word; frames have no gap between them, so what is missing lies before the first.
        lost = result.lost_events
        frames = result.frames
        if frames:
            self._frame_events = (frames[-1].end - frames[0].seq) / len(frames)
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
            self._append(_Chunk(end, (), [], [], [Passed(end, lost=lost)], 0.0, 0))

    def _take_plain(self, frames: Sequence[Frame], index: int, noticed_at: float) -> int:
        """Buffer frames from an index on as long as all their events are for the sink; return where that ends.

        As many as one batch may hold share a chunk. Frames of one event are the usual ones: a chunk for each would
        cost as much as reading it, and so would a call for each of the steps here.
        """
        max_events, max_bytes = self._options.max_events, self._options.max_bytes
        new = tuple.__new__
        while index < len(frames):
            begin = end = self.read_position
            blocks: list[Block] = []
            metas: list[FrameMeta] = []
            size = 0
            for kind, seq, n_events, payload, _, _ in frames[index:]:
                if kind != EVENTS or seq != end:
                    break
                head, parting, text = payload.partition(b"\n")
                n_bytes = len(text) - n_events + 1
                if blocks and (end - begin + n_events > max_events or size + n_bytes > max_bytes):
                    break
                try:
                    meta = orjson.loads(head)
                except ValueError:
                    break
                if type(meta) is not dict or not parting or len(head) > SHORT_META_BYTES:
                    break
                if b"\n" in text if n_events == 1 else count_lines(text) != n_events:
                    break
                blocks.append(new(Block, (event_metadata(meta), n_events, text)))
                metas.append(meta)
                size += n_bytes
                end += n_events
                index += 1
            if not blocks:
                break
            self._append(_Chunk(end, range(begin, end), blocks, metas, [], noticed_at, size))
        return index

    def _take_frame(self, frame: Frame, lost: int, noticed_at: float) -> None:
        begin = max(frame.seq, self.read_position)
        n_events = frame.n_events - (begin - frame.seq)
        passed = [Passed(begin, lost=lost)] if lost else []
        seqs: Sequence[int] = ()
        blocks: list[Block] = []
        opened = self._open(frame)
        if opened is None:
            self.unreadable_events += n_events
            passed.append(Passed(frame.end, lost=n_events))
        meta, text = opened or (NOTHING, b"")
        if opened is not None and not self._is_ours(frame, meta):
            passed.append(Passed(frame.end, foreign=n_events))
        elif opened is not None:
            seqs = range(begin, frame.end)
            if self._when is not None or begin > frame.seq:
                lines = split_lines(text)[begin - frame.seq :]
                if self._when is not None:
                    seqs, lines = self._matching(self._when, seqs, lines, passed)
                text = b"\n".join(lines)
            if seqs:
                blocks = [Block(event_metadata(meta), len(seqs), text)]
        metas, size = [meta] * len(blocks), sum([block.size_bytes for block in blocks])
        self._append(_Chunk(frame.end, seqs, blocks, metas, passed, noticed_at, size))

    def _open(self, frame: Frame) -> tuple[FrameMeta, bytes] | None:
        """Return a frame's metadata and the text of its lines; None when it cannot be read."""
        if frame.kind not in (EVENTS, REPLAY):
            return NOTHING, b""
        try:
            meta, text = unpack_text(frame.payload)
        except ValueError:
            return None
        return (meta, text) if text is not None and count_lines(text) == frame.n_events else None

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
        if not chunk.seqs and self._chunks:
            # Nothing to deliver: passed together with what is before it, and kept as one item, however much follows.
            last = self._chunks[-1]
            last.end = chunk.end
            for item in chunk.passed:
                _pass_too(last, item)
            return
        self._chunks.append(chunk)
        self._count(len(chunk.seqs), chunk.size)

    def _count(self, n_events: int, n_bytes: int) -> None:
        self._items += n_events
        self._bytes += n_bytes
        self._bytes_seen += n_bytes
        self._lines_seen += n_events


def _joined(seqs: Sequence[int], more: Sequence[int]) -> Sequence[int]:
    """Return the numbers of both; `seqs` may be changed."""
    if not seqs:
        return more
    if isinstance(seqs, range) and isinstance(more, range) and seqs.stop == more.start:
        return range(seqs.start, more.stop)
    joined = seqs if isinstance(seqs, list) else list(seqs)
    joined.extend(more)
    return joined


def _pass_too(chunk: _Chunk, item: Passed) -> None:
    """Add what follows a chunk's last event to what the chunk passes."""
    last = chunk.passed[-1] if chunk.passed else None
    if last is None or chunk.handed == len(chunk.passed) or (chunk.seqs and last.end <= chunk.seqs[-1]):
        chunk.passed.append(item)
        return
    last.end = item.end
    last.skipped += item.skipped
    last.foreign += item.foreign
    last.lost += item.lost
