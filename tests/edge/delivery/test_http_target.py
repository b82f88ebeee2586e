"""A worker with the shipped `http` sink and a target on a real socket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from edge_plugins.sinks.http import Http
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler
from voluptuous import Schema


class Target:
    """What the server is told to answer, and what it was given."""

    def __init__(self) -> None:
        self.bodies: list[list[int]] = []
        self.keys: list[str] = []
        self.taken: list[int] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.poison: int | None = None
        self.url = ""


class Handler(RequestHandler):
    def initialize(self, target: Target) -> None:
        self.target = target

    def post(self) -> None:
        target = self.target
        numbers = [json.loads(text)["n"] for text in self.request.body.splitlines()]
        target.bodies.append(numbers)
        target.keys.append(self.request.headers["Idempotency-Key"])
        status, headers = target.answers.pop(0) if target.answers else (200, {})
        if target.poison in numbers:
            status = 422
        for name, value in headers.items():
            self.set_header(name, value)
        self.set_status(status)
        if status == 200:
            target.taken += numbers


@pytest.fixture
def target(io_loop: Any) -> Iterator[Target]:
    made = Target()
    sock, port = bind_unused_port()
    made.url = f"http://127.0.0.1:{port}/hook"
    server = HTTPServer(Application([("/hook", Handler, {"target": made})], log_function=lambda _: None))

    async def start() -> None:
        server.add_socket(sock)

    io_loop.run_sync(start)
    yield made
    server.stop()
    io_loop.run_sync(server.close_all_connections)


def bound(url: str) -> Any:
    """Return the sink with its hooks under the names that delivery uses."""
    http = Http("crm", Schema(Http.options)({"url": url}))
    return SimpleNamespace(id="crm", when=None, open=http.edge_open, deliver=http.edge_deliver, close=http.edge_close)


async def test_http_target_gets_every_event_through_refusals_and_pauses(
    spool: Any, station: Any, clock: Any, until: Any, target: Target, expect_log: list[str]
) -> None:
    expect_log += ["circuit opened", "dead letters"]
    target.poison = 5
    target.answers = [(503, {"Retry-After": "7"}), (500, {}), (401, {}), (301, {"Location": target.url})]
    st = station(bound(target.url), clock=clock, max_events=8)
    worker = st.start()
    await spool.put(4)
    await until(lambda: st.settled)
    assert clock.now >= 1007
    assert target.bodies == [[0, 1, 2, 3]] * 4
    assert len(set(target.keys)) == 1
    [*letters] = await st.letters()
    assert len(letters) == 4
    assert "answered 301" in letters[0].last_error
    await spool.put(8)
    await until(lambda: st.settled)
    assert target.taken == [4, 6, 7, 8, 9, 10, 11]
    assert [letter.event_id for letter in await st.letters()][4:] == ["evt_5"]
    cursor = worker.snapshot().cursor
    assert (cursor.delivered, cursor.dead_lettered) == (7, 5)
    st.assert_balanced()
