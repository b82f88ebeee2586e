"""C9: the replay of dead letters is interrupted by SIGKILL, again and again."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from http.client import HTTPException
from pathlib import Path
from typing import Any

import orjson
import pytest
from harness import oracle
from harness.gateway import Gateway

KILLS = 20
PAGE = 200
"""``edge.delivery.replay.PAGE_LETTERS``: what is appended and then marked together."""
N_LETTERS = 15_000
WRITTEN_BYTES = (20_000, 300_000)
"""Between these many bytes after it began to write, a process is killed: within the first few pages."""
REPLAY = ("dead-letters", "replay")
PATIENT = {"batch": {"max_events": 100_000, "max_bytes": 1 << 30, "max_age_secs": 3_600}}
"""A sink that waits with what it gets: whatever comes twice in the end was moved twice."""


class _Letters:
    """A sink's dead letters, and the commands that move them."""

    def __init__(self, rig: Any) -> None:
        self.rig = rig
        self.target = rig.target(status=410)
        rig.configure({"crm": rig.http_sink(self.target)})
        gateway = rig.start()
        self.load = rig.load(senders=4, most_bytes=300)
        oracle.wait_for(lambda: self.load.n_acked() >= N_LETTERS, 120, "enough events")
        self.load.stop()
        rig.settle(gateway, ["crm"], 60)
        assert gateway.stop()[0] == 0
        self.known = {entry.event_id for entry in self.load.acked()}
        assert {entry.event_id for entry in self.left()} == self.known
        rig.configure({"crm": rig.http_sink(self.target, **PATIENT)})

    def left(self) -> list[Any]:
        """Return the dead letters that are there."""
        return oracle.entries_in_dead_letters(self.rig.folder / "dead-letters", "crm")

    def command(self) -> subprocess.Popen[bytes]:
        """Start to replay all of them."""
        command = [sys.executable, "-m", "edge.cli", *REPLAY, "-c", str(self.rig.config)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.rig.folder)

    def arrive(self, found: Any, kills: int) -> None:
        """Move the rest, see that then nothing is left to be moved, deliver, and hold it against what was sent."""
        out, err = _end(self.command(), 0)
        assert out.endswith(b" replayed\n"), (out, err)
        assert int(out.split()[1]) > 0, (out, err)
        assert not self.left()
        _, err = _end(self.command(), 1)
        assert b"nothing matches" in err
        self.target.order(status=200)
        self.rig.configure({"crm": self.rig.http_sink(self.target)})
        gateway = self.rig.start()
        self.rig.settle(gateway, ["crm"], 60)
        self.rig.is_alive(gateway, self.target)
        assert not self.left()
        self.rig.check(found, [self.load], self.target.delivered(), duplicates=kills * PAGE)
        assert gateway.stop()[0] == 0


def _end(process: subprocess.Popen[bytes], code: int) -> tuple[bytes, bytes]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, (process.returncode, out, err)
    return out, err


def _written(pid: int) -> int:
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("wchar:")))


def _is_under_way(pid: int, before: int, dice: random.Random) -> None:
    """Wait until a process has written so much of a replay that nobody foresees where it is."""
    until = before + dice.randint(*WRITTEN_BYTES)
    oracle.wait_for(lambda: _written(pid) > until, 30, "the replay is under way", every_secs=0.001)
    time.sleep(dice.uniform(0.0, 0.01))


@pytest.mark.full
def test_c9_the_command_is_killed_without_a_gateway(rig: Any, row: Any) -> None:
    dice = random.Random(oracle.seed())
    bound = f"0 lost, <= {PAGE} twice a kill, a second replay moves 0"
    with row("C9", what="SIGKILL of the command that replays", unit="kills", bound=bound) as found:
        letters = _Letters(rig)
        n_left = len(letters.known)
        while found.tried < KILLS:
            process = letters.command()
            _is_under_way(process.pid, 0, dice)
            assert process.poll() is None, "there were too few dead letters"
            process.kill()
            process.communicate()
            n_before, n_left = n_left, len(letters.left())
            assert 0 < n_left <= n_before
            found.tried += 1
        moved = len(letters.known) - n_left
        assert moved > KILLS * PAGE / 2, "the kills came before anything was moved"
        letters.arrive(found, KILLS)
        found.note(f"command: {moved:,} letters were moved by runs that were killed")


@pytest.mark.full
def test_c9_the_gateway_is_killed_while_it_replays(rig: Any, row: Any) -> None:
    dice = random.Random(oracle.seed())
    with row("C9", what="SIGKILL of the gateway that replays", unit="kills") as found:
        letters = _Letters(rig)
        n_left = len(letters.known)
        while found.tried < KILLS:
            gateway = rig.start()
            before = _written(gateway.pid)
            asking = _Asking(gateway)
            _is_under_way(gateway.pid, before, dice)
            gateway.kill()
            assert asking.answer() is None, "there were too few dead letters"
            n_before, n_left = n_left, len(letters.left())
            assert 0 < n_left <= n_before
            found.tried += 1
        moved = len(letters.known) - n_left
        assert moved > KILLS * PAGE / 2, "the kills came before anything was moved"
        letters.arrive(found, KILLS)
        found.note(f"gateway: {moved:,} letters were moved by runs that were killed")


@pytest.mark.full
def test_c9_the_command_is_killed_while_a_gateway_replays_for_it(rig: Any, row: Any) -> None:
    dice = random.Random(oracle.seed())
    with row("C9", what="SIGKILL of the command that asks a gateway", unit="kills") as found:
        letters = _Letters(rig)
        gateway = rig.start()
        for _ in range(KILLS // 4):
            before = _written(gateway.pid)
            process = letters.command()
            _is_under_way(gateway.pid, before, dice)
            assert process.poll() is None, "there were too few dead letters"
            process.kill()
            process.communicate()
            found.tried += 1
        assert 0 < len(letters.left()) < len(letters.known)
        gateway.kill()
        letters.arrive(found, KILLS // 4)


class _Asking(threading.Thread):
    """Asks a gateway to replay."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__()
        self._gateway = gateway
        self._answer: tuple[int, bytes] | None = None
        self.start()

    def run(self) -> None:
        body = orjson.dumps({"sink": "crm"})
        try:
            self._answer = self._gateway.request("POST", "/dead-letters/replay", body, admin=True, secs=60)
        except (OSError, HTTPException):
            self._answer = None

    def answer(self) -> tuple[int, bytes] | None:
        """Return what it was told; None when the connection broke before."""
        self.join(60)
        return self._answer
