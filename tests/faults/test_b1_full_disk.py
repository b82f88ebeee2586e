"""B1: the spool's disk fills up while the sink is down, and drains when it is back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness import disks, filling, needs, oracle

SEGMENT_BYTES, METADATA_BYTES = 512 * 1024, 64 * 1024
FULL_SECS = 0.1
"""Within what time a sender is told that there is no room; or twice what an answer took while there was, whichever is
longer."""


def test_b1_a_full_disk_is_said_and_ends_by_itself(rig: Any, row: Any, scale: Any) -> None:
    with row("B1", what="the spool's disk is full until the sink is back", unit="fill/drain cycles") as found:
        needs.root(found)
        volume = rig.hold(disks.tmpfs(rig.folder / "volume", scale(6, 24) * disks.MIB))
        fill_and_drain(rig, found, volume, scale(3, 20))


@pytest.mark.full
def test_b1_on_ext4(rig: Any, row: Any) -> None:
    with row("B1", what="the spool's disk is full until the sink is back", unit="fill/drain cycles") as found:
        needs.loop_devices(found)
        volume = rig.hold(disks.ext4(rig.folder / "volume", 24 * disks.MIB))
        fill_and_drain(rig, found, volume, 20)


def fill_and_drain(rig: Any, found: Any, volume: Path, cycles: int) -> None:
    target = rig.target()
    rig.configure(
        {"crm": rig.http_sink(target, required=True)},
        spool={"path": str(volume / "spool"), "segment_bytes": SEGMENT_BYTES, **filling.NO_CAP},
    )
    gateway = rig.start()
    found.bound = f"0 lost, busy.full within {FULL_SECS * 1000:g} ms, ingest resumes within {filling.RESUME_SECS:g} s"
    loads, usual, slowest_told, slowest_resumed = [], 0.0, 0.0, 0.0
    for cycle in range(cycles):
        target.order(listen=False)
        load = rig.load(f"c{cycle}", least_bytes=filling.LEAST_BYTES)
        loads.append(load)
        filling.wait_for_acks(load)
        usual = max(usual, *(rig.probe(gateway).secs for _ in range(10)))
        filling.wait_until_quiet(load)
        oracle.wait_for(lambda: disks.free_bytes(volume) < SEGMENT_BYTES + METADATA_BYTES, 20, "the disk is full")
        oracle.wait_for(lambda: not gateway.is_ready(), 5, "it is not ready")
        for _ in range(10):
            told = rig.probe(gateway, **filling.LARGER_THAN_LEFT)
            assert (told.status, told.code) == (503, "busy.full")
            slowest_told = max(slowest_told, told.secs)
        delivered = target.ledger.stat().st_size
        target.order(listen=True)
        # The sink's probes of its target, the delivery of the oldest segment and its release: all of that while full.
        oracle.wait_for(
            lambda: disks.free_bytes(volume) >= SEGMENT_BYTES + METADATA_BYTES, 20, "a segment was released"
        )
        assert target.ledger.stat().st_size > delivered, "nothing was delivered while the disk was full"
        slowest_resumed = max(slowest_resumed, filling.wait_for_acks(load))
        filling.expect_answers(load.stop(), "busy.full")
        rig.settle(gateway, ["crm"])
        found.tried += 1
    found.note(
        f"busy.full within {slowest_told * 1000:.0f} ms (usual answers took {usual * 1000:.0f} ms), ingest resumed"
        f" within {slowest_resumed:.2f} s of room for a segment"
    )
    assert slowest_told <= max(FULL_SECS, 2 * usual)
    rig.is_alive(gateway, target)
    checked = rig.check(found, loads, target.delivered(), duplicates=oracle.IN_FLIGHT_EVENTS * cycles)
    found.note(f"{checked.acknowledged:,} events acknowledged")
    assert gateway.stop()[0] == 0
