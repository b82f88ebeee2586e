from __future__ import annotations

import os

import pytest

from edge.spool import capacity
from edge.spool.capacity import default_capacity

GIB = 1 << 30


@pytest.mark.parametrize(
    ("volume_bytes", "expected"),
    [
        (100 * GIB, 10 * GIB),
        (20 * GIB, 10 * GIB),
        (12 * GIB, 6 * GIB),
        (GIB, GIB // 2),
        (64 << 20, 128 << 20),
        (0, 10 * GIB),
    ],
)
def test_default_is_half_of_the_volume_within_bounds(tmp_path, monkeypatch, volume_bytes, expected):
    asked = []

    def statvfs(path):
        asked.append(path)
        fields = [4096, 4096, volume_bytes // 4096, 0, 0, 0, 0, 0, 0, 255]
        return os.statvfs_result(fields)

    monkeypatch.setattr(capacity.os, "statvfs", statvfs)
    assert default_capacity(tmp_path / "not" / "there" / "yet", 64 << 20) == expected
    assert asked == [tmp_path]
