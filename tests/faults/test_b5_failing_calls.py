"""B5: the n-th call of every system call of the spool fails, n = 1, 2, 3, … until a run meets no n-th call any more."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from harness import filling, oracle, strace

SEGMENT_BYTES = 128 * 1024
REQUESTS = 25
"""What a run posts: some segments are begun, delivered and released with it."""
BACK_SECS = 3.0

CALLS = ("pwritev,pwritev2", "openat", "fallocate", "renameat", "unlinkat", "ftruncate", "fsync", "fdatasync")
MOST_N = 12
"""strace counts the calls of each thread by itself, so 12 is far into a run."""


@pytest.mark.full
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_b5_the_nth_call_fails(rig: Any, row: Any, error: str) -> None:
    with row("B5", what="the n-th call of a system call fails with EIO or ENOSPC", unit="runs") as found:
        strace.needed(found)
        target = rig.target()
        rig.configure({"crm": rig.http_sink(target)}, spool={"segment_bytes": SEGMENT_BYTES})
        gateway = rig.start()
        loads, slowest, clean = [], 0.0, []
        for call in CALLS:
            for n in range(1, MOST_N + 1):
                load, back, n_injected = _run(rig, gateway, call, f"{error}:when={n}")
                loads.append(load)
                slowest = max(slowest, back)
                if not n_injected:
                    clean.append(call)
                    break
                found.tried += 1
            assert n > 1, f"{call} was never called"
        for call in CALLS:
            load, back, n_injected = _run(rig, gateway, call, f"{error}:when=1+")
            loads.append(load)
            assert n_injected, f"{call} was never called"
            slowest = max(slowest, back)
            found.tried += 1
        found.bound = f"0 lost, 0 corrupt, no hang, takes events within {BACK_SECS:g} s after the fault"
        found.note(
            f"{error}: {', '.join(CALLS)}, each for n up to {MOST_N} (clean before that: {', '.join(clean) or 'none'})"
            f" and for good; takes events within {slowest:.2f} s after the fault"
        )
        rig.settle(gateway, ["crm"])
        rig.is_alive(gateway, target)
        rig.check(found, loads, target.delivered(), duplicates=0)
        assert not list((rig.folder / "spool").rglob("quarantine/*")), "something was damaged"
        assert gateway.stop()[0] == 0


def _run(rig: Any, gateway: Any, call: str, how: str) -> tuple[Any, float, int]:
    """Post under one fault; return the load, the seconds until events were taken after it, and how often it struck."""
    name = re.sub(r"\W+", "-", f"{call}-{how}")
    with strace.attached(gateway.pid, rig.folder / f"trace-{name}.log", f"{call}:error={how}") as trace:
        load = rig.load(name, senders=4, requests=REQUESTS, least_bytes=filling.LEAST_BYTES)
        answers = load.wait(30)
        # Delivery and the release of what was delivered make calls too.
        deadline = time.monotonic() + 1.2
        while time.monotonic() < deadline and not trace.n_injected():
            time.sleep(0.05)
    assert set(answers["statuses"]) <= {"200", "503"}, (name, answers)
    assert set(answers["codes"]) <= {"busy.full", "busy.unknown"}, (name, answers)
    assert gateway.process.poll() is None
    back = oracle.wait_for(lambda: rig.probe(gateway).status == 200, BACK_SECS, f"it takes events after {name}")
    oracle.wait_for(gateway.is_ready, BACK_SECS, f"ready after {name}")
    oracle.wait_for(lambda: not gateway.pending("crm"), 10, f"all is delivered after {name}")
    return load, back, trace.n_injected()
