"""SIGKILL in the middle of a replay, of the command and of the gateway: nothing is lost, a page is delivered twice.

What was replayed is read off the spool's frames, since a killed gateway may deliver events of any frame twice.
"""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from edge.delivery.dead_letters import DeadLetterReason, DeadLetterStore, Letter
from edge.delivery.letters import live_seqs
from edge.delivery.replay import PAGE_LETTERS
from edge.gateway import SHARD
from edge.spool.format import REPLAY
from edge.spool.inspect import dump

LETTERS = 6000
KILLS = 4 if os.environ.get("EDGE_FAULTS") == "full" else 1
IDS = {f"evt_{number}" for number in range(LETTERS)}


async def bury(folder: Path) -> None:
    store = DeadLetterStore(folder, "archive", segment_bytes=1 << 20, max_bytes=1 << 26)
    now = datetime.now(UTC)
    await store.add(
        [
            Letter(
                line=json.dumps({"event_id": f"evt_{number}"}).encode(),
                meta={"key": "test", "received_at": now.isoformat(), "request_id": "r"},
                reason=DeadLetterReason.PERMANENT,
                attempts=1,
                first_error="HTTP 400",
                last_error="HTTP 400",
                died_at=now,
            )
            for number in range(LETTERS)
        ]
    )
    await store.close()


class Site:
    """A configuration with dead letters of one sink, and the processes on it."""

    def __init__(self, tmp_path: Path, config: Path) -> None:
        self.config = config
        self._path = tmp_path
        self._started: list[subprocess.Popen[str]] = []

    def edge(self, *args: str, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "edge.cli", *args, "-c", str(self.config)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        process = subprocess.Popen(command, text=True, cwd=self._path, **streams)
        self._started.append(process)
        return process

    def gateway(self) -> subprocess.Popen[str]:
        process = self.edge("run", stdout=subprocess.DEVNULL)
        assert process.stderr is not None
        for line in process.stderr:
            if "the gateway is listening" in line:
                return process
        raise AssertionError(f"the gateway did not start: exit code {process.wait()}")

    def replay(self) -> tuple[int, str, str]:
        process = self.edge("dead-letters", "replay")
        stdout, stderr = process.communicate(timeout=60)
        return process.returncode, stdout, stderr

    def left(self) -> int:
        """Return how many dead letters are still there."""
        return len(live_seqs(self._path / "dead-letters" / "archive"))

    def left_ids(self) -> set[str]:
        live = live_seqs(self._path / "dead-letters" / "archive")
        frames = dump(self._path / "dead-letters" / "archive")
        return {json.loads(frame.payload.split(b"\n")[1])["event_id"] for frame in frames if frame.seq in live}

    def replayed(self) -> Counter[str]:
        """Return how often each event is in the spool for the sink."""
        frames = [frame for frame in dump(self._path / "spool" / SHARD) if frame.kind == REPLAY]
        return Counter(json.loads(frame.payload.split(b"\n")[1])["event_id"] for frame in frames)

    def kill_when_moving(self, process: subprocess.Popen[str], below: int) -> None:
        """Kill a process once less than so many letters are left."""
        deadline = time.monotonic() + 30
        while self.left() >= below:
            assert time.monotonic() < deadline
        process.kill()
        process.wait()

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


@pytest.fixture
def site(tmp_path: Path, config_path: Callable[..., Path], free_port: int) -> Iterator[Site]:
    asyncio.run(bury(tmp_path / "dead-letters"))
    config = config_path(
        admin={"listen": f"127.0.0.1:{free_port}"}, spool={"retain_secs": 3600}, log={"format": "json"}
    )
    made = Site(tmp_path, config)
    yield made
    made.close()


def assert_nothing_lost(site: Site, kills: int) -> None:
    replayed = site.replayed()
    assert set(replayed) | site.left_ids() == IDS
    assert replayed.total() - len(replayed) <= kills * PAGE_LETTERS
    # An event that is both replayed and still a dead letter will be delivered twice: of the page that was under way.
    assert len(set(replayed) & site.left_ids()) <= PAGE_LETTERS


def assert_rest_moves(site: Site, kills: int) -> None:
    left = site.left()
    assert 0 < left < LETTERS, "the kill came before the replay or after it"
    assert_nothing_lost(site, kills)
    assert site.replay() == (0, f"archive: {left} replayed\n", "")
    assert_nothing_lost(site, kills)
    assert set(site.replayed()) == IDS
    assert site.replay() == (1, "", "nothing matches\n")
    assert site.replayed().total() <= LETTERS + kills * PAGE_LETTERS


def test_command_killed_in_a_replay_without_a_gateway_can_be_run_again(site: Site) -> None:
    for kill in range(1, KILLS + 2):
        site.kill_when_moving(site.edge("dead-letters", "replay"), LETTERS - kill * 1000)
        assert_nothing_lost(site, kill)
    assert_rest_moves(site, KILLS + 1)


@pytest.mark.full
def test_gateway_killed_in_a_replay_through_it_goes_on_after_its_next_start(site: Site) -> None:
    for kill in range(1, KILLS + 1):
        gateway = site.gateway()
        command = site.edge("dead-letters", "replay")
        site.kill_when_moving(gateway, LETTERS - kill * 1000)
        _, stderr = command.communicate(timeout=60)
        assert command.returncode == 1
        assert "run the same command again to go on" in stderr
        assert re.search(r"went away before it answered|cannot be reached", stderr)
        assert re.search(r"At least \d+ of \d+ dead letters were replayed", stderr)
        assert_nothing_lost(site, kill)
    gateway = site.gateway()
    assert_rest_moves(site, KILLS)
    gateway.terminate()
    assert gateway.wait(20) == 0


@pytest.mark.full
def test_command_killed_while_a_gateway_replays_leaves_the_gateway_as_it_was(site: Site) -> None:
    gateway = site.gateway()
    site.kill_when_moving(site.edge("dead-letters", "replay"), LETTERS - 500)
    deadline = time.monotonic() + 30
    while (left := site.left()) != site.left() or left == LETTERS:  # the page that was asked for is finished
        assert time.monotonic() < deadline
        time.sleep(0.05)
    code, stdout, stderr = site.replay()
    assert (code, stderr) == (0, "")
    assert re.fullmatch(r"archive: \d+ replayed\n", stdout)
    assert site.replayed() == Counter(IDS)  # nothing twice: nobody who moves letters was killed
    assert site.replay() == (1, "", "nothing matches\n")
    gateway.terminate()
    assert gateway.wait(20) == 0


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.full),
        pytest.param(signal.SIGHUP, marks=pytest.mark.full),
    ],
)
def test_on_a_terminal_it_shows_its_progress_and_says_how_to_go_on(site: Site, number: int) -> None:
    main, terminal = pty.openpty()
    command = site.edge("dead-letters", "replay", stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = b""
    interrupted = False
    while True:
        ready, _, _ = select.select([main], [], [], 30)
        assert ready
        try:
            piece = os.read(main, 1 << 16)
        except OSError:  # Linux's word for the end of a terminal
            break
        if not piece:
            break
        shown += piece
        if not interrupted and re.search(rb"[1-9]\d*00/6000", shown):
            command.send_signal(number)
            interrupted = True
    os.close(main)
    assert command.wait(30) == 1
    text = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", shown).decode()
    assert "interrupted" in text
    told = re.search(r"At least (\d+) of 6000 dead letters were replayed", " ".join(text.split()))
    assert told is not None
    assert LETTERS - site.left() - int(told[1]) in (0, PAGE_LETTERS)
    assert "run the same command again to go on" in " ".join(text.split())
    assert_rest_moves(site, 1)
