"""Answers before the body: the sender sees them, the connection is honest about its end, nothing stays behind."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from edge import process
from edge.http import early, fast, handlers

pytestmark = pytest.mark.both_servers

KEY = "test-key-0123456789"
AUTHORIZED = f"Host: x\r\nX-API-Key: {KEY}\r\n".encode()


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    """Return status, head and body of one answer, and leave the connection as it is."""
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
        lines = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
        body = await reader.readexactly(int(lines.get(b"Content-Length", b"0")))
    return int(head.split()[1]), head, body


def ingest(body: bytes, *headers: bytes) -> bytes:
    head = b"".join(header + b"\r\n" for header in headers)
    return b"POST /ingest HTTP/1.1\r\n" + AUTHORIZED + head + b"Content-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST /ingest HTTP/1.1\r\nHost: x\r\n\r\n", 401),
        (b"POST /ingest HTTP/1.1\r\n" + AUTHORIZED + b"Content-Type: image/png\r\nContent-Length: 0\r\n\r\n", 415),
        (b"GET /ingest HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"PROPFIND /ingest HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"FINISH /ingest HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"OPTIONS /ingest HTTP/1.1\r\nHost: x\r\n\r\n", 204),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 200),
    ],
)
async def test_connection_goes_on_after_an_answer_to_a_request_without_body(
    launch: Any, example_event: Any, request_bytes: bytes, status: int
) -> None:
    gateway = await launch()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(request_bytes)
    found, head, _ = await answer_of(reader)
    assert found == status
    assert b"Connection: close" not in head
    writer.write(ingest(json.dumps(example_event).encode()))
    assert (await answer_of(reader))[0] == 200
    writer.close()


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET /healthz", 200),
        (b"GET /openapi.json", 200),
        (b"POST /nowhere", 404),
        (b"PUT /ingest", 405),
        (b"PROPFIND /ingest", 405),
        (b"OPTIONS /ingest", 204),
    ],
)
@pytest.mark.parametrize("framing", [b"Content-Length: 99999999999", b"Transfer-Encoding: chunked"])
async def test_body_that_nobody_wants_is_thrown_away_and_not_waited_for(
    launch: Any, monkeypatch: pytest.MonkeyPatch, eventually: Any, line: bytes, status: int, framing: bytes
) -> None:
    monkeypatch.setattr(early, "LINGER_SECS", 0.2)
    gateway = await launch()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(line + b" HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n" + b"ffffff\r\nabc")
    found, head, body = await answer_of(reader)
    assert found == status
    assert b"Connection: close" in head
    assert (b"Content-Length" in head) == (status != 204)
    assert body or status == 204
    async with asyncio.timeout(2):
        assert await reader.read() == b""
    writer.close()
    await eventually(lambda: not gateway.process._site.in_flight)


async def test_sender_that_never_stops_is_not_read_for_ever(launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early, "LINGER_SECS", 0.3)
    gateway = await launch()
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")

    async def flood() -> None:
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(flood(), 5)
    writer.close()
    read_bytes = (await gateway.metrics())["edge_http_request_bytes_total"]
    assert early.LINGER_BYTES < read_bytes < early.LINGER_BYTES + (1 << 20)


async def test_sender_of_a_refused_body_sees_the_answer_and_is_counted(launch: Any, raw: Any, eventually: Any) -> None:
    gateway = await launch()
    for line in (b"PUT /ingest", b"PROPFIND /ingest", b"POST /ingest"):
        head = line + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 600000\r\n\r\n"
        answer = await raw(gateway.port, head, *[b"x" * 60_000] * 10, timeout_secs=5)
        assert answer.startswith((b"HTTP/1.1 405 ", b"HTTP/1.1 401 "))
    metrics = await gateway.metrics()
    for method, status in (("PUT", 405), ("other", 405), ("POST", 401)):
        assert metrics[f'edge_http_requests_total{{method="{method}",route="ingest",status="{status}"}}'] == 1
    assert metrics["edge_http_request_bytes_total"] == 1_800_000


async def test_answer_is_counted_when_lingering_ends_it(launch: Any, monkeypatch: pytest.MonkeyPatch, raw: Any) -> None:
    monkeypatch.setattr(early, "LINGER_SECS", 0.1)
    gateway = await launch()
    await raw(gateway.port, b"POST /ingest HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\nabc", timeout_secs=5)
    metrics = await gateway.metrics()
    assert metrics['edge_http_requests_total{method="POST",route="ingest",status="401"}'] == 1
    assert metrics["edge_http_request_bytes_total"] == 3


@pytest.mark.parametrize(
    "line", [b"GET /healthz", b"GET /nowhere", b"PROPFIND /ingest", b"OPTIONS /ingest", b"POST /ingest"]
)
async def test_sender_that_leaves_before_its_body_is_complete_leaves_nothing_behind(
    launch: Any, eventually: Any, line: bytes
) -> None:
    gateway = await launch()
    for _ in range(5):
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(line + b" HTTP/1.1\r\n" + AUTHORIZED + b"Content-Length: 10\r\n\r\nabc")
        await writer.drain()
        writer.close()
    site = gateway.process._site
    await eventually(
        lambda: not site.in_flight and not site.body_bytes and not gateway.process._ingest.open_connections
    )


async def test_slow_body_is_answered_and_cut_off_while_others_are_served(
    launch: Any,
    raw: Any,
    example_event: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(handlers, "GRACE_SECS", 0.1)
    monkeypatch.setattr(fast, "GATHER_SECS", 0.1)
    monkeypatch.setattr(process, "SWEEP_EVERY_SECS", 0.1)
    monkeypatch.setattr(early, "LINGER_SECS", 0.1)
    gateway = await launch()
    task = asyncio.ensure_future(raw(gateway.port, ingest(b" " * 1000)[:-999], timeout_secs=5))
    assert (await gateway.post("/ingest", example_event)).code == 200
    answer = await task
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"Connection: close" in head
    assert b"Retry-After: 1" in head
    assert json.loads(body)["details"] == [
        {
            "field": "body",
            "message": "did not arrive fast enough; nothing was stored",
            "code": "busy.backpressure",
        }
    ]
    assert not gateway.process._site.in_flight
    assert gateway.process._site.body_bytes == 0
    metrics = await gateway.metrics()
    assert metrics['edge_http_requests_total{method="POST",route="ingest",status="503"}'] == 1
    assert metrics['edge_events_received_total{key="test"}'] == 1
    (record,) = [record for record in caplog.records if "too slowly" in str(record.msg)]
    assert record.levelno == logging.INFO


async def test_body_in_a_steady_trickle_is_taken(launch: Any, raw: Any, example_event: Any) -> None:
    gateway = await launch()
    request = ingest(json.dumps(example_event).encode(), b"Connection: close")
    pieces = [request[at : at + 40] for at in range(0, len(request), 40)]
    assert (await raw(gateway.port, *pieces, timeout_secs=5)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("query", ["verbose=%ff", "verbose=%FF&verbose=1", "x=%ff", "api_key=%ff", "verbose"])
async def test_query_that_is_not_utf_8_does_no_harm(launch: Any, example_event: Any, query: str) -> None:
    gateway = await launch()
    response = await gateway.post(f"/ingest/batch?{query}", [example_event])
    assert response.code == 200
    listed = [row["status"] for row in json.loads(response.body)["results"]]
    assert listed == (["accepted"] if query.endswith("=1") else [])
    assert gateway.gateway.spool.durable_seq == 1


async def test_key_in_the_url_that_is_not_utf_8_is_no_key(launch: Any, example_event: Any) -> None:
    gateway = await launch()
    response = await gateway.post("/ingest?api_key=%ff", example_event, headers={"X-API-Key": None})
    assert response.code == 401
    assert json.loads(response.body)["details"][0]["code"] == "auth.invalid"


async def test_body_that_is_stalled_when_the_drain_ends_gets_an_answer(
    launch: Any, raw: Any, expect_log: list[str], eventually: Any
) -> None:
    expect_log.append("requests were still arriving")
    gateway = await launch(server={"drain_timeout_secs": 0.3})
    task = asyncio.ensure_future(raw(gateway.port, ingest(b" " * 1000)[:-999], timeout_secs=5))
    await eventually(lambda: gateway.process._site.in_flight)
    await gateway.stop()
    answer = await task
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"busy.draining" in answer
