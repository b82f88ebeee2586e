"""A state machine that does to a spool what life does to it, beside a model of it that is two dictionaries.

Every step is an operation of the spool or an act of the disk: calls that fail, kills, power cuts between and within
operations, flipped bits. The model knows who was told what; :mod:`simfs` knows what the disk may have forgotten.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from edge.spool import Cursor, CursorFile, Frame, Log, SpoolError, SpoolUnknownError
from edge.spool.cursor import load_cursor
from edge.spool.format import FRAME_HEADER_BYTES, SEGMENT_HEADER_BYTES
from edge.spool.inspect import verify
from harness.simfs import Change, Disk, Image, Op, RecordingFiles, image_of, materialise, torn

SEGMENT_BYTES = 4096
MAX_BYTES = 64 * 1024
CALLS = ("fdatasync", "fdatasync", "open", "fallocate", "fsync", "pwritev", "rename", "ftruncate", "unlink")
ERRORS = (errno.EIO, errno.ENOSPC)


@dataclass(slots=True)
class Failure:
    """Which calls of a name fail from now on, and with what."""

    name: str
    skip: int
    times: int
    code: int


class SpoolMachine(RuleBasedStateMachine):
    """The rules. Set `directory` before use; `states` counts the directories that were opened after a crash."""

    directory: Path
    states = 0
    losses = 0
    corrupt = 0

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.get_ident()
        self._payloads = 0
        self._sent: dict[bytes, int] = {}
        self._harmed: set[int] = set()
        """Numbers of events whose bytes were flipped, and so may be gone."""
        self._violations: list[str] = []
        self._failure: Failure | None = None
        self._crash_at: int | None = None
        self._snapshot: Disk | None = None
        self._lives = 0
        self._live(Disk(), {})

    # Lives: from an opening to a crash, a kill or an orderly end.

    def _live(self, disk: Disk, image: Image) -> None:
        """Open what lies on the disk and see whether it keeps every promise."""
        self._lives += 1
        self._root = self.directory / f"{id(self):x}-{self._lives}"
        self._root.mkdir()
        materialise(image, self._root)
        self._path = self._root / "spool"
        self._disk = disk
        self._files = RecordingFiles(self._root, disk.apply, disk.names_now())
        self._snapshot = self._crash_at = self._failure = None
        report = verify(self._path) if self._path.is_dir() else None
        self._log = Log.open(self._path, files=self._files, segment_bytes=SEGMENT_BYTES, max_bytes=MAX_BYTES)
        self._log.start(self._loop)
        self._cursor_file = CursorFile(self._path, "sink", files=self._files)
        self._cursor = self._check_cursor()
        # From where the log began before: a segment that has no intact frame any more is not there for a reader.
        frames, lost = self._read(report.first_seq if report is not None and report.segments else self._log.first_seq)
        self._check(frames)
        if report is not None:
            assert report.frames == len(frames)
            assert sum(gap.n_events for gap in report.gaps) == lost
        for frame in frames:  # whoever was told what: from now on it is there
            self._files.note("acked", frame.seq, frame.payload)
        self._files.before = self._before

    def _notes(self, kind: str) -> list[tuple[Any, ...]]:
        return [note[1:] for note in self._disk.notes if note[0] == kind]

    def _check_cursor(self) -> Cursor:
        """See that the cursor is the last one that was saved, or one that was being saved after it."""
        found = load_cursor(self._path, "sink")
        saved = [(at, note[1]) for at, note in enumerate(self._disk.notes) if note[0] == "saved"]
        at, last = saved[-1] if saved else (-1, None)
        allowed = [last, *(note[1] for note in self._disk.notes[at + 1 :] if note[0] == "saving")]
        assert found in allowed, f"the cursor is {found}, not one of {allowed}"
        assert not self._log.recovery.behind_cursor_events or self._harmed, "the cursor is ahead of the log"
        return found or Cursor()

    def _check(self, frames: list[Frame]) -> None:
        """Compare what can be read after an opening with what was promised before."""
        acked = dict(self._notes("acked"))
        refused = {payload for (payload,) in self._notes("refused")}
        by_seq = {frame.seq: frame for frame in frames}
        position = -1
        for frame in frames:
            type(self).corrupt += self._sent.get(frame.payload) != frame.n_events
            assert self._sent.get(frame.payload) == frame.n_events, f"nobody sent the frame at {frame.seq}"
            assert frame.payload not in refused, f"the frame at {frame.seq} was refused: {frame.payload[:12]!r}"
            assert frame.seq >= position, "frames overlap"
            position = frame.end
        assert len({frame.payload for frame in frames}) == len(frames), "a frame is there twice"
        missing = [
            seq
            for seq, payload in acked.items()
            if seq >= self._cursor.position
            and seq not in self._harmed
            and (seq not in by_seq or by_seq[seq].payload != payload)
        ]
        type(self).losses += len(missing)
        assert not missing, f"acknowledged and gone: {missing}"
        used = max((seq + self._sent[payload] for seq, payload in acked.items() if seq not in self._harmed), default=0)
        assert self._log.durable_seq >= used, f"numbers below {used} are given again"

    def _read(self, position: int) -> tuple[list[Frame], int]:
        frames: list[Frame] = []
        lost = 0
        while position < self._log.durable_seq:
            result = self._log.read(position, 1 << 20)
            assert result.position > position
            frames += result.frames
            lost += result.lost_events
            position = result.position
        return frames, lost

    def _leave(self) -> None:
        """End this life: what the log still does happens to a directory that nobody looks at any more."""
        self._failure = None
        self._files.before = lambda name: None
        self._files.largest_write = None
        self._cursor_file.close()
        self._loop.run_until_complete(self._log.close())
        shutil.rmtree(self._root)

    def _reopen_after(self, disk: Disk, image: Image) -> None:
        """Go on with another directory, and with the notes of that moment."""
        self._leave()
        type(self).states += 1
        self._live(disk, image)

    # What the disk does.

    def _before(self, name: str) -> None:
        """Called ahead of each system call: notice a crash, let the loop catch up, fail when it is time to."""
        if self._crash_at is not None:
            self._crash_at -= 1
            if self._crash_at < 0:
                self._crash_at = None
                self._catch_up()
                self._snapshot = self._disk.copy()
        if name in ("fdatasync", "fsync"):
            self._catch_up()
            self._look_for_readers_past_durable()
        failure = self._failure
        if failure is not None and failure.name == name:
            if failure.skip:
                failure.skip -= 1
            elif failure.times:
                failure.times -= 1
                raise OSError(failure.code, os.strerror(failure.code))

    def _catch_up(self) -> None:
        """Let the loop say what it knows: an acknowledgement must not come ahead of the sync it stands for."""
        if threading.get_ident() != self._thread and self._loop.is_running():
            asyncio.run_coroutine_threadsafe(_two_passes(), self._loop).result(5)

    def _look_for_readers_past_durable(self) -> None:
        known = max((seq + self._sent[payload] for seq, payload in self._notes("acked")), default=0)
        if threading.get_ident() != self._thread:
            ahead = self._log.read(known, 1).frames
            if ahead and ahead[0].end > known:
                self._violations.append(f"a reader saw the frame at {ahead[0].seq} before it was durable")

    def _settle(self) -> None:
        """End a step: a crash that was due happened within it."""
        assert not self._violations, self._violations
        if self._snapshot is not None:
            disk = self._snapshot
            self._power_cut(disk, self._mask)

    def _power_cut(self, disk: Disk, mask: int) -> None:
        """Lose the changes that a mask of bits leaves out; tear one of the writes if it says so."""
        optional = disk.optional()
        kept = [change for at, change in enumerate(optional) if mask >> (at % 32) & 1]
        instead: Change | None = None
        pieces: list[Op] = []
        writes = [change for change in kept if change.op.kind == "write"]
        if writes and mask >> 40 & 1:
            instead = writes[mask % len(writes)]
            ways = list(torn(instead.op))
            pieces = ways[mask % len(ways)][1] if ways else []
        image = disk.image(kept, instead, pieces)
        after = Disk.of(image)
        after.notes = disk.notes
        self._reopen_after(after, image)

    # Rules.

    @rule(sizes=st.lists(st.integers(0, 1500), min_size=1, max_size=5), mask=st.integers(0, 2**48 - 1))
    def append(self, sizes: list[int], mask: int) -> None:
        """Append frames together; each gets an answer."""
        self._mask = mask

        async def run() -> None:
            await asyncio.gather(*(self._append(size) for size in sizes))

        self._loop.run_until_complete(run())
        self._settle()

    async def _append(self, size: int) -> None:
        self._payloads += 1
        payload = b"%08d" % self._payloads + bytes([1 + self._payloads % 255]) * size
        count = 1 + self._payloads % 3
        self._sent[payload] = count
        try:
            future = self._log.append(payload, count)
            future.add_done_callback(lambda done: self._answered(done, payload))
            await future
        except SpoolUnknownError:
            return
        except SpoolError:
            self._files.note("refused", payload)

    def _answered(self, done: asyncio.Future[int], payload: bytes) -> None:
        if done.exception() is None:
            self._files.note("acked", done.result(), payload)

    @rule(max_bytes=st.integers(1, 4000))
    def deliver(self, max_bytes: int) -> None:
        """Read on from the cursor and move it in memory."""
        result = self._log.read(self._cursor.position, max_bytes)
        acked = dict(self._notes("acked"))
        for frame in result.frames:
            assert acked.get(frame.seq) == frame.payload, f"the frame at {frame.seq} is not what was acknowledged"
        lost = result.lost_events
        delivered = result.position - self._cursor.position - lost
        cursor = self._cursor
        self._cursor = Cursor(
            result.position, cursor.base, cursor.delivered + delivered, 0, cursor.skipped, cursor.lost + lost
        )

    @rule(mask=st.integers(0, 2**48 - 1))
    def save_cursor_and_release(self, mask: int) -> None:
        """Make the cursor durable; only when that worked, let go of what lies behind it."""
        self._mask = mask
        self._files.note("saving", self._cursor)
        try:
            self._cursor_file.save(self._cursor)
        except SpoolError:
            self._settle()
            return
        self._files.note("saved", self._cursor)
        self._log.release(self._cursor.position)
        self._settle()

    @rule()
    def end_in_order_and_open_again(self) -> None:
        self._failure = None
        self._files.before = lambda name: None
        self._loop.run_until_complete(self._log.close())
        disk = self._disk.copy()
        self._reopen_after(disk, disk.image(disk.optional()))

    @rule()
    def kill(self) -> None:
        """The process is gone, the system is not: every write is there, and what was not synced still is not."""
        disk = self._disk.copy()
        self._reopen_after(disk, disk.image(disk.optional()))

    @rule(mask=st.integers(0, 2**48 - 1))
    def power_cut(self, mask: int) -> None:
        """The power goes while nothing is going on."""
        self._power_cut(self._disk.copy(), mask)

    @rule(calls=st.integers(0, 12))
    def power_cut_soon(self, calls: int) -> None:
        """The power will go ahead of one of the next system calls."""
        self._crash_at = calls

    @rule(
        name=st.sampled_from(CALLS),
        skip=st.integers(0, 4),
        times=st.sampled_from([1, 1, 2, 1000]),
        code=st.sampled_from(ERRORS),
    )
    def fail(self, name: str, skip: int, times: int, code: int) -> None:
        """Let a system call fail once, or from now on."""
        self._failure = Failure(name, skip, times, code)

    @rule(
        name=st.sampled_from(CALLS),
        code=st.sampled_from(ERRORS),
        sizes=st.lists(st.integers(0, 500), min_size=1, max_size=3),
        mask=st.integers(0, 2**48 - 1),
    )
    def append_through_a_failure_and_lose_power(self, name: str, code: int, sizes: list[int], mask: int) -> None:
        """A call fails once under an append, and the power goes right after it was answered."""
        self._failure = Failure(name, 0, 1, code)
        self.append(sizes, mask)
        self._power_cut(self._disk.copy(), mask)

    @rule()
    def heal(self) -> None:
        """The disk works again, and the spool takes events again by itself."""
        self._failure = None
        self._wait(lambda: self._log.stats().writable or "max_bytes" in self._log.stats().reason)

    @rule(size=st.sampled_from([None, 1, 100, 700]))
    def short_writes(self, size: int | None) -> None:
        """Let the system take no more than so many bytes at once."""
        self._files.largest_write = size

    @rule(at=st.integers(0, 1 << 30), bit=st.integers(0, 7))
    def flip_a_bit(self, at: int, bit: int) -> None:
        """End in order, flip one bit of a segment, open again: the frame it hit may be lost, and no other one."""
        frames, _ = self._read(self._log.first_seq)
        self._failure = None
        self._files.before = lambda name: None
        self._loop.run_until_complete(self._log.close())
        image = image_of(self._root)
        segments = [name for name, content in image.items() if content and name.startswith("spool/seg-")]
        if segments:
            name = segments[at % len(segments)]
            content = bytearray(image[name] or b"")
            # The first copy of the header is spared: without both, every frame of the segment may go.
            offset = SEGMENT_HEADER_BYTES // 2 + at % (len(content) - SEGMENT_HEADER_BYTES // 2)
            content[offset] ^= 1 << bit
            image[name] = bytes(content)
            for frame in frames:
                end = frame.offset + FRAME_HEADER_BYTES + len(frame.payload)
                if name.endswith(frame.segment) and frame.offset <= offset < end:
                    self._harmed.add(frame.seq)
        disk = Disk.of(image)
        disk.notes = self._disk.notes
        self._reopen_after(disk, image)

    def _wait(self, condition: Callable[[], bool]) -> None:
        async def wait() -> None:
            deadline = self._loop.time() + 5
            while not condition():
                assert self._loop.time() < deadline, "the spool does not take events again"
                await asyncio.sleep(0.001)

        self._loop.run_until_complete(wait())

    def teardown(self) -> None:
        """Open it one last time, in order."""
        try:
            self.end_in_order_and_open_again()
        finally:
            self._leave()
            self._loop.close()


async def _two_passes() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)
