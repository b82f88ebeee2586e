"""Directories and names under one root, reached without following a symbolic link and without overwriting anything."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

FILE_MODE = 0o640
DIRECTORY_MODE = 0o750

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES}


class OutsideRootError(Exception):
    """Something below the root is a symbolic link, or a file where a directory belongs."""


def make_root(root: Path, *, durable: bool) -> None:
    """Create the root and the directories above it that are missing. `OSError` when one cannot be."""
    missing = []
    path = root.absolute()
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for path in reversed(missing):
        path.mkdir(DIRECTORY_MODE, exist_ok=True)
        if durable:
            sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, _DIRECTORY_FLAGS)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(root: Path, parts: Sequence[str], *, durable: bool) -> int:
    """Open a directory below the root, creating what is missing, and return its descriptor; the caller closes it.

    `OutsideRootError` when a part is a symbolic link or no directory: nothing below the root may lead out of it.
    """
    here = os.open(root, _DIRECTORY_FLAGS)
    try:
        for part in parts:
            with suppress(FileExistsError):
                os.mkdir(part, DIRECTORY_MODE, dir_fd=here)
            if durable:  # also when it exists: whoever made it may have been killed before this
                os.fsync(here)
            below = open_directory(here, part)
            os.close(here)
            here = below
    except BaseException:
        os.close(here)
        raise
    return here


def open_directory(parent: int, name: str) -> int:
    """Open one directory below an open one; `OutsideRootError` when the name is a link or no directory."""
    try:
        return os.open(name, _DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise OutsideRootError(f"{name} is a symbolic link or not a directory") from error
        raise


def create_file(directory: int, name: str) -> int | None:
    """Create and lock a file and return its descriptor for appending; None when the name is taken."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, FILE_MODE, dir_fd=directory)
    except FileExistsError:
        return None
    return descriptor if _lock(descriptor, directory, name) else None


@contextmanager
def leftover(directory: int, name: str) -> Iterator[int | None]:
    """Open and lock a file that nobody writes any more; None when somebody does, or when it is no regular file."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOENT, errno.ENXIO, errno.EISDIR):
            yield None
            return
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        yield None
    elif not _lock(descriptor, directory, name):
        yield None
    else:
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _lock(descriptor: int, directory: int, name: str) -> bool:
    """Lock a file that was just opened and make sure it still has its name; else close it and return False.

    The lock tells a file being written from what a killed process left, also within one process: a reload opens the
    new sink before it closes the old one.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        named = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if os.path.samestat(named, os.fstat(descriptor)):
            return True
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return False


def exists(directory: int, name: str) -> bool:
    """Say whether a name is taken, by whatever it is."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def rename_without_overwriting(directory: int, old: str, new: str) -> bool:
    """Give a file its new name; False when that name belongs to another file, which is left alone."""
    try:
        # rename(2) would replace an existing file; link(2) refuses, in one step.
        os.link(old, new, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    except FileExistsError:
        ours = os.stat(old, dir_fd=directory, follow_symlinks=False)
        theirs = os.stat(new, dir_fd=directory, follow_symlinks=False)
        if not os.path.samestat(ours, theirs):
            return False  # else: a killed process had come as far as linking it
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if exists(directory, new):
            return False
        os.rename(old, new, src_dir_fd=directory, dst_dir_fd=directory)
        return True
    os.unlink(old, dir_fd=directory)
    return True
