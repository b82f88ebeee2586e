from __future__ import annotations

import os
import random
import runpy
import subprocess
import sys
import time
from pathlib import Path

from edge.spool import Cursor
from edge.spool.cursor import load_cursor
from edge.spool.inspect import dump, verify

APPENDER = Path(__file__).with_name("appender.py")
payload = runpy.run_path(str(APPENDER))["payload"]


def run_until_killed(path: Path, start: int, secs: float) -> dict[int, int]:
    """Run the appender and kill it `secs` after its first acknowledgements; returns number -> place of all of them."""
    command = [sys.executable, str(APPENDER), str(path), str(start)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        data = b""
        while data.count(b"ack") < 50:
            piece = os.read(process.stdout.fileno(), 1 << 16)
            assert piece, "the appender ended by itself"
            data += piece
        kill_at = time.monotonic() + secs
        while time.monotonic() < kill_at:
            data += os.read(process.stdout.fileno(), 1 << 16)
        process.kill()
        data += process.stdout.read()
    acknowledged = [line.split() for line in data.splitlines() if line.startswith(b"ack ")]
    return {int(number): int(seq) for _, number, seq in acknowledged}


def test_sigkill_under_load_loses_nothing_acknowledged(logs, spool_path, io_loop):
    dice = random.Random(1)
    acknowledged: dict[int, int] = {}
    for _ in range(40):
        before = len(acknowledged)
        acknowledged |= run_until_killed(spool_path, max(acknowledged, default=0) + 1000, dice.uniform(0.01, 0.3))
        assert len(acknowledged) >= before + 50
        report = verify(spool_path)
        assert report.is_intact, report
        stored = {}
        for frame in dump(spool_path):
            number = int(frame.payload[:12])
            assert frame.payload == payload(number)
            stored[number] = frame.seq
        cursor = load_cursor(spool_path, "archive") or Cursor()
        assert report.first_seq <= cursor.position  # no segment goes before the cursor that allows it
        expected = {number: seq for number, seq in acknowledged.items() if seq >= report.first_seq}
        assert expected.items() <= stored.items()
    log = logs.open()
    assert io_loop.run_sync(lambda: log.append(b"alive")) == log.durable_seq - 1 >= max(acknowledged.values()) + 1
