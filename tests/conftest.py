"""Fixtures that every test may use: a whole gateway on real sockets, raw connections, and a watch on the logs."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tornado
import uvloop
import yaml
from tornado.httpclient import HTTPResponse
from tornado.ioloop import IOLoop
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from edge import logs
from edge.config import load
from edge.example import EXAMPLE_EVENT
from edge.http import early, server
from edge.http.server import listen
from edge.registry import load_registry
from edge.runtime import Process

KEY = "test-key-0123456789"


@pytest.fixture(scope="session", autouse=True)
def _logging() -> None:
    """Send structlog through the standard library, as the gateway does, so that caplog sees every line."""
    logs.configure("debug", "json")
    # Without this, Tornado's loop asks for the thread's event loop, gets one made for it, and puts it back at the end;
    # the next `asyncio.run` drops it unclosed.
    asyncio.set_event_loop(None)


@pytest.fixture
def expect_log() -> list[str]:
    """Patterns of WARNING or worse that the test means to cause: append them."""
    return []


@pytest.fixture(autouse=True)
def _no_unexpected_logs(caplog: pytest.LogCaptureFixture, expect_log: list[str]) -> Iterator[None]:
    """Fail a test that logs a WARNING or worse it did not announce through `expect_log`."""
    yield
    records = [*caplog.get_records("setup"), *caplog.get_records("call")]
    lines = [
        f"{record.levelname} {record.name}: {record.msg}" for record in records if record.levelno >= logging.WARNING
    ]
    unexpected = [line for line in lines if not any(re.search(pattern, line) for pattern in expect_log)]
    assert not unexpected, f"unexpected log lines: {unexpected}"


@pytest.fixture(scope="session")
def registry() -> Any:
    return load_registry()


@pytest.fixture
def io_loop(request: pytest.FixtureRequest) -> Iterator[IOLoop]:
    """The loop of the test. What runs on both HTTP servers has the loop that a gateway runs on: uvloop."""
    is_real = request.node.get_closest_marker("both_servers") is not None
    loop = IOLoop(asyncio_loop=uvloop.new_event_loop() if is_real else asyncio.new_event_loop())
    loop.make_current()
    yield loop
    loop.clear_current()
    loop.close(all_fds=True)


class PlainDumper(yaml.SafeDumper):
    """Writes a mapping that is used twice out twice: the gateway takes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class Running:
    """A gateway in this process, listening on loopback."""

    def __init__(self, process: Process, ingest: list[str], admin: list[str]) -> None:
        self.process = process
        self.gateway = process.gateway
        self.port = int(ingest[0].rpartition(":")[2])
        self.admin_port = int(admin[0].rpartition(":")[2])
        self._client = SimpleAsyncHTTPClient(force_instance=True, max_clients=200, max_body_size=64 << 20)

    async def fetch(
        self, method: str, path: str, body: Any = None, *, admin: bool = False, **options: Any
    ) -> HTTPResponse:
        """Send a request; a body that is not bytes goes as JSON, with the test's key unless headers say otherwise."""
        headers = {"X-API-Key": KEY, **options.pop("headers", {})}
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self._client.fetch(
            f"http://127.0.0.1:{self.admin_port if admin else self.port}{path}",
            method=method,
            body=body,
            headers={name: value for name, value in headers.items() if value is not None},
            raise_error=False,
            allow_nonstandard_methods=True,
            follow_redirects=False,
            decompress_response=False,
            **options,
        )

    async def post(self, path: str, body: Any, **options: Any) -> HTTPResponse:
        """POST to the ingest listener."""
        return await self.fetch("POST", path, body, **options)

    async def metrics(self) -> dict[str, float]:
        """Return the samples of a scrape: `name{labels}` -> value."""
        response = await self.fetch("GET", "/metrics", admin=True)
        samples = {}
        for line in response.body.decode().splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                samples[name] = float(value)
        return samples

    async def stop(self) -> None:
        """Drain and close everything."""
        self._client.close()
        await self.process.drain()


Launch = Callable[..., Awaitable[Running]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test marked `both_servers` on each HTTP server; EDGE_HTTP picks one."""
    if "http_server" in metafunc.fixturenames and metafunc.definition.get_closest_marker("both_servers"):
        wanted = os.environ.get("EDGE_HTTP")
        metafunc.parametrize("http_server", [wanted] if wanted else ["fast", "tornado"])


@pytest.fixture
def http_server() -> str:
    """Which HTTP server the gateways of a test have: EDGE_HTTP=tornado runs any test on the other one."""
    return os.environ.get("EDGE_HTTP", "fast")


@pytest.fixture
def config_path(tmp_path: Path, http_server: str) -> Callable[..., Path]:
    """Write a configuration: a test's own parts over a small complete one; return its path."""

    def write(**parts: Any) -> Path:
        config: dict[str, Any] = {
            "server": {"listen": "127.0.0.1:0", "drain_timeout_secs": 2, "http": http_server},
            "admin": {"listen": "127.0.0.1:0"},
            "auth": {"mode": "keys", "keys": [{"id": "test", "key": KEY}]},
            "spool": {"path": str(tmp_path / "spool"), "segment_bytes": 1 << 20},
            "dead_letters": {"path": str(tmp_path / "dead-letters")},
            "sinks": {"archive": {"type": "file", "path": str(tmp_path / "events"), "batch": {"max_age_secs": 0.02}}},
        }
        for name, part in parts.items():
            if isinstance(part, dict) and name in ("server", "admin", "spool", "dead_letters"):
                config[name] = {**config[name], **part}
            else:
                config[name] = part
        path = tmp_path / "edge.yaml"
        path.write_text(yaml.dump(config, Dumper=PlainDumper, sort_keys=False))
        return path

    return write


@pytest.fixture
def launch(
    io_loop: Any, config_path: Callable[..., Path], registry: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Launch]:
    """Return a coroutine function that starts a gateway from configuration parts; it is drained after the test."""
    running: list[Running] = []

    async def start(**parts: Any) -> Running:
        config = load(config_path(**parts), registry, {})
        process = Process(config, registry, {})
        started = await process.start(listen(config.server.listen), listen(config.admin.listen))
        running.append(Running(process, started.ingest, started.admin))
        return running[-1]

    yield start
    # Whoever tests a drain stops the gateway in the test; here nobody sends any more, and nobody need be waited for.
    monkeypatch.setattr(server, "POLL_SECS", 0.001)
    for gateway in running:
        if not gateway.gateway.draining:
            io_loop.run_sync(gateway.stop)


@pytest.fixture
def example_event() -> dict[str, Any]:
    return dict(EXAMPLE_EVENT)


@pytest.fixture
def raw() -> Callable[..., Awaitable[bytes]]:
    """Return a coroutine function that sends bytes and returns all that comes back until the peer closes."""

    async def exchange(port: int, *pieces: bytes, timeout_secs: float = 10.0, close: bool = False) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            if close and writer.can_write_eof():
                writer.write_eof()
            async with asyncio.timeout(timeout_secs):
                return await reader.read()
        finally:
            writer.close()

    return exchange


@pytest.fixture
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up soon on a body that comes no more after its early answer."""
    monkeypatch.setattr(early, "LINGER_SECS", 0.1)


@pytest.fixture
def eventually() -> Callable[..., Awaitable[None]]:
    """Return a coroutine function that waits until a condition holds, looking every 10 ms, and fails after a bound."""

    async def wait(condition: Callable[[], Any], timeout_secs: float = 10.0) -> None:
        deadline = asyncio.get_running_loop().time() + timeout_secs
        while True:
            result = condition()
            if asyncio.iscoroutine(result):
                result = await result
            if result:
                return
            assert asyncio.get_running_loop().time() < deadline, "the condition did not come true in time"
            await asyncio.sleep(0.01)

    return wait


@pytest.fixture
def server_tls() -> dict[str, str]:
    """Return `server.tls` with Tornado's own certificate for tests."""
    files = Path(tornado.__file__).parent / "test"
    return {"cert_file": str(files / "test.crt"), "key_file": str(files / "test.key")}


@pytest.fixture
def client_tls() -> ssl.SSLContext:
    """Return what a client needs that believes it."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.fixture
def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
