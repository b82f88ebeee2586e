import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from edge.event import pack
from edge.gateway import SHARD
from edge.spool.cursor import Cursor, CursorFile, cursor_names
from edge.spool.lock import locked
from edge.spool.log import Log


def store(path: Path, frames: list[list[bytes]]) -> None:
    """Write frames of events into a log, as the gateway does."""

    async def write() -> None:
        log = Log.open(path, segment_bytes=1 << 16, max_bytes=1 << 24)
        log.start(asyncio.get_running_loop())
        for lines in frames:
            await log.append(pack({"key": "web", "request_id": "r"}, lines), len(lines))
        await log.close()

    asyncio.run(write())


@pytest.fixture
def site(config_path: Any, tmp_path: Path) -> Path:
    """A configuration whose spool has five events in three frames."""
    path: Path = config_path()
    frames = [[b'{"event_id":"a"}', b'{"event_id":"b"}'], [b'{"event_id":"c"}'], [b'{"event_id":"d"}', b'{"x":"\x7f"}']]
    store(tmp_path / "spool" / SHARD, frames)
    return path


def save(tmp_path: Path, sink: str, cursor: Cursor) -> None:
    cursor_file = CursorFile(tmp_path / "spool" / SHARD, sink)
    cursor_file.save(cursor)
    cursor_file.close()


def pairs(stdout: str) -> dict[str, str]:
    return dict(line.split("\t") for line in stdout.splitlines() if line.count("\t") == 1)


def test_stats_shows_size_and_how_far_each_sink_is(edge: Any, site: Path, tmp_path: Path) -> None:
    save(tmp_path, "archive", Cursor(position=3, delivered=1, skipped=1, dropped=1))
    save(tmp_path, "crm", Cursor(position=1, delivered=1))
    result = edge("spool", "stats", "-c", site)
    assert result.exit_code == 0, result.stderr
    assert pairs(result.stdout)["next event"] == "5"
    rows = [line.split("\t") for line in result.stdout.splitlines() if line.count("\t") > 1]
    assert rows == [
        ["sink", "position", "pending", "delivered", "dead_lettered", "skipped", "lost", "dropped", "note"],
        ["archive", "3", "2", "1", "0", "1", "0", "1", ""],
        ["crm", "1", "4", "1", "0", "0", "0", "0", "not configured"],
    ]
    result = edge("spool", "stats", "--path", tmp_path / "spool" / SHARD)  # nobody knows which are configured
    assert "not configured" not in result.stdout


def test_verify_of_an_intact_spool_is_exit_0(edge: Any, site: Path) -> None:
    result = edge("spool", "verify", "-c", site)
    assert result.exit_code == 0
    assert (pairs(result.stdout)["frames"], pairs(result.stdout)["events"]) == ("3", "5")
    assert result.stdout.splitlines()[-1] == "intact"


def test_verify_names_the_damage_and_is_exit_1(edge: Any, site: Path, tmp_path: Path) -> None:
    [segment] = (tmp_path / "spool" / SHARD).glob("seg-*.log")
    data = bytearray(segment.read_bytes())
    data[data.index(b'{"event_id":"c"}') + 3] ^= 1
    segment.write_bytes(data)
    result = edge("spool", "verify", "-c", site)
    assert result.exit_code == 1
    assert "missing\t" + f"{segment.name} from event 2\t1 events" in result.stdout.splitlines()
    assert any(line.startswith(f"corrupt\t{segment.name} at ") for line in result.stdout.splitlines())
    assert result.stdout.splitlines()[-1] == "damaged"


def test_dump_prints_each_event_with_its_number(edge: Any, site: Path) -> None:
    lines = [json.loads(line) for line in edge("spool", "dump", "-c", site).stdout.splitlines()]
    assert [line["seq"] for line in lines] == [0, 1, 2, 3, 4]
    assert lines[0] == {
        "seq": 0,
        "kind": "events",
        "meta": {"key": "web", "request_id": "r"},
        "event": {"event_id": "a"},
    }


def test_dump_begins_and_ends_where_it_is_told(edge: Any, site: Path) -> None:
    stdout = edge("spool", "dump", "-c", site, "--from", 1, "--limit", 3).stdout
    assert [json.loads(line)["seq"] for line in stdout.splitlines()] == [1, 2, 3]


def test_dump_of_frames_says_where_they_lie(edge: Any, site: Path) -> None:
    lines = [json.loads(line) for line in edge("spool", "dump", "-c", site, "--frames").stdout.splitlines()]
    assert [(line["seq"], line["events"], line["kind"]) for line in lines] == [
        (0, 2, "events"),
        (2, 1, "events"),
        (3, 2, "events"),
    ]
    assert lines[0]["offset"] < lines[1]["offset"]


def test_a_directory_can_be_named_in_place_of_a_configuration(edge: Any, site: Path, tmp_path: Path) -> None:
    site.unlink()
    result = edge("spool", "verify", "--path", tmp_path / "spool" / SHARD)
    assert result.exit_code == 0


@pytest.mark.parametrize("command", ["stats", "verify", "dump"])
def test_looking_changes_nothing(edge: Any, site: Path, tmp_path: Path, command: str) -> None:
    def everything() -> dict[str, Any]:
        return {str(path): path.read_bytes() for path in (tmp_path / "spool").rglob("*") if path.is_file()}

    before = everything()
    assert edge("spool", command, "-c", site).exit_code == 0
    assert everything() == before


@pytest.mark.parametrize("command", ["stats", "verify", "dump"])
def test_no_spool_is_a_clear_message(edge: Any, config_path: Any, tmp_path: Path, command: str) -> None:
    result = edge("spool", command, "-c", config_path())
    assert result.exit_code == 1
    assert result.stderr == f"edge: there is no spool at {tmp_path}/spool/{SHARD}: the gateway was never started here\n"
    assert not (tmp_path / "spool").exists()
    assert edge("spool", command, "--path", tmp_path / "nowhere").exit_code == 1


def test_forget_removes_the_cursor_of_a_sink_that_is_not_configured(edge: Any, site: Path, tmp_path: Path) -> None:
    save(tmp_path, "archive", Cursor(position=3, delivered=3))
    save(tmp_path, "crm", Cursor(position=1, delivered=1))
    result = edge("spool", "forget", "-c", site, "--sink", "archive")
    assert (result.exit_code, "archive is configured" in result.stderr) == (1, True)
    result = edge("spool", "forget", "-c", site, "--sink", "crn")
    assert (result.exit_code, "not configured: crm" in result.stderr) == (1, True)
    result = edge("spool", "forget", "-c", site, "--sink", "../archive")
    assert result.exit_code == 1
    result = edge("spool", "forget", "-c", site, "--sink", "crm")
    assert (result.exit_code, result.stdout) == (0, "crm: forgotten\n")
    assert cursor_names(tmp_path / "spool" / SHARD) == ["archive"]


def test_forget_leaves_a_cursor_whose_number_nobody_else_holds(edge: Any, site: Path, tmp_path: Path) -> None:
    save(tmp_path, "crm", Cursor(position=1000, delivered=1000))
    result = edge("spool", "forget", "-c", site, "--sink", "crm")
    assert (result.exit_code, "start the gateway once" in result.stderr) == (1, True)
    assert cursor_names(tmp_path / "spool" / SHARD) == ["crm"]


def test_forget_asks_the_gateway_that_has_the_spool(
    edge: Any, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, "crm", Cursor(position=1, delivered=1))
    asked: list[Any] = []
    monkeypatch.setattr("edge.cli.admin.post", lambda admin, path, body: asked.append((path, body)) or {})
    with locked(tmp_path / "spool" / SHARD):
        result = edge("spool", "forget", "-c", site, "--sink", "crm")
    assert (result.exit_code, asked) == (0, [("/spool/forget", {"sink": "crm"})])
    assert cursor_names(tmp_path / "spool" / SHARD) == ["crm"]  # it is not this process's to remove
