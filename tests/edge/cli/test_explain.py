import json
from pathlib import Path
from typing import Any

import pytest

PIPELINE = [
    {"type": "received_at"},
    {"type": "drop", "id": "drop_heartbeats", "when": {"event_type": "heartbeat"}},
    {"type": "client_ip", "when": {"platform": "web"}},
    {"type": "request_headers", "headers": ["User-Agent"]},
]


def rows(stdout: str) -> dict[str, list[str]]:
    """Return the lines of the table of components by id."""
    lines = [line.split("\t") for line in stdout.splitlines() if "\t" in line]
    assert lines[0] == ["component", "type", "kind", "did", "what"]
    return {line[0]: line[1:] for line in lines[1:]}


@pytest.fixture
def site(config_path: Any, tmp_path: Path) -> Path:
    path: Path = config_path(
        pipeline=PIPELINE,
        sinks={
            "archive": {"type": "file", "path": str(tmp_path / "events")},
            "crm": {"type": "http", "url": "http://127.0.0.1:9/", "when": {"event_type": "purchase"}},
        },
    )
    return path


def test_explain_tells_what_each_component_did_and_who_gets_the_event(edge: Any, site: Path, event_file: Any) -> None:
    result = edge("explain", event_file(), "-c", site, "--header", "User-Agent: curl/8", "--header", "Other: x")
    assert result.exit_code == 0, result.stderr
    table = rows(result.stdout)
    assert table["received_at"][2] == "set"
    assert table["drop_heartbeats"][2:] == ["not asked", "its when does not match"]
    assert table["client_ip"][2] == "not asked"
    assert table["request_headers"][2:] == ["set", 'request_headers={"user-agent": "curl/8"}']
    lines = result.stdout.splitlines()
    assert "outcome: accepted" in lines
    assert "sink archive (file): gets it" in lines
    assert "sink crm (http): skipped by its when" in lines
    assert json.loads(lines[-1])["request_headers"] == {"user-agent": "curl/8"}


def test_explain_stores_and_delivers_nothing(edge: Any, site: Path, event_file: Any, tmp_path: Path) -> None:
    event = event_file()
    before = sorted(tmp_path.iterdir())
    assert edge("explain", event, "-c", site).exit_code == 0
    assert sorted(tmp_path.iterdir()) == before


def test_explain_tells_which_component_dropped_the_event(edge: Any, site: Path, event_file: Any) -> None:
    result = edge("explain", event_file(event_type="heartbeat"), "-c", site)
    assert result.exit_code == 0
    assert rows(result.stdout)["drop_heartbeats"][2:] == ["dropped", "reason drop_heartbeats.matched"]
    lines = result.stdout.splitlines()
    assert "2 more components not reached" in lines
    assert "outcome: filtered (drop_heartbeats.matched)" in lines
    assert lines[-1] == "answer: 200, and nothing is stored"


@pytest.mark.parametrize(
    ("raw", "error", "code"),
    [
        (b'{"event_id": 7}', "Invalid event", "validation.type"),
        (b'{"event_id": ', "Invalid JSON", "json.syntax"),
        (b'"\xff"', "Invalid JSON", "json.encoding"),
        (b"[" * 100 + b"]" * 100, "Invalid JSON", "json.limit"),
        (b'{"event_id": "' + b"x" * 70_000 + b'"}', "Payload too large", "limit.event"),
    ],
)
def test_explain_prints_the_answer_that_an_invalid_event_gets(
    edge: Any, site: Path, raw: bytes, error: str, code: str
) -> None:
    result = edge("explain", "-", "-c", site, stdin=raw)
    assert result.exit_code == 1
    first, _, answer = result.stdout.partition("\n")
    assert first == f"invalid: the sender is answered {413 if code == 'limit.event' else 400}"
    body = json.loads(answer)
    assert body["error"] == error
    assert code in {detail["code"] for detail in body["details"]}


def test_explain_shows_a_component_that_fails(edge: Any, site: Path, event_file: Any, monkeypatch: Any) -> None:
    from edge_plugins.enrichers import received_at

    monkeypatch.setattr(received_at, "UTC", "not a time zone")
    result = edge("explain", event_file(), "-c", site)
    assert result.exit_code == 0
    kind, did, what = rows(result.stdout)["received_at"][1:]
    assert (kind, did) == ("enricher", "error")
    assert what.startswith("TypeError: ")


def test_explain_refuses_a_header_without_a_value(edge: Any, site: Path, event_file: Any) -> None:
    assert edge("explain", event_file(), "-c", site, "--header", "nonsense").exit_code == 2


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--remote-ip", "999.1.1.1", "write an IP address"),
        ("--remote-ip", "localhost", "write an IP address"),
        ("--key-id", "webb", "no such key; known: test"),
        ("--header", ": x", "write NAME:VALUE"),
    ],
)
def test_explain_refuses_options_that_no_request_could_have(
    edge: Any, site: Path, event_file: Any, option: str, value: str, told: str
) -> None:
    result = edge("explain", event_file(), "-c", site, option, value)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr


def test_explain_knows_the_key_of_a_gateway_without_keys(edge: Any, config_path: Any, event_file: Any) -> None:
    path = config_path(auth={"mode": "none"})
    assert edge("explain", event_file(), "-c", path, "--key-id", "anonymous").exit_code == 0
    assert "known: anonymous" in edge("explain", event_file(), "-c", path, "--key-id", "web").stderr


@pytest.mark.parametrize(
    ("peer", "stored"),
    [("192.0.2.7", "192.0.2.7"), ("10.0.0.1", "203.0.113.9"), ("2001:db8::1", "2001:db8::1")],
)
def test_explain_believes_forwarded_addresses_of_trusted_proxies_only(
    edge: Any, config_path: Any, event_file: Any, peer: str, stored: str
) -> None:
    path = config_path(pipeline=[{"type": "client_ip"}], server={"trusted_proxies": ["10.0.0.0/8"]})
    forwarded = ("--header", "X-Forwarded-For: 198.51.100.1, 203.0.113.9", "--header", "X-Forwarded-For: 10.1.1.1")
    result = edge("explain", event_file(), "-c", path, "--remote-ip", peer, *forwarded)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["client_ip"] == stored


def test_explain_measures_an_event_as_the_door_does(edge: Any, config_path: Any, event_file: Any) -> None:
    # White space on the way is not part of the event.
    path = config_path(server={"limits": {"event_bytes": 1000}})
    raw = event_file().read_bytes() + b" " * 1000
    assert edge("explain", "-", "-c", path, stdin=raw).exit_code == 0


def test_explain_escapes_what_could_steer_a_terminal(edge: Any, site: Path, event_file: Any) -> None:
    result = edge("explain", event_file(page_name="\u202e\x9b2J"), "-c", site)
    assert result.exit_code == 0
    assert "\u202e" not in result.stdout
    assert "\x9b" not in result.stdout
    assert "\\u202e" in result.stdout
