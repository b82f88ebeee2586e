"""Ledgers: append-only files in which the parties of a test write down what they did, each in a process of its own.

A line is ``<event_id> <sha256 of the canonical event> <monotonic seconds>``; it is written with one ``write`` to a file
opened with ``O_APPEND``, so that a line is there whole or not at all whatever dies next. The monotonic clock is the
machine's, the same in every process.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import orjson

_BLOCK_BYTES = 1 << 18
_OUT_OF_ORDER_SECS = 0.5
"""By how much at most a line is older than one before it: a writer takes the time before it writes."""


class Entry(NamedTuple):
    """One line of a ledger."""

    event_id: str
    digest: str
    at: float


class Ledger:
    """Writes lines. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def __del__(self) -> None:
        os.close(self._fd)

    def write(self, entries: Iterable[tuple[str, str]]) -> None:
        """Append entries, in one piece."""
        now = time.monotonic()
        os.write(self._fd, "".join(f"{event_id} {digest} {now:.6f}\n" for event_id, digest in entries).encode())


def read(path: Path, start: int = 0) -> Iterator[Entry]:
    """Yield the entries of a ledger, from a byte of it on; a line that is being written is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(start)
        lines = file.read().split(b"\n")[:-1]
    for line in lines:
        event_id, digest, at = line.decode().split(" ")
        yield Entry(event_id, digest, float(at))


def recent(path: Path, since: float) -> Iterator[Entry]:
    """Yield the entries that were written from a moment on; reads the end of the file alone."""
    if not path.exists():
        return
    lines: list[bytes] = []
    with path.open("rb") as file:
        size = start = file.seek(0, os.SEEK_END)
        while start:
            start = max(start - _BLOCK_BYTES, 0)
            file.seek(start)
            lines = file.read(size - start).split(b"\n")[1 if start else 0 : -1]
            if lines and float(lines[0].split(b" ")[2]) < since - _OUT_OF_ORDER_SECS:
                break
    for line in lines:
        event_id, digest, at = line.decode().split(" ")
        if float(at) >= since:
            yield Entry(event_id, digest, float(at))


def digest_of(event: object) -> str:
    """Return the digest of an event, whatever the order of its fields."""
    return hashlib.sha256(orjson.dumps(event, option=orjson.OPT_SORT_KEYS)).hexdigest()
