"""The file system as the spool uses it: always relative to an open directory, never through a link."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

Buffer = bytes | memoryview

READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
"""Non-blocking, because opening a FIFO for reading would wait for a writer; regular files do not mind."""
CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
FILE_MODE = 0o600
DIRECTORY_MODE = 0o700

_IOV_MAX = min(os.sysconf("SC_IOV_MAX"), 1024)
_PAGE_BYTES = 4096


class Files:
    """The system calls of the write path, in one object so that they can be recorded or made to fail.

    Names are relative to `dir_fd`. Every method raises `OSError` as the system does.
    """

    def mkdir(self, path: Path, mode: int = DIRECTORY_MODE) -> None:
        """Make a directory; one that is there is left as it is."""
        path.mkdir(mode, exist_ok=True)

    def open(self, name: str, flags: int, mode: int = FILE_MODE, *, dir_fd: int) -> int:
        """Open a file and return its descriptor."""
        return os.open(name, flags, mode, dir_fd=dir_fd)

    def fallocate(self, fd: int, size: int) -> None:
        """Allocate the first `size` bytes of a file, so that writing them cannot run out of room."""
        os.posix_fallocate(fd, 0, size)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Write buffers at an offset; returns how many bytes were taken, which may be fewer than given."""
        return os.pwritev(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        """Make a file's bytes durable."""
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        """Make a file, or a directory's entries, durable."""
        os.fsync(fd)

    def ftruncate(self, fd: int, size: int) -> None:
        """Cut a file to `size` bytes."""
        os.ftruncate(fd, size)

    def rename(self, old: str, new: str, *, dir_fd: int) -> None:
        """Give a file another name; what had that name is gone."""
        os.rename(old, new, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)

    def unlink(self, name: str, *, dir_fd: int) -> None:
        """Remove a name."""
        os.unlink(name, dir_fd=dir_fd)

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)


def write_all(files: Files, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
    """Write all buffers at `offset`, however little the system takes at once; returns the offset behind them."""
    for start in range(0, len(buffers), _IOV_MAX):
        part = buffers[start : start + _IOV_MAX]
        left = sum(map(len, part))
        while left:
            written = files.pwritev(fd, part, offset)
            if written <= 0:
                raise OSError(5, "the system took no byte")
            offset += written
            left -= written
            if left:
                part = _rest(part, written)
    return offset


def _rest(buffers: Sequence[Buffer], written: int) -> list[Buffer]:
    """Return what is left of `buffers` after a short write of `written` bytes."""
    for index, buffer in enumerate(buffers):
        if written < len(buffer):
            return [memoryview(buffer)[written:], *buffers[index + 1 :]]
        written -= len(buffer)
    return []


def sync_directory(files: Files, dir_fd: int) -> None:
    """Make the entries of a directory durable, through a descriptor of its own: one that failed is never used again."""
    fd = files.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        files.fsync(fd)
    finally:
        files.close(fd)


def write_durably(files: Files, dir_fd: int, name: str, data: bytes) -> None:
    """Replace a small file as a whole: temporary file, fsync, rename, fsync of the directory."""
    temporary = f"{name}.tmp"
    remove_quietly(files, dir_fd, temporary)
    fd = files.open(temporary, CREATE_FLAGS, dir_fd=dir_fd)
    try:
        try:
            write_all(files, fd, [data], 0)
            files.fsync(fd)
        finally:
            files.close(fd)
        files.rename(temporary, name, dir_fd=dir_fd)
    except OSError:
        remove_quietly(files, dir_fd, temporary)
        raise
    sync_directory(files, dir_fd)


def remove_quietly(files: Files, dir_fd: int, name: str) -> None:
    """Remove a name if that is possible."""
    try:
        files.unlink(name, dir_fd=dir_fd)
    except OSError:
        return


def close_quietly(files: Files, fd: int) -> None:
    """Close a descriptor; an error of its file was either reported before or concerns nobody any more."""
    try:
        files.close(fd)
    except OSError:
        return


def open_directory(path: Path) -> int:
    """Open a directory for use as `dir_fd`."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def open_directory_again(dir_fd: int) -> int:
    """Open a directory that is open already once more: a descriptor that does not end with the other one."""
    return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)


def create_directory(files: Files, path: Path) -> None:
    """Create a directory and its missing parents, readable by the owner alone; one that exists stays as it is.

    What is made survives a power cut: a file is no more durable than the names of the directories above it.
    """
    missing = [path, *path.parents]
    for directory in reversed([entry for entry in missing if not entry.exists()]):
        files.mkdir(directory)
        parent_fd = open_directory(directory.parent)
        try:
            sync_directory(files, parent_fd)
        finally:
            os.close(parent_fd)


def open_regular(name: str, dir_fd: int) -> int:
    """Open a file for reading; raises `OSError` for links, FIFOs, devices and directories as well."""
    fd = os.open(name, READ_FLAGS, dir_fd=dir_fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(22, "not a regular file", name)
    return fd


def read_at(fd: int, offset: int, size: int) -> bytes:
    """Read up to `size` bytes at `offset`. Pages that the disk cannot give back are read as zeros."""
    try:
        return os.pread(fd, size, offset)
    except OSError:
        return b"".join(_read_pages(fd, offset, size))


def _read_pages(fd: int, offset: int, size: int) -> list[bytes]:
    """Read page by page, with zeros for those that fail."""
    pages = []
    end = min(offset + size, os.fstat(fd).st_size)
    while offset < end:
        length = min(_PAGE_BYTES - offset % _PAGE_BYTES, end - offset)
        try:
            page = os.pread(fd, length, offset)
        except OSError:
            page = bytes(length)
        if not page:
            break
        pages.append(page)
        offset += len(page)
    return pages
