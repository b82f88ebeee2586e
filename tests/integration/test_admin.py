"""The admin listener over real sockets."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from edge.delivery.dead_letters import DeadLetterReason, DeadLetterStore, Letter
from edge.http.admin_handler import names_this_machine
from edge.http.server import listen
from edge.metrics import TABLE
from edge.spool.errors import SpoolFullError


async def test_all_metric_names_are_there_at_the_first_scrape(launch: Any) -> None:
    gateway = await launch()
    response = await gateway.fetch("GET", "/metrics", admin=True)
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    text = response.body.decode()
    for row in TABLE:
        assert f"# TYPE {row.name} " in text, row.name
        assert row.help in text


async def test_openmetrics_is_served_when_asked_for(launch: Any) -> None:
    gateway = await launch()
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    response = await gateway.fetch("GET", "/metrics", admin=True, headers=accept)
    assert response.headers["Content-Type"].startswith("application/openmetrics-text")
    assert response.body.endswith(b"# EOF\n")


@pytest.mark.parametrize("name", ["edge_build_info", "edge_sink_pending_events"])
async def test_metrics_can_be_picked_by_name(launch: Any, name: str) -> None:
    gateway = await launch()
    response = await gateway.fetch("GET", f"/metrics?name[]={name}", admin=True)
    lines = [line for line in response.body.decode().splitlines() if not line.startswith("#")]
    assert len(lines) == 1
    assert lines[0].startswith(f"{name}{{")


async def test_what_documented_alerts_look_for_is_there_before_the_first_incident(launch: Any) -> None:
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    selectors = re.findall(r"increase\((\w+)(?:\{([^}]*)\})?\[", page)
    assert len(selectors) > 4
    gateway = await launch(pipeline=[{"type": "received_at"}])
    samples = await gateway.metrics()
    for name, labels in selectors:
        wanted = [label for label in labels.split(",") if label]
        series = [sample for sample in samples if sample.partition("{")[0] == name]
        assert [one for one in series if all(label in one for label in wanted)], (name, labels)


async def test_readyz_names_its_checks(launch: Any, tmp_path: Any) -> None:
    sinks = {"archive": {"type": "blackhole", "required": True}}
    gateway = await launch(sinks=sinks)
    response = await gateway.fetch("GET", "/readyz", admin=True)
    body = json.loads(response.body)
    assert (response.code, body["status"]) == (200, "pass")
    assert set(body["checks"]) == {"spool", "draining", "sink:archive"}


async def test_readyz_fails_while_a_required_sink_is_down(
    launch: Any, free_port: int, example_event: Any, eventually: Any, expect_log: list[str]
) -> None:
    expect_log.append("circuit")
    sinks = {
        "crm": {
            "type": "http",
            "url": f"http://127.0.0.1:{free_port}/",
            "required": True,
            "batch": {"max_age_secs": 0.01},
            "retry": {"initial_secs": 0.01, "max_secs": 0.02},
        }
    }
    gateway = await launch(sinks=sinks)
    await gateway.post("/ingest", example_event)

    async def not_ready() -> bool:
        return (await gateway.fetch("GET", "/readyz", admin=True)).code == 503

    await eventually(not_ready)
    assert (await gateway.post("/ingest", example_event)).code == 200


async def test_admin_asks_for_its_token(launch: Any) -> None:
    gateway = await launch(admin={"token": "admin-token-1"})
    for path in ("/metrics", "/readyz", "/healthz", "/nowhere"):
        response = await gateway.fetch("GET", path, admin=True)
        assert response.code == 401, path
        response = await gateway.fetch("GET", path, admin=True, headers={"Authorization": "Bearer wrong"})
        assert response.code == 401
    response = await gateway.fetch("GET", "/metrics", admin=True, headers={"Authorization": "Bearer admin-token-1"})
    assert response.code == 200


async def test_admin_routes_answer_unknown_paths_and_methods(launch: Any) -> None:
    gateway = await launch()
    response = await gateway.fetch("GET", "/ingest", admin=True)
    assert (response.code, json.loads(response.body)["error"]) == (404, "Not found")
    response = await gateway.fetch("POST", "/metrics", b"", admin=True)
    assert (response.code, response.headers["Allow"]) == (405, "GET, HEAD")
    for method in ("GET", "DELETE", "OPTIONS", "BREW"):
        response = await gateway.fetch(method, "/reload", admin=True)
        assert (response.code, response.headers["Allow"]) == (405, "POST"), method


async def test_reload_over_http_keeps_the_old_configuration_when_the_new_one_is_wrong(
    launch: Any, config_path: Any, example_event: Any, expect_log: list[str]
) -> None:
    expect_log.append("the old one goes on")
    gateway = await launch()
    config_path(schema={"unknown_fields": "rejekt"})
    response = await gateway.fetch("POST", "/reload", b"", admin=True)
    assert response.code == 409
    assert "unknown_fields" in json.loads(response.body)["details"][0]["message"]
    assert (await gateway.metrics())["edge_config_last_reload_successful"] == 0
    assert (await gateway.post("/ingest", {**example_event, "extra": 1})).code == 400
    config_path(schema={"unknown_fields": "keep"})
    assert (await gateway.fetch("POST", "/reload", b"", admin=True)).code == 200
    assert (await gateway.post("/ingest", {**example_event, "extra": 1})).code == 200
    assert (await gateway.metrics())["edge_config_last_reload_successful"] == 1


def detail(response: Any) -> dict[str, str]:
    """Return the one detail of an answer that is not a success, checking its shape."""
    body = json.loads(response.body)
    assert set(body) == {"error", "details"}
    (found,) = body["details"]
    assert set(found) == {"field", "message", "code"}
    return found


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:4001"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Host": "evil.example"},
        {"Host": "evil.example:4001"},
        {"Host": "localhost.evil.example:4001"},
        {"Host": "192.0.2.7:4001"},
        {"Host": "127.0.0.1.evil.example"},
    ],
    ids=lambda headers: "-".join((*headers, *headers.values())),
)
async def test_admin_refuses_what_a_web_page_could_send(launch: Any, headers: dict[str, str]) -> None:
    gateway = await launch()
    for method, path, body in (
        ("GET", "/metrics", None),
        ("POST", "/reload", b""),
        ("POST", "/dead-letters/drop", b'{"sink": "archive", "all": true}'),
    ):
        response = await gateway.fetch(method, path, body, admin=True, headers=headers)
        assert (response.code, json.loads(response.body)["error"]) == (403, "Forbidden"), path
        assert detail(response)["code"] == "auth.origin"
        assert detail(response)["field"] == next(iter(headers))
    assert gateway.gateway.worker("archive") is not None


async def test_admin_refuses_pages_also_when_they_know_the_token(launch: Any) -> None:
    gateway = await launch(admin={"token": "admin-token-1"})
    headers = {"Authorization": "Bearer admin-token-1"}
    response = await gateway.fetch("GET", "/metrics", admin=True, headers={**headers, "Origin": "https://a.example"})
    assert response.code == 403


async def test_admin_answers_to_any_name_for_who_has_the_token(launch: Any) -> None:
    gateway = await launch(admin={"token": "admin-token-1"})
    host = {"Host": "gateway.example.org:4001"}
    assert (await gateway.fetch("GET", "/readyz", admin=True, headers=host)).code == 401
    headers = {**host, "Authorization": "Bearer admin-token-1"}
    assert (await gateway.fetch("GET", "/readyz", admin=True, headers=headers)).code == 200


async def test_admin_answers_to_any_name_over_a_unix_socket(launch: Any, tmp_path: Path) -> None:
    gateway = await launch()
    path = tmp_path / "admin.sock"
    gateway.process._admin.add_sockets(listen([f"unix:{path}"]))
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: whatever\r\nConnection: close\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("localhost", True),
        ("LOCALHOST:4001", True),
        ("127.0.0.1", True),
        ("127.0.0.2:80", True),
        ("[::1]", True),
        ("[::1]:4001", True),
        ("", False),
        ("localhost.", False),
        ("localhost:4001:1", False),
        ("localhost:x", False),
        ("[::2]:4001", False),
        ("0.0.0.0", False),
        ("2130706433", False),
        ("a@localhost", False),
    ],
)
def test_host_names_this_machine_or_another(host: str, is_ours: bool) -> None:
    assert names_this_machine(host) is is_ours


@pytest.mark.parametrize(
    "media_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        None,
    ],
)
async def test_admin_takes_no_body_that_is_not_said_to_be_json(launch: Any, raw: Any, media_type: str | None) -> None:
    gateway = await launch()
    head = "POST /dead-letters/drop HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 4\r\n"
    head += f"Content-Type: {media_type}\r\n" if media_type else ""
    answer = await raw(gateway.admin_port, head.encode() + b"\r\n--x\n")
    assert answer.startswith(b"HTTP/1.1 415 ")
    assert b"http.media_type" in answer
    assert (await gateway.fetch("POST", "/reload", b"", admin=True, headers={"Content-Type": None})).code == 200


async def test_metrics_names_that_are_not_utf8_are_a_bad_request(launch: Any) -> None:
    gateway = await launch()
    response = await gateway.fetch("GET", "/metrics?name[]=%ff", admin=True)
    assert (response.code, json.loads(response.body)["error"]) == (400, "Bad request")
    assert detail(response) == {"field": "name[]", "message": "must be UTF-8", "code": "http.malformed"}


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
async def test_head_is_get_without_the_body(launch: Any, path: str) -> None:
    gateway = await launch()
    full, head = [await gateway.fetch(method, path, admin=True) for method in ("GET", "HEAD")]
    assert (head.code, head.body) == (full.code, b"")
    assert head.headers["Content-Type"] == full.headers["Content-Type"]
    assert int(head.headers["Content-Length"]) > 0


async def test_every_admin_answer_has_a_request_id(launch: Any) -> None:
    gateway = await launch()
    for method, path in (("GET", "/metrics"), ("GET", "/nowhere"), ("PUT", "/reload"), ("GET", "/metrics?name[]=%ff")):
        response = await gateway.fetch(method, path, admin=True)
        assert len(response.headers["X-Request-Id"]) == 16
        response = await gateway.fetch(method, path, admin=True, headers={"X-Request-Id": "mine-1"})
        assert response.headers["X-Request-Id"] == "mine-1"


@pytest.mark.parametrize("framing", ["length", "chunks", "expect"])
async def test_admin_body_over_the_limit_is_a_413_in_the_common_shape(launch: Any, raw: Any, framing: str) -> None:
    gateway = await launch()
    head = b"POST /dead-letters/drop HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    request = {
        "length": head + b"Content-Length: 1200000\r\n\r\n" + b" " * 1_200_000,
        "chunks": head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 17 + b"0\r\n\r\n",
        "expect": head + b"Expect: 100-continue\r\nContent-Length: 1200000\r\n\r\n",
    }[framing]
    answer = await raw(gateway.admin_port, request, timeout_secs=5)
    top, _, body = answer.partition(b"\r\n\r\n")
    assert top.startswith(b"HTTP/1.1 413 ")
    assert json.loads(body) == {
        "error": "Payload too large",
        "details": [{"field": "body", "message": "must be at most 1048576 bytes", "code": "limit.body"}],
    }


async def bury(folder: Path, sink: str, count: int) -> None:
    """Put dead letters into the store of a sink, numbered from 0."""
    store = DeadLetterStore(folder, sink, segment_bytes=1 << 16, max_bytes=1 << 20)
    now = datetime.now(UTC)
    letters = [
        Letter(
            line=json.dumps({"event_id": f"{sink}-{number}"}).encode(),
            meta={"key": "test", "received_at": now.isoformat(), "request_id": "r"},
            reason=DeadLetterReason.PERMANENT,
            attempts=1,
            first_error="HTTP 400",
            last_error="HTTP 400",
            died_at=now,
        )
        for number in range(count)
    ]
    await store.add(letters)
    await store.close()


async def move(gateway: Any, action: str, **body: Any) -> tuple[int, Any]:
    """Ask for dead letters to be moved; return the status and the answer."""
    response = await gateway.fetch("POST", f"/dead-letters/{action}", body, admin=True)
    return response.code, json.loads(response.body)


async def test_drop_of_everything_of_a_sink_must_be_meant(launch: Any, tmp_path: Path) -> None:
    await bury(tmp_path / "dead-letters", "archive", 3)
    gateway = await launch()
    code, body = await move(gateway, "drop", sink="archive")
    assert (code, body["error"], body["details"][0]["field"]) == (400, "Bad request", "all")
    assert (await move(gateway, "drop", sink="archive", all=False))[0] == 400
    assert (await move(gateway, "drop", sink="archive", dry_run=True))[1]["matched"] == 3
    assert (await move(gateway, "drop", sink="archive", seqs=[1]))[1]["moved"] == 1
    assert (await move(gateway, "drop", sink="archive", all=True))[1]["moved"] == 2


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"sink": "archive", "dry_run": "yes"}, "dry_run"),
        ({"sink": "archive", "dry_run": 1}, "dry_run"),
        ({"sink": "archive", "dry_run": None}, "dry_run"),
        ({"sink": "archive", "all": "true"}, "all"),
        ({"sink": 7}, "sink"),
        ({}, "sink"),
        ({"sink": "archive", "evnt_id": "x"}, "evnt_id"),
        ({"sink": "archive", "since": "yesterday"}, "since"),
        ({"sink": "archive", "seqs": [True]}, "seqs"),
        ([], "body"),
    ],
)
async def test_body_that_does_not_say_what_to_do_moves_nothing(
    launch: Any, tmp_path: Path, body: Any, field: str
) -> None:
    await bury(tmp_path / "dead-letters", "archive", 1)
    gateway = await launch()
    response = await gateway.fetch("POST", "/dead-letters/drop", body, admin=True)
    assert (response.code, detail(response)["field"]) == (400, field)
    assert (await move(gateway, "drop", sink="archive", dry_run=True))[1]["matched"] == 1


async def test_replay_that_the_spool_refuses_is_to_be_asked_for_again(
    launch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expect_log: list[str]
) -> None:
    expect_log.append("dead letters could not be moved")
    await bury(tmp_path / "dead-letters", "archive", 250)
    gateway = await launch()
    append, taken = gateway.gateway.spool.append, []

    def full_after_a_page(*args: Any) -> Any:
        taken.append(args)
        if len(taken) > 200:
            raise SpoolFullError("there is no room on the disk")
        return append(*args)

    monkeypatch.setattr(gateway.gateway.spool, "append", full_after_a_page)
    response = await gateway.fetch("POST", "/dead-letters/replay", {"sink": "archive"}, admin=True)
    assert response.code == 503
    assert int(response.headers["Retry-After"]) > 0
    assert json.loads(response.body) == {
        "error": "Service unavailable",
        "details": [
            {
                "field": "gateway",
                "message": "cannot go on: there is no room on the disk; 200 dead letters of this request were replayed",
                "code": "busy.full",
            }
        ],
        "moved": 200,
    }
    monkeypatch.setattr(gateway.gateway.spool, "append", append)
    assert (await move(gateway, "replay", sink="archive"))[1]["moved"] == 50


async def test_drop_that_the_disk_refuses_is_to_be_asked_for_again(
    launch: Any, tmp_path: Path, expect_log: list[str]
) -> None:
    expect_log.append("dead letters could not be moved")
    await bury(tmp_path / "dead-letters", "archive", 1)
    gateway = await launch()
    lock = tmp_path / "dead-letters" / "archive" / "LOCK"
    lock.unlink()
    lock.mkdir()
    response = await gateway.fetch("POST", "/dead-letters/drop", {"sink": "archive", "all": True}, admin=True)
    assert (response.code, "Retry-After" in response.headers) == (503, True)
    assert json.loads(response.body)["moved"] == 0


async def test_letters_of_a_sink_that_is_not_configured_can_be_dropped_and_not_replayed(
    launch: Any, tmp_path: Path
) -> None:
    await bury(tmp_path / "dead-letters", "former", 2)
    gateway = await launch()
    code, body = await move(gateway, "replay", sink="former")
    assert (code, body["details"][0]["field"]) == (404, "sink")
    assert body["details"][0]["message"].startswith("is not configured")
    assert (await move(gateway, "drop", sink="former", dry_run=True))[1]["matched"] == 2
    for expected in (1, 0):
        assert (await move(gateway, "drop", sink="former", event_id="former-1"))[1]["moved"] == expected
    assert (await move(gateway, "drop", sink="former", all=True))[1]["moved"] == 1
    for sink in ("nobody", "../spool", "../dead-letters/former", "/etc"):
        assert (await move(gateway, "drop", sink=sink, all=True))[0] == 404, sink


async def test_letters_of_a_sink_that_keeps_none_any_more_can_be_dropped_and_replayed(
    launch: Any, tmp_path: Path, eventually: Any
) -> None:
    await bury(tmp_path / "dead-letters", "archive", 2)
    sink = {"type": "file", "path": str(tmp_path / "events"), "batch": {"max_age_secs": 0.02}, "dead_letter": False}
    gateway = await launch(sinks={"archive": sink})
    assert (await move(gateway, "drop", sink="archive", seqs=[0]))[1]["moved"] == 1
    assert (await move(gateway, "replay", sink="archive"))[1]["moved"] == 1

    def delivered() -> bool:
        return any(b"archive-1" in path.read_bytes() for path in (tmp_path / "events").rglob("*.ndjson*"))

    await eventually(delivered)
