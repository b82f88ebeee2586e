"""The load generator: a process of its own that posts events and keeps the ledgers of what was sent and acknowledged.

`Load` starts and ends it; run as a program it reads its orders from the command line as JSON. Each connection posts one
request after another; a request whose connection breaks is given up (its events are sent, not acknowledged) unless
`repeat` is set, which sends it again under the same ids until it has an answer. A 503 is waited out for a moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from harness import ledger

EVENT = {
    "event_type": "click", "event_name": "button_click", "event_time": "2025-09-17T10:00:00Z",
    "user_id": "usr_987654321", "session_id": "sess_123456789", "page_name": "checkout",
    "device_type": "mobile", "platform": "ios",
}  # fmt: skip
PAUSE_SECS = 0.01


class Load:
    """A running load generator.

    `senders` connections; `rate` requests a second all together, 0 for as many as get an answer; sizes of requests are
    mixed between one small event and `most_bytes`; ids begin with `prefix`. With `least_bytes` no event is smaller.
    With `open_loop` a request is due at its time whatever became of those before it, and how late its answer is counts
    from then (`latencies`).
    """

    def __init__(
        self,
        folder: Path,
        port: int,
        key: str,
        *,
        senders: int = 8,
        rate: float = 0.0,
        most_bytes: int = 65_536,
        least_bytes: int = 0,
        prefix: str = "e",
        repeat: bool = False,
        requests: int = 0,
        copies: int = 1,
        open_loop: bool = False,
        name: str = "",
    ) -> None:
        name = name or prefix
        self.sent = folder / f"{name}-sent.log"
        self.acknowledged = folder / f"{name}-acked.log"
        self.answers = folder / f"{name}-answers.json"
        self.times = folder / f"{name}-times.log"
        orders = {
            "sent": str(self.sent), "acknowledged": str(self.acknowledged), "answers": str(self.answers), "port": port,
            "key": key, "senders": senders, "rate": rate, "most_bytes": most_bytes, "prefix": prefix, "repeat": repeat,
            "requests": requests, "copies": copies, "least_bytes": least_bytes,
            "times": str(self.times) if open_loop else "",
        }  # fmt: skip
        command = [sys.executable, "-m", "harness.load", json.dumps(orders)]
        self._process = subprocess.Popen(command, cwd=Path(__file__).parent.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def acked(self) -> list[ledger.Entry]:
        """Return what was acknowledged so far."""
        return list(ledger.read(self.acknowledged))

    def n_acked(self) -> int:
        """Return how many events were acknowledged so far, without looking at each of them."""
        return self.acknowledged.read_bytes().count(b"\n") if self.acknowledged.exists() else 0

    def acked_between(self, start: float, end: float) -> int:
        """Return how many events were acknowledged in a stretch of monotonic time."""
        return sum(entry.at < end for entry in ledger.recent(self.acknowledged, start))

    def wait_for_acked(self, since: float, n_events: int, secs: float = 10.0) -> None:
        """Wait until so many events were acknowledged from a moment on."""
        deadline = time.monotonic() + secs
        while sum(1 for _ in ledger.recent(self.acknowledged, since)) < n_events:
            assert time.monotonic() < deadline, f"not {n_events} events acknowledged within {secs:g} s"
            time.sleep(0.01)

    def in_flight(self, at: float, secs: float = 1.0) -> int:
        """Return how many events had been sent in the `secs` before a moment and were never acknowledged."""
        done = {entry.event_id for entry in ledger.recent(self.acknowledged, at - secs)}
        return sum(entry.at <= at and entry.event_id not in done for entry in ledger.recent(self.sent, at - secs))

    def latencies(self, start: float, end: float) -> list[float]:
        """Return how long the requests that were due in a stretch of monotonic time took, in seconds; all of them were
        taken. Only with `open_loop`."""
        taken = []
        for line in self.times.read_text().split("\n")[:-1]:
            due, secs, status = line.split(" ")
            if start <= float(due) < end:
                assert status == "200", f"a request was answered {status}"
                taken.append(float(secs))
        return taken

    def stop(self, secs: float = 15.0) -> dict[str, Any]:
        """Let every connection finish its request, end, and return the statistics of the answers."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self.wait(secs)

    def wait(self, secs: float) -> dict[str, Any]:
        """Wait until it ends by itself (`requests` were posted) and return the statistics of the answers."""
        self._process.wait(secs)
        result: dict[str, Any] = json.loads(self.answers.read_text())
        return result


class _Sender(threading.Thread):
    """One connection."""

    def __init__(self, number: int, orders: dict[str, Any], state: _State) -> None:
        super().__init__()
        self.number, self.orders, self.state = number, orders, state
        self.socket: socket.socket | None = None
        # Of its own: generators with one prefix are to send the same events, however often each sends them.
        self.copies = random.Random()

    def run(self) -> None:
        dice = random.Random(f"{self.orders['prefix']}{self.number}")
        count = 0
        while not self.state.ending.is_set():
            due = self.state.may_send()
            if due is None:
                return
            events = self._events(dice, count)
            count += len(events)
            lines = [(event["event_id"], ledger.digest_of(event)) for event in events]
            self.state.sent.write(lines)
            status = self._post_until_answered(events, lines)
            self.state.note_time(due, status)
        if self.socket is not None:
            self.socket.close()

    def _events(self, dice: random.Random, count: int) -> list[dict[str, Any]]:
        n_events = dice.choice((1, 1, 1, 2, 5, 20))
        most = max(1, min(self.orders["most_bytes"] // n_events, 60_000))
        return [
            {
                **EVENT,
                "event_id": f"{self.orders['prefix']}-{self.number}-{count + at}",
                "extras": {"pad": _pad(dice, most, self.orders["least_bytes"])},
            }
            for at in range(n_events)
        ]

    def _post_until_answered(self, events: list[dict[str, Any]], lines: list[tuple[str, str]]) -> int:
        body = orjson.dumps(events)
        while True:
            copies = self.orders["copies"]
            status = 0
            for _ in range(self.copies.randint(1, copies) if copies > 1 else 1):
                status = self._post(body, lines)
            if status == 503:
                self.state.ending.wait(PAUSE_SECS * 5)
            if status == 200 or not self.orders["repeat"] or (self.state.ending.is_set() and self.state.hurry):
                return status

    def _post(self, body: bytes, lines: list[tuple[str, str]]) -> int:
        """Post once; return the status, 0 when there was no answer."""
        head = (
            f"POST /ingest/batch HTTP/1.1\r\nHost: t\r\nX-API-Key: {self.orders['key']}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        started = time.monotonic()
        try:
            if self.socket is None:
                self.socket = socket.create_connection(("127.0.0.1", self.orders["port"]), timeout=10)
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket.sendall(head.encode() + body)
            status, answer, closes = _answer(self.socket)
        except OSError as error:
            self._give_up(type(error).__name__, connected=self.socket is not None)
            return 0
        if status == 200:
            n_bad = 0 if b'"status":"success"' in answer else orjson.loads(answer)["rejected"]
            assert not n_bad, answer
            self.state.acknowledged.write(lines)
        self.state.note(str(status), time.monotonic() - started, answer if status != 200 else b"")
        if closes:
            self.socket.close()
            self.socket = None
        return status

    def _give_up(self, error: str, *, connected: bool) -> None:
        self.state.note("broken" if connected else "refused", 0.0, error.encode())
        if self.socket is not None:
            self.socket.close()
            self.socket = None
        time.sleep(PAUSE_SECS)


def _pad(dice: random.Random, most: int, least: int) -> str:
    """Return text of a random size: mostly small, now and then as large as allowed."""
    size = max(min(int(dice.paretovariate(0.7)) * 20, most), least)
    return f"{dice.getrandbits(32):08x}" * (size // 8)


def _answer(sock: socket.socket) -> tuple[int, bytes, bool]:
    """Read one answer; return its status, its body, and whether the connection ends with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(sock)
    head, _, body = data.partition(b"\r\n\r\n")
    headers = head.lower()
    length = int(headers.split(b"content-length:")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += _some(sock)
    return int(head.split(b" ")[1]), body, b"connection: close" in headers


def code_of(answer: bytes) -> str | None:
    """Return the code of the first detail of an answer; None when it has none."""
    found = re.search(rb'"code":"([^"]+)"', answer)
    return found[1].decode() if found else None


def _some(sock: socket.socket) -> bytes:
    data = sock.recv(65_536)
    if not data:
        raise ConnectionResetError
    return data


class _State:
    """What the connections share."""

    def __init__(self, orders: dict[str, Any]) -> None:
        self.sent = ledger.Ledger(Path(orders["sent"]))
        self.acknowledged = ledger.Ledger(Path(orders["acknowledged"]))
        self.ending = threading.Event()
        self.hurry = True
        self._lock = threading.Lock()
        self._statuses: Counter[str] = Counter()
        self._codes: Counter[str] = Counter()
        self._latencies: list[float] = []
        self._samples: dict[str, str] = {}
        self._slowest: dict[str, float] = {}
        self._left = orders["requests"] or 1 << 60
        self._interval = 1.0 / orders["rate"] if orders["rate"] else 0.0
        self._next_at = time.monotonic()
        path, flags = orders["times"], os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._times = os.open(path, flags, 0o600) if path else None

    def may_send(self) -> float | None:
        """Wait for the turn of the next request and return when it is due; None when there is none."""
        with self._lock:
            if not self._left:
                return None
            self._left -= 1
            self._next_at += self._interval
            wait = self._next_at - time.monotonic() if self._interval else 0.0
            if wait < -1.0 and self._times is None:  # no catching up where nobody asks how late answers are
                self._next_at = time.monotonic()
            due = self._next_at
        return None if wait > 0 and self.ending.wait(wait) else due

    def note_time(self, due: float, status: int) -> None:
        """Write down how long after its time a request was answered."""
        if self._times is not None:
            os.write(self._times, f"{due:.6f} {time.monotonic() - due:.6f} {status}\n".encode())

    def note(self, status: str, secs: float, sample: bytes) -> None:
        with self._lock:
            self._statuses[status] += 1
            self._slowest[status] = max(self._slowest.get(status, 0.0), secs)
            if status == "200":
                self._latencies.append(secs)
            elif status not in self._samples:
                self._samples[status] = sample[:300].decode(errors="replace")
            if (code := code_of(sample)) is not None:
                self._codes[code] += 1

    def summary(self) -> dict[str, Any]:
        """Return how many answers there were of each status and code, the latency of successes in seconds, samples of
        the rest."""
        ordered = sorted(self._latencies) or [0.0]
        quantiles = {f"p{share}": ordered[min(len(ordered) - 1, len(ordered) * share // 100)] for share in (50, 90, 99)}
        counts = {"statuses": self._statuses, "codes": self._codes}
        return {**counts, "samples": self._samples, "slowest": self._slowest, **quantiles}


def main() -> None:
    orders = json.loads(sys.argv[1])
    state = _State(orders)
    signal.signal(signal.SIGTERM, lambda *_: state.ending.set())
    threads = [_Sender(number, orders, state) for number in range(orders["senders"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        with contextlib.suppress(RuntimeError):
            thread.join()
    Path(orders["answers"]).write_text(json.dumps(state.summary()))


if __name__ == "__main__":
    main()
