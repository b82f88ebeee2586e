from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import voluptuous as vol
from hypothesis import event as seen
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.acceptor import generate
from edge.example import EXAMPLE_EVENT
from edge.validation import EventValidator

NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | st.sampled_from([0, 1, 1.0, True, "a", "bb", ""]) | st.text(max_size=5)
NAMES = st.sampled_from(["a", "b", "c", "d"])
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=10,
)


def accepted_as_it_is(schema: vol.Schema, value: Any) -> bool:
    """Return what voluptuous says: valid, and the result is equal, to the types of its parts."""
    try:
        result = schema(copy.deepcopy(value))
    except vol.Invalid:
        return False
    return _same(result, value)


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


KEYS = st.builds(vol.Required, NAMES) | st.builds(vol.Optional, NAMES) | NAMES
DEFAULTED = st.builds(lambda name: vol.Optional(name, default="x"), NAMES)
LEAVES = st.one_of(
    st.sampled_from([str, int, float, bool, dict, list, None, 0, 1, True, 1.5, "a", "bb"]),
    st.lists(st.sampled_from(["a", "bb", 1, None]), max_size=3).map(vol.In),
    st.builds(vol.Length, min=st.none() | st.integers(0, 2), max=st.none() | st.integers(0, 3)),
    st.builds(vol.Range, min=st.none() | st.integers(-1, 1), max=st.none() | st.floats(0, 2)),
    st.sampled_from([vol.Match("a"), vol.Match("^b+$"), vol.Coerce(int), vol.Coerce(str), vol.Lower, object]),
)
PARTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=2),
        st.dictionaries(KEYS, inner, max_size=3),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: vol.Any(*parts)),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: vol.All(*parts)),
        st.dictionaries(KEYS, inner, max_size=2).map(vol.Schema),
    ),
    max_leaves=6,
)
EXTRAS = st.sampled_from([vol.PREVENT_EXTRA, vol.ALLOW_EXTRA, vol.REMOVE_EXTRA])
SCHEMAS = st.builds(
    lambda fields, extra, required: vol.Schema(fields, extra=extra, required=required),
    st.dictionaries(KEYS | DEFAULTED, PARTS, max_size=4),
    EXTRAS,
    st.booleans(),
)


@given(SCHEMAS, st.lists(st.dictionaries(NAMES, JSON, max_size=4) | JSON, min_size=5, max_size=20))
@settings(max_examples=400, deadline=None)
def test_what_is_accepted_is_valid_and_unchanged_for_any_schema(schema: vol.Schema, values: list[Any]) -> None:
    accepts = generate(schema)
    if accepts is None:
        seen("not generated")
        return
    for value in values:
        before = copy.deepcopy(value)
        if accepts(value):
            seen("accepted")
            assert accepted_as_it_is(schema, value)
        assert _same(value, before)


FIELDS = st.sampled_from([str(key) for key in EventValidator().schema.schema])
TIMES = st.sampled_from(
    [
        "2025-09-17T10:00:00Z",
        "2025-02-30T10:00:00Z",
        "0001-01-01T00:00:00Z",
        "2025-09-17T10:00:00.123Z",
        "2025-09-31",
        "",
    ]
) | st.from_regex(r"[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9](\.[0-9]{0,10})?Z", fullmatch=True)


@given(
    st.sampled_from(["reject", "keep", "drop"]),
    st.dictionaries(FIELDS | st.text(max_size=5), JSON | TIMES, max_size=5),
    TIMES,
    st.sets(FIELDS, max_size=2),
)
@settings(max_examples=400, deadline=None)
def test_what_is_accepted_is_valid_and_unchanged_for_events(
    unknown_fields: Any, changes: dict[str, Any], time: str, left_out: set[str]
) -> None:
    validator = EventValidator(unknown_fields)
    accepts = generate(validator.schema)
    assert accepts is not None
    value = {**EXAMPLE_EVENT, "event_time": time, **changes}
    value = {name: part for name, part in value.items() if name not in left_out}
    if accepts(value):
        seen("accepted")
        assert accepted_as_it_is(validator.schema, value)


@pytest.mark.parametrize("unknown_fields", ["reject", "keep", "drop"])
def test_usual_event_is_accepted_without_voluptuous(unknown_fields: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    validator = EventValidator(unknown_fields, ["platform"])

    def never(self: vol.Schema, value: Any) -> Any:
        raise AssertionError("voluptuous was asked")

    monkeypatch.setattr(vol.Schema, "__call__", never)
    value = dict(EXAMPLE_EVENT)
    assert validator.validate(value) == (value, [])
    with pytest.raises(AssertionError, match="was asked"):
        validator.validate({**EXAMPLE_EVENT, "platform": "amiga"})


class Doubling:
    def __call__(self, value: Any) -> Any:
        return value * 2


@pytest.mark.parametrize(
    "part",
    [
        vol.Coerce(int),
        Doubling(),
        lambda value: value,
        vol.Any(vol.Coerce(int), str),
        vol.All(str, vol.Lower),
        [str, int],
        [],
        object,
        vol.Any({"a": str}),
        {vol.Exclusive("a", "group"): str},
        {str: int},
        math.nan,
    ],
)
def test_schema_with_a_part_that_is_not_known_is_not_generated(part: Any) -> None:
    assert generate(vol.Schema({vol.Optional("a"): part})) is None


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (vol.Schema({"a": str}, required=True), {"a": "x"}, {}),
        (vol.Schema({vol.Optional("a", default=1): int}), {"a": 1}, {}),
        (vol.Schema({vol.Optional("a"): {vol.Required("b"): [int]}}), {"a": {"b": [1, 2]}}, {"a": {"b": [1, True]}}),
        (vol.Schema({vol.Optional("a"): vol.All(str, vol.Length(min=2))}), {"a": "xx"}, {"a": "x"}),
        (vol.Schema({vol.Optional("a"): 1}), {"a": 1}, {"a": True}),
        (vol.Schema({vol.Optional("a"): vol.Range(min=1)}), {"a": 1.5}, {"a": math.nan}),
        (vol.Schema({}, extra=vol.ALLOW_EXTRA), {"b": 1}, []),
        (vol.Schema({}, extra=vol.REMOVE_EXTRA), {}, {"b": 1}),
    ],
)
def test_generated_check_accepts_the_usual_and_leaves_the_rest(schema: vol.Schema, good: Any, bad: Any) -> None:
    accepts: Callable[[Any], bool] | None = generate(schema)
    assert accepts is not None
    assert accepts(good)
    assert not accepts(bad)


def test_names_in_a_schema_are_never_written_into_the_generated_text() -> None:
    name = '"]; raise SystemExit  #'
    accepts = generate(vol.Schema({vol.Required(name): vol.In(['"""']), vol.Optional("'"): "\\"}))
    assert accepts is not None
    assert accepts({name: '"""', "'": "\\"})
    assert not accepts({name: ""})
