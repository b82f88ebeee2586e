"""B2: another process takes all the room of the spool's disk at random times, and gives it back."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from harness import disks, filling, needs, oracle

SEGMENT_BYTES = 256 * 1024


@pytest.mark.full
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_b2_somebody_else_fills_the_disk(rig: Any, row: Any, kind: str) -> None:
    dice = random.Random(oracle.seed())
    with row("B2", what="another process fills the spool's disk at random times", unit="times full") as found:
        if kind == "tmpfs":
            needs.root(found)
            volume = rig.hold(disks.tmpfs(rig.folder / "volume", 32 * disks.MIB))
        else:
            needs.loop_devices(found)
            volume = rig.hold(disks.ext4(rig.folder / "volume", 32 * disks.MIB))
        target = rig.target()
        rig.configure(
            {"crm": rig.http_sink(target, required=True)},
            spool={"path": str(volume / "spool"), "segment_bytes": SEGMENT_BYTES, **filling.NO_CAP},
        )
        gateway = rig.start()
        filler = disks.Filler(volume / "somebody-else")
        load = rig.load(least_bytes=filling.LEAST_BYTES)
        slowest = 0.0
        while found.tried < 20:
            filling.wait_for_acks(load)
            time.sleep(dice.uniform(0.0, 1.0))
            delivered = target.ledger.stat().st_size
            told_full = _hold_until_full(rig, gateway, filler)
            filler.hold(dice.uniform(0.0, 0.5))
            assert told_full.code == "busy.full"
            assert disks.free_bytes(volume) < SEGMENT_BYTES
            oracle.wait_for(lambda: filler.top_up() < SEGMENT_BYTES and not gateway.pending("crm"), 10, "all delivered")
            assert target.ledger.stat().st_size > delivered, "nothing was delivered while the disk was full"
            filler.release()
            slowest = max(slowest, filling.wait_for_acks(load))
            found.tried += 1
        filling.expect_answers(load.stop(), "busy.full")
        filler.close()
        found.bound = f"0 lost, ingest resumes within {filling.RESUME_SECS:g} s"
        found.note(f"{kind}: ingest resumed within {slowest:.2f} s of room")
        rig.settle(gateway, ["crm"])
        rig.is_alive(gateway, target)
        rig.check(found, [load], target.delivered(), duplicates=0)
        assert gateway.stop()[0] == 0


def _hold_until_full(rig: Any, gateway: Any, filler: disks.Filler, secs: float = 20.0) -> Any:
    """Take the room again and again until the gateway says that it has none."""
    deadline = time.monotonic() + secs
    while (told := rig.probe(gateway, **filling.LARGER_THAN_LEFT)).status == 200:
        assert time.monotonic() < deadline, "the disk does not get full"
        filler.hold(0.05)
    return told
