from __future__ import annotations

import json
import time
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.json_body import check_structure, check_structures, parse_json

BROKEN = [
    ("empty", b"", "json.syntax", "must not be empty"),
    ("blank", b" \r\n\t", "json.syntax", "must not be empty"),
    ("word", b"hello", "json.syntax", "is not valid JSON at line 1, column 1"),
    ("nan", b'{"a": NaN}', "json.syntax", "is not valid JSON at line 1, column 7"),
    ("infinity", b"[Infinity]", "json.syntax", "is not valid JSON at line 1, column 2"),
    ("minus infinity", b"[-Infinity]", "json.syntax", None),
    ("second line", b'{\n "a": 1,\n "b": tru\n}', "json.syntax", "is not valid JSON at line 3, column 7"),
    ("single quotes", b"{'a': 1}", "json.syntax", None),
    ("trailing comma", b"[1,]", "json.syntax", None),
    ("comment", b"[1] // one", "json.syntax", None),
    ("two documents", b"{} {}", "json.syntax", None),
    ("unclosed", b'{"a": [1', "json.syntax", None),
    ("control character", b'["a\x01b"]', "json.syntax", None),
    ("raw NUL", b'["a\x00b"]', "json.syntax", None),
    ("bad escape", rb'["\q"]', "json.syntax", None),
    ("hex number", b"[0x10]", "json.syntax", None),
    ("leading zero", b"[01]", "json.syntax", None),
    ("plus", b"[+1]", "json.syntax", None),
    ("form", b"event_id=1&user_id=2", "json.syntax", None),
    ("gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "json.encoding", None),
    ("overflow", b"[1e999]", "json.limit", None),
    ("negative overflow", b"-1e999", "json.limit", None),
    ("5,000 digits", b"1" * 5000, "json.limit", None),
    ("5,000 digits, negative", b'{"a": -' + b"1" * 5000 + b"}", "json.limit", None),
    ("lone high surrogate", rb'["\ud800"]', "json.encoding", None),
    ("lone low surrogate", rb'["\udc00"]', "json.encoding", None),
    ("surrogate and letter", rb'["\ud800a"]', "json.encoding", None),
    ("surrogate in a key", rb'{"\udfff": 1}', "json.encoding", None),
    ("raw surrogate", b'["\xed\xa0\x80"]', "json.encoding", "is not valid UTF-8 at byte 2"),
    ("latin-1", '["größe"]'.encode("latin-1"), "json.encoding", "is not valid UTF-8 at byte 4"),
    ("overlong", b'["\xc0\x80"]', "json.encoding", "is not valid UTF-8 at byte 2"),
    ("cut character", b'["\xe2\x82', "json.encoding", "is not valid UTF-8 at byte 2"),
    ("byte order mark", b"\xef\xbb\xbf{}", "json.encoding", "must be UTF-8 without a byte order mark"),
    ("utf-16", '{"a": 1}'.encode("utf-16"), "json.encoding", "must be UTF-8 without a byte order mark"),
    ("utf-16-le", '{"a": 1}'.encode("utf-16-le"), "json.encoding", "must be UTF-8 without a byte order mark"),
    ("utf-16-be", '{"a": 1}'.encode("utf-16-be"), "json.encoding", "must be UTF-8 without a byte order mark"),
    ("utf-32", '{"a": 1}'.encode("utf-32"), "json.encoding", "must be UTF-8 without a byte order mark"),
    ("depth 100,000", b"[" * 100_000 + b"]" * 100_000, "json.limit", None),
    ("depth 100,000, unclosed", b'{"a":' * 100_000, "json.limit", None),
]


@pytest.mark.parametrize(("raw", "code", "message"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_parser_says_why_it_refuses(raw: bytes, code: str, message: str | None) -> None:
    value, detail = parse_json(raw)
    assert value is None
    assert detail is not None
    assert (detail["field"], detail["code"]) == ("body", code)
    assert message in (None, detail["message"])


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"{}", {}),
        (b"null", None),
        (b" [1, 2.5, true] \r\n", [1, 2.5, True]),
        (rb'"\ud83d\ude00 \u0000"', "\U0001f600 \x00"),
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b"[18446744073709551615, -9223372036854775808]", [2**64 - 1, -(2**63)]),
        (b"[1e-999]", [0.0]),
    ],
)
def test_parser_takes(raw: bytes, value: object) -> None:
    assert parse_json(raw) == (value, None)


def test_parser_never_tells_the_content() -> None:
    for raw in (b'{"password": hunter2}', b'["hunter2\xff"]', b"hunter2", rb'["hunter2\ud800"]', b'{"hunter2": 1e999}'):
        _, detail = parse_json(raw)
        assert detail is not None
        assert "hunter2" not in str(detail)


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=200)
def test_parser_never_raises(raw: bytes) -> None:
    value, detail = parse_json(raw)
    assert detail is None or (value is None and detail["code"].startswith("json."))


def check(raw: bytes, max_depth: int = 32) -> tuple[str, str] | None:
    detail = check_structure(raw, orjson.loads(raw), max_depth)
    return None if detail is None else (detail["field"], detail["code"])


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * depth + b"1" + closing * depth


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")])
def test_structure_refuses_depth_beyond_the_limit(opening: bytes, closing: bytes) -> None:
    per_turn = opening.count(b"[") + opening.count(b"{")
    assert check(nested(32 // per_turn, opening, closing)) is None
    assert check(nested(32 // per_turn + 1, opening, closing)) == ("body", "json.limit")
    assert check(nested(1000 // per_turn, opening, closing)) == ("body", "json.limit")


def test_structure_counts_brackets_inside_strings_as_nothing() -> None:
    assert check(json.dumps({"a": "[{" * 500, "b": [[]] * 40}).encode()) is None


def test_structure_counts_empty_containers_as_levels() -> None:
    assert check(b"[[[]]]", max_depth=3) is None
    assert check(b"[[[[]]]]", max_depth=3) == ("body", "json.limit")
    assert check(b"[[[{}],1,2,3]]", max_depth=3) == ("body", "json.limit")


def test_structure_names_the_limit() -> None:
    raw = nested(9)
    detail = check_structure(raw, orjson.loads(raw), 8)
    assert detail == {"field": "body", "message": "is nested deeper than 8 levels", "code": "json.limit"}


@pytest.mark.parametrize(
    ("raw", "refused"),
    [
        (b'{"a": 18446744073709551615}', False),
        (b'{"a": 18446744073709551616}', True),
        (b'{"a":-9223372036854775808}', False),
        (b'{"a":-9223372036854775809}', True),
        (b"[1,99999999999999999999]", True),
        (b"[99999999999999999999,1]", True),
        (b"[1,\n\t99999999999999999999]", True),
        (b"[1,\r\n -99999999999999999999 ]", True),
        (b"99999999999999999999", True),
        (b"-99999999999999999999", True),
        (b"[" + b"9" * 300 + b"]", True),
        (b'["99999999999999999999"]', False),
        (b'["99999999999999999999", 1e30]', False),
        (b'["a: 99999999999999999999"]', False),
        (b'["a,-99999999999999999999"]', False),
        (rb'["a\": 99999999999999999999"]', False),
        (rb'["a\\", 99999999999999999999]', True),
        (rb'["a\\\": 99999999999999999999"]', False),
        (rb'["a\\\\", 99999999999999999999]', True),
        (b'{"99999999999999999999": 1}', False),
        (b"[0.99999999999999999999]", False),
        (b"[1.99999999999999999999e3]", False),
        (b"[99999999999999999999.0]", False),
        (b"[99999999999999999999e1]", False),
        (b"[99999999999999999999E1]", False),
        (b"[1e0000000000000000000000001]", False),
        (b"[1e-00000000000000000000001]", False),
        (b"[1234567890123456789]", False),
        (b'{"a": 99999999999999999999, "a": 1}', False),
    ],
)
def test_structure_refuses_integers_outside_64_bits(raw: bytes, refused: bool) -> None:
    assert check(raw) == (("body", "json.limit") if refused else None)


INTEGERS = st.integers(-(2**70), 2**70) | st.sampled_from([2**64, 2**64 - 1, -(2**63), -(2**63) - 1, 10**18, 10**19])
TRICKY = st.text(alphabet='"\\:, 0123456789-\n', max_size=60)
WITH_INTEGERS = st.recursive(
    INTEGERS | TRICKY | st.floats(-1e18, 1e18),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TRICKY, inner, max_size=4),
    max_leaves=12,
)


def integers(value: Any) -> list[int]:
    if isinstance(value, dict | list):
        return [
            number for child in (value.values() if isinstance(value, dict) else value) for number in integers(child)
        ]
    return [value] if isinstance(value, int) else []


@given(WITH_INTEGERS, st.sampled_from([None, 1]))
@settings(deadline=None, max_examples=250)
def test_structure_agrees_with_a_parser_that_keeps_integers(value: object, indent: int | None) -> None:
    raw = json.dumps(value, indent=indent).encode()
    wide = any(not -(2**63) <= number < 2**64 for number in integers(json.loads(raw)))
    assert (check(raw, max_depth=100) is not None) == wide


@pytest.mark.parametrize("raw", [rb'{"a\u0000b": 1}', rb'{"extras": {"x": [{"\u0000": 1}]}}', rb'[{"a\u0000": {}}]'])
def test_structure_refuses_nul_in_keys(raw: bytes) -> None:
    assert check(raw) == ("event", "validation.format")


@pytest.mark.parametrize("raw", [rb'{"a": "\u0000"}', rb'{"a": ["\u0000"]}', rb'{"\\u0000": 1}', rb'"\u0000"'])
def test_structure_leaves_nul_in_values_alone(raw: bytes) -> None:
    assert check(raw) is None


def test_structures_judges_each_event_of_a_batch_for_itself() -> None:
    parts = [b'{"a": 1}', nested(4), rb'{"a\u0000": 1}', b'{"a": 99999999999999999999}', b"7", nested(3)]
    raw = b"[" + b",".join(parts) + b"]"
    found = check_structures(raw, orjson.loads(raw), 3)
    assert [detail and detail["code"] for detail in found] == [
        None,
        "json.limit",
        "validation.format",
        "json.limit",
        None,
        None,
    ]


def test_structures_finds_nothing_in_a_plain_batch() -> None:
    raw = orjson.dumps([{"a": index, "b": {"c": [1]}} for index in range(1000)])
    assert check_structures(raw, orjson.loads(raw), 3) is None


HOSTILE = {
    "many numbers and one wide": b"[" + b"0," * 500_000 + b"99999999999999999999]",
    "many long numbers": b"[" + b"1234567890123456789," * 50_000 + b"1]",
    "string of long numbers": b'["' + b":9999999999999999999" * 50_000 + b'"]',
    "string of digits": b'["x":'[:3] + b"9" * 1_000_000 + b'"]',
    "many escapes": b'["' + rb"\"" * 500_000 + b':99999999999999999999"]',
    "many backslashes": b'["' + rb"\\" * 500_000 + b'",99999999999999999999]',
    "many containers": b"[" + b"[]," * 330_000 + b"[]]",
    "many keys": b"{" + b",".join(b'"k%d":{}' % index for index in range(80_000)) + b"}",
    "many nul": b'["' + rb"\u0000" * 160_000 + b'"]',
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE.keys())
def test_structure_is_checked_in_linear_time(raw: bytes) -> None:
    value = orjson.loads(raw)
    start = time.process_time()
    check_structure(raw, value, 32)
    assert time.process_time() - start < 0.2
