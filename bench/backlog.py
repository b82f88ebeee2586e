"""How fast a backlog is delivered: as a multiple of the rate at which the gateway takes events at most.

``make bench-backlog`` prints the figures. The sink cannot be opened at first, since its directory is a file; events are
taken for a while as fast as they can be, then the file goes, and what is pending is delivered by the same process on
the same core.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.load import BUILT, Generator, generator
from bench.process import cores, pinned
from bench.servers import Ours, Point, ServerError, request_for, start
from bench.used_memory import UsedMemory

BATCHES: Final = (1, 100)
SECS: Final = 4.0
WARM_UP_SECS: Final = 0.5
LOOK_SECS: Final = 0.05
"""So often it is asked what is left; whoever is measured has to answer that as well."""
DELIVERY_SECS: Final = 120.0
RETRY: Final[dict[str, Any]] = {"initial_secs": 0.05, "max_secs": 0.05}
"""So soon the sink is tried again: what is measured is the delivery, not the wait for it."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What was found for one size of batch."""

    batch_events: int
    events: int
    """What was pending when the sink could be opened."""
    taken_per_sec: float
    """Events, while nothing was delivered."""
    delivered_per_sec: float
    """Events, while nothing was taken."""

    @property
    def ratio(self) -> float:
        """How many times faster they are delivered than taken."""
        return self.delivered_per_sec / self.taken_per_sec


def measure(batch_events: int, secs: float, load: Generator, folder: Path) -> Backlog:
    """Make a backlog of requests of so many events and have it delivered. `ServerError` when that does not happen."""
    folder.mkdir()
    point = Point(batch_events=batch_events)
    request = folder / "request"
    request.write_bytes(request_for(point))
    server_core, load_core = cores()
    target = folder / "events-0"
    target.touch()
    with start(point, folder, server_core, Path(), {"retry": RETRY}) as server, pinned(load_core):
        assert isinstance(server, Ours)  # noqa: S101 - that is what the point says
        load.run("closed", server.port, request, connections=point.connections, secs=WARM_UP_SECS)
        answers = load.run("closed", server.port, request, connections=point.connections, secs=secs)
        pending = server.pending()
        target.unlink()
        while server.pending() == pending:
            time.sleep(LOOK_SECS)
        began, first = time.monotonic(), server.pending()
        while (left := server.pending()) > 0:
            if time.monotonic() - began > DELIVERY_SECS:
                raise ServerError(f"{left:.0f} events were pending after {DELIVERY_SECS:.0f} s")
            time.sleep(LOOK_SECS)
        took = time.monotonic() - began
    return Backlog(batch_events, int(pending), answers.per_sec * batch_events, first / took)


def measure_all(secs: float, load: Generator, folder: Path, memory: UsedMemory | None = None) -> Iterator[Backlog]:
    """Measure every size of batch; `memory` is filled before each."""
    for batch_events in BATCHES:
        if memory is not None:
            memory.fill()
        yield measure(batch_events, secs, load, folder / f"backlog-{batch_events}")


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--secs", type=float, default=SECS, help="how long events are taken")
    options = parser.parse_args()
    load = generator()
    BUILT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILT) as name, UsedMemory(BUILT) as memory:
        for found in measure_all(options.secs, load, Path(name), memory):
            print(
                f"requests of {found.batch_events} events: {found.events:,} pending, "
                f"taken at {found.taken_per_sec:,.0f}/s, "
                f"delivered at {found.delivered_per_sec:,.0f}/s: {found.ratio:.1f} times as fast",
                flush=True,
            )


if __name__ == "__main__":
    main()
