"""A gateway whose clock a test can move: faketime changes what time it is, and leaves the monotonic clock alone."""

from __future__ import annotations

import http.client
import subprocess
import threading
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from harness.gateway import Gateway


class MovableClock:
    """What time it is for the processes that get `environ`: the real time and an offset."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # The program itself knows where its library is.
        library = subprocess.run(
            ["faketime", "-m", "-f", "+0", "printenv", "LD_PRELOAD"], capture_output=True, text=True, check=True
        )
        self.environ = {
            "LD_PRELOAD": library.stdout.strip(),
            "FAKETIME_TIMESTAMP_FILE": str(path),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            # Its own idea of waits on the monotonic clock has Python's threads spin for the interpreter's lock.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
            # Files keep the times that they got: a clock that is put forward makes them old.
            "NO_FAKE_STAT": "1",
        }
        self.move(0)

    def move(self, secs: int) -> None:
        """Let it be `secs` later than it is, or earlier; in one step, seen within a second."""
        temporary = self._path.with_suffix(".new")
        temporary.write_text(f"{secs:+d}")
        temporary.replace(self._path)


def offset_secs(gateway: Gateway) -> float:
    """Return by how much a gateway's clock differs from the real one, as the Date of its answers says."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    try:
        connection.request("GET", "/healthz")
        date = connection.getresponse().headers["Date"]
    finally:
        connection.close()
    return parsedate_to_datetime(date).timestamp() - time.time()


class Lives:
    """When the segments of a spool ended and when they were removed, seen by looking at the directory often."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ended: dict[str, float] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.kept_secs: dict[str, float] = {}
        """Name -> for how long it was there after the next one had begun."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ending.wait(0.01):
            now = time.monotonic()
            names = sorted(path.name for path in self._directory.glob("seg-*.log"))
            for name in names[:-1]:
                self._ended.setdefault(name, now)
            for name in self._ended.keys() - set(names) - self.kept_secs.keys():
                self.kept_secs[name] = now - self._ended[name]
