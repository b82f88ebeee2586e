"""Listeners of both HTTP servers: TLS, unix sockets, answers without a body, open connections at a drain."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from edge.http.connections import drop_attempts

pytestmark = pytest.mark.both_servers

KEY = "test-key-0123456789"
IDLE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def ingest(body: bytes, *headers: bytes, route: bytes = b"/ingest") -> bytes:
    lines = b"".join(header + b"\r\n" for header in (b"Host: x", b"X-API-Key: " + KEY.encode(), *headers))
    return b"POST " + route + b" HTTP/1.1\r\n" + lines + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunked(body: bytes) -> bytes:
    lines = b"Host: x\r\nX-API-Key: " + KEY.encode() + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    return b"POST /ingest HTTP/1.1\r\n" + lines + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


async def answer_of(reader: asyncio.StreamReader, *, with_body: bool = True) -> tuple[int, dict[bytes, bytes], bytes]:
    """Return status, headers and body of one answer, and leave the connection as it is."""
    async with asyncio.timeout(10):
        first, *lines = (await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
        headers = dict(line.split(b": ", 1) for line in lines)
        length = int(headers.get(b"Content-Length", b"0")) if with_body else 0
        return int(first.split()[1]), headers, await reader.readexactly(length)


async def test_tls_carries_small_large_chunked_and_pipelined_requests(
    launch: Any, example_event: Any, server_tls: Any, client_tls: Any
) -> None:
    gateway = await launch(server={"tls": server_tls})
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, ssl=client_tls)
    one = json.dumps(example_event).encode()
    many = json.dumps([example_event] * 1000).encode()
    requests = [ingest(one), ingest(many, route=b"/ingest/batch"), chunked(one), IDLE, b"nonsense\r\n\r\n"]
    writer.write(b"".join(requests))
    answers = [await answer_of(reader) for _ in requests]
    assert [status for status, _, _ in answers] == [200, 200, 200, 200, 400]
    assert all(b"Strict-Transport-Security" in headers for _, headers, _ in answers)
    assert await reader.read() == b""
    writer.close()
    assert gateway.gateway.spool.durable_seq == 1002


async def test_what_is_no_tls_is_let_go(
    launch: Any, raw: Any, eventually: Any, example_event: Any, expect_log: list[str], server_tls: Any
) -> None:
    expect_log.append("SSL Error")  # Tornado's
    gateway = await launch(server={"tls": server_tls})
    with suppress(ConnectionError):
        assert b"HTTP/1.1" not in await raw(gateway.port, ingest(json.dumps(example_event).encode()), timeout_secs=5)
    await eventually(lambda: not gateway.process._ingest.open_connections)
    assert gateway.gateway.spool.durable_seq == 0


async def test_unix_socket_takes_events_and_is_removed(launch: Any, tmp_path: Path, example_event: Any) -> None:
    path = tmp_path / "s"
    gateway = await launch(server={"listen": ["127.0.0.1:0", f"unix:{path}"]})
    reader, writer = await asyncio.open_unix_connection(str(path))
    body = json.dumps(example_event).encode()
    for request in (ingest(body), chunked(body), IDLE):
        writer.write(request)
        assert (await answer_of(reader))[0] == 200
    writer.close()
    assert gateway.gateway.spool.durable_seq == 2
    await gateway.stop()
    assert not path.exists()


async def test_answers_without_a_body_leave_the_connection_in_step(launch: Any) -> None:
    gateway = await launch()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    for line, status in (
        (b"HEAD /healthz", 200),
        (b"HEAD /nowhere", 404),
        (b"OPTIONS /ingest", 204),
        (b"GET /healthz", 200),
    ):
        writer.write(line + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        found, headers, body = await answer_of(reader, with_body=line.startswith(b"GET"))
        assert found == status
        assert (b"Content-Length" in headers) == (status != 204)
        assert b"Transfer-Encoding" not in headers
        assert bool(body) == line.startswith(b"GET")
    writer.close()


@pytest.mark.parametrize("tls", [False, True])
async def test_drain_closes_idle_connections_and_answers_the_others(
    launch: Any, example_event: Any, expect_log: list[str], eventually: Any, server_tls: Any, client_tls: Any, tls: bool
) -> None:
    expect_log.append("requests were still arriving")
    gateway = await launch(server={"drain_timeout_secs": 1, **({"tls": server_tls} if tls else {})})
    body = json.dumps(example_event).encode()
    options = {"ssl": client_tls} if tls else {}

    async def connect(sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, **options)
        writer.write(sent)
        return reader, writer

    idle, in_flight, slow, slow_chunked, late = [
        await connect(sent) for sent in (IDLE, ingest(body)[:-10], ingest(body)[:-10], chunked(body)[:-10], IDLE)
    ]
    for reader, _ in (idle, late):
        assert (await answer_of(reader))[0] == 200
    await eventually(lambda: len(gateway.process._site.in_flight) == 3)
    stopping = asyncio.ensure_future(gateway.stop())
    await eventually(lambda: gateway.process._site.closing)
    in_flight[1].write(body[-10:])
    assert (await answer_of(in_flight[0]))[0] == 200  # its head was there before
    late[1].write(ingest(body))
    status, headers, answer = await answer_of(late[0])
    assert (status, headers[b"Connection"]) == (503, b"close")
    assert b"busy.draining" in answer
    for reader, _ in (slow, slow_chunked):
        status, headers, answer = await answer_of(reader)
        assert (status, headers[b"Connection"]) == (503, b"close")
        assert b"busy.draining" in answer
    await stopping
    for reader, writer in (idle, in_flight, slow, slow_chunked, late):
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()
    assert gateway.gateway.spool.durable_seq == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux drops attempts to connect")
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_who_connected_before_is_accepted_and_nobody_connects_after_that(family: socket.AddressFamily) -> None:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.socket(family) as listening, socket.socket(family) as early, socket.socket(family) as late:
        listening.bind((host, 0))
        listening.listen()
        early.connect(listening.getsockname()[:2])
        drop_attempts(listening)
        late.settimeout(0.2)
        with pytest.raises(TimeoutError):  # neither connected nor reset: its system tries again
            late.connect(listening.getsockname()[:2])
        accepted, _ = listening.accept()
        with accepted:
            early.sendall(b"still here")
            assert accepted.recv(100) == b"still here"
