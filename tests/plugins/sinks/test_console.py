import json
import os
import subprocess
import sys
import threading

import pytest
from edge_plugins.sinks.console import Console

from edge.testing import build, deliver, make_event

pytestmark = pytest.mark.usefixtures("io_loop")

SCRIPT = """
import asyncio, sys
from edge.api import RetryableError
from edge.testing import build, make_batch, make_event
from edge_plugins.sinks.console import Console

async def main():
    sink = build(Console)
    await sink.edge_open()
    batch = make_batch([make_event(extras={"n": n, "text": "x" * 1000}) for n in range(200)])
    print("ready", file=sys.stderr, flush=True)
    try:
        async with asyncio.timeout(float(sys.argv[1])):
            await sink.edge_deliver(batch)
        print("delivered", file=sys.stderr)
    except TimeoutError:
        print("late", file=sys.stderr)
        if sys.argv[2] == "retry":
            await sink.edge_deliver(batch)
            print("delivered", file=sys.stderr)
    except RetryableError as error:
        print(error, file=sys.stderr)
    await sink.edge_close()

asyncio.run(main())
"""


def start(timeout_secs, then="end", **streams):
    command = [sys.executable, "-c", SCRIPT, str(timeout_secs), then]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **streams)


async def test_console_writes_one_line_per_event(capfd):
    events = [make_event(event_id=f"evt_{n}", extras={"text": "two\nlines \u2028"}) for n in range(3)]
    await deliver(build(Console), events)
    out = capfd.readouterr().out
    assert out.endswith("\n")
    assert [json.loads(line) for line in out.removesuffix("\n").split("\n")] == events


async def test_console_leaves_no_thread_behind(capfd, eventually):
    await deliver(build(Console, "screen"), [make_event()])
    await eventually(lambda: not any(thread.name == "console sink screen" for thread in threading.enumerate()))


def test_console_is_retryable_when_the_reader_is_gone():
    reader, writer = os.pipe()
    os.close(reader)
    process = start(5, stdout=writer)
    os.close(writer)
    _, said = process.communicate(timeout=20)
    assert said.splitlines() == ["ready", "standard output cannot be written: Broken pipe"]
    assert process.returncode == 0


def test_console_is_retryable_when_the_output_was_closed_at_the_start():
    process = start(5, preexec_fn=lambda: os.close(1))
    _, said = process.communicate(timeout=20)
    assert said.splitlines() == ["ready", "standard output cannot be written: Bad file descriptor"]


def test_console_lets_the_process_end_while_the_reader_does_not_read():
    process = start(0.05, stdout=subprocess.PIPE)
    assert process.wait(20) == 0
    assert process.stderr.read().splitlines() == ["ready", "late"]
    process.stdout.close()
    process.stderr.close()


def test_console_does_not_write_a_batch_twice_when_it_was_only_late():
    process = start(0.05, "retry", stdout=subprocess.PIPE)
    assert process.stderr.readline() == "ready\n"
    assert process.stderr.readline() == "late\n"
    lines = process.stdout.read().splitlines()
    assert [json.loads(line)["extras"]["n"] for line in lines] == list(range(200))
    assert process.stderr.readline() == "delivered\n"
    assert process.wait(20) == 0
    process.stdout.close()
    process.stderr.close()
