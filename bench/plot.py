"""Draws the plot of the page: medians on standard input (JSON of `bench.report`), an SVG file out.

Runs in the environment of the peers, which has matplotlib; the gateway's has not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, Final

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

Rows = list[dict[str, Any]]

OURS: Final = "#1f6f8b"
PEER: Final = "#b8bcc2"
COLOURS: Final = {"ours": OURS, "FastAPI": "#d1495b", "FastAPI + fsync": "#edae49"}

mpl.rcParams.update(
    {
        "svg.hashsalt": "edge",  # the same figures give the same file
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)


def _bars(title: str, batch_events: int) -> Callable[[Any, Rows], None]:
    def draw(axes: Any, rows: Rows) -> None:
        rows = sorted(rows, key=lambda row: row["cpu_us"], reverse=True)
        costs = [row["cpu_us"] / batch_events for row in rows]
        colours = [OURS if row["server"] == "ours" else PEER for row in rows]
        bars = axes.barh([row["server"] for row in rows], costs, color=colours)
        axes.bar_label(bars, fmt="%.1f", padding=3)
        axes.set(title=title, xlabel="CPU us an event")

    return draw


def _lines(title: str, name: str, label: str) -> Callable[[Any, Rows], None]:
    def draw(axes: Any, rows: Rows) -> None:
        for server in dict.fromkeys(row["server"] for row in rows):
            mine = [row for row in rows if row["server"] == server]
            values = [row[name] / (row["batch_events"] if name == "cpu_us" else 1) for row in mine]
            axes.plot([row["value"] for row in mine], values, marker="o", label=server, color=COLOURS[server])
        axes.set(title=title, xlabel=rows[0]["unit"], ylabel=label, xscale="log", yscale="log")
        axes.set_xticks(values_of(rows), [f"{value:,}" for value in values_of(rows)])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.legend(frameon=False)

    return draw


def values_of(rows: Rows) -> list[Any]:
    """Return the values along the axis, each once."""
    return list(dict.fromkeys(row["value"] for row in rows))


def _groups(title: str, *, joined: bool = True) -> Callable[[Any, Rows], None]:
    """Return what draws our figures along an axis; not joined: its values are no steps of one scale."""

    def draw(axes: Any, rows: Rows) -> None:
        rows = [row for row in rows if row["server"] == "ours"]
        sizes = list(dict.fromkeys(row["batch_events"] for row in rows))
        for size in sizes:
            mine = [row for row in rows if row["batch_events"] == size]
            label = "one event" if size == 1 else f"batches of {size}"
            costs = [row["cpu_us"] / size for row in mine]
            axes.plot([str(row["value"]) for row in mine], costs, "o-" if joined else "o", label=label)
        axes.set(title=title, xlabel=rows[0]["unit"], ylabel="CPU us an event", ylim=(0, None))
        axes.legend(frameon=False)

    return draw


def _latencies(axes: Any, rows: Rows) -> None:
    names = (("p50_ms", "p50", 1.0), ("p99_ms", "p99", 0.6), ("p999_ms", "p99.9", 0.3))
    for name, label, alpha in reversed(names):
        axes.barh([row["server"] for row in rows], [row[name] for row in rows], label=label, color=OURS, alpha=alpha)
    axes.set(title="Latency at half of the saturation rate", xlabel="ms", xscale="log")
    axes.legend(frameon=False)


PANELS: Final[tuple[tuple[str, Callable[[Any, Rows], None]], ...]] = (
    ("single", _bars("One event in a request", 1)),
    ("hundred", _bars("Batches of 100", 100)),
    ("single", _latencies),
    ("batch", _lines("CPU by batch size", "cpu_us", "CPU us an event")),
    ("connections", _lines("p99 by connections", "p99_ms", "p99 ms")),
    ("components", _groups("Ours: components in the pipeline")),
    ("sinks", _groups("Ours: sinks")),
    ("durability", _groups("Ours: durability")),
    ("workers", _groups("Ours: processes that take events", joined=False)),
    ("heads", _groups("Ours: heads repeated or new")),
)


def main() -> None:
    """Draw the panels that there are figures for."""
    rows: Rows = json.load(sys.stdin)
    panels = [(draw, [row for row in rows if row["axis"] == axis]) for axis, draw in PANELS]
    panels = [(draw, mine) for draw, mine in panels if mine]
    columns = 2
    lines = max(1, -(-len(panels) // columns))
    figure, grid = plt.subplots(lines, columns, figsize=(10, 3 * lines), layout="constrained", squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (draw, mine) in zip(grid.flat, panels, strict=False):
        draw(axes, mine)
    figure.savefig(sys.argv[1], metadata={"Date": None})


if __name__ == "__main__":
    main()
