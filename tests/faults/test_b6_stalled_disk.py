"""B6: the disk takes seconds for a commit, then longer than the gateway waits for one."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import Any

import pytest
from harness import disks, oracle, strace

HEALTH_SECS = 0.1
"""What 99 of 100 health checks may take; or five times what they took before, whichever is longer."""
TOLD_SECS = 5.5
RSS_BYTES = 64 * disks.MIB
RECOVER_SECS = 2.0


@pytest.mark.full
def test_b6_a_disk_that_stalls_blocks_nobody_but_those_who_wait_for_it(rig: Any, row: Any) -> None:
    with row("B6", what="fdatasync takes 3 s five times in a row, then 8 s", unit="stalls") as found:
        strace.needed(found)
        target = rig.target()
        rig.configure({"crm": rig.http_sink(target)}, spool={"segment_bytes": 8 * disks.MIB})
        gateway = rig.start()
        load = rig.load(senders=32)
        rig.is_alive(gateway, target, 5.0)
        with _health(gateway) as usual:
            time.sleep(3)
        rss = gateway.rss_bytes()
        bound = max(HEALTH_SECS, 5 * _p99(usual))

        with strace.attached(gateway.pid, rig.folder / "slow.log", "fdatasync:delay_enter=3s:when=5..9") as trace:
            trace.wait_for_injection(10)
            with _health(gateway) as slow:
                trace.wait_for_injection(40, 5)
            rss_slow = gateway.rss_bytes()
        found.tried += 5
        with strace.attached(gateway.pid, rig.folder / "stalled.log", "fdatasync:delay_enter=8s:when=3") as trace:
            with _health(gateway) as stalled:
                oracle.wait_for(lambda: not gateway.is_ready(), 10, "not ready")
                trace.wait_for_injection(20)
            rss_stalled = gateway.rss_bytes()
            back = _wait_until_back(rig, gateway)
        answers = load.stop()
        found.tried += 1

        # How quick it is says nothing any more here: many senders with all they may send at once, for the memory alone.
        flood = rig.load("flood", senders=100, most_bytes=1_000_000, least_bytes=40_000)
        rss_flooded = 0
        with strace.attached(gateway.pid, rig.folder / "flooded.log", "fdatasync:delay_enter=8s:when=3") as trace:
            while not trace.n_injected():
                rss_flooded = max(rss_flooded, gateway.rss_bytes())
                time.sleep(0.1)
            flooded = flood.stop()
            back = max(back, _wait_until_back(rig, gateway))
        found.tried += 1

        grown = max(rss_slow, rss_stalled, rss_flooded) - rss
        slowest = answers["slowest"]["503"]
        found.bound = f"0 lost, 503 within {TOLD_SECS:g} s, health p99 {HEALTH_SECS * 1000:g} ms, memory +64 MiB"
        found.note(
            f"503 within {slowest:.2f} s ({_words(answers)}), health p99 {_p99(slow) * 1000:.0f} and"
            f" {_p99(stalled) * 1000:.0f} ms ({_p99(usual) * 1000:.0f} before), back after {back:.2f} s; memory"
            f" +{max(grown, 0) >> 20} MiB with 100 senders of large bodies ({_words(flooded)})"
        )
        assert set(answers["statuses"]) == {"200", "503"}, answers
        assert answers["codes"]["busy.unknown"], "the commit outlasted the time-out and nobody was told"
        assert set(answers["codes"]) <= {"busy.unknown", "busy.backpressure"}
        assert set(flooded["statuses"]) <= {"200", "503"}, flooded
        assert slowest <= TOLD_SECS
        assert max(_p99(slow), _p99(stalled)) <= bound, "the event loop waited for the disk"
        assert grown <= RSS_BYTES
        rig.settle(gateway, ["crm"])
        rig.is_alive(gateway, target)
        rig.check(found, [load, flood], target.delivered(), duplicates=0)
        assert gateway.stop()[0] == 0


@contextmanager
def _health(gateway: Any) -> Any:
    """Ask for the health every 20 ms while the block runs; yields the list of the seconds each answer took."""
    taken: list[float] = []
    ending = threading.Event()

    def ask() -> None:
        while not ending.wait(0.02):
            started = time.monotonic()
            status, _ = gateway.request("GET", "/healthz", secs=30)
            taken.append(time.monotonic() - started if status == 200 else 30.0)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield taken
    finally:
        ending.set()
        thread.join()


def _wait_until_back(rig: Any, gateway: Any) -> float:
    """Wait until events are taken again; returns the seconds."""
    return oracle.wait_for(lambda: gateway.is_ready() and rig.probe(gateway).status == 200, RECOVER_SECS, "ready")


def _words(answers: dict[str, Any]) -> str:
    return ", ".join(f"{count} {code}" for code, count in sorted(answers["codes"].items())) or "no 503"


def _p99(taken: list[float]) -> float:
    return sorted(taken)[len(taken) * 99 // 100]
