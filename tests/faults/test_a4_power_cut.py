"""A4: the power of the spool's disk goes at a random moment under load; every acknowledged event is delivered."""

from __future__ import annotations

import random
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from harness.powercut import CutDisk, missing
from harness.processes import Senders, delivered, gateway
from harness.record import Row

RECOVER_SECS = 15.0
_UNSYNCED = """
import sys
from edge.spool.files import Files
Files.fdatasync = lambda self, fd: None
sys.argv = ["edge", "run", "-c", sys.argv[1]]
from edge.cli import main
main()
"""
WITHOUT_FDATASYNC = [sys.executable, "-c", _UNSYNCED]
"""The gateway as it is, but for the one call that everything rests on."""


class Cuts:
    """One power cut after the other on one disk, with what senders know of all of them."""

    def __init__(self, disk: CutDisk, config: Path, events: Path, example: dict[str, Any]) -> None:
        self._disk = disk
        self._config = config
        self._events = events
        self._example = example
        self._dice = random.Random()
        self._number = 0
        self.acked: set[str] = set()
        self.sent: set[str] = set()
        self.lost: set[str] = set()
        self.duplicates = 0
        self.foreign = 0

    def cut(self, command: list[str] | None = None) -> None:
        """Run a gateway under load, cut the power, start another one on what is left and see what it delivers."""
        self._number += 1
        with gateway(self._config, command) as running:
            senders = Senders(running.port, self._example, f"cut{self._number}")
            try:
                _wait(lambda: senders.acked_within(0.25) >= 20, "the gateway takes too few events to prove anything")
                time.sleep(self._dice.uniform(0.0, 0.5))
                # What is told after this moment no machine without power could have told. It does happen here: ext4
                # lets an fdatasync succeed whose change of the extent tree the cut has taken away.
                known = set(senders.acked)
                self._disk.cut()
            finally:
                senders.stop()
            running.kill()
        self.acked |= known
        self.sent |= senders.sent
        self._disk.unmount()
        self._disk.mount()
        with gateway(self._config) as running:
            deadline = time.monotonic() + RECOVER_SECS
            arrived = delivered(self._events)
            while not self.acked - self.lost <= set(arrived) and time.monotonic() < deadline:
                time.sleep(0.05)
                arrived = delivered(self._events)
                if command is not None and pending(running.admin_port) == 0:
                    deadline = min(deadline, time.monotonic() + 0.5)
            assert running.stop() == 0
        arrived = delivered(self._events)
        self.lost |= self.acked - set(arrived)
        self.foreign = len(set(arrived) - self.sent)
        self.duplicates = len(arrived) - len(set(arrived))


def pending(port: int) -> float:
    """Return how many events the gateway says are not delivered yet."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("edge_sink_pending_events{"))


def _wait(condition: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.005)


@pytest.fixture
def cuts(tmp_path: Path, config_path: Callable[..., Path], example_event: dict[str, Any]) -> Any:
    """Return a function that puts the spool on a disk whose power can be cut; the sink's files stay on this one."""

    def build(disk: CutDisk) -> Cuts:
        config = config_path(
            log={"format": "json"},
            spool={"path": str(disk.path / "spool"), "segment_bytes": 1 << 20, "max_bytes": 24 << 20},
            dead_letters={"path": str(disk.path / "dead-letters")},
            # Some events are delivered and some only in the spool when the power goes, and cursors move.
            sinks={"archive": {"type": "file", "path": str(tmp_path / "events"), "batch": {"max_age_secs": 0.3}}},
        )
        return Cuts(disk, config, tmp_path / "events", example_event)

    return build


@contextmanager
def disk_or_skip(result: Any, tmp_path: Path) -> Iterator[CutDisk]:
    """Have a disk for the time of a `with`, or skip the test where there can be none."""
    disk: CutDisk | None = None
    reason = missing()
    if not reason:
        try:
            disk = CutDisk(tmp_path, 64)
        except OSError as error:  # a container may show loop devices and still not give us any
            reason = str(error)
    if disk is None:
        result.skip(reason)
        return
    try:
        yield disk
    finally:
        disk.remove()


def test_power_cut_loses_nothing_that_was_acknowledged(cuts, tmp_path, scale, row):
    with row("A4", what="power of the spool's disk (ext4) cut at a random moment under load", unit="cuts") as result:
        result.bound = "0 lost"
        with disk_or_skip(result, tmp_path) as disk:
            run = cuts(disk)
            for _ in range(scale(1, 50)):
                run.cut()
                result.tried += 1
                result.losses, result.corrupt, result.duplicates = len(run.lost), run.foreign, run.duplicates
                assert not run.lost, f"acknowledged and gone after cut {result.tried}: {sorted(run.lost)[:10]}"
                assert not run.foreign
                assert run.sent > run.acked, "nothing was under way when the power went"
            # Delivered and not yet noted in the cursor: a batch in flight and 1,000 events for each cut.
            assert run.duplicates <= result.tried * 1500
            result.note(f"{len(run.acked)} acknowledged events")


@pytest.mark.full
def test_power_cut_is_noticed_when_nothing_is_synced(cuts, tmp_path):
    """Not a row of the table: what is lost here is meant to be."""
    attempts = 10
    unkept = Row("A4", what="the same without fdatasync: the row must see the loss", unit="cuts")
    with unkept as result, disk_or_skip(result, tmp_path) as disk:
        run = cuts(disk)
        while result.tried < attempts and not run.lost:
            run.cut(WITHOUT_FDATASYNC)
            result.tried += 1
        assert run.lost
