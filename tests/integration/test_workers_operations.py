"""A gateway of several processes in the hands of its operator: full spool, dead letters, damage, the commands."""

from __future__ import annotations

import http.server
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

QUICK = {"batch": {"max_age_secs": 0.02}, "retry": {"initial_secs": 0.02, "max_secs": 0.1}}
NAMES = [f"evt-{number}" for number in range(40)]


class Target:
    """An HTTP target that answers what it is told to."""

    def __init__(self) -> None:
        self.status = 200
        self.ids: list[str] = []
        target = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                lines = self.rfile.read(int(self.headers["Content-Length"])).splitlines()
                if target.status == 200:
                    target.ids += [json.loads(line)["event_id"] for line in lines]
                self.send_response(target.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def target() -> Iterator[Target]:
    made = Target()
    yield made
    made.close()


def sinks(target: Target, tmp_path: Path, **options: Any) -> dict[str, Any]:
    return {
        "crm": {"type": "http", "url": target.url, **QUICK, **options},
        "archive": {"type": "file", "path": str(tmp_path / "events"), "batch": {"max_age_secs": 0.02}},
    }


def outcomes(metrics: dict[str, float], sink: str) -> dict[str, float]:
    return {
        outcome: metrics[f'edge_sink_events_total{{outcome="{outcome}",sink="{sink}"}}']
        for outcome in ("delivered", "dead_lettered", "skipped", "dropped")
    }


def test_full_spool_drops_the_oldest_of_a_dead_sink_on_every_shard(
    several: Any, example_event: Any, target: Target, tmp_path: Path
) -> None:
    target.status = 503
    both = sinks(target, tmp_path)
    both["archive"]["required"] = True  # segments are tiny: it could lose what it is about to deliver
    gateway = several(spool={"max_bytes": 3 * 196_608}, sinks=both)
    gateway.until_all_accept()
    event = {**example_event, "extras": {"pad": "x" * 8000}}
    n_sent, refused = 150, 0
    for number in range(n_sent):
        while gateway.ask("POST", "/ingest", {**event, "event_id": f"evt-{number}"})[0] != 200:
            refused += 1
            assert refused < 200
            time.sleep(0.02)
    gateway.until(lambda: gateway.metrics()['edge_sink_pending_events{sink="archive"}'] == 0)
    target.status = 200
    gateway.until(lambda: gateway.metrics()['edge_sink_pending_events{sink="crm"}'] == 0)
    metrics = gateway.metrics()
    assert outcomes(metrics, "archive")["delivered"] == n_sent, outcomes(metrics, "archive")
    crm = outcomes(metrics, "crm")
    assert crm["dropped"] > 20
    assert crm["delivered"] + crm["dropped"] == n_sent
    assert metrics["edge_events_unaccounted"] == 0
    assert gateway.stop() == 0
    assert len(set(target.ids)) == crm["delivered"]


def test_full_spool_of_a_required_sink_refuses_and_resumes(
    several: Any, example_event: Any, target: Target, tmp_path: Path
) -> None:
    target.status = 503
    gateway = several(spool={"max_bytes": 3 * 131_072}, sinks=sinks(target, tmp_path, required=True))
    gateway.until_all_accept()
    event = {**example_event, "extras": {"pad": "x" * 8000}}
    accepted: list[str] = []
    statuses: list[int] = []
    for number in range(100):
        statuses.append(gateway.ask("POST", "/ingest", {**event, "event_id": f"evt-{number}"})[0])
        if statuses[-1] == 200:
            accepted.append(f"evt-{number}")
    assert statuses[-10:] == [503] * 10
    target.status = 200

    def both_take() -> bool:
        answers = [gateway.ask("POST", "/ingest", {**example_event, "event_id": f"fresh-{n}"})[0] for n in range(8)]
        accepted.extend(f"fresh-{n}" for n, status in enumerate(answers) if status == 200)
        return answers == [200] * 8

    gateway.until(both_take)
    gateway.until(lambda: gateway.metrics()['edge_sink_pending_events{sink="crm"}'] == 0)
    metrics = gateway.metrics()
    assert outcomes(metrics, "crm")["dropped"] == 0
    assert metrics["edge_events_unaccounted"] == 0
    assert gateway.stop() == 0
    assert set(accepted) == set(target.ids)


def test_dead_letters_of_all_shards_are_replayed_by_the_command(
    several: Any, example_event: Any, target: Target, tmp_path: Path
) -> None:
    target.status = 410
    gateway = several(sinks=sinks(target, tmp_path))
    gateway.post_all(example_event, NAMES)
    gateway.until(lambda: gateway.metrics()['edge_dead_letters{sink="crm"}'] == len(NAMES))
    target.status = 200
    listed = gateway.edge("dead-letters", "show", "--sink", "crm")
    assert len(listed.stdout.splitlines()) == len(NAMES)
    replayed = gateway.edge("dead-letters", "replay", "--sink", "crm")
    assert replayed.returncode == 0, replayed.stderr
    gateway.until(lambda: sorted(target.ids) == sorted(NAMES))
    # What is replayed lies in the shard of who delivers, and goes on after its death.
    target.status = 503
    os.kill(gateway.pid("delivery"), signal.SIGKILL)
    gateway.until(lambda: gateway.checks()["status"] == "pass")
    target.status = 200
    metrics = gateway.metrics()
    assert metrics['edge_dead_letters{sink="crm"}'] == 0
    assert metrics["edge_events_unaccounted"] == 0
    assert gateway.stop() == 0


def test_commands_see_every_shard_of_a_gateway_that_runs_and_of_one_that_does_not(
    several: Any, example_event: Any, target: Target, tmp_path: Path
) -> None:
    gateway = several(spool={"retain_secs": 3600}, sinks=sinks(target, tmp_path))
    gateway.until_all_accept()
    gateway.post_all(example_event, NAMES)
    gateway.until(lambda: sorted(target.ids) == sorted(NAMES))
    gateway.until_delivered()
    for is_running in (True, False):
        if not is_running:
            assert gateway.stop() == 0
        stats = gateway.edge("spool", "stats")
        assert stats.stdout.count("next event") == 3
        assert gateway.edge("spool", "stats", "--shard", "shard-001").stdout.count("next event") == 1
        assert "there is no shard shard-009" in gateway.edge("spool", "stats", "--shard", "shard-009").stderr
        assert gateway.edge("spool", "verify").returncode == 0
        lines = [json.loads(line) for line in gateway.edge("spool", "dump").stdout.splitlines()]
        events = [line for line in lines if line["kind"] == "events"]
        assert sorted(line["event"]["event_id"] for line in events) == sorted(NAMES)
        assert {line["shard"] for line in events} == {"shard-001", "shard-002"}
        assert "--from needs --shard" in gateway.edge("spool", "dump", "--from", "3").stderr
        assert gateway.edge("spool", "repair", "--dry-run").returncode == 0
        repaired = gateway.edge("spool", "repair")
        assert repaired.returncode == 0, repaired.stderr
        replayed = gateway.edge("spool", "replay", "--sink", "crm", "--since", "1h")
        assert replayed.returncode == 0, replayed.stderr
        assert "40 events replayed" in replayed.stdout
        if is_running:
            gateway.until(lambda: len(target.ids) == 2 * len(NAMES))
    again = several(spool={"retain_secs": 3600}, sinks=sinks(target, tmp_path))
    again.until(lambda: len(target.ids) == 3 * len(NAMES))
    # The archive had none of them again.
    assert len(again.delivered_ids()) == len(NAMES)
    assert again.stop() == 0


def test_damage_in_a_shard_is_repaired_by_who_writes_it(
    several: Any, example_event: Any, target: Target, tmp_path: Path
) -> None:
    target.status = 503
    gateway = several(sinks=sinks(target, tmp_path))
    gateway.until_all_accept()
    event = {**example_event, "extras": {"pad": "x" * 8000}}
    gateway.post_all(event, NAMES)
    first = min((tmp_path / "spool" / "shard-001").glob("seg-*.log"))
    with first.open("r+b") as file:
        file.seek(20_000)
        file.write(b"\xaa\xaa")
    os.kill(gateway.pid("delivery"), signal.SIGKILL)  # which had read all of it before
    gateway.until(lambda: gateway.checks()["status"] == "pass")
    repaired = gateway.edge("spool", "repair")
    assert repaired.returncode == 1
    assert "moved to quarantine" in repaired.stdout
    assert "missing" in repaired.stdout
    target.status = 200
    gateway.until(lambda: gateway.metrics()['edge_sink_pending_events{sink="crm"}'] == 0)
    assert gateway.metrics()["edge_events_unaccounted"] == 0
    assert len(set(target.ids)) == len(NAMES) - 1
    assert gateway.stop() == 0


def test_sink_that_is_gone_is_forgotten_on_every_shard(
    several: Any, example_event: Any, target: Target, tmp_path: Path
) -> None:
    both = sinks(target, tmp_path)
    gateway = several(sinks=both)
    gateway.post_all(example_event, NAMES)
    assert gateway.stop() == 0
    again = several(sinks={"archive": both["archive"]})
    again.until(lambda: again.checks()["status"] == "pass")
    assert again.edge("spool", "forget", "--sink", "crm").returncode == 0
    assert not list((tmp_path / "spool").rglob("cursor-crm.*"))
    assert again.stop() == 0
