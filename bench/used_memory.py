"""Memory that was used before, as on a machine that has been up for a while.

A virtual machine may get each page of its memory from the host when it first touches it, and give it back when it is
free. Whoever makes the page cache grow, which is what writing files does, then pays for that: on the machine this was
found on 2 ms of processor time a MiB, twenty times what the copying takes. A machine that has run for hours has hardly
any free memory; its new pages come from the old ones of the page cache. To measure servers as they run there, the free
memory is filled with the pages of a file that holds nothing, before each of them starts.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

PIECE_BYTES: Final = 4 << 20
PROBES: Final = 64
"""So many pieces are written to see what the first use of memory costs."""
FLAT_PIECES: Final = 64
"""After so many pieces that did not make free memory less there is no more to be had."""


class UsedMemory:
    """Fills the free memory, with `most_bytes` or all of it.

    `folder` is on a disk, not in memory (tmpfs), whose files have no page cache; the file takes no room there.
    """

    def __init__(self, folder: Path, most_bytes: int | None = None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by the context
        self._position = 0
        all_bytes = memory_bytes("MemTotal")
        self._end = max(1, min(most_bytes or all_bytes, all_bytes) // PIECE_BYTES) * PIECE_BYTES
        os.ftruncate(self._file.fileno(), self._end)

    def fill(self) -> None:
        """Use all memory that is free. Takes seconds; the first time up to two a GiB."""
        piece = bytearray(PIECE_BYTES)
        least, n_flat = memory_bytes("MemFree"), 0
        while n_flat < FLAT_PIECES:
            # Round and round: what was read longest ago has left the cache by then.
            os.preadv(self._file.fileno(), [piece], self._position)
            self._position = (self._position + PIECE_BYTES) % self._end
            free = memory_bytes("MemFree")
            n_flat = 0 if free < least - PIECE_BYTES // 4 else n_flat + 1
            least = min(least, free)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def costs_ms(folder: Path) -> tuple[float, float]:
    """Return the processor time of writing a MiB, into memory as it is free and once more: medians of many pieces."""
    piece = os.urandom(PIECE_BYTES)
    costs = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(2):
            took = []
            for number in range(PROBES):
                began = time.process_time()
                os.pwrite(file.fileno(), piece, number * PIECE_BYTES)
                took.append(time.process_time() - began)
            costs.append(statistics.median(took) / (PIECE_BYTES >> 20) * 1e3)
    return costs[0], costs[1]


def memory_bytes(name: str) -> int:
    """Return a figure of /proc/meminfo: `MemFree` is used for nothing, `Cached` is the page cache."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024
