"""Where damaged bytes go: counted once, kept for a look within limits, never in the way."""

from __future__ import annotations

import os
import stat
import threading

import structlog

from edge.spool.files import (
    CREATE_FLAGS,
    DIRECTORY_MODE,
    Files,
    close_quietly,
    open_regular,
    read_at,
    remove_quietly,
    write_all,
)
from edge.spool.observer import LogObserver
from edge.spool.scan import ReadAt

logger = structlog.get_logger(__name__)

QUARANTINE = "quarantine"
LIMIT_BYTES = 256 * 1024 * 1024
"""What `quarantine/` may hold; damage beyond it is counted and not kept."""
PIECE_BYTES = 1024 * 1024
"""What is kept of one damaged range."""


class Quarantine:
    """Counts damage and keeps copies of it in `quarantine/`. Safe to use from any thread.

    Every sink reads the same bytes: a range is counted when the first of them meets it.
    """

    def __init__(self, dir_fd: int, files: Files, observer: LogObserver) -> None:
        self._dir_fd = dir_fd
        self._files = files
        self._observer = observer
        self._lock = threading.Lock()
        self._seen: dict[str, set[int]] = {}
        self._room: int | None = None
        self.corrupt_bytes = 0
        self.lost_events = 0

    def damaged(self, segment: str, offset: int, length: int, read: ReadAt) -> None:
        """Count a damaged range and keep a copy of its start."""
        if not self._first_time(segment, offset):
            return
        with self._lock:
            self.corrupt_bytes += length
            if len(self._seen.get(segment, ())) == 1:  # the first of this segment: a thousand more would say the same
                logger.warning("a segment of the spool is damaged", segment=segment, offset=offset, n_bytes=length)
            self._observer.corrupt(length)
            self._keep(f"{segment}.{offset}", read(offset, min(length, PIECE_BYTES)))

    def lost(self, segment: str, seq: int, n_events: int, n_frames: int) -> None:
        """Count events that the log should have and has not, from `seq` on."""
        if not self._first_time(segment, -1 - seq):
            return
        with self._lock:
            self.lost_events += n_events
            logger.error("events of the spool are lost", segment=segment, seq=seq, n_events=n_events)
            self._observer.lost(n_frames)

    def forget(self, segment: str) -> None:
        """Drop the notes on a segment that is gone."""
        with self._lock:
            self._seen.pop(segment, None)

    def replaced(self, segment: str) -> None:
        """Take note that a segment was rewritten without its damage: what is found in it from now on is new."""
        with self._lock:
            notes = self._seen.get(segment, set())
            notes.difference_update([offset for offset in notes if offset >= 0])

    def _first_time(self, segment: str, key: int) -> bool:
        with self._lock:
            keys = self._seen.setdefault(segment, set())
            if key in keys:
                return False
            keys.add(key)
            return True

    def adopt(self, name: str, size: int, room_bytes: int) -> bool:
        """Move an unreadable file here whole; False when there is no room for it or the disk refuses."""
        with self._lock:
            self.corrupt_bytes += size
            self._observer.corrupt(size)
            if self._space() < room_bytes:
                return False
            try:
                self._files.rename(name, f"{QUARANTINE}/{name}.{os.urandom(4).hex()}", dir_fd=self._dir_fd)
            except OSError:
                return False
            self._room = self._space() - room_bytes
            return True

    def _keep(self, name: str, data: bytes) -> None:
        if self._space() < len(data):
            return
        path = f"{QUARANTINE}/{name}"
        kept = self._kept(path)
        if kept == data:
            return  # by an earlier process that met the same damage
        if kept is not None:  # other damage, at the same place of a file that was rewritten since
            path = f"{path}.{os.urandom(4).hex()}"
        try:
            fd = self._files.open(path, CREATE_FLAGS, dir_fd=self._dir_fd)
        except OSError:
            return
        try:
            write_all(self._files, fd, [data], 0)
            self._room = self._space() - len(data)
        except OSError:
            remove_quietly(self._files, self._dir_fd, path)
        finally:
            close_quietly(self._files, fd)

    def _kept(self, path: str) -> bytes | None:
        """Return what is kept under a name; None when nothing is."""
        try:
            fd = open_regular(path, self._dir_fd)
        except OSError:
            return None
        try:
            return read_at(fd, 0, PIECE_BYTES)
        finally:
            os.close(fd)

    def _space(self) -> int:
        """Return the room that is left in bytes; 0 when there is no directory of ours."""
        if self._room is None:
            try:
                self._room = max(LIMIT_BYTES - self._measure(), 0)
            except OSError:
                self._room = 0
        return self._room

    def _measure(self) -> int:
        try:
            os.mkdir(QUARANTINE, DIRECTORY_MODE, dir_fd=self._dir_fd)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(QUARANTINE, dir_fd=self._dir_fd, follow_symlinks=False).st_mode):
                raise
        fd = os.open(QUARANTINE, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._dir_fd)
        try:
            with os.scandir(fd) as entries:
                return sum(entry.stat(follow_symlinks=False).st_blocks * 512 for entry in entries)
        finally:
            os.close(fd)
