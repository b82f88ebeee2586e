from __future__ import annotations

from typing import Any

import pytest
import voluptuous as vol
from hypothesis import event as seen
from hypothesis import given, settings
from hypothesis import strategies as st

from edge import validation
from edge.acceptor import generate
from edge.columns import FEW_EVENTS, SHAPES, Columnar, generate_columns
from edge.example import EXAMPLE_EVENT
from edge.validation import EventValidator

SCALARS = st.none() | st.booleans() | st.integers(-2, 2) | st.floats(-2, 2) | st.sampled_from(["a", "bb", "", "ios"])
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
VALIDATOR = EventValidator()
FIELDS = [str(key) for key in VALIDATOR.schema.schema]
TIMES = st.sampled_from(
    [
        "2025-09-17T10:00:00Z",
        "2025-09-17T10:00:00.137Z",
        "2025-09-17T10:00:00Z\n2025-09-17T10:00:00Z",
        "2025-02-30T10:00:00Z",
        "",
    ]
)
CHANGES = st.dictionaries(st.sampled_from(FIELDS) | st.just("shoe_size"), JSON | TIMES, max_size=2)
OTHER_SHAPES = st.lists(st.sampled_from(FIELDS[7:]), max_size=2, unique=True)


def event(number: int, **changes: Any) -> dict[str, Any]:
    return {
        **EXAMPLE_EVENT,
        "event_id": f"evt_{number}",
        "event_time": f"2025-09-17T10:00:{number % 60:02d}Z",
        **changes,
    }


@given(
    st.lists(OTHER_SHAPES, min_size=1, max_size=3),
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(0, 39), CHANGES | JSON, st.sampled_from(FIELDS)), max_size=3),
)
@settings(max_examples=500, deadline=None)
def test_events_together_are_accepted_when_each_of_them_is(
    shapes: list[list[str]], n_events: int, damages: list[tuple[int, Any, str]]
) -> None:
    accepts, accepts_all = generate(VALIDATOR.schema, flat=True), generate_columns(VALIDATOR.schema)
    assert accepts is not None
    assert accepts_all is not None
    events: list[Any] = []
    for number in range(n_events):
        left_out = shapes[number % len(shapes)]
        events.append({name: value for name, value in event(number).items() if name not in left_out})
    for place, damage, moved in damages:
        at = place % n_events
        if isinstance(damage, dict) and isinstance(events[at], dict):
            events[at] = {**events[at], **damage}
            if moved in events[at]:  # the same fields in another order
                events[at][moved] = events[at].pop(moved)
        else:
            events[at] = damage
    expected = all(map(accepts, events))
    assert accepts_all(events) is expected
    seen(str(expected))


@given(
    st.lists(st.dictionaries(st.sampled_from("ab"), JSON, max_size=2), min_size=1, max_size=30),
    st.sampled_from([str, int, bool, dict, [str], vol.Any(str, None), vol.In(["a", "bb"]), vol.Length(max=1)]),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_the_same_for_schemas_of_few_fields(events: list[Any], check: Any, alike: bool, is_required: bool) -> None:
    key = vol.Required("a") if is_required else vol.Optional("a")
    schema = vol.Schema({key: check, vol.Optional("b"): str})
    accepts, accepts_all = generate(schema, flat=True), generate_columns(schema)
    assert accepts is not None
    assert accepts_all is not None
    events = events[:1] * 20 if alike else events
    assert accepts_all(events) is all(map(accepts, events))


def test_a_schema_that_cannot_be_generated_has_no_columns() -> None:
    assert generate_columns(vol.Schema({"a": vol.Coerce(int)})) is None


@pytest.mark.parametrize("words", [["mobile", ["mobile"]], ["mobile", {}], ["mobile", 1]])
def test_a_value_that_cannot_be_looked_up_is_not_accepted(words: list[Any]) -> None:
    accepts_all = generate_columns(VALIDATOR.schema)
    assert accepts_all is not None
    events = [event(number, device_type=words[number % 2]) for number in range(20)]
    assert not accepts_all(events)


def test_shapes_without_number_are_not_all_remembered() -> None:
    accepts_all = generate_columns(VALIDATOR.schema)
    assert accepts_all is not None
    columns: Any = accepts_all.__self__  # type: ignore[attr-defined]
    optional = FIELDS[7:]
    for number in range(2 * SHAPES):
        chosen = [name for index, name in enumerate(optional[:10]) if number >> index & 1]
        plain = {name: VALUES.get(name, {}) for name in chosen}
        assert accepts_all([{**event(0), **plain}] * FEW_EVENTS)
        assert len(columns._shapes) <= SHAPES


VALUES = {
    "element_id": "a",
    "referrer": "a",
    "app_version": "1",
    "device_type": "mobile",
    "platform": "ios",
    "network_type": "wifi",
}


def test_check_that_tells_differently_of_one_value_tells_differently_of_many() -> None:
    """A subclass would otherwise accept by columns what its parent accepts."""
    checks = [kind for kind in vars(validation).values() if isinstance(kind, type) and issubclass(kind, Columnar)]
    assert len(checks) >= 3
    for kind in checks:
        assert ("accepts" in vars(kind)) == ("accepts_column" in vars(kind)), kind
