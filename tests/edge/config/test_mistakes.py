"""Broken configurations: each mistake is told with its line, its path and what to write instead."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge.config import ConfigError, load
from edge.config.together import PUBLISHED_KEYS, PUBLISHED_PREFIX

REPOSITORY = Path(__file__).parents[3]

SINKS = "sinks: {pot: {type: teapot, spout: x}}\n"
AUTH = "auth: {mode: none}\n"
BASE = AUTH + SINKS

BROKEN = {
    "unknown_section": (BASE + "servers: {}\n", "3: servers: is not a known option; did you mean server?"),
    "unknown_option": (
        BASE + "server:\n  limits:\n    depht: 3\n",
        "5: server.limits.depht: is not a known option; did you mean depth?",
    ),
    "option_of_another_section": (
        BASE + "limits: {depth: 3}\n",
        "3: limits: is not a known option; did you mean server.limits?",
    ),
    "option_of_an_inner_section": (
        BASE + "server:\n  allow_origins: []\n",
        "4: server.allow_origins: is not a known option; did you mean server.cors.allow_origins?",
    ),
    "whole_number": (
        BASE + "server:\n  limits: {depth: deep}\n",
        "4: server.limits.depth: must be a whole number; write e.g. 10",
    ),
    "whole_number_with_point": (
        BASE + "server:\n  limits: {depth: 1.5}\n",
        "4: server.limits.depth: must be a whole number; write e.g. 10",
    ),
    "true_as_number": (
        BASE + "server:\n  limits: {depth: true}\n",
        "4: server.limits.depth: must be a whole number; write e.g. 10",
    ),
    "too_small": (
        BASE + "server:\n  limits: {depth: 0}\n",
        "4: server.limits.depth: must not be less than 1; write e.g. 10",
    ),
    "too_large": (
        BASE + "server:\n  limits: {depth: 201}\n",
        "4: server.limits.depth: must not be more than 200; write e.g. 10",
    ),
    "number": (BASE + "server: {pre_stop_secs: soon}\n", "3: server.pre_stop_secs: must be a number; write e.g. 10"),
    "sexagesimal": (
        BASE + "server: {pre_stop_secs: 1:30}\n",
        "3: server.pre_stop_secs: must be a number; write e.g. 10",
    ),
    "negative_time": (
        BASE + "server: {pre_stop_secs: -1}\n",
        "3: server.pre_stop_secs: must be 0 or more; write e.g. 10",
    ),
    "no_is_a_word": (
        BASE + "dedup:\n  enabled: no\n",
        "4: dedup.enabled: must be true or false; write true or false, without quotes",
    ),
    "section_as_text": (
        BASE + "log: info\n",
        "3: log: must be a mapping; write its options on the lines below it, indented",
    ),
    "list_as_text": (
        BASE + "server:\n  trusted_proxies: 10.0.0.0/8\n",
        "4: server.trusted_proxies: must be a list; write each item on a line of its own after a dash",
    ),
    "enum": (BASE + "log: {level: loud}\n", "3: log.level: must be one of: debug, info, warning, error"),
    "enum_near": (
        BASE + "log: {level: warn}\n",
        "3: log.level: must be one of: debug, info, warning, error; did you mean warning?",
    ),
    "unknown_server": (
        BASE + "server: {http: fats}\n",
        "3: server.http: must be one of: fast, tornado; did you mean fast?",
    ),
    "too_many_workers": (
        BASE + "server: {workers: 65}\n",
        "3: server.workers: must not be more than 64; write e.g. 2",
    ),
    "dedup_with_workers": (
        BASE + "server: {workers: 2}\ndedup: {enabled: true}\n",
        "4: dedup.enabled: cannot be on with server.workers 2: each process would know only the ids of its own events;",
    ),
    "spool_too_small_for_workers": (
        BASE + "server: {workers: 3}\nspool:\n  segment_bytes: 1048576\n  max_bytes: 4194304\n",
        "6: spool.max_bytes: must hold two segments or more for each of the 4 shards of server.workers 3; write 83886",
    ),
    "listen_without_port": (
        BASE + "server: {listen: localhost}\n",
        "3: server.listen: must be a host and a port; write e.g. 127.0.0.1:4000, [::1]:4000 or unix:/run/edge.sock",
    ),
    "listen_number": (BASE + "server: {listen: 4000}\n", "3: server.listen: must be text; write e.g. 127.0.0.1:4000"),
    "listen_in_a_list": (
        BASE + "server:\n  listen:\n    - 127.0.0.1:4000\n    - 127.0.0.1:70000\n",
        "6: server.listen[1]: has no port from 0 to 65535; write e.g. 127.0.0.1:4000",
    ),
    "listen_twice": (
        BASE + "server:\n  listen:\n    - 127.0.0.1:4000\n    - 127.0.0.1:4000\n",
        "6: server.listen[1]: is written twice; remove one of the two",
    ),
    "listen_empty": (BASE + "server: {listen: []}\n", "3: server.listen: must not be empty; write at least one"),
    "admin_on_ingest": (
        BASE + "admin:\n  listen: 127.0.0.1:4000\n",
        "4: admin.listen: is where server listens too; write another port",
    ),
    "admin_without_token": (
        BASE + "admin:\n  listen: 0.0.0.0:4001\n",
        (
            "3: admin.token: is required when admin listens beyond loopback; "
            "write token: ${EDGE_ADMIN_TOKEN}, or listen on 127.0.0.1"
        ),
    ),
    "network": (
        BASE + "server:\n  trusted_proxies: [10.0.0.0/8, proxy]\n",
        "4: server.trusted_proxies[1]: must be a network; write e.g. 10.0.0.0/8 or 192.168.1.7",
    ),
    "network_with_host_bits": (
        BASE + "server:\n  trusted_proxies: [10.0.0.1/8]\n",
        (
            "4: server.trusted_proxies[0]: has bits beyond its prefix length; "
            "write the network's first address, or /32 for one host"
        ),
    ),
    "origin_star": (
        BASE + "server:\n  cors: {allow_origins: ['*']}\n",
        "4: server.cors.allow_origins[0]: would allow every origin; write each origin, e.g. https://shop.example.org",
    ),
    "origin_with_slash": (
        BASE + "server:\n  cors: {allow_origins: ['https://a.example.org/']}\n",
        (
            "4: server.cors.allow_origins[0]: is not written as browsers send it; "
            "write it in lower case, without a slash at the end"
        ),
    ),
    "tls_file_missing": (
        BASE + "server:\n  tls:\n    cert_file: /nowhere/cert.pem\n    key_file: /dev/null\n",
        "5: server.tls.cert_file: names a file that does not exist; write a path from where the gateway is started",
    ),
    "segment_too_small": (
        BASE + "spool: {segment_bytes: 10}\n",
        "3: spool.segment_bytes: must not be less than 65536; write e.g. 67108864",
    ),
    "spool_smaller_than_two_segments": (
        BASE + "spool:\n  segment_bytes: 100000\n  max_bytes: 199999\n",
        "5: spool.max_bytes: must hold two segments or more; write 200000 or more, or a smaller segment_bytes",
    ),
    "dead_letters_in_the_spool": (
        BASE + "spool: {path: var/x}\ndead_letters:\n  path: var/x/\n",
        "5: dead_letters.path: is the path of the spool too; write another directory",
    ),
    "event_field": (BASE + "schema:\n  required: [extra]\n", "4: schema.required[0]: must be one of: element_id,"),
    "auth_missing": (SINKS, "1: auth: is required; write keys, or auth: {mode: none} to let everybody post"),
    "auth_without_keys": (
        SINKS + "auth:\n  mode: keys\n",
        "2: auth.keys: is required with mode keys; write a key, or auth: {mode: none} to let everybody post",
    ),
    "auth_empty": (
        SINKS + "auth:\n",
        "2: auth.keys: is required with mode keys; write a key, or auth: {mode: none} to let everybody post",
    ),
    "keys_with_mode_none": (
        SINKS + "auth:\n  mode: none\n  keys: [{id: a, key: k}]\n",
        "4: auth.keys: would not be asked for with mode none; remove the keys, or write mode: keys",
    ),
    "key_and_digest": (
        SINKS + f"auth:\n  keys:\n    - id: a\n      key: k\n      key_sha256: {'0' * 64}\n",
        "6: auth.keys[0].key_sha256: cannot stand beside key; write one of the two",
    ),
    "key_missing": (
        SINKS + "auth:\n  keys:\n    - id: a\n",
        "4: auth.keys[0]: has neither key nor key_sha256; write key: ${EDGE_KEY}, and set that variable",
    ),
    "key_as_number": (
        SINKS + "auth:\n  keys:\n    - id: a\n      key: 12345678\n",
        "5: auth.keys[0].key: must be text; write e.g. ${EDGE_KEY}",
    ),
    "key_id": (
        SINKS + "auth:\n  keys:\n    - id: Web-Shop\n      key: k\n",
        "4: auth.keys[0].id: must be a word of lower-case letters, digits and underscores that begins with a letter",
    ),
    "key_id_twice": (
        SINKS + "auth:\n  keys:\n    - {id: a, key: k}\n    - {id: a, key: l}\n",
        "5: auth.keys[1].id: is the id of auth.keys[0] too; write another",
    ),
    "key_twice": (
        SINKS + "auth:\n  keys:\n    - {id: a, key: k}\n    - {id: b, key: k}\n",
        "5: auth.keys[1].key: is the key of auth.keys[0] too; write another",
    ),
    "key_scope": (
        SINKS + "auth:\n  keys:\n    - {id: a, key: k, scopes: [admin]}\n",
        "4: auth.keys[0].scopes[0]: must be one of: ingest, batch",
    ),
    "rate_limit": (
        SINKS + "auth:\n  keys:\n    - {id: a, key: k, rate_limit: {burst_events: 3}}\n",
        "4: auth.keys[0].rate_limit.events_per_sec: is required; write events_per_sec: <number above 0>",
    ),
    "demo_key_beyond_loopback": (
        SINKS + "server: {listen: [127.0.0.1:1, '0.0.0.0:2']}\nauth:\n  keys:\n    - id: a\n      key: your_api_key\n",
        (
            "6: auth.keys[0].key: is a key out of the documentation, which everybody knows, "
            "while server.listen is beyond loopback; write a key of your own, or listen on 127.0.0.1"
        ),
    ),
    "example_key_beyond_loopback": (
        SINKS + "server: {listen: '0.0.0.0:2'}\nauth:\n  keys:\n    - {id: a, key: 'your_own_key'}\n",
        "5: auth.keys[0].key: is a key out of the documentation, which everybody knows,",
    ),
    "no_is_not_near_to_info": (
        BASE + "log: {level: no}\n",
        "3: log.level: must be one of: debug, info, warning, error|",
    ),
    "body_bytes": (
        BASE + "server:\n  limits: {body_bytes: -1}\n",
        "4: server.limits.body_bytes: must not be less than 1; write e.g. 1048576",
    ),
    "inflight_less_than_a_body": (
        BASE + "server:\n  limits:\n    inflight_bytes: 1000000\n    decompressed_bytes: 500000\n",
        (
            "5: server.limits.inflight_bytes: is less than body_bytes: a body of that size would be told to come "
            "again, forever; write 1048576 or more, or a smaller body_bytes"
        ),
    ),
    "inflight_less_than_a_decompressed_body": (
        BASE + "server:\n  limits:\n    decompressed_bytes: 99999999\n",
        (
            "4: server.limits.inflight_bytes: is less than decompressed_bytes: a body of that size would be told to "
            "come again, forever; write 99999999 or more, or a smaller decompressed_bytes"
        ),
    ),
    "event_more_than_a_body": (
        BASE + "server:\n  limits:\n    event_bytes: 1048577\n",
        (
            "5: server.limits.event_bytes: is more than body_bytes: an event of that size could never arrive; "
            "write 1048576 or less, or a larger body_bytes"
        ),
    ),
    "event_more_than_a_decompressed_body": (
        BASE + "server:\n  limits:\n    event_bytes: 2000\n    decompressed_bytes: 1000\n",
        (
            "5: server.limits.event_bytes: is more than decompressed_bytes: an event of that size could never arrive; "
            "write 1000 or less, or a larger decompressed_bytes"
        ),
    ),
    "sinks_missing": (AUTH, "1: sinks: is required; write at least one sink"),
    "sinks_empty": (AUTH + "sinks: {}\n", "2: sinks: must not be empty; write at least one"),
    "sink_id": (
        AUTH + "sinks:\n  Pot: {type: teapot, spout: x}\n",
        "3: sinks.Pot: must be a word of lower-case letters, digits and underscores that begins with a letter",
    ),
    "sink_type": (
        AUTH + "sinks:\n  pot:\n    type: teapod\n",
        "4: sinks.pot.type: is not a known sink type; known: teapot; did you mean teapot?",
    ),
    "sink_type_missing": (AUTH + "sinks:\n  pot:\n", "3: sinks.pot.type: is required; write type: <type name>"),
    "sink_in_the_pipeline": (
        BASE + "pipeline:\n  - type: teapot\n",
        "4: pipeline[0].type: is not a known enricher or filter type; known: remove, stamp; write it under sinks",
    ),
    "step_as_text": (
        BASE + "pipeline:\n  - stamp\n",
        "4: pipeline[0]: must be a mapping; write its options on the lines below it, indented",
    ),
    "step_option": (
        BASE + "pipeline:\n  - type: stamp\n    feild: x\n",
        "5: pipeline[0].feild: is not a known option; did you mean field?",
    ),
    "common_option": (
        BASE + "pipeline:\n  - type: stamp\n    on_eror: skip\n",
        "5: pipeline[0].on_eror: is not a known option; did you mean on_error?",
    ),
    "sink_option_in_the_pipeline": (
        BASE + "pipeline:\n  - type: stamp\n    timeout_secs: 3\n",
        "5: pipeline[0].timeout_secs: is not a known option; known: type, id, when, on_error, field",
    ),
    "when_required": (
        BASE + "pipeline:\n  - type: remove\n",
        "4: pipeline[0].when: is required; write which events are meant, e.g. when: {event_type: heartbeat}",
    ),
    "when_operator": (
        BASE + "pipeline:\n  - type: stamp\n    when:\n      a: x\n      b:\n        gtt: 3\n",
        "8: pipeline[0].when.b.gtt: is not a known operator; known: eq, ne, in,",
    ),
    "when_pattern": (
        BASE + "pipeline:\n  - type: stamp\n    when: {a: {matches: '(a+)+'}}\n",
        "5: pipeline[0].when.a.matches: repeats a group that holds a repeat or alternatives",
    ),
    "same_type_twice": (
        BASE + "pipeline:\n  - type: stamp\n  - type: stamp\n",
        "5: pipeline[1]: needs an id, since pipeline[0] on line 4 has its type as id; write one, e.g. id: stamp_2",
    ),
    "same_id_twice": (
        BASE + "pipeline:\n  - type: stamp\n    id: a\n  - type: stamp\n    id: a\n",
        "7: pipeline[1].id: is the id of pipeline[0] on line 4 too; write another",
    ),
    "same_id_as_a_sink": (
        BASE + "pipeline:\n  - {type: stamp, id: pot}\n",
        "2: sinks.pot: is the id of pipeline[0] on line 4 too; write another",
    ),
    "component_required": (
        AUTH + "sinks:\n  pot: {type: teapot}\n",
        "3: sinks.pot.spout: is required; write spout: <text>",
    ),
    "component_text": (
        AUTH + "sinks:\n  pot:\n    type: teapot\n    spout: 7\n",
        "5: sinks.pot.spout: must be text; write it in quotes",
    ),
    "component_range": (
        AUTH + "sinks:\n  pot:\n    type: teapot\n    spout: x\n    sugar: 6\n",
        "6: sinks.pot.sugar: must be at most 5; write a whole number from 0 to 5",
    ),
    "component_enum": (
        AUTH + "sinks:\n  pot:\n    type: teapot\n    spout: x\n    milk: never\n",
        "6: sinks.pot.milk: must be one of: first, last, none",
    ),
    "component_nested": (
        AUTH + "sinks:\n  pot:\n    type: teapot\n    spout: x\n    kettle:\n      wats: 6\n",
        "7: sinks.pot.kettle.wats: is not a known option; did you mean watts?",
    ),
    "component_mapping_value": (
        AUTH + "sinks:\n  pot:\n    type: teapot\n    spout: x\n    headers:\n      A: b\n      C: [d]\n",
        "8: sinks.pot.headers.C: must be text; write it in quotes",
    ),
    "component_list_item": (
        AUTH + "sinks:\n  pot:\n    type: teapot\n    spout: x\n    guests:\n      - a\n      - 7\n",
        "8: sinks.pot.guests[1]: must be text; write it in quotes",
    ),
    "component_check_raises": (
        AUTH + "sinks:\n  pot:\n    type: teapot\n    spout: x\n    lid: y\n",
        "3: sinks.pot: cannot be checked: AttributeError in the component; write another value",
    ),
    "batch_option": (
        AUTH + "sinks:\n  pot:\n    type: teapot\n    spout: x\n    batch:\n      max_event: 1\n",
        "7: sinks.pot.batch.max_event: is not a known option; did you mean max_events?",
    ),
    "batch_option_of_an_unknown_type": (
        AUTH + "sinks:\n  pot:\n    type: x\n    whatever: y\n    batch:\n      max_event: 1\n",
        "7: sinks.pot.batch.max_event: is not a known option; did you mean max_events?",
    ),
    "retry_order": (
        AUTH + "sinks:\n  pot:\n    type: teapot\n    spout: x\n    retry: {max_secs: 0.1}\n",
        "6: sinks.pot.retry.max_secs: must not be less than initial_secs; write a longer time",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_mistake_is_told_with_line_path_and_advice(name: str, problems: Callable[..., list[str]]) -> None:
    text, expected = BROKEN[name]
    # A bar marks the end of the line: nothing is suggested beyond it.
    assert any(f"{problem}|".startswith(expected) for problem in problems(text)), problems(text)


@pytest.mark.parametrize("key", PUBLISHED_KEYS)
def test_mistake_of_a_published_key_is_told_when_only_its_digest_is_written(
    problems: Callable[..., list[str]], key: str
) -> None:
    digest = hashlib.sha256(key.encode()).hexdigest().upper()
    text = SINKS + f"server: {{listen: '[::]:2'}}\nauth:\n  keys:\n    - id: a\n      key_sha256: {digest}\n"
    assert [line.split(";")[0] for line in problems(text)] == [
        (
            "6: auth.keys[0].key_sha256: is a key out of the documentation, which everybody knows, "
            "while server.listen is beyond loopback"
        )
    ]


def test_every_key_in_the_shipped_files_is_a_published_one() -> None:
    found = {
        key
        for path in (REPOSITORY / "config").rglob("*.yaml")
        for key in re.findall(r"^ *key: (?:\$\{\w+:-)?([^\s}#]+)", path.read_text(), re.MULTILINE)
    }
    assert found == set(PUBLISHED_KEYS)
    assert all(key.startswith(PUBLISHED_PREFIX) for key in found)


def test_smaller_bodies_than_the_default_event_are_a_choice(load_text: Callable[..., Any]) -> None:
    assert load_text(BASE + "server: {limits: {body_bytes: 1000}}\n").server.limits.event_bytes == 65536


@pytest.mark.parametrize(
    ("component", "expected"),
    [
        (
            "pipeline:\n  - type: static_fields\n    fields: {}\n",
            "pipeline[0].fields: must be at least one field; write a mapping of field names to values",
        ),
        (
            "pipeline:\n  - type: request_headers\n    headers: []\n",
            "pipeline[0].headers: must be at least one header; write a list of header names",
        ),
        (
            "sinks:\n  crm:\n    type: http\n    url: ftp://x\n",
            (
                "sinks.crm.url: must begin with http:// or https:// and name a host; "
                "write a URL that begins with http:// or https://"
            ),
        ),
    ],
)
def test_advice_for_a_shipped_component_is_a_sentence(
    registry: Any, write: Callable[[str], Path], component: str, expected: str
) -> None:
    text = AUTH + component + ("" if component.startswith("sinks") else "sinks: {hole: {type: blackhole}}\n")
    with pytest.raises(ConfigError) as caught:
        load(write(text), registry, {})
    assert [str(problem).partition(": ")[2] for problem in caught.value.problems] == [expected]


WHEN = """\
auth: {mode: none}
pipeline:
  - type: static_fields
    fields: {usr_id: x}
  - type: received_at
  - type: drop
    when:
      any:
        - evnt_type: click
        - not: {commerse.total: {gt: 3}}
        - usr_id: {exists: true}
        - received_at: {exists: false}
        - colour: red
        - commerce.totl: 3
sinks:
  hole:
    type: blackhole
    when: {User-ID: {exists: true}}
"""


def test_condition_on_a_field_that_is_nearly_one_of_events_is_a_warning(
    registry: Any, write: Callable[[str], Path]
) -> None:
    path = write(WHEN)
    assert load(path, registry, {}).warnings == (
        f"{path}:9: pipeline[2].when.any[0].evnt_type: no event has the field evnt_type; did you mean event_type?",
        (
            f"{path}:10: pipeline[2].when.any[1].not.commerse.total: "
            "no event has the field commerse; did you mean commerce?"
        ),
        f"{path}:18: sinks.hole.when.User-ID: no event has the field User-ID; did you mean user_id?",
    )
    for choice in ("keep", "drop"):
        assert load(write(f"{WHEN}schema: {{unknown_fields: {choice}}}\n"), registry, {}).warnings == ()


def test_mistakes_of_all_parts_come_in_one_answer_sorted_by_line(problems: Callable[..., list[str]]) -> None:
    texts = [
        "log: {level: loud, formatt: json}",
        "spool: {path: '', durability: tape}",
        "auth: {keys: [{id: A}, {id: b, key: x y}]}",
        "pipeline:",
        "  - {type: stamp, field: ''}",
        "  - {type: stmp}",
        "sinks:",
        "  pot: {type: teapot, sugar: 9, when: {a: []}}",
        "  Pan: {type: teapot, spout: x, required: yes}",
        "nothing: 1",
    ]
    found = problems("\n".join(texts) + "\n")
    assert [line.split(": ")[:2] for line in found] == [
        ["1", "log.level"],
        ["1", "log.formatt"],
        ["2", "spool.path"],
        ["2", "spool.durability"],
        ["3", "auth.keys[0].id"],
        ["3", "auth.keys[1].key"],
        ["5", "pipeline[0].field"],
        ["6", "pipeline[1].type"],
        ["8", "sinks.pot.when.a"],
        ["8", "sinks.pot.sugar"],
        ["8", "sinks.pot.spout"],
        ["9", "sinks.Pan"],
        ["9", "sinks.Pan.required"],
        ["10", "nothing"],
    ]


def test_config_error_prints_one_line_for_each_problem(load_text: Callable[..., object]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text("auth: 1\nsinks: 2\n")
    lines = str(caught.value).splitlines()
    assert len(lines) == len(caught.value.problems) == 2
    assert lines[0].endswith("edge.yaml:1: auth: must be a mapping; write its options on the lines below it, indented")


def test_config_error_lists_two_hundred_problems_at_most(load_text: Callable[..., object]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text("".join(f"option_{index}: 1\n" for index in range(5000)))
    assert len(caught.value.problems) == 201
    assert caught.value.problems[-1].what == "has more problems from here on"


def test_file_that_cannot_be_read_is_told(small_registry: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml:1: cannot be read: No such file or directory; write one"):
        load(tmp_path / "nowhere.yaml", small_registry, {})
    with pytest.raises(ConfigError, match=r":1: cannot be read: Is a directory"):
        load(tmp_path, small_registry, {})
