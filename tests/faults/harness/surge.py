"""An open-loop load: every request goes out at its time, however many wait for an answer; a process of its own.

Each request is a batch as SDKs send them. What was sent and acknowledged goes to ledgers, when each request was due
and how long its answer took to `times`: ``<due, monotonic seconds> <seconds> <status, 0 for none>``.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import orjson

from harness import ledger
from harness.load import EVENT

EVENTS = 20
TICK_SECS = 0.005
LAST_SECS = 20.0
"""How long the answers to the last requests are waited for."""


class Answered(NamedTuple):
    """One request."""

    due: float
    secs: float
    status: int


class Surge:
    """A running generator: `rate` requests a second, or with 0 as many as `connections` get answers for, for `secs`."""

    def __init__(
        self, folder: Path, port: int, key: str, prefix: str, *, rate: float, secs: float, connections: int
    ) -> None:
        self.sent = folder / f"{prefix}-sent.log"
        self.acknowledged = folder / f"{prefix}-acked.log"
        self.times = folder / f"{prefix}-times.log"
        orders = {
            "sent": str(self.sent), "acknowledged": str(self.acknowledged), "times": str(self.times), "port": port,
            "key": key, "prefix": prefix, "rate": rate, "secs": secs, "connections": connections,
        }  # fmt: skip
        command = [sys.executable, "-m", "harness.surge", json.dumps(orders)]
        self._secs = secs
        self._process = subprocess.Popen(command, cwd=Path(__file__).parent.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def wait(self) -> list[Answered]:
        """Wait for its end and return every request."""
        assert self._process.wait(self._secs + LAST_SECS + 10) == 0
        lines = (line.split(" ") for line in self.times.read_text().split("\n")[:-1])
        return [Answered(float(due), float(secs), int(status)) for due, secs, status in lines]


def p99(values: Iterable[float]) -> float:
    """Return the value that 99 of 100 do not exceed; fails without at least 100 of them."""
    ordered = sorted(values)
    assert len(ordered) >= 100, f"{len(ordered)} values have no 99th percentile"
    return ordered[len(ordered) * 99 // 100]


class _Request:
    """A request under way."""

    def __init__(self, due: float, lines: list[tuple[str, str]], data: bytes) -> None:
        self.due, self.lines, self.data = due, lines, data


class _Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self, client: _Client, request: _Request) -> None:
        self._client = client
        self._request: _Request | None = request
        self._buffer = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        if self._request is not None:
            transport.write(self._request.data)

    def send(self, request: _Request) -> None:
        self._request = request
        self._transport.write(request.data)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        head = head.lower()
        if not found or len(body) < int(head.split(b"content-length:")[1].split(b"\r\n")[0]):
            return
        self._buffer = b""
        request, self._request = self._request, None
        closes = b"connection: close" in head
        if closes:
            self._transport.close()
        if request is not None:
            self._client.answered(request, int(head.split(b" ")[1]), None if closes else self)

    def connection_lost(self, error: Exception | None) -> None:
        request, self._request = self._request, None
        self._client.lost(self)
        if request is not None:
            self._client.answered(request, 0, None)


class _Client:
    """All connections, and the clock."""

    def __init__(self, orders: dict[str, Any]) -> None:
        self._orders = orders
        self._sent = ledger.Ledger(Path(orders["sent"]))
        self._acknowledged = ledger.Ledger(Path(orders["acknowledged"]))
        self._times = os.open(orders["times"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._idle: list[_Connection] = []
        self._connecting: set[asyncio.Task[None]] = set()
        self._count = 0
        self._waiting = 0
        self._ending = 0.0

    async def run(self) -> None:
        rate, started = self._orders["rate"], time.monotonic()
        self._ending = started + self._orders["secs"]
        if not rate:
            for _ in range(self._orders["connections"]):
                self._fire(time.monotonic())
        while (now := time.monotonic()) < self._ending:
            while rate and (due := started + self._count / rate) <= now:
                self._fire(due)
            await asyncio.sleep(TICK_SECS)
        while self._waiting and time.monotonic() < self._ending + LAST_SECS:  # noqa: ASYNC110 - a tick is good enough
            await asyncio.sleep(TICK_SECS)

    def _fire(self, due: float) -> None:
        ids = [f"{self._orders['prefix']}-{self._count}-{at}" for at in range(EVENTS)]
        events = [{**EVENT, "event_id": event_id} for event_id in ids]
        body = orjson.dumps(events)
        head = (
            f"POST /ingest/batch HTTP/1.1\r\nHost: t\r\nX-API-Key: {self._orders['key']}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        lines = [(event["event_id"], ledger.digest_of(event)) for event in events]
        self._count += 1
        self._waiting += 1
        self._sent.write(lines)
        request = _Request(due, lines, head.encode() + body)
        if self._idle:
            self._idle.pop().send(request)
            return
        task = asyncio.get_running_loop().create_task(self._connect(request))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, request: _Request) -> None:
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self, request), "127.0.0.1", self._orders["port"]
            )
        except OSError:
            self.answered(request, 0, None)

    def answered(self, request: _Request, status: int, connection: _Connection | None) -> None:
        """Write down what became of a request; the connection is free again."""
        now = time.monotonic()
        self._waiting -= 1
        if status == 200:
            self._acknowledged.write(request.lines)
        os.write(self._times, f"{request.due:.6f} {now - request.due:.6f} {status}\n".encode())
        if connection is not None:
            self._idle.append(connection)
        if not self._orders["rate"] and now < self._ending:
            self._fire(now)

    def lost(self, connection: _Connection) -> None:
        """Forget a connection that the gateway has closed."""
        if connection in self._idle:
            self._idle.remove(connection)


if __name__ == "__main__":
    asyncio.run(_Client(json.loads(sys.argv[1])).run())
