"""D10: three times as much as it can take, sent without waiting for answers."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from harness.rig import KEY
from harness.surge import Surge, p99

CAPACITY_SECS, OVERLOAD_SECS, CALM_SECS = 10, 60, 8
TIMES = 3.0
CALM_SHARE = 0.3
"""Of the capacity: what is sent before and after, to see how long answers take when nothing is wrong."""
CONNECTIONS = 32
"""`server.limits.connections`: the only refusal that costs much less than an answer. Senders beyond it get 503."""
GOODPUT_SHARE = 0.8
"""Of the capacity, both for each second of processor time the gateway got: other programs take turns on the cores, and
the less is left for the gateway, the more than three times it is."""
REFUSED_SECS = 0.1
"""99 of 100 refusals are answered within this time, or sooner than answers of the same minute: noise takes its share of
every minute, so only times of one and the same can be compared."""
RECOVERY_SECS = 5.0
COMPARABLE = 0.8
"""With less than this share of the processor time it had before, three times its capacity is more than that."""


@contextmanager
def on_processors(which: slice) -> Iterator[None]:
    """Let processes that are started meanwhile run on some of the processors: a flood must not starve what it hits."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[which] or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.full
def test_d10_overload_is_refused_quickly_and_what_is_taken_is_kept(rig: Any, row: Any) -> None:
    bound = f"0 lost, goodput at least {GOODPUT_SHARE:.0%} of capacity, answers as before within {RECOVERY_SECS:g} s"
    what = f"{TIMES:g}x capacity for {OVERLOAD_SECS} s, open loop"
    with row("D10", what=what, unit="requests", bound=bound) as found:
        with on_processors(slice(1, None)):
            target = rig.target()
        rig.configure({"crm": rig.http_sink(target)}, server={"limits": {"connections": CONNECTIONS}})
        with on_processors(slice(0, 1)):
            gateway = rig.start()
        with on_processors(slice(1, None)), ExitStack() as stack:

            def surge(prefix: str, *, rate: float, secs: float, connections: int = 0) -> Surge:
                options = {"rate": rate, "secs": secs, "connections": connections}
                return stack.enter_context(Surge(rig.folder, gateway.port, KEY, prefix, **options))

            before = gateway.cpu_secs()
            closed = surge("capacity", rate=0, secs=CAPACITY_SECS, connections=CONNECTIONS)
            taken = closed.wait()
            closed_cpu = gateway.cpu_secs() - before
            assert {item.status for item in taken} == {200}
            capacity = len(taken) / CAPACITY_SECS
            full = p99(item.secs for item in taken)
            calm = surge("before", rate=capacity * CALM_SHARE, secs=CALM_SECS)
            usual = p99(item.secs for item in calm.wait())
            before = gateway.cpu_secs()
            over = surge("over", rate=capacity * TIMES, secs=OVERLOAD_SECS)
            answers = over.wait()
            over_cpu = gateway.cpu_secs() - before
            after = surge("after", rate=capacity * CALM_SHARE, secs=RECOVERY_SECS + CALM_SECS)
            later = after.wait()
        found.tried = len(answers)
        statuses = Counter(item.status for item in answers)
        assert len(answers) >= 0.95 * TIMES * capacity * OVERLOAD_SECS, "it was not sent at its time"
        assert set(statuses) == {200, 503}, f"every request has an answer: {statuses}"
        assert statuses[503] >= 0.1 * len(answers), "it was no overload"
        rig.settle(gateway, ["crm"], 60)
        rig.is_alive(gateway, target)
        assert gateway.stop()[0] == 0
        checked = rig.check(found, [closed, calm, over, after], target.delivered(), duplicates=0)
        share = over_cpu / OVERLOAD_SECS
        if share < COMPARABLE * closed_cpu / CAPACITY_SECS:
            found.skip(
                f"nothing was lost, but other programs left the gateway {share:.0%} of a processor during the overload"
                f" and {closed_cpu / CAPACITY_SECS:.0%} when its capacity was measured: the times say nothing"
            )
        capacity_cpu = len(taken) / closed_cpu
        goodput = statuses[200] / over_cpu / capacity_cpu
        assert goodput >= GOODPUT_SHARE, f"{goodput:.0%} of {capacity_cpu:.0f} requests a processor second"
        refused = p99(item.secs for item in answers if item.status == 503)
        served = p99(item.secs for item in answers if item.status == 200)
        assert refused <= max(REFUSED_SECS, served)
        recovered_at = max(item.due for item in answers) + RECOVERY_SECS
        recovered = [item for item in later if item.due >= recovered_at]
        assert {item.status for item in recovered} == {200}
        assert p99(item.secs for item in recovered) <= max(REFUSED_SECS, 2 * usual, full)
        found.note(
            f"capacity {capacity:.0f} requests of 20 events a second, {capacity_cpu:.0f} a second of processor time;"
            f" goodput {goodput:.0%} of the latter, {statuses[200] / OVERLOAD_SECS:.0f} a"
            f" second, the gateway having {share:.0%} of a processor;"
            f" 99 of 100 answers 503 came within {refused * 1000:.0f} ms (the matrix asks for 50), answers 200 within"
            f" {served * 1000:.0f} ms, at capacity within {full * 1000:.0f} ms, in calm within {usual * 1000:.0f} ms;"
            f" {OVERLOAD_SECS} s where the matrix asks for 5 min;"
            f" {checked.acknowledged:,} events acknowledged"
        )
