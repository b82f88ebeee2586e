"""What an operator sees of the spool of a running gateway: its cap, cursors without a sink, an end that was lost."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from edge.gateway import SHARD
from edge.spool.cursor import Cursor, CursorFile, cursor_names


def save(path: Path, sink: str, position: int) -> None:
    file = CursorFile(path, sink)
    file.save(Cursor(position=position, delivered=position))
    file.close()


async def forget(gateway: Any, body: Any) -> tuple[int, Any]:
    response = await gateway.fetch("POST", "/spool/forget", body, admin=True)
    return response.code, json.loads(response.body)


async def test_cap_is_half_of_the_volume_or_what_is_written(launch: Any, tmp_path: Path) -> None:
    gateway = await launch()
    volume = os.statvfs(tmp_path)
    expected = max(min(10 << 30, volume.f_blocks * volume.f_frsize // 2), 2 << 20)
    assert (await gateway.metrics())["edge_spool_capacity_bytes"] == expected
    await gateway.stop()
    gateway = await launch(spool={"max_bytes": 1 << 40})
    assert (await gateway.metrics())["edge_spool_capacity_bytes"] == 1 << 40


async def test_reload_without_a_written_cap_is_not_a_change_of_it(launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = await launch()
    monkeypatch.setattr("edge.spool.capacity.DEFAULT_BYTES", 5 << 20)  # the volume has become smaller
    assert (await gateway.fetch("POST", "/reload", {}, admin=True)).code == 200


async def test_cursors_of_sinks_that_are_not_configured_are_named_once_and_can_be_forgotten(
    launch: Any, example_event: Any, tmp_path: Path, caplog: Any
) -> None:
    gateway = await launch()
    for _ in range(5):
        assert (await gateway.post("/ingest", example_event)).code == 200
    await gateway.stop()
    path = tmp_path / "spool" / SHARD
    save(path, "former", 2)
    (path / "cursor-broken.a").write_bytes(b"?" * 72)
    gateway = await launch()
    [line] = [record.msg for record in caplog.records if "sinks that are not configured" in str(record.msg)]
    assert line["sinks_behind_events"] == {"broken": None, "former": 3}
    assert await forget(gateway, {"sink": "former"}) == (200, {"status": "success"})
    assert cursor_names(path) == ["archive", "broken"]
    assert (await forget(gateway, {"sink": "former"}))[0] == 404
    code, body = await forget(gateway, {"sink": "archive"})
    assert (code, body["error"], body["details"][0]["field"]) == (409, "Not forgotten", "sink")
    for wrong in ({}, {"sink": 7}, [], {"sink": ""}):
        assert (await forget(gateway, wrong))[0] == 400
    assert (await forget(gateway, b"{"))[0] == 400
    assert (await forget(gateway, {"sink": "../../archive"}))[0] == 404
    assert "archive" in cursor_names(path)
    # Nothing of the other cursors was touched: no event goes twice.
    await gateway.stop()
    gateway = await launch()
    assert gateway.gateway.worker("archive").snapshot().cursor.delivered == 5


async def test_sink_that_a_running_gateway_has_is_not_forgotten_though_its_file_has_it_no_more(
    launch: Any, config_path: Any, tmp_path: Path
) -> None:
    gateway = await launch()
    config_path(sinks={"other": {"type": "blackhole"}})
    assert (await forget(gateway, {"sink": "archive"}))[0] == 409
    assert (await gateway.fetch("POST", "/reload", {}, admin=True)).code == 200
    assert (await forget(gateway, {"sink": "archive"}))[0] == 200
    assert cursor_names(tmp_path / "spool" / SHARD) == ["other"]


async def test_spool_that_ends_before_a_cursor_says_by_how_much(
    launch: Any, tmp_path: Path, expect_log: list[str]
) -> None:
    expect_log += ["not everything in it could be used", "will not reach a sink"]
    gateway = await launch()
    assert (await gateway.metrics())["edge_spool_behind_cursor_events"] == 0
    await gateway.stop()
    await asyncio.to_thread(save, tmp_path / "spool" / SHARD, "former", 40)
    gateway = await launch()
    assert (await gateway.metrics())["edge_spool_behind_cursor_events"] == 40
