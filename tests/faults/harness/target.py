"""A stub target: an HTTP server in a process of its own that writes down every event it takes and obeys orders.

Orders come as JSON lines on its standard input and are merged into what it does; each is answered with a line:

    {"listen": false}             the port is closed, new connections are refused
    {"status": 503, "headers": {"Retry-After": "1"}}      what it answers; events count as taken only with a 2xx
    {"statuses": {"e-1": 400}}    another status for a request that holds this event
    {"delay_secs": 2.0}           how long it thinks
    {"mode": "hang"}              takes the request and never answers; "drip": one byte of the answer a second;
                                  "reset": a reset instead of an answer; "garbage": `raw` (base64) instead of HTTP
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import struct
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from harness import ledger


class Target:
    """A running stub target."""

    def __init__(self, folder: Path, name: str = "target", **orders: Any) -> None:
        self.ledger = folder / f"{name}-delivered.log"
        self.attempts = folder / f"{name}-attempts.log"
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = int(sock.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}/"
        command = [sys.executable, "-m", "harness.target", str(self.port), str(self.ledger), str(self.attempts)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
        )
        self.order(listen=True, **orders) if "listen" not in orders else self.order(**orders)

    def order(self, **orders: Any) -> None:
        """Change what it does; on return it does it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(orders) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "ok\n"

    def delivered(self) -> list[ledger.Entry]:
        """Return what it has taken so far."""
        return list(ledger.read(self.ledger))

    def n_attempts(self) -> int:
        """Return how many connections were made to it."""
        return self.attempts.stat().st_size if self.attempts.exists() else 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


class _Server:
    """The server inside the process."""

    def __init__(self, port: int, taken: Path, attempts: Path) -> None:
        self._port = port
        self._taken = ledger.Ledger(taken)
        self._attempts = attempts.open("ab", buffering=0)
        self._orders: dict[str, Any] = {
            "status": 200,
            "headers": {},
            "statuses": {},
            "delay_secs": 0.0,
            "mode": "answer",
        }
        self._server: asyncio.Server | None = None

    async def obey(self, orders: dict[str, Any]) -> None:
        self._orders.update(orders)
        if orders.get("listen") is False and self._server is not None:
            self._server.close()
            self._server = None
        if orders.get("listen") is True and self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, limit=1 << 24)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._attempts.write(b".")
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while await self._one(reader, writer):
                    pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        orders = self._orders
        if orders["mode"] == "blackhole":
            await asyncio.sleep(3600)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        await asyncio.sleep(orders["delay_secs"])
        if orders["mode"] == "hang":
            await asyncio.sleep(3600)
        if orders["mode"] == "reset":
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if orders["mode"] == "garbage":
            writer.write(base64.b64decode(orders["raw"]))
            await writer.drain()
            return False
        events = [orjson.loads(line) for line in body.splitlines()]
        status = orders["status"]
        for event in events:
            status = orders["statuses"].get(event["event_id"], status)
        if 200 <= status < 300:
            self._taken.write((event["event_id"], ledger.digest_of(event)) for event in events)
        headers = "".join(f"{name}: {value}\r\n" for name, value in orders["headers"].items())
        answer = f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n{headers}\r\n".encode()
        if orders["mode"] == "drip":
            for at in range(len(answer)):
                writer.write(answer[at : at + 1])
                await writer.drain()
                await asyncio.sleep(1)
            return False
        writer.write(answer)
        await writer.drain()
        return b"connection: close" not in head.lower()


async def _main(port: int, taken: Path, attempts: Path) -> None:
    server = _Server(port, taken, attempts)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        await server.obey(json.loads(line))
        sys.stdout.write("ok\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])))
