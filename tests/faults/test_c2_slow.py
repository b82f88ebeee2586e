"""C2: targets that are slow, hang or drip: their attempts end in time, and nobody else feels them."""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest
from harness import oracle

MIB = 1 << 20
RATE = 150
"""Requests a second; about five events each."""
ALTERNATIONS = 20
PHASE_SECS = 4.0
SETTLE_SECS = 0.7
"""The beginning of a phase that is not measured: the reload itself, and sinks that come and go."""
RATIO, FLOOR_SECS = 1.2, 0.005
"""What a p99 may grow to, and what it may grow by however small it was: the machine is shared."""
TIMEOUT_SECS = 1.0

BAD: dict[str, dict[str, Any]] = {
    "dead": {"listen": False},
    "slow": {"delay_secs": 2.0},
    "hang": {"mode": "hang"},
    "drip": {"mode": "drip"},
}


@pytest.mark.full
@pytest.mark.parametrize("bad", [("dead", "slow"), ("hang", "drip")], ids="-".join)
def test_c2_bad_sinks_cost_the_others_nothing(rig: Any, row: Any, bad: tuple[str, str]) -> None:
    what = "slow, hanging, dripping and dead sinks beside a good one"
    bound = "ingest p99 and the good sink's p99 <= 1.2x, RSS + 64 MiB at most"
    with row("C2", what=what, unit="phases", bound=bound) as found:
        target = rig.target()
        good = {"crm": rig.http_sink(target)}
        sinks = {name: rig.http_sink(rig.target(name, **BAD[name])) for name in bad}
        rig.configure(good)
        gateway = rig.start()
        load = rig.load(senders=32, rate=RATE, most_bytes=2_000, open_loop=True)
        oracle.wait_for(lambda: load.n_acked() > 2_000, 30, "the load is there")
        # Not the same way round each time: whatever drifts is in both.
        stretches: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
        growth = 0
        for at in range(2 * ALTERNATIONS):
            with_bad = at % 4 in (1, 2)
            rig.configure({**good, **(sinks if with_bad else {})})
            gateway.reload()
            time.sleep(SETTLE_SECS)
            start, before = time.monotonic(), gateway.rss_bytes()
            time.sleep(PHASE_SECS)
            stretches[with_bad].append((start, time.monotonic()))
            if with_bad:
                growth = max(growth, gateway.rss_bytes() - before)
                assert gateway.pending(bad[0]) > 0.5 * RATE * PHASE_SECS, f"{bad[0]} was not bad"
                assert gateway.pending(bad[1]) > 0.5 * RATE * PHASE_SECS, f"{bad[1]} was not bad"
            found.tried += 1
        load.stop()
        lags = oracle.lags(load.acked(), target.delivered())
        ingest = {kind: _median_p99([load.latencies(*of) for of in spans]) for kind, spans in stretches.items()}
        delivery = {
            kind: _median_p99([[lag for at, lag in lags if start <= at < end] for start, end in spans])
            for kind, spans in stretches.items()
        }
        rig.configure(good)
        gateway.reload()
        rig.settle(gateway, ["crm"])
        rig.check(found, [load], target.delivered(), duplicates=0)
        for name, secs in (("ingest", ingest), ("delivery", delivery)):
            ratio = secs[True] / secs[False]
            found.note(
                f"{'+'.join(bad)}: {name} p99 {secs[False] * 1e3:.1f} -> {secs[True] * 1e3:.1f} ms ({ratio:.2f}x)"
            )
        found.note(f"RSS grew by {growth / MIB:.1f} MiB")
        assert growth <= 64 * MIB
        for secs in (ingest, delivery):
            assert secs[True] <= max(RATIO * secs[False], secs[False] + FLOOR_SECS)
        assert gateway.stop()[0] == 0


def _median_p99(phases: list[list[float]]) -> float:
    return statistics.median(oracle.p99(phase) for phase in phases)


def test_c2_an_attempt_ends_in_time(rig: Any, row: Any, scale: Any) -> None:
    with row("C2", what="answers that never end", unit="attempts", bound="timeout_secs + 0.5 s") as found:
        targets = {name: rig.target(name, **BAD[name]) for name in ("hang", "drip")}
        rig.configure({name: rig.http_sink(of, timeout_secs=TIMEOUT_SECS) for name, of in targets.items()})
        gateway = rig.start()
        n_before = gateway.n_descriptors()
        rig.post(gateway, "waiting")
        for name, target in targets.items():
            oracle.wait_for(
                lambda of=target: len(of.moments("left")) >= scale(1, 20), 90, "attempts that were given up"
            )
            took = [end - start for start, end in zip(target.moments("asked"), target.moments("left"), strict=False)]
            found.tried += len(took)
            found.note(f"{name}: attempts took {min(took):.2f} to {max(took):.2f} s")
            # That the other side has gone shows with the second byte written after it, two seconds later.
            slack = 0.5 + (2.2 if name == "drip" else 0.0)
            assert all(TIMEOUT_SECS * 0.9 <= secs <= TIMEOUT_SECS + slack for secs in took), took
            assert gateway.attempts(name, "timeout") >= len(took)
            target.order(mode="answer")
            oracle.wait_for(lambda of=name: gateway.pending(of) == 0, 10, "delivery")
            # What drips its answer has taken the events each time: that is what at least once means.
            assert {entry.event_id for entry in target.delivered()} == {"waiting"}
        assert gateway.n_descriptors() <= n_before + 5, "connections were left open"
