import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge.cli import common
from edge.event import pack
from edge.gateway import SHARD
from edge.spool.inspect import verify
from edge.spool.log import Log


@pytest.fixture(autouse=True)
def _damage_is_meant(expect_log: list[str]) -> None:
    expect_log += ["a segment of the spool is damaged", "events of the spool are lost", "not everything in it"]


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """A spool of 60 events in several segments."""
    path = tmp_path / "spool" / SHARD

    async def write() -> None:
        log = Log.open(path, segment_bytes=4096)
        log.start(asyncio.get_running_loop())
        for number in range(60):
            await log.append(pack({"key": "web"}, [b'{"event_id":"evt_%03d","pad":"%s"}' % (number, b"x" * 200)]))
        await log.close()

    asyncio.run(write())
    return path


def spoil(spool: Path, number: int) -> str:
    """Damage one event; return the name of its segment."""
    for path in spool.glob("seg-*.log"):
        data = path.read_bytes()
        at = data.find(b"evt_%03d" % number)
        if at > 0:
            with path.open("r+b") as file:
                file.seek(at)
                file.write(b"?")
            return path.name
    raise AssertionError(number)


def snapshot(path: Path) -> dict[str, bytes]:
    return {str(entry.relative_to(path)): entry.read_bytes() for entry in path.rglob("*") if entry.is_file()}


def table(stdout: str) -> list[list[str]]:
    return [line.split("\t") for line in stdout.splitlines() if line.count("\t") == 3][1:]


def test_repair_of_a_stopped_gateway_leaves_nothing_corrupt(edge: Any, config_path: Any, spool: Path) -> None:
    path = config_path()
    names = [spoil(spool, number) for number in (3, 30)]
    result = edge("spool", "repair", "-c", path)
    assert result.exit_code == 1  # events are missing
    assert "only its senders can send again" in result.stderr
    rows = table(result.stdout)
    assert [(row[0], row[3]) for row in rows] == [
        ("corrupt", "moved to quarantine"),
        ("corrupt", "moved to quarantine"),
        ("missing", "gone for good"),
        ("missing", "gone for good"),
    ]
    assert [row[1].split()[0] for row in rows[:2]] == names
    assert "missing events\t2" in result.stdout.splitlines()
    assert result.stdout.splitlines()[-1] == "repaired"
    report = verify(spool)
    assert (report.corrupt, report.unreadable, report.events) == ([], [], 58)
    again = edge("spool", "repair", "-c", path)
    assert (again.exit_code, again.stdout.splitlines()[-1]) == (1, "nothing to repair")


def test_repair_of_an_intact_spool_is_exit_0(edge: Any, config_path: Any, spool: Path) -> None:
    before = snapshot(spool)
    result = edge("spool", "repair", "-c", config_path())
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == "nothing to repair"
    assert snapshot(spool) == before


def test_dry_run_changes_nothing(edge: Any, config_path: Any, spool: Path) -> None:
    spoil(spool, 3)
    before = snapshot(spool)
    result = edge("spool", "repair", "-c", config_path(), "--dry-run")
    assert result.exit_code == 1
    assert [row[3] for row in table(result.stdout)] == ["would be moved to quarantine", "gone for good"]
    assert result.stdout.splitlines()[-1] == "would be repaired"
    assert snapshot(spool) == before


def test_leftovers_and_foreign_files_alone_are_exit_0(edge: Any, spool: Path) -> None:
    (spool / "seg-0123456789abcdef.tmp").write_bytes(b"")
    result = edge("spool", "repair", "--path", spool)
    assert result.exit_code == 0
    assert [(row[0], row[3]) for row in table(result.stdout)] == [("never finished", "removed")]


def test_directory_that_is_no_log_stays_as_it_is(edge: Any, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    for options in ([], ["--dry-run"]):
        result = edge("spool", "repair", "--path", tmp_path / "etc", *options)
        assert result.exit_code == 1
        assert f"{tmp_path}/etc holds no segments" in result.stderr
    assert list((tmp_path / "etc").iterdir()) == []
    assert edge("spool", "repair", "--path", tmp_path / "nowhere").exit_code == 1


def test_no_spool_is_a_clear_message(edge: Any, config_path: Any, tmp_path: Path) -> None:
    result = edge("spool", "repair", "-c", config_path())
    assert (result.exit_code, "was never started here" in result.stderr) == (1, True)


def test_root_does_not_write_where_another_user_could_not_read(
    edge: Any, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.stat

    class Owned:
        st_uid = 12345

    monkeypatch.setattr(common.os, "geteuid", lambda: 0)
    monkeypatch.setattr(Path, "stat", lambda path, **options: Owned() if path == spool else real(path, **options))
    result = edge("spool", "repair", "--path", spool)
    assert result.exit_code == 1
    assert "belongs to #12345" in result.stderr


async def test_running_gateway_repairs_its_spool(
    launch: Any, free_port: int, tmp_path: Path, example_event: Any, eventually: Any
) -> None:
    gateway = await launch(
        admin={"listen": f"127.0.0.1:{free_port}"},
        spool={"segment_bytes": 65536, "retain_secs": 3600},
    )
    for number in range(40):
        event = {**example_event, "event_id": f"evt_{number:03d}", "extras": {"pad": "x" * 8000}}
        assert (await gateway.post("/ingest", event)).code == 200
    await eventually(lambda: gateway.gateway.worker("archive").snapshot().pending_events == 0)
    spool = tmp_path / "spool" / SHARD
    spoil(spool, 3)
    spoil(spool, 39)

    async def edge(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edge.cli", "spool", *args]
        return await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=30, check=False, cwd=tmp_path
        )

    config = ["-c", str(tmp_path / "edge.yaml")]
    refused = await edge("repair", "--path", str(spool))
    assert refused.returncode == 1
    assert "leave --path away" in refused.stderr
    done = await edge("repair", *config)
    assert done.returncode == 1, done.stderr
    assert [row[3] for row in table(done.stdout)] == [
        "moved to quarantine",
        "left: it is being written",
        "gone for good",
        "gone for good",
    ]
    assert done.stdout.splitlines()[-1] == "not everything could be mended"
    assert len(verify(spool).corrupt) == 0  # what is at the end of the last segment counts as unfinished
    assert (await gateway.post("/ingest", {**example_event, "event_id": "after"})).code == 200
    assert (await gateway.metrics())["edge_events_unaccounted"] == 0
    await gateway.stop()
    assert (await edge("repair", *config)).returncode == 1
    assert "corrupt" not in (await edge("verify", *config)).stdout


def test_owner_of_the_test_may_write() -> None:
    """`refuse_root` lets through who owns the directory, root or not."""
    common.refuse_root(Path("/proc/self"))
    assert os.geteuid() == Path("/proc/self").stat().st_uid
