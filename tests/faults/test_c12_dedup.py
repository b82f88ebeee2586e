"""C12: every event sent several times at once, under two keys, with kills: each is stored once for each key."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Any

import orjson
import pytest
from harness import oracle

from edge.event import unpack
from edge.spool.format import EVENTS
from edge.spool.inspect import dump

KEYS = [{"id": "web", "key": "test-key-0123456789"}, {"id": "app", "key": "test-key-9876543210"}]


@pytest.mark.full
def test_c12_repeats_are_stored_once_whatever_dies(rig: Any, row: Any, scale: Any) -> None:
    kills, events = scale(2, 12), scale(2_000, 100_000)
    dice = random.Random(oracle.seed())
    with row("C12", what="events sent 1 to 5 times, by two senders at once, with kills", unit="events") as found:
        found.bound = "0 lost, every repeat found, no distinct event taken for one"
        target = rig.target()
        rig.configure(
            {"crm": rig.http_sink(target)},
            auth={"mode": "keys", "keys": KEYS},
            dedup={"enabled": True},
            spool={"segment_bytes": 16 << 20, "max_bytes": 4 << 30},
        )
        # Two generators with one prefix send the same events, each at its own pace; the third has the other key.
        options = {"senders": 3, "copies": 5, "repeat": True, "most_bytes": 2_000}
        first, twin = rig.load("d", **options), rig.load("d", **options)
        other = rig.load("d", **options, key=KEYS[1]["key"], name="d-app")
        for _ in range(kills):
            gateway = rig.start()
            oracle.wait_for(
                lambda gateway=gateway: bool(first.acked_between(gateway.ready_at, time.monotonic())), 20, "a 2xx"
            )
            time.sleep(dice.uniform(0.3, 1.0))
            gateway.kill()
        gateway = rig.start()
        oracle.wait_for(lambda: len({entry.event_id for entry in first.acked()}) >= events, 420, "so many events")
        for load in (first, twin, other):
            load.stop(30)
        rig.settle(gateway, ["crm"], 120)
        metrics = gateway.metrics()
        assert gateway.stop()[0] == 0
        stored: Counter[tuple[str, str]] = Counter()
        for frame in dump(rig.folder / "spool" / "shard-000"):
            if frame.kind == EVENTS:
                meta, lines = unpack(frame.payload)
                stored.update((meta["key"], orjson.loads(line)["event_id"]) for line in lines)
        acked = {("web", entry.event_id) for entry in first.acked()} | {
            ("app", entry.event_id) for entry in other.acked()
        }
        found.tried = len(acked)
        arrived = {entry.event_id for entry in target.delivered()}
        found.losses = len(acked - stored.keys()) + len({event_id for _, event_id in acked} - arrived)
        repeated = [key for key, times in stored.items() if times > 1]
        assert not found.losses, (sorted(acked - stored.keys())[:5], found.losses)
        assert not repeated, f"{len(repeated)} events were stored more than once: {repeated[:5]}"
        both = {event_id for key, event_id in acked if key == "web"} & {
            event_id for key, event_id in acked if key == "app"
        }
        assert both, "no event came under both keys"
        repeats = int(metrics.get('edge_events_outcome_total{outcome="duplicate",reason=""}', 0))
        assert repeats > len(acked) / 10
        found.note(f"{repeats:,} repeats found since the last start, {kills} kills; {len(both):,} ids under both keys")
