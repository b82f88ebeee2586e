"""Measure the gateway: requests per second and CPU time per request, durability `disk`, delivered to the file sink.

The gateway runs as its own process on one core, the load comes from this process on another, over 32 keep-alive
connections in a closed loop. CPU time is the gateway's own (user + system, all threads, delivery included), from
/proc. Run it with `make bench`; every figure is from the run that prints it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from edge.example import EXAMPLE_EVENT

CONNECTIONS = 32
TICKS = os.sysconf("SC_CLK_TCK")

CONFIG = """
server: {listen: 127.0.0.1:0}
admin: {listen: 127.0.0.1:0}
auth: {mode: keys, keys: [{id: bench, key: bench-key}]}
pipeline:
  - type: received_at
  - type: client_ip
    anonymize: true
  - type: drop
    when: {event_type: heartbeat}
sinks:
  archive: {type: file, path: events}
log: {level: info, format: json}
"""


class Client(asyncio.Protocol):
    """One connection: sends the request again as soon as the answer is there."""

    def __init__(self, request: bytes, answers: list[int], latencies: list[float], deadline: float) -> None:
        self._request = request
        self._answers = answers
        self._latencies = latencies
        self._deadline = deadline
        self._buffer = b""
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - tells mypy what TCP gives
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Take an answer; when it is whole, send the next request."""
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if length is None or len(body) < int(length[1]):
            return
        self._buffer = b""
        self._answers.append(int(head[9:12]))
        now = time.perf_counter()
        self._latencies.append(now - self._sent)
        if now < self._deadline:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        if not self.done.done():
            self.done.set_result(None)


@dataclass
class Round:
    """The figures of one round."""

    requests_per_sec: float
    cpu_us_per_request: float
    p50_ms: float
    p99_ms: float


def request_of(path: str, body: bytes) -> bytes:
    """Return a whole HTTP request."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nX-API-Key: bench-key\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def load(port: int, request: bytes, secs: float) -> tuple[list[int], list[float]]:
    """Send requests for so long; return the statuses and latencies."""
    answers: list[int] = []
    latencies: list[float] = []
    deadline = time.perf_counter() + secs
    loop = asyncio.get_running_loop()
    clients = [
        (await loop.create_connection(lambda: Client(request, answers, latencies, deadline), "127.0.0.1", port))[1]
        for _ in range(CONNECTIONS)
    ]
    await asyncio.wait([client.done for client in clients], timeout=secs + 30)
    return answers, latencies


def cpu_secs(pid: int) -> float:
    """Return the CPU time a process has used, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def measure(pid: int, port: int, request: bytes, secs: float) -> Round:
    """Run one round."""
    before, started = cpu_secs(pid), time.perf_counter()
    answers, latencies = asyncio.run(load(port, request, secs))
    elapsed, used = time.perf_counter() - started, cpu_secs(pid) - before
    refused = [status for status in answers if status != 200]
    if refused:
        raise SystemExit(f"{len(refused)} of {len(answers)} answers were not 200, the first {refused[0]}")
    latencies.sort()
    return Round(
        len(answers) / elapsed,
        used / len(answers) * 1e6,
        latencies[len(latencies) // 2] * 1e3,
        latencies[int(len(latencies) * 0.99)] * 1e3,
    )


def main() -> None:
    """Start a gateway, measure single events and batches in turn, print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--secs", type=float, default=4.0, help="length of a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="edge-bench-") as directory:
        config = Path(directory) / "edge.yaml"
        config.write_text(CONFIG)
        command = [sys.executable, "-m", "edge.cli", "run", "--config", str(config)]
        process = subprocess.Popen(  # noqa: S603 - our own command
            command, cwd=directory, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        try:
            port = wait_until_listening(process)
            for thread in Path(f"/proc/{process.pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), {cores[0]})
            os.sched_setaffinity(0, {cores[-1]})
            body = json.dumps(dict(EXAMPLE_EVENT)).encode()
            kinds = {
                "one event": (request_of("/ingest", body), 1),
                "batch of 100": (request_of("/ingest/batch", b"[" + b",".join([body] * 100) + b"]"), 100),
            }
            rounds: dict[str, list[Round]] = {name: [] for name in kinds}
            for _ in range(options.rounds):
                for name, (request, _n_events) in kinds.items():
                    rounds[name].append(measure(process.pid, port, request, options.secs))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    print(
        f"{options.rounds} rounds of {options.secs} s, {CONNECTIONS} connections, medians; durability disk, file sink"
    )
    print(f"{'':14}{'req/s':>9}{'events/s':>10}{'CPU us/req':>12}{'CPU us/event':>14}{'p50 ms':>9}{'p99 ms':>9}")
    for name, (_request, n_events) in kinds.items():
        rate, cpu, p50, p99 = (
            statistics.median(getattr(item, field) for item in rounds[name])
            for field in ("requests_per_sec", "cpu_us_per_request", "p50_ms", "p99_ms")
        )
        print(f"{name:14}{rate:9.0f}{rate * n_events:10.0f}{cpu:12.1f}{cpu / n_events:14.2f}{p50:9.2f}{p99:9.2f}")


def wait_until_listening(process: subprocess.Popen[str]) -> int:
    """Return the ingest port once the gateway says it listens."""
    assert process.stderr is not None  # noqa: S101 - it was asked for above
    for line in process.stderr:
        if "the gateway is listening" in line:
            return int(json.loads(line)["ingest"][0].rpartition(":")[2])
    raise SystemExit(f"the gateway did not start (exit code {process.wait()})")


if __name__ == "__main__":
    main()
