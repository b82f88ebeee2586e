"""Files of events below one root: appended to in whole batches, rotated by size and age, repaired after a kill.

Everything here blocks and belongs to one thread.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from .codecs import CODECS, Codec
from .confined import (
    OutsideRootError,
    create_file,
    exists,
    leftover,
    make_directory,
    make_root,
    open_directory,
    rename_without_overwriting,
)

log = logging.getLogger(__name__)

OPEN_SUFFIX: Final = ".open"
"""Ends the name of a file that is still written to."""
MAX_OPEN_FILES: Final = 16
"""Partitions held open at one time, two descriptors each; the one that was not used for longest is closed first."""

Parts = tuple[str, ...]
"""The directories of a partition below the root, for example ``("dt=2026-11-23", "hour=20")``; empty for the root."""

PARTITION_NAMES: Final = (re.compile(r"dt=\d{4}-\d\d-\d\d"), re.compile(r"hour=\d\d"))
"""What the directories of the first and of the second level are called."""


@dataclass(slots=True)
class OpenFile:
    """A file being written, and where its last complete batch ends."""

    parts: Parts
    name: str
    """The name it has when it is closed."""
    directory: int
    descriptor: int
    opened_at: float
    """Of the monotonic clock."""
    good_bytes: int = 0


class SyncError(OSError):
    """The disk did not confirm what was written; the descriptor cannot be trusted any more."""


class PartitionedFiles:
    """The files of one sink. `name` begins every file name, so that two sinks may share a root.

    Every `OSError` and `OutsideRootError` leaves whole batches in the files; see `append` for which.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        *,
        codec: Codec,
        max_bytes: int,
        max_age_secs: float,
        durable: bool,
        monotonic: Callable[[], float],
    ) -> None:
        self._root = root
        self._name = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:64] or "events"
        self._codec = codec
        self._max_bytes = max_bytes
        self._max_age_secs = max_age_secs
        self._durable = durable
        self._monotonic = monotonic
        self._files: dict[Parts, OpenFile] = {}  # the least recently used first
        self._abandoned = False
        extensions = "|".join(re.escape(codec.extension) for codec in CODECS.values())
        self._own = re.compile(rf"{re.escape(self._name)}-\d{{8}}T\d{{6}}Z-\d+({extensions}){re.escape(OPEN_SUFFIX)}")

    def open(self) -> None:
        """Create the root where it is missing and publish what a killed process left open."""
        make_root(self._root, durable=self._durable)
        self.repair()

    def append(self, lines: Mapping[Parts, Sequence[bytes]]) -> None:
        """Append the lines to the files of their partitions. They are durable when this returns (unless told not to).

        When a write fails, the files of the partitions in hand end where they ended before. Of a batch with more than
        `MAX_OPEN_FILES` partitions (events of as many hours: a replay) those that were complete before keep their
        lines; they may be closed by then. Their lines come again with the retry.
        """
        groups = list(lines.items())
        # Never more partitions at once than may be open: what one slice has written is complete before the next.
        for start in range(0, len(groups), MAX_OPEN_FILES):
            self._append_slice(groups[start : start + MAX_OPEN_FILES])

    def expire(self) -> None:
        """Close the files that are open for longer than they may be. Never raises `OSError`."""
        now = self._monotonic()
        for file in list(self._files.values()):
            if now - file.opened_at >= self._max_age_secs:
                self._finish(file)
        if self._abandoned:
            with suppress(OSError):
                self.repair()

    def close(self) -> None:
        """Close every file and give it its final name. Never raises `OSError`."""
        for file in list(self._files.values()):
            self._finish(file)

    def repair(self) -> None:
        """Cut what is torn off the files a killed process left open, and give them their final names.

        A file that cannot be repaired is left and logged; only an unreadable root raises `OSError`.
        """
        self._abandoned = False
        for parts, name in list(self._leftovers()):
            try:
                directory = make_directory(self._root, parts, durable=False)
                try:
                    self._repair(directory, name)
                finally:
                    os.close(directory)
            except (OSError, OutsideRootError) as error:
                log.warning("left a file of an earlier run as it is: %s: %s", "/".join((*parts, name)), error)

    def _append_slice(self, groups: Sequence[tuple[Parts, Sequence[bytes]]]) -> None:
        wanted = {parts for parts, _ in groups}
        touched: list[tuple[OpenFile, int]] = []
        try:
            for parts, lines in groups:
                data = self._codec.compress(b"\n".join((*lines, b"")))
                file = self._file_for(parts, len(data), wanted)
                touched.append((file, len(data)))
                _write_all(file.descriptor, data)
            for file, _ in touched:
                self._sync(file.descriptor)
        except BaseException as error:
            for file, _ in touched:
                self._take_back(file, error)
            raise
        for file, n_bytes in touched:
            file.good_bytes += n_bytes
        for file, _ in touched:
            if file.good_bytes >= self._max_bytes:
                self._finish(file)

    def _file_for(self, parts: Parts, n_bytes: int, wanted: set[Parts]) -> OpenFile:
        """Return the open file of a partition that has room for so many bytes, opening one if need be."""
        file = self._files.pop(parts, None)
        if file is not None:
            self._files[parts] = file  # now the most recently used
            if os.fstat(file.descriptor).st_nlink == 0:
                self._forget(file)  # somebody deleted it; nobody would ever find what goes in there
            elif file.good_bytes and file.good_bytes + n_bytes > self._max_bytes:
                self._finish(file)
            else:
                return file
        idle = [other for key, other in self._files.items() if key not in wanted]
        n_open = len(self._files)
        for other in idle[: max(0, n_open + len(wanted) - MAX_OPEN_FILES)]:
            self._finish(other)
        self._files[parts] = file = self._create(parts)
        return file

    def _create(self, parts: Parts) -> OpenFile:
        """Create and lock the next file of a partition, its name durable."""
        directory = make_directory(self._root, parts, durable=self._durable)
        try:
            name, descriptor = self._take_name(directory)
        except BaseException:
            os.close(directory)
            raise
        file = OpenFile(parts, name, directory, descriptor, self._monotonic())
        try:
            self._sync_names(directory)
        except OSError:
            self._discard(file)
            raise
        return file

    def _take_name(self, directory: int) -> tuple[str, int]:
        """Create a file under the first number that is free and return its final name and its descriptor."""
        stem = f"{self._name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        number = 1
        while True:
            name = f"{stem}-{number}{self._codec.extension}"
            if not exists(directory, name):
                descriptor = create_file(directory, name + OPEN_SUFFIX)
                if descriptor is not None:
                    return name, descriptor
            number += 1

    def _take_back(self, file: OpenFile, error: BaseException) -> None:
        """Cut a file back to its last complete batch after a failed write or sync."""
        try:
            os.ftruncate(file.descriptor, file.good_bytes)
        except OSError:
            self._abandon(file)
            return
        if file.good_bytes == 0:
            self._discard(file)
        elif isinstance(error, SyncError):
            # After a failed sync the kernel takes the pages for clean: a second sync of this file would lie.
            self._abandon(file)
        elif isinstance(error, OSError) and error.errno == errno.EFBIG:
            self._finish(file)

    def _finish(self, file: OpenFile) -> None:
        """Close a file and give it its final name. What fails is logged: the events in it are safe."""
        try:
            self._publish(file.directory, file.name)
        except OSError as error:
            log.warning("a finished file keeps its %s name for now: %s: %s", OPEN_SUFFIX, file.name, error)
            self._abandoned = True
        self._forget(file)

    def _publish(self, directory: int, name: str) -> None:
        """Take the suffix off a file's name. When that name is taken, the next free number is used."""
        old = name + OPEN_SUFFIX
        stem, number, extension = _split(name)
        while not rename_without_overwriting(directory, old, name):
            number += 1
            name = f"{stem}-{number}{extension}"
        self._sync_names(directory)

    def _discard(self, file: OpenFile) -> None:
        """Delete a file without a complete batch."""
        with suppress(OSError):
            os.unlink(file.name + OPEN_SUFFIX, dir_fd=file.directory)
        self._forget(file)

    def _abandon(self, file: OpenFile) -> None:
        """Let go of a file as it is; it is repaired later, as if this process had been killed."""
        self._abandoned = True
        self._forget(file)

    def _forget(self, file: OpenFile) -> None:
        if self._files.get(file.parts) is file:
            del self._files[file.parts]
        for descriptor in (file.descriptor, file.directory):
            with suppress(OSError):  # a late write error; every acknowledged batch was synced before
                os.close(descriptor)

    def _leftovers(self) -> Iterator[tuple[Parts, str]]:
        """Yield the partition and name of every file under the root that bears this sink's name and the suffix."""
        root = make_directory(self._root, (), durable=False)
        try:
            yield from self._search(root, ())
        finally:
            os.close(root)

    def _search(self, directory: int, parts: Parts) -> Iterator[tuple[Parts, str]]:
        with os.scandir(directory) as entries:
            names = sorted(entry.name for entry in entries)
        for name in names:
            if self._own.fullmatch(name):
                yield parts, name
            elif len(parts) < len(PARTITION_NAMES) and PARTITION_NAMES[len(parts)].fullmatch(name):
                try:
                    below = open_directory(directory, name)
                except (OSError, OutsideRootError):
                    continue  # not ours to look into; an append to this partition says what is wrong
                try:
                    yield from self._search(below, (*parts, name))
                finally:
                    os.close(below)

    def _repair(self, directory: int, name: str) -> None:
        with leftover(directory, name) as descriptor:
            if descriptor is None:
                return
            final = name.removesuffix(OPEN_SUFFIX)
            codec = next(codec for codec in CODECS.values() if final.endswith(codec.extension))
            size = os.fstat(descriptor).st_size
            intact = codec.intact_bytes(descriptor)
            if intact < size:
                log.info("cut a torn end of %d bytes off %s", size - intact, name)
                os.ftruncate(descriptor, intact)
            if intact == 0:
                os.unlink(name, dir_fd=directory)
                return
            self._sync(descriptor)
            self._publish(directory, final)

    def _sync(self, descriptor: int) -> None:
        if self._durable:
            try:
                os.fdatasync(descriptor)
            except OSError as error:
                raise SyncError(error.errno, error.strerror) from error

    def _sync_names(self, directory: int) -> None:
        if self._durable:
            os.fsync(directory)


def _split(name: str) -> tuple[str, int, str]:
    """Return stem, number and extension of ``<stem>-<number><extension>``."""
    base, dot, extension = name.rpartition(".ndjson")
    stem, _, number = base.rpartition("-")
    return stem, int(number), dot + extension


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
