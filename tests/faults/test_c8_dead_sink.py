"""C8: one of three sinks is dead for the whole run, until the spool is at its cap."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from harness import oracle
from harness.gateway import Gateway
from harness.target import Target

SEGMENT_BYTES = 131_072
REJECTED = 'edge_events_outcome_total{outcome="rejected",reason="busy.full"}'
DROPPED = 'edge_sink_events_total{outcome="dropped",sink="dead"}'


def _start(rig: Any, max_bytes: int, *, required: bool) -> tuple[Gateway, Target, Target]:
    """Start a gateway with two sinks that work and one whose target's port is closed."""
    good, dead = rig.target("good"), rig.target("dead", listen=False)
    rig.configure(
        {"crm": rig.http_sink(good), "archive": rig.file_sink(), "dead": rig.http_sink(dead, required=required)},
        spool={"max_bytes": max_bytes, "segment_bytes": SEGMENT_BYTES},
    )
    return rig.start(), good, dead


@pytest.mark.full
def test_c8_a_required_sink_holds_the_door_shut(rig: Any, row: Any) -> None:
    max_bytes = 8 << 20
    with row(
        "C8", what="a required sink dead until the cap", unit="MiB of spool", bound="0 lost, 503 busy.full"
    ) as found:
        gateway, good, dead = _start(rig, max_bytes, required=True)
        load = rig.load(senders=4, most_bytes=16_384)
        oracle.wait_for(lambda: gateway.metrics().get(REJECTED, 0) > 10, 120, "the spool is full")
        full_at = load.acked()[-1].at
        for sink in ("crm", "archive"):
            oracle.wait_for(lambda of=sink: gateway.pending(of) == 0, 20, f"{sink} has had everything")
        answers = load.stop()
        assert set(answers["statuses"]) == {"200", "503"}, answers
        assert "busy.full" in answers["samples"]["503"]
        acked = load.acked()
        assert gateway.pending("dead") == len(acked), "what the dead sink has before it is all that was accepted"
        oracle.wait_for(lambda: gateway.unaccounted() == 0, 2.0, "the books balance")
        rig.check(found, [load], good.delivered(), duplicates=0)
        rig.check(found, [load], oracle.entries_in_files(rig.folder / "events"), duplicates=0)
        used = gateway.metrics()["edge_spool_bytes"]
        assert 0.7 * max_bytes < used <= max_bytes, f"{used:,.0f} bytes"
        found.tried += max_bytes >> 20
        found.note(f"full with {len(acked):,} events, {answers['statuses']['503']:,} requests refused")
        dead.order(listen=True)
        oracle.wait_for(lambda: rig.post(gateway, "again")[0] == 200, 10, "events are taken again")
        rig.settle(gateway, ["crm", "archive", "dead"])
        delivered = [entry for entry in dead.delivered() if entry.event_id != "again"]
        rig.check(found, [load], delivered, duplicates=0)
        assert full_at > acked[0].at
        assert gateway.stop()[0] == 0


@pytest.mark.full
def test_c8_a_sink_that_is_not_required_loses_the_oldest_and_they_are_counted(rig: Any, row: Any) -> None:
    max_bytes, rounds = 6 << 20, 4
    with row("C8", what="another one", unit="MiB of spool", bound="books close to 0, only the oldest dropped") as found:
        gateway, good, dead = _start(rig, max_bytes, required=False)
        load = rig.load(senders=4, most_bytes=16_384)
        oracle.wait_for(lambda: gateway.metrics().get(DROPPED, 0) > 0, 120, "the first drop")
        n_first = load.n_acked()
        oracle.wait_for(lambda: load.n_acked() > rounds * n_first, 240, "the cap was reached several times over")
        answers = load.stop()
        assert answers["statuses"]["200"] > 50 * answers["statuses"].get("503", 0), answers
        assert set(answers["statuses"]) <= {"200", "503"}, answers
        acked = {entry.event_id for entry in load.acked()}
        for sink in ("crm", "archive"):
            oracle.wait_for(lambda of=sink: gateway.pending(of) == 0, 20, f"{sink} has had everything")
        pending, dropped = gateway.pending("dead"), int(gateway.metrics()[DROPPED])
        assert pending + dropped == len(acked), f"{pending} pending and {dropped} dropped of {len(acked)}"
        oracle.wait_for(lambda: gateway.unaccounted() == 0, 2.0, "the books balance")
        assert gateway.metrics()["edge_spool_bytes"] <= max_bytes
        dead.order(listen=True)
        rig.settle(gateway, ["crm", "archive", "dead"])
        dropped = int(gateway.metrics()[DROPPED])
        delivered = {entry.event_id for entry in dead.delivered()}
        assert len(delivered) + dropped == len(acked), f"{len(delivered)} delivered, {dropped} dropped of {len(acked)}"
        assert delivered <= acked
        _are_the_oldest(acked - delivered, delivered)
        rig.check(found, [load], good.delivered(), duplicates=0)
        rig.check(found, [load], oracle.entries_in_files(rig.folder / "events"), duplicates=0)
        found.tried += max_bytes >> 20
        n_refused = answers["statuses"].get("503", 0)
        found.note(f"not required: {dropped:,} of {len(acked):,} dropped, as counted; {n_refused} requests refused")
        rig.is_alive(gateway, dead)
        assert gateway.stop()[0] == 0


def _are_the_oldest(dropped: set[str], kept: set[str]) -> None:
    """A connection's events lie in the spool in the order of their numbers: the dropped ones come before the others."""
    last, first = defaultdict(int), {}
    for event_id in dropped:
        sender, number = event_id.split("-")[1:]
        last[sender] = max(last[sender], int(number))
    for event_id in kept:
        sender, number = event_id.split("-")[1:]
        first[sender] = min(first.get(sender, int(number)), int(number))
    assert dropped
    for sender, number in first.items():
        assert last[sender] < number, f"of connection {sender}, {last[sender]} was dropped and {number} was kept"
