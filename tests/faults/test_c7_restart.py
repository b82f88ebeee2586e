"""C7: the target's process is killed in the middle of requests and comes back."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from harness import oracle


@pytest.mark.full
def test_c7_a_target_that_is_killed_gets_everything(rig: Any, row: Any) -> None:
    kills = 20
    dice = random.Random(oracle.seed())
    bound = kills * oracle.IN_FLIGHT_EVENTS
    with row("C7", what="SIGKILL of the target", unit="kills", bound=f"0 lost, <= {bound:,} twice") as found:
        # It takes the events at once and is slow to say so: most kills leave the gateway without its answer.
        target = rig.target(answer_secs=0.05)
        rig.configure({"crm": rig.http_sink(target)})
        gateway = rig.start()
        load = rig.load(senders=8, rate=150, most_bytes=2_000)
        unanswered = 0
        for kill in range(kills):
            start = target.n_written()
            oracle.wait_for(lambda at=start: len(target.delivered(at)) > 100, 10, f"delivery resumes ({kill})")
            time.sleep(dice.uniform(0.05, 0.5))
            target.kill()
            unanswered += max(target.moments("asked")) > max(target.moments("answered"))
            time.sleep(dice.uniform(0.0, 0.5))
            target.restart()
            found.tried += 1
        assert unanswered >= kills * 0.3, "too few kills in the middle of a request"
        load.stop()
        rig.settle(gateway, ["crm"])
        rig.is_alive(gateway, target)
        found.note(f"{unanswered} kills after the events were taken and before that was said")
        rig.check(found, [load], target.delivered(), duplicates=unanswered * oracle.IN_FLIGHT_EVENTS)
        assert found.duplicates, "no kill left a request half done"
        assert gateway.stop()[0] == 0
