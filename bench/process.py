"""A measured process: started on its core, watched through /proc together with every process it starts."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

TICKS: Final = os.sysconf("SC_CLK_TCK")
POLL_SECS: Final = 0.002
START_SECS: Final = 60.0
STOP_SECS: Final = 20.0


class ServerError(Exception):
    """A server did not start, or did not answer as it should."""


def cores() -> tuple[set[int], set[int]]:
    """Return the core of the servers and that of the load generator; the same one on a machine with one core."""
    mine = sorted(os.sched_getaffinity(0))
    return {mine[0]}, {mine[-1]}


@contextmanager
def pinned(to: set[int]) -> Iterator[None]:
    """Let what is started meanwhile, and every thread and process it starts, stay on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, to)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Server:
    """One running server. `request` is a whole HTTP request that it answers 200; `folder` is its own, for its files."""

    def __init__(self, command: Sequence[str], folder: Path, port: int, request: bytes, core: set[int]) -> None:
        self.port = port
        self._log = folder / "log.txt"
        started = time.monotonic()
        with pinned(core), self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                command, cwd=folder, stdout=log, stderr=log
            )
        try:
            self._wait_for_answer(request)
        except BaseException:
            self._end()
            raise
        self.start_secs = time.monotonic() - started
        """From its start to its first answer."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _wait_for_answer(self, request: bytes) -> None:
        head, _, body = request.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        method, path, _ = lines[0].split()
        headers = dict(line.split(": ", 1) for line in lines[1:])
        deadline = time.monotonic() + START_SECS
        while True:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ServerError(f"it did not start: {self._log.read_text(errors='replace')[-2000:]}")
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_SECS)
            try:
                connection.request(method, path, body, headers)
                response = connection.getresponse()
                answer = response.read()
            except ConnectionRefusedError:
                time.sleep(POLL_SECS)
                continue
            finally:
                connection.close()
            if response.status != 200:
                raise ServerError(f"it answers {response.status}: {answer[:500]!r}")
            return

    def _end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _pids(self) -> list[int]:
        """Return the process and all it has started that still run."""
        found = [self._process.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found.extend(map(int, (task / "children").read_text().split()))
        return found

    def cpu_secs(self) -> float:
        """Return the user and system time of all its processes and threads, those that have ended included."""
        total = 0
        for pid in self._pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))  # utime, stime, and those of children that were waited for
        return total / TICKS

    def rss_bytes(self) -> int:
        """Return the resident memory of all its processes; what they share counts once for each."""
        total = 0
        for pid in self._pids():
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1]) * 1024
        return total
