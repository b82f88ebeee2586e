"""What the benchmark measures of the gateway alone: its memory, and how it delivers a backlog."""

from __future__ import annotations

from pathlib import Path

from bench import backlog, memory
from bench.load import generator

START_BYTES = 60_000_000
CONNECTION_BYTES = 25 * 1024
GROWTH_BYTES = 8 << 20


def test_memory_at_the_start_is_bounded(tmp_path: Path) -> None:
    assert memory.at_start(tmp_path / "start") <= START_BYTES


def test_idle_connection_takes_little(tmp_path: Path) -> None:
    assert memory.idle(tmp_path / "idle", generator(), 1000) <= CONNECTION_BYTES


def test_memory_does_not_grow_with_the_events_that_went_through(tmp_path: Path) -> None:
    held = [rss_bytes for _, rss_bytes in memory.events(tmp_path / "events", generator(), 200_000)]
    assert held[-1] - held[1] <= GROWTH_BYTES  # the first events fill pools and caches


def test_backlog_is_delivered_faster_than_it_was_taken(tmp_path: Path) -> None:
    single, _ = backlog.measure_all(1.0, generator(), tmp_path)
    assert single.events > 0
    assert single.ratio > 1  # three times as fast on a machine that has nothing else to do
