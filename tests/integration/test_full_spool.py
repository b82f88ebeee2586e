"""A spool without room: senders are told to come back, delivery goes on, and taking events resumes by itself."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

from edge.testing import Answer, RecordingTarget

QUICK = {"batch": {"max_age_secs": 0.02}, "retry": {"initial_secs": 0.02, "max_secs": 0.1}}


async def test_full_spool_refuses_and_resumes_when_the_sink_is_back(
    launch: Any, example_event: Any, eventually: Any, expect_log: list[str]
) -> None:
    expect_log += ["circuit", "full", "room"]
    async with RecordingTarget(then=Answer(503)) as target:
        gateway = await launch(
            spool={"segment_bytes": 65_536, "max_bytes": 262_144},
            sinks={"crm": {"type": "http", "url": target.url, **QUICK}},
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
