"""Large bodies: what is refused before it is parsed, and what many of them at once may cost."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import time
from pathlib import Path
from typing import Any

import brotli
import pytest

from edge.http import decode
from edge.http.large import LargeBodies, NoTurnError

NDJSON = {"Content-Type": "application/x-ndjson"}
GZIP = {"Content-Encoding": "gzip"}


def detail_of(response: Any) -> Any:
    return json.loads(response.body)["details"][0]


def batch_of(events: list[bytes]) -> bytes:
    return b"[" + b",".join(events) + b"]"


def gzip_of(raw: bytes) -> bytes:
    """Compress, behind noise that keeps the ratio below its limit."""
    return gzip.compress(raw[:50_000], 0) + gzip.compress(raw[50_000:], 1)


@pytest.mark.parametrize(
    ("raw", "headers", "status", "code"),
    [
        pytest.param(b"[" + b"[]," * 1_300_000 + b"[]]", {}, 400, "json.limit", id="arrays"),
        pytest.param(b"[" + b"1," * 2_000_000 + b"1]", {}, 400, "json.limit", id="numbers"),
        pytest.param(b'[{"a":[' + b"{}," * 1_300_000 + b"{}]}]", {}, 400, "json.limit", id="objects in an event"),
        pytest.param(b"1\n" * 2_000_000, NDJSON, 413, "limit.batch", id="lines"),
        pytest.param(b"[" * 2_000_000, {}, 400, "json.limit", id="open brackets"),
        pytest.param(b"{" + b",".join(b'"%x":1' % n for n in range(350_000)) + b"}", {}, 400, "json.limit", id="keys"),
    ],
)
async def test_structure_bomb_is_refused_before_it_is_parsed(
    launch: Any, monkeypatch: pytest.MonkeyPatch, raw: bytes, headers: Any, status: int, code: str
) -> None:
    def parse(raw: bytes) -> Any:
        raise AssertionError("it was parsed")

    monkeypatch.setattr(decode, "parse_json", parse)
    gateway = await launch()
    response = await gateway.post("/ingest/batch", gzip_of(raw), headers={**GZIP, **headers})
    assert (response.code, detail_of(response)["code"]) == (status, code)
    response = await gateway.post("/ingest", gzip_of(raw), headers=GZIP)
    assert (response.code, detail_of(response)["code"]) == (413, "limit.event")


async def test_event_with_many_values_is_taken(launch: Any, example_event: Any) -> None:
    gateway = await launch()
    event = {**example_event, "extras": {"values": list(range(10_000))}}
    assert (await gateway.post("/ingest", event)).code == 200
    assert (await gateway.post("/ingest/batch", [event] * 15)).code == 200


async def test_large_batch_of_full_events_is_taken(launch: Any, example_event: Any) -> None:
    gateway = await launch()
    extras = {f"field_{number}": "some text, with a comma" for number in range(90)}
    raw = batch_of([json.dumps({**example_event, "extras": extras}).encode()] * 1000)
    assert 3 << 20 < len(raw) < 4 << 20
    response = await gateway.post("/ingest/batch", gzip_of(raw), headers=GZIP)
    assert (response.code, json.loads(response.body)["accepted"]) == (200, 1000)


async def test_message_says_how_many_values_there_may_be(launch: Any) -> None:
    gateway = await launch(server={"limits": {"batch_events": 2000}})
    response = await gateway.post("/ingest/batch", gzip_of(b"[" + b"1," * 1_000_000 + b"1]"), headers=GZIP)
    assert detail_of(response) == {"field": "body", "message": "has more than 400000 values", "code": "json.limit"}


async def test_line_far_over_the_limit_of_an_event_spoils_only_itself(launch: Any, example_event: Any) -> None:
    gateway = await launch()
    long_line = json.dumps({**example_event, "extras": {"text": "x" * 300_000}}).encode()
    body = json.dumps(example_event).encode() + b"\n" + long_line
    response = await gateway.post("/ingest/batch", body, headers=NDJSON)
    assert response.code == 200
    (row,) = json.loads(response.body)["results"]
    assert (row["index"], row["details"][0]["code"]) == (1, "limit.event")


async def test_content_type_that_is_hostile_costs_nothing(launch: Any, example_event: Any) -> None:
    gateway = await launch()
    for header in ("application/json" + ';\\"' * 5000, "application/json" + ';\\"' * 70):
        started = time.process_time()
        response = await gateway.post("/ingest", example_event, headers={"Content-Type": header})
        assert time.process_time() - started < 0.1
        assert response.code == (415 if len(header) > 256 else 200)


async def test_decompressed_bytes_are_charged_while_they_are_held(launch: Any, eventually: Any) -> None:
    gateway = await launch(server={"limits": {"inflight_bytes": 6 << 20}})
    # Many values: reading them takes a while, in which the next body is decompressed.
    body = gzip_of(b'[{"a":[' + b",".join([b'"%b"' % (b"x" * 18)] * 190_000) + b"]}]")
    responses: list[Any] = []
    found: list[int] = []
    for _ in range(20):  # until two of them meet
        responses += await asyncio.gather(*(gateway.post("/ingest/batch", body, headers=GZIP) for _ in range(16)))
        found = sorted(response.code for response in responses)
        if 503 in found:
            break
    assert set(found) == {400, 503}
    for response in responses:
        if response.code == 503:
            assert detail_of(response)["code"] == "busy.backpressure"
            assert "disk" not in detail_of(response)["message"]
    assert gateway.process._site.body_bytes == 0
    metrics = await gateway.metrics()
    assert metrics['edge_events_received_total{key="test"}'] == found.count(400)
    assert metrics["edge_events_unaccounted"] == 0


async def test_turns_are_bounded_and_waited_for_in_order() -> None:
    large = LargeBodies(turns=2, wait_secs=5)
    held = 0
    most = 0
    order: list[int] = []

    async def one(number: int) -> None:
        nonlocal held, most
        async with large.turn():
            held += 1
            most = max(most, held)
            order.append(number)
            await large.run(time.sleep, 0.01)
            held -= 1

    await asyncio.gather(*(one(number) for number in range(10)))
    assert most == 2
    assert order == list(range(10))


async def test_turn_that_does_not_come_is_not_waited_for_long() -> None:
    large = LargeBodies(turns=1, wait_secs=0.05)
    async with large.turn():
        with pytest.raises(NoTurnError):
            async with large.turn():
                pass
    async with large.turn():
        pass


async def test_large_body_without_a_turn_is_told_to_come_again(launch: Any, example_event: Any) -> None:
    gateway = await launch()
    site = gateway.process._site
    site.large = LargeBodies(turns=1, wait_secs=0.05)
    body = json.dumps([{**example_event, "extras": {"text": "x" * 60_000}}] * 2).encode()
    async with site.large.turn():
        response = await gateway.post("/ingest/batch", body)
        assert (response.code, detail_of(response)["code"]) == (503, "busy.backpressure")
        assert (await gateway.post("/ingest", example_event)).code == 200
        assert (
            await gateway.post("/ingest", gzip.compress(json.dumps(example_event).encode()), headers=GZIP)
        ).code == 200
    assert (await gateway.post("/ingest/batch", body)).code == 200


async def test_large_body_of_a_key_without_quota_is_not_decoded(
    launch: Any, monkeypatch: pytest.MonkeyPatch, example_event: Any
) -> None:
    keys = [{"id": "web", "key": "test-key-0123456789", "rate_limit": {"events_per_sec": 0.1, "burst_events": 1}}]
    gateway = await launch(auth={"mode": "keys", "keys": keys})
    assert (await gateway.post("/ingest", example_event)).code == 200

    def parse(raw: bytes) -> Any:
        raise AssertionError("it was parsed")

    monkeypatch.setattr(decode, "parse_json", parse)
    body = json.dumps([{**example_event, "extras": {"text": "x" * 60_000}}] * 2).encode()
    response = await gateway.post("/ingest/batch", body)
    assert (response.code, detail_of(response)["code"]) == (429, "limit.rate")
    assert 1 <= int(response.headers["Retry-After"]) <= 10


def memory(name: str) -> int:
    """Return a line of /proc/self/status in MiB."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


def begin_peak() -> int:
    """Forget the highest memory use so far, and return the present one in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


@pytest.mark.parametrize("shape", ["text", "values"])
async def test_hundred_bombs_at_once_keep_memory_and_latency_low(launch: Any, shape: str, example_event: Any) -> None:
    gateway = await launch()
    if shape == "text":
        body = gzip_of(b'["' + b"x" * 4_190_000 + b'"]')
    else:
        # As many values as a batch may have: what costs the most after it was parsed.
        event = json.dumps({**example_event, "extras": {"list": [{}] * 90}}).encode()
        body = gzip_of(batch_of([event.ljust(4100)] * 1000))
    assert len(body) < 80_000
    await gateway.post("/ingest/batch", body, headers=GZIP)
    before = begin_peak()
    posts = asyncio.gather(*(gateway.post("/ingest/batch", body, headers=GZIP) for _ in range(100)))
    slowest = 0.0
    while not posts.done():
        started = time.perf_counter()
        assert (await gateway.fetch("GET", "/healthz")).code == 200
        slowest = max(slowest, time.perf_counter() - started)
        await asyncio.sleep(0.005)
    responses = await posts
    assert {response.code for response in responses} <= {200, 400, 503}
    assert memory("VmHWM") - before < 100
    # The client of this test runs on the same loop; a gateway of its own answers in a fraction of this.
    assert slowest < 1.0


async def test_brotli_bombs_do_not_hold_up_others(launch: Any) -> None:
    gateway = await launch()
    bomb = brotli.compress(b"a" * (100 << 20), quality=5)
    posts = [gateway.post("/ingest", bomb, headers={"Content-Encoding": "br"}) for _ in range(20)]
    responses = await asyncio.gather(*posts)
    assert {response.code for response in responses} == {413}
