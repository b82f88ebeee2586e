"""What can go wrong with the spool, one class for each answer a caller must give."""

from __future__ import annotations

from edge.api import EdgeError


class SpoolError(EdgeError):
    """Base of the spool's errors."""


class SpoolClosedError(SpoolError):
    """The log is closed, closing or not started; nothing was stored."""


class SpoolBackpressureError(SpoolError):
    """Too much waits to be written, or it waited too long; nothing was stored, try again soon."""


class SpoolFullError(SpoolError):
    """No room: the disk, a quota, a file size limit or `max_bytes`; nothing was stored. Ends by itself."""


class SpoolUnknownError(SpoolError):
    """The outcome is unknown: the frame may be stored or not. Sending it again may store it twice."""


class SpoolFailedError(SpoolError):
    """The disk refused the work; nothing was stored."""


class SpoolLockedError(SpoolError):
    """Another process owns the directory."""


class SpoolFormatError(SpoolError):
    """A newer version wrote the directory; nothing in it was changed."""
