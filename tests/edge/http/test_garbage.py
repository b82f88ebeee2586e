"""What a connection of the fast server leaves behind: nothing that only the garbage collector would find.

It comes by seldom, and what waits for it may hold buffers.
"""

from __future__ import annotations

import asyncio
import gc
import json
from typing import Any

import pytest

from edge.http.fast import FastConnection
from edge.http.ingest import IngestHandler
from edge.http.intake import Intake

KEY = "test-key-0123456789"
ORIGIN = "https://shop.example"


def post(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def alive(*types: type) -> list[Any]:
    return [thing for thing in gc.get_objects() if isinstance(thing, types)]


@pytest.mark.parametrize("http_server", ["fast"])
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("kind", ["small", "large", "refused", "preflight", "cut off"])
async def test_connection_that_is_over_leaves_no_garbage(
    launch: Any, example_event: Any, eventually: Any, server_tls: Any, client_tls: Any, kind: str, tls: bool
) -> None:
    many = post("/ingest/batch", json.dumps([example_event] * 300).encode())
    preflight = (
        f"OPTIONS /ingest HTTP/1.1\r\nHost: x\r\nOrigin: {ORIGIN}\r\nAccess-Control-Request-Method: POST\r\n\r\n"
    )
    request = {
        "small": post("/ingest", json.dumps(example_event).encode()),
        "large": many,
        "refused": b"POST /ingest HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
        "preflight": preflight.encode(),
        "cut off": many[:5000],
    }[kind]
    secure = {"tls": server_tls} if tls else {}
    gateway = await launch(server={"cors": {"allow_origins": [ORIGIN]}, **secure})
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            options: dict[str, Any] = {"ssl": client_tls} if tls else {}
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, **options)
            writer.write(request)
            if kind == "cut off":
                await eventually(lambda: gateway.process._site.body_bytes > 0)
            else:
                async with asyncio.timeout(10):
                    await reader.readuntil(b"\r\n\r\n")
            writer.transport.abort()
        if kind == "cut off":
            # Tornado leaves its handler and its request holding each other, and the request knows the connection.
            await eventually(lambda: not any(connection._transport for connection in alive(FastConnection)))
        else:
            await eventually(lambda: not alive(FastConnection, IngestHandler, Intake))
    finally:
        gc.enable()
