"""B8: the spool's directory cannot be written, is somebody else's or goes away, at the start and under load."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import disks, filling, needs, oracle

NOBODY = 65534
BOUND_BY_PERMISSIONS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--")
"""What root is started behind to mind permissions like anybody else."""
NOTICED_SECS = 2.0
"""The directory is looked at once a second, and the answers are a moment later."""
BACK_SECS = 2.0
SEGMENT_BYTES = 128 * 1024


def test_b8_a_directory_that_cannot_be_used_is_said_at_the_start(rig: Any, row: Any) -> None:
    with row(
        "B8", what="a spool that cannot be used at the start", unit="cases", bound="exit 1, one clear line"
    ) as found:
        _needed(found)
        folder = rig.folder
        closed = folder / "closed"
        closed.mkdir(mode=0o500)
        _refuses_to_start(rig, closed / "spool", "Permission denied")

        (folder / "plain-file").write_text("")
        _refuses_to_start(rig, folder / "plain-file", "ot a directory")

        readable = folder / "readable"
        (readable / "shard-000").mkdir(parents=True)
        (readable / "shard-000").chmod(0o500)
        _refuses_to_start(rig, readable, "Permission denied")
        found.tried += 3
        found.note("no right to create it, a file in its place, no right to write in it")
        (readable / "shard-000").chmod(0o700)


def test_b8_a_read_only_disk_and_a_foreign_owner_at_the_start(rig: Any, row: Any) -> None:
    with row(
        "B8", what="a spool that cannot be used at the start", unit="cases", bound="exit 1, one clear line"
    ) as found:
        needs.root(found)
        _needed(found)
        foreign = rig.folder / "foreign"
        (foreign / "shard-000").mkdir(parents=True, mode=0o700)
        os.chown(foreign / "shard-000", NOBODY, NOBODY)
        _refuses_to_start(rig, foreign, "Permission denied")

        volume = rig.hold(disks.tmpfs(rig.folder / "volume", 4 * disks.MIB))
        disks.run("mount", "-o", "remount,ro", str(volume))
        _refuses_to_start(rig, volume / "spool", "Read-only file system")
        assert list(volume.iterdir()) == []
        found.tried += 2
        found.note("another owner, a file system mounted read-only")


def test_b8_a_directory_that_becomes_unusable(rig: Any, row: Any) -> None:
    with row("B8", what="a spool that becomes unusable while events come in", unit="cases", bound="0 lost") as found:
        _needed(found)
        target = rig.target()
        spool = rig.folder / "spool"
        shard, away = spool / "shard-000", rig.folder / "away"
        rig.configure({"crm": rig.http_sink(target)}, spool={"segment_bytes": SEGMENT_BYTES})
        gateway = rig.start(wrap=_wrap())
        load = rig.load(least_bytes=filling.LEAST_BYTES)
        filling.wait_for_acks(load)

        def goes_away_and_comes_back(break_it: Callable[[], object], mend_it: Callable[[], object]) -> None:
            around = _names(rig.folder)
            broken_at = time.monotonic()
            break_it()
            filling.wait_until_quiet(load, 10)
            quiet_at = load.acked()[-1].at
            assert quiet_at - broken_at < NOTICED_SECS, "events were taken into a directory that is no longer there"
            told = rig.probe(gateway, **filling.LARGER_THAN_LEFT)
            assert (told.status, told.code) == (503, "busy.full")
            assert not gateway.is_ready()
            oracle.wait_for(lambda: not gateway.pending("crm"), 10, "what was accepted is delivered")
            assert _names(rig.folder) <= around | {away}, "something was written elsewhere"
            mend_it()
            back = filling.wait_for_acks(load, BACK_SECS)
            oracle.wait_for(gateway.is_ready, BACK_SECS, "ready")
            seen.append(f"{quiet_at - broken_at:.1f} s, {back:.1f} s")
            found.tried += 1

        seen: list[str] = []
        goes_away_and_comes_back(lambda: shard.chmod(0o500), lambda: shard.chmod(0o700))
        goes_away_and_comes_back(lambda: shard.rename(away), lambda: away.rename(shard))
        goes_away_and_comes_back(lambda: spool.rename(away), lambda: away.rename(spool))

        # Another directory in its place is not the spool: nothing is written to it, and a restart takes it.
        shard.rename(away)
        shard.mkdir()
        filling.wait_until_quiet(load, 10)
        assert rig.probe(gateway).status == 503
        assert list(shard.iterdir()) == []
        oracle.wait_for(lambda: not gateway.pending("crm"), 10, "what was accepted is delivered")
        assert gateway.stop()[0] == 0
        gateway = rig.start(wrap=_wrap())
        filling.wait_for_acks(load)
        found.tried += 1
        load.stop()
        found.note(
            "no right to write, shard moved away, spool moved away: senders were told after and taken again after "
            + "; ".join(seen)
            + "; another directory in its place is left alone until a restart"
        )
        rig.settle(gateway, ["crm"])
        rig.is_alive(gateway, target)
        rig.check(found, [load], target.delivered(), duplicates=0)
        assert gateway.stop()[0] == 0


def test_b8_a_disk_that_is_unmounted(rig: Any, row: Any) -> None:
    with row("B8", what="a spool that becomes unusable while events come in", unit="cases", bound="0 lost") as found:
        needs.root(found)
        volume = rig.hold(disks.tmpfs(rig.folder / "volume", 32 * disks.MIB))
        target, gateway, load = _take_events(rig, volume)
        _is_told_and_delivers(rig, gateway, load, lambda: disks.run("umount", "--lazy", str(volume)))
        assert list(volume.iterdir()) == [], "the spool went on below the mount point"
        load.stop()
        rig.settle(gateway, ["crm"])
        rig.check(found, [load], target.delivered(), duplicates=0)
        assert gateway.stop()[0] == 0
        found.tried += 1
        found.note("unmounted: nothing was written below the mount point")


@pytest.mark.full
def test_b8_a_disk_that_turns_read_only(rig: Any, row: Any) -> None:
    with row("B8", what="a spool that becomes unusable while events come in", unit="cases", bound="0 lost") as found:
        needs.loop_devices(found)
        volume = rig.hold(disks.ext4(rig.folder / "volume", 32 * disks.MIB))
        target, gateway, load = _take_events(rig, volume)
        _is_told_and_delivers(rig, gateway, load, lambda: disks.break_ext4(volume))
        load.stop()
        assert gateway.stop()[0] == 0
        disks.repair_ext4(volume)
        gateway = rig.start()
        rig.settle(gateway, ["crm"])
        rig.is_alive(gateway, target)
        # The cursor could not be saved any more: what was delivered meanwhile is delivered again, however much it is.
        rig.check(found, [load], target.delivered())
        assert gateway.stop()[0] == 0
        found.tried += 1
        found.note("ext4 that turned read-only after an error: all is delivered, and taken again after its repair")


def _take_events(rig: Any, volume: Path) -> tuple[Any, Any, Any]:
    """Start a gateway with its spool on a volume, in segments that last longer than the test."""
    target = rig.target()
    rig.configure(
        {"crm": rig.http_sink(target)},
        spool={"path": str(volume / "spool"), "segment_bytes": 8 * disks.MIB, **filling.NO_CAP},
    )
    gateway = rig.start()
    load = rig.load()
    filling.wait_for_acks(load)
    return target, gateway, load


def _is_told_and_delivers(rig: Any, gateway: Any, load: Any, break_it: Callable[[], object]) -> None:
    broken_at = time.monotonic()
    break_it()
    filling.wait_until_quiet(load, 10)
    assert load.acked()[-1].at - broken_at < NOTICED_SECS, "events were taken although the disk is gone"
    assert rig.probe(gateway).status == 503
    assert not gateway.is_ready()
    oracle.wait_for(lambda: not gateway.pending("crm"), 10, "what was accepted is delivered")


def _needed(found: Any) -> None:
    if os.geteuid() == 0:
        needs.tool(found, "setpriv")


def _wrap() -> tuple[str, ...]:
    return BOUND_BY_PERMISSIONS if os.geteuid() == 0 else ()


def _refuses_to_start(rig: Any, path: Path, reason: str) -> None:
    """Check that a gateway with its spool at `path` says why it does not start, in one line, and ends."""
    config = rig.configure({"archive": rig.file_sink()}, spool={"path": str(path)})
    before = _names(rig.folder)
    command = [*_wrap(), sys.executable, "-m", "edge.cli", "run", "-c", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20, cwd=rig.folder)
    assert done.returncode == 1, done.stderr
    assert reason in done.stderr, done.stderr
    assert str(path) in done.stderr, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert _names(rig.folder) == before, "something was written elsewhere"


def _names(folder: Path) -> set[Path]:
    """Return what lies in a folder, the spool's own files and the ledgers aside."""
    found = set()
    for path in folder.rglob("*"):
        if "shard-000" not in path.parts and "away" not in path.parts and path.suffix != ".log":
            found.add(path)
    return found
