"""A3: everything killed at once, then killed again while it recovers; recovery says the same however often it runs."""

from __future__ import annotations

import asyncio
import hashlib
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from harness import failpoints, oracle
from harness.deaths import kill_group, spawn

from edge.gateway import SHARD
from edge.spool.format import SEGMENT_HEADER_BYTES
from edge.spool.lock import LOCK
from edge.spool.log import Log

ACKED_BEFORE, WITHIN_SECS = 50, 0.25
LEAST_SECS, MOST_SECS = 0.005, 0.2
"""How long after the gateway has begun to open its spool it is killed again."""
POINTS = ("recovery-begun", "recovery-cut", "recovery-done")


def kill_at_start(rig: Any, point: str, secs: float, spool: Path) -> str:
    """Start a gateway and kill it at a point of its recovery, or some time after it opened its spool; return how."""
    log_path = rig.folder / f"start-{time.monotonic_ns()}.log"
    if point:
        process = spawn(rig.config, log_path, patch=[f"at:{point}:1"])
        try:
            assert process.wait(20) == -signal.SIGKILL
        finally:
            kill_group(process)
        assert f'"point": "{point}"' in log_path.read_text()
        return point
    process = spawn(rig.config, log_path)
    try:
        deadline = time.monotonic() + 20
        while not has_open(process.pid, spool):
            assert time.monotonic() < deadline, "it does not open the spool"
            time.sleep(0.0005)
        time.sleep(secs)
    finally:
        kill_group(process)
    return "later" if "the gateway is listening" in log_path.read_text() else "before it listened"


def has_open(pid: int, path: Path) -> bool:
    """Say whether a process holds a directory open."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if link.readlink() == path:
                return True
        except OSError:
            continue
    return False


def state(path: Path) -> dict[str, str]:
    """Return the digest of every file below a spool.

    The random epoch in the header of a segment without frames may differ: of such a file only name and size count.
    """
    digests = {}
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name != LOCK:
            data = file.read_bytes()
            is_empty = file.name.startswith("seg-") and len(data) == SEGMENT_HEADER_BYTES
            digests[str(file.relative_to(path))] = "empty" if is_empty else hashlib.sha256(data).hexdigest()
    return digests


def recovered(spool: Path, copy: Path, times: int) -> dict[str, str]:
    """Recover a copy of a spool so many times and return its state."""
    shutil.copytree(spool, copy)
    for _ in range(times):
        log = Log.open(copy, shard=SHARD, segment_bytes=1 << 18)
        asyncio.run(log.close())
    found = state(copy)
    shutil.rmtree(copy)
    return found


@pytest.mark.full
def test_a3_killed_again_while_it_recovers_loses_nothing(rig: Any, row: Any, scale: Any, expect_log: list[str]) -> None:
    cycles = scale(2, 50)
    dice = random.Random(oracle.seed())
    expect_log.append("the spool was opened; not everything")
    with row("A3", what="SIGKILL of the process group, again while it recovers", unit="double kills") as found:
        target = rig.target()
        rig.configure({"crm": rig.http_sink(target), "archive": rig.file_sink()}, spool={"segment_bytes": 1 << 18})
        spool = rig.folder / "spool" / SHARD
        load = rig.load(senders=12, rate=600, most_bytes=8192)
        vain = 0
        ways: list[str] = []
        while found.tried < cycles:
            gateway = rig.start()
            load.wait_for_acked(gateway.ready_at, 100)
            time.sleep(dice.uniform(0.1, 0.4))
            at = time.monotonic()
            kill_group(gateway.process)
            if load.acked_between(at - WITHIN_SECS, at) < ACKED_BEFORE or not load.in_flight(at, WITHIN_SECS):
                vain += 1
                assert vain <= cycles, "most kills fall where nothing is going on: they prove nothing"
                continue
            killed = state(spool)
            point = dice.choice(POINTS) if found.tried % 2 else ""
            ways.append(kill_at_start(rig, point, dice.uniform(LEAST_SECS, MOST_SECS), spool))
            found.tried += 1
            once = recovered(spool, rig.folder / "once", 1)
            assert any(name.startswith("seg-") for name in once)
            assert once == recovered(spool, rig.folder / "thrice", 3)
            assert once != killed, "recovery had nothing to do"
        during = sum(way != "later" for way in ways)
        assert during >= 0.5 * cycles, f"too few second kills before the gateway listened: {ways}"
        load.stop()
        gateway = rig.start()
        rig.settle(gateway, ["crm", "archive"])
        rig.is_alive(gateway, target)
        assert gateway.stop()[0] == 0
        bound = 2 * (cycles + vain) * (oracle.IN_FLIGHT_EVENTS + oracle.UNSAVED_EVENTS)
        found.bound = f"0 lost, at most {bound:,} duplicates a sink, the directory the same after 1 and 3 recoveries"
        # What is in flight at three deaths is taken for what kills the process, and becomes a dead letter.
        letters = [oracle.entries_in_dead_letters(rig.folder / "dead-letters", sink) for sink in ("crm", "archive")]
        checked = rig.check(found, [load], target.delivered(), letters[0], duplicates=bound)
        rig.check(found, [load], oracle.entries_in_files(rig.folder / "events"), letters[1], duplicates=bound)
        at_points = sum(way in failpoints.POINTS for way in ways)
        found.note(
            f"{during} second kills before it listened, {at_points} of them at named points of recovery;"
            f" {sum(map(len, letters))} dead letters; {checked.acknowledged:,} events acknowledged"
        )
