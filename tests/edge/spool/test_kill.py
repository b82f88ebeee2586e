from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from edge.spool.cursor import load_cursor
from edge.spool.inspect import dump, verify

APPENDER = Path(__file__).with_name("appender.py")


def payload(number: int) -> bytes:
    return b"%012d" % number + random.Random(number).randbytes(random.Random(number).randrange(600))


def run_until_killed(path: Path, start: int, secs: float) -> list[int]:
    """Run the appender, kill it `secs` after its first 50 acknowledgements; return the numbers it acknowledged."""
    with subprocess.Popen([sys.executable, str(APPENDER), str(path), str(start)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        data = b""
        while data.count(b"\n") < 51:
            data += os.read(process.stdout.fileno(), 1 << 16)
        kill_at = time.monotonic() + secs
        os.set_blocking(process.stdout.fileno(), False)
        while time.monotonic() < kill_at:
            data += process.stdout.read(1 << 16) or b""
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        os.set_blocking(process.stdout.fileno(), True)
        data += process.stdout.read()
    return [int(line) for line in data.splitlines()[1:]]


@pytest.mark.parametrize("seed", [1])
def test_sigkill_under_load_loses_nothing_acknowledged(logs, spool_path, io_loop, seed):
    dice = random.Random(seed)
    acknowledged: set[int] = set()
    released_below = 0
    start = 0
    for _ in range(5):
        acked = run_until_killed(spool_path, start, dice.uniform(0.01, 0.2))
        assert len(acked) >= 50
        acknowledged |= set(acked)
        start = max(acked) + 1000
        report = verify(spool_path)
        assert report.is_intact, report
        stored = {int(frame.payload[:12]): frame for frame in dump(spool_path)}
        for number, frame in stored.items():
            assert frame.payload == payload(number)
        cursor = load_cursor(spool_path, "archive")
        released_below = cursor.position if cursor else 0
        assert report.first_seq <= released_below
        # What was released was below a durable cursor; all else that was acknowledged is still there.
        missing = acknowledged - set(stored)
        oldest = min(stored)
        assert all(number < oldest + 20 for number in missing), (missing, oldest)
        assert len(missing) <= report.first_seq
    log = logs.open()
    before = log.durable_seq
    assert io_loop.run_sync(lambda: log.append(b"alive")) == before
