"""A1: SIGKILL at random moments under load, most of them aimed at the middle of a commit."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

from harness import ledger, oracle

ACKED_BEFORE, WITHIN_SECS = 50, 0.25
"""A kill counts only when so many events were acknowledged in so many seconds before it."""
ALIVE_SECS = 2.0
A_KILL = oracle.IN_FLIGHT_EVENTS + oracle.UNSAVED_EVENTS
"""What one kill may have a sink deliver twice."""


def test_a1_kill_at_any_moment_loses_nothing_acknowledged(rig: Any, row: Any, scale: Any) -> None:
    kills = scale(25, 200)
    dice = random.Random(oracle.seed())
    with row("A1", what="SIGKILL under load at random times", unit="kills") as found:
        target = rig.target()
        rig.configure({"crm": rig.http_sink(target), "archive": rig.file_sink()})
        load = rig.load(senders=12, most_bytes=524_288)
        in_commit = vain = 0
        deaths, slowest = [], 0.0
        while found.tried < kills:
            gateway = rig.start()
            assert gateway.start_secs < 5
            time.sleep(dice.uniform(0.3, 0.6) if kills == 25 else dice.uniform(0.2, 2.0))
            if dice.random() < 0.6:
                killed_at, was_in_commit = gateway.kill_in_commit()
            else:
                killed_at, was_in_commit = gateway.kill(), False
            deaths.append(killed_at)
            if load.acked_between(killed_at - WITHIN_SECS, killed_at) < ACKED_BEFORE or not load.in_flight(
                killed_at, min(WITHIN_SECS, killed_at - gateway.ready_at)
            ):
                vain += 1
                assert vain <= kills, "most kills fall where nothing is going on: they prove nothing"
                continue
            found.tried += 1
            in_commit += was_in_commit
            slowest = max(slowest, _first(load.acked(), gateway.ready_at) - gateway.ready_at)
            if killed_at - gateway.ready_at > ALIVE_SECS:
                assert _first(target.delivered(), gateway.ready_at) < gateway.ready_at + ALIVE_SECS, "nothing delivered"
        assert slowest < ALIVE_SECS, f"accepting began {slowest:.1f} s after a start"
        assert in_commit >= 0.3 * kills, "too few kills inside a commit"
        load.stop()
        gateway = rig.start()
        rig.settle(gateway, ["crm", "archive"])
        rig.is_alive(gateway, target)
        assert gateway.stop()[0] == 0
        worst = max(_twice_by_death(target.delivered(), deaths))
        found.bound = f"0 lost, at most {A_KILL:,} duplicates a kill and sink"
        assert worst <= A_KILL, f"{worst} events were delivered again after one kill"
        letters = {
            sink: oracle.entries_in_dead_letters(rig.folder / "dead-letters", sink) for sink in ("crm", "archive")
        }
        bound = len(deaths) * A_KILL
        checked = rig.check(found, [load], target.delivered(), letters["crm"], duplicates=bound)
        rig.check(found, [load], oracle.entries_in_files(rig.folder / "events"), letters["archive"], duplicates=bound)
        found.note(
            f"{in_commit} kills inside a commit, {vain} in vain; {checked.acknowledged:,} events acknowledged, again"
            f" within {slowest:.2f} s of a start; {worst} duplicates after one kill at most"
        )


def _first(entries: Sequence[ledger.Entry], since: float) -> float:
    return min((entry.at for entry in entries if entry.at >= since), default=float("inf"))


def _twice_by_death(entries: Sequence[ledger.Entry], deaths: Sequence[float]) -> list[int]:
    """Return how many events were delivered once more before the first death, and after each one."""
    counts, seen, at = [0] * (len(deaths) + 1), set(), 0
    for entry in entries:
        while at < len(deaths) and entry.at >= deaths[at]:
            at += 1
        counts[at] += entry.event_id in seen
        seen.add(entry.event_id)
    return counts
