"""Filling the free memory before a server is measured."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.machine import file_system
from bench.used_memory import UsedMemory, costs_ms, memory_bytes

FILLED_BYTES = 512 << 20


def test_memory_is_filled_with_cache_and_the_disk_with_nothing(tmp_path: Path) -> None:
    if file_system(tmp_path) == "tmpfs":
        pytest.skip("files in memory have no page cache")
    if memory_bytes("MemFree") < 4 * FILLED_BYTES:
        pytest.skip("there is hardly any free memory")
    before = memory_bytes("Cached")
    with UsedMemory(tmp_path, FILLED_BYTES) as memory:
        memory.fill()
        assert memory_bytes("Cached") - before > FILLED_BYTES / 2  # others may give some back meanwhile
        assert os.fstat(memory._file.fileno()).st_blocks == 0
        assert list(tmp_path.iterdir()) == []
    assert memory_bytes("Cached") - before < FILLED_BYTES / 2


def test_what_writing_costs_is_measured(tmp_path: Path) -> None:
    assert all(cost_ms > 0 for cost_ms in costs_ms(tmp_path))
