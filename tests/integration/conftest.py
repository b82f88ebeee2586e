"""Gateways of several processes, and senders that keep books of what was acknowledged."""

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
from harness.delivered import ids_below

from edge.process import COVER_LOOK_SECS

KEY = "test-key-0123456789"
SEGMENT_BYTES = 65_536


class Several:
    """A gateway of several processes that writes its log as JSON lines."""

    def __init__(self, config: Path, cwd: Path) -> None:
        self.config, self.cwd = config, cwd
        self.log_path = cwd / f"gateway-{time.monotonic_ns()}.log"
        with self.log_path.open("wb") as log:
            command = [sys.executable, "-m", "edge.cli", "run", "--config", str(config)]
            environ = {**os.environ, "NO_COLOR": "1"}
            self.process = subprocess.Popen(
                command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=log, env=environ, start_new_session=True
            )
        listening = self.wait_for("the gateway is listening")
        self.port = int(next(name for name in listening["ingest"] if "unix" not in name).rpartition(":")[2])
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

    def until_all_accept(self) -> None:
        """Wait until each process accepts at its own socket, and none at that of one that is still starting."""
        self.until(lambda: self.checks()["status"] == "pass")
        time.sleep(3 * COVER_LOOK_SECS)

    def post_all(self, event: dict[str, Any], names: list[str]) -> None:
        """Post events one after the other, each on a connection of its own; all are accepted."""
        for name in names:
            assert self.ask("POST", "/ingest", {**event, "event_id": name})[0] == 200

    def delivered_ids(self) -> list[str]:
        """Return the ids in the files of the sink `archive`."""
        return ids_below(self.cwd / "events")

    def edge(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run a command on its configuration."""
        command = [sys.executable, "-m", "edge.cli", *map(str, arguments), "--config", str(self.config)]
        return subprocess.run(command, cwd=self.cwd, capture_output=True, text=True, timeout=60, check=False)

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
                if connection is not None:
                    connection.close()
                connection = None
            self.longest_secs = max(self.longest_secs, time.monotonic() - began)
        if connection is not None:
            connection.close()


@pytest.fixture
def several(config_path: Callable[..., Path], tmp_path: Path, free_port: int) -> Iterator[Callable[..., Several]]:
    started: list[Several] = []

    def run(workers: int = 2, **parts: Any) -> Several:
        server = {"workers": workers, "drain_timeout_secs": 5, **parts.pop("server", {})}
        admin = {"listen": f"127.0.0.1:{free_port}"}  # one that commands find in the configuration
        spool = {"segment_bytes": SEGMENT_BYTES, **parts.pop("spool", {})}
        config = config_path(log={"format": "json"}, server=server, admin=admin, spool=spool, **parts)
        started.append(Several(config, tmp_path))
        return started[-1]

    yield run
    for gateway in started:
        gateway.end()


@pytest.fixture
def senders() -> type[Senders]:
    return Senders
