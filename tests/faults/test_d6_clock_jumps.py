"""D6: the clock jumps by an hour and by a day, forward and back, while events come in and across a restart."""

from __future__ import annotations

import time
from typing import Any

import pytest
from harness import filling, needs, oracle
from harness.clocks import Lives, MovableClock, offset_secs

HOUR, DAY = 3600, 86_400
JUMPS = (HOUR, 0, -HOUR, 0, DAY, -DAY, DAY, 0, -DAY, HOUR)
SEGMENT_BYTES = 128 * 1024
RETAIN_SECS = 3.0
RELEASE_SECS, SLACK_SECS, LOOKING_SECS = 1.0, 2.0, 0.3
"""Delivered segments are looked through once a second; the rest is what a busy machine and our own looking take."""


@pytest.mark.full
def test_d6_the_clock_jumps_under_load(rig: Any, row: Any) -> None:
    with row("D6", what="the clock jumps by +-1 h and +-1 day under load", unit="jumps") as found:
        needs.tool(found, "faketime")
        clock = MovableClock(rig.folder / "clock")
        target = rig.target()
        rig.configure(
            {"crm": rig.http_sink(target)}, spool={"segment_bytes": SEGMENT_BYTES, "retain_secs": RETAIN_SECS}
        )
        gateway = rig.start(env=clock.environ)
        lives = rig.hold(Lives(rig.folder / "spool" / "shard-000"))
        load = rig.load(senders=2, rate=30, least_bytes=1_000)
        filling.wait_for_acks(load)
        slowest = 0.0
        for number, jump in enumerate(JUMPS):
            before = gateway.metrics()
            target.order(status=503 if number % 2 else 200)
            time.sleep(0.3)
            clock.move(jump)
            oracle.wait_for(lambda jump=jump: abs(offset_secs(gateway) - jump) < 5, 5, "the gateway sees the jump")
            time.sleep(0.3)
            target.order(status=200)
            slowest = max(slowest, rig.is_alive(gateway, target, 3.0))
            time.sleep(2.0)
            _expect_sane_durations(before, gateway.metrics())
            found.tried += 1
        answers = load.stop()
        assert set(answers["statuses"]) == {"200"}, answers
        time.sleep(RETAIN_SECS + RELEASE_SECS + SLACK_SECS)
        kept = sorted(lives.kept_secs.values())
        found.bound = f"0 lost, segments kept {RETAIN_SECS:g} s neither shorter nor longer, no negative duration"
        found.note(
            f"{len(kept)} segments were kept {kept[0]:.1f} to {kept[-1]:.1f} s with retain_secs {RETAIN_SECS:g};"
            f" a fresh event was delivered within {slowest:.2f} s of every jump"
        )
        assert len(kept) >= 5, "hardly a segment ended"
        assert kept[0] >= RETAIN_SECS - LOOKING_SECS, "a jump had a segment removed early"
        assert kept[-1] <= RETAIN_SECS + RELEASE_SECS + SLACK_SECS, "a jump kept a segment for too long"
        rig.settle(gateway, ["crm"])
        rig.check(found, [load], target.delivered(), duplicates=0)
        assert gateway.stop()[0] == 0


@pytest.mark.full
@pytest.mark.parametrize("jump", [DAY, -DAY])
def test_d6_the_clock_jumps_across_a_restart(rig: Any, row: Any, jump: int) -> None:
    with row("D6", what="the clock jumps by +-1 day across a restart", unit="jumps", bound="0 lost") as found:
        needs.tool(found, "faketime")
        clock = MovableClock(rig.folder / "clock")
        target = rig.target()
        rig.configure({"crm": rig.http_sink(target)}, spool={"segment_bytes": SEGMENT_BYTES, "retain_secs": 10 * HOUR})
        gateway = rig.start(env=clock.environ)
        load = rig.load(senders=4, requests=60, least_bytes=4_000)
        load.wait(20)
        rig.settle(gateway, ["crm"])
        directory = rig.folder / "spool" / "shard-000"
        assert gateway.stop()[0] == 0
        retained = {path.name for path in directory.glob("seg-*.log")}
        assert len(retained) >= 3
        clock.move(jump)
        gateway = rig.start(env=clock.environ)
        assert abs(offset_secs(gateway) - jump) < 5, "the gateway does not see the jump"
        time.sleep(RELEASE_SECS + SLACK_SECS)
        rig.is_alive(gateway, target)
        assert retained <= {path.name for path in directory.glob("seg-*.log")}, "what was to be retained is gone"
        rig.check(found, [load], target.delivered(), duplicates=0)
        assert gateway.stop()[0] == 0
        found.tried += 1
        found.note(f"a restart {jump:+d} s later: no retained segment is removed")


def _expect_sane_durations(before: dict[str, float], after: dict[str, float]) -> None:
    """Check that nothing measured is negative and that no sum of durations has the jump in it."""
    durations = {name: value for name, value in after.items() if "_seconds" in name and "_bucket" not in name}
    assert durations
    negative = {name: value for name, value in durations.items() if value < 0}
    assert not negative, negative
    sums = {name: value - before.get(name, 0.0) for name, value in durations.items() if "_sum" in name}
    assert sums
    jumped = {name: value for name, value in sums.items() if not 0 <= value < HOUR / 2}
    assert not jumped, jumped
