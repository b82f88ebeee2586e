"""The gateway as its own process: start, signals, drain, exit codes. What an operator sees."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.delivered import ids_below

KEY = "test-key-0123456789"


class Edge:
    """A gateway process that writes its log as JSON lines."""

    def __init__(self, config: Path, cwd: Path) -> None:
        command = [sys.executable, "-m", "edge.cli", "run", "--config", str(config)]
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "NO_COLOR": "1"},
        )
        self.lines: list[str] = []
        self._arrived = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        listening = self.wait_for("the gateway is listening")
        self.port = int(listening["ingest"][0].rpartition(":")[2])
        self.admin_port = int(listening["admin"][0].rpartition(":")[2])

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._arrived:
                self.lines.append(line)
                self._arrived.notify_all()
        with self._arrived:
            self._arrived.notify_all()

    def wait_for(self, event: str, timeout_secs: float = 15.0) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_secs
        seen = 0
        with self._arrived:
            while True:
                for line in self.lines[seen:]:
                    if line.startswith("{") and event in json.loads(line)["event"]:
                        found: dict[str, Any] = json.loads(line)
                        return found
                seen = len(self.lines)
                left = deadline - time.monotonic()
                assert left > 0, f"no log line {event!r} in {self.lines}"
                self._arrived.wait(left)

    def post(self, event: Any, path: str = "/ingest") -> int:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps(event).encode(),
            {"X-API-Key": KEY, "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(20)
        self._reader.join(5)
        return code


@pytest.fixture
def edge_process(config_path: Callable[..., Path], tmp_path: Path) -> Iterator[Callable[..., Edge]]:
    started: list[Edge] = []

    def start(**parts: Any) -> Edge:
        started.append(Edge(config_path(log={"format": "json"}, **parts), tmp_path))
        return started[-1]

    yield start
    for edge in started:
        if edge.process.poll() is None:
            edge.process.kill()
            edge.process.wait()
        for stream in (edge.process.stdout, edge.process.stderr):
            assert stream is not None
            stream.close()


def delivered_ids(tmp_path: Path) -> list[str]:
    return ids_below(tmp_path / "events")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_gateway_drains_and_exits_0_at_a_signal(
    edge_process: Any, example_event: Any, tmp_path: Path, number: int
) -> None:
    edge = edge_process()
    assert edge.post(example_event) == 200
    started = time.monotonic()
    assert edge.stop(number) == 0
    assert time.monotonic() - started < 5
    assert delivered_ids(tmp_path) == ["evt_123456789"]
    assert not list((tmp_path / "events").rglob("*.open"))


def test_drain_does_not_wait_for_a_dead_sink_and_the_next_start_delivers(
    edge_process: Any, example_event: Any, tmp_path: Path, free_port: int
) -> None:
    sinks = {"crm": {"type": "http", "url": f"http://127.0.0.1:{free_port}/", "batch": {"max_age_secs": 0.01}}}
    edge = edge_process(sinks=sinks)
    assert edge.post(example_event) == 200
    started = time.monotonic()
    assert edge.stop() == 0
    assert time.monotonic() - started < 4
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", free_port)) as server:
        thread = threading.Thread(target=_serve_one, args=(server, received))
        thread.start()
        edge = edge_process(sinks=sinks)
        thread.join(15)
    assert b"evt_123456789" in received[0]
    assert edge.stop() == 0


def _serve_one(server: socket.socket, received: list[bytes]) -> None:
    server.settimeout(15)
    connection, _ = server.accept()
    with connection:
        connection.settimeout(5)
        data = b""
        while b"evt_123456789" not in data:
            data += connection.recv(65536)
        received.append(data)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def test_request_half_sent_at_the_signal_gets_a_complete_answer(edge_process: Any, example_event: Any) -> None:
    edge = edge_process()
    body = json.dumps(example_event).encode()
    with socket.create_connection(("127.0.0.1", edge.port)) as half:
        head = f"POST /ingest HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
        half.sendall(head.encode() + body[:20])
        time.sleep(0.2)  # the request has to be there before the signal is
        edge.process.send_signal(signal.SIGTERM)
        edge.wait_for("draining")
        half.sendall(body[20:])
        half.settimeout(5)
        answer = b""
        while chunk := half.recv(65536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert edge.process.wait(10) == 0


def test_health_fails_and_events_are_taken_while_pre_stop_lasts(edge_process: Any, example_event: Any) -> None:
    edge = edge_process(server={"pre_stop_secs": 3})
    edge.process.send_signal(signal.SIGTERM)
    edge.wait_for("draining")
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(f"http://127.0.0.1:{edge.port}/healthz", timeout=5)
    with raised.value as error:
        assert error.code == 503
    assert edge.post(example_event) == 200
    assert edge.stop() == 0


def test_sighup_reloads_and_keeps_the_old_configuration_when_the_new_one_is_wrong(
    edge_process: Any, config_path: Any, example_event: Any
) -> None:
    edge = edge_process()
    assert edge.post({**example_event, "extra": 1}) == 400
    config_path(log={"format": "json"}, schema={"unknown_fields": "keep"})
    edge.process.send_signal(signal.SIGHUP)
    edge.wait_for("the configuration was reloaded")
    assert edge.post({**example_event, "extra": 1}) == 200
    config_path(log={"format": "json"}, skema={"unknown_fields": "reject"})
    edge.process.send_signal(signal.SIGHUP)
    line = edge.wait_for("the new configuration is wrong; the old one goes on")
    assert "skema: is not a known option; did you mean schema?" in line["problem"]
    assert edge.post({**example_event, "extra": 1}) == 200
    assert edge.stop() == 0


def test_reload_refuses_what_only_a_restart_can_change(edge_process: Any, config_path: Any, example_event: Any) -> None:
    edge = edge_process()
    config_path(log={"format": "json"}, server={"listen": "127.0.0.1:1"})
    edge.process.send_signal(signal.SIGHUP)
    line = edge.wait_for("the new configuration cannot be used; the old one goes on")
    assert "server.listen cannot change at a reload" in line["error"]
    assert edge.post(example_event) == 200
    assert edge.stop() == 0


def run_once(config: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge.cli", "run", "--config", str(config)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=20, check=False)


def test_broken_configuration_is_one_line_for_each_mistake_and_exit_78(config_path: Any, tmp_path: Path) -> None:
    path = config_path(sinks={"archive": {"type": "flie"}}, log={"level": "loud"})
    result = run_once(path, tmp_path)
    assert result.returncode == 78
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{path}:") for line in lines)
    assert "Traceback" not in result.stderr


def test_address_in_use_is_one_clear_line(edge_process: Any, config_path: Any, tmp_path: Path) -> None:
    edge = edge_process()
    path = config_path(server={"listen": f"127.0.0.1:{edge.port}"}, spool={"path": str(tmp_path / "other")})
    result = run_once(path, tmp_path)
    assert result.returncode == 1
    assert "cannot listen on 127.0.0.1:" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_second_gateway_on_the_same_spool_refuses_and_the_first_goes_on(
    edge_process: Any, config_path: Any, tmp_path: Path, example_event: Any
) -> None:
    edge = edge_process()
    result = run_once(config_path(), tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert str(tmp_path / "spool") in result.stderr
    assert edge.post(example_event) == 200


def test_gateway_killed_at_any_moment_delivers_what_it_acknowledged(
    edge_process: Any, example_event: Any, tmp_path: Path
) -> None:
    acknowledged: list[str] = []
    for round_number in range(3):
        edge = edge_process()
        for number in range(30):
            event_id = f"evt_{round_number}_{number}"
            assert edge.post({**example_event, "event_id": event_id}) == 200
            acknowledged.append(event_id)
        edge.process.kill()
        edge.process.wait()
    edge = edge_process()
    deadline = time.monotonic() + 10
    while set(delivered_ids(tmp_path)) != set(acknowledged) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert edge.stop() == 0
    assert sorted(set(delivered_ids(tmp_path))) == sorted(acknowledged)
