"""The memory of the gateway: at its start, of an idle connection, and while events go through."""

from __future__ import annotations

from pathlib import Path

from bench import memory
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
