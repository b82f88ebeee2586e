"""SIGKILL at random moments under load: every acknowledged event is delivered, nothing else is, nothing is torn.

`make faults` does it more often than `make test` does (EDGE_FAULTS_KILLS).
"""

from __future__ import annotations

import http.client
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import yaml

KEY = "test-key-0123456789"
SENDERS = 8
KILLS = int(os.environ.get("EDGE_FAULTS_KILLS", "5"))


class Senders:
    """Threads that post numbered events and write down which were acknowledged, and which were ever sent."""

    def __init__(self, port: int, event: dict[str, Any], cycle: int) -> None:
        self.acknowledged: set[str] = set()
        self.sent: set[str] = set()
        self._stop = threading.Event()
        self._event = event
        self._port = port
        self._threads = [threading.Thread(target=self._run, args=(cycle, number)) for number in range(SENDERS)]
        for thread in self._threads:
            thread.start()

    def _run(self, cycle: int, sender: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        number = 0
        try:
            while not self._stop.is_set():
                ids = [f"{cycle}-{sender}-{number + offset}" for offset in range(1 + number % 7)]
                number += len(ids)
                self.sent.update(ids)
                events = [
                    {**self._event, "event_id": event_id, "extras": {"pad": "x" * random.randrange(2000)}}
                    for event_id in ids
                ]
                connection.request("POST", "/ingest/batch", json.dumps(events), {"X-API-Key": KEY})
                response = connection.getresponse()
                response.read()
                if response.status == 200:
                    self.acknowledged.update(ids)
        except (OSError, http.client.HTTPException):
            return
        finally:
            connection.close()

    def join(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)


def start(config: Path) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-m", "edge.cli", "run", "-c", str(config)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "the gateway is listening" in line:
            return process, int(json.loads(line)["ingest"][0].rpartition(":")[2])
    raise AssertionError(f"the gateway did not start: exit code {process.wait()}")


def test_gateway_killed_under_load_loses_nothing_it_acknowledged(
    config_path: Any, tmp_path: Path, example_event: dict[str, Any]
) -> None:
    config = config_path(log={"format": "json"})
    assert yaml.safe_load(config.read_text())["spool"].get("durability", "disk") == "disk"
    acknowledged: set[str] = set()
    sent: set[str] = set()
    for cycle in range(KILLS):
        process, port = start(config)
        senders = Senders(port, example_event, cycle)
        time.sleep(0.4 + random.random() * 0.4)
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
        senders.join()
        assert len(senders.acknowledged) >= 50, "a cycle that acknowledges next to nothing proves nothing"
        assert senders.sent > senders.acknowledged, "nothing was in flight when the process died"
        acknowledged |= senders.acknowledged
        sent |= senders.sent
    process, _ = start(config)
    deadline = time.monotonic() + 30
    while not acknowledged <= set(delivered(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.terminate()
    assert process.wait(20) == 0
    assert process.stderr is not None
    process.stderr.close()
    arrived = delivered(tmp_path)
    assert acknowledged - set(arrived) == set()
    assert set(arrived) - sent == set()
    # Whatever was delivered and not yet noted in the cursor is delivered again: a batch in flight and 1,000 events.
    assert len(arrived) - len(set(arrived)) <= KILLS * (500 + 1000)


def delivered(tmp_path: Path) -> list[str]:
    """Return the ids in all files, in no order; a torn line in a finished file would fail to parse."""
    ids = []
    for file in (tmp_path / "events").rglob("*.ndjson*"):
        try:
            lines = file.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:  # closed and renamed meanwhile
            continue
        finished = not file.name.endswith(".open")
        ids += [json.loads(line)["event_id"] for line in lines if finished or line.endswith(b"\n")]
    return ids
