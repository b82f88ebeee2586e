"""The fixed work whose instructions are counted; `bench.instructions` runs it under callgrind.

``reference`` is work of the interpreter and the standard library alone. The others are told as a share of it, so that
another build of the same Python, faster or slower all over, does not look like a change of ours.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import uvloop
import yaml
from prometheus_client import CollectorRegistry

from bench.servers import Point, configuration, request_for
from edge import logs
from edge.binding import bind
from edge.books import Books
from edge.clock import SystemClock
from edge.config import load
from edge.config.model import GatewayConfig
from edge.door import Door
from edge.gateway import Gateway
from edge.http.app import ingest_application
from edge.http.server import ingest_server, listen
from edge.http.state import Site, http_plan
from edge.judging import Plan
from edge.metrics import Metrics
from edge.pipeline import Pipeline
from edge.registry import load_registry
from edge.spool.queue import OnOutcome
from edge.validation import EventValidator

WARM_UP: Final = 10
"""So many requests of a kind come first: caches are filled then, and adaptive instructions specialised."""
SINGLES: Final = 100
BATCHES: Final = 10
BATCH_EVENTS: Final = 100
REFERENCES: Final = 200


class Counter:
    """Counts instructions by name. `library` is what `counted.c` became; without one nothing is counted."""

    def __init__(self, library: str) -> None:
        self._library = ctypes.CDLL(library) if library else None

    @contextmanager
    def counting(self, name: str) -> Iterator[None]:
        """Count what is done meanwhile."""
        if self._library is None:
            yield
            return
        self._library.begin_counting()
        try:
            yield
        finally:
            self._library.end_counting(name.encode())


def reference() -> None:
    """Parse and write JSON of the standard library in pure Python's loop."""
    event = json.loads(request_for(Point()).partition(b"\r\n\r\n")[2])
    for number in range(REFERENCES):
        copied = {name: value for name, value in event.items() if value is not None}
        copied["event_id"] = f"evt_{number}"
        json.loads(json.dumps(copied))


class Client(asyncio.Protocol):
    """Posts a request and waits for its answer, over one connection to our own server in this process."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[bytes]
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = transport  # type: ignore[assignment] # TCP gives a whole Transport

    def data_received(self, data: bytes) -> None:
        """Take an answer: it is small enough to come at once."""
        self._answer.set_result(data)

    async def post(self, request: bytes, times: int) -> None:
        """Post so often, one after the other."""
        for _ in range(times):
            self._answer = asyncio.get_running_loop().create_future()
            self._transport.write(request)
            if not (await self._answer).startswith(b"HTTP/1.1 200 "):
                raise RuntimeError(f"the answer is {self._answer.result()[:300]!r}")


class Store:
    """Takes frames and forgets them: what threads, disk and sinks do depends on the time and never repeats."""

    def append(self, payload: bytes, n_events: int = 1) -> asyncio.Future[int]:
        """Take a frame; it is "durable" in the loop's next turn."""
        loop = asyncio.get_running_loop()
        durable: asyncio.Future[int] = loop.create_future()
        loop.call_soon(durable.set_result, n_events)
        return durable

    def submit(self, payload: bytes, n_events: int, waiter: OnOutcome) -> None:
        """Do the same for one who waits with a call."""
        asyncio.get_running_loop().call_soon(waiter, 0, None)


async def posts(config: GatewayConfig, counter: Counter) -> None:
    """Post single events and batches to our own server in this process: all of ours but spool and delivery."""
    registry, metrics = load_registry(), Metrics(CollectorRegistry())
    gateway = Gateway(config, registry, metrics, SystemClock())
    books = Books(metrics)
    validator = EventValidator(config.schema.unknown_fields, config.schema.required)
    pipeline = Pipeline(bind(config, registry).steps, books)
    gateway.door = Door(Plan(validator, pipeline, config.server.limits.event_bytes), Store(), books)
    server = ingest_server(ingest_application(Site(gateway, http_plan(config, gateway))), config.server)
    sockets = listen(config.server.listen)
    port = sockets[0].getsockname()[1]
    server.add_sockets(sockets)
    _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
    for name, point, times in (
        ("single", Point(), SINGLES),
        ("new_head", Point(head="new"), SINGLES),
        ("batch", Point(batch_events=BATCH_EVENTS), BATCHES),
    ):
        request = request_for(point)
        await client.post(request, WARM_UP)
        with counter.counting(name):
            await client.post(request, times)
    server.stop()
    await server.close_all_connections()


def main() -> None:
    """Do the work; the library that counts is the argument."""
    counter = Counter(sys.argv[1] if len(sys.argv) > 1 else "")
    logs.configure("warning", "json")
    reference()
    with counter.counting("reference"):
        reference()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edge.yaml"
        path.write_text(yaml.safe_dump(configuration(Point(), 0, 0)))
        config = load(path, load_registry(), {})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(posts(config, counter))


if __name__ == "__main__":
    main()
