"""The lock of a log's directory: one owner at a time, for as long as its process lives."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge.spool.errors import SpoolError, SpoolFailedError, SpoolLockedError
from edge.spool.files import FILE_MODE, open_directory
from edge.spool.recovery import check_meta, discover

LOCK = "LOCK"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep every other process from opening the log in directory `path`; `SpoolLockedError` when one has it open."""
    dir_fd = open_directory(path)
    try:
        lock_fd = take_lock(dir_fd, path)
    finally:
        os.close(dir_fd)
    try:
        yield
    finally:
        os.close(lock_fd)


def take_lock(dir_fd: int, path: Path) -> int:
    """Lock the directory for the life of the returned descriptor; the system ends the lock with the process."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(LOCK, flags, dir_fd=dir_fd)
    except FileNotFoundError:
        check_meta(dir_fd)  # before anything is created: what a newer version wrote stays as it is
        discover(dir_fd)
        fd = os.open(LOCK, flags | os.O_CREAT, FILE_MODE, dir_fd=dir_fd)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise SpoolFailedError(f"{path / LOCK} is not a regular file; remove it")
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise SpoolLockedError(f"{path} belongs to another process") from error
    except (OSError, SpoolError):
        os.close(fd)
        raise
    return fd
