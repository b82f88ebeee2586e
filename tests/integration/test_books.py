"""The books balance, and a mistake in them shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any


async def unaccounted(gateway: Any) -> float:
    return (await gateway.metrics())["edge_events_unaccounted"]


async def test_event_that_the_door_forgot_is_unaccounted(launch: Any, example_event: Any) -> None:
    gateway = await launch()
    assert (await gateway.post("/ingest", example_event)).code == 200
    assert await unaccounted(gateway) == 0
    gateway.gateway.door._settled -= 1
    assert await unaccounted(gateway) == 1


async def test_event_that_was_acknowledged_and_not_stored_is_unaccounted(launch: Any, example_event: Any) -> None:
    gateway = await launch()
    assert (await gateway.post("/ingest", example_event)).code == 200
    gateway.gateway.door.stored += 1
    assert await unaccounted(gateway) == 1


async def test_event_that_a_sink_passed_without_counting_is_unaccounted(
    launch: Any, example_event: Any, eventually: Any
) -> None:
    gateway = await launch()
    assert (await gateway.post("/ingest", example_event)).code == 200
    worker = gateway.gateway.worker("archive")
    await eventually(lambda: worker.snapshot().cursor.delivered == 1)
    cursor = worker._keeper.cursor
    worker._keeper.cursor = replace(cursor, delivered=0)
    assert await unaccounted(gateway) == 1
    worker._keeper.cursor = cursor
    assert await unaccounted(gateway) == 0


async def test_series_of_closed_label_sets_exist_at_0_before_the_first_event(launch: Any) -> None:
    gateway = await launch(pipeline=[{"type": "drop", "id": "drop_clicks", "when": {"event_type": "click"}}])
    metrics = await gateway.metrics()
    for name in (
        'edge_sink_events_total{outcome="dead_lettered",sink="archive"}',
        'edge_sink_events_total{outcome="dropped",sink="archive"}',
        'edge_events_outcome_total{outcome="rejected",reason="busy.full"}',
        'edge_events_outcome_total{outcome="filtered",reason="drop_clicks.matched"}',
        'edge_component_errors_total{component="drop_clicks",kind="filter"}',
    ):
        assert metrics[name] == 0


async def test_event_that_was_dropped_is_accounted_for(launch: Any, example_event: Any, eventually: Any) -> None:
    gateway = await launch()
    assert (await gateway.post("/ingest", example_event)).code == 200
    worker = gateway.gateway.worker("archive")
    await eventually(lambda: worker.snapshot().cursor.delivered == 1)
    worker._keeper.cursor = replace(worker._keeper.cursor, delivered=0, dropped=1)
    assert await unaccounted(gateway) == 0
    worker._keeper.cursor = replace(worker._keeper.cursor, delivered=1)
    assert await unaccounted(gateway) == 1
