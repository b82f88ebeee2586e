"""Where a sink begins in the spool: at its cursor, or where else when there is none that can be used."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import structlog

from edge.delivery.progress import Saveable, is_being_saved
from edge.spool.cursor import Cursor

log = structlog.get_logger(__name__)


class Bounds(Protocol):
    """What the spool holds."""

    @property
    def first_seq(self) -> int:
        """Number of the first event that may still be there."""

    @property
    def durable_seq(self) -> int:
        """Number behind the last one that is."""


def first_cursor(sink: str, spool: Bounds, file: Saveable) -> tuple[Cursor, bool]:
    """Return the cursor that a sink begins with, and whether it is durable. Blocks.

    A sink that is seen for the first time gets what is accepted from now on.
    """
    first, end = spool.first_seq, spool.durable_seq
    cursor = file.load()
    if cursor is not None and first <= cursor.position <= end:
        return cursor, True
    if cursor is None:
        cursor = _beginning(end)
        if file.is_damaged:
            # Nobody knows how far the sink was: what it has had is delivered again, what it has not is not lost.
            cursor = _beginning(first)
            log.warning("a sink's cursor is damaged: it gets all that is in the spool", sink=sink)
    elif cursor.position > end:
        log.warning(
            "a sink's cursor is beyond the spool and was set back to its end", sink=sink, events=cursor.position - end
        )
        cursor = _beginning(end)
    else:
        missing = first - cursor.position
        log.warning(
            "events before the first one in the spool will not reach a sink: they were released while it was not"
            " configured, or their segments are lost",
            sink=sink,
            events=missing,
        )
        cursor = replace(cursor, position=first, lost=cursor.lost + missing)
    return cursor, _save(sink, spool, file, cursor)


def _save(sink: str, spool: Bounds, file: Saveable, cursor: Cursor) -> bool:
    """Make a cursor durable that did not come out of its file; return whether that worked."""
    if is_being_saved(spool, sink):
        return False
    try:
        file.save(cursor)
    except Exception as error:  # noqa: BLE001 - who keeps the cursor goes on trying
        log.error("the cursor of a sink cannot be saved", sink=sink, error=str(error))
        return False
    return True


def _beginning(position: int) -> Cursor:
    """Return the cursor of a sink that has had nothing."""
    return Cursor(position=position, base=position)
