"""What is measured: ours and its peers, how each is started, and the requests they get."""

from __future__ import annotations

import copy
import http.client
import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import yaml

from bench.process import Server, ServerError
from edge.example import EXAMPLE_EVENT

PEERS: Final = Path(__file__).parent / "peers"
KEY: Final = "bench-key-0123456789"
DELIVERY_SECS: Final = 300.0
DELIVERY_POLL_SECS: Final = 0.2
BETWEEN_EVENTS_MS: Final = 137

COMPONENTS: Final[tuple[dict[str, Any], ...]] = (
    {"type": "received_at"},
    {"type": "client_ip", "anonymize": True},
    {"type": "drop", "when": {"event_type": "heartbeat"}},
    {"type": "static_fields", "fields": {"environment": "production", "gateway": "eu-1"}},
    {"type": "sample", "rate": 1},
)
"""The pipeline is the first so many of these, again and again under other ids and fields."""


@dataclass(frozen=True, slots=True)
class Point:
    """One thing to measure: a server in one configuration under one kind of load. Defaults are the main comparison."""

    server: str = "ours"
    batch_events: int = 1
    connections: int = 32
    idle_connections: int = 0
    components: int = 3
    sinks: int = 1
    durability: str = "disk"
    workers: int = 1
    """Ours: `server.workers`."""
    shares_cores: bool = False
    """The load generator runs on the server's cores, not on another one."""
    head: str = "repeated"
    """``repeated``: a kept connection sends the same head again; ``new``: one that the gateway has to read anew."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of server."""

    title: str
    does: str
    """What it does with an event, for the page."""
    script: str = ""
    """The peer's program below `peers/`; empty for ours."""
    packages: tuple[str, ...] = field(default=())
    """What the page names the versions of."""
    files: tuple[str, ...] = ()
    """What it needs and `bench/requirements.txt` cannot bring."""

    @property
    def is_installed(self) -> bool:
        """Whether what the system is to bring is there."""
        return all(map(os.path.exists, self.files))


KINDS: Final[dict[str, Kind]] = {
    "ours": Kind(
        "ours",
        "checks the key, validates, 3 enrichers and filters, fdatasync before the answer, delivers to a file sink "
        "(fdatasync again), counts all of it",
    ),
    "fastapi": Kind(
        "FastAPI",
        "validates with pydantic, stores nothing",
        "fastapi_memory.py",
        ("fastapi", "pydantic", "uvicorn", "uvloop", "httptools"),
    ),
    "fastapi_fsync": Kind(
        "FastAPI + fsync",
        "validates with pydantic, appends to a file, fsync in a thread before the answer",
        "fastapi_fsync.py",
    ),
    "litestar": Kind(
        "Litestar", "validates with msgspec, stores nothing", "litestar_msgspec.py", ("litestar", "msgspec")
    ),
    "tornado": Kind("tornado.web", "parses the JSON, nothing else", "tornado_bare.py", ("tornado", "orjson")),
    "aiohttp": Kind("aiohttp", "parses the JSON, nothing else", "aiohttp_bare.py", ("aiohttp",)),
    "nginx": Kind(
        "nginx + lua",
        "C; appends the body to a file a second later, whatever it is; installed by the system, or left out",
        "nginx_lua.py",
        files=("/usr/lib/nginx/modules/ngx_http_lua_module.so",),
    ),
}


def request_for(point: Point) -> bytes:
    """Return the request that a point is loaded with: the contract's example event, alone or in a JSON array.

    The events of an array have an id and a time of their own each, as those of a sender do.
    """
    event: dict[str, Any] = dict(EXAMPLE_EVENT)
    path, body = "/ingest", json.dumps(event, separators=(",", ":"))
    if point.batch_events > 1:
        first = datetime.fromisoformat(event["event_time"]).replace(tzinfo=None)
        events = []
        for number in range(point.batch_events):
            at = first + timedelta(milliseconds=number * BETWEEN_EVENTS_MS)
            time_ = f"{at.isoformat(timespec='milliseconds')}Z"
            events.append({**event, "event_id": f"evt_{123_456_789 + number}", "event_time": time_})
        path, body = "/ingest/batch", json.dumps(events, separators=(",", ":"))
    # A length with a zero before it is a valid one that the gateway does not remember.
    length = f"{'0' if point.head == 'new' else ''}{len(body)}"
    # Peers check no key; they get the same bytes.
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nX-API-Key: {KEY}\r\n"
        f"Content-Length: {length}\r\n\r\n{body}"
    ).encode()


class Ours(Server):
    """The gateway, which also delivers what it took."""

    def __init__(self, admin_port: int, *arguments: Any) -> None:
        self._admin_port = admin_port
        super().__init__(*arguments)

    def delivered_within(self) -> float:
        """Wait until every sink has delivered everything; return how many seconds that took."""
        started = time.monotonic()
        while self.pending() > 0:
            if time.monotonic() - started > DELIVERY_SECS:
                raise ServerError(f"a sink had not delivered everything after {DELIVERY_SECS:.0f} s")
            time.sleep(DELIVERY_POLL_SECS)
        return time.monotonic() - started

    def pending(self) -> float:
        """Return how many events the sinks have not had yet, added up."""
        # One name alone, since the scrape costs the measured process time.
        connection = http.client.HTTPConnection("127.0.0.1", self._admin_port, timeout=DELIVERY_SECS)
        try:
            connection.request("GET", "/metrics?name[]=edge_sink_pending_events")
            response = connection.getresponse()
            lines = response.read().decode().splitlines()
        finally:
            connection.close()
        samples = [float(line.rpartition(" ")[2]) for line in lines if line.startswith("edge_sink_pending_events{")]
        if response.status != 200 or not samples:
            raise ServerError(f"its metrics do not say what is pending ({response.status})")
        return sum(samples)


def start(
    point: Point, folder: Path, core: set[int], peers_python: Path, sink_options: Mapping[str, Any] | None = None
) -> Server:
    """Start the server of a point and return it once it has answered its first request."""
    port = _free_port()
    request = request_for(Point(point.server))
    if point.server == "ours":
        admin_port = _free_port()
        config = folder / "edge.yaml"
        configured = configuration(point, port, admin_port)
        for sink in configured["sinks"].values():
            sink.update(sink_options or {})
        config.write_text(yaml.safe_dump(configured, sort_keys=False))
        command = [sys.executable, "-m", "edge.cli", "run", "--config", str(config)]
        return Ours(admin_port, command, folder, port, request, core)
    script = PEERS / KINDS[point.server].script
    return Server([str(peers_python), str(script), str(port), str(folder)], folder, port, request, core)


def delivered_within(server: Server) -> float:
    """Wait until a server has delivered what it took; a peer delivers nothing."""
    return server.delivered_within() if isinstance(server, Ours) else 0.0


def configuration(point: Point, port: int, admin_port: int) -> dict[str, Any]:
    """Return our configuration for a point; paths are below the directory the gateway is started in."""
    return {
        "server": {
            "listen": f"127.0.0.1:{port}",
            "http": "fast",
            "workers": point.workers,
            # As many as are held idle, for as long as they are measured.
            "limits": {"connections": 12_000, "idle_secs": 3600},
        },
        "admin": {"listen": f"127.0.0.1:{admin_port}"},
        "auth": {"mode": "keys", "keys": [{"id": "bench", "key": KEY}]},
        "spool": {"path": "spool", "durability": point.durability},
        "dead_letters": {"path": "dead-letters"},
        "pipeline": [_component(number) for number in range(point.components)],
        "sinks": {f"archive_{number}": {"type": "file", "path": f"events-{number}"} for number in range(point.sinks)},
        "log": {"level": "info", "format": "json"},
    }


def _component(number: int) -> dict[str, Any]:
    component: dict[str, Any] = copy.deepcopy(COMPONENTS[number % len(COMPONENTS)])
    again = number // len(COMPONENTS)
    if again:
        component["id"] = f"{component['type']}_{again}"
        if component["type"] in ("received_at", "client_ip"):
            component["field"] = component["id"]
        elif component["type"] == "static_fields":
            component["fields"] = {f"environment_{again}": "production"}
    return component


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
