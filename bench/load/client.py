"""The load generator in Python, for machines without a C compiler: what `load.c` does, at about ten times the cost.

Same command line, same result. It costs about as much as the servers it measures, so saturation found with it is
partly its own; the page says so.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import resource
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Final

GRACE_SECS: Final = 10.0
AT_ONCE: Final = 64
TIMER_SECS: Final = 0.001
"""An arrival nearer than this is due: the loop's timers are no finer."""


class Connection(asyncio.Protocol):
    """One connection with one request at a time; `answered` is called when its answer is complete."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._received = bytearray()
        self._since = 0.0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = transport  # type: ignore[assignment] # TCP gives a whole Transport

    def send(self, since: float) -> None:
        """Send the request; its latency counts from `since`."""
        self._since = since
        self._received.clear()
        self._transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        """Take a piece of an answer."""
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._received[:end]).lower()
        length = int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        if len(self._received) < end + 4 + length:
            return
        self._load.note(int(head[9:12]), self._since)
        self._load.answered(self)

    def connection_lost(self, error: Exception | None) -> None:
        """A server must keep its connections open."""
        if not self._load.ended:
            self._load.failed = f"the server closed a connection: {error}"


class Load:
    """What one run has sent and got."""

    def __init__(self, port: int, request: bytes, n_connections: int) -> None:
        self.request = request
        self.failed = ""
        self.ended = False
        self.answered: Callable[[Connection], None]
        self.statuses: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.lateness: list[float] = []
        self.waited = 0
        self.started = self.last_answer = time.monotonic()
        self._port = port
        self._n_connections = n_connections
        self._free: deque[Connection] = deque()

    def note(self, status: int, since: float) -> None:
        """Count an answer."""
        self.last_answer = time.monotonic()
        self.latencies.append(self.last_answer - since)
        self.statuses[str(status)] += 1

    async def connect(self, count: int) -> list[Connection]:
        """Open so many connections."""
        loop = asyncio.get_running_loop()
        made = [await loop.create_connection(lambda: Connection(self), "127.0.0.1", self._port) for _ in range(count)]
        return [connection for _, connection in made]

    async def closed(self, secs: float, rate: float) -> int:
        """Each connection sends again when it has its answer; return how many never got theirs."""
        connections = await self.connect(self._n_connections)
        self.started = time.monotonic()
        until = self.started + secs
        busy = len(connections)

        def send_again(connection: Connection) -> None:
            nonlocal busy
            if self.last_answer < until:
                connection.send(self.last_answer)
            else:
                busy -= 1

        self.answered = send_again
        for connection in connections:
            connection.send(time.monotonic())
        await self._until(lambda: busy == 0, until + GRACE_SECS)
        return busy

    async def open(self, secs: float, rate: float) -> int:
        """Send at times of their own (Poisson arrivals); return how many requests were not answered in the end."""
        dice = random.Random(1)  # noqa: S311 - the same arrivals for every server
        self.answered = self._free.append
        self._free.extend(await self.connect(self._n_connections))
        self.started = time.monotonic()
        end = self.started + secs
        due = self.started + dice.expovariate(rate)
        starved = False
        while due <= end and time.monotonic() < end + GRACE_SECS and not self.failed:
            while self._free and due <= end and due <= time.monotonic():
                if starved:
                    self.waited += 1
                else:
                    self.lateness.append(time.monotonic() - due)
                self._free.popleft().send(due)
                due += dice.expovariate(rate)
            starved = due <= time.monotonic()
            await asyncio.sleep(0 if starved or due - time.monotonic() < TIMER_SECS else TIMER_SECS / 2)
        await self._until(lambda: len(self._free) == self._n_connections, end + GRACE_SECS)
        unfinished = self._n_connections - len(self._free)
        while due <= end:
            unfinished += 1
            due += dice.expovariate(rate)
        return unfinished

    async def idle(self, secs: float, rate: float) -> int:
        """Give every connection one answer, then hold all until standard input ends."""
        self.answered = self._free.append
        for first in range(0, self._n_connections, AT_ONCE):
            count = min(AT_ONCE, self._n_connections - first)
            for connection in await self.connect(count):
                connection.send(time.monotonic())
            await self._until(partial(self._are_free, first + count), time.monotonic() + GRACE_SECS)
        print(json.dumps({"held": len(self._free)}), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        return 0

    def _are_free(self, count: int) -> bool:
        return len(self._free) == count

    async def _until(self, done: Callable[[], bool], deadline: float) -> None:
        while not done() and not self.failed and time.monotonic() < deadline:  # noqa: ASYNC110 - the answers come by callback
            await asyncio.sleep(TIMER_SECS)

    def result(self, unfinished: int) -> dict[str, Any]:
        """Return the figures as `load.c` prints them."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self.latencies.sort()
        quantiles = {
            name: _quantile_ms(self.latencies, share)
            for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99), ("p999_ms", 0.999), ("max_ms", 1.0))
        }
        return {
            "answers": len(self.latencies),
            "statuses": self.statuses,
            "elapsed_secs": self.last_answer - self.started,
            **quantiles,
            "cpu_secs": usage.ru_utime + usage.ru_stime,
            "unfinished": unfinished,
            "waited": self.waited,
            "late_p99_ms": _quantile_ms(sorted(self.lateness), 0.99),
        }


def _quantile_ms(ordered: list[float], share: float) -> float:
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] * 1e3 if ordered else 0.0


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def main() -> None:
    """Run as `load.c` is run."""
    mode, port, request_file, n_connections, secs, rate = sys.argv[1:]
    load = Load(int(port), Path(request_file).read_bytes(), int(n_connections))
    modes: dict[str, Callable[[float, float], Coroutine[Any, Any, int]]] = {
        "closed": load.closed,
        "open": load.open,
        "idle": load.idle,
    }
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        unfinished = runner.run(modes[mode](float(secs), float(rate)))
    load.ended = True
    if load.failed:
        sys.exit(load.failed)
    if mode != "idle":
        print(json.dumps(load.result(unfinished)))


if __name__ == "__main__":
    main()
