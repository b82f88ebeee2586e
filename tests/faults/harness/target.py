"""A stub target: an HTTP server in a process of its own that writes down every event it takes and obeys orders.

Orders come as JSON lines on its standard input and are merged into what it does; each is answered with a line:

    {"listen": false}             the port is closed, new connections are refused
    {"status": 503, "headers": {"Retry-After": "1"}}      what it answers; events count as taken only with a 2xx
    {"statuses": {"e-1": 400}}    another status for a request that holds this event
    {"once": {"e-1": 503}}        the same for the first request that holds it
    {"delay_secs": 2.0}           how long it thinks before it takes the events; "answer_secs": and after
    {"drop": true}                resets the connections that are open
    {"mode": "hang"}              takes the request and never answers; "drip": one byte of the answer a second;
                                  "reset": a reset instead of an answer; "blackhole": accepts and reads nothing;
                                  "garbage": `raw` (base64) instead of HTTP, and after it `more` as often as `times`
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
import time
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
        """What it saw, a line each: monotonic seconds and a word. ``connected``; ``asked``: a request was read whole;
        ``answered``; ``left=<seconds>``: the gateway closed a connection that was never answered, so long after it had
        asked; ``let_out=<bytes>``."""
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = int(sock.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}/"
        self._orders: dict[str, Any] = {"listen": True}
        self._process: subprocess.Popen[str]
        self.restart(**orders)

    def order(self, **orders: Any) -> None:
        """Change what it does; on return it does it."""
        self._orders.update(orders)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(orders) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "ok\n"

    def delivered(self, start: int = 0) -> list[ledger.Entry]:
        """Return what it has taken so far, from a byte of its ledger on (`n_written`)."""
        return list(ledger.read(self.ledger, start))

    def n_written(self) -> int:
        """Return the size of its ledger: for who wants to know only what comes after this."""
        return self.ledger.stat().st_size if self.ledger.exists() else 0

    def n_attempts(self) -> int:
        """Return how many connections were made to it."""
        return len(self.moments("connected"))

    def moments(self, word: str) -> list[float]:
        """Return when it saw something, in monotonic seconds."""
        return [at for at, seen in self._seen() if seen == word]

    def let_out(self) -> list[int]:
        """Return how many bytes of endless answers it got rid of, for each connection."""
        return [int(seen.partition("=")[2]) for _, seen in self._seen() if seen.startswith("let_out=")]

    def waited_for(self) -> list[float]:
        """Return how many seconds the gateway waited for each answer that it did not get."""
        return [float(seen.partition("=")[2]) for _, seen in self._seen() if seen.startswith("left=")]

    def _seen(self) -> list[tuple[float, str]]:
        lines = self.attempts.read_text().split("\n")[:-1] if self.attempts.exists() else []
        return [(float(at), seen) for at, seen in (line.split(" ") for line in lines)]

    def kill(self) -> float:
        """SIGKILL the process; returns the moment."""
        self._process.kill()
        at = time.monotonic()
        self._end()
        return at

    def restart(self, **orders: Any) -> None:
        """Start the process, on the same port and with the orders it had; on return it listens."""
        command = [sys.executable, "-m", "harness.target", str(self.port), str(self.ledger), str(self.attempts)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
        )
        self.order(**{**self._orders, **orders})

    def _end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()


class _Server:
    """The server inside the process."""

    def __init__(self, port: int, taken: Path, attempts: Path) -> None:
        self._port = port
        self._taken = ledger.Ledger(taken)
        self._attempts = attempts.open("ab", buffering=0)
        self._writers: set[asyncio.StreamWriter] = set()
        self._orders: dict[str, Any] = {
            "status": 200,
            "headers": {},
            "statuses": {},
            "once": {},
            "delay_secs": 0.0,
            "answer_secs": 0.0,
            "mode": "answer",
            "raw": "",
            "more": "",
            "times": 0,
        }
        self._listening: socket.socket | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def obey(self, orders: dict[str, Any]) -> None:
        self._orders.update(orders)
        loop = asyncio.get_running_loop()
        if orders.get("listen") is False and self._listening is not None:
            loop.remove_reader(self._listening)
            self._listening.close()
            self._listening = None
        if orders.get("listen") is True and self._listening is None:
            self._listening = socket.create_server(("127.0.0.1", self._port), backlog=128)
            loop.add_reader(self._listening, self._accept, self._listening)
        if orders.get("drop"):
            for writer in list(self._writers):
                _reset(writer)

    def _saw(self, word: str) -> None:
        self._attempts.write(f"{time.monotonic():.6f} {word}\n".encode())

    def _accept(self, listening: socket.socket) -> None:
        # Not `asyncio.start_server`: closed in the wrong moment it leaves a connection open that nobody serves.
        connection, _ = listening.accept()
        serving = asyncio.create_task(self._serve(connection))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)

    async def _serve(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection, limit=1 << 24)
        self._saw("connected")
        self._writers.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while await self._one(reader, writer):
                    pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        orders = self._orders
        if orders["mode"] == "blackhole":
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # the transport of a socket has it
            await asyncio.sleep(3600)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        self._saw("asked")
        asked_at = time.monotonic()
        await asyncio.sleep(orders["delay_secs"])
        if orders["mode"] == "hang":
            await reader.read()
            self._saw(f"left={time.monotonic() - asked_at:.6f}")
            return False
        if orders["mode"] == "reset":
            _reset(writer)
            return False
        if orders["mode"] == "garbage":
            await self._write_garbage(reader, writer)
            return False
        events = [orjson.loads(line) for line in body.splitlines()]
        status = self._status_for([event["event_id"] for event in events])
        if 200 <= status < 300:
            self._taken.write((event["event_id"], ledger.digest_of(event)) for event in events)
        await asyncio.sleep(orders["answer_secs"])
        headers = "".join(f"{name}: {value}\r\n" for name, value in orders["headers"].items())
        answer = f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n{headers}\r\n".encode()
        if orders["mode"] == "drip":
            return await self._drip(writer, answer, asked_at)
        writer.write(answer)
        await writer.drain()
        self._saw("answered")
        return b"connection: close" not in head.lower()

    def _status_for(self, ids: list[str]) -> int:
        orders = self._orders
        for event_id in ids:
            if event_id in orders["once"]:
                return int(orders["once"].pop(event_id))
        return next(
            (orders["statuses"][event_id] for event_id in ids if event_id in orders["statuses"]), orders["status"]
        )

    async def _drip(self, writer: asyncio.StreamWriter, answer: bytes, asked_at: float) -> bool:
        try:
            for at in range(len(answer)):
                writer.write(answer[at : at + 1])
                await writer.drain()
                await asyncio.sleep(1)
        except OSError:
            self._saw(f"left={time.monotonic() - asked_at:.6f}")
        return False

    async def _write_garbage(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Small, so that what the kernel holds for a reader that is gone is not counted as read.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        raw, more = base64.b64decode(self._orders["raw"]), base64.b64decode(self._orders["more"])
        n_bytes = 0
        try:
            for piece in (raw, *([more] * self._orders["times"])):
                writer.write(piece)
                n_bytes += len(piece)
                await writer.drain()
        except OSError:
            pass
        self._saw(f"let_out={n_bytes - writer.transport.get_write_buffer_size()}")


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with a reset instead of an end."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _main(port: int, taken: Path, attempts: Path) -> None:
    server = _Server(port, taken, attempts)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        await server.obey(json.loads(line))
        sys.stdout.write("ok\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])))
