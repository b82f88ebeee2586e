"""C2: targets that are slow, hang or drip: their attempts end in time, and nobody else feels them."""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

import pytest
from harness import oracle
from harness.gateway import Gateway
from harness.load import Load

MIB = 1 << 20
RATE = 150
"""Requests a second; about five events each."""
ROUNDS = 12
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
    dice = random.Random(oracle.seed())
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
        phases: dict[str, list[_Phase]] = {"without": [], "again": [], "with": []}
        for _ in range(ROUNDS):
            for kind in dice.sample(list(phases), 3):
                rig.configure({**good, **(sinks if kind == "with" else {})})
                gateway.reload()
                time.sleep(SETTLE_SECS)
                phase = _Phase(gateway)
                time.sleep(PHASE_SECS)
                phase.end()
                phases[kind].append(phase)
                if kind == "with":
                    pending = [gateway.pending(name) for name in bad]
                    assert min(pending) > 0.5 * RATE * PHASE_SECS, f"{bad} were not bad: {pending}"
                found.tried += 1
        load.stop()
        rig.configure(good)
        gateway.reload()
        rig.settle(gateway, ["crm"])
        rig.check(found, [load], target.delivered(), duplicates=0)
        growth = max(phase.growth for phase in phases["with"])
        cpu = {kind: statistics.median(phase.cpu_secs for phase in of) for kind, of in phases.items()}
        found.note(f"{'+'.join(bad)}: CPU {cpu['with'] / cpu['without']:.2f}x; RSS + {growth / MIB:.1f} MiB at most")
        lags = oracle.lags(load.acked(), target.delivered())
        late = []
        for name in ("ingest", "delivery"):
            p99 = {
                kind: statistics.median(_p99(name, load, lags, phase) for phase in of) for kind, of in phases.items()
            }
            # How far two series without them are apart is what the machine does by itself.
            least, most = sorted((p99["without"], p99["again"]))
            found.note(
                f"{name} p99 {least * 1e3:.1f} and {most * 1e3:.1f} ms without, {p99['with'] * 1e3:.1f} ms with"
                f" ({p99['with'] / most:.2f}x)"
            )
            late += [name] if p99["with"] > max(RATIO * most, most + FLOOR_SECS) else []
        assert growth <= 64 * MIB
        assert cpu["with"] <= RATIO * max(cpu["without"], cpu["again"])
        assert not late, found.notes
        assert gateway.stop()[0] == 0


class _Phase:
    """A stretch of monotonic time, and what the gateway used in it."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.cpu_secs, self.growth = -gateway.cpu_secs(), -gateway.rss_bytes()
        self.start = self.stop = time.monotonic()

    def end(self) -> None:
        """Note the end."""
        self.stop = time.monotonic()
        self.cpu_secs += self._gateway.cpu_secs()
        self.growth += self._gateway.rss_bytes()


def _p99(name: str, load: Load, lags: list[tuple[float, float]], phase: _Phase) -> float:
    """Return the p99 of the requests or of the deliveries of a phase."""
    if name == "ingest":
        return oracle.p99(load.latencies(phase.start, phase.stop))
    return oracle.p99(lag for at, lag in lags if phase.start <= at < phase.stop)


def test_c2_an_attempt_ends_in_time(rig: Any, row: Any, scale: Any) -> None:
    with row("C2", what="answers that never end", unit="attempts", bound="timeout_secs + 0.5 s") as found:
        targets = {name: rig.target(name, **BAD[name]) for name in ("hang", "drip")}
        rig.configure({name: rig.http_sink(of, timeout_secs=TIMEOUT_SECS) for name, of in targets.items()})
        gateway = rig.start()
        # The first connection opens a descriptor for the loop itself.
        assert gateway.request("GET", "/healthz")[0] == 200
        n_before = gateway.n_descriptors()
        rig.post(gateway, "waiting")
        for name, target in targets.items():
            oracle.wait_for(lambda of=target: len(of.waited_for()) >= scale(1, 20), 90, "attempts that were given up")
            took = target.waited_for()
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
