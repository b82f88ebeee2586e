"""The gateway under attack: a real process, started like an operator would, watched from outside."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from harness import patching

FDATASYNC, PWRITEV, PWRITEV2 = 75, 296, 328
"""System call numbers on x86-64, as ``/proc/<pid>/task/<tid>/syscall`` shows them. Python's `pwritev` is either."""


class Gateway:
    """One gateway process. `wrap` is put before the command (strace, faketime, prlimit); `patch` names changes that are
    made at run time in the started process alone (see `harness.patching`); `plugins` are directories of plugins (see
    `harness.plugin`)."""

    def __init__(
        self,
        config: Path,
        *,
        wrap: Sequence[str] = (),
        patch: Sequence[str] = (),
        plugins: Sequence[Path] = (),
        env: dict[str, str] | None = None,
        start_secs: float = 20.0,
    ) -> None:
        self.config = config
        self.options: dict[str, Any] = yaml.safe_load(config.read_text())
        self.log_path = config.with_name(f"gateway-{time.monotonic_ns()}.log")
        command = [*wrap, sys.executable, "-m", "edge.cli", "run", "-c", str(config)]
        environ = {**os.environ, "NO_COLOR": "1", **patching.environ(patch), **(env or {})}
        if plugins:
            environ["PYTHONPATH"] = os.pathsep.join(
                filter(None, (*map(str, plugins), str(Path(__file__).parent.parent), environ.get("PYTHONPATH", "")))
            )
        started = time.monotonic()
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=log, cwd=config.parent, env=environ, start_new_session=True
            )
        listening = self.wait_for_log("the gateway is listening", start_secs)
        self.ready_at = time.monotonic()
        self.start_secs = self.ready_at - started
        self.port = int(listening["ingest"][0].rpartition(":")[2])
        self.admin_port = int(listening["admin"][0].rpartition(":")[2])
        self.pid = self._own_pid() if wrap else self.process.pid

    def _own_pid(self) -> int:
        """Return the pid of the gateway behind what it was wrapped in."""
        for line in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            if b"edge.cli" in Path(f"/proc/{line}/cmdline").read_bytes():
                return int(line)
        return self.process.pid  # prlimit and faketime become the gateway

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    def log_lines(self) -> list[dict[str, Any]]:
        """Return the lines of its log, without one that is just being written."""
        lines = self.log_path.read_text(errors="replace").rpartition("\n")[0].splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def wait_for_log(self, event: str, secs: float = 10.0) -> dict[str, Any]:
        """Wait for a line of its log whose sentence holds `event`."""
        deadline = time.monotonic() + secs
        while True:
            ended = self.process.poll()
            for line in self.log_lines():
                if event in line["event"]:
                    return line
            assert ended is None, f"exit code {ended} before {event!r}: {self.log_path.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"no log line {event!r}: {self.log_path.read_text()[-2000:]}"
            time.sleep(0.01)

    def kill(self) -> float:
        """SIGKILL the process and all of its group; returns the moment."""
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        at = time.monotonic()
        if self.process.poll() is None and self.pid != self.process.pid:
            self.process.wait(10)
        self.process.kill()
        self.process.wait()
        return at

    def kill_in_commit(self, secs: float = 0.2) -> tuple[float, bool]:
        """SIGKILL while a thread is in the system calls of a commit, if one is met within `secs`."""
        deadline = time.monotonic() + secs
        tasks = [task / "syscall" for task in Path(f"/proc/{self.pid}/task").iterdir()]
        in_commit = False
        while not in_commit and time.monotonic() < deadline:
            in_commit = any(_number(task) in (FDATASYNC, PWRITEV, PWRITEV2) for task in tasks)
        return self.kill(), in_commit

    def stop(self, secs: float = 20.0, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Ask it to drain; returns the exit code and how long that took."""
        started = time.monotonic()
        os.kill(self.pid, number)
        code = self.process.wait(secs)
        return code, time.monotonic() - started

    def reload(self, secs: float = 10.0) -> None:
        """Have it read its configuration again and wait until that is done."""
        done = "the configuration was reloaded"
        before = sum(line["event"] == done for line in self.log_lines())
        os.kill(self.pid, signal.SIGHUP)
        deadline = time.monotonic() + secs
        while sum(line["event"] == done for line in self.log_lines()) == before:
            assert time.monotonic() < deadline, f"no reload: {self.log_path.read_text()[-2000:]}"
            time.sleep(0.02)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        admin: bool = False,
        secs: float = 10.0,
        **headers: str,
    ) -> tuple[int, bytes]:
        """Send one request on a connection of its own."""
        port = self.admin_port if admin else self.port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=secs)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            names.setdefault("Content-Type", "application/json")
        if not admin and self.options["auth"]["mode"] == "keys":
            names.setdefault("X-API-Key", self.options["auth"]["keys"][0]["key"])
        try:
            connection.request(method, path, body, names)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def metrics(self) -> dict[str, float]:
        """Return the samples of a scrape."""
        status, text = self.request("GET", "/metrics", admin=True)
        assert status == 200
        samples = {}
        for line in text.decode().splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                samples[name] = float(value)
        return samples

    def is_ready(self) -> bool:
        """Say what ``/readyz`` says."""
        return self.request("GET", "/readyz", admin=True)[0] == 200

    def pending(self, sink: str) -> int:
        """Return how many events a sink has before it."""
        return int(self.metrics()[f'edge_sink_pending_events{{sink="{sink}"}}'])

    def attempts(self, sink: str, *results: str) -> int:
        """Return how many attempts of a sink ended in these ways: ``ok``, ``retryable``, ``permanent``, ``timeout``."""
        samples = self.metrics()
        return sum(int(samples.get(f'edge_sink_attempts_total{{result="{of}",sink="{sink}"}}', 0)) for of in results)

    def unaccounted(self) -> int:
        """Return what the books lack; a moment without events in flight is best."""
        return int(self.metrics()["edge_events_unaccounted"])

    def rss_bytes(self) -> int:
        """Return its resident memory."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("the process has no memory")

    def peak_rss_bytes(self, *, anew: bool = False) -> int:
        """Return the most resident memory it had, since its start or since this was last asked `anew`."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        if anew:
            Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM:"))

    def n_descriptors(self) -> int:
        """Return how many descriptors it has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def cpu_secs(self) -> float:
        """Return the processor time it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _number(task: Path) -> int:
    """Return the number of the system call a thread is in; -1 for none."""
    try:
        first = task.read_text().split(" ", 1)[0]
    except OSError:
        return -1
    return int(first) if first.strip().isdigit() else -1
