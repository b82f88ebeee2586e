"""How much of a volume the spool may take when nobody has said."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_BYTES = 10 * 1024 * 1024 * 1024


def default_capacity(path: Path, segment_bytes: int) -> int:
    """Return 10 GiB, or half of the volume that `path` lies on or will lie on, whichever is less.

    Never less than two segments, which a log cannot do without: on a smaller volume the disk itself is the limit.
    Raises `OSError` when the volume cannot be asked.
    """
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    volume = os.statvfs(path)
    # A file system without a size of its own says 0.
    half = volume.f_blocks * volume.f_frsize // 2 or DEFAULT_BYTES
    return max(min(DEFAULT_BYTES, half), 2 * segment_bytes)
