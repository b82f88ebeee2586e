"""A1: SIGKILL at random moments under load, half of them aimed at the middle of a commit."""

from __future__ import annotations

import random
import time
from typing import Any

from harness import oracle

ACKED_BEFORE, WITHIN_SECS = 50, 0.25
"""A kill counts only when so many events were acknowledged in so many seconds before it."""


def test_a1_kill_at_any_moment_loses_nothing_acknowledged(rig: Any, row: Any, scale: Any) -> None:
    kills = scale(25, 200)
    dice = random.Random(oracle.seed())
    with row("A1", what="SIGKILL under load at random times", unit="kills") as found:
        target = rig.target()
        rig.configure({"crm": rig.http_sink(target), "archive": rig.file_sink()})
        load = rig.load(senders=12)
        in_commit = vain = 0
        while found.tried < kills:
            gateway = rig.start()
            assert gateway.start_secs < 5
            time.sleep(dice.uniform(0.3, 0.6) if kills == 25 else dice.uniform(0.2, 2.0))
            if dice.random() < 0.6:
                killed_at, was_in_commit = gateway.kill_in_commit()
            else:
                killed_at, was_in_commit = gateway.kill(), False
            if load.acked_between(killed_at - WITHIN_SECS, killed_at) < ACKED_BEFORE or not load.in_flight(killed_at):
                vain += 1
                assert vain <= kills, "most kills fall where nothing is going on: they prove nothing"
                continue
            found.tried += 1
            in_commit += was_in_commit
            assert load.acked_between(gateway.ready_at, gateway.ready_at + 2), "it did not accept within 2 s"
        assert in_commit >= 0.3 * kills, "too few kills inside a commit"
        load.stop()
        gateway = rig.start()
        rig.settle(gateway, ["crm", "archive"])
        rig.is_alive(gateway, target)
        assert gateway.stop()[0] == 0
        bound = (kills + vain) * (oracle.IN_FLIGHT_EVENTS + oracle.UNSAVED_EVENTS)
        found.bound = f"0 lost, at most {bound:,} duplicates a sink"
        checked = rig.check(found, [load], target.delivered(), duplicates=bound)
        rig.check(found, [load], oracle.entries_in_files(rig.folder / "events"), duplicates=bound)
        found.note(f"{in_commit} kills inside a commit, {vain} in vain; {checked.acknowledged:,} events acknowledged")
