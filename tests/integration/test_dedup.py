"""Events that are sent twice, over real sockets, on a disk that stalls, fails, and with processes that die."""

from __future__ import annotations

import asyncio
import errno
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from harness.delivered import ids_below

from edge.dedup import Dedup

KEY = "test-key-0123456789"
OTHER_KEY = "other-key-0123456789"
ON = {"enabled": True}
KEYS = {"mode": "keys", "keys": [{"id": "test", "key": KEY}, {"id": "other", "key": OTHER_KEY}]}


def code_of(response: Any) -> str:
    """Return what an answer says in one word: stored, duplicate, or the code of its refusal."""
    body = json.loads(response.body)
    if response.code != 200:
        return str(body["details"][0]["code"])
    assert body["status"] == "success"
    return "duplicate" if body.get("duplicate") is True else "stored"


def hold_disk(gateway: Any) -> threading.Event:
    """Let fdatasync wait until the returned event is set."""
    release = threading.Event()
    files = gateway.gateway.spool._files
    real = files.fdatasync

    def stalled(fd: int) -> None:
        release.wait(20)
        real(fd)

    files.fdatasync = stalled
    return release


async def check_books(gateway: Any, **outcomes: int) -> None:
    metrics = await gateway.metrics()
    assert metrics["edge_events_unaccounted"] == 0
    for outcome, n_events in outcomes.items():
        assert metrics[f'edge_events_outcome_total{{outcome="{outcome}",reason=""}}'] == n_events
    received = sum(value for name, value in metrics.items() if name.startswith("edge_events_received_total"))
    settled = sum(value for name, value in metrics.items() if name.startswith("edge_events_outcome_total"))
    assert received == settled


async def test_without_dedup_every_repeat_is_stored_and_its_counter_is_there(launch: Any, example_event: Any) -> None:
    gateway = await launch()
    assert [code_of(await gateway.post("/ingest", example_event)) for _ in range(2)] == ["stored", "stored"]
    await check_books(gateway, accepted=2, duplicate=0)
    assert "edge_dedup_ids" not in await gateway.metrics()
    checks = json.loads((await gateway.fetch("GET", "/readyz", admin=True)).body)["checks"]
    assert "dedup" not in checks


async def test_concurrent_twins_are_stored_once_and_answered_together(
    launch: Any, example_event: Any, eventually: Any, tmp_path: Path
) -> None:
    gateway = await launch(dedup=ON)
    release = hold_disk(gateway)
    posts = [asyncio.ensure_future(gateway.post("/ingest", example_event)) for _ in range(20)]
    await eventually(lambda: gateway.gateway.door.in_flight == 20)
    assert not any(post.done() for post in posts)
    release.set()
    assert sorted(code_of(response) for response in await asyncio.gather(*posts)) == ["duplicate"] * 19 + ["stored"]
    await check_books(gateway, accepted=1, duplicate=19)
    assert (await gateway.metrics())["edge_dedup_ids"] == 1
    await gateway.stop()
    assert delivered_ids(tmp_path) == [example_event["event_id"]]


async def test_same_id_under_another_key_is_another_event(launch: Any, example_event: Any) -> None:
    gateway = await launch(dedup=ON, auth=KEYS)
    other = {"X-API-Key": OTHER_KEY}
    answers = [
        code_of(await gateway.post("/ingest", example_event)),
        code_of(await gateway.post("/ingest", example_event, headers=other)),
        code_of(await gateway.post("/ingest", example_event)),
        code_of(await gateway.post("/ingest", example_event, headers=other)),
    ]
    assert answers == ["stored", "stored", "duplicate", "duplicate"]
    await check_books(gateway, accepted=2, duplicate=2)


async def test_batch_lists_its_duplicates_and_counts_them_as_accepted(launch: Any, example_event: Any) -> None:
    gateway = await launch(dedup=ON)
    events = [{**example_event, "event_id": event_id} for event_id in ("evt_0", "evt_1", "evt_0")]
    first = await gateway.post("/ingest/batch", events)
    assert first.code == 200
    assert json.loads(first.body) == {
        "status": "success",
        "accepted": 3,
        "rejected": 0,
        "results": [{"index": 2, "eventId": "evt_0", "status": "duplicate"}],
    }
    again = await gateway.post("/ingest/batch", [*events, {"event_id": "evt_9"}])
    assert again.code == 200
    body = json.loads(again.body)
    assert (body["status"], body["accepted"], body["rejected"]) == ("partial", 3, 1)
    assert [row["status"] for row in body["results"]] == ["duplicate", "duplicate", "duplicate", "invalid"]
    whole = await gateway.post("/ingest/batch", events)
    assert (whole.code, json.loads(whole.body)["status"], json.loads(whole.body)["accepted"]) == (200, "success", 3)
    await check_books(gateway, accepted=2, duplicate=7)


async def test_repeat_of_a_dropped_event_is_no_duplicate(launch: Any, example_event: Any) -> None:
    gateway = await launch(dedup=ON, pipeline=[{"type": "drop", "when": {"event_type": "click"}}])
    assert example_event["event_type"] == "click"
    assert [code_of(await gateway.post("/ingest", example_event)) for _ in range(2)] == ["stored", "stored"]
    other = {**example_event, "event_type": "view"}
    assert [code_of(await gateway.post("/ingest", other)) for _ in range(2)] == ["stored", "duplicate"]
    await check_books(gateway, accepted=1, duplicate=1)


async def test_commit_that_fails_makes_no_duplicates_of_its_retries(
    launch: Any, example_event: Any, eventually: Any, expect_log: list[str], tmp_path: Path
) -> None:
    expect_log.append("fdatasync of the spool failed")
    gateway = await launch(dedup=ON)
    files = gateway.gateway.spool._files
    real = files.fdatasync
    release = threading.Event()

    def fail_once(fd: int) -> None:
        release.wait(20)
        files.fdatasync = real
        raise OSError(errno.EIO, "no")

    files.fdatasync = fail_once
    posts = [asyncio.ensure_future(gateway.post("/ingest", example_event)) for _ in range(5)]
    await eventually(lambda: gateway.gateway.door.in_flight == 5)
    release.set()
    assert [code_of(response) for response in await asyncio.gather(*posts)] == ["busy.unknown"] * 5
    assert [code_of(await gateway.post("/ingest", example_event)) for _ in range(2)] == ["stored", "duplicate"]
    await check_books(gateway, accepted=1, duplicate=1)
    await gateway.stop()
    assert delivered_ids(tmp_path) == [example_event["event_id"]]


async def test_frame_that_becomes_durable_late_makes_the_retry_a_duplicate(
    launch: Any, example_event: Any, eventually: Any, tmp_path: Path
) -> None:
    gateway = await launch(dedup=ON)
    gateway.gateway.spool._stall_secs = 0.2
    release = hold_disk(gateway)
    posts = [asyncio.ensure_future(gateway.post("/ingest", example_event)) for _ in range(3)]
    assert [code_of(response) for response in await asyncio.gather(*posts)] == ["busy.unknown"] * 3
    # Nobody knows yet: a retry is told so at once, and is not stored beside the first.
    assert code_of(await gateway.post("/ingest", example_event)) == "busy.unknown"
    release.set()
    await eventually(lambda: gateway.gateway.spool.stats().late_events == 1)
    assert code_of(await gateway.post("/ingest", example_event)) == "duplicate"
    await check_books(gateway, accepted=0, duplicate=1)
    await gateway.stop()
    assert delivered_ids(tmp_path) == [example_event["event_id"]]


async def test_memory_durability_finds_repeats_too(launch: Any, example_event: Any) -> None:
    gateway = await launch(dedup=ON, spool={"durability": "memory"})
    assert [code_of(await gateway.post("/ingest", example_event)) for _ in range(2)] == ["stored", "duplicate"]
    await check_books(gateway, accepted=1, duplicate=1)


async def test_window_by_number_forgets_the_oldest(launch: Any, example_event: Any) -> None:
    gateway = await launch(dedup={**ON, "window_events": 3})
    for event_id in ("evt_0", "evt_1", "evt_2", "evt_3"):
        assert code_of(await gateway.post("/ingest", {**example_event, "event_id": event_id})) == "stored"
    assert code_of(await gateway.post("/ingest", {**example_event, "event_id": "evt_1"})) == "duplicate"
    assert code_of(await gateway.post("/ingest", {**example_event, "event_id": "evt_0"})) == "stored"
    assert (await gateway.metrics())["edge_dedup_ids"] == 3


async def test_gateway_listens_while_ids_are_read_back_and_is_not_ready(
    launch: Any, example_event: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    real = Dedup._load

    def slow(self: Any, *args: Any) -> None:
        release.wait(20)
        real(self, *args)

    monkeypatch.setattr(Dedup, "_load", slow)
    gateway = await launch(dedup=ON)
    ready = await gateway.fetch("GET", "/readyz", admin=True)
    assert ready.code == 503
    assert json.loads(ready.body)["checks"]["dedup"]["detail"] == "the ids of stored events are being read back"
    posting = asyncio.ensure_future(gateway.post("/ingest", example_event))
    assert (await gateway.fetch("GET", "/healthz")).code == 200
    assert not posting.done()
    release.set()
    assert code_of(await posting) == "stored"
    assert (await gateway.fetch("GET", "/readyz", admin=True)).code == 200


async def test_reload_cannot_change_dedup(
    launch: Any, config_path: Any, example_event: Any, expect_log: list[str]
) -> None:
    expect_log.append("the old one goes on")
    gateway = await launch(dedup=ON)
    config_path(dedup={**ON, "window_secs": 5})
    response = await gateway.fetch("POST", "/reload", b"", admin=True)
    assert response.code == 409
    assert "dedup cannot change at a reload" in json.loads(response.body)["details"][0]["message"]
    assert [code_of(await gateway.post("/ingest", example_event)) for _ in range(2)] == ["stored", "duplicate"]


async def test_ids_survive_a_reload(launch: Any, config_path: Any, example_event: Any) -> None:
    gateway = await launch(dedup=ON)
    assert code_of(await gateway.post("/ingest", example_event)) == "stored"
    config_path(dedup=ON, schema={"unknown_fields": "keep"})
    assert (await gateway.fetch("POST", "/reload", b"", admin=True)).code == 200
    assert code_of(await gateway.post("/ingest", example_event)) == "duplicate"


async def test_delivered_segments_stay_as_long_as_their_ids_are_needed(
    launch: Any, example_event: Any, eventually: Any
) -> None:
    async def segments_after_delivery(**parts: Any) -> int:
        gateway = await launch(spool={"segment_bytes": 65_536}, **parts)
        for number in range(30):
            event = {**example_event, "event_id": f"evt_{number}", "extras": {"pad": "x" * 20_000}}
            assert (await gateway.post("/ingest", event)).code == 200
        worker = gateway.gateway.worker("archive")
        await eventually(lambda: worker.snapshot().pending_events == 0)
        spool = gateway.gateway.spool
        spool.release(spool.durable_seq)
        n_segments = len(spool.starts())
        await gateway.stop()
        return n_segments

    assert await segments_after_delivery(dedup=ON) >= 10
    # The same configuration on the same spool without dedup lets go of them.
    assert await segments_after_delivery() <= 2


# Real processes, real deaths.


class Edge:
    """A gateway process."""

    def __init__(self, config: Path, cwd: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edge.cli", "run", "--config", str(config)],
            cwd=cwd,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if "the gateway is listening" in line:
                listening = json.loads(line)
                break
        else:
            raise AssertionError(f"the gateway did not start: exit code {self.process.wait()}")
        self.port = int(listening["ingest"][0].rpartition(":")[2])
        self.admin_port = int(listening["admin"][0].rpartition(":")[2])

    def post(self, event: dict[str, Any]) -> str:
        """Send until there is a verdict; empty when the process dies first."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/ingest",
            json.dumps(event).encode(),
            {"X-API-Key": KEY, "Content-Type": "application/json"},
        )
        while True:
            try:
                with urllib.request.urlopen(request, timeout=10) as response:
                    return "duplicate" if json.load(response).get("duplicate") else "stored"
            except urllib.error.HTTPError as error:
                with error:
                    if error.code != 503:
                        raise
                time.sleep(0.05)
            except OSError:
                return ""

    def unaccounted(self) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        (line,) = [line for line in lines if line.startswith("edge_events_unaccounted ")]
        return float(line.split()[1])

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()


@pytest.fixture
def edge(config_path: Callable[..., Path], tmp_path: Path) -> Iterator[Callable[..., Edge]]:
    started: list[Edge] = []

    def start(**parts: Any) -> Edge:
        started.append(Edge(config_path(log={"format": "json"}, dedup=ON, **parts), tmp_path))
        return started[-1]

    yield start
    for process in started:
        process.end()


def delivered_ids(tmp_path: Path) -> list[str]:
    return ids_below(tmp_path / "events")


def stored_ids(tmp_path: Path) -> list[str]:
    """Return the ids of all events in the spool, in order: what was accepted, and not what was delivered of it."""
    command = [sys.executable, "-m", "edge.cli", "spool", "dump", "--path", str(tmp_path / "spool" / "shard-000")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()
    return [json.loads(line)["event"]["event_id"] for line in lines]


def test_acknowledged_event_is_a_duplicate_after_any_death(
    edge: Callable[..., Edge], example_event: Any, tmp_path: Path
) -> None:
    """Eight senders repeat themselves while the process is killed again and again; each id is stored exactly once."""
    n_events, n_kills = 400, 4
    queue = iter([f"evt_{number}" for number in range(n_events)])
    lock = threading.Lock()
    current = edge()
    wrong: list[str] = []

    def send(event_id: str) -> str:
        """Send as an SDK does: again, under the same id, until somebody answers."""
        while True:
            verdict = current.post({**example_event, "event_id": event_id})
            if verdict:
                return verdict
            time.sleep(0.02)

    def work(twin: ThreadPoolExecutor) -> None:
        while True:
            with lock:
                event_id = next(queue, None)
            if event_id is None:
                return
            other = twin.submit(send, event_id)
            verdicts = [send(event_id), other.result()]
            # A first one that died with the process may have been stored, so both can be duplicates; never none.
            if verdicts.count("stored") > 1 or send(event_id) != "duplicate":
                wrong.append(event_id)

    with ThreadPoolExecutor(8) as twins, ThreadPoolExecutor(8) as senders:
        workers = [senders.submit(work, twins) for _ in range(8)]
        for _ in range(n_kills):
            time.sleep(0.6)
            current.end()
            current = edge()
        for worker in workers:
            worker.result(60)
    assert not wrong
    repeats = [current.post({**example_event, "event_id": f"evt_{number}"}) for number in range(n_events)]
    assert repeats == ["duplicate"] * n_events
    assert current.unaccounted() == 0
    current.end()
    assert sorted(stored_ids(tmp_path)) == sorted(f"evt_{number}" for number in range(n_events))


def test_ids_outlive_a_drain_and_the_window_ends_after_a_restart_too(
    edge: Callable[..., Edge], config_path: Callable[..., Path], example_event: Any
) -> None:
    first = edge()
    assert first.post(example_event) == "stored"
    stored_at = time.monotonic()
    first.process.terminate()
    assert first.process.wait(20) == 0
    second = edge()
    assert second.post(example_event) == "duplicate"
    second.end()
    started = Edge(config_path(log={"format": "json"}, dedup={**ON, "window_secs": 0.5}), config_path().parent)
    try:
        time.sleep(max(0.0, stored_at + 0.6 - time.monotonic()))
        assert started.post(example_event) == "stored"
    finally:
        started.end()
