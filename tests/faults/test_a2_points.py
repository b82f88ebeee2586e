"""A2: SIGKILL at twelve named points of the work, each reached under load."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

from harness import deaths, oracle
from harness.hand import Hand

from edge.gateway import SHARD
from edge.spool import inspect

ACKED_BEFORE, WITHIN_SECS = 50, 0.25
SECS = 10.0
MOST_REFUSED = 5000

COUNTS = {
    "after-write": (20, 80),
    "after-sync": (20, 80),
    "in-group": (5, 40),
    "roll-allocated": (3, 8),
    "roll-renamed": (3, 8),
    "roll-synced": (3, 8),
    "cursor-half": (4, 10),
    "before-unlink": (1, 5),
    "after-unlink": (1, 5),
    "letter-kept": (1, 3),
    "replay-appended": (1, 1),
    "reload-opened": (1, 2),
}
"""Point -> from which to which time of getting there the process is killed; the first few belong to the start."""


class Pusher:
    """Does what leads to the points that load alone does not lead to."""

    def __init__(self, rig: Any, target: Any) -> None:
        self._rig = rig
        self._target = target
        ids = [f"refused-{number}" for number in range(MOST_REFUSED)]
        target.order(statuses=dict.fromkeys(ids, 400))
        self._ids = iter(ids)
        self.hand = Hand(rig.folder, "refused")

    def configure(self) -> None:
        """Write the configuration, a little different each time: a reload has a sink to replace."""
        quick = {"max_events": oracle.IN_FLIGHT_EVENTS, "max_age_secs": random.choice((0.01, 0.02, 0.03))}
        self._rig.configure(
            {"crm": self._rig.http_sink(self._target, batch=quick), "archive": self._rig.file_sink()},
            spool={"segment_bytes": 65_536},
            dead_letters={"segment_bytes": 65_536},
        )

    def refuse(self, gateway: Any) -> None:
        """Post an event that the target refuses for good."""
        self.hand.post(gateway, next(self._ids))

    def replay(self, gateway: Any) -> None:
        """Have the dead letters delivered again; make one when there is none."""
        if gateway.metrics()['edge_dead_letters{sink="crm"}'] == 0:
            self.refuse(gateway)
        else:
            gateway.request("POST", "/dead-letters/replay", b'{"sink":"crm"}', admin=True)

    def reload(self, gateway: Any) -> None:
        """Change the configuration and say so."""
        self.configure()
        os.kill(gateway.pid, signal.SIGHUP)

    def push(self, point: str, gateway: Any) -> Callable[[], object]:
        """Return what is to be done again and again to get to a point."""
        pushes = {"letter-kept": self.refuse, "replay-appended": self.replay, "reload-opened": self.reload}
        return lambda: pushes.get(point, lambda _: None)(gateway)


def test_a2_kill_at_named_points_loses_nothing_acknowledged(rig: Any, row: Any, scale: Any) -> None:
    each = scale(1, 20)
    dice = random.Random(oracle.seed())
    with row("A2", what=f"SIGKILL at {len(COUNTS)} named points under load", unit="kills") as found:
        target = rig.target()
        pusher = Pusher(rig, target)
        pusher.configure()
        load = rig.load(senders=12, rate=1500, most_bytes=8192)  # at less the writer takes most frames alone
        killed: Counter[str] = Counter()
        vain = 0
        for point in [point for _ in range(each) for point in COUNTS]:
            while True:
                gateway = rig.start(patch=[f"at:{point}:{dice.randint(*COUNTS[point])}"])
                at = deaths.killed_at(gateway, point, SECS, pusher.push(point, gateway))
                if load.acked_between(at - WITHIN_SECS, at) >= ACKED_BEFORE and load.in_flight(
                    at, at - gateway.ready_at
                ):
                    break
                vain += 1
                assert vain <= each * len(COUNTS), "most kills fall where nothing is going on: they prove nothing"
            killed[point] += 1
            found.tried += 1
        assert set(killed.values()) == {each}
        load.stop()
        target.order(statuses={}, status=200)
        gateway = rig.start()
        rig.settle(gateway, ["crm", "archive"])
        status, answer = gateway.request("POST", "/dead-letters/replay", b'{"sink":"crm"}', admin=True)
        assert status == 200, answer
        rig.settle(gateway, ["crm", "archive"])
        rig.is_alive(gateway, target)
        assert gateway.stop()[0] == 0
        kills = found.tried + vain
        bound = kills * (oracle.IN_FLIGHT_EVENTS + oracle.UNSAVED_EVENTS)
        found.bound = f"0 lost, at most {bound:,} duplicates a sink"
        loads = [load, pusher.hand]
        # What is in flight at three deaths is taken for what kills the process, and becomes a dead letter.
        letters = [oracle.entries_in_dead_letters(rig.folder / "dead-letters", sink) for sink in ("crm", "archive")]
        checked = rig.check(found, loads, target.delivered(), letters[0], duplicates=bound)
        rig.check(found, loads, oracle.entries_in_files(rig.folder / "events"), letters[1], duplicates=bound)
        for cursor in inspect.stats(rig.folder / "spool" / SHARD).cursors.values():
            assert cursor.lost == 0, "a segment went before the cursor that allowed it was durable"
        found.note(f"{each} at each of: {', '.join(COUNTS)}")
        found.note(f"{vain} kills in vain; {checked.acknowledged:,} events acknowledged")
