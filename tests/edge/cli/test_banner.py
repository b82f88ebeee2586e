import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from edge.cli.banner import DEMO_KEY, banner, curl, key_hint
from edge.config import load
from edge.validation import EventValidator

DEFAULT = Path(__file__).parents[3] / "config" / "edge.yaml"


@pytest.fixture
def default(registry: Any) -> Any:
    return load(DEFAULT, registry, {})


def event_of(command: str) -> Any:
    words = shlex.split(command)
    return json.loads(words[words.index("-d") + 1])


def test_banner_says_where_it_listens_what_to_try_and_where_events_land(default: Any) -> None:
    text = banner(default, {"ingest": ["127.0.0.1:4000"], "admin": ["127.0.0.1:4001"]})
    assert "http://127.0.0.1:4000" in text
    assert "http://127.0.0.1:4001/metrics" in text
    assert "var/events" in text
    assert "Ctrl-C drains and stops" in text
    assert 'curl -X POST http://localhost:4000/ingest -H "Content-Type: application/json"' in text
    assert f'-H "X-API-Key: {DEMO_KEY}"' in text


def test_curl_line_is_one_line_with_a_valid_event(default: Any) -> None:
    command = curl(default, "127.0.0.1:4000", key_hint(default))
    assert "\n" not in command
    assert EventValidator("reject", ()).validate(event_of(command))[1] == []


def test_curl_line_has_what_the_site_requires(registry: Any, config_path: Any) -> None:
    required = ("device_type", "platform", "network_type", "extras", "experiments", "referrer", "location")
    config = load(config_path(schema={"required": list(required)}), registry, {})
    event = event_of(curl(config, "127.0.0.1:4000", "k"))
    assert EventValidator("reject", required).validate(event)[1] == []


def test_key_is_shown_only_when_everybody_knows_it(registry: Any, default: Any, config_path: Any) -> None:
    assert key_hint(default) == DEMO_KEY
    own = load(config_path(), registry, {})
    assert key_hint(own) == "$EDGE_KEY"
    assert "EDGE_KEY" in banner(own, {})
    nobody = load(config_path(auth={"mode": "none"}), registry, {})
    assert key_hint(nobody) == ""
    assert "X-API-Key" not in banner(nobody, {})


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("0.0.0.0:80", "http://localhost:80/ingest"),
        ("[::]:80", "http://localhost:80/ingest"),
        ("[2001:db8::1]:80", "http://[2001:db8::1]:80/ingest"),
        ("10.0.0.7:4000", "http://10.0.0.7:4000/ingest"),
        ("unix:/run/edge.sock", "--unix-socket /run/edge.sock http://localhost/ingest"),
    ],
)
def test_curl_line_reaches_every_kind_of_address(default: Any, address: str, target: str) -> None:
    assert curl(default, address, "k").startswith(f"curl -X POST {target} ")


def test_banner_keeps_credentials_of_a_target_to_itself(registry: Any, config_path: Any) -> None:
    config = load(config_path(sinks={"crm": {"type": "http", "url": "https://crm.example.org/hook?k=1"}}), registry, {})
    options = {**config.sinks[0].component.options, "url": "https://user:opensesame@crm.example.org/hook?k=opensesame"}
    component = dataclasses.replace(config.sinks[0].component, options=options)
    sink = dataclasses.replace(config.sinks[0], component=component)
    text = banner(dataclasses.replace(config, sinks=(sink,)), {})
    assert "https://crm.example.org  (crm)" in text
    assert "opensesame" not in text
