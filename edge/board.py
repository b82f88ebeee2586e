"""What the processes of one gateway know of each other: a few shared pages that the parent makes before it forks.

The parent writes down which processes there are and when a drain has begun. Each process leaves a snapshot of its
metrics, which outlives it: the one that takes its place goes on counting from there.
"""

from __future__ import annotations

import mmap
import time
from enum import IntEnum
from typing import Final

DELIVERY: Final = 0
"""The place of the delivery process; ingest process k has place k."""

_PROCESS_WORDS = 8
_STATE, _PID, _RESTARTS = range(3)
_DRAINING, _DEADLINE, _HURRY, _RELOADS = range(4)
_SNAPSHOT_BYTES = 2 * 1024 * 1024
_HEAD_BYTES = mmap.PAGESIZE


class State(IntEnum):
    """What a process is doing, as far as the parent knows."""

    DOWN = 0
    STARTING = 1
    UP = 2


_STATES = frozenset(State)


class Board:
    """One place for each process; the words of a place are written by the parent alone, its snapshot by the process."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        places = workers + 1
        self._memory = mmap.mmap(-1, max(mmap.PAGESIZE, (places + 1) * _PROCESS_WORDS * 8))
        self._words = memoryview(self._memory).cast("Q")
        self._snapshots = [Snapshot() for _ in range(places)]

    @property
    def is_draining(self) -> bool:
        """Whether the whole gateway is stopping."""
        return bool(self._words[_DRAINING])

    def drain(self, secs: float) -> None:
        """Say that the gateway is stopping and is to be done in so many seconds."""
        self._words[_DEADLINE] = time.monotonic_ns() + int(secs * 1e9)
        self._words[_DRAINING] = 1

    @property
    def secs_left(self) -> float:
        """What is left of the time for the drain; 0 when nobody is to be waited for any more."""
        if self.is_hurrying:
            return 0.0
        return max(0.0, (self._words[_DEADLINE] - time.monotonic_ns()) / 1e9)

    @property
    def is_hurrying(self) -> bool:
        """Whether nothing is waited for any more."""
        return bool(self._words[_HURRY])

    def hurry(self) -> None:
        """Say that nothing is waited for any more."""
        self._words[_HURRY] = 1

    @property
    def n_reloads(self) -> int:
        """How often the configuration that the parent gives its children was replaced."""
        return self._words[_RELOADS]

    def count_reload(self) -> None:
        """Count a reload."""
        self._words[_RELOADS] += 1

    def state(self, place: int) -> State:
        """What the process in a place is doing."""
        word = self._words[self._at(place) + _STATE]
        return State(word) if word in _STATES else State.DOWN

    @property
    def takes_events(self) -> bool:
        """Whether an ingest process still runs."""
        return any(self.state(place) is not State.DOWN for place in range(1, self.workers + 1))

    def pid(self, place: int) -> int:
        """The process in a place; 0 for none."""
        return self._words[self._at(place) + _PID]

    def restarts(self, place: int) -> int:
        """How often a process that had died was started again."""
        return self._words[self._at(place) + _RESTARTS]

    def note(self, place: int, state: State, pid: int) -> None:
        """Write down what a process is doing."""
        self._words[self._at(place) + _STATE], self._words[self._at(place) + _PID] = state, pid

    def count_restart(self, place: int) -> None:
        """Count a restart."""
        self._words[self._at(place) + _RESTARTS] += 1

    def snapshot(self, place: int) -> Snapshot:
        """Return what the process in a place, or the one before it, has left."""
        return self._snapshots[place]

    @staticmethod
    def _at(place: int) -> int:
        return (place + 1) * _PROCESS_WORDS


class Snapshot:
    """The last bytes that a process wrote whole: two areas written in turn, and a word that says which one counts."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _HEAD_BYTES + 2 * _SNAPSHOT_BYTES)
        self._words = memoryview(self._memory)[:_HEAD_BYTES].cast("Q")

    def write(self, data: bytes) -> bool:
        """Leave some bytes; False when they are too many."""
        if len(data) > _SNAPSHOT_BYTES:
            return False
        area = 1 - self._words[0]
        start = _HEAD_BYTES + area * _SNAPSHOT_BYTES
        self._memory[start : start + len(data)] = data
        self._words[1 + area] = len(data)
        self._words[0] = area
        return True

    def read(self) -> bytes:
        """Return what was left last; empty before the first time."""
        area = self._words[0]
        start = _HEAD_BYTES + area * _SNAPSHOT_BYTES
        return bytes(self._memory[start : start + self._words[1 + area]])
