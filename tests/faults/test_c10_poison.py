"""A sink that kills the process on one event: started again and again, the gateway finds it and delivers the rest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

KEY = "test-key-0123456789"
N_EVENTS = 300
PER_REQUEST = 20

PLUGIN = '''
import asyncio
import ctypes
from pathlib import Path

from voluptuous import Optional, Required

from edge.api import Sink, hookimpl


class MinefieldSink(Sink):
    """Write event ids down; some of them are mines."""

    type = "minefield"
    options = {
        Required("path", description="File that receives the ids."): str,
        Optional("mines", default=list, description="Ids that kill the process."): [str],
        Optional("secs", default=0.0, description="How long a batch takes."): float,
    }

    @hookimpl
    async def edge_deliver(self, batch):
        await asyncio.sleep(self.options["secs"])
        ids = [event["event_id"] for event in batch.events]
        if not set(ids).isdisjoint(self.options["mines"]):
            ctypes.string_at(0)
        with Path(self.options["path"]).open("a") as file:
            file.write("".join(f"{event_id}\\n" for event_id in ids))


@hookimpl
def edge_register_components(registry):
    registry.add(MinefieldSink)
'''


class Supervisor:
    """Starts the gateway whenever it has died, as systemd would."""

    def __init__(self, config: Path, plugins: Path) -> None:
        self._config = config
        self._plugins = plugins
        self._process: subprocess.Popen[bytes] | None = None
        self._log = plugins.parent / "edge.log"
        self.deaths: list[int] = []
        self.ports: list[int] = []

    def start(self) -> None:
        """Start the gateway and wait until it listens or is dead."""
        with self._log.open("ab") as stderr:
            offset = stderr.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edge.cli", "run", "-c", str(self._config)],
                stderr=stderr,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": str(self._plugins), "PYTHONFAULTHANDLER": ""},
            )
        while self._process.poll() is None:
            for line in self._log.read_bytes()[offset:].splitlines(keepends=True):
                if line.endswith(b"\n") and b'"the gateway is listening"' in line:
                    found = json.loads(line)
                    self.ports = [int(found[side][0].rpartition(":")[2]) for side in ("ingest", "admin")]
                    return
            time.sleep(0.01)

    def watch(self) -> None:
        """Start the gateway anew if it has died."""
        assert self._process is not None
        code = self._process.poll()
        if code is not None:
            self.deaths.append(code)
            self.start()

    def post(self, events: list[dict[str, Any]]) -> None:
        """Send events as one request, again until it is answered: while the gateway is down, nobody is."""
        deadline = time.monotonic() + 20
        while True:
            request = urllib.request.Request(
                f"http://127.0.0.1:{self.ports[0]}/ingest/batch",
                json.dumps(events).encode(),
                {"X-API-Key": KEY, "Content-Type": "application/json"},
            )
            try:
                with urllib.request.urlopen(request, timeout=10) as response:
                    assert response.status == 200
                    return
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
                self.watch()

    def metrics(self) -> dict[str, float]:
        """Return the samples of a scrape; none while the gateway is down."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[1]}/metrics", timeout=5) as response:
                lines = response.read().decode().splitlines()
        except OSError:
            return {}
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}

    def watch_until(self, condition: Callable[[dict[str, float]], bool], timeout_secs: float) -> dict[str, float]:
        """Keep the gateway alive until its metrics are as wanted; return them."""
        deadline = time.monotonic() + timeout_secs
        while True:
            samples = self.metrics()
            if samples and condition(samples):
                return samples
            assert time.monotonic() < deadline, f"deaths: {self.deaths}; {self._log.read_text()[-4000:]}"
            self.watch()
            time.sleep(0.02)

    def stop(self) -> int:
        """Drain; return the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(20)

    def log_lines(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def letters(self, sink: str) -> list[dict[str, Any]]:
        command = [sys.executable, "-m", "edge.cli", "dead-letters", "show", "-c", str(self._config), "--sink", sink]
        shown = subprocess.run(
            command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(self._plugins)}
        )
        return [json.loads(line) for line in shown.stdout.splitlines()]

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def supervise(config_path: Callable[..., Path], tmp_path: Path) -> Iterator[Callable[..., Supervisor]]:
    """Return a function that starts a gateway with the given minefield sinks under supervision."""
    plugins = tmp_path / "plugins"
    info = plugins / "edge_minefield-1.dist-info"
    info.mkdir(parents=True)
    (plugins / "minefield_plugin.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edge-minefield\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[edge.plugins]\nminefield = minefield_plugin\n")
    made: list[Supervisor] = []

    def start(**sinks: dict[str, Any]) -> Supervisor:
        parts = {
            name: {"type": "minefield", "path": str(tmp_path / f"{name}.txt"), "batch": {"max_age_secs": 0.05}, **sink}
            for name, sink in sinks.items()
        }
        made.append(Supervisor(config_path(sinks=parts, log={"format": "json"}), plugins))
        made[-1].start()
        return made[-1]

    yield start
    for supervisor in made:
        supervisor.end()


def events_of(example: dict[str, Any], n_events: int) -> list[list[dict[str, Any]]]:
    """Return the requests of a test: numbered events in batches."""
    events = [{**example, "event_id": f"evt_{number}"} for number in range(n_events)]
    return [events[start : start + PER_REQUEST] for start in range(0, n_events, PER_REQUEST)]


@pytest.mark.full
def test_c10_event_that_kills_the_process_is_found_and_all_others_are_delivered(
    supervise: Any, tmp_path: Path, example_event: dict[str, Any], row: Any
) -> None:
    bound = "given up at the third death, all others delivered, <= 30 s"
    with row("C10", what="one event makes a sink segfault, beside a slow sink", unit="events", bound=bound) as found:
        started = time.monotonic()
        # The slow sink is in the middle of an attempt at nearly every death, and none of them is its fault.
        gateway = supervise(mined={"mines": ["evt_137"], "secs": 0.02}, slow={"secs": 0.4})
        for events in events_of(example_event, N_EVENTS):
            gateway.post(events)
        pending = [f'edge_sink_pending_events{{sink="{sink}"}}' for sink in ("mined", "slow")]
        samples = gateway.watch_until(lambda samples: not any(samples[name] for name in pending), 30)
        assert time.monotonic() - started < 30
        assert samples["edge_events_unaccounted"] == 0
        assert samples['edge_dead_letters{sink="mined"}'] == 1
        assert samples['edge_dead_letters{sink="slow"}'] == 0
        assert gateway.stop() == 0
        assert gateway.deaths == [-signal.SIGSEGV] * 3
        everything = {f"evt_{number}" for number in range(N_EVENTS)}
        assert set((tmp_path / "mined.txt").read_text().split()) == everything - {"evt_137"}
        assert set((tmp_path / "slow.txt").read_text().split()) == everything
        [letter] = gateway.letters("mined")
        assert (letter["event"]["event_id"], letter["reason"], letter["attempts"]) == ("evt_137", "poison", 3)
        assert letter["last_error"] == "the process died while it was being delivered, 3 times"
        [line] = gateway.log_lines("an event was in flight at each of the last deaths of the process and is given up")
        assert (line["sink"], line["deaths"], line["level"]) == ("mined", 3, "error")
        found.tried = N_EVENTS
        found.note(f"3 deaths, all done after {time.monotonic() - started:.0f} s")
