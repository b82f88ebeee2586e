"""Measure ours and its peers on the same cores, in turn, and write the page: what `make bench` runs.

Each round goes through all points; for each a fresh server is started, asked once, warmed up, loaded in a closed loop
as hard as it goes, waited for until it has delivered everything, then loaded in an open loop at half of that rate. All
figures of a run are kept in `figures.json`; `bench.report` makes the page of them and `bench.plot` its plot. The page
in `docs/` is written only when everything was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bench import backlog, machine, report
from bench.load import BUILT, Generator, LoadError, generator
from bench.process import Server, ServerError, cores, pinned
from bench.scenarios import BY_ID, USUAL, points_of
from bench.servers import KINDS, Point, delivered_within, request_for, start
from bench.used_memory import UsedMemory

ROOT: Final = Path(__file__).parents[1]
PEERS_PYTHON: Final = ROOT / ".venv-bench" / "bin" / "python"
PAGE_FOLDER: Final = ROOT / "docs"

OPEN_SHARE: Final = 0.5
"""The open loop sends this share of what the closed loop got through: busy, but not at the edge."""
WARM_UP_SHARE: Final = 0.25
OWN_FILES: Final = 500
"""So many files besides its connections a server may need."""
SETTLE_SECS: Final = 0.3
"""Memory is looked at after so long without requests."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What one round found of one point."""

    start_secs: float
    rss_start_bytes: int
    rss_loaded_bytes: int
    """When both loops are over."""
    bytes_per_idle_connection: float
    per_sec: float
    """Requests a second in the closed loop."""
    cpu_us: float
    """Of all processes of the server, for one request, delivery included."""
    delivery_secs: float
    """How long after the closed loop the sinks had everything."""
    p50_ms: float
    p99_ms: float
    p999_ms: float
    """Of the open loop."""
    unfinished: int
    generator_share: float
    """Of its core's time that the generator used in the closed loop."""


def measure(point: Point, load: Generator, secs: float, folder: Path, peers_python: Path) -> Figures:
    """Run one round of one point. `ServerError` or `LoadError` when it is no measurement."""
    request = folder / "request"
    request.write_bytes(request_for(point))
    server_core, load_core = cores()
    if point.workers > 1:
        server_core = os.sched_getaffinity(0)
    if point.shares_cores:
        load_core = server_core
    with start(point, folder, server_core, peers_python) as server, pinned(load_core), ExitStack() as held:
        rss_start = server.rss_bytes()

        def run(mode: Any, secs: float, rate: float = 0.0) -> Any:
            return load.run(mode, server.port, request, connections=point.connections, secs=secs, rate=rate)

        run("closed", secs * WARM_UP_SHARE)
        delivered_within(server)
        per_idle = _hold_idle(point, server, load, request, held)
        cpu_before = server.cpu_secs()
        closed = run("closed", secs)
        delivery_secs = delivered_within(server)
        cpu_secs = server.cpu_secs() - cpu_before
        open_loop = run("open", secs, max(1.0, closed.per_sec * OPEN_SHARE))
        rss_loaded = server.rss_bytes()
    return Figures(
        start_secs=server.start_secs,
        rss_start_bytes=rss_start,
        rss_loaded_bytes=rss_loaded,
        bytes_per_idle_connection=per_idle,
        per_sec=closed.per_sec,
        cpu_us=cpu_secs / closed.answers * 1e6,
        delivery_secs=delivery_secs,
        p50_ms=open_loop.p50_ms,
        p99_ms=open_loop.p99_ms,
        p999_ms=open_loop.p999_ms,
        unfinished=open_loop.unfinished,
        generator_share=closed.cpu_secs / closed.elapsed_secs,
    )


def _hold_idle(point: Point, server: Server, load: Generator, request: Path, held: ExitStack) -> float:
    """Open the idle connections of a point; return the memory that each takes."""
    if not point.idle_connections:
        return 0.0
    time.sleep(SETTLE_SECS)
    before = server.rss_bytes()
    held.enter_context(load.held(server.port, request, point.idle_connections))
    delivered_within(server)
    time.sleep(SETTLE_SECS)
    return (server.rss_bytes() - before) / point.idle_connections


def main() -> None:
    """Measure what was asked for, keep the figures, write the page."""
    options = _options()
    if unknown := set(options.only) - set(BY_ID):
        sys.exit(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(USUAL)}")
    axes = [BY_ID[name] for name in options.only or USUAL]
    peers = options.peers if options.peers.exists() else None
    servers = [name for name, kind in KINDS.items() if name == "ours" or (peers is not None and kind.is_installed)]
    if options.servers:
        servers = [name for name in servers if name in options.servers]
    points = _possible(points_of(axes, servers))
    load = generator(compiled=not options.python_load)
    options.out.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Any] = {
        "facts": machine.facts(options.out, peers),
        "load": load.kind,
        "used_memory": options.used_memory,
        "rounds": options.rounds,
        "secs": options.secs,
        "axes": [axis.id for axis in axes],
        "points": [{"point": asdict(point), "figures": []} for point in points],
    }
    figures_path = options.out / "figures.json"
    with UsedMemory(options.out) if options.used_memory else nullcontext() as memory:
        for round_number in range(1, options.rounds + 1):
            print(f"round {round_number} of {options.rounds}")
            _measure_each(kept["points"], load, options, memory)
            figures_path.write_text(json.dumps(kept, indent=1))
        if not options.only:
            with tempfile.TemporaryDirectory(prefix="run-", dir=options.out) as folder:
                found = backlog.measure_all(backlog.SECS, load, Path(folder), memory)
                kept["backlog"] = list(map(asdict, found))
            figures_path.write_text(json.dumps(kept, indent=1))
    whole = not options.only and not options.servers and peers is not None
    pages = PAGE_FOLDER if whole else options.out
    report.write(kept, pages, options.peers if peers is not None else None)
    print(f"figures: {figures_path}, page: {pages / 'benchmarks.md'}")


def _measure_each(
    rows: Sequence[dict[str, Any]], load: Generator, options: argparse.Namespace, memory: UsedMemory | None
) -> None:
    """Run one round of every point and put its figures into the point's row."""
    for row in rows:
        point = Point(**row["point"])
        if memory is not None:
            memory.fill()
        # The files of one server are gone before the next one starts: each finds the disk as empty as the other.
        with tempfile.TemporaryDirectory(prefix="run-", dir=options.out) as folder:
            try:
                figures = measure(point, load, options.secs, Path(folder), options.peers)
            except (ServerError, LoadError) as error:
                sys.exit(f"{point}: {error}")
        row["figures"].append(asdict(figures))
        print(
            f"{describe(point):60} {figures.per_sec:9.0f} req/s {figures.cpu_us:9.1f} us  p99 {figures.p99_ms:8.2f} ms",
            flush=True,
        )


def _possible(points: list[Point]) -> list[Point]:
    """Let this process, and so the servers it starts, open as many files as it may; leave out what needs more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    possible = []
    for point in points:
        if point.connections + point.idle_connections + OWN_FILES <= hard:
            possible.append(point)
        else:
            print(f"left out: {describe(point)} (a process may open {hard} files here: ulimit -Hn)")
    return possible


def describe(point: Point) -> str:
    """Return a point in a few words: what differs from the main comparison."""
    usual = asdict(Point(point.server))
    differs = [f"{name}={value}" for name, value in asdict(point).items() if value != usual[name]]
    return " ".join([point.server, *differs])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description="Measure ours and its peers.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--secs", type=float, default=4.0, help="length of each loop")
    parser.add_argument("--only", type=str.split, default=[], help=f"parts to run: {' '.join(USUAL)}")
    parser.add_argument("--servers", type=str.split, default=[], help=f"servers to run: {' '.join(KINDS)}")
    parser.add_argument("--peers", type=Path, default=PEERS_PYTHON, help="the Python that has the peers installed")
    parser.add_argument(
        "--used-memory",
        action="store_true",
        help="fill the free memory before each server starts, as `make bench` does",
    )
    parser.add_argument(
        "--python-load", action="store_true", help="send the load from Python although there is a compiler"
    )
    parser.add_argument("--out", type=Path, default=BUILT, help="directory of the figures and of all that is written")
    options = parser.parse_args()
    # Servers are started in directories of their own. Not resolved: the Python of an environment is a link.
    options.peers, options.out = options.peers.absolute(), options.out.absolute()
    return options


if __name__ == "__main__":
    main()
