"""A gateway of several processes: what senders and operators see, whichever of its processes dies."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from edge.roles import shard_names
from edge.spool import inspect

KEY = "test-key-0123456789"
SEGMENT_BYTES = 65_536


class Several:
    """A gateway of several processes that writes its log as JSON lines."""

    def __init__(self, config: Path, cwd: Path) -> None:
        self.cwd = cwd
        self.log_path = cwd / f"gateway-{time.monotonic_ns()}.log"
        with self.log_path.open("wb") as log:
            command = [sys.executable, "-m", "edge.cli", "run", "--config", str(config)]
            self.process = subprocess.Popen(
                command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=log, env={**os.environ, "NO_COLOR": "1"}
            )
        listening = self.wait_for("the gateway is listening")
        self.port = int(listening["ingest"][0].rpartition(":")[2])
        self.admin_port = int(listening["admin"][0].rpartition(":")[2])

    def lines(self) -> list[dict[str, Any]]:
        text = self.log_path.read_text(errors="replace").rpartition("\n")[0]
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def wait_for(self, event: str, secs: float = 20.0, n: int = 1) -> dict[str, Any]:
        deadline = time.monotonic() + secs
        while True:
            found = [line for line in self.lines() if event in line["event"]]
            if len(found) >= n:
                return found[n - 1]
            assert self.process.poll() is None, self.log_path.read_text()
            assert time.monotonic() < deadline, f"no {n} lines {event!r}: {self.log_path.read_text()}"
            time.sleep(0.02)

    def ask(self, method: str, path: str, body: Any = None, *, admin: bool = False) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port if admin else self.port, timeout=10)
        headers = {"Content-Type": "application/json", "X-API-Key": KEY}
        try:
            connection.request(method, path, None if body is None else json.dumps(body).encode(), headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def metrics(self) -> dict[str, float]:
        status, text = self.ask("GET", "/metrics", admin=True)
        assert status == 200
        pairs = (line.rpartition(" ") for line in text.decode().splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def checks(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ask("GET", "/readyz", admin=True)[1])
        return found

    def pid(self, name: str) -> int:
        """Return the process with a name, as `edge_process_pid` has it."""
        return int(self.metrics()[f'edge_process_pid{{process="{name}"}}'])

    def until(self, condition: Callable[[], Any], secs: float = 20.0) -> Any:
        deadline = time.monotonic() + secs
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException, KeyError):
                if found := condition():
                    return found
            assert time.monotonic() < deadline, f"not in time: {self.log_path.read_text()[-4000:]}"
            time.sleep(0.05)

    def until_delivered(self) -> dict[str, float]:
        """Wait until every sink has all; return the metrics of that moment."""
        self.until(lambda: self.metrics()['edge_sink_pending_events{sink="archive"}'] == 0)
        return self.metrics()

    def stop(self, secs: float = 20.0) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(secs)

    def end(self) -> None:
        """End whatever is left of it."""
        if self.process.poll() is None:
            self.process.kill()  # its children notice, and drain
            self.process.wait()


class Senders:
    """Threads that post one event after the other, and know which of them were acknowledged."""

    def __init__(self, gateway: Several, event: dict[str, Any], n: int = 4, *, keep_alive: bool = False) -> None:
        self.acknowledged: list[str] = []
        self.refused: list[int] = []
        self.errors: list[str] = []
        self.longest_secs = 0.0
        self._gateway, self._event, self._keep_alive = gateway, event, keep_alive
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(index,)) for index in range(n)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send(self, index: int) -> None:
        number = 0
        prefix = f"{index}-{time.monotonic_ns()}"
        connection: http.client.HTTPConnection | None = None
        while not self._stop.is_set():
            name = f"{prefix}-{number}"
            number += 1
            began = time.monotonic()
            try:
                if connection is None:
                    connection = http.client.HTTPConnection("127.0.0.1", self._gateway.port, timeout=10)
                body = json.dumps({**self._event, "event_id": name}).encode()
                connection.request("POST", "/ingest", body, {"Content-Type": "application/json", "X-API-Key": KEY})
                response = connection.getresponse()
                response.read()
                (self.acknowledged.append(name) if response.status == 200 else self.refused.append(response.status))
                if response.will_close or not self._keep_alive:
                    connection.close()
                    connection = None
            except (OSError, http.client.HTTPException) as error:
                self.errors.append(type(error).__name__)
                connection = None
            self.longest_secs = max(self.longest_secs, time.monotonic() - began)


@pytest.fixture
def start(config_path: Callable[..., Path], tmp_path: Path) -> Iterator[Callable[..., Several]]:
    started: list[Several] = []

    def run(workers: int = 2, **parts: Any) -> Several:
        server = {"workers": workers, "drain_timeout_secs": 5, **parts.pop("server", {})}
        spool = {"segment_bytes": SEGMENT_BYTES, **parts.pop("spool", {})}
        started.append(Several(config_path(log={"format": "json"}, server=server, spool=spool, **parts), tmp_path))
        return started[-1]

    yield run
    for gateway in started:
        gateway.end()


def delivered_ids(tmp_path: Path) -> list[str]:
    files = sorted((tmp_path / "events").rglob("*.ndjson*"))
    return [json.loads(line)["event_id"] for file in files for line in file.read_bytes().splitlines()]


def post_all(gateway: Several, event: dict[str, Any], names: list[str]) -> None:
    for name in names:
        assert gateway.ask("POST", "/ingest", {**event, "event_id": name})[0] == 200


def assert_books_balance(metrics: dict[str, float], n_accepted: int) -> None:
    settled = sum(value for name, value in metrics.items() if name.startswith("edge_sink_events_total{"))
    assert metrics['edge_events_outcome_total{outcome="accepted",reason=""}'] == n_accepted
    assert settled == n_accepted
    assert metrics["edge_events_unaccounted"] == 0


def test_two_processes_take_events_and_one_delivers_them(start: Any, example_event: Any, tmp_path: Path) -> None:
    gateway = start()
    names = [f"evt-{number}" for number in range(60)]
    post_all(gateway, example_event, names)
    gateway.until(lambda: gateway.checks()["status"] == "pass")
    metrics = gateway.until_delivered()
    assert sorted(delivered_ids(tmp_path)) == sorted(names)
    assert_books_balance(metrics, 60)
    assert metrics["edge_spool_commit_events_count"] == 60  # of both, in one scrape
    assert all(metrics[f'edge_process_up{{process="{name}"}}'] == 1 for name in ("delivery", "ingest-1", "ingest-2"))
    # Sixty connections are spread over both.
    assert all(inspect.stats(tmp_path / "spool" / shard).next_seq > 5 for shard in ("shard-001", "shard-002"))
    assert gateway.stop() == 0


def test_events_of_a_start_reach_a_sink_that_is_new(start: Any, example_event: Any, tmp_path: Path) -> None:
    gateway = start(sinks={"archive": {"type": "file", "path": str(tmp_path / "events")}})
    post_all(gateway, example_event, ["first"])  # at once: before anybody follows the shard, as it may be
    assert gateway.stop() == 0
    assert delivered_ids(tmp_path) == ["first"]


@pytest.mark.parametrize("role", ["ingest-1", "delivery"])
def test_a_process_that_is_killed_is_started_again_and_nothing_is_lost(
    start: Any, example_event: Any, tmp_path: Path, role: str
) -> None:
    gateway = start()
    with Senders(gateway, example_event) as senders:
        for round_ in range(3):
            gateway.until(lambda: gateway.checks()["status"] == "pass")
            before = len(senders.acknowledged)
            os.kill(gateway.pid(role), signal.SIGKILL)
            gateway.until(lambda before=before: len(senders.acknowledged) > before + 20)
            gateway.wait_for("a process of the gateway died", n=round_ + 1)
    gateway.until(lambda: gateway.checks()["status"] == "pass")
    assert set(senders.refused) <= {503}
    if role == "delivery":  # which no sender notices
        assert not senders.errors
        assert not senders.refused
    metrics = gateway.until_delivered()
    assert metrics["edge_events_unaccounted"] == 0
    kind = role.partition("-")[0]
    assert metrics[f'edge_process_restarts_total{{role="{kind}"}}'] == 3
    assert gateway.stop() == 0
    assert set(senders.acknowledged) <= set(delivered_ids(tmp_path))
    for shard in shard_names(tmp_path / "spool"):
        stats = inspect.stats(tmp_path / "spool" / shard)
        cursor = stats.cursors["archive"]
        assert cursor is not None
        assert cursor.position == stats.next_seq == cursor.base + cursor.settled_events
        assert cursor.lost == 0


def test_senders_go_on_while_an_ingest_process_is_down(start: Any, example_event: Any) -> None:
    gateway = start()
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


def test_drain_under_load_resets_no_connection(start: Any, example_event: Any, tmp_path: Path) -> None:
    gateway = start()
    with Senders(gateway, example_event, n=8) as senders:
        gateway.until(lambda: len(senders.acknowledged) > 100)
        assert gateway.stop() == 0
    assert not [error for error in senders.errors if error != "ConnectionRefusedError"]
    assert set(senders.acknowledged) <= set(delivered_ids(tmp_path))
    assert len(delivered_ids(tmp_path)) == len(senders.acknowledged)


def test_restart_of_one_process_refuses_no_connection(start: Any, example_event: Any, tmp_path: Path) -> None:
    gateway = start()
    with Senders(gateway, example_event) as senders:
        for number in range(1, 5):
            gateway.until(lambda: gateway.checks()["status"] == "pass")
            os.kill(gateway.pid(f"ingest-{number % 2 + 1}"), signal.SIGTERM)
            gateway.wait_for("a process of the gateway has stopped and is started again", n=number)
        gateway.until(lambda: gateway.checks()["status"] == "pass")
    assert not senders.errors
    assert not senders.refused
    metrics = gateway.until_delivered()
    # What the processes before them had counted is not forgotten.
    assert_books_balance(metrics, len(senders.acknowledged))
    assert gateway.stop() == 0
    assert sorted(delivered_ids(tmp_path)) == sorted(senders.acknowledged)


def test_reload_reaches_every_process_and_says_what_is_wrong(
    start: Any, example_event: Any, tmp_path: Path, config_path: Callable[..., Path]
) -> None:
    gateway = start()
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
    gateway.wait_for("the configuration was reloaded", n=6)
    for _ in range(20):
        assert gateway.ask("POST", "/ingest", {**example_event, "shoe_size": 43})[0] == 400
    config.write_text(text.replace("workers: 2", "workers: 3"))
    assert b"server.workers cannot change" in gateway.ask("POST", "/reload", admin=True)[1]
    assert gateway.stop() == 0


def test_counters_never_go_back_when_processes_die(start: Any, example_event: Any) -> None:
    gateway = start()
    name = 'edge_events_outcome_total{outcome="accepted",reason=""}'
    delivered = 'edge_sink_events_total{outcome="delivered",sink="archive"}'
    post_all(gateway, example_event, [f"a-{number}" for number in range(30)])
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


def test_number_of_workers_may_change_at_a_restart(start: Any, example_event: Any, tmp_path: Path) -> None:
    sent: list[str] = []

    def life(workers: int, *, is_down: bool) -> None:
        # A directory that is a file: the sink cannot be opened, and all stays in the spool.
        target = tmp_path / ("blocked" if is_down else "events")
        (tmp_path / "blocked").touch()
        gateway = start(workers, sinks={"archive": {"type": "file", "path": str(target), "batch": {"max_age_secs": 0}}})
        names = [f"{workers}-{len(sent)}-{number}" for number in range(20)]
        post_all(gateway, example_event, names)
        sent.extend(names)
        if not is_down:
            gateway.until(lambda: sorted(delivered_ids(tmp_path)) == sorted(sent))
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


def test_processes_stop_when_their_parent_is_killed(start: Any, example_event: Any, tmp_path: Path) -> None:
    gateway = start()
    gateway.until(lambda: gateway.checks()["status"] == "pass")
    pids = [gateway.pid(name) for name in ("delivery", "ingest-1", "ingest-2")]
    post_all(gateway, example_event, ["last"])
    gateway.process.kill()
    gateway.process.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert delivered_ids(tmp_path) == ["last"]


def test_gateway_that_cannot_start_says_why_and_leaves_nothing_running(
    config_path: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "spool").write_text("in the way")
    config = config_path(log={"format": "json"}, server={"workers": 2})
    command = [sys.executable, "-m", "edge.cli", "run", "--config", str(config)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 1
    assert "the gateway cannot start" in ended.stderr
