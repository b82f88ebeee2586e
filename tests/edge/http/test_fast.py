"""A connection of the fast server: many requests at once, a peer that reads nothing, half a close."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import suppress
from typing import Any

import pytest

from edge.http import fast

FAST = pytest.mark.parametrize("http_server", ["fast"])
"""Tornado drops requests that wait when their sender closes its half of the connection."""

KEY = "test-key-0123456789"


def ingest(event: Any, *headers: bytes, route: bytes = b"/ingest") -> bytes:
    body = json.dumps(event).encode()
    lines = b"".join(header + b"\r\n" for header in (b"Host: x", b"X-API-Key: " + KEY.encode(), *headers))
    return b"POST " + route + b" HTTP/1.1\r\n" + lines + b"Content-Length: %d\r\n\r\n" % len(body) + body


def statuses(answers: bytes) -> list[int]:
    return [int(part[:3]) for part in answers.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.both_servers
@pytest.mark.parametrize("batch", [False, True])
async def test_thousand_pipelined_requests_are_answered_in_order(
    launch: Any, raw: Any, example_event: Any, batch: bool
) -> None:
    gateway = await launch(spool={"durability": "os"})
    requests = []
    for number in range(1000):
        event = {**example_event, "event_id": f"evt_{number}"}
        headers = [f"X-Request-Id: r{number}".encode(), *([b"Connection: close"] if number == 999 else [])]
        requests.append(ingest([event], *headers, route=b"/ingest/batch") if batch else ingest(event, *headers))
    answers = await raw(gateway.port, b"".join(requests), timeout_secs=20)
    assert statuses(answers) == [200] * 1000
    ids = [part.split(b"\r\n", 1)[0] for part in answers.split(b"X-Request-Id: ")[1:]]
    assert ids == [b"r%d" % number for number in range(1000)]
    assert gateway.gateway.spool.durable_seq == 1000


@pytest.mark.both_servers
async def test_thousand_pipelined_requests_that_are_answered_at_once_are_answered_in_order(
    launch: Any, raw: Any
) -> None:
    gateway = await launch()
    requests = [ingest(None, b"X-Request-Id: r%d" % number) for number in range(999)]
    requests.append(ingest([], b"X-Request-Id: r999", b"Connection: close"))
    answers = await raw(gateway.port, b"".join(requests), timeout_secs=20)
    assert statuses(answers) == [400] * 1000
    ids = [part.split(b"\r\n", 1)[0] for part in answers.split(b"X-Request-Id: ")[1:]]
    assert ids == [b"r%d" % number for number in range(1000)]


@FAST
@pytest.mark.parametrize("n_requests", [1, 3])
@pytest.mark.parametrize("line", [b"POST /ingest", b"GET /healthz"])
async def test_sender_that_closes_its_half_gets_its_answers(
    launch: Any, raw: Any, example_event: Any, line: bytes, n_requests: int
) -> None:
    gateway = await launch()
    request = ingest(example_event) if line.startswith(b"POST") else line + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    answers = await raw(gateway.port, request * n_requests, close=True, timeout_secs=5)
    assert statuses(answers) == [200] * n_requests


@FAST
@pytest.mark.parametrize("at", [10, 60, -1])
async def test_sender_that_closes_its_half_amid_a_request_is_let_go(
    launch: Any, raw: Any, example_event: Any, eventually: Any, at: int
) -> None:
    gateway = await launch()
    assert await raw(gateway.port, ingest(example_event)[:at], close=True, timeout_secs=5) == b""
    site = gateway.process._site
    await eventually(
        lambda: not site.in_flight and not site.body_bytes and not gateway.process._ingest.open_connections
    )
    assert gateway.gateway.spool.durable_seq == 0


@FAST
async def test_sender_that_closes_its_half_and_reads_late_gets_every_answer(launch: Any, example_event: Any) -> None:
    gateway = await launch(spool={"durability": "os"})
    reader, writer = await slow_reader(gateway.port)
    writer.write(ingest(example_event) * 2000)
    writer.write_eof()
    await asyncio.sleep(0.3)
    async with asyncio.timeout(20):
        answers = await reader.read()
    writer.close()
    assert statuses(answers) == [200] * 2000


async def slow_reader(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a connection whose sender reads a little at a time, when it is asked to."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(0)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return await asyncio.open_connection(sock=sock, limit=4096)


@pytest.mark.both_servers
@pytest.mark.parametrize("line", [b"POST /ingest", b"GET /healthz"])
async def test_peer_that_sends_and_reads_nothing_is_read_no_further(
    launch: Any, example_event: Any, http_server: str, line: bytes
) -> None:
    gateway = await launch(spool={"durability": "os"})
    _, writer = await slow_reader(gateway.port)
    request = ingest(example_event) if line.startswith(b"POST") else line + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    sent = 0
    with suppress(TimeoutError):
        while sent < 64 << 20:
            writer.write(request * 100)
            async with asyncio.timeout(0.5):
                await writer.drain()
            sent += 100 * len(request)
    writer.transport.abort()
    assert sent < 64 << 20, "all of it was read"
    if http_server == "fast":
        (connection,) = gateway.process._ingest.connections
        assert len(connection.buffer) < 2 * fast.BUFFER_BYTES
        assert connection._transport.get_write_buffer_size() < 2 * fast.WRITE_BUFFER_BYTES


@FAST
async def test_what_a_peer_pipelines_is_read_as_far_as_it_is_answered(launch: Any) -> None:
    gateway = await launch()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    n_requests = 12_000
    writer.write(ingest(None) * n_requests)
    most, n_answers, tail = 0, 0, b""
    async with asyncio.timeout(25):
        while n_answers < n_requests:
            data = tail + await reader.read(1 << 20)
            n_answers += data.count(b"HTTP/1.1 400")
            tail = data[-11:]
            most = max(most, *(len(connection.buffer) for connection in gateway.process._ingest.connections))
    writer.close()
    assert n_requests * len(ingest(None)) > 4 * fast.BUFFER_BYTES
    assert most < 2 * fast.BUFFER_BYTES
