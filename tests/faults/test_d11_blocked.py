"""D11: a component that blocks the event loop is seen: in the lag, and by name in the log."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import orjson
from harness import oracle, plugin
from harness.rig import EVENT

from edge.pipeline import TIMED_EVERY

BLOCK_SECS = 0.5
SEEN_SECS = 0.25
"""A timer that falls due in the first half of the block is at least so late."""
MOST_TRIES = 24
PLUGIN = f"""
import time
from edge.api import Filter, hookimpl


class Sleepy(Filter):
    '''Sleep over some events.'''

    type = "sleepy"

    @hookimpl
    def edge_filter(self, event, context):
        if event["event_name"] == "slow":
            time.sleep({BLOCK_SECS})


@hookimpl
def edge_register_components(registry):
    registry.add(Sleepy)
"""


def lags(gateway: Any, over_secs: float) -> int:
    """Return how often the loop was seen to be later than a boundary of the histogram."""
    metrics = gateway.metrics()
    within = metrics[f'edge_event_loop_lag_seconds_bucket{{le="{over_secs}"}}']
    return int(metrics["edge_event_loop_lag_seconds_count"] - within)


def test_d11_component_that_blocks_the_loop_is_seen(rig: Any, row: Any) -> None:
    bound = f"the lag is seen, the log names the component, health answers within {BLOCK_SECS:g} s + 0.3 s"
    dice = random.Random(oracle.seed())
    with row("D11", what="a filter that sleeps 500 ms in the event loop", unit="blocks", bound=bound) as found:
        target = rig.target()
        rig.configure({"crm": rig.http_sink(target)}, pipeline=[{"type": "sleepy", "id": "sleepy"}])
        gateway = rig.start(env={"PYTHONPATH": str(plugin.install(rig.folder, "sleepy", PLUGIN))})
        before = lags(gateway, SEEN_SECS)
        waits: list[float] = []
        while lags(gateway, SEEN_SECS) == before:
            assert len(waits) < MOST_TRIES, "the lag of the loop is not seen"
            time.sleep(dice.uniform(0.0, BLOCK_SECS))  # not in step with the timer that measures
            waits.append(ask_while_blocked(gateway, len(waits)))
        found.tried = len(waits)
        assert max(waits) >= BLOCK_SECS / 2, "health was not asked while the loop was blocked"
        assert max(waits) <= BLOCK_SECS + 0.3
        slow = gateway.wait_for_log("a component is slow: every sender waits for it", 5)
        assert slow["component"] == "sleepy"
        assert slow["duration_secs"] >= BLOCK_SECS
        assert gateway.is_ready()
        rig.is_alive(gateway, target)
        assert gateway.stop()[0] == 0
        found.note(
            f"health shares the loop: asked while it was blocked it answered after {max(waits):.2f} s, afterwards at"
            f" once (the matrix asks for a thread of its own); the lag was seen after {len(waits)} blocks; one event in"
            f" {TIMED_EVERY} is timed, so the log may name a component that is slow now and then only later"
        )


def ask_while_blocked(gateway: Any, number: int) -> float:
    """Post a request that blocks the loop once, ask for the health meanwhile, and return how long that took."""
    names = ["quick"] * (TIMED_EVERY - 1) + ["slow"]  # the one that is timed is the slow one, in one of the requests
    names = names[number % TIMED_EVERY :] + names[: number % TIMED_EVERY]
    events = [{**EVENT, "event_id": f"blocks-{number}-{at}", "event_name": name} for at, name in enumerate(names)]
    posting = threading.Thread(target=gateway.request, args=("POST", "/ingest/batch", orjson.dumps(events)))
    posting.start()
    time.sleep(0.1)
    started = time.monotonic()
    status, _ = gateway.request("GET", "/healthz", admin=True)
    waited = time.monotonic() - started
    assert status == 200
    posting.join(10)
    return waited
