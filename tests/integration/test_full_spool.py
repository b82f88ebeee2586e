"""A spool without room: senders are told to come back, delivery goes on, and taking events resumes by itself."""

from __future__ import annotations

import asyncio
import errno
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from edge.testing import Answer, RecordingTarget

QUICK = {"batch": {"max_age_secs": 0.02}, "retry": {"initial_secs": 0.02, "max_secs": 0.1}}


async def test_spool_full_of_what_a_required_sink_needs_refuses_and_resumes_when_the_sink_is_back(
    launch: Any, example_event: Any, eventually: Any, expect_log: list[str]
) -> None:
    expect_log += ["circuit", "full", "room"]
    async with RecordingTarget(then=Answer(503)) as target:
        gateway = await launch(
            spool={"segment_bytes": 65_536, "max_bytes": 262_144},
            sinks={"crm": {"type": "http", "url": target.url, "required": True, **QUICK}},
        )
        event = {**example_event, "extras": {"pad": "x" * 8000}}
        accepted = []
        for number in range(100):
            response = await gateway.post("/ingest", {**event, "event_id": f"evt_{number}"})
            if response.code != 200:
                break
            accepted.append(f"evt_{number}")
        assert response.code == 503
        body = json.loads(response.body)
        assert body["error"] == "Service unavailable"
        assert body["details"][0]["code"] == "busy.full"
        assert 1 <= int(response.headers["Retry-After"]) <= 10
        assert 10 < len(accepted) < 40
        target._then = Answer(200)

        async def taken_again() -> bool:
            return (await gateway.post("/ingest", {**example_event, "event_id": "fresh"})).code == 200

        await eventually(taken_again)
        await eventually(lambda: "fresh" in {event["event_id"] for event in target.events})
        delivered = {event["event_id"] for event in target.events}
        assert set(accepted) <= delivered
        assert delivered <= {*accepted, "fresh"}
        metrics = await gateway.metrics()
        assert metrics["edge_events_unaccounted"] == 0
        assert metrics['edge_events_outcome_total{outcome="rejected",reason="busy.full"}'] >= 1
        assert metrics['edge_sink_events_total{outcome="dropped",sink="crm"}'] == 0
        await gateway.stop()


SMALL = {"segment_bytes": 65_536, "max_bytes": 262_144}


async def post_all(gateway: Any, event: Any, first: int, count: int) -> float:
    """Post events one after the other, each until it is accepted; return the longest that one was refused, in secs."""
    loop = asyncio.get_running_loop()
    longest = 0.0
    for number in range(first, first + count):
        began = loop.time()
        while (await gateway.post("/ingest", {**event, "event_id": f"evt_{number}"})).code != 200:
            longest = max(longest, loop.time() - began)
            assert longest < 10
            await asyncio.sleep(0.02)
    return longest


def cursor(gateway: Any, sink: str) -> Any:
    return gateway.gateway.worker(sink).snapshot().cursor


@pytest.mark.parametrize("is_hanging", [False, True])
async def test_full_spool_drops_the_oldest_of_a_dead_sink_that_is_not_required_and_the_others_get_all(
    launch: Any, example_event: Any, eventually: Any, expect_log: list[str], tmp_path: Path, is_hanging: bool
) -> None:
    expect_log += ["circuit", "still failing", "the oldest events of a sink were dropped", "refuses events"]
    event = {**example_event, "extras": {"pad": "x" * 8000}}
    async with RecordingTarget(then=Answer(delay_secs=60) if is_hanging else Answer(503)) as target:
        parts = {
            "spool": SMALL,
            "sinks": {
                "crm": {"type": "http", "url": target.url, "timeout_secs": 1, **QUICK},
                "archive": {"type": "file", "path": str(tmp_path / "events"), "required": True, **QUICK},
            },
        }
        gateway = await launch(**parts)
        refused_secs = await post_all(gateway, event, 0, 200)
        assert refused_secs < 3
        assert cursor(gateway, "crm").dropped > 100
        await eventually(lambda: gateway.gateway.worker("archive").snapshot().pending_events == 0)
        metrics = await gateway.metrics()
        dropped = metrics['edge_sink_events_total{outcome="dropped",sink="crm"}']
        assert dropped == cursor(gateway, "crm").dropped
        assert dropped + metrics['edge_sink_pending_events{sink="crm"}'] == 200
        assert metrics['edge_sink_events_total{outcome="delivered",sink="archive"}'] == 200
        assert metrics['edge_sink_events_total{outcome="dropped",sink="archive"}'] == 0
        assert metrics["edge_events_unaccounted"] == 0
        assert metrics["edge_spool_bytes"] <= SMALL["max_bytes"]
        await gateway.stop()

        gateway = await launch(**parts)  # in the middle: nothing is forgotten, nothing dropped again
        assert cursor(gateway, "crm").dropped >= dropped
        refused_secs = await post_all(gateway, event, 200, 100)
        assert refused_secs < 3
        metrics = await gateway.metrics()
        assert metrics["edge_events_unaccounted"] == 0
        total = cursor(gateway, "crm").dropped
        assert total + metrics['edge_sink_pending_events{sink="crm"}'] == 300

        target._then = Answer(200)
        await eventually(lambda: gateway.gateway.worker("crm").snapshot().pending_events == 0, timeout_secs=20)
        total = cursor(gateway, "crm").dropped
        left = {f"evt_{number}" for number in range(total, 300)}
        assert {event["event_id"] for event in target.events} >= left
        assert cursor(gateway, "crm").delivered == 300 - total
        assert (await gateway.metrics())["edge_events_unaccounted"] == 0
        await gateway.stop()
    written = [
        json.loads(line) for path in (tmp_path / "events").rglob("*.ndjson") for line in path.read_text().splitlines()
    ]
    assert {event["event_id"] for event in written} == {f"evt_{number}" for number in range(300)}


async def test_segment_that_a_required_sink_needs_is_never_dropped_of_another_one_either(
    launch: Any, example_event: Any, eventually: Any, expect_log: list[str]
) -> None:
    expect_log += ["circuit", "still failing", "refuses events"]
    event = {**example_event, "extras": {"pad": "x" * 8000}}
    async with RecordingTarget(then=Answer(503)) as target:
        sink = {"type": "http", "url": target.url, **QUICK}
        gateway = await launch(spool=SMALL, sinks={"crm": sink, "audit": {**sink, "required": True}})
        codes = [(await gateway.post("/ingest", event)).code for _ in range(60)]
        accepted = codes.count(200)
        assert set(codes[accepted:]) == {503}
        assert cursor(gateway, "crm").dropped == 0
        target._then = Answer(200)

        def settled() -> bool:
            return all(item.pending_events == 0 for item in gateway.gateway.snapshots())

        await eventually(settled)
        assert cursor(gateway, "audit").delivered == cursor(gateway, "crm").delivered == accepted
        await gateway.stop()


async def test_disk_that_others_have_filled_drops_nothing(
    launch: Any, example_event: Any, eventually: Any, expect_log: list[str]
) -> None:
    expect_log += ["circuit", "still failing", "refuses events"]
    event = {**example_event, "extras": {"pad": "x" * 8000}}
    async with RecordingTarget(then=Answer(503)) as target:
        sinks = {"crm": {"type": "http", "url": target.url, **QUICK}}
        gateway = await launch(spool={**SMALL, "max_bytes": 1 << 30}, sinks=sinks)
        files = gateway.gateway.spool._files
        real = files.fallocate

        def full(fd: int, size: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        files.fallocate = full
        codes = [(await gateway.post("/ingest", event)).code for _ in range(30)]
        accepted = codes.count(200)
        assert 0 < accepted < 30
        assert cursor(gateway, "crm").dropped == 0
        files.fallocate = real

        async def taken_again() -> bool:
            return (await gateway.post("/ingest", event)).code == 200

        await eventually(taken_again)
        assert cursor(gateway, "crm").dropped == 0
        await gateway.stop()


async def test_events_kept_for_replay_give_way_before_anything_is_dropped_or_refused(
    launch: Any, example_event: Any, eventually: Any, expect_log: list[str], caplog: Any, tmp_path: Path
) -> None:
    event = {**example_event, "extras": {"pad": "x" * 8000}}
    sinks = {"archive": {"type": "file", "path": str(tmp_path / "events"), **QUICK}}
    gateway = await launch(spool={**SMALL, "retain_secs": 86_400}, sinks=sinks)
    for number in range(60):
        assert (await gateway.post("/ingest", {**event, "event_id": f"evt_{number}"})).code == 200
        await eventually(lambda: gateway.gateway.worker("archive").snapshot().pending_events == 0)
    spool = gateway.gateway.spool
    assert spool.first_seq > 0
    assert spool.stats().segments >= 3
    assert cursor(gateway, "archive").delivered == 60
    await gateway.stop()
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    expect_log.append("refuses events")
    # A spool that was left full of what is only kept has room again before anybody comes.
    gateway = await launch(spool={**SMALL, "retain_secs": 86_400, "max_bytes": 131_072}, sinks=sinks)
    assert (await gateway.post("/ingest", event)).code == 200
    await gateway.stop()


async def test_spool_on_a_stalled_disk_answers_unknown_and_health_answers_meanwhile(
    launch: Any, example_event: Any, expect_log: list[str]
) -> None:
    expect_log += ["commit", "disk", "stall"]
    gateway = await launch()
    files = gateway.gateway.spool._files
    real = files.fdatasync
    release = threading.Event()

    def stalled(fd: int) -> None:
        release.wait(20)
        real(fd)

    files.fdatasync = stalled
    posting = asyncio.ensure_future(gateway.post("/ingest", example_event, request_timeout=15))
    await asyncio.sleep(0.2)
    loop = asyncio.get_running_loop()
    for _ in range(5):
        started = loop.time()
        assert (await gateway.fetch("GET", "/healthz")).code == 200
        assert loop.time() - started < 0.5
    response = await posting
    assert response.code == 503
    assert json.loads(response.body)["details"][0]["code"] == "busy.unknown"
    release.set()
    metrics = await gateway.metrics()
    assert metrics['edge_events_outcome_total{outcome="rejected",reason="busy.unknown"}'] == 1
    assert metrics["edge_events_unaccounted"] == 0
    await gateway.stop()
