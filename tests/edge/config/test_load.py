"""What a good file comes to: the frozen configuration, its defaults, the addresses and options it may hold."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.config import GatewayConfig, describe_common, describe_component, describe_file, effective, load
from edge.config.addresses import Address, AddressError, check_network, check_origin, parse_address
from edge.config.model import BatchOptions, DeadLetters, Key, Limits, RateLimit, RetryOptions
from edge.config.schema import OPTIONAL_EVENT_FIELDS
from edge.registry import Registry
from edge.validation import _OPTIONAL_FIELDS

CONFIG = Path(__file__).parents[3] / "config"
FILES = sorted(CONFIG.rglob("*.yaml"))
BASE = "auth: {mode: none}\nsinks:\n  pot: {type: teapot, spout: x}\n"


def test_defaults_are_those_of_the_design(load_text: Callable[..., GatewayConfig]) -> None:
    config = load_text(BASE)
    assert config.server.listen == ("127.0.0.1:4000",)
    assert config.server.http == "fast"
    assert config.server.limits == Limits(
        body_bytes=1048576,
        decompressed_bytes=4194304,
        decompressed_ratio=100,
        event_bytes=65536,
        batch_events=1000,
        depth=32,
        header_bytes=16384,
        connections=8000,
        inflight_bytes=67108864,
        idle_secs=20,
        body_bytes_per_sec=8192,
    )
    assert config.admin.listen == ("127.0.0.1:4001",)
    assert config.admin.token == ""
    assert (config.spool.path, config.spool.durability) == (Path("var/spool"), "disk")
    assert (config.spool.segment_bytes, config.spool.max_bytes, config.spool.retain_secs) == (67108864, None, 0)
    assert config.dead_letters == DeadLetters(Path("var/dead-letters"), 4194304, 1073741824)
    assert (config.schema.unknown_fields, config.schema.required) == ("reject", ())
    assert (config.log.level, config.log.format) == ("info", "auto")
    assert (config.server.pre_stop_secs, config.server.drain_timeout_secs) == (0, 10)
    assert config.pipeline == ()


def test_sink_has_its_class_defaults_before_the_common_ones(load_text: Callable[..., GatewayConfig]) -> None:
    (sink,) = load_text(BASE).sinks
    assert sink.id == "pot"
    assert sink.batch == BatchOptions(4, 1048576, 0.2)
    assert sink.retry == RetryOptions(0.5, 60, None)
    assert (sink.timeout_secs, sink.dead_letter, sink.required) == (30, True, False)
    (sink,) = load_text(BASE.replace("spout: x", "spout: x, batch: {max_age_secs: 1}, timeout_secs: 2")).sinks
    assert sink.batch == BatchOptions(4, 1048576, 1)
    assert sink.timeout_secs == 2


def test_component_options_are_checked_and_read_only(load_text: Callable[..., GatewayConfig]) -> None:
    options: Any = load_text(BASE).sinks[0].component.options
    assert dict(options) == {
        "spout": "x", "sugar": 1, "milk": "none", "kettle": {"watts": 2000}, "headers": {}, "guests": [],
    }  # fmt: skip
    with pytest.raises(TypeError):
        options["spout"] = "y"


def test_steps_keep_their_order_ids_and_lines(load_text: Callable[..., GatewayConfig]) -> None:
    text = (
        BASE
        + "pipeline:\n  - type: stamp\n  - type: stamp\n    id: again\n    on_error: reject\n"
        + "  - {type: remove, when: {a: 1}}\n"
    )
    config = load_text(text)
    assert [(step.kind, step.type, step.id, step.on_error) for step in config.pipeline] == [
        ("enricher", "stamp", "stamp", "skip"),
        ("enricher", "stamp", "again", "reject"),
        ("filter", "remove", "remove", "skip"),
    ]
    assert [step.where.rpartition(":")[2] for step in config.pipeline] == ["5", "6", "9"]
    assert config.pipeline[2].when is not None
    assert config.pipeline[2].when({"a": 1})
    assert config.pipeline[2].when_source == {"a": 1}


def test_keys_are_kept_as_digests(load_text: Callable[..., GatewayConfig]) -> None:
    digest = hashlib.sha256(b"other").hexdigest()
    text = (
        "auth:\n  keys:\n    - {id: a, key: one, rate_limit: {events_per_sec: 2.5}}\n"
        f"    - {{id: b, key_sha256: {digest.upper()}, browser: true, allow_origins: ['https://a.org'],"
        " scopes: [batch], rate_limit: {events_per_sec: 2, burst_events: 9}}\n"
    )
    config = load_text(text + "sinks: {pot: {type: teapot, spout: x}}\n")
    assert config.auth.keys == (
        Key(
            id="a",
            key_sha256=hashlib.sha256(b"one").hexdigest(),
            browser=False,
            allow_origins=(),
            scopes=frozenset({"ingest", "batch"}),
            rate_limit=RateLimit(2.5, 5),
        ),
        Key(
            id="b",
            key_sha256=digest,
            browser=True,
            allow_origins=("https://a.org",),
            scopes=frozenset({"batch"}),
            rate_limit=RateLimit(2, 9),
        ),
    )


def test_demo_key_may_be_used_on_loopback_only(load_text: Callable[..., GatewayConfig]) -> None:
    text = "auth: {keys: [{id: a, key: your_api_key}]}\nsinks: {pot: {type: teapot, spout: x}}\n"
    for listen in ("localhost:1", "127.8.9.1:1", "'[::1]:1'", "unix:/tmp/x.sock", "[127.0.0.1:1, unix:y.sock]"):
        assert load_text(text + f"server: {{listen: {listen}}}\n").auth.mode == "keys"


def test_sections_written_without_options_have_their_defaults(load_text: Callable[..., GatewayConfig]) -> None:
    config = load_text(BASE + "server:\nadmin:\nspool:\npipeline:\nlog:\nschema:\n  required:\n")
    assert config == load_text(BASE)


def test_paths_are_kept_as_they_are_written(load_text: Callable[..., GatewayConfig]) -> None:
    config = load_text(BASE + "spool: {path: ../x}\ndead_letters: {path: /var/y}\n")
    assert (config.spool.path, config.dead_letters.path) == (Path("../x"), Path("/var/y"))


def test_tls_files_that_exist_are_taken(load_text: Callable[..., GatewayConfig], tmp_path: Path) -> None:
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("")
    text = f"server: {{tls: {{cert_file: {tmp_path}/cert.pem, key_file: {tmp_path}/key.pem}}}}\n"
    tls = load_text(BASE + text).server.tls
    assert tls is not None
    assert tls.key_file == tmp_path / "key.pem"


def _dataclasses(value: object) -> Iterator[Any]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield value
        for field in dataclasses.fields(value):
            yield from _dataclasses(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from _dataclasses(item)


def test_configuration_is_frozen_throughout(registry: Registry) -> None:
    config = load(CONFIG / "examples" / "behind-a-proxy.yaml", registry, {})
    found = list(_dataclasses(config))
    assert len(found) > 15
    for part in found:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, dataclasses.fields(part)[0].name, None)
        for field in dataclasses.fields(part):
            if field.name != "when_source":
                assert not isinstance(getattr(part, field.name), list | dict | set)


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_shipped_configuration_loads_without_environment(path: Path, registry: Registry) -> None:
    config = load(path, registry, {})
    assert config.warnings == ()
    assert config.sinks
    for address in (*config.server.listen, *config.admin.listen):
        assert parse_address(address).is_local
    assert effective(path, registry, {})["server"]["http"] == "fast"


def test_shipped_configurations_are_the_promised_ones() -> None:
    assert [path.relative_to(CONFIG).as_posix() for path in FILES] == [
        "edge.yaml",
        "examples/behind-a-proxy.yaml",
        "examples/dead-letter.yaml",
        "examples/fan-out.yaml",
        "examples/minimal.yaml",
    ]


def test_default_configuration_takes_the_published_curl_line(registry: Registry) -> None:
    config = load(CONFIG / "edge.yaml", registry, {})
    (key,) = config.auth.keys
    assert (key.id, key.key_sha256) == ("demo", hashlib.sha256(b"your_api_key").hexdigest())
    assert config.server.listen == ("127.0.0.1:4000",)
    assert config.admin.listen == ("127.0.0.1:4001",)
    assert [step.type for step in config.pipeline] == ["received_at"]
    assert [(sink.id, sink.component.type, sink.component.options["path"]) for sink in config.sinks] == [
        ("archive", "file", "var/events")
    ]


def test_optional_event_fields_are_those_of_the_event_schema() -> None:
    assert set(OPTIONAL_EVENT_FIELDS) == set(_OPTIONAL_FIELDS)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:4000", Address("127.0.0.1", 4000)),
        ("0.0.0.0:0", Address("0.0.0.0", 0)),
        ("[::1]:80", Address("::1", 80)),
        ("[0:0::1]:80", Address("::1", 80)),
        ("Gateway.example.org:65535", Address("gateway.example.org", 65535)),
        ("unix:/run/edge.sock", Address("", 0, Path("/run/edge.sock"))),
        ("unix:var/edge.sock", Address("", 0, Path("var/edge.sock"))),
    ],
)
def test_parse_address_takes(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "", ":4000", "localhost", "localhost:", "localhost:http", "localhost:65536", "localhost:-1", "::1:80", "[::1]",
        "[::g]:80", "127.0.0.256:80", "127.1:80", "a b:80", "http://localhost:80", "unix:", "unix://x",
        "unix:/" + "x" * 107, "*:80", "-a:80",
    ],
)  # fmt: skip
def test_parse_address_refuses(text: str) -> None:
    with pytest.raises(AddressError):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "is_local"),
    [
        ("localhost:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("unix:/x", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("192.168.0.1:1", False),
        ("localhost.example.org:1", False),
    ],
)
def test_address_knows_whether_others_can_reach_it(text: str, is_local: bool) -> None:
    assert parse_address(text).is_local is is_local


@pytest.mark.parametrize(
    "text",
    [
        "https://shop.example.org", "http://localhost:3000", "https://*.example.org", "https://*.example.org:8443",
        "capacitor://localhost", "http://[::1]:3000",
    ],
)  # fmt: skip
def test_check_origin_takes(text: str) -> None:
    assert check_origin(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "*", "null", "shop.example.org", "https://", "https://shop.example.org/", "https://Shop.example.org",
        "https://a.org/x", "https://*.org", "http://*.example.org", "https://*", "https://shop.*.org",
        "https://a.org:443", "http://a.org:80", "https://user@a.org", "https://a.org?x", "https://a.org ",
    ],
)  # fmt: skip
def test_check_origin_refuses(text: str) -> None:
    with pytest.raises(AddressError):
        check_origin(text)


def test_check_network_returns_cidr_notation() -> None:
    assert [check_network(text) for text in ("10.0.0.0/8", "192.168.1.7", "::1", "fd00::/8")] == [
        "10.0.0.0/8", "192.168.1.7/32", "::1/128", "fd00::/8",
    ]  # fmt: skip


def test_every_option_of_the_file_is_described() -> None:
    options = {option.path: option for option in describe_file()}
    assert all(option.description.endswith(".") for option in options.values())
    assert all(option.type for option in options.values())
    depth = options["server.limits.depth"]
    assert (depth.type, depth.default, depth.default_text) == ("whole number from 1 to 200", 32, "32")
    assert options["auth"].default_text == "required"
    assert options["auth.keys[].rate_limit.events_per_sec"].required
    assert options["auth.keys[].key"].default_text == ""
    assert options["sinks.<id>.retry.give_up_secs"].default_text == "null"
    assert options["server.listen"].default_text == '"127.0.0.1:4000"'


def test_every_default_of_the_file_is_one_that_it_takes(write: Callable[[str], Path], small_registry: Any) -> None:
    text = BASE.replace("mode: none", "keys: [{id: a, key: b}]")
    plain = effective(write(text), small_registry, {})
    for option in describe_file():
        if "[" in option.path or "<" in option.path or option.default in ({}, []) or option.required:
            continue
        value: Any = plain
        for name in option.path.split("."):
            value = value[name] if value is not None else None
        assert value in (option.default, [option.default]), option.path


def test_options_of_a_component_are_described(small_registry: Any) -> None:
    teapot = small_registry.get("sink", "teapot")
    described = [(option.path, option.type, option.default_text) for option in describe_component(teapot)]
    assert described[:5] == [
        ("spout", "text", "required"),
        ("sugar", "whole number, 0 to 5", "1"),
        ("milk", "one of: first, last, none", '"none"'),
        ("kettle", "mapping", "{}"),
        ("kettle.watts", "whole number", "2000"),
    ]
    common = {option.path: option.default for option in describe_common(teapot)}
    assert (common["batch.max_events"], common["timeout_secs"], common["retry.max_secs"]) == (4, 30, 60)


def test_options_of_every_shipped_component_are_described(registry: Registry) -> None:
    for component in registry.all():
        for option in describe_component(component):
            assert option.description, (component, option)
