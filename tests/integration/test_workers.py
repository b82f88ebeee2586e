"""A gateway of several processes: what senders and operators see, whichever of its processes dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import plugin

from edge.roles import shard_names
from edge.spool import inspect


def assert_books_balance(metrics: dict[str, float], n_accepted: int) -> None:
    settled = sum(value for name, value in metrics.items() if name.startswith("edge_sink_events_total{"))
    assert metrics['edge_events_outcome_total{outcome="accepted",reason=""}'] == n_accepted
    assert settled == n_accepted
    assert metrics["edge_events_unaccounted"] == 0


def test_two_processes_take_events_and_one_delivers_them(several: Any, example_event: Any, tmp_path: Path) -> None:
    gateway = several()
    names = [f"evt-{number}" for number in range(60)]
    gateway.until_all_accept()
    gateway.post_all(example_event, names)
    metrics = gateway.until_delivered()
    assert sorted(gateway.delivered_ids()) == sorted(names)
    assert_books_balance(metrics, 60)
    assert metrics["edge_spool_commit_events_count"] == 60  # of both, in one scrape
    assert all(metrics[f'edge_process_up{{process="{name}"}}'] == 1 for name in ("delivery", "ingest-1", "ingest-2"))
    # Sixty connections are spread over both.
    assert all(inspect.stats(tmp_path / "spool" / shard).next_seq > 5 for shard in ("shard-001", "shard-002"))
    assert gateway.stop() == 0


def test_events_of_a_start_reach_a_sink_that_is_new(several: Any, example_event: Any, tmp_path: Path) -> None:
    gateway = several(sinks={"archive": {"type": "file", "path": str(tmp_path / "events")}})
    gateway.post_all(example_event, ["first"])  # at once: before anybody follows the shard, as it may be
    assert gateway.stop() == 0
    assert gateway.delivered_ids() == ["first"]


@pytest.mark.parametrize("role", ["ingest-1", "delivery"])
def test_a_process_that_is_killed_is_started_again_and_nothing_is_lost(
    several: Any, example_event: Any, senders: Any, tmp_path: Path, role: str
) -> None:
    gateway = several()
    with senders(gateway, example_event) as posted:
        for round_ in range(3):
            gateway.until(lambda: gateway.checks()["status"] == "pass")
            before = len(posted.acknowledged)
            os.kill(gateway.pid(role), signal.SIGKILL)
            gateway.until(lambda before=before: len(posted.acknowledged) > before + 20)
            gateway.wait_for("a process of the gateway died", n=round_ + 1)
    gateway.until(lambda: gateway.checks()["status"] == "pass")
    assert set(posted.refused) <= {503}
    if role == "delivery":  # which no sender notices
        assert not posted.errors
        assert not posted.refused
    metrics = gateway.until_delivered()
    assert metrics["edge_events_unaccounted"] == 0
    kind = role.partition("-")[0]
    assert metrics[f'edge_process_restarts_total{{role="{kind}"}}'] == 3
    assert gateway.stop() == 0
    assert set(posted.acknowledged) <= set(gateway.delivered_ids())
    for shard in shard_names(tmp_path / "spool"):
        stats = inspect.stats(tmp_path / "spool" / shard)
        cursor = stats.cursors["archive"]
        assert cursor is not None
        assert cursor.position == stats.next_seq == cursor.base + cursor.settled_events
        assert cursor.lost == 0


def test_all_processes_killed_at_once_lose_nothing(several: Any, example_event: Any, senders: Any) -> None:
    acknowledged: list[str] = []
    for workers in (2, 3, 1):
        gateway = several(workers)
        with senders(gateway, example_event) as posted:
            gateway.until(lambda posted=posted: len(posted.acknowledged) > 60)
            os.killpg(gateway.process.pid, signal.SIGKILL)
            gateway.process.wait()
        acknowledged += posted.acknowledged
    gateway = several(2)
    gateway.until(lambda: set(acknowledged) <= set(gateway.delivered_ids()))
    assert gateway.until_delivered()["edge_events_unaccounted"] == 0
    assert gateway.stop() == 0


def test_senders_go_on_while_an_ingest_process_is_down(several: Any, example_event: Any) -> None:
    gateway = several()
    gateway.until(lambda: gateway.checks()["status"] == "pass")
    os.kill(gateway.pid("ingest-2"), signal.SIGSTOP)
    stopped = gateway.pid("ingest-2")
    try:
        # It does not answer: what it had counted is in the scrape, what it is just doing is not.
        assert gateway.metrics()['edge_process_up{process="ingest-2"}'] == 0
        checks = gateway.checks()["checks"]
        assert checks["process:ingest-2"]["status"] == "fail"
        assert checks["process:ingest-1"]["status"] == "pass"
    finally:
        os.kill(stopped, signal.SIGCONT)
    gateway.until(lambda: gateway.checks()["status"] == "pass")
    assert gateway.stop() == 0


@pytest.mark.parametrize("whole_group", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_drain_under_load_resets_no_connection(
    several: Any, example_event: Any, senders: Any, number: int, whole_group: bool
) -> None:
    gateway = several()
    with senders(gateway, example_event, n=8) as posted:
        gateway.until(lambda: len(posted.acknowledged) > 100)
        if whole_group:  # as Ctrl-C does, and systemd unless it is told otherwise
            os.killpg(gateway.process.pid, number)
        else:
            gateway.process.send_signal(number)
        assert gateway.process.wait(20) == 0
    assert not [error for error in posted.errors if error != "ConnectionRefusedError"]
    assert sorted(gateway.delivered_ids()) == sorted(posted.acknowledged)


def test_second_signal_waits_for_nobody(several: Any, example_event: Any) -> None:
    gateway = several(server={"pre_stop_secs": 30})
    gateway.post_all(example_event, ["last"])
    gateway.process.send_signal(signal.SIGTERM)
    gateway.until(lambda: gateway.checks()["checks"]["draining"]["status"] == "fail")
    assert gateway.ask("GET", "/healthz")[0] == 503
    assert gateway.ask("GET", "/healthz", admin=True)[0] == 503
    gateway.post_all(example_event, ["very last"])  # it goes on answering for pre_stop_secs
    began = time.monotonic()
    gateway.process.send_signal(signal.SIGTERM)
    assert gateway.process.wait(10) == 0
    assert time.monotonic() - began < 5


def test_restart_of_one_process_refuses_no_connection(
    several: Any, example_event: Any, senders: Any, tmp_path: Path
) -> None:
    gateway = several()
    with senders(gateway, example_event) as posted:
        for number in range(1, 5):
            gateway.until(lambda: gateway.checks()["status"] == "pass")
            os.kill(gateway.pid(f"ingest-{number % 2 + 1}"), signal.SIGTERM)
            gateway.wait_for("a process of the gateway has stopped and is started again", n=number)
        gateway.until(lambda: gateway.checks()["status"] == "pass")
    assert not posted.errors
    assert not posted.refused
    metrics = gateway.until_delivered()
    # What the processes before them had counted is not forgotten.
    assert_books_balance(metrics, len(posted.acknowledged))
    assert gateway.stop() == 0
    assert sorted(gateway.delivered_ids()) == sorted(posted.acknowledged)


def test_reload_reaches_every_process_and_says_what_is_wrong(
    several: Any, example_event: Any, tmp_path: Path, config_path: Callable[..., Path]
) -> None:
    gateway = several()
    config = tmp_path / "edge.yaml"
    text = config.read_text()
    assert gateway.ask("POST", "/ingest", {**example_event, "shoe_size": 43})[0] == 400
    config.write_text(text + "schema: {unknown_fields: keep}\n")
    assert gateway.ask("POST", "/reload", admin=True)[0] == 200
    for _ in range(20):
        assert gateway.ask("POST", "/ingest", {**example_event, "shoe_size": 43})[0] == 200
    config.write_text(text + "schema: {unknown_fields: perhaps}\n")
    status, body = gateway.ask("POST", "/reload", admin=True)
    assert status == 409
    assert b"unknown_fields" in body
    assert gateway.metrics()["edge_config_last_reload_successful"] == 0
    # One that is started now has the configuration of the others, not the broken file.
    os.kill(gateway.pid("ingest-1"), signal.SIGKILL)
    gateway.wait_for("a process of the gateway died")
    gateway.until(lambda: gateway.checks()["status"] == "pass")
    for _ in range(20):
        assert gateway.ask("POST", "/ingest", {**example_event, "shoe_size": 43})[0] == 200
    config.write_text(text)
    gateway.process.send_signal(signal.SIGHUP)
    several_posts = range(20)  # which reach both processes
    gateway.until(
        lambda: {gateway.ask("POST", "/ingest", {**example_event, "shoe_size": 43})[0] for _ in several_posts} == {400}
    )
    config.write_text(text.replace("workers: 2", "workers: 3"))
    assert b"server.workers cannot change" in gateway.ask("POST", "/reload", admin=True)[1]
    assert gateway.stop() == 0


def test_counters_never_go_back_when_processes_die(several: Any, example_event: Any) -> None:
    gateway = several()
    name = 'edge_events_outcome_total{outcome="accepted",reason=""}'
    delivered = 'edge_sink_events_total{outcome="delivered",sink="archive"}'
    gateway.post_all(example_event, [f"a-{number}" for number in range(30)])
    gateway.until_delivered()
    before = gateway.metrics()
    for role in ("ingest-1", "ingest-2", "delivery"):
        os.kill(gateway.pid(role), signal.SIGKILL)
        gateway.until(lambda: gateway.checks()["status"] == "pass")
    after = gateway.metrics()
    assert after[name] == before[name] == 30
    assert after[delivered] == before[delivered] == 30
    count = "edge_spool_commit_duration_seconds_count"
    assert after[count] == before[count] == 30
    assert gateway.stop() == 0


def test_number_of_workers_may_change_at_a_restart(several: Any, example_event: Any, tmp_path: Path) -> None:
    sent: list[str] = []

    def life(workers: int, *, is_down: bool) -> None:
        # A directory that is a file: the sink cannot be opened, and all stays in the spool.
        target = tmp_path / ("blocked" if is_down else "events")
        (tmp_path / "blocked").touch()
        gateway = several(
            workers, sinks={"archive": {"type": "file", "path": str(target), "batch": {"max_age_secs": 0}}}
        )
        names = [f"{workers}-{len(sent)}-{number}" for number in range(20)]
        gateway.post_all(example_event, names)
        sent.extend(names)
        if not is_down:
            gateway.until(lambda: sorted(gateway.delivered_ids()) == sorted(sent))
            gateway.until(lambda: gateway.metrics()["edge_events_unaccounted"] == 0)
        assert gateway.stop() == 0

    life(1, is_down=True)
    life(3, is_down=True)
    life(1, is_down=False)
    life(3, is_down=True)
    life(2, is_down=False)
    life(1, is_down=True)
    life(2, is_down=False)
    for shard in shard_names(tmp_path / "spool"):
        stats = inspect.stats(tmp_path / "spool" / shard)
        cursor = stats.cursors["archive"]
        assert cursor is not None
        assert cursor.position == stats.next_seq


def test_processes_stop_when_their_parent_is_killed(several: Any, example_event: Any, tmp_path: Path) -> None:
    gateway = several()
    gateway.until(lambda: gateway.checks()["status"] == "pass")
    pids = [gateway.pid(name) for name in ("delivery", "ingest-1", "ingest-2")]
    gateway.post_all(example_event, ["last"])
    gateway.process.kill()
    gateway.process.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert gateway.delivered_ids() == ["last"]


def test_gateway_that_cannot_start_says_why_and_leaves_nothing_running(
    config_path: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "spool").write_text("in the way")
    config = config_path(log={"format": "json"}, server={"workers": 2})
    command = [sys.executable, "-m", "edge.cli", "run", "--config", str(config)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 1
    assert "the gateway cannot start" in ended.stderr


KILLER = '''
import ctypes
from pathlib import Path

from voluptuous import Required

from edge.api import Sink, hookimpl


class MinefieldSink(Sink):
    """Write event ids down; one of them is a mine."""

    type = "minefield"
    options = {Required("path", description="File that receives the ids."): str}

    @hookimpl
    async def edge_deliver(self, batch):
        ids = [event["event_id"] for event in batch.events]
        if "mine" in ids:
            ctypes.string_at(0)
        with Path(self.options["path"]).open("a") as file:
            file.write("".join(f"{event_id}\\n" for event_id in ids))


@hookimpl
def edge_register_components(registry):
    registry.add(MinefieldSink)
'''


def test_event_that_kills_the_delivery_process_becomes_a_dead_letter(
    several: Any, example_event: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(plugin.install(tmp_path, "minefield", KILLER)))
    path = tmp_path / "ids"
    gateway = several(sinks={"archive": {"type": "minefield", "path": str(path), "batch": {"max_age_secs": 0.02}}})
    names = [f"evt-{number}" for number in range(40)]
    gateway.post_all(example_event, [*names[:20], "mine", *names[20:]])
    gateway.until(lambda: gateway.metrics()['edge_dead_letters{sink="archive"}'] == 1, 40)
    metrics = gateway.until_delivered()
    assert metrics["edge_events_unaccounted"] == 0
    assert metrics['edge_process_restarts_total{role="ingest"}'] == 0
    assert set(path.read_text().split()) == set(names)
    shown = gateway.edge("dead-letters", "show", "--sink", "archive").stdout
    assert '"mine"' in shown
    assert "poison" in shown
    assert gateway.stop() == 0


def test_listeners_on_unix_sockets_are_shared(several: Any, example_event: Any, tmp_path: Path) -> None:
    path = tmp_path / "in.sock"
    gateway = several(server={"listen": [f"unix:{path}", "127.0.0.1:0"]})
    body = json.dumps(example_event).encode()
    head = (
        f"POST /ingest HTTP/1.1\r\nHost: t\r\nX-API-Key: test-key-0123456789\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    for _ in range(20):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(5)
            sock.connect(str(path))
            sock.sendall(head.encode() + body)
            assert sock.recv(65_536).startswith(b"HTTP/1.1 200 ")
    gateway.until_delivered()
    assert gateway.stop() == 0
    assert len(gateway.delivered_ids()) == 20
    assert not path.exists()
