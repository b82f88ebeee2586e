import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

BROKEN = """\
server:
  lisen: 127.0.0.1:4000
auth: {mode: keys, keys: [{id: web, key: hunter2-hunter2}]}
pipeline:
  - type: sample
    rate: 7
sinks:
  archive: {type: file, path: var/events}
  crm: {type: htpp, url: "https://crm.example.org"}
log: {level: loud}
"""


def test_check_tells_every_mistake_on_a_line_and_exits_78(edge: Any, tmp_path: Path) -> None:
    path = tmp_path / "edge.yaml"
    path.write_text(BROKEN)
    result = edge("check", "-c", path)
    assert result.exit_code == 78
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert [line.split(" ")[:2] for line in lines] == [
        [f"{path}:2:", "server.lisen:"],
        [f"{path}:6:", "pipeline[0].rate:"],
        [f"{path}:9:", "sinks.crm.type:"],
        [f"{path}:10:", "log.level:"],
    ]
    assert lines[0] == f"{path}:2: server.lisen: is not a known option; did you mean listen?"
    assert lines[3] == f"{path}:10: log.level: must be one of: debug, info, warning, error"
    assert "hunter2" not in result.stderr


def test_check_of_a_missing_file_says_how_to_make_one(edge: Any) -> None:
    result = edge("check", "-c", "nowhere.yaml")
    assert result.exit_code == 78
    assert result.stderr.splitlines()[-1] == "edge: `edge init nowhere.yaml` writes a configuration to start from"


def test_check_names_the_component_that_cannot_be_built(edge: Any, config_path: Any, monkeypatch: Any) -> None:
    from edge_plugins.sinks.file import File

    def needs_library(self: object, id: str, options: object) -> None:
        raise ImportError("install edge-gateway[kafka]")

    monkeypatch.setattr(File, "__init__", needs_library)
    path = config_path()
    result = edge("check", "-c", path)
    assert result.exit_code == 78
    [line] = result.stderr.splitlines()
    assert line.startswith(f"{path}:")
    assert "sinks.archive: sink archive needs a library" in line
    assert line.endswith("install edge-gateway[kafka]")


def test_check_names_every_component_that_cannot_be_built(edge: Any, config_path: Any, monkeypatch: Any) -> None:
    from edge_plugins.enrichers.received_at import ReceivedAt
    from edge_plugins.sinks.file import File

    def no_spout(self: object, id: str, options: object) -> None:
        raise RuntimeError("no\nspout \x1b[2J")

    monkeypatch.setattr(File, "__init__", no_spout)
    monkeypatch.setattr(ReceivedAt, "__init__", no_spout)
    path = config_path(pipeline=[{"type": "received_at"}, {"type": "sample", "rate": 1}])
    result = edge("check", "-c", path)
    assert result.exit_code == 78
    assert "\x1b" not in result.stderr
    lines = result.stderr.splitlines()
    assert [line.split(": ")[1:3] for line in lines] == [
        ["pipeline[0]", "enricher received_at cannot be built"],
        ["sinks.archive", "sink archive cannot be built"],
    ]
    assert all(line.startswith(f"{path}:") and line.endswith("; check its options, or remove it") for line in lines)
    assert edge("explain", "/dev/null", "-c", path).stderr == result.stderr


def test_check_print_shows_everything_and_no_secret(edge: Any, config_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("CRM_TOKEN", "opensesame-1")
    path = config_path(
        admin={"token": "opensesame-2"},
        auth={"keys": [{"id": "web", "key": "opensesame-3"}, {"id": "app", "key_sha256": "ab" * 32}]},
        sinks={
            "crm": {
                "type": "http",
                "url": "https://crm.example.org/hook",
                "headers": {"X-Site": "${CRM_TOKEN}", "Authorization": "Bearer opensesame-4"},
            }
        },
    )
    result = edge("check", "--print", "-c", path)
    assert result.exit_code == 0, result.stderr
    assert "opensesame" not in result.output
    assert "abab" not in result.output
    shown = yaml.safe_load(result.stdout)
    assert shown["admin"]["token"] == "***"
    assert [key["id"] for key in shown["auth"]["keys"]] == ["web", "app"]
    assert shown["sinks"]["crm"]["retry"] == {"initial_secs": 0.5, "max_secs": 60, "give_up_secs": None}
    assert shown["server"]["limits"]["depth"] == 32


def test_configuration_comes_from_the_environment_too(edge: Any, config_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("EDGE_CONFIG", str(config_path()))
    assert edge("check").stdout == "ok: 1 sink, 0 components, 1 key\n"


def test_check_without_authentication_says_so(edge: Any, config_path: Any) -> None:
    assert edge("check", "-c", config_path(auth={"mode": "none"})).stdout == "ok: 1 sink, 0 components, no keys\n"


def test_check_as_a_process_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "edge.yaml"
    path.write_text(BROKEN)
    command = [sys.executable, "-m", "edge.cli", "check", "--config", str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "TERM": "xterm"}, timeout=30
    )
    assert done.returncode == 78
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 4
    assert "\x1b" not in done.stderr


def test_a_command_line_that_cannot_be_understood_is_exit_2(edge: Any) -> None:
    assert edge("chek").exit_code == 2
    assert edge("check", "--colour").exit_code == 2


def test_check_prints_what_the_cap_of_the_spool_comes_to(edge: Any, config_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("edge.spool.capacity.DEFAULT_BYTES", 7 << 20)
    result = edge("check", "--print", "-c", config_path())
    assert yaml.safe_load(result.stdout)["spool"]["max_bytes"] == 7 << 20
    result = edge("check", "--print", "-c", config_path(spool={"max_bytes": 9 << 20}))
    assert yaml.safe_load(result.stdout)["spool"]["max_bytes"] == 9 << 20
