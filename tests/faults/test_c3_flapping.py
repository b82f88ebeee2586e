"""C3: a target that comes and goes: the circuit never stays open for longer than a probe takes."""

from __future__ import annotations

import time
from typing import Any

from harness import oracle

DOWN: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({"listen": False, "drop": True}, {"listen": True, "drop": False}),
    ({"mode": "reset", "drop": True}, {"mode": "answer", "drop": False}),
    ({"status": 503}, {"status": 200}),
)
"""How it goes and how it comes back, in turn; `drop` resets what is under way, be it taken already or not."""
RATE = 100


def test_c3_delivery_resumes_within_a_probe_each_time(rig: Any, row: Any, scale: Any) -> None:
    cycles, secs, probe_secs = scale(3, 30), scale(1, 5), scale(300, 2_000) / 1000
    up_secs = scale(300, 5_000) / 1000
    what = f"{up_secs:g} s up, {secs} s down"
    with row("C3", what=what, unit="flaps", bound="0 lost, <= 2 % twice, back within a probe + 1 s") as found:
        target = rig.target(answer_secs=0.01)
        retry = {"initial_secs": 0.05, "max_secs": probe_secs}
        rig.configure({"crm": rig.http_sink(target, retry=retry)})
        gateway = rig.start()
        load = rig.load(senders=8, rate=RATE, most_bytes=2_000)
        oracle.wait_for(target.delivered, 20, "the load is there")
        resumed = []
        for cycle in range(cycles):
            down, up = DOWN[cycle % len(DOWN)]
            failures = gateway.attempts("crm", "retryable")
            start = target.n_written()
            target.order(**down)
            went_at = time.monotonic()
            time.sleep(secs)
            came_back_at = time.monotonic()
            target.order(**up)
            at_return = target.n_written()
            oracle.wait_for(lambda at=at_return: target.n_written() > at, 20, f"delivery resumes ({cycle})")
            after = [entry.at for entry in target.delivered(start) if entry.at > went_at + 0.1]
            assert min(after) > came_back_at, "it was not down"
            assert gateway.attempts("crm", "retryable") > failures, "its absence was not noticed"
            resumed.append(min(after) - came_back_at)
            assert resumed[-1] <= probe_secs + 1, f"delivery resumed after {resumed[-1]:.2f} s"
            time.sleep(up_secs)
            found.tried += 1
        load.stop()
        rig.settle(gateway, ["crm"])
        rig.is_alive(gateway, target)
        opened = sum("circuit opened" in line["event"] for line in gateway.log_lines())
        found.note(f"the circuit opened {opened} times; back after {max(resumed):.2f} s at most")
        # In a few seconds one attempt that was cut off is already more than 2 % of all events.
        most = scale(cycles * oracle.IN_FLIGHT_EVENTS, load.n_acked() // 50)
        rig.check(found, [load], target.delivered(), duplicates=most)
        assert gateway.stop()[0] == 0
