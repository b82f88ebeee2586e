"""What memory the gateway takes: at its start, for each idle connection, and over a million events.

``make bench-memory`` prints the figures. Idle connections have had a request each and stay open.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench.load import Generator, generator
from bench.process import Server, cores
from bench.servers import Point, delivered_within, request_for, start

IDLE_CONNECTIONS: Final = (1_000, 10_000)
EVENTS: Final = 1_000_000
BATCH_EVENTS: Final = 100
SETTLE_SECS: Final = 1.0
ROUND_SECS: Final = 0.5
MIB: Final = 1 << 20


def _start(folder: Path) -> Server:
    folder.mkdir()
    return start(Point(durability="os"), folder, cores()[0], Path())


def at_start(folder: Path) -> int:
    """Return the bytes that the process holds after its first answer."""
    with _start(folder) as server:
        return server.rss_bytes()


def idle(folder: Path, load: Generator, connections: int) -> float:
    """Return the bytes that each of so many idle connections takes."""
    with _start(folder) as server:
        request = folder / "request"
        request.write_bytes(request_for(Point()))
        time.sleep(SETTLE_SECS)
        before = server.rss_bytes()
        with load.held(server.port, request, connections):
            delivered_within(server)
            time.sleep(SETTLE_SECS)
            return (server.rss_bytes() - before) / connections


def events(folder: Path, load: Generator, total: int) -> Iterator[tuple[int, int]]:
    """Send so many events in batches; yield, again and again, how many were sent by then and the bytes held."""
    with _start(folder) as server:
        request = folder / "request"
        request.write_bytes(request_for(Point(batch_events=BATCH_EVENTS)))
        sent = 0
        yield sent, server.rss_bytes()
        while sent < total:
            answers = load.run("closed", server.port, request, connections=8, secs=ROUND_SECS)
            sent += answers.answers * BATCH_EVENTS
            delivered_within(server)
            yield sent, server.rss_bytes()
        time.sleep(SETTLE_SECS)
        yield sent, server.rss_bytes()


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=EVENTS, help="how many go through; 0 for none")
    parser.add_argument("--idle", type=int, nargs="*", default=IDLE_CONNECTIONS, help="how many connections are idle")
    options = parser.parse_args()
    load = generator()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"after the first answer: {at_start(folder / 'start') / MIB:.1f} MiB")
        for connections in options.idle:
            each = idle(folder / f"idle-{connections}", load, connections)
            print(f"{connections:,} idle connections: {each / 1024:.1f} KiB each")
        if options.events:
            for sent, rss_bytes in events(folder / "events", load, options.events):
                print(f"after {sent:>10,} events: {rss_bytes / MIB:.1f} MiB", flush=True)


if __name__ == "__main__":
    main()
