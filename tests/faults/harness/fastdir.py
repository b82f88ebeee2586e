"""Where the rows that open thousands of directories do it, and how they keep the log out of it."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def fast_directory() -> Iterator[Path]:
    """Yield a directory, in memory where there is such a thing: what syncs are worth is for other rows."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="edge-faults-", dir=memory if memory.is_dir() else None))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Switch logging off: thousands of recoveries would say what they found, and here that is checked, not read."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
