"""Letting go of segments that every sink is past: when they are old enough, or at once when room is needed."""

from __future__ import annotations

import threading
import time

import structlog

from edge.spool.files import Files
from edge.spool.quarantine import Quarantine
from edge.spool.segment import Segment, SegmentFiles, SegmentIndex

logger = structlog.get_logger(__name__)


class Releaser:
    """Unlinks segments, oldest first. Safe to use from any thread.

    A segment that all are past is kept for `retain_secs`, but it gives way as soon as the next segment
    would not have room: what can be replayed is worth less than what comes in.
    """

    def __init__(
        self,
        dir_fd: int,
        files: Files,
        index: SegmentIndex,
        segment_files: SegmentFiles,
        quarantine: Quarantine,
        retain_secs: float,
    ) -> None:
        self._dir_fd = dir_fd
        self._files = files
        self._index = index
        self._segment_files = segment_files
        self._quarantine = quarantine
        self._retain_secs = retain_secs
        self.lock = threading.Lock()
        """Held by who removes or replaces segments."""
        self._settled = 0
        """Every cursor is durably past it."""
        self._is_closed = False

    def release(self, position: int) -> int:
        """Unlink the segments wholly below event `position` that are old enough; returns the bytes freed. Blocks."""
        freed = 0
        with self.lock:
            self._settled = max(self._settled, position)
            for segment in self._index.wholly_below(position):
                if time.monotonic() - segment.aged_from < self._retain_secs or not self._unlink(segment):
                    break
                freed += segment.size
        return freed

    def give_way(self, most_bytes: int) -> int:
        """Unlink what is only kept, whatever its age, until the log takes at most `most_bytes`; returns what it freed.

        Blocks. What a cursor still needs stays, also when that is too much.
        """
        freed = 0
        with self.lock:
            for segment in self._index.wholly_below(self._settled):
                if self._index.totals()[1] <= most_bytes or not self._unlink(segment):
                    break
                freed += segment.size
        return freed

    def close(self) -> bool:
        """End all unlinking, once nobody does any more; False when that was done before."""
        with self.lock:
            was_closed, self._is_closed = self._is_closed, True
            return not was_closed

    def _unlink(self, segment: Segment) -> bool:
        """Remove one segment, the first of the log; False when it has to stay."""
        if self._is_closed:
            return False
        self._index.drop(segment)  # first, so that a reader who misses the file knows why
        try:
            self._files.unlink(segment.name, dir_fd=self._dir_fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            logger.warning("a segment could not be removed", error=str(error))
            self._index.put_back(segment)
            return False
        self._segment_files.forget(segment)
        self._quarantine.forget(segment.name)
        return True
