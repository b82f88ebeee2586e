"""The gateway as a process of its own, and a client that remembers what it was told."""

from __future__ import annotations

import http.client
import json
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import openonce

KEY = "test-key-0123456789"
HANG_SECS = 5.0
RUN = [sys.executable, "-m", "edge.cli", "run", "-c"]


class Gateway:
    """A running gateway that logs JSON lines; everything it says on stderr is kept in `lines`."""

    def __init__(self, config: Path, command: list[str] | None = None) -> None:
        self.process = subprocess.Popen(
            [*(command or RUN), str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._listening.wait(20) or self.process.poll() is not None:
            self.kill()
            raise AssertionError(f"the gateway did not start: {self.lines}")

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if "the gateway is listening" in line:
                self.port = int(json.loads(line)["ingest"][0].rpartition(":")[2])
                self.admin_port = int(json.loads(line)["admin"][0].rpartition(":")[2])
                self._listening.set()
        self._listening.set()

    def stop(self) -> int:
        """Drain, and return the exit code."""
        self.process.terminate()
        return self._ended(20)

    def kill(self) -> int:
        self.process.kill()
        return self._ended(20)

    def _ended(self, secs: float) -> int:
        code = self.process.wait(secs)
        self._reader.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


@contextmanager
def gateway(config: Path, command: list[str] | None = None) -> Iterator[Gateway]:
    """Run a gateway for the time of a `with`."""
    running = Gateway(config, command)
    try:
        yield running
    finally:
        if running.process.returncode is None:
            running.kill()


class Opening:
    """A process that opens one spool after the other; one that hangs is ended."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, openonce.__file__, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

    def open(self, path: Path) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{path}\n".encode())
        if not select.select([self._process.stdout], [], [], HANG_SECS)[0]:
            self.close()
            raise AssertionError(f"the spool did not open within {HANG_SECS} s")
        line = self._process.stdout.readline()
        assert line, "the process that opened the spool is gone"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def opening(*arguments: str) -> Iterator[Opening]:
    made = Opening(*arguments)
    try:
        yield made
    finally:
        made.close()


class Senders:
    """Threads that post batches of numbered events, and remember which were acknowledged and which were ever sent."""

    def __init__(self, port: int, event: dict[str, Any], prefix: str, threads: int = 4) -> None:
        self.sent: set[str] = set()
        self.acked: set[str] = set()
        self._acked_at: list[float] = []
        self._stop = threading.Event()
        self._event = event
        self._port = port
        self._threads = [threading.Thread(target=self._run, args=(f"{prefix}-{number}",)) for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def acked_within(self, secs: float) -> int:
        """Return how many requests were acknowledged in the last seconds."""
        since = time.monotonic() - secs
        return sum(at >= since for at in tuple(self._acked_at))

    def _run(self, prefix: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        number = 0
        try:
            while not self._stop.is_set():
                ids = [f"{prefix}-{number + offset}" for offset in range(1 + number % 5)]
                number += len(ids)
                self.sent.update(ids)
                body = json.dumps([{**self._event, "event_id": event_id} for event_id in ids])
                connection.request(
                    "POST", "/ingest/batch", body, {"X-API-Key": KEY, "Content-Type": "application/json"}
                )
                response = connection.getresponse()
                response.read()
                if response.status == 200:
                    self.acked.update(ids)
                    self._acked_at.append(time.monotonic())
                elif response.status >= 500:
                    return
        except (OSError, http.client.HTTPException):
            return
        finally:
            connection.close()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)


def delivered(directory: Path) -> list[str]:
    """Return the ids in the files of a file sink, in no order."""
    ids = []
    for file in directory.rglob("*.ndjson*"):
        try:
            lines = file.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:  # closed and renamed meanwhile
            continue
        ids += [json.loads(line)["event_id"] for line in lines if line.endswith(b"\n")]
    return ids
