"""Seeded defects, put into the code at run time: the suite has to notice each of them.

Each is a mistake that a spool of this kind could be written with, and that the tests of a day with good weather would
not show. `tests/faults/selftest.py` says what is to catch which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

MUTANTS: dict[str, Callable[[], None]] = {}
"""Name -> what puts the defect into the running program."""

_installed: set[str] = set()


def install(name: str) -> None:
    """Put one defect in; a second time changes nothing."""
    if name not in _installed:
        _installed.add(name)
        MUTANTS[name]()


def _mutant(name: str) -> Callable[[Callable[[], None]], None]:
    def add(patch: Callable[[], None]) -> None:
        MUTANTS[name] = patch

    return add


@_mutant("no-fdatasync")
def _no_fdatasync() -> None:
    """What was written counts as durable."""
    from edge.spool.active import ActiveSegment

    ActiveSegment.sync = lambda self: None  # type: ignore[method-assign]


@_mutant("no-dir-fsync")
def _no_dir_fsync() -> None:
    """A new name counts as durable."""
    from edge.spool import cursor, files, segment

    for module in (files, segment, cursor):
        module.sync_directory = lambda files, dir_fd: None  # type: ignore[attr-defined]


def _at_sync(early: Callable[[Any, Any, int], None]) -> None:
    """Have something done with writer, group and end of it when the group is written and not durable yet."""
    from edge.spool.writer import Writer

    commit = Writer._commit

    def commit_early(writer: Any, group: Any, rest: Any) -> None:
        active = writer._active
        sync = active.sync

        def early_then_sync() -> None:
            early(writer, group, group[-1].seq + group[-1].n_events)
            sync()

        active.sync = early_then_sync
        try:
            commit(writer, group, rest)
        finally:
            active.sync = sync

    Writer._commit = commit_early  # type: ignore[method-assign]


@_mutant("ack-before-fsync")
def _ack_before_fsync() -> None:
    """The answer goes out when the frame is written."""
    _at_sync(lambda writer, group, end_seq: writer._call(writer._committed, group, end_seq))


@_mutant("unlink-before-cursor")
def _unlink_before_cursor() -> None:
    """Segments go as soon as their events are delivered, before a cursor that says so is durable."""
    from edge.delivery.progress import CursorKeeper

    CursorKeeper.durable_position = property(  # type: ignore[assignment]
        lambda keeper: keeper.cursor.position, lambda keeper, position: None
    )


class _Anything(int):
    """Equals every checksum."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


@_mutant("no-crc")
def _no_crc() -> None:
    """Whatever lies behind an intact header passes for its payload."""
    from edge.spool import scan
    from edge.spool.format import CHECKED_BYTES

    crc32 = scan.crc32
    scan.crc32 = lambda data, seed=0: crc32(data, seed) if len(data) == CHECKED_BYTES else _Anything()


@_mutant("length-not-covered")
def _length_not_covered() -> None:
    """The checksum of a frame's header leaves its length out."""
    from edge.spool import format as frames
    from edge.spool import scan
    from edge.spool.format import CHECKED_BYTES

    crc32 = frames.crc32

    def without_length(data: Any, seed: int = 0) -> int:
        is_header = len(data) == CHECKED_BYTES and bytes(data[:4]) == frames.FRAME_MAGIC
        return crc32(bytes(data[:12]) + bytes(4) + bytes(data[16:]) if is_header else data, seed)

    frames.crc32 = scan.crc32 = without_length


@_mutant("seq-reuse")
def _seq_reuse() -> None:
    """After a start the numbering goes on with the last number that was used."""
    from edge.spool import log

    recover = log.recover

    def recover_short(*args: Any) -> Any:
        recovery = recover(*args)
        if recovery.segments and recovery.segments[-1].end_seq > recovery.segments[-1].first_seq + 1:
            recovery.next_seq -= 1
        return recovery

    log.recover = recover_short


@_mutant("dedup-before-commit")
def _dedup_before_commit() -> None:
    """An id is remembered when its frame is queued."""
    from edge.dedup import Dedup

    hold = Dedup.hold

    def hold_and_remember(dedup: Any, claim: Any) -> None:
        hold(dedup, claim)
        for key in claim.ids:
            dedup._window.add(key, dedup._clock.monotonic())

    Dedup.hold = hold_and_remember  # type: ignore[method-assign]


@_mutant("retry-fsync")
def _retry_fsync() -> None:
    """An fdatasync that failed is tried once more; the second one says yes."""
    from edge.spool.active import ActiveSegment

    sync = ActiveSegment.sync

    def sync_twice(active: Any) -> None:
        try:
            sync(active)
        except OSError:
            sync(active)

    ActiveSegment.sync = sync_twice  # type: ignore[method-assign]


@_mutant("drop-not-counted")
def _drop_not_counted() -> None:
    """Events that nobody wants, at the door or at a sink, or that a full spool gave up, are left out of the books."""
    from edge.delivery.window import Window
    from edge.door import Door
    from edge.outcomes import Outcome

    advance, settle = Window.advance, Door._settle

    def advance_uncounted(window: Any) -> Any:
        progress = advance(window)
        return None if progress is None else replace(progress, skipped=0, dropped=0)

    def settle_some(door: Any, judged: Any, counts: Any) -> None:
        settle(door, [item for item in judged if item.outcome is not Outcome.FILTERED], counts)

    Window.advance = advance_uncounted  # type: ignore[method-assign]
    Door._settle = settle_some  # type: ignore[method-assign]


@_mutant("cursor-ahead")
def _cursor_ahead() -> None:
    """The cursor is saved when a batch is handed to the sink, as if it had been taken."""
    from edge.delivery.deliver import Delivery

    deliver = Delivery.deliver

    async def save_then_deliver(delivery: Any, window: Any) -> None:
        keeper = delivery._keeper
        cursor = keeper.cursor
        ahead = replace(cursor, position=window.end, delivered=cursor.delivered + window.end - cursor.position)
        if window.end > cursor.position and keeper._saving is None:
            keeper._file.save(ahead)
        await deliver(delivery, window)

    Delivery.deliver = save_then_deliver  # type: ignore[method-assign]


@_mutant("reader-past-durable")
def _reader_past_durable() -> None:
    """Readers see a frame when it is written."""

    def publish(writer: Any, group: Any, end_seq: int) -> None:
        size = sum(entry.size for entry in group)
        writer._index.publish(writer._active.segment.data_end + size, end_seq)
        writer._call(writer._on_commit, end_seq)

    _at_sync(publish)
