"""The spool: a durable log on disk between accepting and delivering. It knows bytes and counts events."""

from edge.spool.cursor import Cursor, CursorFile, cursor_names
from edge.spool.errors import (
    SpoolBackpressureError,
    SpoolClosedError,
    SpoolError,
    SpoolFailedError,
    SpoolFormatError,
    SpoolFullError,
    SpoolLockedError,
    SpoolUnknownError,
)
from edge.spool.format import EVENTS, MARK, REPLAY, Frame
from edge.spool.log import Log, LogStats
from edge.spool.observer import LogObserver
from edge.spool.reader import ReadResult

__all__ = [
    "EVENTS",
    "MARK",
    "REPLAY",
    "Cursor",
    "CursorFile",
    "Frame",
    "Log",
    "LogObserver",
    "LogStats",
    "ReadResult",
    "SpoolBackpressureError",
    "SpoolClosedError",
    "SpoolError",
    "SpoolFailedError",
    "SpoolFormatError",
    "SpoolFullError",
    "SpoolLockedError",
    "SpoolUnknownError",
    "cursor_names",
]
