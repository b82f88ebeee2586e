"""Connections below HTTP: how many there may be, how they begin, how the slow ones end, how accepting stops."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from edge import process
from edge.http import connections, fast
from edge.http.connections import Acceptor, connection_bound
from edge.http.server import listen

pytestmark = pytest.mark.both_servers

KEY = "test-key-0123456789"


def request_for(event: Any) -> bytes:
    body = json.dumps(event).encode()
    return (
        f"POST /ingest HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )


@pytest.fixture
def open_files() -> Iterator[Any]:
    """Return a function that sets the soft limit on open files; it is put back after the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda files: resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def highest_descriptor() -> int:
    return max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())


def fill_up(descriptors: list[int]) -> None:
    """Take file descriptors until there are no more."""
    while True:
        descriptors.append(os.dup(0))


async def test_connection_too_many_gets_a_whole_503_and_is_counted(launch: Any, raw: Any) -> None:
    gateway = await launch(server={"limits": {"connections": 2}})
    held = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(2)]
    head, _, body = (await raw(gateway.port, timeout_secs=5)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    for line in (
        b"X-Request-Id: ",
        b"Cache-Control: no-store",
        b"X-Content-Type-Options: nosniff",
        b"Connection: close",
    ):
        assert line in head
    (detail,) = json.loads(body)["details"]
    assert detail["code"] == "busy.backpressure"
    assert "disk" not in detail["message"]
    assert (await gateway.metrics())['edge_http_requests_total{method="other",route="other",status="503"}'] == 1
    for _, writer in held:
        writer.close()


def test_bound_on_connections_leaves_files_for_others(open_files: Any, caplog: pytest.LogCaptureFixture) -> None:
    open_files(1000)
    assert connection_bound(800) == 800
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]
    assert connection_bound(8000) == 872
    assert [record.levelno for record in caplog.records] == [logging.INFO]
    open_files(130)
    assert connection_bound(8000) == 16
    assert connection_bound(5) == 5


async def test_accepting_pauses_while_there_are_no_file_descriptors(
    open_files: Any, expect_log: list[str], caplog: pytest.LogCaptureFixture, eventually: Any
) -> None:
    expect_log.append("cannot be accepted")
    (listening,) = listen(["127.0.0.1:0"])
    senders = [socket.create_connection(listening.getsockname()) for _ in range(5)]
    accepted: list[socket.socket] = []
    acceptor: Acceptor | None = None
    fillers: list[int] = []
    try:
        open_files(highest_descriptor() + 10)
        with pytest.raises(OSError, match="Too many open files"):
            fill_up(fillers)
        os.close(fillers.pop())  # one connection may be accepted
        acceptor = Acceptor(listening, lambda connection, address: accepted.append(connection))
        await eventually(lambda: len(accepted) == 1)
        busy = time.process_time()
        await asyncio.sleep(0.35)
        assert time.process_time() - busy < 0.1
        assert len([record for record in caplog.records if "cannot be accepted" in str(record.msg)]) == 1
        for filler in fillers:
            os.close(filler)
        fillers.clear()
        await eventually(lambda: len(accepted) == 5)
    finally:
        for filler in fillers:
            os.close(filler)
        if acceptor is not None:
            acceptor.stop()
        for sock in (*senders, *accepted):
            sock.close()


async def test_requests_in_the_backlog_are_answered_when_the_gateway_stops(launch: Any, example_event: Any) -> None:
    gateway = await launch()
    senders = []
    # Nothing here lets the loop run: the connections wait in the backlog when the gateway begins to stop.
    for _ in range(50):
        sender = socket.create_connection(("127.0.0.1", gateway.port))
        sender.sendall(request_for(example_event))
        senders.append(sender)
    await gateway.stop()
    for sender in senders:
        sender.settimeout(2)
        assert sender.recv(4096).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        sender.close()


async def test_stopping_twice_closes_the_listening_sockets_once(launch: Any) -> None:
    gateway = await launch()
    server = gateway.process._ingest
    server.stop_accepting()
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", gateway.port)


async def test_peer_that_does_not_take_its_answers_is_cut_off(
    launch: Any, monkeypatch: pytest.MonkeyPatch, eventually: Any, example_event: Any
) -> None:
    monkeypatch.setattr(connections, "WRITE_SECS", 0.2)
    monkeypatch.setattr(process, "SWEEP_EVERY_SECS", 0.1)
    gateway = await launch()
    server = gateway.process._ingest
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    reader.connect(("127.0.0.1", gateway.port))
    reader.settimeout(0)
    request = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"

    def stuck() -> bool:
        with suppress(BlockingIOError):
            reader.send(request * 100)
        return any(stream.writing() for stream in server.streams)

    await eventually(stuck)
    assert (await gateway.post("/ingest", example_event)).code == 200
    idle = [stream for stream in server.streams if not stream.writing()]
    await eventually(lambda: not any(stream.writing() for stream in server.streams))
    assert all(not stream.closed() for stream in idle)
    reader.close()


async def test_connections_before_their_tls_handshake_are_bounded_and_closed(
    launch: Any, eventually: Any, example_event: Any, server_tls: Any, client_tls: Any
) -> None:
    gateway = await launch(server={"tls": server_tls, "limits": {"connections": 3, "idle_secs": 1}})
    server = gateway.process._ingest
    silent = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(3)]
    await eventually(lambda: server.open_connections == 3)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    async with asyncio.timeout(0.5):  # at once, not when it has been idle
        assert await reader.read() == b""
    writer.close()
    await eventually(lambda: server.open_connections == 0, 5)
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, ssl=client_tls)
    writer.write(request_for(example_event))
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Strict-Transport-Security: " in head
    writer.write(b"nonsense\r\n\r\n")
    await reader.readuntil(b"}")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"Strict-Transport-Security: " in head
    for _, other in [*silent, (reader, writer)]:
        other.close()


async def test_connections_that_are_reset_before_they_are_accepted_are_no_news(
    launch: Any, eventually: Any, example_event: Any
) -> None:
    gateway = await launch()
    for number in range(200):  # nothing here lets the loop run
        sender = socket.create_connection(("127.0.0.1", gateway.port))
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sender.send(request_for(example_event)[: number if number % 2 else None])
        sender.close()
    await eventually(lambda: not gateway.process._ingest.open_connections)
    assert not gateway.process._site.in_flight
    assert (await gateway.post("/ingest", example_event)).code == 200


async def test_peer_that_does_not_take_the_last_answers_is_cut_off(
    launch: Any, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    monkeypatch.setattr(fast, "WRITE_BUFFER_BYTES", 1 << 30)  # less than that is left when the connection ends
    monkeypatch.setattr(connections, "WRITE_SECS", 0.3)
    monkeypatch.setattr(process, "SWEEP_EVERY_SECS", 0.1)
    gateway = await launch()
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    reader.connect(("127.0.0.1", gateway.port))
    request = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    reader.sendall(request * 600 + b"nonsense\r\n\r\n")
    await eventually(lambda: gateway.process._ingest.open_connections == 1)
    await eventually(lambda: not gateway.process._ingest.open_connections, 20)
    reader.close()
