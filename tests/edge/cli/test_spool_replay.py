import asyncio
import json
import shlex
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from edge.cli import ranges
from edge.delivery.replay_range import RangeInterruptedError, RangeReport
from edge.event import pack
from edge.gateway import SHARD
from edge.spool.cursor import Cursor, CursorFile, load_cursor
from edge.spool.errors import SpoolFullError
from edge.spool.format import REPLAY
from edge.spool.inspect import dump
from edge.spool.log import Log

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def write(path: Path, numbers: range, position: int | None, **options: Any) -> None:
    """Append an event for each hour from noon on; `position` is where the cursor of archive is put."""

    async def append() -> None:
        log = Log.open(path, **{"segment_bytes": 4096, **options})
        log.start(asyncio.get_running_loop())
        for number in numbers:
            meta = {"key": "web", "received_at": (NOON + timedelta(hours=number)).isoformat(), "request_id": "r"}
            await log.append(pack(meta, [json.dumps({"event_id": f"evt_{number}", "pad": "x" * 500}).encode()]))
        if position is not None:
            file = CursorFile(path, "archive")
            file.save(Cursor(position=position, delivered=position))
            file.close()
        await log.close()

    asyncio.run(append())


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool" / SHARD


@pytest.fixture
def site(config_path: Any, spool: Path) -> Path:
    """A spool of 24 events that archive has had."""
    write(spool, range(24), 24)
    path: Path = config_path(spool={"retain_secs": 86400})
    return path


def replayed(spool: Path) -> list[str]:
    """Return the ids of the events in replayed frames."""
    frames = [frame for frame in dump(spool) if frame.kind == REPLAY]
    return [json.loads(line)["event_id"] for frame in frames for line in frame.payload.split(b"\n")[1:]]


def snapshot(path: Path) -> dict[str, bytes]:
    return {str(entry.relative_to(path)): entry.read_bytes() for entry in path.rglob("*") if entry.is_file()}


SINCE = ["--sink", "archive", "--since", "2026-05-01T14:00:00Z"]


def test_stopped_gateway_has_the_range_in_its_spool_again(edge: Any, site: Path, spool: Path) -> None:
    result = edge("spool", "replay", "-c", site, *SINCE, "--until", "2026-05-01T18:00:00Z")
    assert (result.exit_code, result.stdout) == (0, "archive: 4 events replayed; it gets them at the next start\n")
    assert replayed(spool) == ["evt_2", "evt_3", "evt_4", "evt_5"]
    again = edge("spool", "replay", "-c", site, *SINCE)
    assert again.stdout == "archive: 22 events replayed; it gets them at the next start\n"  # never what was replayed


async def test_running_gateway_delivers_the_range_again(
    launch: Any, free_port: int, tmp_path: Path, example_event: Any, eventually: Any
) -> None:
    gateway = await launch(
        admin={"listen": f"127.0.0.1:{free_port}"},
        spool={"segment_bytes": 65536, "retain_secs": 3600},
        sinks={
            "archive": {"type": "file", "path": str(tmp_path / "events"), "batch": {"max_age_secs": 0.02}},
            "other": {"type": "file", "path": str(tmp_path / "other"), "batch": {"max_age_secs": 0.02}},
        },
    )

    def delivered(folder: str) -> list[str]:
        files = (tmp_path / folder).rglob("*.ndjson*")
        return [json.loads(line)["event_id"] for file in files for line in file.read_bytes().splitlines()]

    for number in range(30):
        event = {**example_event, "event_id": f"evt_{number}", "extras": {"pad": "x" * 8000}}
        assert (await gateway.post("/ingest", event)).code == 200
    await eventually(lambda: len(delivered("events")) == len(delivered("other")) == 30)

    async def edge(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edge.cli", "spool", "replay", "-c", str(tmp_path / "edge.yaml"), *args]
        return await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=30, check=False, cwd=tmp_path
        )

    counted = await edge("--sink", "archive", "--since", "1h", "--dry-run")
    assert (counted.returncode, counted.stdout) == (0, "archive: 30 events would be replayed\n"), counted.stderr
    done = await edge("--sink", "archive", "--since", "1h")
    assert (done.returncode, done.stdout, done.stderr) == (0, "archive: 30 events replayed\n", "")
    await eventually(lambda: len(delivered("events")) == 60)
    assert sorted(delivered("events")) == sorted([f"evt_{number}" for number in range(30)] * 2)
    await eventually(lambda: gateway.gateway.worker("other").snapshot().pending_events == 0)
    assert len(delivered("other")) == 30
    metrics = await gateway.metrics()
    assert metrics["edge_events_unaccounted"] == 0
    assert metrics['edge_sink_events_total{outcome="delivered",sink="archive"}'] == 60
    assert metrics['edge_sink_events_total{outcome="delivered",sink="other"}'] == 30
    assert metrics['edge_events_outcome_total{outcome="accepted",reason=""}'] == 30
    nothing = await edge("--sink", "archive", "--since", "2d", "--until", "1d")
    assert nothing.returncode == 1
    assert "spool.retain_secs, which is 3600" in nothing.stderr


def test_dry_run_counts_and_changes_nothing(edge: Any, site: Path, spool: Path) -> None:
    before = snapshot(spool)
    result = edge("spool", "replay", "-c", site, *SINCE, "--dry-run")
    assert (result.exit_code, result.stdout) == (0, "archive: 22 events would be replayed\n")
    assert edge("spool", "replay", "-c", site, *SINCE, "--dry-run", "--from", 20).stdout.startswith("archive: 4 ")
    assert snapshot(spool) == before


def test_what_is_pending_is_not_delivered_twice(edge: Any, config_path: Any, spool: Path) -> None:
    write(spool, range(24), 10)
    for options, words in (["--dry-run"], "would be replayed"), ([], "replayed; it gets them at the next start"):
        result = edge("spool", "replay", "-c", config_path(), *SINCE, *options)
        assert (result.exit_code, result.stdout) == (0, f"archive: 8 events {words}\n")
        assert "14 events are still pending for archive: it gets them without a replay" in result.stderr
    assert replayed(spool) == [f"evt_{number}" for number in range(2, 10)]


def test_sink_that_is_new_gets_what_is_replayed_to_it(edge: Any, config_path: Any, site: Path, spool: Path) -> None:
    path = config_path(sinks={"archive": {"type": "blackhole"}, "fresh": {"type": "blackhole"}})
    result = edge("spool", "replay", "-c", path, "--sink", "fresh", "--since", "2026-05-01")
    assert result.stdout == "fresh: 24 events replayed; it gets them at the next start\n"
    cursor = load_cursor(spool, "fresh")
    assert cursor is not None
    assert (cursor.position, cursor.base) == (24, 24)  # before what was appended for it


def test_what_is_not_kept_any_more_is_said_with_what_keeps_it(edge: Any, config_path: Any, spool: Path) -> None:
    write(spool, range(24), 24)
    for path in sorted(spool.glob("seg-*.log"))[:-1]:
        path.unlink()
    first = int(next(spool.glob("seg-*.log")).name[4:24])
    site = config_path()
    for options in ["--dry-run"], []:
        result = edge("spool", "replay", "-c", site, *SINCE, "--until", "2026-05-01T16:00:00Z", *options)
        assert (result.exit_code, result.stdout) == (1, "")
        oldest = (NOON + timedelta(hours=first)).isoformat()
        assert f"its oldest events were received at {oldest}" in result.stderr
        assert "spool.retain_secs, which is 0" in result.stderr
    result = edge("spool", "replay", "-c", site, *SINCE)
    assert (result.exit_code, result.stdout.split()[1]) == (0, str(24 - first))
    assert f"what was received before {oldest} is not in the spool any more" in result.stderr


def test_spool_without_an_event_is_told(edge: Any, config_path: Any, spool: Path) -> None:
    write(spool, range(0), 0)
    result = edge("spool", "replay", "-c", config_path(), *SINCE)
    assert result.exit_code == 1
    assert "the spool holds nothing any more that archive has had" in result.stderr


def test_unknown_sink_and_backward_range_and_no_spool_are_refused(edge: Any, config_path: Any, tmp_path: Path) -> None:
    path = config_path()
    result = edge("spool", "replay", "-c", path, "--sink", "archiv", "--since", "1d")
    assert (result.exit_code, result.stderr) == (1, "edge: no sink archiv; there are archive\n")
    assert edge("spool", "replay", "-c", path, "--sink", "archive", "--since", "1d", "--until", "2d").exit_code == 2
    result = edge("spool", "replay", "-c", path, "--sink", "archive", "--since", "1d")
    assert "was never started here" in result.stderr
    assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize(
    "cause", [KeyboardInterrupt(), RangeInterruptedError(RangeReport(9, moved=2), SpoolFullError("no room"))]
)
def test_interrupted_it_prints_the_command_that_goes_on(
    edge: Any, site: Path, spool: Path, monkeypatch: pytest.MonkeyPatch, cause: BaseException
) -> None:
    real, calls = ranges.replay_page, 0

    async def interrupted(log: Any, sink: str, wanted: Any, position: int) -> RangeReport:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise cause
        return await real(log, sink, wanted, position, max_bytes=1000)

    monkeypatch.setattr(ranges, "replay_page", interrupted)
    result = edge("spool", "replay", "-c", site, *SINCE, "--until", "2026-05-02")
    monkeypatch.undo()
    assert result.exit_code == 1
    reason, how_far, command = result.stderr.splitlines()
    assert reason == ("edge: interrupted" if isinstance(cause, KeyboardInterrupt) else "edge: no room")
    done = replayed(spool)
    reported = len(done) + (0 if isinstance(cause, KeyboardInterrupt) else 2)
    assert how_far == f"{reported} events were replayed to archive before. To go on:"
    words = shlex.split(command)
    assert words[:3] == ["edge", "spool", "replay"]
    if isinstance(cause, KeyboardInterrupt):
        assert edge(*words[1:]).exit_code == 0
        assert replayed(spool) == [f"evt_{number}" for number in range(2, 12)]
    else:
        assert words[words.index("--from") + 1] == "9"


def test_full_spool_says_how_far_it_came_and_the_command_goes_on(
    edge: Any, config_path: Any, spool: Path, expect_log: list[str]
) -> None:
    expect_log.append("the spool refuses events")
    write(spool, range(60), 60, segment_bytes=65536)
    small = {"segment_bytes": 65536, "max_bytes": 131072, "retain_secs": 86400}
    until = ["--until", "2027-01-01"]
    wanted = [*SINCE, *until]
    for _ in range(20):
        result = edge("spool", "replay", "-c", config_path(spool=small), *wanted)
        if result.exit_code:
            break
    assert "no room for the next segment" in result.stderr
    before = len(replayed(spool))
    words = shlex.split(result.stderr.splitlines()[-1])
    done = edge("spool", "replay", "-c", config_path(spool={"retain_secs": 86400}), *words[3:-2])
    assert done.exit_code == 0, done.stderr
    ids = replayed(spool)
    total = len(ids)
    assert total % 58 == 0
    assert before < total
    assert all(ids.count(f"evt_{number}") == total // 58 for number in range(2, 60))
