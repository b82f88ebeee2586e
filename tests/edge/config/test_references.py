"""References to the environment and to files, and the secrets they bring."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.config import ConfigError, GatewayConfig, Secret, effective, load
from edge.config.references import BrokenReferenceError, expand

TOKEN = "s3cr3t-token-value"
BASE = "auth: {mode: none}\nsinks:\n  pot:\n    type: teapot\n    spout: x\n"


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ("${A}", {"A": "x"}, "x"),
        ("${A}", {"A": ""}, ""),
        ("a${A}b${B}c", {"A": "1", "B": "2"}, "a1b2c"),
        ("${A:-y}", {"A": "x"}, "x"),
        ("${A:-y}", {}, "y"),
        ("${A:-y}", {"A": ""}, "y"),
        ("${A:-}", {}, ""),
        ("${A:-http://h:1/}", {}, "http://h:1/"),
        ("${A:-a:-b}", {}, "a:-b"),
        ("${A}", {"A": "${B}"}, "${B}"),
        ("$${A}", {"A": "x"}, "${A}"),
        ("$A and $", {"A": "x"}, "$A and $"),
    ],
)
def test_expand_replaces_references(text: str, environ: dict[str, str], expected: str) -> None:
    assert expand(text, environ).text == expected


@pytest.mark.parametrize("text", ["${", "${}", "${A", "${1A}", "${A-b}", "${A:b}", "${A:-${B}}", "${ A }", "${é}"])
def test_expand_refuses_what_it_cannot_read(text: str) -> None:
    with pytest.raises(BrokenReferenceError, match="has a reference that cannot be read"):
        expand(text, {"A": "x", "B": "y"})


def test_missing_variable_is_a_problem_of_its_line_and_of_nothing_else(problems: Callable[..., list[str]]) -> None:
    assert problems(BASE + "admin:\n  token: ${EDGE_ADMIN_TOKEN}\nlog: {level: '${L}'}\n") == [
        (
            "7: admin.token: needs the environment variable EDGE_ADMIN_TOKEN, which is not set; "
            "set it, or write ${EDGE_ADMIN_TOKEN:-default}"
        ),
        "8: log.level: needs the environment variable L, which is not set; set it, or write ${L:-default}",
    ]


def test_variable_that_is_not_utf8_is_a_problem(problems: Callable[..., list[str]]) -> None:
    (line,) = problems(BASE + "admin: {token: '${T}'}\n", {"T": os.fsdecode(b"\xff")})
    assert line.startswith("6: admin.token: needs the environment variable T, which is not UTF-8")


@pytest.mark.parametrize(("environ", "expected"), [({}, 7), ({"N": "9"}, 9)])
def test_expanded_text_becomes_a_number_where_one_is_wanted(
    environ: dict[str, str], expected: int, load_text: Callable[..., GatewayConfig]
) -> None:
    text = (
        BASE
        + "    sugar: ${S:-3}\nserver:\n  limits: {depth: '${N:-7}'}\n  workers: ${W:-1}\n"
        + "dedup: {enabled: '${D:-false}'}\n"
    )
    config = load_text(text, environ)
    assert config.server.limits.depth == expected
    assert config.server.workers == 1
    assert config.sinks[0].component.options["sugar"] == 3


def test_expanded_text_stays_text_where_text_is_wanted(load_text: Callable[..., GatewayConfig]) -> None:
    config = load_text(
        "auth: {keys: [{id: a, key: '${K}'}]}\nsinks: {pot: {type: teapot, spout: '${S}'}}\n", {"K": "123", "S": "007"}
    )
    assert config.sinks[0].component.options["spout"] == "007"
    assert isinstance(config.sinks[0].component.options["spout"], Secret)


def test_expanded_text_that_is_refused_either_way_is_told_as_what_was_wanted(
    problems: Callable[..., list[str]],
) -> None:
    assert problems(BASE + "server:\n  limits: {depth: '${N}'}\n", {"N": "many"}) == [
        "7: server.limits.depth: must be a whole number; write e.g. 10"
    ]
    assert problems(BASE + "server:\n  limits: {depth: '${N}'}\n", {"N": "900"}) == [
        "7: server.limits.depth: must not be more than 200; write e.g. 10"
    ]
    assert problems(BASE + "server:\n  listen: ${L}\n", {"L": "4000"}) == [
        "7: server.listen: must be a host and a port; write e.g. 127.0.0.1:4000, [::1]:4000 or unix:/run/edge.sock"
    ]


def test_expanded_operand_of_a_comparison_is_a_number(load_text: Callable[..., GatewayConfig]) -> None:
    config = load_text(
        BASE + "    when: {total: {gt: '${LEAST}'}, user_id: '${USER}'}\n", {"LEAST": "100", "USER": "7"}
    )
    when = config.sinks[0].component.when
    assert when is not None
    assert when({"total": 101, "user_id": "7"})
    assert not when({"total": "99", "user_id": "7"})
    assert config.sinks[0].component.when_source == {"total": {"gt": "***"}, "user_id": "***"}


def test_expansion_cannot_add_options(load_text: Callable[..., GatewayConfig]) -> None:
    config = load_text(BASE.replace("spout: x", "spout: ${S}"), {"S": "x\n    required: true"})
    assert not config.sinks[0].required


def test_file_reference_is_the_content_beside_the_yaml_file(
    write: Callable[[str], Path], small_registry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secrets").mkdir()
    secret = tmp_path / "secrets" / "spout"
    secret.write_text(f"{TOKEN}\n")
    secret.chmod(0o600)
    monkeypatch.chdir("/")
    path = write(BASE.replace("spout: x", "spout: file:secrets/spout"))
    config = load(path, small_registry, {})
    assert config.sinks[0].component.options["spout"] == TOKEN
    assert config.warnings == ()
    path = write(BASE.replace("spout: x", "spout: 'file:${DIR}/spout'"))
    assert load(path, small_registry, {"DIR": str(secret.parent)}).sinks[0].component.options["spout"] == TOKEN


def test_file_reference_that_others_can_read_is_a_warning(
    write: Callable[[str], Path], small_registry: Any, tmp_path: Path
) -> None:
    (tmp_path / "spout").write_text(TOKEN)
    (tmp_path / "spout").chmod(0o644)
    path = write(BASE.replace("spout: x", "spout: file:spout"))
    assert load(path, small_registry, {}).warnings == (
        f"{path}:5: sinks.pot.spout: everybody on this machine can read spout; run chmod o-r on it",
    )


def test_file_reference_is_only_what_begins_like_one(load_text: Callable[..., GatewayConfig]) -> None:
    for text in ("file:///etc/hostname", "'file: x'", "'file:'", "a file:x", "File:x"):
        spout = load_text(BASE.replace("spout: x", f"spout: {text}")).sinks[0].component.options["spout"]
        assert spout == text.strip("'")


def test_variable_that_holds_a_file_reference_is_not_followed(load_text: Callable[..., GatewayConfig]) -> None:
    config = load_text(BASE.replace("spout: x", "spout: ${S}"), {"S": "file:/etc/passwd"})
    assert config.sinks[0].component.options["spout"] == "file:/etc/passwd"


def test_file_reference_that_leads_nowhere_is_a_problem(
    write: Callable[[str], Path], problems: Callable[..., list[str]], tmp_path: Path
) -> None:
    def told(reference: str) -> str:
        (line,) = problems(BASE.replace("spout: x", f"spout: '{reference}'"), {"DIR": TOKEN})
        return line.removeprefix("5: sinks.pot.spout: ")

    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_text("x" * 70_000)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert told("file:none").startswith("refers to the file none, which cannot be read: No such file or directory; ")
    assert told("file:fifo").startswith("refers to fifo, which is not a file")
    assert told("file:.").startswith("refers to ., which is not a file") or told("file:.").startswith("refers to the")
    assert told("file:large").startswith("refers to large, which is larger than 65536 bytes")
    assert told("file:binary").startswith("refers to binary, which is not UTF-8")
    assert told("file:${DIR}/x").startswith("refers to the file ${DIR}/x, which cannot be read")
    assert told("file:${NONE}").startswith("needs the environment variable NONE, which is not set")


SECRETS = {
    "KEY": "key-of-the-environment",
    "ADMIN": "token-of-the-environment",
    "SPOUT": "spout-of-the-environment",
    "HEADER": "header-of-the-environment",
    "WHEN": "when-of-the-environment",
}
WITH_SECRETS = """
admin: {token: '${ADMIN}'}
auth:
  keys:
    - {id: a, key: '${KEY}'}
    - {id: b, key: written-out-key}
    - {id: c, key_sha256: %s}
pipeline:
  - {type: stamp, field: plain}
sinks:
  pot:
    type: teapot
    spout: ${SPOUT}
    headers: {Authorization: 'Bearer ${HEADER}', X-Token: written-out-token}
    guests: [https://user:password@example.org/]
    when: {user_id: '${WHEN}'}
""" % ("ab" * 32)


def test_effective_masks_every_secret_and_shows_the_rest(write: Callable[[str], Path], small_registry: Any) -> None:
    plain = effective(write(WITH_SECRETS), small_registry, SECRETS)
    text = json.dumps(plain)
    for secret in (*SECRETS.values(), "written-out", "ab" * 32, "user:password"):
        assert secret not in text
    assert plain["admin"] == {"listen": ["127.0.0.1:4001"], "token": "***"}
    assert plain["auth"]["keys"][1]["key"] == "***"
    assert plain["pipeline"] == [{"type": "stamp", "id": "stamp", "when": None, "on_error": "skip", "field": "plain"}]
    pot = plain["sinks"]["pot"]
    assert pot["batch"] == {"max_events": 4, "max_bytes": 1048576, "max_age_secs": 0.2}
    assert pot["headers"] == {"Authorization": "***", "X-Token": "***"}
    assert pot["guests"] == ["https://***@example.org/"]
    assert pot["when"] == {"user_id": "***"}
    assert list(plain) == [
        "server", "admin", "auth", "schema", "spool", "dead_letters", "dedup", "pipeline", "sinks", "log",
    ]  # fmt: skip


def test_effective_shows_numbers_from_the_environment_and_unset_tokens(
    write: Callable[[str], Path], small_registry: Any
) -> None:
    text = BASE + "server: {workers: '${N:-1}'}\nadmin: {token: '${T:-}'}\n"
    plain = effective(write(text), small_registry, {})
    assert plain["server"]["workers"] == 1
    assert plain["admin"]["token"] == ""


def test_config_does_not_show_secrets_when_printed(load_text: Callable[..., GatewayConfig]) -> None:
    config = load_text(WITH_SECRETS, SECRETS)
    assert config.admin.token == SECRETS["ADMIN"]
    assert config.sinks[0].component.options["headers"]["Authorization"] == f"Bearer {SECRETS['HEADER']}"
    for secret in (*SECRETS.values(), "written-out-key"):
        assert secret not in repr(config)


def test_messages_do_not_hold_secrets_even_if_a_component_quotes_them(problems: Callable[..., list[str]]) -> None:
    text = """
admin: {token: '${A} ${B}'}
auth:
  keys:
    - {id: '${A}', key: '${A} x', key_sha256: '${A}', scopes: ['${A}'], browser: '${A}', allow_origins: ['${A}']}
    - {id: b, key: 'writtenout secret'}
server: {listen: '${A}', http: '${A}', tls: {cert_file: '${A}', key_file: '${A}'}, trusted_proxies: ['${A}']}
log: {level: '${A}'}
schema: '${A}'
pipeline:
  - {type: '${A}', on_error: '${A}'}
  - {type: stamp, id: '${A}', when: {a: {matches: '(${A}'}, b: {exists: '${A}'}}}
sinks:
  pot: {type: teapot, spout: x, colour: '${A}', sugar: '${A}', milk: '${A}', kettle: {watts: '${A}'}, batch: '${A}'}
  pan: {type: teapot, spout: x, colour: '${S}', retry: {initial_secs: '${A}'}}
"""
    environ = {"A": TOKEN, "B": "another-secret", "S": "q7"}
    found = problems(text, environ)
    assert len(found) >= 25
    for line in found:
        assert TOKEN not in line
        assert "another-secret" not in line
        assert "q7" not in line
        assert "writtenout secret" not in line
    assert "15: sinks.pan.colour: *** is not a colour" in found


def test_secret_works_as_text_and_its_repr_is_a_mask() -> None:
    secret = Secret("abc")
    assert secret == "abc"
    assert f"{secret}!" == "abc!"
    assert repr([secret, Secret("")]) == "['***', '']"
    assert json.dumps(secret) == '"abc"'


def test_missing_reference_stops_the_load(load_text: Callable[..., GatewayConfig]) -> None:
    with pytest.raises(ConfigError):
        load_text(BASE.replace("spout: x", "spout: ${S}"))
