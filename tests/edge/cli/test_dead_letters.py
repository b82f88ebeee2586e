import asyncio
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from edge.cli.dead_letters import GO_ON
from edge.delivery import replay as moves
from edge.delivery.dead_letters import DeadLetterReason, DeadLetterStore, Letter
from edge.gateway import SHARD
from edge.spool import inspect
from edge.spool.errors import SpoolFullError
from edge.spool.format import REPLAY

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


async def bury(folder: Path, sink: str, count: int, **changes: Any) -> None:
    """Put dead letters into the store of a sink, one an hour from noon on."""
    store = DeadLetterStore(folder, sink, segment_bytes=1 << 16, max_bytes=1 << 20)
    await store.add(
        [
            Letter(
                **{
                    "line": json.dumps({"event_id": f"{sink}-{number}"}).encode(),
                    "meta": {"key": "web", "received_at": NOON.isoformat(), "request_id": "r"},
                    "reason": DeadLetterReason.PERMANENT,
                    "attempts": 1,
                    "first_error": "HTTP 400",
                    "last_error": "HTTP 400 \x1b[2J",
                    "died_at": NOON + timedelta(hours=number),
                    **changes,
                }
            )
            for number in range(count)
        ]
    )
    await store.close()


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """Dead letters: three of archive, two of crm with another reason."""
    folder = tmp_path / "dead-letters"
    asyncio.run(bury(folder, "archive", 3))
    asyncio.run(bury(folder, "crm", 2, reason=DeadLetterReason.GAVE_UP))
    return folder


@pytest.fixture
def site(config_path: Any, letters: Path) -> Path:
    path: Path = config_path(sinks={"archive": {"type": "blackhole"}, "crm": {"type": "blackhole"}})
    return path


def listed(result: Any) -> list[str]:
    """Return the event ids of a listing."""
    return [line.split("\t")[5] for line in result.stdout.splitlines()[1:]]


def test_list_is_plain_rows_oldest_first(edge: Any, site: Path) -> None:
    result = edge("dead-letters", "list", "-c", site)
    assert result.exit_code == 0, result.stderr
    head, *rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert head == ["sink", "number", "died_at", "reason", "attempts", "event_id", "last_error"]
    assert rows[0] == [
        "archive",
        "0",
        "2026-05-01T12:00:00+00:00",
        "permanent",
        "1",
        "archive-0",
        "HTTP 400 \\x1b[2J",
    ]
    assert len(rows) == 5


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        (["--sink", "crm"], ["crm-0", "crm-1"]),
        (["--reason", "gave_up"], ["crm-0", "crm-1"]),
        (["--event-id", "archive-1"], ["archive-1"]),
        (["--since", "2026-05-01T13:00:00Z"], ["archive-1", "archive-2", "crm-1"]),
        (["--until", "2026-05-01T13:00:00"], ["archive-0", "crm-0"]),
        (["--since", "2026-05-01T13:00:00", "--until", "2026-05-01T14:00:00", "--sink", "archive"], ["archive-1"]),
        (["--limit", "1"], ["archive-0", "crm-0"]),
    ],
)
def test_list_shows_what_is_asked_for(edge: Any, site: Path, options: list[str], ids: list[str]) -> None:
    assert listed(edge("dead-letters", "list", "-c", site, *options)) == ids


def test_nothing_that_matches_is_exit_1(edge: Any, site: Path) -> None:
    for command in ("list", "show", "replay", "drop"):
        result = edge("dead-letters", command, "-c", site, "--since", "24h", "--event-id", "nobody")
        assert (result.exit_code, result.stdout, result.stderr) == (1, "", "nothing matches\n")


def test_list_by_reason_counts(edge: Any, site: Path) -> None:
    lines = edge("dead-letters", "list", "--by-reason", "-c", site).stdout.splitlines()
    assert lines[0] == "sink\treason\tlast_error\tevents"
    assert [line.split("\t")[0::3] for line in lines[1:]] == [["archive", "3"], ["crm", "2"]]


def test_show_is_json_lines_with_event_and_fate(edge: Any, site: Path) -> None:
    stdout = edge("dead-letters", "show", "-c", site, "--event-id", "crm-1").stdout
    [letter] = [json.loads(line) for line in stdout.splitlines()]
    assert letter["event"] == {"event_id": "crm-1"}
    assert (letter["sink"], letter["reason"], letter["number"]) == ("crm", "gave_up", 1)


def test_unknown_sink_and_unreadable_time_are_told(edge: Any, site: Path) -> None:
    result = edge("dead-letters", "list", "-c", site, "--sink", "crn")
    assert (result.exit_code, result.stderr) == (1, "edge: no sink crn; there are archive, crm\n")
    assert edge("dead-letters", "list", "-c", site, "--since", "yesterday").exit_code == 2


def test_dry_run_only_counts(edge: Any, site: Path, tmp_path: Path) -> None:
    result = edge("dead-letters", "replay", "-c", site, "--dry-run", "--sink", "archive")
    assert (result.exit_code, result.stdout) == (0, "archive: 3 would be replayed\n")
    assert len(listed(edge("dead-letters", "list", "-c", site))) == 5
    assert not (tmp_path / "spool").exists()


def test_replay_without_a_gateway_puts_events_into_the_spool(edge: Any, site: Path, tmp_path: Path) -> None:
    result = edge("dead-letters", "replay", "-c", site, "--sink", "archive", "--limit", 2)
    assert (result.exit_code, result.stdout) == (0, "archive: 2 replayed\n")
    assert listed(edge("dead-letters", "list", "-c", site)) == ["archive-2", "crm-0", "crm-1"]
    frames = list(inspect.dump(tmp_path / "spool" / SHARD))
    assert [frame.kind for frame in frames] == [REPLAY, REPLAY]
    assert b'"archive-0"' in frames[0].payload


async def test_replay_without_a_gateway_reaches_a_sink_that_has_no_cursor_yet(
    launch: Any, letters: Path, eventually: Any, tmp_path: Path, config_path: Any
) -> None:
    """Such a sink begins at the end of the spool when it starts: behind what was replayed for it meanwhile."""
    command = [sys.executable, "-m", "edge.cli", "dead-letters", "replay", "-c", config_path(), "--sink", "archive"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=30, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"archive: 3 replayed\n")
    await launch()

    def delivered() -> bool:
        text = b"".join(path.read_bytes() for path in (tmp_path / "events").rglob("*.ndjson*"))
        return all(b"archive-%d" % number in text for number in range(3))

    await eventually(delivered)


def test_replay_that_is_refused_says_how_far_it_came(edge: Any, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = moves.replay, []

    async def full(store: Any, log: Any, sink: str, *args: Any, **options: Any) -> Any:
        calls.append(sink)
        if len(calls) > 1:
            raise SpoolFullError("there is no room on the disk")
        return await real(store, log, sink, *args, **options)

    monkeypatch.setattr(moves, "replay", full)
    result = edge("dead-letters", "replay", "-c", site)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        "edge: there is no room on the disk",
        f"At least 3 of 5 dead letters were replayed. {GO_ON['replay']}",
    ]
    monkeypatch.undo()
    assert edge("dead-letters", "replay", "-c", site).stdout == "crm: 2 replayed\n"
    assert edge("dead-letters", "replay", "-c", site).exit_code == 1


def test_drop_without_a_gateway_takes_them_away(edge: Any, site: Path, tmp_path: Path) -> None:
    result = edge("dead-letters", "drop", "-c", site, "--until", "2026-05-01T13:00:00Z")
    assert (result.exit_code, result.stdout) == (0, "archive: 1 dropped\ncrm: 1 dropped\n")
    assert listed(edge("dead-letters", "list", "-c", site)) == ["archive-1", "archive-2", "crm-1"]
    assert list(inspect.dump(tmp_path / "spool" / SHARD)) == []


def test_drop_of_everything_must_be_meant(edge: Any, site: Path) -> None:
    assert edge("dead-letters", "drop", "-c", site).exit_code == 2
    assert edge("dead-letters", "drop", "-c", site, "--all").exit_code == 0
    assert edge("dead-letters", "list", "-c", site).exit_code == 1


def test_letters_of_a_sink_that_is_gone_can_be_seen_and_dropped_but_not_replayed(
    edge: Any, config_path: Any, letters: Path
) -> None:
    path = config_path(sinks={"archive": {"type": "blackhole"}})
    assert listed(edge("dead-letters", "list", "-c", path, "--sink", "crm")) == ["crm-0", "crm-1"]
    refused = edge("dead-letters", "replay", "-c", path, "--sink", "crm")
    assert refused.exit_code == 1
    assert "not in the configuration any more" in refused.stderr
    assert edge("dead-letters", "drop", "-c", path, "--sink", "crm").stdout == "crm: 2 dropped\n"


async def test_a_running_gateway_is_asked_through_its_admin_listener(
    launch: Any, eventually: Any, free_port: int, tmp_path: Path
) -> None:
    await bury(tmp_path / "dead-letters", "archive", 3)
    await launch(admin={"listen": f"127.0.0.1:{free_port}", "token": "admin-token"})

    async def edge(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edge.cli", "dead-letters", *args, "-c", str(tmp_path / "edge.yaml")]
        return await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=30, check=False, cwd=tmp_path
        )

    replayed = await edge("replay", "--event-id", "archive-1")
    assert (replayed.returncode, replayed.stdout, replayed.stderr) == (0, "archive: 1 replayed\n", "")

    def delivered() -> bool:
        return any(b"archive-1" in path.read_bytes() for path in (tmp_path / "events").rglob("*.ndjson*"))

    await eventually(delivered)
    dropped = await edge("drop", "--until", (NOON + timedelta(hours=1)).isoformat())
    assert (dropped.returncode, dropped.stdout) == (0, "archive: 1 dropped\n")
    left = await edge("list")
    assert [line.split("\t")[5] for line in left.stdout.splitlines()[1:]] == ["archive-2"]


async def test_a_running_gateway_that_refuses_is_told(launch: Any, free_port: int, tmp_path: Path) -> None:
    await bury(tmp_path / "dead-letters", "archive", 1)
    await launch(admin={"listen": f"127.0.0.1:{free_port}", "token": "admin-token"})
    path = tmp_path / "edge.yaml"
    path.write_text(path.read_text().replace("admin-token", "another-token"))
    command = [sys.executable, "-m", "edge.cli", "dead-letters", "replay", "-c", str(path)]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=30, check=False, cwd=tmp_path
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"edge: the gateway at 127.0.0.1:{free_port} refused: 401")
    assert "token" not in done.stderr.replace("admin token", "")
