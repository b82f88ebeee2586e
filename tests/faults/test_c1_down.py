"""C1: a target that is down: its port is closed, or it accepts connections and never reads from them."""

from __future__ import annotations

import itertools
import statistics
import time
from typing import Any

from harness import oracle
from harness.gateway import Gateway
from harness.load import Load
from harness.target import Target

PROBE_SECS, TIMEOUT_SECS = 0.6, 0.3
"""`retry.max_secs`, which is the least time between two probes here, and `timeout_secs`."""
FAILURES_SECS = 5 * TIMEOUT_SECS + 5
"""Five attempts in a row open the circuit."""
RATE = 100
"""Requests a second."""
WINDOW_SECS = 2.0
OPEN = 2
DOWN: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("port closed", {"listen": False}, {"listen": True}),
    ("blackhole", {"mode": "blackhole"}, {"mode": "answer"}),
)


def test_c1_a_target_that_is_down_loses_nothing_and_is_not_pestered(rig: Any, row: Any, scale: Any) -> None:
    outage_secs, quiet_secs = scale(3, 60), scale(2, 30)
    # A few seconds on a machine that others use show a loop that is blocked, no more.
    floor_secs = scale(100, 5) / 1000
    what = "a target down: port closed, and blackhole"
    bound = "0 lost, drained at >= 3x the ingest rate, ingest p99 <= 1.2x"
    with row("C1", what=what, unit="s without target", bound=bound) as found:
        target = rig.target()
        retry = {"initial_secs": 0.05, "max_secs": PROBE_SECS}
        rig.configure({"crm": rig.http_sink(target, retry=retry, timeout_secs=TIMEOUT_SECS)})
        gateway = rig.start()
        load = rig.load(senders=16, rate=RATE, most_bytes=2_000, open_loop=True)
        oracle.wait_for(lambda: len(target.delivered()) > 500, 20, "the load is there")
        quiet: list[float] = []
        during: list[float] = []
        for name, down, up in DOWN:
            start = time.monotonic()
            time.sleep(quiet_secs + 0.1)
            quiet += _p99s(load, start, time.monotonic())
            before = time.monotonic()
            target.order(**down)
            _is_left_alone(gateway, target, before + outage_secs)
            during += _p99s(load, before, time.monotonic())
            backlog, start_at = gateway.pending("crm"), target.n_written()
            assert backlog > 0.5 * RATE * outage_secs, "the target was not missed"
            target.order(**up)
            up_at = time.monotonic()
            rate = load.acked_between(before, up_at) / (up_at - before)
            oracle.wait_for(lambda at=start_at: target.n_written() > at, PROBE_SECS + TIMEOUT_SECS + 1, "a probe")
            oracle.wait_for(lambda: gateway.pending("crm") < RATE, 60, "the backlog is drained")
            drained = _drain_rate(load, target, up_at)
            found.note(f"{name}: {backlog:,} events drained at {drained / rate:.1f}x the ingest rate")
            assert drained >= 3 * rate, f"drained at {drained:.0f} events/s while {rate:.0f} came in"
            found.tried += round(up_at - before)
        before_secs, during_secs = statistics.median(quiet), statistics.median(during)
        found.note(
            f"ingest p99 {before_secs * 1e3:.1f} ms with target, {during_secs * 1e3:.1f} ms without"
            f" (at most {floor_secs * 1e3:.0f} ms more are let pass)"
        )
        assert during_secs <= max(1.2 * before_secs, before_secs + floor_secs)
        load.stop()
        rig.settle(gateway, ["crm"])
        rig.is_alive(gateway, target)
        rig.check(found, [load], target.delivered(), duplicates=0)
        assert gateway.stop()[0] == 0


def _p99s(load: Load, start: float, end: float) -> list[float]:
    """Return the p99 of the ingest requests of each window in a stretch of time."""
    n_windows = int((end - start) / WINDOW_SECS)
    starts = [start + at * WINDOW_SECS for at in range(n_windows)]
    return [oracle.p99(load.latencies(at, at + WINDOW_SECS)) for at in starts]


def _is_left_alone(gateway: Gateway, target: Target, until: float) -> None:
    """Wait until a moment, and see that with the circuit open no more than one probe an interval was made."""
    state = 'edge_sink_circuit_state{sink="crm"}'
    oracle.wait_for(lambda: gateway.metrics()[state] == OPEN, FAILURES_SECS, "the circuit opens")
    opened = time.monotonic()
    failures, connections = gateway.attempts("crm", "retryable", "timeout"), target.n_attempts()
    time.sleep(max(2 * PROBE_SECS, until - time.monotonic()))
    n_probes = gateway.attempts("crm", "retryable", "timeout") - failures
    most = (time.monotonic() - opened) / PROBE_SECS + 1
    assert 1 <= n_probes <= most, f"{n_probes} probes in {time.monotonic() - opened:.1f} s"
    connected = [at for at in target.moments("connected")[connections:] if at > opened]
    assert len(connected) <= most
    assert all(late - early >= PROBE_SECS for early, late in itertools.pairwise(connected))


def _drain_rate(load: Load, target: Target, up_at: float) -> float:
    """Return the events a second that were delivered from the first one after a moment until none was old."""
    acked = {entry.event_id: entry.at for entry in load.acked()}
    after = [entry for entry in target.delivered() if entry.at >= up_at]
    caught_up = next(
        (entry.at for entry in after if entry.at - acked.get(entry.event_id, entry.at) < 0.5), after[-1].at
    )
    n_events = sum(after[0].at < entry.at <= caught_up for entry in after)
    return n_events / max(caught_up - after[0].at, 0.001)
