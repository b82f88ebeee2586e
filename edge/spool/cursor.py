"""Cursors: how far a sink is, durable in 72 bytes that are never written over while they are the best there is.

Each cursor has two files, ``cursor-<name>.a`` and ``.b``, allocated when it is made and written in turn and in place: a
full disk does not stop them, and a torn write leaves the other one::

    magic 4 | crc 4 | generation 8 | position 8 | base 8
    | delivered 8 | dead_lettered 8 | skipped 8 | lost 8 | dropped 8

A slot of version 1 ends before `dropped`. It is read as it is; the next `save` writes the other slot in this version.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from struct import Struct

from edge.spool.checksum import crc32
from edge.spool.errors import SpoolFailedError, SpoolFullError
from edge.spool.files import (
    CREATE_FLAGS,
    Files,
    close_quietly,
    create_directory,
    open_directory,
    open_regular,
    read_at,
    remove_quietly,
    sync_directory,
    write_all,
)

_HEAD = Struct("<4sI")
_MAGIC = b"EVC\x02"
_BODY = Struct("<8Q")
_BODIES = {_MAGIC: _BODY, b"EVC\x01": Struct("<7Q")}
SLOT_BYTES = _HEAD.size + _BODY.size
_SUFFIXES = ("a", "b")
_FILE_NAME = re.compile(r"cursor-([A-Za-z0-9][A-Za-z0-9_.-]{0,127})\.[ab]")
_WRITE_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class Cursor:
    """A sink's position and what became of the events before it.

    `position == base + settled_events`, always.
    """

    position: int = 0
    """Number of the first event that is not decided yet."""
    base: int = 0
    """The position the sink started with."""
    delivered: int = 0
    dead_lettered: int = 0
    skipped: int = 0
    lost: int = 0
    dropped: int = 0
    """Given up because the spool was full."""

    @property
    def settled_events(self) -> int:
        """The sum of all that became of events."""
        return self.delivered + self.dead_lettered + self.skipped + self.lost + self.dropped


@dataclass(frozen=True, slots=True)
class _Slot:
    suffix: str = "b"
    generation: int = 0
    cursor: Cursor | None = None


class CursorFile:
    """Keeps one cursor in a directory. Used by one thread at a time.

    Construction makes the two files, so that a full disk cannot stop a cursor later; `save` tries again if that failed.
    """

    def __init__(self, directory: Path, name: str, *, files: Files | None = None) -> None:
        if _FILE_NAME.fullmatch(f"cursor-{name}.a") is None:
            raise ValueError(f"{name!r} cannot be the name of a cursor")
        self._directory = directory
        self._name = name
        self._files = files or Files()
        self._fds: dict[str, int] = {}
        self._best = _Slot()
        self.load()
        self.is_damaged = self._best.cursor is None and _was_written(directory, name)
        """There was a cursor, and neither slot of it can be read. Not the same as a sink that is new."""
        try:
            create_directory(self._files, directory)
            for suffix in _SUFFIXES:
                self._open(suffix)
                self._close(suffix)  # opened again by the first `save`: a cursor that is only looked at holds nothing
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise SpoolFailedError(f"the cursor {name} cannot be kept: {error}") from error

    def load(self) -> Cursor | None:
        """Return the newest cursor that is intact; None when there was never one, or both slots are damaged."""
        self._best = _best_slot(self._directory, self._name)
        return self._best.cursor

    def save(self, cursor: Cursor) -> None:
        """Make a cursor durable; blocks for one fdatasync. After an error the one before is still there.

        Raises `SpoolFullError` only when the files could never be made, `SpoolFailedError` when the disk refuses.
        """
        generation = self._best.generation + 1
        suffix = "b" if self._best.suffix == "a" else "a"
        try:
            fd = self._fds[suffix] if suffix in self._fds else self._open(suffix)
            write_all(self._files, fd, [_pack(generation, cursor)], 0)
            self._files.fdatasync(fd)
        except OSError as error:
            self._close(suffix)  # a descriptor whose fdatasync failed is not asked again
            kind = SpoolFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else SpoolFailedError
            raise kind(f"the cursor {self._name} was not saved: {error.strerror}") from error
        self._best = _Slot(suffix, generation, cursor)

    def close(self) -> None:
        """Close the files. A later `save` opens them again."""
        for suffix in list(self._fds):
            self._close(suffix)

    def _open(self, suffix: str) -> int:
        """Open a slot's file, made if it is not there."""
        dir_fd = open_directory(self._directory)
        try:
            self._fds[suffix] = self._open_slot(dir_fd, f"cursor-{self._name}.{suffix}")
        finally:
            os.close(dir_fd)
        return self._fds[suffix]

    def _open_slot(self, dir_fd: int, name: str) -> int:
        try:
            os.close(open_regular(name, dir_fd))
            fd = self._files.open(name, _WRITE_FLAGS, dir_fd=dir_fd)
            is_new = False
        except FileNotFoundError:
            fd = self._files.open(name, CREATE_FLAGS, dir_fd=dir_fd)
            is_new = True
        try:
            size = os.fstat(fd).st_size
            if size < SLOT_BYTES:  # new, its making was cut short, or of version 1: what is there stays
                write_all(self._files, fd, [bytes(SLOT_BYTES - size)], size)
                self._files.fsync(fd)
                sync_directory(self._files, dir_fd)
        except OSError:
            close_quietly(self._files, fd)
            if is_new:
                remove_quietly(self._files, dir_fd, name)
            raise
        return fd

    def _close(self, suffix: str) -> None:
        fd = self._fds.pop(suffix, None)
        if fd is not None:
            close_quietly(self._files, fd)


def load_cursor(directory: Path, name: str) -> Cursor | None:
    """Return a cursor without making or changing anything."""
    return _best_slot(directory, name).cursor


def cursor_names(directory: Path) -> list[str]:
    """Return the names of the cursors in a directory, sorted; those of sinks that are gone as well."""
    try:
        names = [entry.name for entry in directory.iterdir()]
    except OSError:
        return []
    return sorted({match[1] for match in map(_FILE_NAME.fullmatch, names) if match})


def forget_cursor(directory: Path, name: str) -> bool:
    """Remove a cursor that nobody keeps, for good; return whether there was one. Raises what the disk says."""
    if name not in cursor_names(directory):
        return False
    dir_fd = open_directory(directory)
    try:
        for suffix in _SUFFIXES:
            with suppress(FileNotFoundError):
                os.unlink(f"cursor-{name}.{suffix}", dir_fd=dir_fd)
        os.fsync(dir_fd)
    finally:
        os.close(dir_fd)
    return True


def _pack(generation: int, cursor: Cursor) -> bytes:
    body = _BODY.pack(generation, *astuple(cursor))
    return _HEAD.pack(_MAGIC, crc32(body)) + body


def _best_slot(directory: Path, name: str) -> _Slot:
    """Return the intact slot with the highest generation; an empty one without any."""
    best = _Slot()
    try:
        dir_fd = open_directory(directory)
    except OSError:
        return best
    try:
        for suffix in _SUFFIXES:
            slot = _read_slot(dir_fd, name, suffix)
            if slot.generation > best.generation:
                best = slot
    finally:
        os.close(dir_fd)
    return best


def _was_written(directory: Path, name: str) -> bool:
    """Return whether a slot holds anything: slots that were made and never written are all zeros."""
    try:
        dir_fd = open_directory(directory)
    except OSError:
        return False
    try:
        return any(any(_slot_bytes(dir_fd, name, suffix)) for suffix in _SUFFIXES)
    finally:
        os.close(dir_fd)


def _read_slot(dir_fd: int, name: str, suffix: str) -> _Slot:
    data = _slot_bytes(dir_fd, name, suffix)
    body = _BODIES.get(data[:4])
    if body is None or len(data) < _HEAD.size + body.size:
        return _Slot()
    _, crc = _HEAD.unpack_from(data)
    if crc != crc32(data[_HEAD.size : _HEAD.size + body.size]):
        return _Slot()
    generation, *values = body.unpack_from(data, _HEAD.size)
    return _Slot(suffix, generation, Cursor(*values))


def _slot_bytes(dir_fd: int, name: str, suffix: str) -> bytes:
    """Return what a slot holds; nothing when it is not there or is not a regular file."""
    try:
        fd = open_regular(f"cursor-{name}.{suffix}", dir_fd)
    except OSError:
        return b""
    try:
        return read_at(fd, 0, SLOT_BYTES)
    finally:
        os.close(fd)
