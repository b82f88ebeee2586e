"""A12: one event after a while without any is delivered at once, again and again."""

from __future__ import annotations

import time
from typing import Any

import pytest
from harness import oracle
from harness.hand import Hand

IDLE_SECS = 1.0
"""Longer than every timer of an idle gateway: cursor saves, releases of segments, looks at slow senders."""
BOUND_SECS = 1.0


@pytest.mark.full
def test_a12_event_after_idle_is_delivered_within_a_second(rig: Any, row: Any, scale: Any) -> None:
    times = scale(3, 50)
    bound = f"each delivered to both sinks within {BOUND_SECS:g} s, 0 lost"
    with row("A12", what=f"one event after {IDLE_SECS:g} s without any", unit="events", bound=bound) as found:
        target = rig.target()
        # The default age of a batch: what an operator gets who changes nothing.
        rig.configure({"crm": {"type": "http", "url": target.url}, "archive": rig.file_sink()})
        gateway = rig.start()
        hand = Hand(rig.folder, "late")
        events = rig.folder / "events"
        slowest = 0.0
        for number in range(times):
            time.sleep(IDLE_SECS)
            before = len(target.delivered())
            assert len(oracle.entries_in_files(events)) == before == number, "it was not idle"
            started = time.monotonic()
            assert hand.post(gateway, f"late-{number}") == 200
            oracle.wait_for(lambda: len(target.delivered()) > before, BOUND_SECS, "it is delivered")  # noqa: B023
            oracle.wait_for(
                lambda: len(oracle.entries_in_files(events)) > before,  # noqa: B023
                BOUND_SECS - (time.monotonic() - started),
                "it is in a file",
            )
            slowest = max(slowest, time.monotonic() - started)
            found.tried += 1
        rig.settle(gateway, ["crm", "archive"])
        assert gateway.stop()[0] == 0
        rig.check(found, [hand], target.delivered(), duplicates=0)
        rig.check(found, [hand], oracle.entries_in_files(events), duplicates=0)
        found.note(f"the slowest took {slowest:.3f} s")
