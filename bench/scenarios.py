"""What is compared with what: each axis varies one thing, all else being that of the main comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.servers import KINDS, Point

VERSUS: Final = ("ours", "fastapi", "fastapi_fsync")
IDLE_CONNECTIONS: Final = 10_000
ONE_AND_MANY: Final = (1, 100)
"""Most axes are looked at with single events and with batches of so many."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One question: how the figures grow along one option."""

    id: str
    title: str
    unit: str
    """Name of the option, for the page's first column."""
    points: tuple[tuple[Any, Point], ...]
    """The value of the option beside what is measured for it; the servers take turns within a value."""


def _axis(id: str, title: str, unit: str, points: Iterator[tuple[Any, Point]]) -> Axis:
    return Axis(id, title, unit, tuple(points))


AXES: Final = (
    _axis("single", "One event in a request", "server", ((kind, Point(kind)) for kind in KINDS)),
    _axis("hundred", "Batches of 100", "server", ((kind, Point(kind, batch_events=100)) for kind in KINDS)),
    _axis(
        "batch",
        "Batch size",
        "events in a request",
        ((size, Point(kind, batch_events=size)) for size in (1, 10, 100, 1000) for kind in VERSUS),
    ),
    _axis(
        "components",
        "Enrichers and filters in the pipeline",
        "components",
        ((count, Point(batch_events=size, components=count)) for size in ONE_AND_MANY for count in (0, 5, 20)),
    ),
    _axis(
        "sinks",
        "Sinks, each a file sink that gets everything",
        "sinks",
        ((count, Point(batch_events=size, sinks=count)) for size in ONE_AND_MANY for count in (1, 4)),
    ),
    _axis(
        "connections",
        "Connections that post at the same time",
        "connections",
        ((count, Point(kind, connections=count)) for count in (1, 32, 1000) for kind in VERSUS[:2]),
    ),
    _axis(
        "idle",
        "Connections that are open and silent, beside the 32 that post",
        "idle connections",
        ((count, Point(kind, idle_connections=count)) for count in (0, IDLE_CONNECTIONS) for kind in VERSUS[:2]),
    ),
    _axis(
        "durability",
        "What an answer waits for",
        "durability",
        (
            (word, Point(batch_events=size, durability=word))
            for size in ONE_AND_MANY
            for word in ("disk", "os", "memory")
        ),
    ),
    _axis(
        "workers",
        "Processes that take events, 128 connections; shared: with the load generator on the same core, or cores",
        "workers",
        (
            (words, Point(batch_events=size, connections=128, workers=count, shares_cores=shared))
            for size in ONE_AND_MANY
            for words, count, shared in (
                ("1", 1, False),
                ("1 shared", 1, True),
                ("2 shared", 2, True),
            )
        ),
    ),
    _axis(
        "heads",
        "Heads of requests: repeated byte for byte on a connection, or new each time",
        "head",
        ((head, Point(kind, head=head)) for head in ("repeated", "new") for kind in VERSUS[:2]),
    ),
    # Every path of the code that measures, in two starts of our own server: what the tests run.
    _axis(
        "smoke",
        "Smoke test",
        "point",
        iter(
            (
                ("main", Point(connections=2)),
                (
                    "all",
                    Point("ours", batch_events=10, connections=4, idle_connections=8, components=20, sinks=4,
                          durability="memory"),
                ),
            )
        ),
    ),
)  # fmt: skip
BY_ID: Final = {axis.id: axis for axis in AXES}
USUAL: Final = tuple(axis.id for axis in AXES if axis.id != "smoke")


def points_of(axes: Sequence[Axis], servers: Sequence[str]) -> list[Point]:
    """Return what has to be measured for these axes, each once, in the order in which the servers take turns."""
    return list(dict.fromkeys(point for axis in axes for _, point in axis.points if point.server in servers))
