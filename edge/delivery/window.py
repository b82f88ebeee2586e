"""A stretch of the spool that a sink works on: the events of one batch, what lay between, and what became of them."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

import orjson

from edge.api import Batch, Block, EventMetadata
from edge.event import FrameMeta

PENDING, DELIVERED, DEAD, DROPPED = 0, 1, 2, 3


@dataclass(slots=True)
class Passed:
    """Events that no batch holds, counted one by one or frame by frame as they were met."""

    end: int
    """The position behind the last of them."""
    skipped: int = 0
    """Accepted events that the sink does not want."""
    foreign: int = 0
    """In frames that are not this sink's at all: events replayed for another one, marks."""
    lost: int = 0
    """Events that the spool could not give back."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a cursor may move and what it passes on the way.

    The position comes from where frames lie, the counts from counting: that they agree is to be seen in the cursor, so
    nothing here is computed from the others.
    """

    position: int
    delivered: int
    dead_lettered: int
    skipped: int
    foreign: int
    lost: int
    dropped: int = 0


class _Event(NamedTuple):
    meta: FrameMeta
    metadata: EventMetadata
    line: bytes


@dataclass(slots=True)
class Window:
    """The events of one batch in the order of the spool, and the positions ``[start, end)`` they were taken from."""

    start: int
    end: int
    seqs: Sequence[int]
    blocks: list[Block]
    """The events, such as lay together in a frame as one text."""
    metas: list[FrameMeta]
    """For each block, the stored metadata of its frame."""
    passed: list[Passed]
    """What lies between the events, in order."""
    outcomes: bytearray = field(init=False)
    _events: list[_Event] | None = None
    """Made when one of them is asked for by itself."""
    _position: int = field(init=False)
    _n_settled: int = 0
    """Events of the window that the last `advance` has passed."""
    _n_passed: int = 0
    """Items of `passed` that it has passed."""

    def __post_init__(self) -> None:
        self.outcomes = bytearray(len(self.seqs))
        self._position = self.start

    def __len__(self) -> int:
        return len(self.seqs)

    def stored(self, index: int) -> tuple[FrameMeta, bytes]:
        """Return what the spool holds of one event: the metadata of its frame and its line."""
        event = self._each()[index]
        return event.meta, event.line

    def metadata(self, index: int) -> EventMetadata:
        """Return what the gateway knows of one event."""
        for block in self.blocks:
            if index < block.n_events:
                return block.metadata
            index -= block.n_events
        raise IndexError(index)

    def settle(self, indices: Sequence[int], outcome: int) -> None:
        """Note what became of some events."""
        if len(indices) == len(self):
            self.outcomes[:] = bytes([outcome]) * len(indices)
            return
        for index in indices:
            self.outcomes[index] = outcome

    def drop(self, position: int) -> None:
        """Give up the events before a position that have no outcome yet."""
        end = bisect_left(self.seqs, position)
        self.outcomes[:end] = self.outcomes[:end].replace(bytes([PENDING]), bytes([DROPPED]))

    def advance(self) -> Progress | None:
        """Return the progress since the last call: over every event before the first pending one. None when none."""
        done = self.outcomes.find(PENDING)
        if done < 0:
            done, position = len(self), self.end
        else:
            # What lies between two events is passed together with the event before it.
            position = self.seqs[done]
        if position <= self._position:
            return None
        behind = self._n_passed
        while self._n_passed < len(self.passed) and self.passed[self._n_passed].end <= position:
            self._n_passed += 1
        passed = self.passed[behind : self._n_passed]
        before, self._n_settled, self._position = self._n_settled, done, position
        return Progress(
            position,
            self.outcomes.count(DELIVERED, before, done),
            self.outcomes.count(DEAD, before, done),
            sum(item.skipped for item in passed),
            sum(item.foreign for item in passed),
            sum(item.lost for item in passed),
            self.outcomes.count(DROPPED, before, done),
        )

    def first_pending(self, start: int = 0) -> int | None:
        """Return the index of the first event without an outcome, from an index on."""
        index = self.outcomes.find(PENDING, start)
        return index if index >= 0 else None

    def batch(self, shard: str, indices: Sequence[int]) -> Batch:
        """Return some of the events as a batch; the same events give the same id, other events another one."""
        seqs, blocks, first, last = self.seqs, self.blocks, self.metas[0], self.metas[-1]
        if len(indices) != len(self):
            each = self._each()
            events = [each[index] for index in indices]
            seqs = [seqs[index] for index in indices]
            blocks = [Block(event.metadata, 1, event.line) for event in events]
            first, last = events[0].meta, events[-1].meta
        return Batch(f"{shard}-{seqs[0]}-{seqs[-1]}-{_stamp(seqs, first, last)}", tuple(blocks))

    def _each(self) -> list[_Event]:
        if self._events is None:
            self._events = [
                _Event(meta, block.metadata, line)
                for meta, block in zip(self.metas, self.blocks, strict=True)
                for line in block.lines()
            ]
        return self._events


def _stamp(seqs: Sequence[int], first: FrameMeta, last: FrameMeta) -> str:
    """Return a digest that tells batches apart although they begin and end at the same positions.

    A target that refuses a repeated id would otherwise refuse events it never had: those of a batch that leaves out
    others in the middle, or those of a new spool whose numbers start over.
    """
    digest = blake2b(orjson.dumps([first, last]), digest_size=8)
    if seqs[-1] - seqs[0] + 1 != len(seqs):
        digest.update(array("Q", seqs).tobytes())
    return digest.hexdigest()
