"""Makes the page of a run's figures: medians of the rounds, ratios to FastAPI, how all of it was measured.

As a program it writes the page again from kept figures: ``python -m bench.report FIGURES FOLDER [PEERS_PYTHON]``.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.scenarios import BY_ID, USUAL, Axis
from bench.servers import KINDS, Point

BASIS: Final = "fastapi"
"""The server that ratios are taken to."""
BUSY_LOAD_AVERAGE: Final = 0.5
NEAR_FULL_SHARE: Final = 0.8
PLOT: Final = "benchmarks.svg"


class Figures:
    """The figures of one run, as `bench.run` keeps them."""

    def __init__(self, kept: dict[str, Any]) -> None:
        self.facts: dict[str, Any] = kept["facts"]
        self.load: str = kept["load"]
        self.rounds: int = kept["rounds"]
        self.secs: float = kept["secs"]
        self.axes: list[Axis] = [BY_ID[name] for name in kept["axes"]]
        self.used_memory: bool = kept.get("used_memory", False)
        self.backlog: list[dict[str, float]] = kept.get("backlog", [])
        self._rows: dict[Point, list[dict[str, float]]] = {
            Point(**row["point"]): row["figures"] for row in kept["points"]
        }

    def has(self, point: Point) -> bool:
        """Say whether the point was measured."""
        return bool(self._rows.get(point))

    def median(self, point: Point, name: str) -> float:
        """Return the median over the rounds."""
        return statistics.median(self.all(point, name))

    def ratio(self, point: Point, basis: Point, name: str) -> float:
        """Return how many times another point's figure one is: the median of the rounds' own ratios.

        Neighbours on the machine can make a minute twice as slow as the next one. Within a round both points are
        measured in the same minutes; medians of each by itself may come from different ones.
        """
        pairs = zip(self.all(point, name), self.all(basis, name), strict=True)
        return statistics.median(value / other for value, other in pairs)

    def all(self, point: Point, name: str) -> list[float]:
        """Return a figure of every round."""
        return [figures[name] for figures in self._rows[point]]

    def most(self, name: str) -> float:
        """Return the largest figure of the whole run."""
        return max(figures[name] for rows in self._rows.values() for figures in rows)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    title: str
    text: Callable[[Figures, Point], str]


def _is_ours(point: Point) -> bool:
    return point.server == "ours"


def _plain(title: str, name: str, digits: int, factor: float = 1.0) -> Column:
    return Column(title, lambda figures, point: _number(figures.median(point, name) * factor, digits))


def _number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}"


def _cpu_of_event(figures: Figures, point: Point) -> str:
    return _number(figures.median(point, "cpu_us") / point.batch_events, 1 if point.batch_events == 1 else 2)


def _spread(figures: Figures, point: Point) -> str:
    every = [value / point.batch_events for value in figures.all(point, "cpu_us")]
    return f"{min(every):,.1f} - {max(every):,.1f}"


def _events_per_sec(figures: Figures, point: Point) -> str:
    return _number(figures.median(point, "per_sec") * point.batch_events, 0)


def _ratio(name: str) -> Callable[[Figures, Point], str]:
    """Return a function that tells how many times FastAPI's figure one is, under the same load."""

    def text(figures: Figures, point: Point) -> str:
        basis = Point(
            BASIS,
            batch_events=point.batch_events,
            connections=point.connections,
            idle_connections=point.idle_connections,
            head=point.head,
        )
        if not figures.has(basis):
            return ""
        return f"{figures.ratio(point, basis, name):.2f}"

    return text


LATENCIES: Final = (
    _plain("p50 ms", "p50_ms", 2),
    _plain("p99 ms", "p99_ms", 2),
    _plain("p99.9 ms", "p999_ms", 2),
)
RSS: Final = _plain("RSS loaded MB", "rss_loaded_bytes", 0, 1e-6)
RATE: Final = _plain("requests/s", "per_sec", 0)
CPU: Final = (
    _plain("CPU us a request", "cpu_us", 1),
    Column("CPU us an event", _cpu_of_event),
    Column("CPU, FastAPI = 1", _ratio("cpu_us")),
)
DELIVERED: Final = Column(
    "delivered after s",
    lambda figures, point: _number(figures.median(point, "delivery_secs"), 1) if _is_ours(point) else "",
)
SERVERS: Final = (
    RATE,
    Column("rate, FastAPI = 1", _ratio("per_sec")),
    Column("CPU us an event", _cpu_of_event),
    Column("lowest - highest round", _spread),
    Column("CPU, FastAPI = 1", _ratio("cpu_us")),
    *LATENCIES,
    _plain("RSS at start MB", "rss_start_bytes", 0, 1e-6),
    RSS,
    _plain("first answer after s", "start_secs", 2),
    DELIVERED,
)
GROWTH: Final = (RATE, Column("events/s", _events_per_sec), *CPU, *LATENCIES, RSS, DELIVERED)
IDLE: Final = (
    RATE,
    *CPU,
    *LATENCIES,
    RSS,
    _plain("KiB an idle connection", "bytes_per_idle_connection", 1, 1 / 1024),
)
COLUMNS: Final = {"single": SERVERS, "hundred": SERVERS, "idle": IDLE}


def page(figures: Figures) -> str:
    """Return the whole page in Markdown."""
    sections = [_section(figures, axis) for axis in figures.axes]
    parts = [_opening(figures), *sections, _backlog(figures), _method(figures)]
    return "\n".join(part for part in parts if part)


def _opening(figures: Figures) -> str:
    facts = figures.facts
    lines = [
        "# Benchmarks",
        "",
        "<!-- Written by make bench from what it measured. Change bench/, then run it again. -->",
        "",
        f"Measured {facts['date']} at commit {facts['commit'] or 'unknown'}: medians of {figures.rounds} rounds.",
        f"Each loop took {figures.secs:g} s. Ratios are medians too, of the ratios within each round: how fast the",
        "machine is may change from one minute to the next.",
        "",
        f"![CPU time and latency of the servers](./{PLOT})",
        "",
    ]
    titles = {point.server for axis in figures.axes for _, point in axis.points if figures.has(point)}
    lines += ["| server | what it does with an event |", "| --- | --- |"]
    lines += [f"| {kind.title} | {kind.does} |" for name, kind in KINDS.items() if name in titles]
    return "\n".join([*lines, ""])


def _section(figures: Figures, axis: Axis) -> str:
    rows = [(value, point) for value, point in axis.points if figures.has(point)]
    if not rows:
        return ""
    by_server = axis.unit == "server"
    many_servers = not by_server and len({point.server for _, point in rows}) > 1
    many_sizes = axis.unit != "events in a request" and len({point.batch_events for _, point in rows}) > 1
    titles = [axis.unit, *(["server"] if many_servers else []), *(["events in a request"] if many_sizes else [])]
    columns = COLUMNS.get(axis.id, GROWTH)
    texts = []
    for value, point in rows:
        row = [KINDS[point.server].title if by_server else _value(value)]
        row += [KINDS[point.server].title] if many_servers else []
        row += [_value(point.batch_events)] if many_sizes else []
        texts.append([*row, *(column.text(figures, point) for column in columns)])
    filled = [any(row[len(titles) + at] for row in texts) for at in range(len(columns))]
    lead = len(titles)
    head = [*titles, *(column.title for column, wanted in zip(columns, filled, strict=True) if wanted)]
    table = [[*row[:lead], *(text for text, wanted in zip(row[lead:], filled, strict=True) if wanted)] for row in texts]
    return "\n".join([f"## {axis.title}", "", *_table(head, lead, table), ""])


def _backlog(figures: Figures) -> str:
    if not figures.backlog:
        return ""
    head = ["events in a request", "events pending", "taken events/s", "delivered events/s", "delivered, taken = 1"]
    rows = [
        [
            _value(found["batch_events"]),
            _value(found["events"]),
            *(_number(found[name], 0) for name in ("taken_per_sec", "delivered_per_sec")),
            f"{found['delivered_per_sec'] / found['taken_per_sec']:.1f}",
        ]
        for found in figures.backlog
    ]
    return "\n".join([BACKLOG, *_table(head, 1, rows), ""])


def _value(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _table(head: Sequence[str], lead: int, rows: Sequence[Sequence[str]]) -> list[str]:
    marks = ["---"] * lead + ["---:"] * (len(head) - lead)
    return [f"| {' | '.join(row)} |" for row in (head, marks, *rows)]


BACKLOG: Final = """\
## Delivery of a backlog

Once, with ours alone: the file sink cannot be opened while events are taken as fast as they can be, then it can, and no
more events come.
"""

METHOD: Final = """\
## How it was measured

- {cores}
- {generator}
- Servers take turns within a round. Each gets a fresh process and an empty directory, one request (the time to its
  answer is `first answer after`; memory at the start is that after it), a warm-up, and two loops over keep-alive
  connections.
- Closed loop: each connection sends again when it has its answer. That gives the rate. CPU time is user and system time
  of all processes and threads of the server, from /proc, for the whole loop and what follows it until the sinks have
  delivered every event, divided by the answers. What the kernel does on other threads (disk, network interrupts) is
  not in it.
- Open loop: half of that rate, arrivals at random times (Poisson, the same for every server). Latency counts from the
  time a request was meant to be sent, so no stall is hidden by requests that were not sent (coordinated omission).
  {unfinished}
- The event is the example of the HTTP contract. All servers get the same bytes; an answer other than 200 ends the run.
- 32 connections, our pipeline of 3, one file sink and durability `disk`, unless a table says otherwise.
- A connection sends the same head with every request, and ours remembers the last head of a connection. A sender that
  puts a trace or a request id into each head never repeats one: what that costs is the table of heads.
- `delivered after` is how long after the closed loop our sinks had every event of it: what had piled up meanwhile.
- What a second process brings is seen between `1 shared`, one process and the load generator on one core, and
  `2 shared`, two processes, the one that delivers and the load generator on all {n_cores}. `1` has the generator on
  another core, as in all other tables.
- {used_memory}

| machine | |
| --- | --- |
| processor | {processor}, {n_cores} cores, {memory_gib} GiB |
| kernel | Linux {kernel} |
| disk | {file_system}; fdatasync of 4 KiB takes {fdatasync_p50_ms:.2f} ms (median), {fdatasync_p99_ms:.2f} ms (p99) |
| page cache | writing a MiB takes {first_use_ms:.2f} ms of processor time the first time, {next_use_ms:.2f} ms again |
| load average before the run | {load_average}{busy} |
| Python | {python} |
| peers | {peers} |

Run it again with `make bench`. `make bench ROUNDS=3 SECS=2 ONLY="single batch"` measures some parts and writes its page
below `var/bench`; the parts are {parts}.
"""


USED_MEMORY: Final = """\
The free memory was filled with page cache before each server, as on a machine that has been up for a while. A virtual
  machine may have to get each page from its host when it is first used, and who writes files pays for that instead of
  for what it does: see the table below."""


def _method(figures: Figures) -> str:
    facts = figures.facts
    share = figures.most("generator_share")
    limit = "; rates near that are its limit as much as the server's" if share > NEAR_FULL_SHARE else ""
    unfinished = figures.most("unfinished")
    return METHOD.format(
        **facts | {"cores": _cores(facts)},
        n_cores=facts["cores"],
        generator=f"The load generator (`bench/load/{figures.load}`) used at most {share * 100:.0f} % of its core in a "
        f"closed loop{limit}.",
        used_memory=USED_MEMORY if figures.used_memory else "Memory was used as the machine had it free.",
        unfinished=f"At most {unfinished:,.0f} requests of a loop had no answer in the end; they are in no percentile."
        if unfinished
        else "Every request had its answer.",
        busy=" (there was other work: do not trust the figures)" if facts["load_average"] > BUSY_LOAD_AVERAGE else "",
        peers=", ".join(f"{name} {version}" for name, version in facts["versions"].items()) or "not installed",
        parts=", ".join(f"`{name}`" for name in USUAL),
    )


def _cores(facts: dict[str, Any]) -> str:
    if facts["cores"] > 1:
        return "The server runs on one core, the load generator on another, unless a table says otherwise."
    return "The server and the load generator share the only core."


def write(kept: dict[str, Any], folder: Path, peers_python: Path | None) -> None:
    """Write the page, and its plot if there is a Python that has matplotlib."""
    figures = Figures(kept)
    (folder / "benchmarks.md").write_text(page(figures), encoding="utf-8")
    if peers_python is None:
        return
    command = [str(peers_python), str(Path(__file__).with_name("plot.py")), str(folder / PLOT)]
    subprocess.run(command, input=json.dumps(_for_plot(figures)), text=True, check=True)  # noqa: S603 - our own command


def _for_plot(figures: Figures) -> list[dict[str, Any]]:
    """Return the medians along each axis, as plain data: the plot is drawn by another Python."""
    names = ("per_sec", "cpu_us", "p50_ms", "p99_ms", "p999_ms")
    return [
        {
            "axis": axis.id,
            "title": axis.title,
            "unit": axis.unit,
            "value": value,
            "server": KINDS[point.server].title,
            "batch_events": point.batch_events,
            **{name: figures.median(point, name) for name in names},
        }
        for axis in figures.axes
        for value, point in axis.points
        if figures.has(point)
    ]


def main() -> None:
    """Write the page of kept figures again."""
    figures_path, folder, *peers_python = map(Path, sys.argv[1:])
    write(json.loads(figures_path.read_text()), folder, peers_python[0] if peers_python else None)


if __name__ == "__main__":
    main()
