"""Who is told of commits and damage; the gateway counts them as metrics."""

from __future__ import annotations

from typing import Protocol


class LogObserver(Protocol):
    """Is told what happens in a log, from the threads where it happens; must be quick and must not raise."""

    def commit(self, duration_secs: float, n_events: int) -> None:
        """A group commit succeeded."""

    def corrupt(self, n_bytes: int) -> None:
        """Bytes were found whose checksum is wrong."""

    def lost(self, n_frames: int) -> None:
        """Frames that were stored cannot be read any more."""


class SilentObserver:
    """Counts nothing."""

    def commit(self, duration_secs: float, n_events: int) -> None:
        """Ignore a commit."""

    def corrupt(self, n_bytes: int) -> None:
        """Ignore corrupt bytes."""

    def lost(self, n_frames: int) -> None:
        """Ignore lost frames."""
