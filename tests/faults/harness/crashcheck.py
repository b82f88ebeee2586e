"""What must hold of a spool directory after a crash, whatever the crash left of it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from edge.delivery.letters import live_seqs, read_letters
from edge.delivery.selection import EVERYTHING
from edge.event import unpack
from edge.spool import Cursor, Frame, Log, cursor_names
from edge.spool.cursor import load_cursor
from edge.spool.inspect import verify

OPEN_SECS = 2.0


@dataclass(slots=True)
class Known:
    """What senders and sinks know at the moment of the crash."""

    started: bool = False
    """The sinks had their first cursor on disk."""
    sent: dict[bytes, int] = field(default_factory=dict)
    """Payload -> number of events in it."""
    acked: dict[int, bytes] = field(default_factory=dict)
    """Number of the first event -> payload."""
    numbers: dict[int, list[int]] = field(default_factory=dict)
    """Number of the first event -> the events' own numbers."""
    delivered: dict[str, set[int]] = field(default_factory=dict)
    """Sink -> events' own numbers: delivered to it, or taken out of its dead letters again."""

    def learn(self, note: tuple[object, ...]) -> None:
        """Take in a note of the trace."""
        match note:
            case ("started",):
                self.started = True
            case ("sent", bytes(payload), int(count)):
                self.sent[payload] = count
            case ("acked", int(seq), bytes(payload), list(numbers)):
                self.acked[seq], self.numbers[seq] = payload, numbers
            case ("delivered" | "taken", str(sink), list(numbers)):
                self.delivered.setdefault(sink, set()).update(numbers)
            case _:
                raise AssertionError(f"an unknown note: {note}")


@dataclass(frozen=True, slots=True)
class Found:
    """What a check saw, for the counters of a row."""

    lost: int
    corrupt: int
    problems: list[str]


def read_all(log: Log, position: int | None = None) -> tuple[list[Frame], int]:
    """Return all frames of a log, and how many events were lost on the way."""
    position = log.first_seq if position is None else position
    frames: list[Frame] = []
    lost = 0
    while position < log.durable_seq:
        result = log.read(position, 1 << 20)
        assert result.position > position, f"reading stops at {position} of {log.durable_seq}"
        lost += result.lost_events
        frames += result.frames
        position = result.position
    return frames, lost


class Checker:
    """Opens directories and says what is wrong with them. Give it a loop of its own and `close` it."""

    def __init__(self, known: Known, *, segment_bytes: int) -> None:
        self._known = known
        self._segment_bytes = segment_bytes
        self._loop = asyncio.new_event_loop()
        self.slowest_secs = 0.0

    def close(self) -> None:
        self._loop.close()

    def check(self, root: Path, shard: str, letters: str, sinks: tuple[str, ...]) -> Found:
        """Check the spool and the dead letters under `root`."""
        known, path = self._known, root / shard
        problems: list[str] = []
        cursors = {name: load_cursor(path, name) for name in sinks} if path.is_dir() else {}
        positions = {name: cursor.position for name, cursor in cursors.items() if cursor is not None}
        if known.started and len(positions) < len(sinks):
            problems.append(f"cursors are gone: only {sorted(positions)} are there")
        report = verify(path) if path.is_dir() else None
        started = time.monotonic()
        log = Log.open(path, segment_bytes=self._segment_bytes)
        took = time.monotonic() - started
        self.slowest_secs = max(self.slowest_secs, took)
        if took > OPEN_SECS:
            problems.append(f"opening took {took:.1f} s")
        try:
            frames, lost = read_all(log)
            if report is not None and report.frames != len(frames):
                problems.append(f"verify saw {report.frames} frames, {len(frames)} were read")
            if report is not None and sum(gap.n_events for gap in report.gaps) != lost:
                problems.append(f"verify saw {report.gaps}, {lost} events were lost for the reader")
            if log.recovery.behind_cursor_events:
                problems.append(f"a cursor is {log.recovery.behind_cursor_events} events ahead of the log: {positions}")
            corrupt = self._foreign(frames, problems)
            released = min(positions.values(), default=0) if len(positions) == len(sinks) else 0
            missing = self._missing({frame.seq: frame for frame in frames}, released)
            problems += [f"acknowledged and gone: {seq}" for seq in missing]
            for name, cursor in cursors.items():
                if cursor is not None:
                    problems += self._passed(root / letters / name, name, cursor)
            self._number(log, frames, problems)
        finally:
            self._loop.run_until_complete(log.close())
        return Found(len(missing), corrupt, problems)

    def _foreign(self, frames: list[Frame], problems: list[str]) -> int:
        """Look for frames that nobody sent, or that come twice, or out of order."""
        corrupt, position, seen = 0, -1, set()
        for frame in frames:
            if self._known.sent.get(frame.payload) != frame.n_events:
                corrupt += 1
                problems.append(f"nobody sent the frame at {frame.seq}")
            if frame.seq < position or frame.payload in seen:
                problems.append(f"the frame at {frame.seq} comes twice or out of order")
            seen.add(frame.payload)
            position = frame.end
        return corrupt

    def _missing(self, frames: dict[int, Frame], released: int) -> list[int]:
        return [
            seq
            for seq, payload in self._known.acked.items()
            if seq >= released and (seq not in frames or frames[seq].payload != payload)
        ]

    def _passed(self, directory: Path, name: str, cursor: Cursor) -> list[str]:
        """Look for events that a cursor has passed and that are neither delivered nor dead letters."""
        settled = cursor.delivered + cursor.dead_lettered + cursor.skipped + cursor.lost
        problems = [] if cursor.position == cursor.base + settled else [f"the books of {name} do not balance: {cursor}"]
        kept: set[int] = set()
        if directory.is_dir():
            kept = {orjson.loads(item.line)["n"] for item in read_letters(directory, EVERYTHING, live_seqs(directory))}
        had = self._known.delivered.get(name, set()) | kept
        for seq, numbers in self._known.numbers.items():
            passed = numbers[: max(0, cursor.position - seq)]
            problems += [f"{name} has passed event {n} and never had it" for n in passed if n not in had]
        return problems

    def _number(self, log: Log, frames: list[Frame], problems: list[str]) -> None:
        """See that the next event gets a number that no other one has or had."""
        used = [seq + len(numbers) for seq, numbers in self._known.numbers.items()]
        used += [frame.end for frame in frames]
        log.start(self._loop)

        async def append() -> int:
            return await log.append(b"after", 1)

        seq = self._loop.run_until_complete(append())
        if seq < max(used, default=0):
            problems.append(f"number {seq} is given again, {max(used)} were used")
        last = read_all(log)[0][-1]
        if (last.seq, last.payload) != (seq, b"after"):
            problems.append("a fresh event cannot be read")


def events_of(frames: list[Frame]) -> list[bytes]:
    """Return the lines of events in frames."""
    return [line for frame in frames for line in unpack(frame.payload)[1]]


__all__ = ["OPEN_SECS", "Checker", "Found", "Known", "cursor_names", "events_of", "read_all"]
