"""A disk that forgets: what a power cut may leave of the calls that the spool has made.

:class:`RecordingFiles` does every call for real, inside one directory, and writes down what it did. :class:`Disk` takes
those operations in and knows at any time what is certainly on the disk and what only may be:

- bytes that no later fdatasync or fsync of their file has covered: each write may be there, not be there, or be torn
  between two sectors of 512 bytes;
- names (created, renamed, removed) that no later fsync of their directory has covered: each may have changed or not;
- after an fdatasync or fsync that failed, what it should have made durable counts as clean and is never written again:
  a second one that succeeds proves nothing.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from edge.spool.files import Buffer, Files

SECTOR_BYTES = 512
_inodes = itertools.count(1)
_lock = threading.RLock()
"""One for all that record: they listen to the same system."""


@dataclass(frozen=True, slots=True)
class Op:
    """One thing that was done to the disk. Paths are relative to the directory that is watched."""

    kind: str
    """mkdir, create, rename, unlink; write, grow, cut; sync, failed_sync, sync_dir, failed_sync_dir; note."""
    path: str = ""
    other: str = ""
    """The new name of a rename."""
    inode: int = 0
    offset: int = 0
    """Where a write starts; the size for grow and cut."""
    data: bytes = b""
    note: tuple[object, ...] = ()
    """What the test says of this moment; does nothing to the disk."""


@dataclass(slots=True, eq=False)
class Change:
    """An operation that may or may not survive a power cut."""

    op: Op
    is_settled: bool = False
    """It survives, and waits here only because of a doubtful one before it."""
    is_doubtful: bool = False
    """A sync of it has failed: no other one will reach it."""


Kept = list[Change]
Image = dict[str, bytes | None]
"""Path -> content; None for a directory."""


class Disk:
    """What is certainly on the disk, and what may be."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        """Path -> inode, 0 for a directory."""
        self.contents: dict[int, bytes] = {}
        self.changes: list[Change] = []
        self.notes: list[tuple[object, ...]] = []

    @classmethod
    def of(cls, image: Image) -> Disk:
        """Return a disk on which everything is durable."""
        disk = cls()
        for path, content in image.items():
            disk.names[path] = 0 if content is None else next(_inodes)
            if content is not None:
                disk.contents[disk.names[path]] = content
        return disk

    def copy(self) -> Disk:
        """Return the disk as it is now; it does not change with this one."""
        other = Disk()
        other.names, other.contents = dict(self.names), dict(self.contents)
        other.changes = [replace(change) for change in self.changes]
        other.notes = list(self.notes)
        return other

    def apply(self, op: Op) -> None:
        """Take in what was done."""
        if op.kind == "note":
            self.notes.append(op.note)
        elif op.kind in ("sync", "failed_sync"):
            self._settle(lambda other: other.inode == op.inode and not other.path, doubtful=op.kind != "sync")
        elif op.kind in ("sync_dir", "failed_sync_dir"):
            self._settle(
                lambda other: bool(other.path) and _parent(other.path) == op.path, doubtful=op.kind != "sync_dir"
            )
        else:
            self.changes.append(Change(op))

    def _settle(self, concerns: Callable[[Op], bool], *, doubtful: bool) -> None:
        rest: list[Change] = []
        blocked = False
        for change in self.changes:
            if concerns(change.op):
                if doubtful:
                    change.is_doubtful = change.is_doubtful or not change.is_settled
                elif not change.is_doubtful:
                    change.is_settled = True
                if change.is_settled and not blocked:
                    _apply(change.op, self.names, self.contents)
                    continue
                blocked = True
            rest.append(change)
        self.changes = rest

    def names_now(self) -> dict[str, int]:
        """Return the inodes of the files that a running system sees."""
        names, contents = dict(self.names), dict(self.contents)
        for change in self.changes:
            _apply(change.op, names, contents)
        return {path: inode for path, inode in names.items() if inode}

    def optional(self) -> Kept:
        """Return the changes that may be missing after a power cut."""
        return [change for change in self.changes if not change.is_settled]

    def image(self, kept: Collection[Change], instead: Change | None = None, pieces: Sequence[Op] = ()) -> Image:
        """Return what a power cut leaves when of the optional changes only `kept` made it to the disk.

        Of the change `instead`, only `pieces` did.
        """
        names, contents = dict(self.names), dict(self.contents)
        chosen = set(map(id, kept))
        for change in self.changes:
            if change is instead:
                for piece in pieces:
                    _apply(piece, names, contents)
            elif change.is_settled or id(change) in chosen:
                _apply(change.op, names, contents)
        image: Image = {}
        for path in sorted(names):
            parent = _parent(path)
            if not parent or image.get(parent, b"") is None:
                image[path] = contents.get(names[path], b"") if names[path] else None
        return image

    def images(self) -> Iterator[tuple[str, Callable[[], Image]]]:
        """Yield what a power cut at this moment may leave, in words and as a function that makes the image.

        Nothing, everything, all but one change, one change alone, a torn write. To be used up before the next `apply`.
        """
        optional = self.optional()
        yield "nothing kept", partial(self.image, ())
        if not optional:
            return
        yield "all kept", partial(self.image, optional)
        for change in optional:
            yield (
                f"all but {_words(change.op)}",
                partial(self.image, [other for other in optional if other is not change]),
            )
            if len(optional) > 2:
                yield f"only {_words(change.op)}", partial(self.image, [change])
        for change in optional:
            if change.op.kind == "write":
                for words, pieces in torn(change.op):
                    yield f"{words} of {_words(change.op)}", partial(self.image, optional, change, pieces)


def torn(op: Op) -> Iterator[tuple[str, list[Op]]]:
    """Yield what may be left of a write that the disk did in part: a beginning, an end, or all but one sector."""
    edges = [
        op.offset,
        *range(op.offset // SECTOR_BYTES * SECTOR_BYTES + SECTOR_BYTES, op.offset + len(op.data), SECTOR_BYTES),
    ]
    cuts = [edge - op.offset for edge in edges]
    for cut in cuts[1:]:
        yield f"the first {cut} bytes", [_piece(op, 0, cut)]
        yield f"all from byte {cut} on", [_piece(op, cut, len(op.data))]
    for start, end in itertools.pairwise(cuts[1:]):
        yield f"all but bytes {start} to {end}", [_piece(op, 0, start), _piece(op, end, len(op.data))]


def _piece(op: Op, start: int, end: int) -> Op:
    return replace(op, offset=op.offset + start, data=op.data[start:end])


def _words(op: Op) -> str:
    place = f"{op.path} {op.other}".strip() or f"inode {op.inode} at {op.offset}"
    return f"{op.kind} {place}"


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _apply(op: Op, names: dict[str, int], contents: dict[int, bytes]) -> None:
    if op.kind in ("mkdir", "create"):
        names[op.path] = op.inode
    elif op.kind == "rename":
        if names.get(op.path) == op.inode:
            del names[op.path]
        names[op.other] = op.inode
    elif op.kind == "unlink":
        if names.get(op.path) == op.inode:
            del names[op.path]
    else:
        contents[op.inode] = _changed(contents.get(op.inode, b""), op)


def _changed(content: bytes, op: Op) -> bytes:
    if op.kind == "grow":
        return content.ljust(op.offset, b"\0")
    if op.kind == "cut":
        return content[: op.offset].ljust(op.offset, b"\0")
    return content[: op.offset].ljust(op.offset, b"\0") + op.data + content[op.offset + len(op.data) :]


def image_of(root: Path) -> Image:
    """Return what lies under a directory now."""
    image: Image = {}
    for path in sorted(root.rglob("*")):
        if not path.is_symlink():
            image[str(path.relative_to(root))] = None if path.is_dir() else path.read_bytes()
    return image


def materialise(image: Image, root: Path) -> None:
    """Write an image into an empty directory."""
    for path, content in image.items():
        if content is None:
            (root / path).mkdir()
        else:
            fd = os.open(root / path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.write(fd, content)
            finally:
                os.close(fd)


@contextmanager
def _listening() -> Iterator[list[int]]:
    """Yield a list that gets the descriptors the system was asked to sync: a sync that is only claimed is none."""
    heard: list[int] = []
    fdatasync, fsync = os.fdatasync, os.fsync

    def listen(call: Callable[[int], None]) -> Callable[[int], None]:
        return lambda fd: (call(fd), heard.append(fd))[0]

    os.fdatasync, os.fsync = listen(fdatasync), listen(fsync)
    try:
        yield heard
    finally:
        os.fdatasync, os.fsync = fdatasync, fsync


class RecordingFiles(Files):
    """Does the calls for real and hands what they did, in order, to `take`.

    Watches the directory `root` and what is under it. `before` is called ahead of every call with its name and may
    raise what the call is to fail with; `largest_write` bounds what one pwritev takes.
    """

    def __init__(self, root: Path, take: Callable[[Op], None], inodes: dict[str, int] | None = None) -> None:
        self._prefix = str(root.resolve())
        self._take = take
        self._lock = _lock
        self._inodes = dict(inodes or {})
        self._fds: dict[int, int | str] = {}
        """Descriptor -> inode of a file, or path of a directory."""
        self.before: Callable[[str], None] = lambda name: None
        self.largest_write: int | None = None

    def note(self, *values: object) -> None:
        """Put down what the test knows at this moment."""
        with self._lock:
            self._take(Op("note", note=values))

    def _path(self, name: str, dir_fd: int) -> str:
        path = os.path.normpath(os.readlink(f"/proc/self/fd/{dir_fd}") + "/" + name)  # noqa: PTH115 - called all the time
        return path.removeprefix(self._prefix).removeprefix("/")

    def mkdir(self, path: Path, mode: int = 0o700) -> None:
        self.before("mkdir")
        with self._lock:
            super().mkdir(path, mode)
            self._take(Op("mkdir", str(path.absolute()).removeprefix(self._prefix).removeprefix("/")))

    def open(self, name: str, flags: int, mode: int = 0o600, *, dir_fd: int) -> int:
        self.before("open")
        with self._lock:
            path = self._path(name, dir_fd)
            fd = super().open(name, flags, mode, dir_fd=dir_fd)
            if flags & os.O_DIRECTORY:
                self._fds[fd] = path
                return fd
            if path not in self._inodes:
                self._inodes[path] = next(_inodes)
                self._take(Op("create", path, inode=self._inodes[path]))
            self._fds[fd] = self._inodes[path]
            return fd

    def _inode(self, fd: int) -> int:
        inode = self._fds[fd]
        assert isinstance(inode, int)
        return inode

    def fallocate(self, fd: int, size: int) -> None:
        self.before("fallocate")
        with self._lock:
            super().fallocate(fd, size)
            self._take(Op("grow", inode=self._inode(fd), offset=size))

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self.before("pwritev")
        with self._lock:
            data = b"".join(buffers)[: self.largest_write]
            written = os.pwrite(fd, data, offset)
            self._take(Op("write", inode=self._inode(fd), offset=offset, data=data[:written]))
            return written

    def fdatasync(self, fd: int) -> None:
        self._sync("fdatasync", fd, super().fdatasync)

    def fsync(self, fd: int) -> None:
        self._sync("fsync", fd, super().fsync)

    def _sync(self, name: str, fd: int, call: Callable[[int], None]) -> None:
        what = self._fds[fd]
        done, failed = (
            (Op("sync_dir", what), Op("failed_sync_dir", what))
            if isinstance(what, str)
            else (Op("sync", inode=what), Op("failed_sync", inode=what))
        )
        try:
            self.before(name)
            with self._lock:
                with _listening() as heard:
                    call(fd)
                if fd in heard:
                    self._take(done)
        except OSError:
            with self._lock:
                self._take(failed)
            raise

    def ftruncate(self, fd: int, size: int) -> None:
        self.before("ftruncate")
        with self._lock:
            super().ftruncate(fd, size)
            self._take(Op("cut", inode=self._inode(fd), offset=size))

    def rename(self, old: str, new: str, *, dir_fd: int) -> None:
        self.before("rename")
        with self._lock:
            super().rename(old, new, dir_fd=dir_fd)
            before, after = self._path(old, dir_fd), self._path(new, dir_fd)
            inode = self._inodes.pop(before)
            self._inodes[after] = inode
            self._take(Op("rename", before, after, inode))

    def unlink(self, name: str, *, dir_fd: int) -> None:
        self.before("unlink")
        with self._lock:
            super().unlink(name, dir_fd=dir_fd)
            path = self._path(name, dir_fd)
            self._take(Op("unlink", path, inode=self._inodes.pop(path)))

    def close(self, fd: int) -> None:
        with self._lock:
            self._fds.pop(fd, None)
            super().close(fd)
