"""C12, a part of it: an event that was refused is no repeat of anything when it comes again."""

from __future__ import annotations

import time
from typing import Any

from harness import oracle

FULL_SECS = 1.0
"""How long the spool stays full while senders repeat what was refused."""
MOST_BYTES = 262_144


def test_c12_repeat_of_a_refused_event_is_stored(rig: Any, row: Any, scale: Any) -> None:
    fills = scale(1, 10)
    bound = "0 lost, 0 duplicates"
    with row("C12", what="events refused by a full spool and sent again, dedup on", unit="fills", bound=bound) as found:
        target = rig.target(listen=False)
        rig.configure(
            {"crm": rig.http_sink(target, required=True)},  # a sink that is not would have the oldest dropped
            spool={"segment_bytes": 65_536, "max_bytes": MOST_BYTES},
            dedup={"enabled": True, "window_secs": 1},
        )
        gateway = rig.start()
        load = rig.load(senders=8, most_bytes=4096, repeat=True)
        while found.tried < fills:
            target.order(listen=False)
            seen = refused(gateway)
            oracle.wait_for(lambda: refused(gateway) > seen, 20, "the spool is full")  # noqa: B023
            seen = refused(gateway)
            time.sleep(FULL_SECS)
            assert refused(gateway) > seen, "nobody was refused"
            target.order(listen=True)
            load.wait_for_acked(time.monotonic(), 500, 20)
            found.tried += 1
        load.stop(30)
        rig.settle(gateway, ["crm"])
        assert gateway.stop()[0] == 0
        checked = rig.check(found, [load], target.delivered(), duplicates=0)
        found.note(f"{checked.acknowledged:,} events acknowledged")


def refused(gateway: Any) -> float:
    """Return how many events were refused for want of room."""
    return float(gateway.metrics()['edge_events_outcome_total{outcome="rejected",reason="busy.full"}'])
