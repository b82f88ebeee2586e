"""Sinks that are down, slow or answer nonsense: senders and the other sinks notice nothing, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from edge.testing import Answer, RecordingTarget

QUICK = {"batch": {"max_age_secs": 0.02}, "retry": {"initial_secs": 0.02, "max_secs": 0.1}}


def archive(tmp_path: Path) -> dict[str, Any]:
    return {"type": "file", "path": str(tmp_path / "events"), "batch": {"max_age_secs": 0.02}}


def stored_ids(tmp_path: Path) -> list[str]:
    files = sorted((tmp_path / "events").rglob("*.ndjson*"))
    return [json.loads(line)["event_id"] for file in files for line in file.read_bytes().splitlines()]


def numbered(example_event: Any, count: int, prefix: str = "evt") -> list[dict[str, Any]]:
    return [{**example_event, "event_id": f"{prefix}_{number}"} for number in range(count)]


def assert_sink_balances(metrics: dict[str, float], sink: str, accepted: int) -> None:
    settled = sum(
        value
        for name, value in metrics.items()
        if name.startswith("edge_sink_events_total{") and f'sink="{sink}"' in name
    )
    assert settled + metrics[f'edge_sink_pending_events{{sink="{sink}"}}'] == accepted
    assert metrics["edge_events_unaccounted"] == 0


async def test_http_sink_receives_what_was_posted(launch: Any, example_event: Any, eventually: Any) -> None:
    async with RecordingTarget() as target:
        gateway = await launch(sinks={"crm": {"type": "http", "url": target.url, **QUICK}})
        events = numbered(example_event, 10)
        assert (await gateway.post("/ingest/batch", events)).code == 200
        await eventually(lambda: target.events == events)
        await gateway.stop()


async def test_dead_sink_hurts_nobody_and_catches_up_when_it_is_back(
    launch: Any, example_event: Any, tmp_path: Path, free_port: int, eventually: Any, expect_log: list[str]
) -> None:
    expect_log.append("circuit")
    sinks = {"archive": archive(tmp_path), "crm": {"type": "http", "url": f"http://127.0.0.1:{free_port}/", **QUICK}}
    gateway = await launch(sinks=sinks)
    events = numbered(example_event, 40)
    for event in events:
        started = time.monotonic()
        assert (await gateway.post("/ingest", event)).code == 200
        assert time.monotonic() - started < 1
    await eventually(lambda: len(stored_ids(tmp_path)) == 40)
    metrics = await gateway.metrics()
    assert metrics['edge_sink_pending_events{sink="crm"}'] == 40
    assert_sink_balances(metrics, "crm", 40)

    async def circuit_opens() -> bool:
        return (await gateway.metrics())['edge_sink_circuit_state{sink="crm"}'] == 2

    await eventually(circuit_opens)
    received: list[str] = []
    server = await asyncio.start_server(_stub(received), "127.0.0.1", free_port)
    await eventually(lambda: sorted(received) == sorted(event["event_id"] for event in events))

    async def settled() -> bool:
        return (await gateway.metrics())['edge_sink_pending_events{sink="crm"}'] == 0

    await eventually(settled)
    assert_sink_balances(await gateway.metrics(), "crm", 40)
    await gateway.stop()
    server.close()


def _stub(received: list[str]) -> Any:
    """Return a connection handler that takes every batch."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        received.extend(json.loads(line)["event_id"] for line in body.splitlines())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    return serve


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
        b"\x00\xff garbage that is no HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n" + b"x" * 100_000,
        b"",
    ],
    ids=["500", "garbage", "huge answer", "closes"],
)
async def test_sink_that_answers_nonsense_keeps_its_events_pending(
    launch: Any, example_event: Any, tmp_path: Path, answer: bytes, eventually: Any, expect_log: list[str]
) -> None:
    expect_log.append("circuit")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    sinks = {"archive": archive(tmp_path), "crm": {"type": "http", "url": f"http://127.0.0.1:{port}/", **QUICK}}
    gateway = await launch(sinks=sinks)
    assert (await gateway.post("/ingest/batch", numbered(example_event, 5))).code == 200
    await eventually(lambda: len(stored_ids(tmp_path)) == 5)

    async def tried() -> bool:
        return (await gateway.metrics()).get('edge_sink_attempts_total{result="retryable",sink="crm"}', 0) >= 3

    await eventually(tried)
    metrics = await gateway.metrics()
    assert metrics['edge_sink_pending_events{sink="crm"}'] == 5
    assert metrics['edge_dead_letters{sink="crm"}'] == 0
    assert_sink_balances(metrics, "crm", 5)
    await gateway.stop()
    server.close()


async def test_sink_that_hangs_is_timed_out_while_the_other_delivers(
    launch: Any, example_event: Any, tmp_path: Path, eventually: Any, expect_log: list[str]
) -> None:
    expect_log.append("circuit")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        sinks = {"archive": archive(tmp_path), "crm": {"type": "http", "url": url, "timeout_secs": 0.1, **QUICK}}
        gateway = await launch(sinks=sinks)
        assert (await gateway.post("/ingest", example_event)).code == 200
        await eventually(lambda: stored_ids(tmp_path) == ["evt_123456789"])

        async def timed_out() -> bool:
            return (await gateway.metrics()).get('edge_sink_attempts_total{result="timeout",sink="crm"}', 0) >= 1

        await eventually(timed_out)
        await gateway.stop()


async def test_refused_batch_becomes_dead_letters_that_can_be_replayed(
    launch: Any, example_event: Any, eventually: Any, expect_log: list[str]
) -> None:
    expect_log.append("dead letter")
    async with RecordingTarget(Answer(406), then=Answer(200)) as target:
        gateway = await launch(
            sinks={"crm": {"type": "http", "url": target.url, **QUICK}, "other": {"type": "blackhole"}}
        )
        assert (await gateway.post("/ingest/batch", numbered(example_event, 3))).code == 200

        async def dead() -> bool:
            return (await gateway.metrics())['edge_dead_letters{sink="crm"}'] == 3

        await eventually(dead)
        assert_sink_balances(await gateway.metrics(), "crm", 3)
        dry = await gateway.fetch("POST", "/dead-letters/replay", {"sink": "crm", "dry_run": True}, admin=True)
        assert json.loads(dry.body) == {"status": "success", "matched": 3, "moved": 0}
        replayed = await gateway.fetch(
            "POST", "/dead-letters/replay", {"sink": "crm", "reason": "permanent"}, admin=True
        )
        assert json.loads(replayed.body) == {"status": "success", "matched": 3, "moved": 3}
        await eventually(lambda: len(target.events) == 6)
        assert [event["event_id"] for event in target.events[3:]] == ["evt_0", "evt_1", "evt_2"]
        metrics = await gateway.metrics()
        assert metrics['edge_dead_letters{sink="crm"}'] == 0
        assert metrics["edge_events_unaccounted"] == 0
        again = await gateway.fetch("POST", "/dead-letters/replay", {"sink": "crm"}, admin=True)
        assert json.loads(again.body)["moved"] == 0
        await gateway.stop()


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"[", 400, "body"),
        ({}, 400, "sink"),
        ({"sink": "nobody"}, 404, "sink"),
        ({"sink": "archive", "since": "yesterday"}, 400, "since"),
        ({"sink": "archive", "seqs": [True]}, 400, "seqs"),
        ({"sink": "archive", "reasons": "x"}, 400, "reasons"),
    ],
)
async def test_selection_that_makes_no_sense_is_refused(launch: Any, body: Any, status: int, field: str) -> None:
    gateway = await launch()
    response = await gateway.fetch("POST", "/dead-letters/replay", body, admin=True)
    assert (response.code, json.loads(response.body)["details"][0]["field"]) == (status, field)


async def test_sink_gets_only_what_its_when_asks_for(launch: Any, example_event: Any, eventually: Any) -> None:
    async with RecordingTarget() as target:
        sinks = {"crm": {"type": "http", "url": target.url, "when": {"event_type": "purchase"}, **QUICK}}
        gateway = await launch(sinks=sinks)
        events = [example_event, {**example_event, "event_type": "purchase"}, example_event]
        assert (await gateway.post("/ingest/batch", events)).code == 200
        await eventually(lambda: len(target.events) == 1)

        async def counted() -> bool:
            return (await gateway.metrics()).get('edge_sink_events_total{outcome="skipped",sink="crm"}', 0) == 2

        await eventually(counted)
        assert_sink_balances(await gateway.metrics(), "crm", 3)
        await gateway.stop()


async def test_reload_adds_changes_and_removes_sinks_without_losing_events(
    launch: Any, config_path: Any, example_event: Any, tmp_path: Path, eventually: Any, expect_log: list[str]
) -> None:
    expect_log.append("taken out of the configuration")
    async with RecordingTarget() as first, RecordingTarget() as second:
        kept = archive(tmp_path)
        gateway = await launch(sinks={"archive": kept, "crm": {"type": "http", "url": first.url, **QUICK}})
        assert (await gateway.post("/ingest", {**example_event, "event_id": "one"})).code == 200
        await eventually(lambda: [event["event_id"] for event in first.events] == ["one"])
        config_path(
            sinks={"archive": kept, "crm": {"type": "http", "url": second.url, **QUICK}, "new": {"type": "blackhole"}}
        )
        assert (await gateway.fetch("POST", "/reload", b"", admin=True)).code == 200
        assert (await gateway.post("/ingest", {**example_event, "event_id": "two"})).code == 200
        await eventually(lambda: [event["event_id"] for event in second.events] == ["two"])
        assert len(first.events) == 1
        config_path(sinks={"archive": kept})
        assert (await gateway.fetch("POST", "/reload", b"", admin=True)).code == 200
        assert (await gateway.post("/ingest", {**example_event, "event_id": "three"})).code == 200
        await eventually(lambda: stored_ids(tmp_path) == ["one", "two", "three"])
        metrics = await gateway.metrics()
        assert [name for name in metrics if name.startswith("edge_sink_pending_events")] == [
            'edge_sink_pending_events{sink="archive"}'
        ]
        assert metrics["edge_events_unaccounted"] == 0
        await gateway.stop()


async def test_reload_of_two_sinks_keeps_what_the_slow_one_has_not_settled(
    launch: Any,
    config_path: Any,
    example_event: Any,
    tmp_path: Path,
    free_port: int,
    eventually: Any,
    expect_log: list[str],
) -> None:
    """While one changed sink still stops, the other's backlog must not be released."""
    expect_log.append("circuit")
    small = {"segment_bytes": 65_536}
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        slow = {"type": "http", "url": f"http://127.0.0.1:{hanging.getsockname()[1]}/", **QUICK, "timeout_secs": 30}
        lagging = {"type": "http", "url": f"http://127.0.0.1:{free_port}/", **QUICK}
        parts = {"spool": small, "server": {"drain_timeout_secs": 3}}
        gateway = await launch(sinks={"archive": archive(tmp_path), "slow": slow, "lagging": lagging}, **parts)
        pad = {"pad": "x" * 20_000}
        for number in range(60):
            event = {**example_event, "event_id": f"evt_{number}", "extras": pad}
            assert (await gateway.post("/ingest", event)).code == 200
        await eventually(lambda: len(stored_ids(tmp_path)) == 60)
        received: list[str] = []
        server = await asyncio.start_server(_stub(received), "127.0.0.1", free_port)
        changed = {"archive": archive(tmp_path), "lagging": {**lagging, "timeout_secs": 5}}
        config_path(sinks={**changed, "slow": {"type": "blackhole"}}, **parts)
        assert (await gateway.fetch("POST", "/reload", b"", admin=True)).code == 200
        await eventually(lambda: len(set(received)) == 60, 20)
        metrics = await gateway.metrics()
        assert metrics["edge_events_unaccounted"] == 0
        assert metrics["edge_spool_lost_frames_total"] == 0
        await gateway.stop()
        server.close()


async def test_reload_that_cannot_make_its_files_leaves_the_old_configuration_whole(
    launch: Any, config_path: Any, example_event: Any, tmp_path: Path, eventually: Any, expect_log: list[str]
) -> None:
    expect_log.append("the old one goes on")
    gateway = await launch(sinks={"archive": {**archive(tmp_path), "required": True}})
    shard = tmp_path / "spool" / "shard-000"
    (shard / "cursor-new.a").mkdir()
    config_path(sinks={"new": {"type": "blackhole"}}, schema={"unknown_fields": "keep"})
    assert (await gateway.fetch("POST", "/reload", b"", admin=True)).code == 409
    assert (await gateway.post("/ingest", {**example_event, "unknown": 1})).code == 400
    assert (await gateway.post("/ingest", example_event)).code == 200
    await eventually(lambda: stored_ids(tmp_path) == ["evt_123456789"])
    assert (await gateway.fetch("GET", "/readyz", admin=True)).code == 200


async def test_reload_swaps_keys_and_pipeline_together_and_waits_for_no_busy_sink(
    launch: Any, config_path: Any, example_event: Any, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        slow = {"type": "http", "url": f"http://127.0.0.1:{hanging.getsockname()[1]}/", **QUICK, "timeout_secs": 30}
        gateway = await launch(sinks={"slow": slow})
        assert (await gateway.post("/ingest", example_event)).code == 200
        hanging.settimeout(0)
        held, _ = await asyncio.get_running_loop().sock_accept(hanging)
        keys = {"mode": "keys", "keys": [{"id": "test", "key": "another-key-1"}]}
        config_path(sinks={"slow": {**slow, "timeout_secs": 29}}, auth=keys)
        reloading = asyncio.ensure_future(gateway.fetch("POST", "/reload", b"", admin=True))
        await asyncio.sleep(0.5)
        assert not reloading.done()
        assert (await gateway.post("/ingest", example_event)).code == 401
        assert (await gateway.post("/ingest", example_event, headers={"X-API-Key": "another-key-1"})).code == 200
        assert (await reloading).code == 200
        held.close()


async def test_event_that_a_component_made_unstorable_is_rejected_by_itself(
    launch: Any, example_event: Any, expect_log: list[str]
) -> None:
    expect_log.append("cannot be stored")
    gateway = await launch(sinks={"nowhere": {"type": "blackhole"}})
    plan = gateway.gateway.door.plan
    run_all = plan.pipeline.run_all

    def poison(events: list[Any], context: Any) -> Any:
        for event in events:
            if event["event_id"] == "evt_1":
                event["extras"]["when"] = {1, 2}
        return run_all(events, context)

    plan.pipeline.run_all = poison  # one event alone goes through it as well
    events = [{**event, "extras": {}} for event in numbered(example_event, 3)]
    response = await gateway.post("/ingest/batch", events)
    assert response.code == 200
    body = json.loads(response.body)
    assert (body["accepted"], body["rejected"]) == (2, 1)
    assert body["results"][0]["retryable"] is True
    assert (await gateway.metrics())["edge_events_unaccounted"] == 0
